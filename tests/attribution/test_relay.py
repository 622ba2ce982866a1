"""The relay: every decision reaches postback, however it fails."""

import asyncio

import pytest

from reengage.attribution.v1 import decision_pb2
from tests.attribution.conftest import (
    World,
    device,
    event,
)

HOUR = 3600
REENGAGED = decision_pb2.OUTCOME_REENGAGED


@pytest.mark.slow
async def test_postback_failing_holds_decisions_back_and_loses_none(world: World) -> None:
    world.received.failing = True
    async with world.worker():
        await world.send(*(event(n, device(n), "View", record_id=f"e{n}") for n in range(20)))
        await world.decided("e19")
        while world.received.calls < 2:
            await asyncio.sleep(0.01)
        assert not world.received.conversions
        world.received.failing = False
        while len(world.received.conversions) < 20:
            await asyncio.sleep(0.01)


@pytest.mark.slow
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
