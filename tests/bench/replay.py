"""Deciding again: how fast on one core, and what it costs those who decide live meanwhile.

The worker's own way of deciding and writing a batch, on a real PostgreSQL, without the log before it.
"""

import asyncio
import gc
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from libs.db import Pool, open_pool, transaction
from libs.domain.lanes import LANES, lane_of
from reengage.ingest.v1 import log_pb2
from services.attribution.decision.model import TrackerType
from services.attribution.decision.rules import (
    App,
    AppRules,
    EventDefinition,
    Network,
    Platform,
    Tracker,
    compile_rules,
)
from services.attribution.live.batch import decide_batch
from services.attribution.live.changes import Changes
from services.attribution.live.owned_lanes import OwnedLanes
from services.attribution.pace import Pace
from services.attribution.redecide.replay import Replay
from services.attribution.storage.engagements import EngagementIndex
from services.attribution.storage.lanes import read_owned_lanes, take_lanes
from services.attribution.storage.replay import FIRST_DEVICE, Period
from services.attribution.wire.records import Logged, index_rows
from tests.bench.load import APP, CLICKED, INSTALLED, Traffic
from tests.bench.row import Row
from tests.support.databases import migrated_postgres

ASKED = 20_000
PAGE = 1000
_BATCHES_AT_ONCE = 10
_ALL_TIME = Period(app_id=APP, start_us=0, end_us=1 << 54)


async def bench(*, batches: int = 600, live_batches: int = 150) -> list[Row]:
    """Returns two rows of the whole bench's mix: `batches` of 100 records stored, `live_batches` decided twice."""
    async with migrated_postgres("attribution") as (postgres, _):
        dsn = postgres.dsn("attribution")
        async with open_pool(dsn, schema="attribution", application_name="bench") as pool:
            live = await _Live.owning(pool)
            await live.decide(batches)
            await pool.execute("ANALYZE")
            gc.freeze()  # as the service does once it serves
            rate = max([await _replayed(live, Pace()) for _ in range(3)])
            alone, beside = [], []
            for _ in range(6):  # in turns, as neighbours on this machine come and go
                alone.append(await live.decide(live_batches))
                async with _replaying(live):
                    beside.append(await live.decide(live_batches))
    return [
        Row(
            name="what-if over stored conversions",
            value=rate,
            unit="conversions/s",
            limit_name="asked of one core",
            limit=ASKED,
            at_least=1,
        ),
        Row(
            name="conversions decided live while others are decided again",
            value=max(beside),
            unit="conversions/s",
            limit_name="conversions/s alone",
            limit=max(alone),
            at_least=0.9,
        ),
    ]


class _Live:
    """A worker's writing half: it owns all lanes and decides what it is given."""

    def __init__(self, pool: Pool, lanes: OwnedLanes) -> None:
        self.pool, self.pace, self.rules = pool, Pace(), _rules()
        self._index, self._lanes, self._traffic = EngagementIndex(pool), lanes, Traffic(7)
        self._batch, self._position = 0, 0

    @classmethod
    async def owning(cls, pool: Pool) -> "_Live":
        """Takes all lanes, for longer than the bench runs."""
        async with transaction(pool) as connection:
            lanes = await take_lanes(connection, "bench", LANES, 86_400)
        return cls(pool, OwnedLanes(pool, "bench", await read_owned_lanes(pool, "bench", lanes)))

    async def decide(self, batches: int) -> float:
        """Decides so many more batches of the mix, ten at a time; returns conversions decided a second."""
        decided, took = 0, 0.0
        for _ in range(batches // _BATCHES_AT_ONCE):
            logged = self._logged()
            rows = index_rows(logged, {APP: self.rules}, {})
            conversions = [each for each in logged if each.record.WhichOneof("kind") in ("install", "event")]
            began = time.perf_counter()
            async with transaction(self.pool) as connection:
                await self._index.insert(connection, rows)
            with self.pace.live():
                changes = await self._append(conversions)
            took += time.perf_counter() - began
            decided += len(changes.decisions)
        return decided / took

    async def _append(self, conversions: list[Logged]) -> Changes:
        async with self._lanes.fenced() as connection:
            changes = await decide_batch(
                connection,
                conversions,
                apps={APP: self.rules},
                next_sequences=self._lanes.next_sequences,
                new_id=uuid.uuid4,
                now_us=time.time_ns() // 1000,
            )
            await self._lanes.append(connection, changes, lanes=[lane_of(APP)])
        return changes

    def _logged(self) -> list[Logged]:
        logged = []
        for _ in range(_BATCHES_AT_ONCE):
            for record in self._traffic.batch(self._batch):
                now_us = time.time_ns() // 1000
                record.event_time.FromMicroseconds(now_us)
                entry = log_pb2.LogEntry(
                    lane=self._position % LANES,
                    position=self._position,
                    app_lane=lane_of(APP),
                    receive_time_us=now_us,
                    record=record.SerializeToString(),
                )
                self._position += 1
                logged.append(Logged(entry, record))
            self._batch += 1
        return logged


async def _replayed(live: _Live, pace: Pace) -> float:
    """Returns conversions decided again a second of this process's time, without that of PostgreSQL."""
    with pace.guest() as guest:
        replay = Replay(live.pool, _ALL_TIME, live.rules, guest.turn, until_us=_ALL_TIME.end_us)
        after: uuid.UUID | None = FIRST_DEVICE
        count, began = 0, time.process_time()
        while after is not None:
            page = await replay.page(after, PAGE)
            count += sum(len(each.credits) for each in page.replayed)
            after = page.last_device_id
            assert not any(each.changed for each in page.replayed), "the same settings change nothing"
        return count / (time.process_time() - began)


@asynccontextmanager
async def _replaying(live: _Live) -> AsyncIterator[None]:
    """Decides everything again, over and over, beside what goes on inside."""

    async def again_and_again() -> None:
        while True:
            await _replayed(live, live.pace)

    replaying = asyncio.ensure_future(again_and_again())
    try:
        yield
    finally:
        replaying.cancel()
        await asyncio.gather(replaying, return_exceptions=True)


def _rules() -> AppRules:
    return compile_rules(
        app=App(app_id=APP, platform=Platform.ANDROID),
        networks=[Network(network_id="bench-net")],
        trackers=[
            Tracker(
                tracker_id=CLICKED,
                network_id="bench-net",
                type=TrackerType.REENGAGEMENT,
                events=frozenset({"Purchase"}),
            ),
            Tracker(tracker_id=INSTALLED, network_id="bench-net", type=TrackerType.ACQUISITION),
        ],
        events=[EventDefinition(event_name="Purchase", mtr_us=0)],
    )
