"""The loop that indexes: it stores the engagements of the owned lanes of the log under their match keys."""

from prometheus_client import Counter

from libs.db import Pool, transactions
from libs.domain.snapshots import Follower
from reengage.ingest.v1 import log_pb2
from services.attribution.live import late_pings
from services.attribution.live.log_reader import LogReader, moved, rulebook_for
from services.attribution.live.owned_lanes import OwnedLanes
from services.attribution.storage.engagements import EngagementIndex
from services.attribution.storage.hashed_ids import find_hash_lengths
from services.attribution.storage.lanes import advance_indexed, read_owned_lanes
from services.attribution.wire.records import index_rows, parse
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
            moved_to = moved(positions, response)
            if not moved_to:
                continue
            logged = parse(response.entries)
            apps = (await rulebook_for(self._rulebooks, logged)).apps
            # Asked after the entries came: who notes a new kind knows that all beyond the heads of then is indexed so.
            lengths = await find_hash_lengths(
                self._pool, {record.app_id for _, record in logged}, is_on_conversions=True
            )
            rows = index_rows(logged, apps, lengths)
            async for attempt in transactions(self._pool):
                async with attempt as connection:
                    await self._index.insert(connection, rows)
                    await advance_indexed(connection, lanes.worker_id, moved_to)
            positions.update(moved_to)
            lanes.indexed.advance(moved_to)
            _indexed.inc(len(response.entries))
            await late_pings.count_indexed(self._pool, logged, apps)
