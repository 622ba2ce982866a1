"""Turns between home lanes: one that has much to decide, or is slow, does not have the others wait for all of it.

Every home lane has read positions of its own, one a lane of the log. So those that follow the log together share one
reader, and one that falls behind is read apart, from its own positions, until it can follow with the others again.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass

from libs.domain.lanes import LANES
from reengage.ingest.v1 import log_pb2

MAX_SHARE = 200
"""Records of one home lane that are taken of a page; a lane that has more is read apart."""
_FAR_BEHIND = 50_000
"""Records of the log. A lane so far behind the furthest begins apart: the others need not read all that again."""
MAX_APART = 16
"""Lanes that are read apart at once; each holds a page of the log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """The shares of a page: its entries without what is beyond them, and by lane where that begins."""

    entries: Sequence[log_pb2.LogEntry]
    beyond: Mapping[int, list[int]]


class Turns:
    """The positions that home lanes are decided up to: `together` of all that follow the log, `apart` of each other.

    `decided` are the stored ones, with which it begins; lanes that are far behind the others begin apart.
    """

    def __init__(self, decided: Mapping[int, list[int]]) -> None:
        self._begun = {home: list(vector) for home, vector in decided.items()}
        furthest = max(map(sum, self._begun.values()), default=0)
        behind = sorted((sum(vector), home) for home, vector in self._begun.items())
        self.apart = {
            home: self._begun[home] for reached, home in behind[:MAX_APART] if furthest - reached > _FAR_BEHIND
        }
        following = [vector for home, vector in self._begun.items() if home not in self.apart]
        # Lanes that come from different workers are at different places: begin at the earliest, skip what was decided.
        self.together = [min(column) for column in zip(*following, strict=True)] or [0] * LANES

    def before(self) -> dict[int, list[int]]:
        """Returns the positions of each home lane that follows."""
        return {home: self.decided(home) for home in self._begun if home not in self.apart}

    def decided(self, home: int) -> list[int]:
        """Returns the positions that a home lane which follows is decided up to."""
        return _later(self._begun[home], self.together)

    def move(self, ends: Mapping[int, int]) -> None:
        """Notes that what follows is read up to here."""
        self.together = [ends.get(lane, at) for lane, at in enumerate(self.together)]

    def has_room(self, count: int) -> bool:
        """Returns whether so many more lanes can be read apart."""
        return len(self.apart) + count <= MAX_APART

    def shares(
        self, entries: Sequence[log_pb2.LogEntry], are_others: bool, without: Collection[int] = frozenset()
    ) -> Shares:
        """Returns the shares that home lanes have of a page; all of it while there are no others to wait.

        Lanes `without` a share are read apart from here on.
        """
        counts: dict[int, int] = {}
        taken: list[log_pb2.LogEntry] = []
        beyond = {home: self.decided(home) for home in without}
        for entry in entries:
            home = entry.app_lane
            if home in self.apart or entry.position < self._begun[home][entry.lane] or home in beyond:
                continue
            counts[home] = counts.get(home, 0) + 1
            if counts[home] <= MAX_SHARE or not are_others or not self.has_room(len(beyond) + 1):
                taken.append(entry)
            else:
                beyond[home] = self.decided(home)
        for entry in taken:
            if (vector := beyond.get(entry.app_lane)) is not None:
                vector[entry.lane] = max(vector[entry.lane], entry.position + 1)
        return Shares(entries=taken, beyond=beyond)

    def rejoin(self, home: int) -> bool:
        """Has a lane that is read apart follow with the others, if it is as far as they are; returns whether it is."""
        vector = self.apart[home]
        if any(at < other for at, other in zip(vector, self.together, strict=True)):
            return False
        self._begun[home] = self.apart.pop(home)
        return True


@contextlib.asynccontextmanager
async def first_failure_of_group() -> AsyncIterator[asyncio.TaskGroup]:
    """Yields a group of tasks; raises the error of the first that fails by itself, so that who calls can tell it."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None


def _later(one: Sequence[int], other: Sequence[int]) -> list[int]:
    """Returns the later position of each lane of the log."""
    return [max(pair) for pair in zip(one, other, strict=True)]
