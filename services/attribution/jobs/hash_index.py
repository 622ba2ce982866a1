"""The job that indexes what came before the first hashed ids of an app (A3).

Of a kind of hashed ids that came on engagements only, the hashes of the raw ids of all devices. Once conversions carry
it, those of the raw ids of engagements, too; meanwhile these conversions wait, since their devices and their clicks
would not be found. What comes later is indexed as it comes. Each step can be repeated; what a crash interrupts begins
anew.
"""

import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import groupby

import asyncpg
import structlog
from prometheus_client import Gauge

from libs.broadcast import within
from libs.db import Connection, Pool
from libs.domain.device_ids import HASHED_KINDS
from libs.domain.snapshots import Follower
from libs.time import now_us
from reengage.ingest.v1 import record_pb2
from reengage.ingest.v1.service_pb2_grpc import IngestServiceStub
from services.attribution.decision.matching import hash_keys
from services.attribution.live.batch import decide_batch
from services.attribution.live.changes import Changes
from services.attribution.live.claim_triggers import ClaimTriggers
from services.attribution.live.log_reader import log_heads
from services.attribution.live.owned_lanes import OwnedLanes
from services.attribution.live.pending import logged_of
from services.attribution.live.pending_aside import set_pending_aside
from services.attribution.live.quarantine import in_halves
from services.attribution.pace import Guest, Pace
from services.attribution.storage import hashed_ids, pending
from services.attribution.storage.devices import NO_DEVICE, Identifier, IdKey
from services.attribution.storage.hashed_ids import HashedKind, KnownIds, ToIndex
from services.attribution.storage.lanes import read_indexed
from services.attribution.storage.pending import FIRST_PLACE, Mark, PendingRow
from services.attribution.wire.records import hashed_ids_of
from services.attribution.wire.rulebook import Rulebook

_log = structlog.get_logger()
_waiting = Gauge("attribution_hashed_conversions_waiting", "Conversions that wait for the hashes of ids to be indexed.")

