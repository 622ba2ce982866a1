"""From the log to decisions and postback: one worker, several, slow ones, dying ones."""

import asyncio
import collections
import hashlib
from typing import Any

import grpc
import pytest

from libs.errors import from_rpc_error
from reengage.attribution.v1 import decision_pb2, device_pb2
from reengage.ingest.v1 import record_pb2
from tests.attribution.conftest import (
    APP,
    RE_TRACKER,
    UA_TRACKER,
    World,
    click,
    device,
    event,
    install,
    record,
)

HOUR = 3600
REENGAGED, CREDITED = decision_pb2.OUTCOME_REENGAGED, decision_pb2.OUTCOME_CREDITED


async def test_a_click_an_install_a_click_and_an_event(world: World) -> None:
    a = device(1)
    async with world.worker():
        await world.send(click(0, a, UA_TRACKER, record_id="k1"))
        await world.send(install(60, a, record_id="i1"))
        await world.send(event(120, a, record_id="e1"), click(HOUR, a, record_id="k2"))
        await world.send(event(2 * HOUR, a, record_id="e2"), event(2 * HOUR + 1, a, "View", record_id="e3"))
        i1, e1, e2, e3 = await world.decided("i1", "e1", "e2", "e3")
        while len(world.received.conversions) < 4:
            await asyncio.sleep(0.01)
    assert (i1.outcome, i1.tracker_id, i1.engagement_id) == (decision_pb2.OUTCOME_ATTRIBUTED, UA_TRACKER, "k1")
    assert (e1.outcome, e1.reason, dict(e1.custom_dimensions)) == (
        CREDITED,
        decision_pb2.REASON_MTR_NOT_MET,
        {"mtr_rejected": "3600"},
    )
    assert (e2.outcome, e2.tracker_id, e2.engagement_id) == (REENGAGED, RE_TRACKER, "k2")
    assert (e2.campaign_id, e2.lookback.seconds, e2.level) == ("c1", HOUR, 1)
    assert (e3.outcome, e3.tracker_id, e3.reason) == (CREDITED, RE_TRACKER, decision_pb2.REASON_EVENT_NOT_SELECTED)
    handed = world.received.conversions
    assert (handed["e2"].engagement.record_id, handed["e2"].names.network) == ("k2", "Acme")
    assert handed["e3"].engagement.record_id == "k2", "a credited event carries the click of its source"
    assert handed["e1"].record.event.event_name == "Purchase"


async def test_ids_that_meet_later_make_one_device(world: World) -> None:
    """Two lanes: the install is known by one id, a click by another, and a third record ties them together."""
    first, second = {"adid": device(1)}, {"android_id": "a1b2c3"}
    async with world.worker():
        await world.send(install(0, first, record_id="i1"), event(10, second, "Other", record_id="o1"))
        await world.send(event(20, {**first, **second}, "Login", record_id="o2"))
        await world.send(click(HOUR, first, record_id="k1"))
        await world.send(event(2 * HOUR, second, record_id="e1"))
        i1, o1, o2, e1 = await world.decided("i1", "o1", "o2", "e1")
        answer = await world.attribution.GetDeviceAttribution(
            device_pb2.GetDeviceAttributionRequest(app_id=APP, device_id="a1b2c3")
        )
    assert i1.device_id != o1.device_id
    assert o2.device_id == e1.device_id == i1.device_id == answer.device_id
    assert (e1.outcome, e1.engagement_id, e1.install_known) == (REENGAGED, "k1", True)
    assert (answer.install.conversion_id, answer.current.conversion_id) == ("i1", "e1")


async def test_identity_links_need_a_known_device(world: World) -> None:
    def link(at_s: int, who: str, **fields: Any) -> record_pb2.Record:
        return record(at_s, who, identity_link=record_pb2.IdentityLink(identities={"email": "x"}), **fields)

    async with world.worker():
        await world.send(link(0, device(1), record_id="l1"))
        await world.send(install(1, device(1), record_id="i1"))
        await world.send(link(2, device(1), record_id="l2"))
        l1, l2 = await world.decided("l1", "l2")
        answer = await world.attribution.GetDeviceAttribution(
            device_pb2.GetDeviceAttributionRequest(app_id=APP, device_id=device(1))
        )
    assert (l1.outcome, l1.reason) == (decision_pb2.OUTCOME_REFUSED, decision_pb2.REASON_DEVICE_NOT_KNOWN)
    assert l2.outcome == decision_pb2.OUTCOME_LINKED
    assert dict(answer.identities) == {"email": "x"}


