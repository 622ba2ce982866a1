"""Retention: rows past their time go by whole partitions, app by app, and nobody has to wait for it."""

import asyncio
from collections.abc import Collection
from datetime import date

import grpc
import pytest

from libs.db import Pool
from libs.periods import Periods
from reengage.attribution.v1 import decision_pb2
from reengage.ingest.v1 import record_batch_pb2
from reengage.tracker.v1 import app_pb2, snapshot_pb2, status_pb2
from services.attribution.decision.model import DAY_US
from tests.attribution.conftest import APP, World, click, device, event, install

BRIEF, LONG = "brief", "long"
LONG_AGO = date(2025, 1, 1)


async def partitions(pool: Pool, *tables: str) -> set[str]:
    """Returns the partitions that hold rows of these tables, or of all."""
    rows = await pool.fetch(
        "SELECT part.relname, whole.relname FROM pg_inherits JOIN pg_class AS part ON part.oid = inhrelid "
        "JOIN pg_class AS whole ON whole.oid = inhparent "
        "WHERE part.relkind = 'r' AND part.relnamespace = current_schema()::regnamespace"
    )
    return {name for name, _ in rows if not tables or name.startswith(tuple(f"{table}_2" for table in tables))}


async def publish_apps(world: World) -> None:
    """Publishes two apps, kept for 60 days and for 760."""
    revision = 0
    for app_id, days in ((BRIEF, 60), (LONG, 760)):
        app = app_pb2.App(app_id=app_id, platform=app_pb2.PLATFORM_ANDROID, status=status_pb2.STATUS_LIVE)
        app.settings.retention.FromSeconds(days * 86_400)
        revision = await world.feed.publish(snapshot_pb2.Resource(app=app))
    await world.settings.reached(revision)


async def send_of(world: World, app_id: str, *record_ids: str) -> None:
    for number, record_id in enumerate(record_ids):
        record = event(number, device(number), record_id=record_id)
        record.app_id = app_id
        taken = False
        while not taken:  # ingest follows the settings by itself
            answer = await world.ingest.RecordBatch(record_batch_pb2.RecordBatchRequest(records=[record]))
            taken = not answer.results[0].violations


async def decision(world: World, app_id: str, conversion_id: str) -> decision_pb2.Decision:
    request = decision_pb2.GetDecisionRequest(app_id=app_id, conversion_id=conversion_id)
    return (await world.attribution.GetDecision(request)).decision


async def until_decided(world: World, app_ids: Collection[str], count: int) -> None:
    statement = "SELECT count(*) FROM decisions WHERE app_id = ANY($1)"
    while await world.pool.fetchval(statement, list(app_ids)) < count:
        await asyncio.sleep(0.01)


async def test_each_app_keeps_what_it_said_and_loses_whole_partitions(world: World) -> None:
    await publish_apps(world)
    async with world.worker():
        await world.send(click(-60, device(1), record_id="k1"))
        await world.send(install(-120, device(1), record_id="i1"))
        for app_id in (BRIEF, LONG):
            await send_of(world, app_id, "e1", "e2")
        await world.decided("i1")
        await until_decided(world, [BRIEF, LONG], 4)
    now_us = await world.pool.fetchval("SELECT max(conversion_time_us) FROM decisions")
    before = await partitions(world.pool)
    assert {name.rpartition("_")[2] for name in before} == {"60", "400", "760"}

    await Periods(world.pool, lambda: now_us + 59 * DAY_US).drop_past()
    assert await partitions(world.pool) == before, "nothing is 60 days old"
    await Periods(world.pool, lambda: now_us + (60 + 31 + 1) * DAY_US).drop_past()

    assert await partitions(world.pool) == {name for name in before if not name.endswith("_60")}
    with pytest.raises(grpc.aio.AioRpcError) as gone:
        await decision(world, BRIEF, "e1")
    assert gone.value.code() is grpc.StatusCode.NOT_FOUND
    assert (await decision(world, LONG, "e1")).conversion_id == "e1"
    assert (await decision(world, APP, "i1")).conversion_id == "i1"

    await Periods(world.pool, lambda: now_us + 1000 * DAY_US).drop_past()
    assert await partitions(world.pool) == set()
    months = "SELECT count(*) FROM pg_inherits JOIN pg_class ON oid = inhrelid WHERE relkind = 'p' AND relname ~ '_2'"
    assert await world.pool.fetchval(months) == 0, "a month goes with the last of it"


async def test_a_change_of_retention_is_for_what_comes_then(world: World) -> None:
    await publish_apps(world)
    async with world.worker():
        await send_of(world, BRIEF, "e1")
        await until_decided(world, [BRIEF], 1)
        app = app_pb2.App(app_id=BRIEF, platform=app_pb2.PLATFORM_ANDROID, status=status_pb2.STATUS_LIVE)
        await world.settings.reached(await world.feed.publish(snapshot_pb2.Resource(app=app)))
        await send_of(world, BRIEF, "e2")
        await until_decided(world, [BRIEF], 2)
    rows = await world.pool.fetch("SELECT conversion_id, retention_days FROM decisions ORDER BY conversion_id")
    assert [tuple(row) for row in rows] == [("e1", 60), ("e2", 400)]


