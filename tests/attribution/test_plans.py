"""The plans of the hot queries."""

import re
import uuid
from collections import defaultdict
from types import SimpleNamespace
from typing import Any, cast

import asyncpg
import pytest

from libs.db import Connection, Pool
from libs.periods import Periods
from reengage.attribution.v1 import decision_pb2
from services.attribution.decision.model import DAY_US
from services.attribution.storage.activity import AskedInactivity, find_latest_activity
from services.attribution.storage.decisions import already_decided, find_wins, list_decisions, read_outbox
from services.attribution.storage.devices import find_identifiers
from services.attribution.storage.engagements import (
    AskedKey,
    find_engagements,
    find_pings,
    find_records,
    find_repeats,
)
from services.attribution.storage.hashed_ids import find_raw_keys
from services.attribution.storage.late_arrivals import (
    AskedDevice,
    AskedEngagement,
    AskedPing,
    devices_by_engagement,
    find_later_decisions,
    find_latest,
)
from services.attribution.storage.replay import (
    FIRST_DEVICE,
    Period,
    estimate,
    find_conversions,
    find_devices,
)
from tests.attribution.conftest import (
    World,
)
from tests.conftest import Database

HOUR = 3600
REENGAGED = decision_pb2.OUTCOME_REENGAGED


class _Explaining:
    """A connection that keeps the plans of its queries."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.plan = ""

    async def fetch(self, sql: str, *values: Any) -> list[Any]:
        explain = "EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF)"
        self.plan = "\n".join(row[0] for row in await self._pool.fetch(f"{explain} {sql}", *values))
        return []

    async def fetchrow(self, sql: str, *values: Any) -> dict[str, int]:
        await self.fetch(sql, *values)
        return defaultdict(int)

    def used(self, table: str) -> set[str]:
        """Returns the partitions of a table that were read, or the indexes they were read by."""
        scans = re.findall(rf"(?<!Heap )Scan (?:Backward )?(?:using (\S+) )?on ({table}_\S+) .*actual", self.plan)
        return {index or partition for index, partition in scans}


@pytest.mark.slow
@pytest.mark.parametrize("analyzed", [False, True], ids=["without statistics", "analyzed"])
async def test_plans_of_hot_queries(world: World, database: Database, analyzed: bool) -> None:
    """One lane, in which one of two apps has nearly all decisions."""
    await Periods(world.pool).ensure((month * 31 * DAY_US, days) for month in range(6) for days in (60, 400))
    await world.pool.execute("INSERT INTO retentions VALUES ('few', 400, 400), ('many', 400, 400)")
    await world.pool.execute(
        """
        INSERT INTO decisions (lane, sequence, app_id, conversion_id, version, device_id, outcome,
                               conversion_time_us, receive_time_us, retention_days, engagement_id, decision, record)
        SELECT 0, n, CASE WHEN n < 5 THEN 'few' ELSE 'many' END, n::text, 1, gen_random_uuid(), 6,
               n, n, 400, n::text, '', ''
        FROM generate_series(1, 20000) AS n
        """
    )
    await world.pool.execute(
        """
        INSERT INTO engagements (match_key, time_us, engagement_id, lane, position, receive_time_us, is_click, is_ping,
                                 tracker_id, device_keys, ip, click_id, completed_view, is_valid, visitor, country,
                                 retention_days)
        SELECT 'address', n, n::text, 0, n, n, true, false, 're', '', '', '', false, true, 0, '', 400
        FROM generate_series(1, 20000) AS n
        """
    )
    await world.pool.execute(
        """
        INSERT INTO network_clicks (click_key, time_us, engagement_id, receive_time_us, retention_days)
        SELECT 'same', n, n::text, n, 400 FROM generate_series(1, 20000) AS n
        """
    )
    await world.pool.execute(
        """
        INSERT INTO hashed_ids (hash_key, raw_key, time_us, retention_days)
        SELECT n::text::bytea, n::text::bytea, 0, 400 FROM generate_series(1, 20000) AS n
        """
    )
    await world.pool.execute(
        """
        INSERT INTO identifiers (id_key, kind, device_id)
        SELECT n::text::bytea, 'adid', gen_random_uuid() FROM generate_series(1, 20000) AS n
        """
    )
    if analyzed:
        admin = await asyncpg.connect(database.admin_dsn)
        await admin.execute("ANALYZE")
        await admin.close()
    explaining = _Explaining(world.pool)
    pool, connection = cast("Pool", explaining), cast("Connection", explaining)

    await list_decisions(
        pool, 0, "few", tracker_id=None, outcomes=(), start_us=None, end_us=None, before=None, size=100
    )
    assert "decisions_197001_400_lane_app_id_sequence_idx" in explaining.used("decisions")
    asked = [AskedKey(b"address", 500, "many", 0, 600), AskedKey(b"x", 7, "few", 1, 600)]
    await find_engagements(connection, asked, span_us=1000, limit=200)
    assert explaining.used("engagements") == {"engagements_197001_400_pkey"}, "one month and retention of many"
    assert "->  Sort (" not in explaining.plan, "not all that lies behind an address is read"
    clicks = [(b"same", 500, "500", 600), (b"x", 7, "7", 600)]
    await find_repeats(connection, clicks, within_us=1000)
    assert "network_clicks_197001_400_pkey" in explaining.used("network_clicks")
    assert len(explaining.used("network_clicks")) == 2, "of one month those of both retentions"
    await find_records(connection, [(b"address", 500, "many")], span_us=1000)
    assert explaining.used("engagements") == {"engagements_197001_400_pkey"}
    await find_raw_keys(connection, [b"700"], start_us=0, end_us=1000)
    assert "hashed_ids_197001_400_pkey" in explaining.used("hashed_ids")
    assert len(explaining.used("hashed_ids")) == 2, "of one month those of both retentions"
    await find_identifiers(connection, [b"700", b"x"])
    assert "identifiers_pkey" in explaining.plan
    await already_decided(connection, [(0, "700"), (0, "new")])
    assert "decisions_197001_400_pkey" in explaining.used("decisions")
    await read_outbox(pool, {0: range(700, 710)}, 10)
    assert "decisions_197001_400_lane_sequence_idx" in explaining.used("decisions")
    await find_wins(connection, [(0, "700")])
    assert "decisions_197001_400_lane_engagement_id_idx" in explaining.used("decisions")
    inactive = AskedInactivity(0, 0, "many", uuid.uuid4(), time_us=500, within_us=100, until_us=600)
    await find_latest_activity(connection, [inactive])
    assert all("lane_app_id_device_id" in index for index in explaining.used("decisions"))

    period = cast("Period", SimpleNamespace(lane=0, app_id="many", start_us=0, end_us=1 << 40, received_since_us=0))
    await find_devices(connection, period, FIRST_DEVICE, 1000)
    assert all("lane_app_id_device_id" in index for index in explaining.used("decisions"))
    assert "->  Sort (" not in explaining.plan, "however many there are, a page is read"
    await estimate(connection, period)
    assert all("lane_app_id_device_id" in index for index in explaining.used("decisions"))
    assert "->  Sort (" not in explaining.plan, "nor more than are counted"
    await find_conversions(connection, period, [uuid.uuid4(), uuid.uuid4()])
    assert all("lane_app_id_device_id" in index for index in explaining.used("decisions"))


@pytest.mark.slow
async def test_plans_of_late_records(world: World) -> None:
    """The conversions that a late record concerns are found by an index, never by a search (D12)."""
    await Periods(world.pool).ensure([(0, 400)])
    explaining = _Explaining(world.pool)
    connection = cast("Connection", explaining)
    await find_latest(connection, [AskedDevice(0, "many", uuid.uuid4())], after_us=500)
    assert all("lane_app_id_device_id" in index for index in explaining.used("decisions"))
    late = AskedEngagement(0, 0, "many", "700", [b"address"], 500)
    await devices_by_engagement(connection, [late], slack_us=1, span_us=100, limit=50)
    indexes = {re.sub(r".*_400_|.*_60_", "", index) for index in explaining.used("decisions")}
    assert indexes == {"lane_missing_click_idx", "address_key_conversion_time_us_idx"}


@pytest.mark.slow
async def test_plans_of_late_pings(world: World) -> None:
    """However much lies behind an address or a device, a fixed number of rows is read."""
    await Periods(world.pool).ensure((month * 31 * DAY_US, days) for month in range(3) for days in (60, 400))
    await world.pool.execute("INSERT INTO retentions VALUES ('many', 400, 400)")
    await world.pool.execute(
        """
        INSERT INTO engagements (match_key, time_us, engagement_id, lane, position, receive_time_us, is_click, is_ping,
                                 tracker_id, device_keys, ip, click_id, completed_view, is_valid, visitor, country,
                                 retention_days)
        SELECT 'address', n, n::text, 0, n, n, true, true, 're', '', '', '', false, true, 0, '', 400
        FROM generate_series(1, 2000) AS n
        """
    )
    device_id = uuid.uuid4()
    await world.pool.execute(
        """
        INSERT INTO decisions (lane, sequence, app_id, conversion_id, version, device_id, outcome,
                               conversion_time_us, receive_time_us, retention_days, address_key, decision, record)
        SELECT 0, n, 'many', n::text, 1, $1, 6, n, n, 400, 'address', '', '' FROM generate_series(1, 2000) AS n
        """,
        device_id,
    )
    explaining = _Explaining(world.pool)
    connection = cast("Connection", explaining)
    await find_pings(
        connection,
        [b"address"],
        "many",
        time_us=1500,
        receive_time_us=1495,
        until_us=6000,
        span_us=1000,
        through=100,
        limit=40,
    )
    assert explaining.used("engagements") == {"engagements_197001_400_pkey"}, "one month and retention of many"
    assert "->  Sort (" not in explaining.plan.split("Subquery Scan")[1], "not all that lies behind an address is read"
    assert re.search(r"engagements_197001_400_pkey.* \(actual rows=100\b", explaining.plan), explaining.plan
    await find_later_decisions(connection, [AskedPing(0, 0, "many", [device_id], [b"address"], 500)], limit=20)
    assert all(re.search("device_id|address_key", index) for index in explaining.used("decisions"))
    assert len(re.findall(r"idx on decisions_197001_400.* \(actual rows=20\b", explaining.plan)) == 2, explaining.plan
