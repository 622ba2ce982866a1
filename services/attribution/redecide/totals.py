"""Totals: the credits of trackers before and after conversions were decided again."""

from collections import Counter
from collections.abc import Iterable
from typing import Any, Self

from reengage.attribution.v1 import credit_total_pb2
from services.attribution.redecide.replayed import Credit


class Totals:
    """Counts of credits, by network, tracker, side (before or after) and column of CreditCounts."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str, str, str]] = Counter()

    def add(self, conversions: Iterable[tuple[Credit, Credit]]) -> None:
        """Counts conversions, each by its credit before and its credit now."""
        for pair, count in Counter(conversions).items():
            for side, (network_id, tracker_id, column) in zip(("before", "after"), pair, strict=True):
                if column:
                    self._counts[network_id, tracker_id, side, column] += count

    def messages(self) -> list[credit_total_pb2.CreditTotal]:
        """Returns the totals in the order of networks and trackers."""
        found: dict[tuple[str, str], credit_total_pb2.CreditTotal] = {}
        for (network_id, tracker_id, side, column), count in sorted(self._counts.items()):
            total = found.setdefault(
                (network_id, tracker_id), credit_total_pb2.CreditTotal(network_id=network_id, tracker_id=tracker_id)
            )
            setattr(getattr(total, side), column, count)
        return list(found.values())

    def to_json(self) -> list[Any]:
        """Returns the totals as JSON holds them; `from_json` reads it."""
        return [[*key, count] for key, count in sorted(self._counts.items())]

    @classmethod
    def from_json(cls, value: list[Any]) -> Self:
        totals = cls()
        totals._counts.update({(row[0], row[1], row[2], row[3]): row[4] for row in value})
        return totals
