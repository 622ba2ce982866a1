"""The loop that indexes: it stores the engagements of the owned lanes of the log under their match keys."""

from collections.abc import Awaitable, Callable, Mapping, Sequence

from prometheus_client import Counter

from libs.db import Connection, Pool, transactions
from libs.domain.snapshots import Follower
from reengage.attribution.v1 import quarantine_pb2
from reengage.ingest.v1 import log_pb2
from services.attribution.decision.rules import AppRules
from services.attribution.live import late_pings
from services.attribution.live.log_reader import LogReader, moved, positions_after, rulebook_for
from services.attribution.live.owned_lanes import OwnedLanes
from services.attribution.live.quarantine import count_set_aside, entry_set_aside, in_halves
from services.attribution.storage import quarantine
from services.attribution.storage.engagements import EngagementIndex, IndexRows
from services.attribution.storage.hashed_ids import find_hash_lengths
from services.attribution.storage.lanes import advance_indexed, read_owned_lanes
from services.attribution.wire.records import Logged, index_rows, parse
from services.attribution.wire.rulebook import Rulebook

_indexed = Counter("attribution_engagements_indexed_total", "Engagements stored.")


class Indexer:
    """The indexing loop of a worker."""

    def __init__(self, pool: Pool, rulebooks: Follower[Rulebook], log: LogReader) -> None:
        self._pool, self._index, self._rulebooks, self._log = pool, EngagementIndex(pool), rulebooks, log

    async def run(self, lanes: OwnedLanes) -> None:
        """Indexes the owned lanes of the log until cancelled. Raises LanesLostError."""
        stored = await read_owned_lanes(self._pool, lanes.worker_id, lanes.lanes)
        positions = {lane: each.indexed for lane, each in stored.items()}
        async for response in self._log.read(positions, log_pb2.ReadLogRequest.SELECTION_ENGAGEMENTS):
            if moved_to := moved(positions, response):
                await self._index_page(lanes, response.entries, moved_to)
                positions.update(moved_to)

    async def _index_page(
        self, lanes: OwnedLanes, entries: Sequence[log_pb2.LogEntry], moved_to: Mapping[int, int]
    ) -> None:
        """Indexes a page of the log, which moves lanes on; what cannot be indexed is set aside."""
        indexed: list[tuple[Sequence[Logged], Mapping[str, AppRules]]] = []

        def moved_by(stop: int) -> Mapping[int, int]:
            return moved_to if stop == len(entries) else positions_after(entries[:stop])

        async def index(some: range) -> None:
            logged, apps, rows = await rows_to_index(self._pool, self._rulebooks, entries[some.start : some.stop])
            await self._move(lanes, moved_by(some.stop), lambda connection: self._index.insert(connection, rows))
            _indexed.inc(len(logged))
            indexed.append((logged, apps))

        async def set_aside(place: int, error: Exception) -> None:
            row = entry_set_aside(entries[place], quarantine_pb2.QUARANTINE_WORK_INDEX, error)
            await self._move(lanes, moved_by(place + 1), lambda connection: quarantine.insert(connection, [row]))
            count_set_aside([row])

        if entries:
            await in_halves(len(entries), index, set_aside)
        else:
            await self._move(lanes, moved_to, _nothing)
        for logged, apps in indexed:
            await late_pings.count_indexed(self._pool, logged, apps)

    async def _move(
        self, lanes: OwnedLanes, moved_to: Mapping[int, int], write: Callable[[Connection], Awaitable[None]]
    ) -> None:
        """Writes, and moves the index positions of lanes on, in one transaction."""
        async for attempt in transactions(self._pool):
            async with attempt as connection:
                await write(connection)
                await advance_indexed(connection, lanes.worker_id, moved_to)
        lanes.indexed.advance(moved_to)


async def rows_to_index(
    pool: Pool, rulebooks: Follower[Rulebook], entries: Sequence[log_pb2.LogEntry]
) -> tuple[Sequence[Logged], Mapping[str, AppRules], IndexRows]:
    """Returns the records of entries, the rules of their apps, and the rows that index them."""
    logged = parse(entries)
    apps = (await rulebook_for(rulebooks, logged)).apps
    # Asked after the entries came: who notes a new kind knows that all beyond the heads of then is indexed so.
    lengths = await find_hash_lengths(pool, {record.app_id for _, record in logged}, is_on_conversions=True)
    return logged, apps, index_rows(logged, apps, lengths)


async def _nothing(_: Connection) -> None:
    """Writes nothing: a page without engagements only moves on."""
