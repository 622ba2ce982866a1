"""A row of the performance table."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What was measured, and the limit that it is compared with, measured in the same run."""

    name: str
    value: float
    unit: str
    limit_name: str = ""
    limit: float = 0.0

    @property
    def ratio(self) -> float | None:
        """Of the value to its limit."""
        return self.value / self.limit if self.limit else None
