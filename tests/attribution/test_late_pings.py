"""D12, whose word the time is: who reports the past after each conversion wins none, and people are told of it."""

import asyncio
import re
from collections.abc import AsyncIterator

import grpc
import pytest
from prometheus_client import REGISTRY

from libs.errors import Unavailable
from reengage.attribution.v1 import decision_pb2, explanation_pb2
from reengage.ingest.v1 import record_pb2
from reengage.tracker.v1 import app_pb2, network_settings_pb2, snapshot_pb2, status_pb2
from services.attribution.queries.background import Background
from services.attribution.queries.explanations import Explanations
from services.attribution.wire.past_rules import PastRules
from tests.attribution.conftest import (
    APP,
    OTHER_RE_TRACKER,
    RE_TRACKER,
    UA_TRACKER,
    World,
    click,
    device,
    event,
    install,
    not_claimed,
    pending,
    tracker_resource,
)
from tests.attribution.test_explain import explain, version

HOUR = 3600
REPORTED_LATE = decision_pb2.VERDICT_REPORTED_LATE
NO_CANDIDATE = decision_pb2.REASON_NO_CANDIDATE


def ping(at_s: int, device_: str = "", tracker_id: str = RE_TRACKER, **fields: str) -> record_pb2.Record:
    return click(at_s, device_, tracker_id, click={"is_ping": True}, **fields)


def late_pings(of_network: str, seconds: int) -> snapshot_pb2.Resource:
    settings = network_settings_pb2.NetworkSettings(app_id=APP, network_id=of_network)
    settings.late_pings.FromSeconds(seconds)
    return snapshot_pb2.Resource(network_settings=settings)


def counted(network_id: str = "acme") -> float:
    return REGISTRY.get_sample_value("attribution_reported_late_total", {"network": network_id}) or 0.0


async def counts(number: float) -> None:
    """Waits until so many are counted of acme."""
    async with asyncio.timeout(10):
        while counted() < number:
            await asyncio.sleep(0.02)
    assert counted() == number


async def indexed(world: World, engagement_id: str) -> None:
    async with asyncio.timeout(10):
        while not await world.pool.fetchval("SELECT count(*) FROM engagements WHERE engagement_id = $1", engagement_id):
            await asyncio.sleep(0.01)


async def passed(world: World, engagement_id: str) -> None:
    """Waits until a ping is counted, if it is to be: until something else is indexed after it."""
    await indexed(world, engagement_id)
    (record_id,) = await world.send(click(0, ip_address="203.0.113.77"))
    await indexed(world, record_id)


def listed(explained: explanation_pb2.ExplainDecisionResponse) -> dict[str, int]:
    return {each.engagement_id: each.verdict for each in explained.late_pings}


async def test_who_pings_after_every_conversion_wins_nothing(world: World) -> None:
    """An install, events, one that another won, and one from a device that is known by its address alone."""
    before = counted()
    await world.settings.reached(await world.feed.publish(tracker_resource("thief", network_id="acme")))
    addresses = [f"203.0.113.{number}" for number in range(5)]  # engagements of one address are candidates of all
    stolen = {
        "p-i1": install(HOUR, device(1), record_id="i1", ip_address=addresses[1]),
        "p-e2": event(HOUR, device(2), record_id="e2", ip_address=addresses[2]),
        "p-e3": event(HOUR, device(3), record_id="e3", ip_address=addresses[3]),
        "p-e4": event(HOUR, device(4), record_id="e4", ip_address=addresses[4]),
    }
    reported = [
        ping(10, device(1), "thief", record_id="p-i1"),
        ping(10, device(2), record_id="p-e2"),
        ping(10, device(3), record_id="p-e3"),
        ping(10, record_id="p-e4", ip_address=addresses[4]),
    ]
    async with world.worker():
        await world.send(click(5, device(3), OTHER_RE_TRACKER, record_id="k3"))
        for number, late in enumerate(reported, start=1):
            await world.send(stolen[late.record_id])
            await world.decided(stolen[late.record_id].record_id)
            await world.send(late)
            await counts(before + number)
        explained = {late_id: await explain(world, each.record_id) for late_id, each in stolen.items()}
        shown = await explain(world, "p-e2")
    decisions = [said.decision for said in explained.values()]
    assert [(decision.version, decision.engagement_id) for decision in decisions] == [
        (1, ""),
        (1, ""),
        (1, "k3"),
        (1, ""),
    ]
    assert [decision.reason for decision in decisions if not decision.engagement_id] == [NO_CANDIDATE] * 3
    for late_id, said in explained.items():
        assert listed(said) == {late_id: REPORTED_LATE}
        (sentence,) = (each for each in said.sentences if each.startswith(f"Click {late_id} "))
        assert re.search(r" was refused: reported [\d.]+ s after the conversion; late_pings of acme is 0\.$", sentence)
    before_it = "no click or impression received before it, and no claim, matched this device"
    assert f": {before_it}." in explained["p-e2"].summary
    assert shown.summary.endswith("It has won no conversion.")


