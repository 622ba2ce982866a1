"""What a second pair of eyes found: each test failed before its repair."""

import asyncio
import uuid
from typing import Any

import pytest

from reengage.attribution.v1 import attribution_pb2
from reengage.ingest.v1 import ingest_pb2
from services.attribution import worker as worker_module
from services.attribution.store import Store
from tests.attribution.conftest import (
    APP,
    World,
    click,
    device,
    event,
    install,
    record,
)

HOUR = 3600
REENGAGED = attribution_pb2.OUTCOME_REENGAGED


async def test_a_tab_in_a_user_agent_stops_nobody(world: World) -> None:
    """Agents are stored tab-separated: a tab in a model made every later conversion of that address fail, for ever."""
    agent = "Mozilla/5.0 (Linux; Android 10; SM\tG960F Build/QP1A) AppleWebKit/537.36 Chrome/80 Mobile"
    async with world.worker():
        await world.send(click(0, record_id="k1", user_agent=agent))
        await world.send(event(10, device(1), record_id="e1", user_agent=agent.replace("\t", " ")))
        (e1,) = await world.decided("e1")
    assert (e1.outcome, e1.matched_by) == (REENGAGED, attribution_pb2.MATCH_KIND_MODELED)


async def test_lanes_that_could_not_be_given_away_do_not_lie_idle(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held in the database, worked on by nobody, prolonged with every beat: the barrier waited for them for ever."""
    give = Store.release_lanes
    failures = iter([ConnectionError("the database is away")])

    async def fails_once(store: Store, *lanes: Any) -> None:
        for failure in failures:
            raise failure
        await give(store, *lanes)

    monkeypatch.setattr(Store, "release_lanes", fails_once)
    async with world.worker():
        while await world.pool.fetchval("SELECT count(*) FROM lanes WHERE owner = 'worker-1'") < 64:
            await asyncio.sleep(0.01)
        async with world.worker():
            while await world.pool.fetchval("SELECT count(*) FROM lanes WHERE owner = 'worker-2'") < 32:
                await asyncio.sleep(0.01)
            await world.send(*(click(0, device(n), record_id=f"k{n}") for n in range(50)))
            ids = await world.send(*(event(n, device(n), record_id=f"e{n}") for n in range(50)))
            await world.decided(*ids)


async def test_quiet_lanes_move_along_while_others_are_busy(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else who takes them over begins where they last were, weeks ago, and reads all of it again."""
    monkeypatch.setattr(worker_module, "_FLUSH_S", 0.0)
    async with world.worker():
        for number in range(5):
            await world.send(event(number, device(number), "View", record_id=f"e{number}"))
            await world.decided(f"e{number}")
        # Looked at between two decisions: no page without a conversion was needed.
    vectors = await world.pool.fetch("SELECT decided FROM lanes")
    assert len({tuple(row["decided"]) for row in vectors}) == 1


async def test_an_event_that_is_called_like_an_identity_link_is_an_event(world: World) -> None:
    async with world.worker():
        await world.send(event(0, device(1), "_identity_link", record_id="e1"))
        await world.send(event(1, device(1), "Other", record_id="e2"))
        e1, e2 = await world.decided("e1", "e2")
    assert (e1.outcome, e1.reason) == (attribution_pb2.OUTCOME_UNATTRIBUTED, "EVENT_NOT_SELECTED")
    assert e1.device_id == e2.device_id


async def test_large_conversions_reach_postback(world: World) -> None:
    """500 of them are more than one message may hold: the relay tried the same ones for ever."""
    data = {f"key{n}": "x" * 4000 for n in range(64)}
    sent: list[str] = []
    world.received.failing = True
    async with world.worker():
        for start in range(0, 100, 10):
            sent += await world.send(
                *(
                    event(n, device(n), "View", record_id=f"e{n}", event={"event_data": data})
                    for n in range(start, start + 10)
                )
            )
        await world.decided(*sent)
        world.received.failing = False
        while len(world.received.conversions) < len(sent):
            await asyncio.sleep(0.01)
