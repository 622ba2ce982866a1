"""Late records decide again what they change (D12): by the laws, and through the store as the simulator says."""

import asyncio
import hashlib
from random import Random
from typing import Any

import pytest
from hypothesis import given

from libs.db import Pool
from libs.messages import short_name
from reengage.attribution.v1 import decision_pb2
from reengage.ingest.v1 import record_pb2
from services.attribution.decision.matching import own_key
from services.attribution.simulator.simulation import simulate
from tests.attribution.conftest import APP, World, click, device, die, event, install
from tests.attribution.stories import examples, findable, owning, seeds, story_of
from tests.attribution.strategies import scenario

ELSEWHERE = {"ip_address": "198.51.100.9"}
"""So that nothing is found by its address."""
SHA256 = {"adid": hashlib.sha256(device(1).upper().encode()).hexdigest()}


@examples(60)
@given(seed=seeds)
@pytest.mark.slow
async def test_the_store_ends_where_the_simulator_does(pool: Pool, seed: int) -> None:
    await differs(pool, seed)


async def differs(pool: Pool, seed: int) -> None:
    random = Random(seed)
    async with owning(pool) as lanes:
        story = story_of(findable(scenario(random)), lanes, pool)
        await story.live(random)
        newest = {
            decision.conversion_id: told(decision)
            for decision in (await story.newest()).values()
            if decision.outcome != decision_pb2.OUTCOME_CONTINUED
        }
        expected = {line["id"]: {key: line[key] for key in TOLD} for line in simulate(story.scenario)}
        assert newest == expected


TOLD = ("outcome", "reason", "attribution_type", "tracker", "network", "source", "engagement", "level", "lookback_s")


def told(decision: decision_pb2.Decision) -> dict[str, Any]:
    is_won = bool(decision.engagement_id)
    return {
        "outcome": decision_pb2.Outcome.Name(decision.outcome).removeprefix("OUTCOME_"),
        "reason": short_name(decision_pb2.Reason.DESCRIPTOR, decision.reason) or None,
        "attribution_type": decision_pb2.AttributionType.Name(decision.attribution_type).removeprefix(
            "ATTRIBUTION_TYPE_"
        ),
        "tracker": decision.tracker_id or None,
        "network": decision.network_id or None,
        "source": decision.source_conversion_id or None,
        "engagement": decision.engagement_id or None,
        "level": decision.level or None,
        "lookback_s": decision.lookback.ToMicroseconds() // 1_000_000 if is_won else None,
    }


# Live.


async def newest(world: World, conversion_id: str, version: int) -> decision_pb2.Decision:
    """Returns the newest version of a decision, once it is this one."""
    while (found := (await world.decided(conversion_id))[0]).version < version:
        await asyncio.sleep(0.01)
    return found


@pytest.mark.parametrize(
    ("late", "given_back"),
    [
        (click(0, device(1), record_id="late"), ""),
        (click(0, {"idfa": device(1)}, record_id="late"), ""),
        (click(0, SHA256, record_id="late"), ""),
        (click(0, record_id="late"), "late"),
        (click(0, record_id="late", ip_address="198.51.100.9"), ""),
    ],
    ids=["device id", "id of another kind", "hash", "click id", "address"],
)
async def test_a_late_click_wins_what_it_led_to(world: World, late: record_pb2.Record, given_back: str) -> None:
    led_to = event(60, device(1), record_id="e1", event={"click_record_id": given_back}, **ELSEWHERE)
    other = event(60, device(2), record_id="of another", ip_address="203.0.113.50")
    async with world.worker():
        await world.send(led_to, other)
        first, _ = await world.decided("e1", "of another")
        await world.send(late)
        second = await newest(world, "e1", 2)
        (of_another,) = await world.decided("of another")
    assert (first.version, first.outcome, first.because) == (1, decision_pb2.OUTCOME_UNATTRIBUTED, 0)
    assert (second.outcome, second.engagement_id) == (decision_pb2.OUTCOME_REENGAGED, "late")
    assert (second.because, second.late_record_id) == (decision_pb2.BECAUSE_LATE_ENGAGEMENT, "late")
    assert of_another.version == 1


