"""Indexing for home lanes that do not flood, ahead of the flood of others.

The loop that indexes stores engagements in the order of the log, those of all apps. While it is far behind, whoever
decides here reads once more, and stores, what the log holds of the home lanes that have little in it. Their conversions
need not wait for the rest. What is stored so the indexing loop meets again, and finds it there.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import aclosing
from functools import partial

from libs.db import Pool, transactions
from libs.domain.snapshots import Follower
from reengage.ingest.v1 import log_pb2
from services.attribution.live.indexer import rows_to_index
from services.attribution.live.log_reader import LogReader, positions_after
from services.attribution.live.owned_lanes import IndexedPositions
from services.attribution.live.quarantine import in_halves, is_circumstance
from services.attribution.live.turns import MAX_APART, MAX_SHARE
from services.attribution.storage.engagements import EngagementIndex
from services.attribution.storage.lanes import hold_unindexed, read_indexed
from services.attribution.wire.rulebook import Rulebook

FAR_BEHIND = 1_000
"""Entries of the log: a page of the indexing loop. Nearer than this it is waited for."""
_MAX_ENTRIES = 10_000
"""Entries that one read passes over; most are of other home lanes."""


class _OvertakenError(Exception):
    """The indexing loop has passed what was to be stored: it may be erased by now, and must not come back."""


class IndexAhead:
    """The way that one worker has gone ahead of indexing, for the home lanes that went along from its beginning."""

    def __init__(self, pool: Pool, rulebooks: Follower[Rulebook], log: LogReader) -> None:
        self._pool, self._index, self._rulebooks, self._log = pool, EngagementIndex(pool), rulebooks, log
        self._reached: list[int] = []
        self._homes: frozenset[int] = frozenset()

    def end(self) -> None:
        """Forgets the way: the indexing loop is near."""
        self._homes = frozenset()

    async def reach(self, heads: Sequence[int], indexed: IndexedPositions, homes: Collection[int]) -> set[int]:
        """Stores the engagements below `heads` of these home lanes, but for those that have too many; returns these."""
        max_count = max(MAX_SHARE, indexed.missing(heads) // MAX_APART)
        if not self._homes.issuperset(homes):
            self._reached = list(indexed.positions)
        self._homes = frozenset(homes)
        counts: Counter[int] = Counter()
        flooding: set[int] = set()
        while more := await self._read_on(heads, counts, max_count):
            flooding |= more
            self._homes -= more
        return flooding

    async def _read_on(self, heads: Sequence[int], counts: "Counter[int]", max_count: int) -> set[int]:
        """Goes on to `heads`, or to a page with which home lanes have too many: stores nothing of it, returns these."""
        behind = {lane: at for lane, at in enumerate(self._reached) if at < heads[lane]}
        if not behind or not self._homes:
            return set()
        read = self._log.read(
            behind,
            log_pb2.ReadLogRequest.SELECTION_ENGAGEMENTS,
            app_lanes=sorted(self._homes),
            max_entries=_MAX_ENTRIES,
        )
        async with aclosing(read) as log:
            async for response in log:
                found = Counter(entry.app_lane for entry in response.entries)
                if flooding := {home for home, count in found.items() if counts[home] + count > max_count}:
                    return flooding
                await self._store(response.entries)
                counts += found
                ends = dict(enumerate(response.heads)) if response.caught_up else positions_after(response.entries)
                for lane in behind:
                    self._reached[lane] = max(self._reached[lane], ends.get(lane, 0))
                if response.caught_up:
                    return set()
        raise AssertionError("ReadLog does not end")

    async def _store(self, entries: Sequence[log_pb2.LogEntry]) -> None:
        """Stores engagements that the indexing loop has not come to. What cannot be stored is left to it, too."""
        overtaken = True
        while overtaken:
            indexed = await read_indexed(self._pool)
            left = [entry for entry in entries if entry.position >= indexed[entry.lane]]
            try:
                await in_halves(len(left), partial(self._store_some, left), _leave, _passes)
                overtaken = False
            except _OvertakenError:
                pass

    async def _store_some(self, all_entries: Sequence[log_pb2.LogEntry], some: range) -> None:
        entries = all_entries[some.start : some.stop]
        _, _, rows = await rows_to_index(self._pool, self._rulebooks, entries)
        first: dict[int, int] = {}
        for entry in entries:
            first[entry.lane] = min(entry.position, first.get(entry.lane, entry.position))
        async for attempt in transactions(self._pool):
            async with attempt as connection:
                # What came late has others decided again once the indexing loop is there: it meets all of those.
                await self._index.insert(connection, rows._replace(late=[]))
                if not await hold_unindexed(connection, first):
                    raise _OvertakenError


def _passes(error: Exception) -> bool:
    return isinstance(error, _OvertakenError) or is_circumstance(error)


async def _leave(_place: int, _error: Exception) -> None:
    """Sets nothing aside: the indexing loop will, which meets the same."""
