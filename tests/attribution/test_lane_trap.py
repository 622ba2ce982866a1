"""The lane trap: a click and the event it leads to lie in different lanes, read by different workers (design.md).

Waiting is right, deciding wrongly is not.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from libs.domain.lanes import lane_of
from reengage.attribution.v1 import decision_pb2
from reengage.ingest.v1 import log_pb2
from reengage.ingest.v1.service_pb2_grpc import IngestServiceStub
from tests.attribution.conftest import APP, World, click, device, die, event, install

REENGAGED = decision_pb2.OUTCOME_REENGAGED


class SlowLog:
    """An ingest whose engagements reach a worker only while the gate is open; all else passes at once."""

    def __init__(self, stub: IngestServiceStub) -> None:
        self._stub = stub
        self.gate = asyncio.Event()
        self.held_back = asyncio.Event()

    def ReadLog(self, request: log_pb2.ReadLogRequest) -> Any:
        call = self._stub.ReadLog(request)
        if request.selection != log_pb2.ReadLogRequest.SELECTION_ENGAGEMENTS:
            return call
        return _Held(call, self)


class _Held:
    def __init__(self, call: Any, log: SlowLog) -> None:
        self._call, self._log = call, log

    async def __aiter__(self) -> AsyncIterator[log_pb2.ReadLogResponse]:
        async for response in self._call:
            if response.entries:
                self._log.held_back.set()
                await self._log.gate.wait()
            yield response

    def cancel(self) -> None:
        self._call.cancel()


async def _shared(world: World) -> dict[int, str]:
    """Returns the owner of each lane, once two workers share them."""
    while True:
        rows = await world.pool.fetch("SELECT lane, owner FROM lanes WHERE owner IS NOT NULL")
        owners = {row["lane"]: row["owner"] for row in rows}
        if len(owners) == 64 and len(set(owners.values())) == 2:
            return owners
        await asyncio.sleep(0.01)


def _device_in(lanes: set[int]) -> str:
    """Returns a device whose records lie in one of these lanes."""
    return next(device(n) for n in range(1000) if lane_of(APP, device(n)) in lanes)


@pytest.mark.slow
async def test_a_slow_worker_is_waited_for(world: World) -> None:
    """The click's lane is indexed late; the event's decision waits for it, whoever makes it."""
    slow = SlowLog(world.ingest)
    slow.gate.set()
    async with world.worker(lease_s=30), world.worker(lease_s=30, ingest=slow):  # type: ignore[arg-type]
        owners = await _shared(world)
        slow.gate.clear()
        a = _device_in({lane for lane, owner in owners.items() if owner == "worker-2"})
        await world.send(click(0, a, record_id="k1"))
        await world.send(event(10, a, record_id="e1"), event(10, device(5000), "View", record_id="other"))
        await slow.held_back.wait()
        with pytest.raises(TimeoutError):
            # Half a second is many times what a decision takes; nothing may be decided, however long we look.
            await asyncio.wait_for(world.decided("e1"), 0.5)
        slow.gate.set()
        (e1,) = await world.decided("e1")
    assert (e1.outcome, e1.engagement_id) == (REENGAGED, "k1")


@pytest.mark.slow
async def test_a_dead_workers_lanes_move_and_nothing_is_decided_without_them(world: World) -> None:
    slow = SlowLog(world.ingest)
    slow.gate.set()
    async with world.worker(lease_s=1.5):
        async with world.worker(lease_s=1.5, ingest=slow) as dying:  # type: ignore[arg-type]
            owners = await _shared(world)
            slow.gate.clear()
            a = _device_in({lane for lane, owner in owners.items() if owner == "worker-2"})
            await world.send(click(0, a, record_id="k1"))
            await slow.held_back.wait()
            await world.send(event(10, a, record_id="e1"))
            die(dying)
        (e1,) = await world.decided("e1")
        left = await world.pool.fetchval("SELECT count(*) FROM lanes WHERE owner = 'worker-2'")
    assert (e1.outcome, e1.engagement_id) == (REENGAGED, "k1")
    assert left == 0


@pytest.mark.slow
async def test_a_device_known_by_two_ids_is_decided_in_order_of_receipt(world: World) -> None:
    """Installs and events of one device in two lanes: no event may be decided as if its install had not come."""
    pairs = [({"adid": device(n)}, {"android_id": f"{n:016x}"}) for n in range(1, 60)]
    both_lanes = [(a, b) for a, b in pairs if lane_of(APP, a["adid"]) != lane_of(APP, b["android_id"])]
    assert len(both_lanes) > 40
    async with world.worker(lease_s=30), world.worker(lease_s=30):
        await _shared(world)
        ids = []
        for number, (a, b) in enumerate(both_lanes):
            await world.send(install(0, {**a, **b}, record_id=f"i{number}"))
            await world.send(event(10, b, "View", record_id=f"e{number}"))
            ids.append(f"e{number}")
        decisions = await world.decided(*ids)
    assert [decision.install_known for decision in decisions] == [True] * len(ids)


@pytest.mark.slow
async def test_workers_that_come_and_die_decide_everything_once(world: World) -> None:
    """Workers die at any point (no lease is given back); every conversion has one decision, and the right one."""
    sent: list[str] = []

    async def traffic() -> None:
        for number in range(1, 160):
            await world.send(click(number, device(number), record_id=f"k{number}"))
            await world.send(event(number + 10, device(number), record_id=f"e{number}"))
            sent.append(f"e{number}")

    sending = asyncio.ensure_future(traffic())
    for _ in range(6):
        async with world.worker(lease_s=1.0) as worker:
            seen = await world.pool.fetchval("SELECT count(*) FROM decisions")
            while await world.pool.fetchval("SELECT count(*) FROM decisions") == seen and not sending.done():
                await asyncio.sleep(0.002)
            die(worker)
    async with world.worker(lease_s=1.0):
        await sending
        decisions = await world.decided(*sent)
        while len(world.received.conversions) < len(sent):
            await asyncio.sleep(0.01)
    assert {(d.outcome, d.engagement_id.removeprefix("k")) for d in decisions} == {
        (REENGAGED, conversion_id.removeprefix("e")) for conversion_id in sent
    }
    assert await world.pool.fetchval("SELECT count(*) FROM decisions") == len(sent)
    gaps = await world.pool.fetchval("SELECT max(sequence) + 1 - count(*) FROM decisions GROUP BY lane")
    assert gaps == 0, "the sequence of a lane has no gaps"