async def test_an_install_that_comes_after_its_first_event_is_not_paid_twice(world: World) -> None:
    """By it the event is within the minimum time to reengagement, and of the install's source."""
    async with world.worker():
        await world.send(click(-60, device(1), "ua", record_id="k1"), click(5, device(1), record_id="k2"))
        await world.send(event(10, device(1), record_id="e1"))
        (before,) = await world.decided("e1")
        await dealt_with(world, "k2")  # the clicks are late as well, and change nothing
        await world.send(install(0, device(1), record_id="i1"))
        (installed,) = await world.decided("i1")
        after = await newest(world, "e1", 2)
    assert (before.outcome, before.engagement_id) == (decision_pb2.OUTCOME_REENGAGED, "k2")
    assert (installed.outcome, installed.engagement_id) == (decision_pb2.OUTCOME_ATTRIBUTED, "k1")
    assert (after.outcome, after.reason) == (decision_pb2.OUTCOME_CREDITED, decision_pb2.REASON_MTR_NOT_MET)
    assert (after.because, after.late_record_id) == (decision_pb2.BECAUSE_LATE_INSTALL, "i1")


async def test_what_changes_nothing_makes_no_version(world: World) -> None:
    async with world.worker():
        await world.send(click(50, device(1), record_id="k1"), event(60, device(1), record_id="e1"))
        await world.decided("e1")
        await world.send(click(40, device(1), record_id="earlier"), click(61, device(1), record_id="after it"))
        await dealt_with(world, "after it")
        (e1,) = await world.decided("e1")
    assert (e1.version, e1.engagement_id) == (1, "k1")


async def dealt_with(world: World, engagement_id: str) -> None:
    """Waits until an engagement, and all that came before it, has been considered."""
    key = own_key(APP, engagement_id)
    while not await world.pool.fetchval("SELECT count(*) FROM engagements WHERE match_key = $1", key):
        await asyncio.sleep(0.01)
    while await world.pool.fetchval("SELECT count(*) FROM late_arrivals"):
        await asyncio.sleep(0.01)


@pytest.mark.crash
async def test_replicas_that_come_and_die_decide_each_again_once(world: World) -> None:
    """Two work beside each other, one after the other dies, at any point: an event, then the click that led to it."""
    count = 60
    conversions, clicks = [f"e{n}" for n in range(count)], [f"k{n}" for n in range(count)]

    async def traffic() -> None:
        for n in range(count):
            await world.send(event(60, device(n), record_id=conversions[n], ip_address=f"203.0.113.{n}"))
            if n % 5 == 0:
                await world.decided(conversions[n])
            await world.send(click(0, device(n), record_id=clicks[n]))

    sending = asyncio.ensure_future(traffic())
    async with world.worker(lease_s=1.0) as first:
        previous = first
        for _ in range(6):
            async with world.worker(lease_s=1.0) as worker:
                seen = await world.pool.fetchval("SELECT count(*) FROM decisions")
                while await world.pool.fetchval("SELECT count(*) FROM decisions") == seen and not sending.done():
                    await asyncio.sleep(0.002)
                die(previous)
                previous = worker
    async with world.worker(lease_s=1.0):
        await sending
        await world.decided(*conversions)
        await dealt_with(world, clicks[-1])
        ended = {each.conversion_id: each for each in await world.decided(*conversions)}
    assert [ended[each].engagement_id for each in conversions] == clicks
    rows = await world.pool.fetch("SELECT conversion_id, version, outcome FROM decisions")
    versions = {(row["conversion_id"], row["version"]): row["outcome"] for row in rows}
    assert len(versions) == len(rows)
    for each in conversions:
        expected = [decision_pb2.OUTCOME_UNATTRIBUTED, decision_pb2.OUTCOME_REENGAGED][-ended[each].version :]
        assert [versions[each, version] for version in range(1, ended[each].version + 1)] == expected
    assert any(ended[each].version == 2 for each in conversions)
