"""The relay: every decision reaches postback, however it fails."""

import asyncio

import pytest

from reengage.attribution.v1 import decision_pb2
from reengage.tracker.v1 import agency_pb2, network_settings_pb2, snapshot_pb2
from tests.attribution.conftest import (
    APP,
    RE_TRACKER,
    World,
    claimed,
    click,
    device,
    event,
    install,
    tracker_resource,
)
from tests.attribution.test_inactivity import session
from tests.support.eventually import eventually

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


async def test_postback_is_told_of_the_install_the_agency_and_the_tracker_s_parameters(world: World) -> None:
    """All that macros are filled from comes with the decision: postback asks nobody."""
    tracker = tracker_resource(
        RE_TRACKER, network_id="acme", events=["Purchase"], agency_id="a1", custom_parameters={"cp_0": "retarget"}
    )
    agency = snapshot_pb2.Resource(agency=agency_pb2.Agency(agency_id="a1", name="Reach"))
    await world.settings.reached(await world.feed.publish(agency, tracker))
    async with world.worker():
        await world.send(install(0, device(1), record_id="i1"), click(HOUR, device(1)))
        await world.send(event(2 * HOUR, device(1), record_id="e1"), event(3 * HOUR, device(2), record_id="e2"))
        (i1,) = await world.decided("i1")
        while len(world.received.conversions) < 3:
            await asyncio.sleep(0.01)
    told = {name: world.received.conversions[name] for name in ("i1", "e1", "e2")}
    assert told["i1"].decision.install_time == told["e1"].decision.install_time == i1.conversion_time
    assert (told["e1"].names.agency, dict(told["e1"].names.custom_parameters)) == ("Reach", {"cp_0": "retarget"})
    assert not told["e2"].decision.HasField("install_time")
    assert (told["e2"].names.agency, dict(told["e2"].names.custom_parameters)) == ("", {})


async def test_a_withheld_campaign_is_not_named_either(world: World) -> None:
    """E2: its id is withheld, and so is its name."""
    policy = network_settings_pb2.NetworkSettings(app_id=APP, network_id="acme")
    policy.granular_data_policy = network_settings_pb2.NetworkSettings.GRANULAR_DATA_POLICY_REDACT
    await world.settings.reached(await world.feed.publish(snapshot_pb2.Resource(network_settings=policy)))
    await world.received.trigger(("Purchase", "acme"))
    await world.received.answer("e1", claimed("acme", HOUR - 60, granular_data_forbidden=True))
    async with world.worker():
        await world.send(event(HOUR, device(1), record_id="e1"), click(0, device(2), record_id="k2"))
        await world.send(event(HOUR, device(2), record_id="e2"))
        while len(world.received.conversions) < 2:
            await asyncio.sleep(0.01)
    e1, e2 = (world.received.conversions[name].names for name in ("e1", "e2"))
    assert (e1.tracker, e1.network, e1.campaign, e1.segment) == ("RE", "Acme", "", "")
    assert (e2.tracker, e2.campaign) == ("RE", "Spring")


async def test_postback_is_told_of_what_is_no_conversion_any_more_if_it_was_one(world: World) -> None:
    """D12: what it was told of may not have been sent yet. What never was one it is not told of."""
    async with world.worker():
        await world.send(session(2 * HOUR, device(1), record_id="s1"), install(2 * HOUR, device(2), record_id="i1"))
        await world.decided("s1", "i1")
        await world.send(event(2 * HOUR - 60, device(1), record_id="before s1"))
        await world.send(install(HOUR, device(2), record_id="before i1"), install(3 * HOUR, device(2), record_id="i2"))

        async def told_again() -> bool:
            versions = {name: told.decision.version for name, told in world.received.latest.items()}
            return (versions.get("s1"), versions.get("i1")) == (2, 2)

        await eventually(told_again)
        await world.decided("i2")
        await world.send(event(4 * HOUR, device(3), record_id="last"))

        async def caught_up() -> bool:
            return "last" in world.received.latest

        await eventually(caught_up)
    outcomes = {name: told.decision.outcome for name, told in world.received.latest.items()}
    assert (outcomes["s1"], outcomes["i1"]) == (decision_pb2.OUTCOME_CONTINUED, decision_pb2.OUTCOME_DUPLICATE)
    assert "i2" not in outcomes


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