async def test_a_ping_that_comes_while_its_conversion_waits_is_a_candidate_of_it(world: World) -> None:
    """It is counted when the conversion is decided, and when that is decided again neither counted nor listed anew."""
    before = counted()
    await world.received.trigger(("Purchase", "x"))
    await world.received.answer("e1", pending("x"))
    async with world.worker(claim_wait_s=600):
        await world.send(event(HOUR, device(1), record_id="e1"))
        async with asyncio.timeout(10):
            while not await world.pool.fetchval("SELECT count(*) FROM pending_conversions"):
                await asyncio.sleep(0.01)
        await world.send(ping(10, device(1), record_id="p1"))
        await passed(world, "p1")
        assert counted() == before
        await world.received.answer("e1", not_claimed("x"))
        await world.decided("e1")
        await counts(before + 1)
        first = await explain(world, "e1")
        await world.send(ping(20, device(1), record_id="p2"))
        await counts(before + 2)
        await world.send(click(0, device(1), OTHER_RE_TRACKER, record_id="k1"))
        await version(world, "e1", 2)
        again = await explain(world, "e1")
    assert {each.engagement_id: each.verdict for each in first.decision.candidates} == {"p1": REPORTED_LATE}
    assert not first.late_pings
    assert first.sentences[0].endswith(" s after the conversion; late_pings of acme is 0.")
    assert {each.engagement_id: each.verdict for each in again.decision.candidates} == {
        "k1": decision_pb2.VERDICT_WON,
        "p1": REPORTED_LATE,
        "p2": REPORTED_LATE,
    }
    assert (not again.late_pings, counted()) == (True, before + 2)


async def test_what_could_not_have_won_is_not_told_of(world: World) -> None:
    """Pings dated after it, of another device, on a tracker of the other type, or for what nobody can win."""
    before, told, after = counted(), event(HOUR, device(1), record_id="e1"), ping(HOUR, device(1), record_id="after")
    told.event_time.nanos, after.event_time.nanos = 200_000_000, 500_000_000
    async with world.worker():
        await world.send(told, event(HOUR, device(2), "View", record_id="v2"), install(HOUR, device(3), record_id="i3"))
        await world.decided("e1", "v2", "i3")
        await world.send(event(HOUR + 60, device(3), record_id="e3"))
        await world.decided("e3")
        await world.send(
            after,
            ping(10, device(8), record_id="of another"),
            ping(10, device(1), UA_TRACKER, record_id="for installs"),
            ping(10, device(2), record_id="of a view"),
            ping(HOUR + 30, device(3), record_id="of an event too early"),
        )
        await world.send(ping(10, device(1), record_id="p1"))
        await passed(world, "p1")
        assert counted() == before + 1
        explained = {each: listed(await explain(world, each)) for each in ("e1", "v2", "e3")}
    assert explained == {"e1": {"p1": REPORTED_LATE}, "v2": {}, "e3": {}}


