"""The queue of deliveries: leases, what a lease reads, and a stop in the middle of one."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from libs.time import SECOND_US, timestamp_us
from reengage.postback.v1 import delivery_pb2
from services.postback.claims import Endings
from services.postback.guard import Guard
from services.postback.model import Leased, LeaseRequest, Settled, State
from services.postback.sender import Sender, open_sender
from services.postback.wiring import new_stamp
from services.postback.worker import DeliveryWorker
from tests.conftest import Database
from tests.postback.conftest import (
    Endpoint,
    Running,
    purchase,
    running,
    template,
    word,
)
from tests.support.eventually import eventually

Delivery = delivery_pb2.Delivery


async def waiting(service: Running, count: int) -> str:
    """Makes a configuration with this many deliveries that are due; returns its id."""
    configuration = await service.configure(template={"url": "http://127.0.0.1:80/"})
    await service.enqueue(*(purchase(f"c{n}") for n in range(count)))
    return configuration.configuration_id


@pytest.fixture
async def idle(database: Database, tmp_path: Path) -> Any:
    """Yields a service in which only the test leases what is due."""
    async with running(database, tmp_path / "idle.sock", allowed="127.0.0.1", works=False) as one:
        yield one


async def lease(
    service: Running, configuration_id: str, *, room: int = 100, length_us: int = 60 * SECOND_US, retries: bool = False
) -> list[Leased]:
    wanted = [LeaseRequest(configuration_id=configuration_id, room=room, length_us=length_us)]
    return await service.queue.lease(wanted, limit=1000, retries=retries)


def settled(leased: Leased, state: State = State.DELIVERED) -> Settled:
    """Returns an attempt that no request would end like this, so that its verdict is known again."""
    attempt = delivery_pb2.Attempt(verdict=delivery_pb2.Attempt.VERDICT_SANDBOX)
    return Settled(
        leased=leased,
        state=state,
        wait_us=0,
        verdict=attempt.verdict,
        attempt=attempt.SerializeToString(),
        pauses_configuration=False,
    )


async def test_a_delivery_has_one_sender(idle: Running) -> None:
    configuration_id = await waiting(idle, 50)
    batches = await asyncio.gather(*(lease(idle, configuration_id, room=10) for _ in range(8)))
    ids = [one.delivery_id for batch in batches for one in batch]
    assert len(ids) == len(set(ids)) == 50
    assert await lease(idle, configuration_id, retries=True) == []


async def test_a_lease_that_ended_is_another_s(idle: Running) -> None:
    configuration_id = await waiting(idle, 1)
    (slow,) = await lease(idle, configuration_id, length_us=0)
    (fast,) = await lease(idle, configuration_id, retries=True)
    assert (fast.delivery_id, fast.number, fast.failure_count) == (slow.delivery_id, 2, 0)
    delivery = await idle.only()
    assert [(word(one), one.will_retry) for one in delivery.attempts] == [("INTERRUPTED", True)]
    assert timestamp_us(delivery.attempts[0].start_time) == slow.leased_us
    # The slow one comes back: what it did is kept, what it decides is not.
    await idle.queue.settle([settled(slow, State.REFUSED)])
    delivery = await idle.only()
    assert (delivery.state, [word(one) for one in delivery.attempts]) == (Delivery.STATE_PENDING, ["SANDBOX"])
    await idle.queue.settle([settled(fast)])
    delivery = await idle.only()
    assert (delivery.state, len(delivery.attempts)) == (Delivery.STATE_DELIVERED, 2)
    await idle.queue.settle([settled(fast, State.REFUSED)])
    assert (await idle.only()).state == Delivery.STATE_DELIVERED


async def database_is_lost(*_: Any, **__: Any) -> Any:
    raise ConnectionResetError


async def database_hangs(*_: Any, **__: Any) -> Any:
    await asyncio.Event().wait()


def busy(service: Running, sender: Sender) -> DeliveryWorker:
    """Returns a second worker, which gives up soon when it is stopped."""
    return DeliveryWorker(
        service.queue,
        service.configurations,
        sender,
        service.accounts,
        Endings(),
        jitter=lambda: 0.0,
        stamp=new_stamp,
        drain_s=0.1,
    )


@pytest.mark.parametrize("trouble", [database_is_lost, database_hangs])
async def test_a_stop_is_a_stop_though_the_lease_under_way_fails(
    idle: Running, monkeypatch: pytest.MonkeyPatch, trouble: Callable[..., Awaitable[Any]]
) -> None:
    await idle.configure(template={"url": "http://127.0.0.1:80/"})
    leasing, stopping = asyncio.Event(), asyncio.Event()

    async def lease(*_: Any, **__: Any) -> list[Leased]:
        leasing.set()
        await stopping.wait()
        await trouble()
        return []

    monkeypatch.setattr(idle.queue, "lease", lease)
    async with open_sender(Guard()) as sender:
        worker = asyncio.create_task(busy(idle, sender).run())
        await leasing.wait()
        worker.cancel()
        stopping.set()
        await asyncio.wait([worker], timeout=10)
        assert worker.cancelled()


@pytest.mark.parametrize("trouble", [database_is_lost, database_hangs])
async def test_a_stop_is_a_stop_though_nothing_can_be_settled(
    idle: Running, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, trouble: Callable[..., Awaitable[Any]]
) -> None:
    settling = asyncio.Event()

    async def settle(*_: Any, **__: Any) -> None:
        settling.set()
        await trouble()

    monkeypatch.setattr(idle.queue, "settle", settle)
    async with open_sender(Guard(endpoint.host)) as sender:
        worker = asyncio.create_task(busy(idle, sender).run())
        await idle.configure(template=template(endpoint))
        await idle.enqueue(purchase())
        await settling.wait()
        worker.cancel()
        await asyncio.wait([worker], timeout=10)
        assert worker.cancelled()


async def test_first_tries_do_not_read_past_retries_nor_the_other_way(idle: Running) -> None:
    configuration_id = await waiting(idle, 10)
    for one in await lease(idle, configuration_id, room=4):
        await idle.queue.settle([settled(one, State.PENDING)])
    assert len(await lease(idle, configuration_id)) == 6
    assert len(await lease(idle, configuration_id, retries=True)) == 4


@pytest.mark.parametrize("retries", [False, True], ids=["first tries", "retries"])
@pytest.mark.slow
async def test_a_lease_reads_only_what_is_due(idle: Running, retries: bool) -> None:
    """With 50,000 that wait for their time, and 50,000 done, a lease reads as few pages as with none."""
    configuration_id = await waiting(idle, 1)
    await idle.pool.execute(
        """
        INSERT INTO deliveries (
            delivery_id, configuration_id, app_id, network_id, conversion_id, event_name, device_id, conversion, state,
            due_us, end_us, attempt_count, conversion_us, retention_days
        )
        SELECT
            gen_random_uuid(), $1, 'a', 'n', n::text, 'e', 'd', '', 1 + n % 2, -- PENDING, DELIVERED
            now_us() + 86400000000, CASE WHEN n % 2 = 1 THEN now_us() END, $2,
            extract(EPOCH FROM date '2026-01-05')::bigint * 1000000, 400
        FROM generate_series(1, 100000) AS n
        """,
        configuration_id,
        int(retries),
    )
    await idle.pool.execute("UPDATE deliveries SET attempt_count = $1 WHERE event_name = 'Purchase'", int(retries))
    read = (
        "SELECT sum(idx_tup_read)::bigint FROM pg_stat_user_indexes JOIN pg_index USING (indexrelid) "
        "WHERE pg_get_expr(indpred, indrelid) LIKE $1"
    )
    index = "%(attempt_count > 0)%" if retries else "%(attempt_count = 0)%"
    async with idle.pool.acquire() as connection:
        await connection.execute("SELECT pg_stat_force_next_flush()")
        before = await connection.fetchval(read, index)
    (leased,) = await lease(idle, configuration_id, retries=retries)
    assert leased.configuration_id == configuration_id

    async def counted() -> bool:
        async with idle.pool.acquire() as connection:
            await connection.execute("SELECT pg_stat_force_next_flush()")
            await connection.execute("SELECT pg_stat_clear_snapshot()")
            return bool(await connection.fetchval(read, index) > before)

    await eventually(counted)
    assert await idle.pool.fetchval(read, index) - before < 100
