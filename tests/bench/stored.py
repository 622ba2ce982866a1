"""Deciding with much stored: one device with many engagements, and a table with ten million.

The worker's own way of deciding and writing a batch, on a real PostgreSQL, without the log before it.
"""

import gc
import time
import uuid
from collections.abc import Iterator, Sequence

import asyncpg

from libs.db import Pool, open_pool, transaction
from libs.domain.lanes import LANES, lane_of
from libs.periods import Periods
from reengage.ingest.v1 import log_pb2, record_pb2
from services.attribution.decision.model import DAY_US, TrackerType
from services.attribution.decision.rules import (
    RETENTION_DAYS,
    App,
    AppRules,
    EventDefinition,
    Network,
    Platform,
    Tracker,
    compile_rules,
)
from services.attribution.live.batch import decide_batch
from services.attribution.live.owned_lanes import OwnedLanes
from services.attribution.storage import PLANNER
from services.attribution.storage.engagements import EngagementIndex
from services.attribution.storage.lanes import read_owned_lanes, take_lanes
from services.attribution.wire.records import Logged, index_rows
from tests.bench.row import Row
from tests.support.databases import migrated_postgres

APP = "bench"
FEW, MANY = 10, 10_000
SMALL, LARGE = 10_000, 10_000_000
BATCH = 500
DEVICES = 50
_SEED_ROWS = 1_000_000


async def bench(*, stored: int = LARGE, conversions: int = 5_000, of_a_device: int = MANY) -> list[Row]:
    """Returns two rows. The database itself makes `stored` engagements: ten million take some four minutes."""
    async with migrated_postgres("attribution") as (postgres, _):
        dsn = postgres.dsn("attribution")
        admin = await asyncpg.connect(postgres.admin_dsn(), server_settings={"search_path": "attribution"})
        async with open_pool(dsn, schema="attribution", application_name="bench", settings=PLANNER) as pool:
            bench_of = _Bench(pool)
            await bench_of.own()
            one_device = await bench_of.one_device(of_a_device)
            few = await bench_of.events_per_second(conversions, await _grow(admin, pool, SMALL))
            many = await bench_of.events_per_second(conversions, await _grow(admin, pool, stored))
        await admin.close()
    return [
        Row(
            name=f"a conversion of a device with {of_a_device:,} engagements in its window",
            value=one_device[of_a_device] * 1e6,
            unit="us",
            limit_name=f"us of one with {FEW}",
            limit=one_device[FEW] * 1e6,
            at_most=3,
        ),
        Row(
            name=f"events decided with {stored:,} engagements stored",
            value=many,
            unit="events/s",
            limit_name=f"events/s with {SMALL:,}",
            limit=few,
            at_least=0.5,
        ),
    ]