async def test_the_first_session_of_an_install_fires_session_begin_once(world: World) -> None:
    start = record_pb2.Session(state=record_pb2.Session.STATE_START)
    stop = record_pb2.Session(state=record_pb2.Session.STATE_STOP)
    async with world.worker():
        await world.send(install(0, device(1), record_id="i1"), record(1, device(1), session=start, record_id="s1"))
        await world.send(record(2, device(1), session=stop), record(3, device(1), session=start, record_id="s2"))
        await world.send(event(4, device(1), "Other", record_id="end"))
        (s1, _) = await world.decided("s1", "end")
        with pytest.raises(grpc.aio.AioRpcError) as missing:
            await world.attribution.GetDecision(decision_pb2.GetDecisionRequest(app_id=APP, conversion_id="s2"))
    assert s1.event_name == "SessionBegin"
    assert missing.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_duplicate_click_of_another_device_is_no_candidate(world: World) -> None:
    async with world.worker():
        await world.send(click(0, device(1), record_id="k1", click={"click_id": "net-1"}))
        await world.send(click(10, device(2), record_id="k2", click={"click_id": "net-1"}))
        await world.send(event(20, device(2), record_id="e1"))
        (e1,) = await world.decided("e1")
    assert e1.reason == decision_pb2.REASON_NO_WINNER
    verdicts = {c.engagement_id: c.verdict for c in e1.candidates}
    assert verdicts == {"k1": decision_pb2.VERDICT_MATCH_KIND_NOT_ALLOWED, "k2": decision_pb2.VERDICT_DUPLICATE_CLICK}


async def test_an_engagement_that_carries_a_hash(world: World) -> None:
    hashed = hashlib.md5(device(7).encode(), usedforsecurity=False).hexdigest()
    async with world.worker():
        await world.send(click(0, hashed, record_id="k1"))
        await world.send(event(10, device(7), record_id="e1"))
        (e1,) = await world.decided("e1")
    assert (e1.outcome, e1.matched_by) == (REENGAGED, decision_pb2.MATCH_KIND_DEVICE_ID)


async def test_an_open_by_universal_link_is_its_own_click(world: World) -> None:
    """It bypassed the redirect: there is no click record, but the link names the tracker."""
    opened = record_pb2.DeepLinkOpen(uri="https://shop.example/sale", tracker_id=RE_TRACKER)
    async with world.worker():
        await world.send(install(0, device(1), record_id="i1"))
        await world.send(record(2 * HOUR, device(1), deep_link_open=opened, record_id="o1"))
        await world.send(event(2 * HOUR + 60, device(1), record_id="e1"))
        o1, e1 = await world.decided("o1", "e1")
    assert (o1.event_name, o1.reason) == ("_Deeplink", decision_pb2.REASON_EVENT_NOT_SELECTED)
    assert (e1.outcome, e1.tracker_id, e1.engagement_id, e1.lookback.seconds) == (REENGAGED, RE_TRACKER, "o1", 61)


async def test_a_record_id_that_comes_back_after_it_was_forgotten_is_decided_once(world: World) -> None:
    async with world.worker():
        await world.send(event(0, device(1), "View", record_id="e1"))
        await world.decided("e1")
        before = await world.pool.fetchval("SELECT count(*) FROM decisions")
        # As a sender's retry after more than 7 days: ingest takes it as new.
        await world.log_pool.execute("DELETE FROM dedupe")
        await world.send(event(0, device(1), "View", record_id="e1"), event(5, device(1), "View", record_id="e2"))
        await world.decided("e2")
        after = await world.pool.fetchval("SELECT count(*) FROM decisions")
    assert (before, after) == (1, 2)


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


async def test_the_api_says_what_is_wrong(world: World) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as wrong:
        await world.attribution.GetDecision(decision_pb2.GetDecisionRequest())
    with pytest.raises(grpc.aio.AioRpcError) as unknown:
        await world.attribution.GetDeviceAttribution(
            device_pb2.GetDeviceAttributionRequest(app_id=APP, device_id="nobody")
        )
    assert wrong.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    violations = from_rpc_error(wrong.value).violations
    assert [(v.field, v.reason) for v in violations] == [("app_id", "REQUIRED"), ("conversion_id", "REQUIRED")]
    assert unknown.value.code() is grpc.StatusCode.NOT_FOUND


async def test_decisions_are_listed_newest_first_in_pages(world: World) -> None:
    async with world.worker():
        await world.send(click(0, device(1), record_id="k1"))
        await world.send(*(event(10 + n, device(1), "View", record_id=f"v{n}") for n in range(5)))
        await world.send(event(100, device(1), record_id="e1"))
        await world.decided("e1")
    listed: list[str] = []
    token = ""
    while True:
        page = await world.attribution.ListDecisions(
            decision_pb2.ListDecisionsRequest(app_id=APP, page_size=2, page_token=token)
        )
        listed += [decision.conversion_id for decision in page.decisions]
        token = page.next_page_token
        if not token:
            break
    by_tracker = await world.attribution.ListDecisions(
        decision_pb2.ListDecisionsRequest(app_id=APP, tracker_id=RE_TRACKER, outcomes=[REENGAGED])
    )
    assert listed == ["e1", "v4", "v3", "v2", "v1", "v0"]
    assert [decision.conversion_id for decision in by_tracker.decisions] == ["e1"]
