"""Claims of self-attributing networks (E1 to E4): who waits, how long, and that nobody is lost, doubled or swapped."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from libs.config import ConfigError
from reengage.attribution.v1 import decision_pb2, device_pb2, explanation_pb2
from reengage.ingest.v1 import log_pb2, record_pb2
from reengage.ingest.v1.service_pb2_grpc import IngestServiceStub
from reengage.postback.v1 import claim_pb2, conversion_pb2
from reengage.tracker.v1 import app_pb2, network_pb2, san_account_pb2, snapshot_pb2, status_pb2
from services.attribution.__main__ import Config
from services.attribution.jobs.claims import ClaimsConfig
from services.attribution.live.claim_triggers import ClaimTriggers
from services.attribution.live.pending import in_turn
from services.attribution.storage.pending import PendingRow
from tests.attribution.conftest import (
    APP,
    World,
    claimed,
    click,
    device,
    die,
    event,
    install,
    not_claimed,
    pending,
    record,
    tracker_resource,
    unavailable,
)

HOUR, DAY = 3600, 86_400
REENGAGED, CREDITED = decision_pb2.OUTCOME_REENGAGED, decision_pb2.OUTCOME_CREDITED
ATTRIBUTED, DUPLICATE = decision_pb2.OUTCOME_ATTRIBUTED, decision_pb2.OUTCOME_DUPLICATE
CLAIMED, UNAVAILABLE = claim_pb2.ClaimAnswer.STATE_CLAIMED, claim_pb2.ClaimAnswer.STATE_UNAVAILABLE
PURCHASES_OF_X = ("Purchase", "x")
X_RE, X_UA = "x-re", "x-ua"


@pytest.fixture
async def world(world: World) -> World:
    """Returns the sample app with two self-attributing networks, x and y, each with trackers of both types."""
    await world.feed.publish(
        *(
            snapshot_pb2.Resource(network=network_pb2.Network(network_id=network_id, self_attributing=True))
            for network_id in ("x", "y")
        ),
        tracker_resource(X_UA, network_id="x"),
        tracker_resource(X_RE, network_id="x", events=["Purchase", "Refund", "SessionBegin"]),
        tracker_resource("y-re", network_id="y", events=["Purchase"]),
    )
    return world


async def _asked(world: World, *conversion_ids: str) -> None:
    """Waits until claims of all these were requested."""
    while not all(world.received.asked[each] for each in conversion_ids):
        await asyncio.sleep(0.01)


async def _is_decided(world: World, conversion_id: str) -> bool:
    call = world.attribution.GetDecision(decision_pb2.GetDecisionRequest(app_id=APP, conversion_id=conversion_id))
    return await call.code() is grpc.StatusCode.OK


async def _stored_claims(world: World, conversion_id: str) -> claim_pb2.ConversionClaims | None:
    stored = await world.pool.fetchval("SELECT claims FROM decisions WHERE conversion_id = $1", conversion_id)
    return None if stored is None else claim_pb2.ConversionClaims.FromString(stored)


async def _explained(world: World, conversion_id: str) -> list[str]:
    """Returns the sentences of explain that tell of x without a candidate."""
    request = explanation_pb2.ExplainDecisionRequest(app_id=APP, conversion_id=conversion_id)
    return [each for each in (await world.attribution.ExplainDecision(request)).sentences if each.startswith("x ")]


# What claims do to decisions.


async def test_a_claim_wins_and_is_kept_with_the_decision(world: World) -> None:
    """E1: the request carries what postback needs to make the delivery; the answer is the claim."""
    await world.received.trigger(PURCHASES_OF_X)
    await world.received.answer("e1", claimed("x", HOUR))
    async with world.worker():
        await world.send(event(2 * HOUR, device(1), record_id="e1"))
        (e1,) = await world.decided("e1")
        while "e1" not in world.received.conversions:
            await asyncio.sleep(0.01)
    assert (e1.outcome, e1.tracker_id, e1.engagement_id) == (REENGAGED, X_RE, "claim:x")
    assert (e1.matched_by, e1.lookback.seconds) == (decision_pb2.MATCH_KIND_CLAIM, HOUR)
    about = world.received.asked_about["e1"]
    assert about.decision == decision_pb2.Decision(
        app_id=APP,
        conversion_id="e1",
        event_name="Purchase",
        device_id=e1.device_id,
        conversion_time=e1.conversion_time,
        receive_time=e1.receive_time,
    )
    assert (about.record.record_id, about.names.platform) == ("e1", app_pb2.PLATFORM_ANDROID)
    kept = await _stored_claims(world, "e1")
    assert kept is not None
    assert [(each.network_id, each.state) for each in kept.answers] == [("x", CLAIMED)]
    assert not await world.pool.fetchval("SELECT count(*) FROM pending_conversions")


def asked_for(conversion: conversion_pb2.Conversion) -> dict[str, tuple[str, int, int, list[tuple[str, int]], str]]:
    """Returns by network the tracker a claim would go to, its windows in days, its accounts and its names."""
    return {
        tracker.network_id: (
            tracker.tracker_id,
            tracker.post_engagement_window.seconds // DAY,
            tracker.post_view_window.seconds // DAY,
            [(account.san_account_id, account.revision) for account in tracker.accounts],
            f"{tracker.target_event} {tracker.bundle_id}",
        )
        for tracker in conversion.claim_trackers
    }


async def test_networks_are_asked_as_the_tracker_says_that_a_claim_would_go_to(world: World) -> None:
    """E3, B4: its windows and its accounts; for an event only a tracker that selects it, of two the default one."""
    accounts = [
        san_account_pb2.SanAccount(san_account_id="old", revision=5, status=status_pb2.STATUS_ARCHIVED),
        san_account_pb2.SanAccount(san_account_id="main", revision=7, status=status_pb2.STATUS_LIVE),
        san_account_pb2.SanAccount(san_account_id="more", revision=6, status=status_pb2.STATUS_LIVE),
    ]
    windows = {
        "post_engagement_window": Duration(seconds=30 * DAY),
        "post_view_window": Duration(seconds=DAY),
    }
    revision = await world.feed.publish(
        *(snapshot_pb2.Resource(san_account=account) for account in accounts),
        tracker_resource(
            X_RE,
            network_id="x",
            events=["Purchase"],
            default_tracker=True,
            san_account_ids=["old", "main", "more"],
            target_event="PURCHASE",
            bundle_id="com.shop",
            **windows,
        ),
        tracker_resource("x-newer", network_id="x", events=["Purchase"], create_time=Timestamp(seconds=9)),
        tracker_resource("x-view", network_id="x", events=["View"], create_time=Timestamp(seconds=8)),
    )
    await world.settings.reached(revision)
    await world.received.trigger(PURCHASES_OF_X, ("View", "x"), ("_install", "x"))
    async with world.worker():
        await world.send(install(0, device(1), record_id="i1"), event(HOUR, device(1), record_id="e1"))
        await world.send(event(2 * HOUR, device(1), "View", record_id="v1"), event(3 * HOUR, device(1), "Other"))
        await world.decided("i1", "e1", "v1")
        while "v1" not in world.received.conversions:
            await asyncio.sleep(0.01)
    for told in (world.received.asked_about, world.received.conversions):
        assert asked_for(told["i1"]) == {"x": (X_UA, 14, 0, [], " ")}
        assert asked_for(told["e1"]) == {
            "x": (X_RE, 30, 1, [("main", 7), ("more", 6)], "PURCHASE com.shop"),
            "y": ("y-re", 14, 0, [], " "),
        }
        assert asked_for(told["v1"]) == {"x": ("x-view", 14, 0, [], " ")}


async def test_nobody_is_asked_about_other_events(world: World) -> None:
    await world.received.trigger(PURCHASES_OF_X)
    async with world.worker():
        await world.send(event(0, device(1), "View", record_id="v1"), install(0, device(2), record_id="i2"))
        await world.send(event(HOUR, device(1), record_id="e1"))
        await world.decided("v1", "i2", "e1")
    assert set(world.received.asked) == {"e1"}
    assert await _stored_claims(world, "v1") is None


@pytest.mark.parametrize(
    ("answers", "winner", "verdicts"),
    [
        (
            [claimed("x", HOUR, granular_data_forbidden=True)],
            "k1",
            {"claim:x": decision_pb2.VERDICT_GRANULAR_DATA_NOT_ALLOWED},
        ),  # E2
        ([claimed("x", 60)], "k1", {"claim:x": decision_pb2.VERDICT_LOST_TO_MORE_RECENT}),  # C3
        ([claimed("x", HOUR)], "claim:x", {"k1": decision_pb2.VERDICT_LOST_TO_MORE_RECENT}),  # C3
        ([claimed("x", HOUR, is_view=True)], "k1", {"claim:x": decision_pb2.VERDICT_VIEW_WINDOW_ZERO}),  # B4
        (
            [claimed("x", HOUR), claimed("y", 2 * HOUR)],
            "claim:y",
            {"claim:x": decision_pb2.VERDICT_LOST_TO_MORE_RECENT},
        ),
        ([not_claimed("x"), not_claimed("y")], "k1", {}),
        ([not_claimed("x"), claimed("y", HOUR)], "claim:y", {"k1": decision_pb2.VERDICT_LOST_TO_MORE_RECENT}),
        ([], "k1", {}),  # nobody was asked after all: the configuration was paused meanwhile
    ],
)
async def test_claims_compete_and_the_next_best_wins_where_they_are_refused(
    world: World, answers: list[claim_pb2.ClaimAnswer], winner: str, verdicts: dict[str, str]
) -> None:
    await world.received.trigger(PURCHASES_OF_X, ("Purchase", "y"))
    await world.received.answer("e1", *answers)
    async with world.worker():
        await world.send(click(120, device(1), record_id="k1"))
        await world.send(event(3 * HOUR, device(1), record_id="e1"))
        (e1,) = await world.decided("e1")
    assert (e1.outcome, e1.engagement_id, list(e1.claims_unavailable)) == (REENGAGED, winner, [])
    found = {candidate.engagement_id: candidate.verdict for candidate in e1.candidates}
    assert found.items() >= verdicts.items()


async def test_a_claim_wins_an_install_and_nothing_is_claimed_of_a_duplicate(world: World) -> None:
    """F1, F2: a duplicate install asks nobody."""
    await world.received.trigger(("_install", "x"))
    await world.received.answer("i1", claimed("x", 0))
    async with world.worker():
        await world.send(install(60, device(1), record_id="i1"))
        (i1,) = await world.decided("i1")
        await world.send(install(120, device(1), record_id="i2"))
        (i2,) = await world.decided("i2")
        answer = await world.attribution.GetDeviceAttribution(
            device_pb2.GetDeviceAttributionRequest(app_id=APP, device_id=device(1))
        )
    assert (i1.outcome, i1.tracker_id, i1.engagement_id) == (ATTRIBUTED, X_UA, "claim:x")
    assert i2.outcome == DUPLICATE
    assert set(world.received.asked) == {"i1"}
    assert (answer.install.tracker_id, answer.current.tracker_id) == (X_UA, X_UA)


# No answer.


async def test_a_network_that_never_answers_is_listed_and_the_next_best_wins(world: World) -> None:
    """E4; of the other network the answer counts."""
    await world.received.trigger(PURCHASES_OF_X, ("Purchase", "y"))
    paused = claim_pb2.ClaimAnswer.REASON_PAUSED
    await world.received.answer("e1", pending("x", reason=paused, delivery_id="d1"), claimed("y", 30))
    async with world.worker(claim_wait_s=0.3):
        await world.send(click(60, device(1), record_id="k1"))
        await world.send(event(HOUR, device(1), record_id="e1"))
        (e1,) = await world.decided("e1")
        asked = world.received.asked["e1"]
        # A late claim changes nothing, and nobody asks for it.
        await world.received.answer("e1", claimed("x", 120), claimed("y", 30))
        await world.send(event(2 * HOUR, device(1), record_id="e2"))
        await world.decided("e2")
        (again,) = await world.decided("e1")
    assert (e1.engagement_id, list(e1.claims_unavailable)) == ("k1", ["x"])
    assert {c.engagement_id: c.verdict for c in e1.candidates} == {
        "k1": decision_pb2.VERDICT_WON,
        "claim:y": decision_pb2.VERDICT_LOST_TO_MORE_RECENT,
    }
    assert (again, world.received.asked["e1"]) == (e1, asked)
    kept = await _stored_claims(world, "e1")
    assert kept is not None
    assert [(each.network_id, each.state) for each in kept.answers] == [("x", UNAVAILABLE), ("y", CLAIMED)]
    assert (kept.answers[0].reason, kept.answers[0].delivery_id) == (paused, "d1"), "why it had not answered so far"
    assert await _explained(world, "e1") == [
        (
            "x was not asked: its configuration is paused; see delivery d1. Set it LIVE. This was decided without its "
            "answer."
        )
    ]


async def test_a_network_that_will_not_answer_is_not_waited_for(world: World) -> None:
    await world.received.trigger(PURCHASES_OF_X)
    await world.received.answer("e1", unavailable("x"))
    async with world.worker(claim_wait_s=600):
        await world.send(event(HOUR, device(1), record_id="e1"))
        (e1,) = await world.decided("e1")
    assert (e1.reason, list(e1.claims_unavailable)) == (decision_pb2.REASON_NO_CANDIDATE, ["x"])


async def test_postback_away_until_the_deadline(world: World) -> None:
    await world.received.trigger(PURCHASES_OF_X)
    async with world.worker(claim_wait_s=0.5):
        await world.send(event(0, device(1), record_id="e1"))
        await world.decided("e1")
        world.received.failing = True
        await world.send(click(60, device(1), record_id="k1"))
        await world.send(event(2 * HOUR, device(1), record_id="e2"))
        (e2,) = await world.decided("e2")
    assert (e2.engagement_id, list(e2.claims_unavailable)) == ("k1", ["x"])
    assert await _explained(world, "e2") == [
        "x may not have been asked: postback did not answer attribution. This was decided without its answer."
    ]


async def test_a_network_that_nobody_wants_to_ask_is_no_network_without_an_answer(world: World) -> None:
    await world.received.trigger(PURCHASES_OF_X)
    reason = claim_pb2.ClaimAnswer.REASON_DATA_CONTROLLED
    not_asked = claim_pb2.ClaimAnswer(network_id="x", state=claim_pb2.ClaimAnswer.STATE_NOT_ASKED, reason=reason)
    await world.received.answer("e1", not_asked)
    async with world.worker(claim_wait_s=600):
        await world.send(event(HOUR, device(1), record_id="e1"))
        (e1,) = await world.decided("e1")
    assert (e1.reason, list(e1.claims_unavailable)) == (decision_pb2.REASON_NO_CANDIDATE, [])
    assert await _explained(world, "e1") == [
        (
            "x was not asked: the user controls their data, which its configuration respects. This was decided without "
            "its answer."
        )
    ]


async def test_postback_that_hangs(world: World) -> None:
    world.received.hanging = True
    await world.received.trigger(PURCHASES_OF_X)
    async with world.worker(claim_wait_s=0.3, claims_config=ClaimsConfig(call_grace_s=0.1)):
        await world.send(event(0, device(1), record_id="e1"))
        (e1,) = await world.decided("e1")
    assert list(e1.claims_unavailable) == ["x"]


async def test_postback_away_and_back(world: World) -> None:
    await world.received.trigger(PURCHASES_OF_X)
    await world.received.answer("e1", claimed("x", 60))
    async with world.worker():
        await world.send(event(0, device(1), "View", record_id="v1"))
        await world.decided("v1")
        world.received.failing = True
        await world.send(event(HOUR, device(1), record_id="e1"))
        while not await world.pool.fetchval("SELECT count(*) FROM pending_conversions"):
            await asyncio.sleep(0.01)
        world.received.failing = False
        (e1,) = await world.decided("e1")
    assert e1.engagement_id == "claim:x"


@pytest.mark.slow
async def test_a_start_without_postback_knows_who_is_asked(world: World) -> None:
    await world.received.trigger(PURCHASES_OF_X, ("Refund", "x"))
    async with world.worker():
        while await world.pool.fetchval("SELECT count(*) FROM claim_triggers") != 2:
            await asyncio.sleep(0.01)
        await world.received.trigger(PURCHASES_OF_X)
        while await world.pool.fetchval("SELECT count(*) FROM claim_triggers") != 1:
            await asyncio.sleep(0.01)
    world.received.failing = True
    triggers = ClaimTriggers(world.pool, world.postback, wait_s=1)
    following = asyncio.ensure_future(triggers.run())
    await triggers.ready()
    asking = triggers.asking(frozenset({"other"}), 0)
    following.cancel()
    assert asking.networks == {(APP, "Purchase"): ("x",)}
    assert asking.app_ids == {APP, "other"}
    assert asking.deadline_us == 1_000_000


# Who is held back, and who is not.


async def test_an_event_that_waits_holds_back_only_those_of_its_device_that_wait_as_well(world: World) -> None:
    await world.received.trigger(PURCHASES_OF_X, ("Refund", "x"))
    await world.received.answer("e1", pending("x"))
    await world.received.answer("r1", claimed("x", HOUR))
    async with world.worker():
        await world.send(event(2 * HOUR, device(1), record_id="e1"))
        await _asked(world, "e1")
        await world.send(event(2 * HOUR + 1, device(1), "Refund", record_id="r1"))
        await world.send(event(2 * HOUR + 2, device(1), "View", record_id="v1"), click(0, device(2), record_id="k2"))
        await world.send(event(2 * HOUR + 3, device(2), record_id="e2"))
        await _asked(world, "r1")
        v1, e2 = await world.decided("v1", "e2")
        while not await world.pool.fetchval("SELECT count(*) FROM pending_conversions WHERE claims IS NOT NULL"):
            await asyncio.sleep(0.01)  # r1 is answered, and its answer is kept
        assert not await _is_decided(world, "e1")
        assert not await _is_decided(world, "r1")
        await world.received.answer("e1", claimed("x", 60))
        e1, r1 = await world.decided("e1", "r1")
    assert (v1.outcome, e2.engagement_id) == (decision_pb2.OUTCOME_UNATTRIBUTED, "k2")
    assert (e1.outcome, r1.outcome) == (REENGAGED, CREDITED)
    assert r1.reason == decision_pb2.REASON_MTR_NOT_MET, "it was decided after e1"


async def test_an_install_that_waits_holds_back_its_device(world: World) -> None:
    """Else its events were decided without it: source, MTR clock. Other devices go on."""
    await world.received.trigger(("_install", "x"), PURCHASES_OF_X)
    await world.received.answer("i1", pending("x"))
    async with world.worker():
        await world.send(install(0, device(1), record_id="i1"))
        await _asked(world, "i1")
        link = record_pb2.IdentityLink(identities={"email": "x"})
        await world.send(
            event(1, device(1), "View", record_id="v1"),
            event(2, device(1), record_id="e1"),
            install(3, device(1), record_id="i2"),
            record(4, device(1), identity_link=link, record_id="l1"),
            install(5, device(2), record_id="i3"),
        )
        i3, l1 = await world.decided("i3", "l1")
        await _asked(world, "e1")  # at once: that is the postback, too
        answer = await world.attribution.GetDeviceAttribution(
            device_pb2.GetDeviceAttributionRequest(app_id=APP, device_id=device(1))
        )
        assert not [each for each in ("i1", "v1", "e1", "i2") if await _is_decided(world, each)]
        await world.received.answer("i1", claimed("x", -60))
        i1, v1, e1, i2 = await world.decided("i1", "v1", "e1", "i2")
        order = await world.pool.fetch("SELECT conversion_id FROM decisions ORDER BY sequence")
    assert (i3.outcome, l1.outcome) == (decision_pb2.OUTCOME_ORGANIC, decision_pb2.OUTCOME_LINKED)
    assert not answer.HasField("install"), "what waits is credited to nobody yet"
    assert not answer.HasField("current")
    assert (i1.outcome, i1.tracker_id, i2.outcome) == (ATTRIBUTED, X_UA, DUPLICATE)
    assert (v1.outcome, v1.tracker_id, v1.install_known) == (CREDITED, X_UA, True)
    assert (e1.reason, e1.tracker_id) == (decision_pb2.REASON_MTR_NOT_MET, X_UA)
    decided = [row["conversion_id"] for row in order]
    assert [each for each in decided if each not in ("i3", "l1")] == ["i1", "v1", "e1", "i2"]
    assert set(world.received.asked) == {"i1", "e1", "i3"}


async def test_an_install_behind_one_that_waits_asks_when_it_turns_out_to_be_no_duplicate(world: World) -> None:
    """F2: it is reprocessed, if the window says so, and holds back what came after it in its turn."""
    app = app_pb2.App(app_id=APP, platform=app_pb2.PLATFORM_ANDROID, status=status_pb2.STATUS_LIVE)
    app.settings.install_reprocessing_window.FromSeconds(24 * HOUR)
    await world.feed.publish(snapshot_pb2.Resource(app=app))
    await world.received.trigger(("_install", "x"), PURCHASES_OF_X)
    for each in ("i1", "i2", "e1"):
        await world.received.answer(each, pending("x"))
    async with world.worker():
        await world.send(install(-24 * HOUR, device(1), record_id="i1"))
        await world.send(install(0, device(1), record_id="i2"), event(60, device(1), record_id="e1"))
        await _asked(world, "i1", "e1")
        assert "i2" not in world.received.asked
        await world.received.answer("e1", not_claimed("x"))
        while not await world.pool.fetchval("SELECT count(*) FROM pending_conversions WHERE claims IS NOT NULL"):
            await asyncio.sleep(0.01)
        await world.received.answer("i1", not_claimed("x"))
        await _asked(world, "i2")
        (i1,) = await world.decided("i1")
        assert not await _is_decided(world, "e1")
        await world.received.answer("i2", claimed("x", -60))
        i2, e1 = await world.decided("i2", "e1")
    assert (i1.outcome, i2.outcome) == (decision_pb2.OUTCOME_ORGANIC, decision_pb2.OUTCOME_REPROCESSED)
    assert (i2.tracker_id, e1.tracker_id, e1.reason) == (X_RE, X_RE, decision_pb2.REASON_MTR_NOT_MET)
    assert [asked_for(world.received.asked_about[each])["x"][0] for each in ("i1", "i2")] == [X_UA, X_RE]


async def test_what_was_answered_is_not_asked_again_behind_another_install(world: World) -> None:
    """Else postback that is away at that moment would make a claim unavailable that was heard."""
    app = app_pb2.App(app_id=APP, platform=app_pb2.PLATFORM_ANDROID, status=status_pb2.STATUS_LIVE)
    app.settings.install_reprocessing_window.FromSeconds(24 * HOUR)
    await world.feed.publish(snapshot_pb2.Resource(app=app))
    await world.received.trigger(("_install", "x"), PURCHASES_OF_X)
    for each in ("i1", "i2"):
        await world.received.answer(each, pending("x"))
    await world.received.answer("e1", claimed("x", -60))
    async with world.worker():
        await world.send(install(-24 * HOUR, device(1), record_id="i1"))
        await world.send(install(0, device(1), record_id="i2"), event(60, device(1), record_id="e1"))
        while not await world.pool.fetchval("SELECT count(*) FROM pending_conversions WHERE claims IS NOT NULL"):
            await asyncio.sleep(0.01)
        await world.received.answer("e1", unavailable("x"))
        asked = world.received.asked["e1"]
        await world.received.answer("i1", not_claimed("x"))
        while world.received.asked["i2"] < 2:  # by then, e1 would have been as well
            await asyncio.sleep(0.01)
        await world.received.answer("i2", not_claimed("x"))
        await world.decided("e1")
    assert world.received.asked["e1"] == asked
    stored = await _stored_claims(world, "e1")
    assert stored is not None
    assert [each.state for each in stored.answers] == [CLAIMED]


async def test_the_first_session_asks_and_fires_once(world: World) -> None:
    start = record_pb2.Session(state=record_pb2.Session.STATE_START)
    await world.received.trigger(("SessionBegin", "x"))
    await world.received.answer("s1", pending("x"))
    async with world.worker():
        await world.send(record(60, device(1), session=start, record_id="s1"))
        await _asked(world, "s1")
        await world.send(record(120, device(1), session=start, record_id="s2"))
        await world.send(event(180, device(1), "View", record_id="v1"))
        await world.decided("v1")
        await world.received.answer("s1", claimed("x", 0))
        (s1,) = await world.decided("s1")
    assert (s1.outcome, s1.engagement_id) == (REENGAGED, "claim:x")
    assert not await _is_decided(world, "s2")
    assert set(world.received.asked) == {"s1"}


async def test_a_session_behind_an_install_that_waits_asks_in_its_turn(world: World) -> None:
    start = record_pb2.Session(state=record_pb2.Session.STATE_START)
    await world.received.trigger(("_install", "x"), ("SessionBegin", "x"))
    await world.received.answer("i1", pending("x"))
    async with world.worker():
        await world.send(install(0, device(1), record_id="i1"))
        await _asked(world, "i1")
        await world.send(*(record(n, device(1), session=start, record_id=f"s{n}") for n in (1, 2)))
        while await world.pool.fetchval("SELECT count(*) FROM pending_conversions") < 3:
            await asyncio.sleep(0.01)
        await world.received.answer("i1", not_claimed("x"))
        (s1,) = await world.decided("s1")
        await world.send(event(3, device(1), "View", record_id="v1"))
        await world.decided("v1")
    assert (s1.reason, s1.install_known) == (decision_pb2.REASON_MTR_NOT_MET, True)
    assert not await _is_decided(world, "s2")
    assert set(world.received.asked) == {"i1", "s1"}
    assert not await world.pool.fetchval("SELECT count(*) FROM pending_conversions")


async def test_devices_that_merge_while_they_wait(world: World) -> None:
    """The rows follow: the older install is decided first, and is the install of both."""
    a, b = {"adid": device(1)}, {"android_id": f"{1:016x}"}
    await world.received.trigger(("_install", "x"), PURCHASES_OF_X)
    for each in ("i1", "i2", "e2"):
        await world.received.answer(each, pending("x"))
    async with world.worker():
        await world.send(install(0, a, record_id="i1"))
        await world.send(install(60, b, record_id="i2"), event(2 * HOUR, b, record_id="e2"))
        await _asked(world, "i1", "i2", "e2")
        await world.send(event(2 * HOUR + 60, {**a, **b}, "View", record_id="v1"))
        while await world.pool.fetchval("SELECT count(DISTINCT device_id) FROM pending_conversions") != 1:
            await asyncio.sleep(0.01)
        assert await world.pool.fetchval("SELECT count(*) FROM pending_conversions") == 4, "v1 is behind i1"
        await world.received.answer("i2", claimed("x", 30))
        await world.received.answer("e2", claimed("x", HOUR))
        while await world.pool.fetchval("SELECT count(*) FROM pending_conversions WHERE claims IS NOT NULL") != 2:
            await asyncio.sleep(0.01)
        await world.received.answer("i1", not_claimed("x"))
        i1, i2, e2, v1 = await world.decided("i1", "i2", "e2", "v1")
        answer = await world.attribution.GetDeviceAttribution(
            device_pb2.GetDeviceAttributionRequest(app_id=APP, device_id=device(1))
        )
    assert (i1.outcome, i2.outcome) == (decision_pb2.OUTCOME_ORGANIC, DUPLICATE)
    assert (e2.outcome, e2.tracker_id, v1.tracker_id) == (REENGAGED, X_RE, X_RE)
    assert {each.device_id for each in (i1, i2, e2, v1)} == {answer.device_id}
    assert (answer.install.conversion_id, answer.current.conversion_id) == ("i1", "e2")


async def test_a_device_that_turns_out_to_be_one_whose_install_waits_is_held_back(world: World) -> None:
    """From the very record on that shows it, and those that come with it."""
    a, b = {"adid": device(1)}, {"android_id": f"{1:016x}"}
    await world.received.trigger(("_install", "x"))
    await world.received.answer("i1", pending("x"))
    async with world.worker():
        await world.send(event(0, a, "View", record_id="v1"))
        await world.decided("v1")
        await world.send(install(60, b, record_id="i1"))
        await _asked(world, "i1")
        await world.send(
            event(61, {**a, **b}, "View", record_id="v2"),
            event(62, a, "View", record_id="v3"),
            event(63, device(2), "View", record_id="other"),
        )
        await world.decided("other")
        assert not [each for each in ("v2", "v3") if await _is_decided(world, each)]
        await world.received.answer("i1", claimed("x", 0))
        v2, v3 = await world.decided("v2", "v3")
    assert (v2.tracker_id, v3.tracker_id) == (X_UA, X_UA)


async def test_an_install_that_waits_holds_back_nothing_that_came_before_it(world: World) -> None:
    await world.received.trigger(("_install", "x"), PURCHASES_OF_X)
    await world.received.answer("e1", pending("x"))
    await world.received.answer("i1", pending("x"))
    async with world.worker():
        await world.send(event(0, device(1), record_id="e1"))
        await _asked(world, "e1")
        await world.send(install(60, device(1), record_id="i1"))
        await _asked(world, "i1")
        await world.received.answer("e1", claimed("x", -60))
        (e1,) = await world.decided("e1")
        assert not await _is_decided(world, "i1")
    assert (e1.outcome, e1.install_known) == (REENGAGED, False)


@pytest.mark.slow
async def test_a_slow_network_holds_up_no_other(world: World) -> None:
    await world.received.trigger(PURCHASES_OF_X, ("Refund", "y"))
    async with world.worker(claim_wait_s=600):
        stuck = [f"e{n}" for n in range(300)]
        for each in stuck:
            await world.received.answer(each, pending("x"))
        await world.send(*(event(n, device(n), record_id=each) for n, each in enumerate(stuck)))
        await _asked(world, *stuck)
        await world.send(*(event(n, device(n), "Refund", record_id=f"r{n}") for n in range(300, 400)))
        await world.decided(*(f"r{n}" for n in range(300, 400)))
        # Nor those it answers at once: all 300 are asked about again and again meanwhile.
        await world.send(event(400, device(400), record_id="e400"))
        await world.decided("e400")
        assert not [each for each in stuck if await _is_decided(world, each)]


async def test_all_that_was_asked_in_vain_is_asked_again_in_turn(world: World) -> None:
    """However few calls there may be: what came last is answered before what came first is given up."""
    one_at_a_time = ClaimsConfig(max_per_call=1, max_calls=1, call_wait_s=0.05)
    await world.received.trigger(PURCHASES_OF_X)
    ids = [f"e{n}" for n in range(4)]
    for each in ids:
        await world.received.answer(each, pending("x"))
    async with world.worker(claim_wait_s=600, claims_config=one_at_a_time):
        await world.send(*(event(n, device(n), record_id=each) for n, each in enumerate(ids)))
        await _asked(world, *ids)
        await world.received.answer("e3", claimed("x", -60))
        (e3,) = await world.decided("e3")
        assert not [each for each in ids[:3] if await _is_decided(world, each)]
    assert e3.engagement_id == "claim:x"


async def test_what_there_is_no_room_for_in_memory_waits_in_the_table(world: World) -> None:
    await world.received.trigger(PURCHASES_OF_X)
    ids = [f"e{n}" for n in range(40)]
    for each in ids:
        await world.received.answer(each, pending("x"))
    async with world.worker(claims_config=ClaimsConfig(max_held=5, look_interval_s=0.02)):
        await world.send(*(event(n, device(n), record_id=each) for n, each in enumerate(ids)))
        while await world.pool.fetchval("SELECT count(*) FROM pending_conversions") != 40:
            await asyncio.sleep(0.01)
        assert sum(1 for each in ids if world.received.asked[each]) <= 5
        for each in ids:
            await world.received.answer(each, claimed("x", -60))
        decisions = await world.decided(*ids)
    assert {each.engagement_id for each in decisions} == {"claim:x"}


async def test_a_conversion_that_comes_again_while_it_waits_is_decided_once(world: World) -> None:
    await world.received.trigger(PURCHASES_OF_X)
    await world.received.answer("e1", pending("x"))
    async with world.worker():
        await world.send(event(0, device(1), record_id="e1"))
        await _asked(world, "e1")
        await world.log_pool.execute("DELETE FROM dedupe")  # as after a week
        await world.send(event(0, device(1), record_id="e1"), event(1, device(1), "View", record_id="v1"))
        await world.decided("v1")
        await world.received.answer("e1", not_claimed("x"))
        await world.decided("e1")
        await world.send(event(2, device(1), "View", record_id="v2"))
        await world.decided("v2")
        while not {"e1", "v1", "v2"} <= world.received.conversions.keys():
            await asyncio.sleep(0.01)
    assert await world.pool.fetchval("SELECT count(*) FROM decisions WHERE conversion_id = 'e1'") == 1


# Crashes.


async def test_lanes_that_move_take_what_waits_with_them(world: World) -> None:
    await world.received.trigger(PURCHASES_OF_X, ("_install", "x"))
    await world.received.answer("i1", pending("x"))
    async with world.worker(lease_s=1.0) as worker:
        await world.send(install(0, device(1), record_id="i1"), event(60, device(1), "View", record_id="v1"))
        await _asked(world, "i1")
        die(worker)
    # Whoever comes next holds the device back as well, although nobody is asked about its app any more.
    await world.received.trigger()
    async with world.worker(lease_s=1.0):
        await world.send(event(61, device(1), "View", record_id="v2"))
        before = world.received.asked["i1"]
        while world.received.asked["i1"] == before:
            await asyncio.sleep(0.01)
        assert not await _is_decided(world, "v2")
        await world.received.answer("i1", claimed("x", -60))
        i1, v1, v2 = await world.decided("i1", "v1", "v2")
    assert (i1.tracker_id, v1.tracker_id, v2.tracker_id) == (X_UA, X_UA, X_UA)


class _LateLog:
    """An ingest of which a worker hears no conversions before the gate is open."""

    def __init__(self, stub: IngestServiceStub) -> None:
        self._stub = stub
        self.gate = asyncio.Event()

    def ReadLog(self, request: log_pb2.ReadLogRequest) -> Any:
        call = self._stub.ReadLog(request)
        return call if request.selection == log_pb2.ReadLogRequest.SELECTION_ENGAGEMENTS else _Late(call, self.gate)


class _Late:
    def __init__(self, call: Any, gate: asyncio.Event) -> None:
        self._call, self._gate = call, gate

    async def __aiter__(self) -> AsyncIterator[log_pb2.ReadLogResponse]:
        async for response in self._call:
            await self._gate.wait()
            yield response

    def cancel(self) -> None:
        self._call.cancel()


@pytest.mark.slow
async def test_after_a_move_nothing_is_decided_without_its_engagements(world: World) -> None:
    """A worker that takes lanes over decides when it knows itself that all engagements are indexed."""
    await world.received.trigger(PURCHASES_OF_X)
    await world.received.answer("e1", pending("x"))
    async with world.worker(lease_s=1.0) as worker:
        await world.send(click(60, device(1), record_id="k1"), event(HOUR, device(1), record_id="e1"))
        await _asked(world, "e1")
        die(worker)
    await world.received.answer("e1", not_claimed("x"))
    before, late = world.received.asked["e1"], _LateLog(world.ingest)
    async with world.worker(lease_s=1.0, ingest=late):  # type: ignore[arg-type]
        while world.received.asked["e1"] == before:
            await asyncio.sleep(0.01)
        with pytest.raises(TimeoutError):
            # Half a second is many times what a decision takes.
            await asyncio.wait_for(world.decided("e1"), 0.5)
        late.gate.set()
        (e1,) = await world.decided("e1")
    assert (e1.outcome, e1.engagement_id) == (REENGAGED, "k1")


@pytest.mark.slow
async def test_what_nobody_asked_about_before_its_deadline_is_asked_once(world: World) -> None:
    """A worker that comes back late takes the answers that are there."""
    await world.received.trigger(PURCHASES_OF_X)
    await world.received.answer("e1", pending("x"))
    async with world.worker(lease_s=1.0) as worker:
        await world.send(event(HOUR, device(1), record_id="e1"))
        await _asked(world, "e1")
        die(worker)
    await world.pool.execute("UPDATE pending_conversions SET deadline_us = 0")
    await world.received.answer("e1", claimed("x", 60))
    async with world.worker(lease_s=1.0):
        (e1,) = await world.decided("e1")
    assert (e1.engagement_id, list(e1.claims_unavailable)) == ("claim:x", [])


@pytest.mark.crash
async def test_workers_that_come_and_die_decide_everything_once_and_in_order(world: World) -> None:
    """At any point: conversions begin to wait, are asked about, answered, decided."""
    count = 60
    await world.received.trigger(("_install", "x"), PURCHASES_OF_X)
    sent: list[str] = []

    async def traffic() -> None:
        for n in range(1, count + 1):
            for each in (f"i{n}", f"e{n}"):
                await world.received.answer(each, pending("x"))
            await world.send(install(n, device(n), record_id=f"i{n}"))
            await world.send(event(n + 1, device(n), "View", record_id=f"v{n}"))
            await world.send(event(n + 2 * HOUR, device(n), record_id=f"e{n}"))
            sent.extend((f"i{n}", f"v{n}", f"e{n}"))
            if n > 3:
                await world.received.answer(f"e{n - 3}", claimed("x", n))
                await world.received.answer(f"i{n - 2}", claimed("x", 0))
        for n in range(1, count + 1):
            await world.received.answer(f"i{n}", claimed("x", 0))
            await world.received.answer(f"e{n}", claimed("x", n))

    sending = asyncio.ensure_future(traffic())
    for _ in range(6):
        async with world.worker(lease_s=1.0) as worker:
            seen = await world.pool.fetchval("SELECT count(*) FROM decisions")
            while await world.pool.fetchval("SELECT count(*) FROM decisions") == seen and not sending.done():
                await asyncio.sleep(0.002)
            die(worker)
    async with world.worker(lease_s=1.0):
        await sending
        decisions = {each.conversion_id: each for each in await world.decided(*sent)}
        while len(world.received.conversions) < len(sent):
            await asyncio.sleep(0.01)
    assert await world.pool.fetchval("SELECT count(*) FROM decisions") == len(sent)
    assert not await world.pool.fetchval("SELECT count(*) FROM pending_conversions")
    for n in range(1, count + 1):
        i, v, e = (decisions[f"{kind}{n}"] for kind in "ive")
        assert (i.outcome, i.engagement_id, list(i.claims_unavailable)) == (ATTRIBUTED, "claim:x", [])
        assert (v.outcome, v.tracker_id) == (CREDITED, X_UA)
        assert (e.outcome, e.engagement_id, list(e.claims_unavailable)) == (REENGAGED, "claim:x", [])


@pytest.mark.parametrize("seconds", [0, 0.9, 601])
def test_a_wait_beyond_its_range_is_no_configuration(seconds: float) -> None:
    with pytest.raises(ConfigError, match="REENGAGE_CLAIM_WAIT_S must be 1 to 600"):
        Config(dsn="", claim_wait_s=seconds)


# Whose turn it is.


def _row(
    name: str, network_ids: Iterable[str] = (), answers: bytes | None = None, device_number: int = 1
) -> PendingRow:
    return PendingRow(
        lane=0,
        app_id=APP,
        conversion_id=name,
        device_id=uuid.UUID(int=device_number),
        is_install=name.startswith("i"),
        log_lane=0,
        position=0,
        receive_time_us=0,
        settings_revision=0,
        record=b"",
        network_ids=list(network_ids),
        deadline_us=0,
        claims=answers,
    )


def _waits(name: str) -> PendingRow:
    return _row(name, ["x"])


def _answered(name: str) -> PendingRow:
    return _row(name, ["x"], b"")


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([_answered("e1"), _answered("e2")], ["e1", "e2"]),
        ([_waits("e1"), _answered("e2")], []),
        ([_waits("e1"), _answered("i1"), _row("v1")], []),
        ([_answered("e1"), _waits("e2"), _answered("e3")], ["e1"]),
        ([_waits("i1"), _row("v1"), _answered("e1")], []),
        ([_answered("i1"), _row("v1"), _waits("e1"), _row("v2"), _answered("e2")], ["i1", "v1", "v2"]),
        ([_answered("i1"), _waits("i2"), _row("v1")], ["i1"]),
        ([_answered("i1"), _row("i2"), _answered("e1")], ["i1", "i2", "e1"]),
        ([_waits("i1"), _row("i2", ["x"], b"", device_number=2)], ["i2"]),
        ([], []),
    ],
    ids=lambda value: ",".join(row if isinstance(row, str) else row.conversion_id for row in value),
)
def test_whose_turn_it_is(rows: list[PendingRow], expected: list[str]) -> None:
    assert [row.conversion_id for row in in_turn(rows)] == expected