class _Bench:
    """A worker's writing half: it owns all lanes and decides what it is given."""

    def __init__(self, pool: Pool) -> None:
        self._pool, self._engagements = pool, EngagementIndex(pool)
        self._rules = {APP: _rules()}
        self._now_s = int(time.time())
        self._numbers = iter(range(1 << 40))

    async def own(self) -> None:
        """Takes all lanes for longer than the bench runs."""
        async with transaction(self._pool) as connection:
            lanes = await take_lanes(connection, "bench", LANES, 86_400)
        self._lanes = OwnedLanes(self._pool, "bench", await read_owned_lanes(self._pool, "bench", lanes))

    async def one_device(self, many: int) -> dict[int, float]:
        """Returns seconds a conversion, by the number of engagements of its device; measured in turns."""
        devices = {count: [uuid.uuid4() for _ in range(DEVICES)] for count in (FEW, many)}
        for count, some in devices.items():
            for device in some:
                clicks = [self._click(device, 60 + at * 200) for at in range(count)]
                for start in range(0, count, 1000):
                    await self._index(clicks[start : start + 1000])
        best = dict.fromkeys(devices, float("inf"))
        for _ in range(5):
            for count, some in devices.items():
                took = await self._decide([self._purchase(device) for device in some])
                best[count] = min(best[count], took / DEVICES)
        return best

    async def events_per_second(self, conversions: int, _stored: int) -> float:
        """Returns events a second, each of a device of its own with three clicks among all that is stored."""
        devices = [uuid.uuid4() for _ in range(conversions)]
        for some in _parts(devices, BATCH):
            await self._index([self._click(device, 60 + at * 3_600) for device in some for at in range(3)])
        took = [await self._decide([self._purchase(device) for device in some]) for some in _parts(devices, BATCH)]
        return conversions / sum(took)

    async def _index(self, records: Sequence[record_pb2.Record]) -> None:
        rows = index_rows(self._logged(records), self._rules, {})
        async with transaction(self._pool) as connection:
            await self._engagements.insert(connection, rows)

    async def _decide(self, records: Sequence[record_pb2.Record]) -> float:
        logged = self._logged(records)
        gc.collect()
        began = time.perf_counter()
        async with self._lanes.fenced() as connection:
            changes = await decide_batch(
                connection,
                logged,
                apps=self._rules,
                next_sequences=self._lanes.next_sequences,
                new_id=uuid.uuid4,
                now_us=self._now_s * 1_000_000,
            )
            await self._lanes.append(connection, changes, lanes=[lane_of(APP)])
        took = time.perf_counter() - began
        assert len(changes.decisions) == len(records), "every conversion is decided"
        return took

    def _logged(self, records: Sequence[record_pb2.Record]) -> list[Logged]:
        lane = lane_of(APP)
        return [
            Logged(
                log_pb2.LogEntry(
                    lane=lane,
                    position=next(self._numbers),
                    app_lane=lane,
                    receive_time_us=record.event_time.ToMicroseconds(),
                    record=record.SerializeToString(),
                ),
                record,
            )
            for record in records
        ]

    def _click(self, device: uuid.UUID, ago_s: int) -> record_pb2.Record:
        record = self._record(device, ago_s)
        record.click.tracker_id = "re"
        return record

    def _purchase(self, device: uuid.UUID) -> record_pb2.Record:
        record = self._record(device, 0)
        record.event.event_name = "Purchase"
        return record

    def _record(self, device: uuid.UUID, ago_s: int) -> record_pb2.Record:
        number = next(self._numbers)
        record = record_pb2.Record(
            record_id=f"r{number}",
            app_id=APP,
            device_ids={"adid": str(device)},
            ip_address=f"2001:db8:{device.int >> 112:x}:{device.int >> 96 & 0xFFFF:x}::1",
            user_agent="Mozilla/5.0 (Linux; Android 14; Pixel 8) AppleWebKit/537.36 Chrome/120.0 Mobile Safari/537.36",
        )
        record.event_time.FromSeconds(self._now_s - ago_s)
        return record


async def _grow(admin: "asyncpg.Connection[asyncpg.Record]", pool: Pool, stored: int) -> int:
    """Adds engagements of other devices up to `stored`, each under its own key, a device's and an address's."""
    have = int(await admin.fetchval("SELECT count(*) FROM engagements WHERE record IS NOT NULL"))
    now_us = int(time.time()) * 1_000_000
    await Periods(pool).ensure((now_us - day * DAY_US, RETENTION_DAYS) for day in range(32))
    while have < stored:
        count = min(_SEED_ROWS, stored - have)
        # Sorted by key: each insert then goes on where the one before it was, in the index as well.
        await admin.execute(
            """
            INSERT INTO engagements (
                match_key, time_us, receive_time_us, engagement_id, lane, position, is_click, is_ping, tracker_id,
                device_keys, ip, user_agent, click_id, completed_view, is_valid, visitor, country, record,
                retention_days
            )
            SELECT decode(md5(concat(key, n)), 'hex'), time_us, time_us, concat('seed-', n), n % 64, n,
                   n % 7 > 0, false, 're', decode(md5(concat('device', n)), 'hex'), '203.0.113.7',
                   concat('pixel 8', chr(9), 'android', chr(9), '14', chr(9), '0'), '', false, true, 0, '',
                   CASE key WHEN 'own' THEN decode(repeat(md5(n::text), 6), 'hex') END, 400
            FROM generate_series($1::bigint, $2::bigint - 1) AS n, unnest(ARRAY['own', 'device', 'ip']) AS key,
                 LATERAL (SELECT (extract(epoch FROM now()) * 1000000)::bigint - n % 2500000 * 1000000 AS time_us) AS at
            ORDER BY 1
            """,
            have,
            have + count,
        )
        have += count
    await admin.execute("VACUUM ANALYZE engagements")
    await admin.execute("CHECKPOINT")
    return have


def _rules() -> AppRules:
    return compile_rules(
        app=App(app_id=APP, platform=Platform.ANDROID),
        networks=[Network(network_id="acme")],
        trackers=[
            Tracker(tracker_id="re", network_id="acme", type=TrackerType.REENGAGEMENT, events=frozenset({"Purchase"}))
        ],
        events=[EventDefinition(event_name="Purchase", mtr_us=0)],
    )


def _parts(items: Sequence[uuid.UUID], size: int) -> Iterator[Sequence[uuid.UUID]]:
    return (items[start : start + size] for start in range(0, len(items), size))