_LOOKED_BACK = timedelta(days=62)
"""Conversions are at most 31 days old (ingest), and engagements 31 days older than these are not considered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HashIndexConfig:
    """The limits and intervals of the job."""

    max_devices: int = 1_000
    """Devices of one transaction: live work waits for it."""
    max_blocks: int = 256
    """Blocks of a partition of engagements, of 8 KB each, that are read in one transaction."""
    max_decided: int = 200
    """Conversions decided in one transaction."""
    look_interval_s: float = 2.0
    """The time between two looks at the table, while nothing is known to wait."""
    wait_interval_s: float = 0.05
    """The time between two looks at what the job waits for."""


class HashIndexer:
    """The job: it indexes for the apps homed in the owned lanes, one after the other."""

    def __init__(
        self,
        *,
        pool: Pool,
        settings: Follower[Rulebook],
        ingest: IngestServiceStub,
        triggers: ClaimTriggers,
        pace: Pace,
        config: HashIndexConfig = HashIndexConfig(),
        now_us: Callable[[], int] = now_us,
        new_id: Callable[[], uuid.UUID] = uuid.uuid4,
    ) -> None:
        self._pool, self._settings, self._ingest, self._triggers = pool, settings, ingest, triggers
        self._pace, self._config, self._now_us, self._new_id = pace, config, now_us, new_id

    async def run(self, lanes: OwnedLanes) -> None:
        """Indexes for as long as the lanes are owned. Raises LanesLostError."""
        mark = await pending.mark(self._pool, lanes.lanes)
        indexed = await hashed_ids.read_hashed_kinds(self._pool, lanes.lanes)
        lanes.hashed.finish([each.kind for each in indexed if each.is_ready])
        while True:
            lanes.hashed.changed.clear()
            await self.index(lanes, mark)
            _waiting.set(await pending.count_early(self._pool, lanes.lanes))
            await within(lanes.hashed.changed, self._config.look_interval_s)

    async def index(self, lanes: OwnedLanes, mark: Mark) -> None:
        """Indexes what is to be indexed now, and decides the conversions that waited, once `mark` is reached."""
        to_index = await hashed_ids.kinds_to_index(self._pool, lanes.lanes)
        for _, kinds in groupby(to_index, lambda each: each.app_id):
            await self._index_app(lanes, list(kinds), mark)

    async def _index_app(self, lanes: OwnedLanes, kinds: Sequence[ToIndex], mark: Mark) -> None:
        """Indexes kinds of hashed ids of one app, and decides its conversions that waited."""
        began, app_id, lane = time.monotonic(), kinds[0].app_id, kinds[0].kind.lane
        lanes.hashed.learn([each.kind for each in kinds])
        async with self._step(lanes, lane):
            pass  # a batch that was decided without knowing them is committed now
        new = [each.kind.kind for each in kinds if not each.are_devices_indexed]
        on_conversions = [each.kind for each in kinds if each.is_on_conversions]
        _waiting.set(await pending.count_early(self._pool, lanes.lanes))
        with self._pace.guest() as guest:
            if new:
                await self._index_devices(lanes, app_id, lane, new, guest)
            if on_conversions:
                await self._index_engagements(lanes, app_id, lane, on_conversions, guest)
        async with self._step(lanes, lane) as connection:
            others = [each.kind for each in kinds if not each.is_on_conversions]
            await hashed_ids.note_indexed(connection, others, is_on_conversions=False)
        if on_conversions:
            await self._decide(lanes, app_id, lane, on_conversions, mark)
        _log.info(
            "hashes.indexed",
            app_id=app_id,
            kinds=sorted({each.kind.kind for each in kinds}),
            seconds=round(time.monotonic() - began, 3),
        )

    async def _index_devices(
        self, lanes: OwnedLanes, app_id: str, lane: int, kinds: Sequence[str], guest: Guest
    ) -> None:
        """Has the hashes of all raw ids of devices lead where these lead."""
        after: uuid.UUID | None = NO_DEVICE
        while after is not None:
            async with self._step(lanes, lane) as connection:
                known, after = await hashed_ids.ids_of_devices(connection, app_id, after, self._config.max_devices)
                if after is None:
                    known += await hashed_ids.all_shared_ids(connection, app_id)
                await hashed_ids.insert_new_identifiers(connection, _hashes_of(app_id, known, kinds))
            await guest.turn()

    async def _index_engagements(
        self, lanes: OwnedLanes, app_id: str, lane: int, kinds: Sequence[HashedKind], guest: Guest
    ) -> None:
        """Has the raw ids of all engagements be found by their hashes."""
        rules = self._settings.current.apps.get(app_id)
        tracker_ids = () if rules is None else rules.trackers.keys()
        lengths = {HASHED_KINDS[each.kind][1] for each in kinds}
        await self._until_indexed(lanes)
        since = datetime.fromtimestamp(self._now_us() / 1e6, UTC) - _LOOKED_BACK
        for partition, count in await hashed_ids.engagement_blocks(self._pool, since.strftime("%Y%m")):
            for start in range(0, count, self._config.max_blocks):
                try:
                    async with self._step(lanes, lane) as connection:
                        engagements = hashed_ids.engagements_in(
                            connection, partition, start, start + self._config.max_blocks, tracker_ids
                        )
                        rows = {
                            row
                            async for each in engagements
                            if (record := record_pb2.Record.FromString(each.record)).app_id == app_id
                            for row in hashed_ids_of(record, lengths, each.time_us, each.retention_days)
                        }
                        await hashed_ids.insert_hashed_ids(connection, rows)
                except asyncpg.UndefinedTableError:  # its time was over
                    break
                await guest.turn()

    async def _until_indexed(self, lanes: OwnedLanes) -> None:
        """Waits until all is stored that may have been indexed without these kinds: what the log holds now."""
        heads = await log_heads(self._ingest)
        while lanes.indexed.behind(heads):
            lanes.indexed.advance(dict(enumerate(await read_indexed(self._pool))))
            await within(lanes.indexed.moved.next(), self._config.wait_interval_s)

    async def _decide(self, lanes: OwnedLanes, app_id: str, lane: int, kinds: Sequence[HashedKind], mark: Mark) -> None:
        """Decides the conversions that waited; those that come after the last of them wait no more."""
        while not mark.is_reached(lanes.heads, self._settings.current.revision):
            await within(lanes.indexed.moved.next(), self._config.wait_interval_s)
        after, is_finished = FIRST_PLACE, False
        while not is_finished:
            rows = await pending.find_early(self._pool, lane, app_id, after, self._config.max_decided)
            if rows:
                after = rows[-1].place
                await self._decide_rows(lanes, app_id, rows, kinds)
                continue
            async with lanes.fenced() as connection:  # here none begins to wait meanwhile
                is_finished = not await pending.find_early(self._pool, lane, app_id, after, 1)
                changes = Changes(finished_kinds=kinds if is_finished else ())
                await lanes.append(connection, changes, lanes=[lane])

    async def _decide_rows(
        self, lanes: OwnedLanes, app_id: str, rows: Sequence[PendingRow], kinds: Sequence[HashedKind]
    ) -> None:
        """Decides conversions for which these kinds are ready; what cannot be decided is set aside."""

        async def decide(some: range) -> None:
            known, now_us = lanes.hashed.by_app, self._now_us()
            ready = {each.kind: True for each in kinds}
            with self._pace.live():
                async with lanes.fenced() as connection:
                    taken = await pending.take(connection, rows[some.start : some.stop])
                    changes = await decide_batch(
                        connection,
                        [logged_of(row) for row in taken],
                        apps=self._settings.current.apps,
                        next_sequences=lanes.next_sequences,
                        new_id=self._new_id,
                        now_us=now_us,
                        asking=self._triggers.asking(lanes.pending.app_ids, now_us),
                        hashed={**known, app_id: {**known[app_id], **ready}},
                    )
                    await lanes.append(connection, changes, lanes=[rows[0].lane])

        await in_halves(len(rows), decide, partial(set_pending_aside, lanes, rows))

    @asynccontextmanager
    async def _step(self, lanes: OwnedLanes, lane: int) -> AsyncIterator[Connection]:
        """Yields a fenced transaction, which no erasure and no batch of deciding runs beside."""
        async with lanes.fenced() as connection:
            yield connection
            await lanes.append(connection, lanes=[lane])


def _hashes_of(app_id: str, known: Iterable[KnownIds], kinds: Sequence[str]) -> Mapping[IdKey, Identifier]:
    """Returns the hashes of raw ids, of these kinds, with where they lead."""
    return {
        IdKey(key, kind): Identifier(each.device_id, each.met)
        for each in known
        for kind in kinds
        for value in each.ids.get(HASHED_KINDS[kind][0], ())
        for key in hash_keys(app_id, value, HASHED_KINDS[kind][1])
    }