async def test_of_a_reprocessed_install_only_reengagement_could_have_won(world: World) -> None:
    before = counted()
    app = app_pb2.App(app_id=APP, name="Shop", platform=app_pb2.PLATFORM_ANDROID, status=status_pb2.STATUS_LIVE)
    app.settings.install_reprocessing_window.FromSeconds(24 * HOUR)
    acquiring = tracker_resource("thief", network_id="acme")
    await world.settings.reached(await world.feed.publish(snapshot_pb2.Resource(app=app), acquiring))
    async with world.worker():
        await world.send(install(-48 * HOUR, device(1), record_id="i1"), install(HOUR, device(1), record_id="i2"))
        _, i2 = await world.decided("i1", "i2")
        await world.send(ping(10, device(1), "thief", record_id="p1"), ping(10, device(1), record_id="p2"))
        await counts(before + 1)
        explained = await explain(world, "i2")
    assert i2.outcome == decision_pb2.OUTCOME_REPROCESSED_ORGANIC
    assert listed(explained) == {"p2": REPORTED_LATE}


async def test_late_pings_are_judged_by_the_settings_of_then(world: World) -> None:
    """Before its network was trusted, with a time that was too short, and with one that was long enough."""
    before = counted()
    async with world.worker():
        await world.send(event(HOUR, device(1), record_id="e1"))
        await world.decided("e1")
        await world.send(ping(10, device(1), record_id="p1"))
        await counts(before + 1)
        await world.settings.reached(await world.feed.publish(late_pings("acme", 7 * HOUR)))
        await world.send(event(HOUR, device(2), record_id="e2"))
        await world.decided("e2")
        await world.send(ping(10, device(2), record_id="p2"))
        e2 = await version(world, "e2", 2)
        explained = [await explain(world, "e1"), await explain(world, "e2")]
    assert e2.engagement_id == "p2"
    assert [listed(each) for each in explained] == [{"p1": REPORTED_LATE}, {}]
    assert explained[0].sentences[-1].endswith("late_pings of acme is 0."), "the settings of then"
    assert counted() == before + 1


async def test_an_app_that_decides_once_lists_no_late_pings(world: World) -> None:
    before = counted()
    app = app_pb2.App(app_id=APP, name="Shop", platform=app_pb2.PLATFORM_ANDROID, status=status_pb2.STATUS_LIVE)
    app.settings.late_window.FromSeconds(0)
    await world.settings.reached(await world.feed.publish(snapshot_pb2.Resource(app=app)))
    async with world.worker():
        await world.send(event(HOUR, device(1), record_id="e1"))
        await world.decided("e1")
        await world.send(ping(10, device(1), record_id="p1"))
        await passed(world, "p1")
        assert not (await explain(world, "e1")).late_pings
    assert counted() == before


async def test_a_tracker_that_does_not_answer_is_named(world: World) -> None:
    async def silent(revision: int) -> AsyncIterator[snapshot_pb2.GetSnapshotResponse]:
        raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata())
        yield

    explanations = Explanations(
        world.pool, world.ingest, Background(world.pool, world.settings, PastRules(world.settings, silent))
    )
    async with world.worker():
        await world.send(event(HOUR, device(1), record_id="e1"))
        await world.decided("e1")
        await world.send(ping(10, device(1), record_id="p1"), event(HOUR, device(9), record_id="last"))
        await world.decided("last")
        assert listed(await explanations.of_record(APP, "e1")) == {"p1": REPORTED_LATE}, "nobody was asked"
        await world.settings.reached(await world.feed.publish(late_pings("acme", HOUR)))
        with pytest.raises(Unavailable) as raised:
            await explanations.of_record(APP, "e1")
        assert (await explanations.of_record(APP, "last")).decision.conversion_id == "last"
    assert raised.value.reason == "SETTINGS_UNAVAILABLE"
