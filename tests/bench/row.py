"""A row of the performance table."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What was measured, and the limit that it is compared with, measured in the same run.

    `at_least` and `at_most` are what the ratio to the limit must keep to; 0: nothing is asked.
    """

    name: str
    value: float
    unit: str
    limit_name: str = ""
    limit: float = 0.0
    at_least: float = 0.0
    at_most: float = 0.0

    @property
    def ratio(self) -> float | None:
        """Of the value to its limit."""
        return self.value / self.limit if self.limit else None

    @property
    def holds(self) -> bool | None:
        """Whether the ratio keeps to what is asked; None when nothing is."""
        ratio = self.ratio
        if ratio is None or not (self.at_least or self.at_most):
            return None
        return ratio >= self.at_least and (not self.at_most or ratio <= self.at_most)