async def test_engagements_are_found_in_every_retention_their_app_had(world: World) -> None:
    async with world.worker():
        await world.send(click(0, device(1), record_id="k1"))
        app = app_pb2.App(app_id=APP, platform=app_pb2.PLATFORM_ANDROID, status=status_pb2.STATUS_LIVE)
        app.settings.retention.FromSeconds(90 * 86_400)
        while not await world.pool.fetchval("SELECT count(*) FROM engagements"):
            await asyncio.sleep(0.01)
        await world.settings.reached(await world.feed.publish(snapshot_pb2.Resource(app=app)))
        await world.send(click(10, device(1), record_id="k2"))
        await world.send(event(20, device(1), record_id="e1"))
        (e1,) = await world.decided("e1")
    assert [(one.engagement_id, one.verdict) for one in e1.candidates] == [
        ("k1", decision_pb2.VERDICT_LOST_TO_MORE_RECENT),
        ("k2", decision_pb2.VERDICT_WON),
    ]


@pytest.mark.slow
async def test_dropping_under_load_loses_nothing_else(world: World) -> None:
    """Partitions of long ago go while conversions are being decided."""
    months = [date(LONG_AGO.year, month, 1) for month in range(1, 13)]
    for month in months:
        await world.pool.execute("SELECT make_period($1, 60::smallint)", month)
    await world.pool.execute(
        "INSERT INTO network_clicks SELECT 'key', $1, n::text, 0, 60 FROM generate_series(1, 5000) AS n",
        1_736_000_000_000_000,
    )
    ids: list[str] = []

    async def load() -> None:
        for batch in range(30):
            clicks = (click(batch, device(n), record_id=f"k{batch}-{n}") for n in range(20))
            events = (event(batch + 1, device(n), record_id=f"e{batch}-{n}") for n in range(20))
            ids.extend(await world.send(*clicks, *events))

    async with world.worker():
        await world.decided(*await world.send(event(0, device(0), record_id="first")))
        loading = asyncio.ensure_future(load())
        dropping = asyncio.ensure_future(Periods(world.pool).drop_past())
        await asyncio.gather(loading, dropping)
        await world.decided(*(record_id for record_id in ids if record_id.startswith("e")))
    assert not {name for name in await partitions(world.pool) if name.endswith("_60")}
    assert await world.pool.fetchval("SELECT count(DISTINCT conversion_id) FROM decisions") == 601
    assert await world.pool.fetchval("SELECT count(*) FROM decisions") == 601
    assert await world.pool.fetchval("SELECT count(*) FROM engagements WHERE record IS NOT NULL") == 600


async def test_whoever_reads_holds_up_the_drop_and_not_the_others(world: World) -> None:
    await world.pool.execute("SELECT make_period($1, 60::smallint)", LONG_AGO)
    async with world.pool.acquire() as reader:
        transaction = reader.transaction()
        await transaction.start()
        await reader.fetchval("SELECT count(*) FROM decisions")
        dropping = asyncio.ensure_future(Periods(world.pool).drop_past())
        while not await reader.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
            await asyncio.sleep(0.001)
        async with asyncio.timeout(5):
            for _ in range(20):
                await world.pool.fetchval("SELECT count(*) FROM decisions")
        assert not dropping.done()
        await transaction.rollback()
    await dropping
    assert await partitions(world.pool) == set()


async def test_replicas_drop_the_same_partitions_at_once(world: World) -> None:
    await world.pool.execute("SELECT make_period($1, 60::smallint), make_period($1, 90::smallint)", LONG_AGO)
    await asyncio.gather(*(Periods(world.pool).drop_past() for _ in range(4)))
    assert await partitions(world.pool) == set()


async def test_a_period_is_made_once_and_again_when_it_was_dropped(world: World) -> None:
    now_us = 1_767_225_600_000_000  # 2026-01-01
    long_ago = Periods(world.pool, lambda: now_us)
    await asyncio.gather(*(Periods(world.pool).ensure([(now_us, 60), (now_us, 400)]) for _ in range(8)))
    assert await partitions(world.pool, "decisions") == {"decisions_202601_60", "decisions_202601_400"}
    await long_ago.ensure([(0, 60)])
    await Periods(world.pool, lambda: now_us).drop_past()
    assert not {name for name in await partitions(world.pool) if "_197001_" in name}
    await long_ago.ensure([(0, 60)])
    names = "SELECT count(*) FROM pg_class WHERE relname = 'decisions_197001_60'"
    assert await world.pool.fetchval(names) == 1, "what is past is not taken for there"


async def test_a_period_that_has_become_past_is_not_taken_for_there(world: World) -> None:
    """An app that comes to a retention that others have may have older rows than theirs: re-attributed conversions."""
    january_us = now_us = 1_767_225_600_000_000
    periods = Periods(world.pool, lambda: now_us)
    await periods.ensure([(january_us, 60)])
    now_us += 120 * DAY_US
    await Periods(world.pool, lambda: now_us).drop_past()
    assert await partitions(world.pool) == set()
    await periods.ensure([(january_us, 60)])
    assert await partitions(world.pool, "decisions") == {"decisions_202601_60"}


@pytest.mark.slow
async def test_a_delivery_is_kept_as_long_as_its_decision(world: World) -> None:
    """Gone earlier, it would be made again by a re-attribution; the app's retention may have changed in between."""
    await publish_apps(world)
    world.received.failing = True
    async with world.worker():
        await send_of(world, BRIEF, "e1")
        await until_decided(world, [BRIEF], 1)
        app = app_pb2.App(app_id=BRIEF, platform=app_pb2.PLATFORM_ANDROID, status=status_pb2.STATUS_LIVE)
        app.settings.retention.FromSeconds(760 * 86_400)
        await world.settings.reached(await world.feed.publish(snapshot_pb2.Resource(app=app)))
        world.received.failing = False
        while "e1" not in world.received.conversions:
            await asyncio.sleep(0.01)
    assert world.received.conversions["e1"].names.retention_days == 60
