"""One device with very many conversions that wait for claims: they are decided a part at a time, and none is left."""

import asyncio
from collections.abc import Collection
from typing import Any

import pytest

from libs.parts import PART_BYTES
from services.attribution.storage import pending as storage
from services.attribution.storage.pending import PendingRow
from tests.attribution.conftest import World, claimed, device, event, install, pending

COUNT = 250
DEVICE = device(1)


def large(number: int) -> Any:
    record = event(7200 + number, DEVICE, "View", record_id=f"v{number}")
    for key in range(16):
        record.event.event_data[f"k{key}"] = "x" * 4000
    return record


async def begin_to_wait(world: World) -> None:
    """Has an install wait for its claim, and behind it all that its device sent after it: 16 MB."""
    await world.received.trigger(("_install", "acme"))
    await world.received.answer("i1", pending("acme"))
    async with world.worker(claim_wait_s=600):
        await world.send(install(3600, DEVICE, record_id="i1"))
        for first in range(0, COUNT, 50):
            await world.send(*(large(number) for number in range(first, first + 50)))
        while await world.pool.fetchval("SELECT count(*) FROM pending_conversions") < COUNT + 1:
            await asyncio.sleep(0.05)


async def test_they_are_decided_in_parts(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    take = storage.take

    async def measured(connection: Any, rows: Collection[Any]) -> list[PendingRow]:
        found = await take(connection, rows)
        taken.append(sum(row.record_bytes for row in found))
        return found

    monkeypatch.setattr(storage, "take", measured)
    await begin_to_wait(world)
    await world.received.answer("i1", claimed("acme", 3000))
    async with world.worker(claim_wait_s=600):
        await world.decided("i1", *(f"v{number}" for number in range(COUNT)))
    assert max(taken) <= PART_BYTES
    assert sum(taken) > PART_BYTES
    order = await world.pool.fetch("SELECT conversion_id FROM decisions ORDER BY sequence")
    assert [row["conversion_id"] for row in order] == ["i1", *(f"v{number}" for number in range(COUNT))]


async def test_what_a_worker_that_died_had_answers_for_is_decided(world: World) -> None:
    """It had stored them, and decided a part of what they let go."""
    await begin_to_wait(world)
    await world.pool.execute("UPDATE pending_conversions SET claims = '' WHERE conversion_id = 'i1'")
    asked = world.received.asked["i1"]
    async with world.worker(claim_wait_s=600):
        await world.decided("i1", *(f"v{number}" for number in range(COUNT)))
    assert world.received.asked["i1"] == asked
    assert not await world.pool.fetchval("SELECT count(*) FROM pending_conversions")
