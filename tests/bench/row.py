"""A row of the performance table."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A measured value beside the limit that it is compared with, measured in the same run.

    `at_least` and `at_most` are what the ratio to the limit must keep to; 0: nothing is asked. `failure` says why there
    is no value.
    """

    name: str
    value: float = 0.0
    unit: str = ""
    limit_name: str = ""
    limit: float = 0.0
    at_least: float = 0.0
    at_most: float = 0.0
    failure: str = ""

    @property
    def ratio(self) -> float | None:
        """Returns the value as a share of its limit."""
        return self.value / self.limit if self.limit else None

    @property
    def holds(self) -> bool | None:
        """Returns whether the ratio keeps to what is asked; None when nothing is."""
        ratio = self.ratio
        if ratio is None or not (self.at_least or self.at_most):
            return None
        return ratio >= self.at_least and (not self.at_most or ratio <= self.at_most)
