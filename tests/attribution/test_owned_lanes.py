"""Lanes and their owners: sharing, taking over, moving along, and never waiting for each other."""

import asyncio
import collections
import random
from collections.abc import Awaitable, Callable, Collection

import pytest
from prometheus_client import REGISTRY

from libs.db import Connection, Pool
from libs.domain.lanes import LANES
from reengage.attribution.v1 import decision_pb2
from services.attribution.live.owned_lanes import OwnedLanes
from services.attribution.storage.lanes import (
    LanesLostError,
    advance_decided,
    advance_indexed,
    advance_relayed,
    release_lanes,
    renew_lanes,
)
from tests.attribution.conftest import (
    World,
    click,
    device,
    event,
)
from tests.attribution.stories import owning

HOUR = 3600
REENGAGED = decision_pb2.OUTCOME_REENGAGED


@pytest.mark.slow
async def test_two_workers_share_the_lanes_and_one_takes_over(world: World) -> None:
    async def owners() -> collections.Counter[str]:
        rows = await world.pool.fetch("SELECT owner FROM lanes WHERE owner IS NOT NULL")
        return collections.Counter(row["owner"] for row in rows)

    async with world.worker(lease_s=2.0):
        while sum((await owners()).values()) < 64:
            await asyncio.sleep(0.01)
        async with world.worker(lease_s=2.0):
            while sorted((await owners()).values()) != [32, 32]:
                await asyncio.sleep(0.01)
            ids = await world.send(*(event(n, device(n), "View", record_id=f"e{n}") for n in range(200)))
            await world.decided(*ids)
        while sorted((await owners()).values()) != [64]:
            await asyncio.sleep(0.01)
        more = await world.send(*(event(n, device(n), "View", record_id=f"f{n}") for n in range(50)))
        await world.decided(*more)
    assert not await owners(), "a worker that ends gives its lanes back"


@pytest.mark.slow
async def test_lanes_that_could_not_be_given_away_do_not_lie_idle(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held in the database, worked on by nobody, prolonged with every beat: the barrier waited for them for ever."""
    failures = iter([ConnectionError("the database is away")])

    async def fails_once(connection: "Connection | Pool", worker_id: str, lanes: Collection[int]) -> None:
        for failure in failures:
            raise failure
        await release_lanes(connection, worker_id, lanes)

    monkeypatch.setattr("services.attribution.live.worker.release_lanes", fails_once)
    async with world.worker():
        while await world.pool.fetchval("SELECT count(*) FROM lanes WHERE owner = 'worker-1'") < 64:
            await asyncio.sleep(0.01)
        async with world.worker():
            while await world.pool.fetchval("SELECT count(*) FROM lanes WHERE owner = 'worker-2'") < 32:
                await asyncio.sleep(0.01)
            await world.send(*(click(0, device(n), record_id=f"k{n}") for n in range(50)))
            ids = await world.send(*(event(n, device(n), record_id=f"e{n}") for n in range(50)))
            await world.decided(*ids)


async def test_quiet_lanes_move_along_while_others_are_busy(world: World) -> None:
    """Else who takes them over begins where they last were, weeks ago, and reads all of it again."""
    async with world.worker(flush_interval_s=0.0):
        for number in range(5):
            await world.send(event(number, device(number), "View", record_id=f"e{number}"))
            await world.decided(f"e{number}")
        # Looked at between two decisions: no page without a conversion was needed.
    vectors = await world.pool.fetch("SELECT decided FROM lanes")
    assert len({tuple(row["decided"]) for row in vectors}) == 1


async def test_the_loops_of_a_worker_do_not_deadlock_over_their_lanes(world: World) -> None:
    """They write the same rows, each its own column: every second one was a deadlock, and a second lost."""
    numbers = random.Random(7)
    await world.pool.execute("UPDATE lanes SET owner = 'w'")

    def some() -> list[int]:
        return numbers.sample(range(LANES), numbers.choice((3, 20, 64)))

    async def index(connection: Connection) -> None:
        await advance_indexed(connection, "w", dict.fromkeys(some(), 1))

    async def decide(connection: Connection) -> None:
        lanes = some()
        sequences = dict.fromkeys(lanes, 0)
        await advance_decided(connection, "w", {lane: [0] * LANES for lane in lanes}, sequences, sequences)

    async def relay(_: Connection) -> None:
        await advance_relayed(world.pool, "w", dict.fromkeys(some(), 0))

    async def renew(connection: Connection) -> None:
        await renew_lanes(connection, "w", 5.0)

    async def often(work: Callable[[Connection], Awaitable[None]]) -> None:
        for _ in range(60):
            async with world.pool.acquire() as connection, connection.transaction():
                await work(connection)

    await asyncio.gather(*map(often, (index, decide, relay, renew)))


async def test_a_log_that_lost_its_end_is_not_read_on_as_if_nothing_were(world: World) -> None:
    """After a restore, positions are given out again: records there were skipped without a word."""

    def failures() -> float:
        return REGISTRY.get_sample_value("worker_failures_total", {"worker": "decider"}) or 0.0

    before = failures()
    async with world.worker():
        await world.send(*(event(n, device(n), "View", record_id=f"e{n}") for n in range(300)))
        await world.decided("e299")
        await world.log_pool.execute("DELETE FROM log")
        await world.log_pool.execute("UPDATE lanes SET next_position = 0")
        while failures() == before:
            await asyncio.sleep(0.01)


async def _write(pool: Pool, lanes: OwnedLanes, *, loses: int | None = None, is_fenced: bool = True) -> None:
    """Writes a row in a fenced transaction; meanwhile another worker may take a lane."""
    async with lanes.fenced() as connection:
        await connection.execute("INSERT INTO workers (worker_id, seen_time_us) VALUES ('a', 0)")
        await pool.execute("UPDATE lanes SET owner = 'another' WHERE lane = $1", loses)
        if is_fenced:
            await lanes.append(connection, lanes=[6, 7])


async def test_who_lost_its_lanes_writes_nothing(pool: Pool) -> None:
    async with owning(pool) as lanes:
        with pytest.raises(LanesLostError):
            await _write(pool, lanes, loses=7)
        assert not await pool.fetchval("SELECT count(*) FROM workers")


async def test_a_fenced_transaction_without_its_fence_writes_nothing(pool: Pool) -> None:
    async with owning(pool) as lanes:
        with pytest.raises(AssertionError):
            await _write(pool, lanes, is_fenced=False)
        assert not await pool.fetchval("SELECT count(*) FROM workers")
        await _write(pool, lanes)
        assert await pool.fetchval("SELECT count(*) FROM workers") == 1, "one that fails holds up no other"
