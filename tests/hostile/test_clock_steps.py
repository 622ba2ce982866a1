"""Clocks that are set by an hour, forward and back, one at a time: nothing is lost, told twice or stopped."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web

from libs.time import now_us
from reengage.attribution.v1 import decision_pb2
from reengage.postback.v1 import delivery_pb2
from services.attribution.storage.lanes import see_worker
from tests.attribution.conftest import World, claimed, click, device, event, install, pending
from tests.conftest import Database
from tests.postback.conftest import purchase, running, serving, until_ended
from tests.support.databases import set_clock
from tests.support.eventually import until

HOUR_S = 3600
STEPS = pytest.mark.parametrize("step_s", [HOUR_S, -HOUR_S], ids=["forward", "back"])


def shifted(step_s: int) -> int:
    return now_us() + step_s * 1_000_000


@STEPS
async def test_the_lanes_of_a_worker_that_died_before_are_taken(world: World, database: Database, step_s: int) -> None:
    """The database's clock says when leases end, and who is alive."""
    async with world.pool.acquire() as connection:
        await see_worker(connection, "dead", 5.0)
        await connection.execute("UPDATE lanes SET owner = 'dead', lease_until_us = now_us() + 5000000")
    await set_clock(database.admin_dsn, "attribution", step_s)
    async with world.worker(lease_s=1.0):
        await world.send(click(0, device(1)), event(HOUR_S, device(1), record_id="e1"))
        (decision,) = await world.decided("e1")
    assert decision.outcome == decision_pb2.OUTCOME_REENGAGED
    owners = await world.pool.fetch("SELECT DISTINCT owner FROM lanes")
    assert "dead" not in {row["owner"] for row in owners}


@STEPS
async def test_a_worker_goes_on_when_the_database_s_clock_is_set(world: World, database: Database, step_s: int) -> None:
    async with world.worker(lease_s=1.0):
        await world.send(install(0, device(1), record_id="i1"))
        await world.decided("i1")
        await set_clock(database.admin_dsn, "attribution", step_s)
        await world.send(click(60, device(1)), event(HOUR_S, device(1), record_id="e1"))
        await world.decided("e1")
    counts = await world.pool.fetch("SELECT conversion_id, count(*) FROM decisions GROUP BY 1 ORDER BY 1")
    assert [tuple(row) for row in counts] == [("e1", 1), ("i1", 1)]


@STEPS
async def test_a_conversion_waits_for_its_claim_as_long_as_ever(world: World, step_s: int) -> None:
    """Attribution's clock is set while a network is asked: it is neither given up at once, nor waited for an hour."""
    step = 0
    world = replace(world, ground=replace(world.ground, now_us=lambda: shifted(step)))
    await world.received.trigger(("Purchase", "acme"))
    await world.received.answer("answered", pending("acme"))
    await world.received.answer("never", pending("acme"))
    async with world.worker(claim_wait_s=4.0):
        await world.send(event(7200, device(1), record_id="answered"), event(7200, device(2), record_id="never"))
        while not (world.received.asked["answered"] and world.received.asked["never"]):
            await asyncio.sleep(0.01)
        step = step_s
        asked = world.received.asked["answered"]
        while world.received.asked["answered"] < asked + 2:
            await asyncio.sleep(0.01)
        assert await world.pool.fetchval("SELECT count(*) FROM pending_conversions WHERE claims IS NULL") == 2
        await world.received.answer("answered", claimed("acme", HOUR_S))
        answered, never = await world.decided("answered", "never")
    assert not answered.claims_unavailable
    assert list(never.claims_unavailable) == ["acme"]


async def test_a_wait_that_began_before_the_clock_was_set_back_ends(world: World) -> None:
    """Another worker takes it up: the deadline in the table lies an hour ahead by now."""
    await world.received.trigger(("Purchase", "acme"))
    await world.received.answer("e1", pending("acme"))
    ahead = replace(world, ground=replace(world.ground, now_us=lambda: shifted(HOUR_S)))
    async with ahead.worker():
        await world.send(event(7200, device(1), record_id="e1"))
        while not world.received.asked["e1"]:
            await asyncio.sleep(0.01)
    async with world.worker(claim_wait_s=1.0):
        (decision,) = await world.decided("e1")
    assert list(decision.claims_unavailable) == ["acme"]


@asynccontextmanager
async def held() -> AsyncIterator[tuple[asyncio.Event, list[str], str, str]]:
    """Yields what lets an endpoint answer, the ids of the deliveries it was told of, its host, and its URL."""
    go, told = asyncio.Event(), list[str]()

    async def answer(request: web.Request) -> web.Response:
        told.append(request.headers["Idempotency-Key"])
        await go.wait()
        return web.Response()

    async with serving() as endpoint:
        endpoint.answers["/"] = answer
        try:
            yield go, told, endpoint.host, endpoint.url("/")
        finally:
            go.set()


@STEPS
async def test_what_is_being_told_is_not_told_twice(database: Database, tmp_path: Path, step_s: int) -> None:
    """The database's clock ends leases, also those of attempts that this process is still making."""
    async with held() as (go, told, host, url), running(database, tmp_path / "s", allowed=host) as service:
        await service.configure(template={"url": url})
        await service.enqueue(purchase("c1"))
        await until(lambda: len(told) == 1)
        await set_clock(database.admin_dsn, "postback", step_s)
        # Whatever comes after is told: the queue has been looked through since.
        await service.enqueue(purchase("c2"))
        await until(lambda: len(told) >= 2)
        go.set()
        ended = await until_ended(service, 2)
        attempts = [len((await service.get(one.delivery_id)).attempts) for one in ended]
    assert {one.state for one in ended} == {delivery_pb2.Delivery.STATE_DELIVERED}
    assert len(told) == len(set(told)) == 2
    assert attempts == [1, 1]
