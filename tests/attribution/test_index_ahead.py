"""Indexing ahead: a flood of one app's clicks has no other wait, and nothing is decided without its clicks."""

import asyncio
from contextlib import aclosing

import pytest

from libs.db import Pool
from libs.domain.lanes import LANES, lane_of
from reengage.attribution.v1 import decision_pb2
from reengage.ingest.v1 import log_pb2, record_batch_pb2, record_pb2
from reengage.tracker.v1 import app_pb2, snapshot_pb2, status_pb2
from services.attribution.live import index_ahead
from services.attribution.live.log_reader import LogReader
from services.attribution.storage.lanes import read_indexed
from tests.attribution.conftest import APP, World, click, device, die, event, tracker_resource
from tests.attribution.held_log import HeldLog
from tests.support.eventually import eventually

REENGAGED = decision_pb2.OUTCOME_REENGAGED
HOSTILE = next(f"hostile-{n}" for n in range(200) if lane_of(f"hostile-{n}") != lane_of(APP))
FLOOD = 4_000


async def _with_hostile_app(world: World) -> None:
    app = app_pb2.App(
        app_id=HOSTILE,
        platform=app_pb2.PLATFORM_ANDROID,
        status=status_pb2.STATUS_LIVE,
        settings=app_pb2.AppSettings(records_per_second=0),
    )
    tracker = tracker_resource("flood", network_id="acme", events=["Purchase"])
    tracker.tracker.app_id = HOSTILE
    await world.settings.reached(await world.feed.publish(snapshot_pb2.Resource(app=app), tracker))


def _of_hostile(record: record_pb2.Record) -> record_pb2.Record:
    record.app_id = HOSTILE
    if record.HasField("click"):
        record.click.tracker_id = "flood"
    return record


async def _flood(world: World, mark: str = "", count: int = FLOOD) -> None:
    clicks = [_of_hostile(click(n % 3_600, device(n), record_id=f"flood{mark}-{n}")) for n in range(count)]
    for start in range(0, count, 1_000):
        request = record_batch_pb2.RecordBatchRequest(records=clicks[start : start + 1_000])
        while (await world.ingest.RecordBatch(request)).results[0].violations:
            await asyncio.sleep(0.01)  # until ingest has heard of the app


async def test_others_are_decided_rightly_while_the_flood_is_not_indexed(world: World) -> None:
    await _with_hostile_app(world)
    held = HeldLog(world.ingest)
    await _flood(world)
    async with world.worker(ingest=held):  # type: ignore[arg-type]
        for number in range(1, 6):
            await world.send(click(number, device(number), record_id=f"k{number}"))
            await world.send(event(number + 10, device(number), record_id=f"e{number}"))
            (decided,) = await world.decided(f"e{number}")
            assert (decided.outcome, decided.engagement_id) == (REENGAGED, f"k{number}")
        await world.send(_of_hostile(event(3_700, device(7), record_id="mine")))
        await world.send(event(20, device(99), "View", record_id="after"))
        await world.decided("after")
        assert await _won_by_flood(world) == 0, "it waits for its own flood"
        held.gate.set()
        await eventually(lambda: _is_won_by_flood(world, 1))
        await eventually(lambda: _indexed(world, FLOOD + 5))
        await world.send(_of_hostile(event(3_710, device(8), record_id="later")), event(30, device(2), record_id="too"))
        await world.decided("too")
        await eventually(lambda: _is_won_by_flood(world, 2))
    assert await world.pool.fetchval("SELECT count(*) FROM quarantined") == 0


async def _won_by_flood(world: World) -> int:
    rows = await world.pool.fetch("SELECT decision FROM decisions WHERE app_id = $1", HOSTILE)
    decisions = [decision_pb2.Decision.FromString(row["decision"]) for row in rows]
    assert all(decision.engagement_id.startswith("flood-") for decision in decisions)
    return len(decisions)


async def _is_won_by_flood(world: World, count: int) -> bool:
    return await _won_by_flood(world) == count


async def _indexed(world: World, count: int) -> bool:
    stored = await world.pool.fetchval("SELECT count(DISTINCT engagement_id) FROM engagements")
    return bool(stored == count)


@pytest.mark.slow
async def test_workers_that_die_in_a_flood_decide_everything_once(world: World) -> None:
    """Floods go on while workers come and die; every conversion has one decision, and the right one."""
    await _with_hostile_app(world)
    sent: list[str] = []

    async def traffic() -> None:
        for number in range(1, 120):
            if number % 10 == 1:
                await _flood(world, f"-{number}", 3_000)
            await world.send(click(number, device(number), record_id=f"k{number}"))
            await world.send(event(number + 10, device(number), record_id=f"e{number}"))
            sent.append(f"e{number}")

    sending = asyncio.ensure_future(traffic())
    for _ in range(6):
        async with world.worker(lease_s=1.0) as worker, world.worker(lease_s=1.0):
            seen = await world.pool.fetchval("SELECT count(*) FROM decisions")
            while await world.pool.fetchval("SELECT count(*) FROM decisions") <= seen + 3 and not sending.done():
                await asyncio.sleep(0.002)
            die(worker)
    async with world.worker(lease_s=1.0):
        await sending
        decisions = await world.decided(*sent)
    assert {(d.outcome, d.engagement_id.removeprefix("k")) for d in decisions} == {
        (REENGAGED, conversion_id.removeprefix("e")) for conversion_id in sent
    }
    assert await world.pool.fetchval("SELECT count(*) FROM decisions WHERE version = 1") == len(sent)
    assert await world.pool.fetchval("SELECT count(*) FROM decisions") == len(sent), "right the first time"


async def test_what_was_erased_meanwhile_does_not_come_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever goes ahead may hold an entry that the indexing loop has passed since, and that an erasure has taken."""
    async with world.worker():
        await world.send(click(0, device(1), record_id="k1"))
        await eventually(lambda: _indexed(world, 1))
    reading = LogReader(world.ingest).read(dict.fromkeys(range(LANES), 0), log_pb2.ReadLogRequest.SELECTION_ENGAGEMENTS)
    async with aclosing(reading) as log:
        entries = (await anext(log)).entries
    assert len(entries) == 1
    await world.pool.execute("DELETE FROM engagements")
    answers = [[0] * LANES]  # what it knew before it read the log

    async def read_late(pool: Pool) -> list[int]:
        return answers.pop() if answers else await read_indexed(pool)

    monkeypatch.setattr(index_ahead, "read_indexed", read_late)
    ahead = index_ahead.IndexAhead(world.pool, world.settings, LogReader(world.ingest))
    await ahead._store(entries)
    assert not answers
    assert await world.pool.fetchval("SELECT count(*) FROM engagements") == 0
