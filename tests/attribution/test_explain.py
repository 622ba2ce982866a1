"""ExplainDecision: what became of a record and why, in words that hold."""

import asyncio
import itertools
import re
import uuid
from collections.abc import Awaitable
from typing import Any, cast

import grpc
import pytest
from google.protobuf import duration_pb2, timestamp_pb2

from libs.errors import Unavailable, from_rpc_error
from libs.messages import short_name
from libs.periods import Periods
from reengage.attribution.v1 import decision_pb2, explanation_pb2
from reengage.ingest.v1 import record_batch_pb2, record_lookup_pb2, record_pb2
from reengage.postback.v1 import claim_pb2
from reengage.tracker.v1 import app_pb2, event_definition_pb2, snapshot_pb2, status_pb2
from services.attribution.queries import sentences
from services.attribution.queries.background import Background
from services.attribution.queries.explanations import Explanations
from services.attribution.storage.explanations import latest_attribution
from services.attribution.wire.past_rules import PastRules
from tests.attribution.conftest import (
    APP,
    OTHER_RE_TRACKER,
    RE_TRACKER,
    UA_TRACKER,
    World,
    claimed,
    click,
    device,
    event,
    install,
    not_claimed,
    pending,
    record,
    unavailable,
)

HOUR = 3600
Explanation = explanation_pb2.ExplainDecisionResponse


async def explain(world: World, conversion_id: str = "", **fields: Any) -> explanation_pb2.ExplainDecisionResponse:
    request = explanation_pb2.ExplainDecisionRequest(app_id=APP, conversion_id=conversion_id, **fields)
    return await world.attribution.ExplainDecision(request)


async def failure(call: Awaitable[object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    details = from_rpc_error(raised.value)
    return details.code, details.reason


async def version(world: World, conversion_id: str, number: int) -> decision_pb2.Decision:
    """Returns the newest version of a decision, once it is this one."""
    async with asyncio.timeout(10):
        while (newest := (await world.decided(conversion_id))[0]).version < number:
            await asyncio.sleep(0.02)
    return newest


def purchase_resource(*, period_s: int) -> snapshot_pb2.Resource:
    """Returns the event Purchase (MTR 1 h), whose reengagements last so long."""
    purchase = event_definition_pb2.EventDefinition(app_id=APP, event_name="Purchase", status=status_pb2.STATUS_LIVE)
    purchase.min_time_to_reengagement.FromSeconds(HOUR)
    purchase.reengagement_period.FromSeconds(period_s)
    return snapshot_pb2.Resource(event_definition=purchase)


def timeless(text: str) -> str:
    """Returns a text without the day and the hour, which are those of the test."""
    return re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", "T", text)


def text_at(record_: record_pb2.Record, plus_s: int = 0) -> str:
    time = timestamp_pb2.Timestamp(seconds=record_.event_time.seconds + plus_s)
    return time.ToDatetime().strftime("%Y-%m-%d %H:%M:%S UTC")


async def test_a_won_conversion_tells_what_won_and_what_it_beat(world: World) -> None:
    a, purchase = device(1), event(27 * HOUR, device(1), record_id="e1", ip_address="203.0.113.5")
    async with world.worker():
        await world.send(
            install(0, a, record_id="i1"),
            click(10, "", record_id="by-ip", ip_address="203.0.113.5"),
            click(20, a, record_id="older"),
            click(23 * HOUR, a, OTHER_RE_TRACKER, record_id="newer"),
            click(30, a, UA_TRACKER, record_id="other-type"),
        )
        await world.send(purchase)
        await world.decided("e1")
        answer = await explain(world, "e1")
    assert answer.state == Explanation.STATE_DECIDED
    assert answer.receive_time == answer.decision.receive_time
    assert answer.summary.startswith(f"Purchase at {text_at(purchase)} reengaged the device")
    assert timeless(answer.summary) == (
        "Purchase at T reengaged the device for tracker re-other of bolt: click newer came 4 h before it, inside its "
        "window of 30 days (built in), and was matched by device id; 3 other candidates did not win. It was first "
        "received at T."
    )
    assert [candidate.engagement_id for candidate in answer.decision.candidates] == [
        "by-ip",
        "newer",
        "older",
        "other-type",
    ]
    assert [timeless(sentence) for sentence in answer.sentences] == [
        (
            "Click by-ip on tracker re of acme at T (1 day 2 h before the conversion, matched by IP address alone) "
            "lost to click newer, which is on level 1 of the waterfall, this one on level 3: that one was matched by "
            "device id."
        ),
        (
            "Click newer on tracker re-other of bolt at T won: 4 h before the conversion, inside its window of 30 days "
            "(built in), matched by device id."
        ),
        (
            "Click older on tracker re of acme at T (1 day 2 h before the conversion, matched by device id) lost to "
            "click newer, which was more recent: 4 h before the conversion."
        ),
        "Click other-type on tracker ua of bolt at T was refused: its tracker is for the other kind of conversion.",
    ]


async def test_mtr_tells_when_it_ends_and_from_what(world: World) -> None:
    """The clock of a device that was merged begins with the other one's install."""
    first, second = {"adid": device(1)}, {"android_id": "b2"}
    installed = install(0, first, record_id="i1")
    async with world.worker():
        await world.send(installed, event(5, second, "View", record_id="v1"))
        await world.send(event(10, {**first, **second}, "Login", record_id="v2"))
        await world.send(click(20, second, record_id="k1"))
        await world.send(event(30, second, record_id="e1"))
        (e1,) = await world.decided("e1")
        # Another device that becomes this one later has nothing to do with it.
        await world.send(install(25, {"idfv": "c3"}, record_id="i2"))
        await world.send(event(40, {**second, "idfv": "c3"}, "Login", record_id="v3"))
        await world.decided("v3")
        answer = await explain(world, "e1")
    assert e1.reason == decision_pb2.REASON_MTR_NOT_MET
    assert (
        f"the minimum time to reengagement, 1 h, had not passed since the device's latest attribution, install i1 at "
        f"{text_at(installed)}; it lasts until {text_at(installed, HOUR)}." in answer.summary
    )


async def test_of_attributions_at_one_time_mtr_counts_from_that_which_was_received_last(world: World) -> None:
    first, second = {"adid": device(1)}, {"android_id": "b2"}
    async with world.worker():
        await world.send(install(0, first, record_id="i2"))
        await world.decided("i2")
        await world.send(install(0, second, record_id="i1"))
        await world.decided("i1")
        await world.send(event(10, {**first, **second}, "Login", record_id="v2"))
        await world.send(click(20, second, record_id="k1"), event(30, second, record_id="e1"))
        await world.decided("e1")
        answer = await explain(world, "e1")
    assert "latest attribution, install i1 at" in answer.summary


async def test_an_install_that_arrived_late_is_the_latest_attribution(world: World) -> None:
    """The event's device was merged into an older one, which the install showed to be the same."""
    here, there = {"adid": device(1)}, {"android_id": "b2"}
    installed = install(90, {**here, **there}, record_id="i0")
    async with world.worker():
        await world.send(event(0, there, "View", record_id="v0"), click(20, here, record_id="k1"))
        await world.decided("v0")
        await world.send(event(100, here, record_id="e1"))
        (first,) = await world.decided("e1")
        await world.send(installed)
        newest = await version(world, "e1", 2)
        answer = await explain(world, "e1")
        (i0,) = await world.decided("i0")
    assert (first.outcome, newest.reason) == (decision_pb2.OUTCOME_REENGAGED, decision_pb2.REASON_MTR_NOT_MET)
    assert first.device_id != i0.device_id
    assert f"latest attribution, install i0 at {text_at(installed)}; it lasts until" in answer.summary
    assert re.search(
        "It was decided again as version 2 at T, because install i0 arrived .* s after it. Version 1 was REENGAGED to "
        "tracker re of acme by k1.",
        timeless(answer.summary),
    )


async def test_mtr_counts_from_a_reengagement_whose_period_has_passed(world: World) -> None:
    """It is no source any more; and here it arrived after the event that comes too early after it."""
    await world.settings.reached(await world.feed.publish(purchase_resource(period_s=60)))
    async with world.worker():
        await world.send(click(0, device(1), record_id="k1"), event(200, device(1), record_id="e2"))
        await world.decided("e2")
        await world.send(event(10, device(1), record_id="e1"))
        newest = await version(world, "e2", 2)
        answer = await explain(world, "e2")
    assert (newest.reason, newest.source_conversion_id) == (decision_pb2.REASON_MTR_NOT_MET, "")
    assert "latest attribution, Purchase e1 at" in answer.summary
    assert "because Purchase e1 arrived" in answer.summary


async def test_in_the_order_of_receipt_mtr_counts_from_what_came_first(world: World) -> None:
    app = app_pb2.App(app_id=APP, name="Shop", platform=app_pb2.PLATFORM_ANDROID, status=status_pb2.STATUS_LIVE)
    app.settings.late_window.FromSeconds(0)
    await world.settings.reached(await world.feed.publish(snapshot_pb2.Resource(app=app)))
    async with world.worker():
        await world.send(click(0, device(1), record_id="k1"), event(500, device(1), record_id="e1"))
        await world.decided("e1")
        await world.send(event(400, device(1), record_id="e0"), event(9000, device(1), record_id="e2"))
        e0, e2 = await world.decided("e0", "e2")
        answer = await explain(world, "e0")
    assert (e0.reason, e2.outcome) == (decision_pb2.REASON_MTR_NOT_MET, decision_pb2.OUTCOME_REENGAGED)
    assert "latest attribution, Purchase e1 at" in answer.summary, "e2 was received later"


async def test_of_attributions_the_latest_before_a_conversion_goes_before_those_after_it(world: World) -> None:
    """Each is named by its time and its receipt; of those after it only what had been received before it counts."""
    device_id = uuid.uuid4()
    rows = [(100, 100, 1), (130, 400, 2), (140, 130, 9), (300, 150, 3), (400, 900, 4)]
    await Periods(world.pool).ensure([(0, 400)])
    await world.pool.executemany(
        """
        INSERT INTO decisions (lane, sequence, app_id, conversion_id, version, device_id, outcome,
                               conversion_time_us, receive_time_us, retention_days, decision, record)
        VALUES (0, $3::bigint, 'a', $1::bigint || ' ' || $2::bigint, 1, $4, 6, $1, $2, 400, '', '')
        """,
        [(*row, device_id) for row in rows],
    )

    async def latest(since_us: int) -> str | None:
        found = await latest_attribution(
            world.pool, 0, "a", [device_id], since_us=since_us, time_us=200, receive_time_us=200, sequence=9
        )
        return found and found.conversion_id

    assert [await latest(since_us) for since_us in (0, 120, 130, 300)] == ["130 400", "130 400", "300 150", None]


async def test_a_late_engagement_tells_what_it_changed(world: World) -> None:
    async with world.worker():
        await world.send(event(10, device(1), record_id="e1"))
        await world.decided("e1")
        await world.send(click(0, device(1), record_id="k1"))
        await version(world, "e1", 2)
        answer = await explain(world, "e1")
        await world.pool.execute("DELETE FROM engagements")
        without = await explain(world, "e1")
    assert re.search(
        "It was decided again as version 2 at T, because click k1 arrived .* s after it. Version 1 was UNATTRIBUTED "
        r"\(NO_CANDIDATE\).",
        timeless(answer.summary),
    )
    assert answer.reattribution_id == ""
    assert "because click or impression k1 arrived late." in without.summary


async def test_a_session_that_turns_out_to_go_on_is_told_so(world: World) -> None:
    start = record_pb2.Session(state=record_pb2.Session.STATE_START)
    async with world.worker():
        await world.send(record(600, device(1), session=start, record_id="s2"))
        await world.decided("s2")
        await world.send(record(0, device(1), session=start, record_id="s1"))
        newest = await version(world, "s2", 2)
        answer = await explain(world, "s2")
    assert (answer.state, newest.outcome) == (Explanation.STATE_DECIDED, decision_pb2.OUTCOME_CONTINUED)
    assert re.fullmatch(
        "SessionBegin at T is no event: its session goes on with what the device did in the 30 minutes before. It was "
        "decided again as version 2 at T, because SessionBegin s1 arrived .* s after it. Version 1 was "
        r"UNATTRIBUTED \(EVENT_NOT_SELECTED\). It was first received at T.",
        timeless(answer.summary),
    )
    assert not answer.sentences


async def test_a_reattributed_conversion_tells_what_was_said_before(world: World) -> None:
    async with world.worker():
        await world.send(click(0, device(1), record_id="k1"), event(10, device(1), record_id="e1"))
        (e1,) = await world.decided("e1")
    newer = decision_pb2.Decision()
    newer.CopyFrom(e1)
    newer.version, newer.outcome, newer.reason = 2, decision_pb2.OUTCOME_UNATTRIBUTED, decision_pb2.REASON_NO_WINNER
    for name in ("tracker_id", "network_id", "engagement_id"):
        newer.ClearField(name)
    await world.pool.execute(
        """
        INSERT INTO decisions (
            lane, sequence, app_id, conversion_id, version, device_id, outcome, conversion_time_us, receive_time_us,
            decision, record, reattribution_id, retention_days
        )
        SELECT lane, sequence + 1, app_id, conversion_id, 2, device_id, $1, conversion_time_us, receive_time_us, $2,
            record, 'fix-7', retention_days
        FROM decisions
        """,
        newer.outcome,
        newer.SerializeToString(),
    )
    answer = await explain(world, "e1")
    assert (answer.decision.version, answer.reattribution_id) == (2, "fix-7")
    assert (
        "This is version 2, made at T by the re-attribution fix-7. Version 1 was REENGAGED to tracker re of acme by k1"
        in timeless(answer.summary)
    )
    assert not (await explain(world, "k1")).won_conversion_ids, "by the newest version it won nothing"


async def test_a_conversion_is_found_by_device_and_time(world: World, subtests: pytest.Subtests) -> None:
    first, second, third = {"adid": device(1)}, {"android_id": "b2"}, {"idfv": "c3"}
    sent = [
        event(100, first, "View", record_id="a100"),
        event(200, second, "View", record_id="b200"),
        event(300, third, "View", record_id="c300"),
        event(400, {**first, **second, **third}, "View", record_id="all400"),
        event(500, first, "View", record_id="a500"),
    ]
    link = record(350, first, identity_link=record_pb2.IdentityLink(identities={"email": "x"}), record_id="l350")
    async with world.worker():
        for each in (*sent, link):
            await world.send(each)
        decisions = await world.decided("a100", "b200", "c300", "all400", "a500", "l350")
    assert len({decision.device_id for decision in decisions}) == 3

    async def at(seconds: int, device_id: str) -> str:
        time = timestamp_pb2.Timestamp(seconds=sent[0].event_time.seconds - 100 + seconds)
        return (await explain(world, device_id=device_id, time=time)).decision.conversion_id

    expected = {
        0: "a100",
        100: "a100",
        149: "a100",
        150: "a100",
        151: "b200",
        350: "c300",
        361: "all400",
        999: "a500",
    }
    ours = decisions[1].device_id
    for kind, device_id in (("adid", device(1)), ("android_id", "b2"), ("idfv", "c3"), ("ours", ours)):
        with subtests.test(device=kind):
            assert {seconds: await at(seconds, device_id) for seconds in expected} == expected
    assert await failure(explain(world, device_id="nobody", time=sent[0].event_time)) == (
        grpc.StatusCode.NOT_FOUND,
        "DEVICE_NOT_FOUND",
    )


async def test_waiting_for_claims_tells_for_whom_and_until_when(world: World) -> None:
    """And who waits behind it; once decided, who answered and who did not."""
    await world.received.trigger(("_install", "x"), ("_install", "y"), ("_install", "z"))
    await world.received.answer("i1", pending("x"), unavailable("y"), not_claimed("z"))
    async with world.worker(claim_wait_s=600):
        await world.send(install(0, device(1), record_id="i1"), event(5, device(1), record_id="e1"))
        async with asyncio.timeout(10):
            while await world.pool.fetchval("SELECT count(*) FROM pending_conversions") < 2:
                await asyncio.sleep(0.01)
        first, behind = await explain(world, "i1"), await explain(world, "e1")
        refused = unavailable("y", reason=claim_pb2.ClaimAnswer.REASON_HTTP_STATUS, status_code=403)
        await world.received.answer("i1", claimed("x", -60), refused, not_claimed("z"))
        await world.decided("i1", "e1")
        decided = await explain(world, "i1")
    assert first.state == behind.state == Explanation.STATE_WAITING_FOR_CLAIMS
    assert list(first.waiting_for_network_ids) == list(behind.waiting_for_network_ids) == ["x", "y", "z"]
    # The wait begins when it is taken up: on a busy machine some seconds after its receipt.
    ends_s = range(first.receive_time.seconds + 600, first.receive_time.seconds + 660)
    untils = [timestamp_pb2.Timestamp(seconds=at).ToDatetime().strftime("%H:%M:%S UTC") for at in ends_s]
    assert timeless(first.summary) == (
        "The install at T was received at T. It waits for x, y and z to claim it or not, and is decided at T at the "
        "latest."
    )
    assert any(f"{until} at the latest" in first.summary for until in untils)
    assert timeless(behind.summary) == (
        "Purchase at T was received at T. It is decided after i1 of the same device, which waits for x, y and z to "
        "claim it or not."
    )
    assert timeless(decided.sentences[0]) == (
        "The click that x claims at T was refused: its network has no live tracker for it."
    )
    assert decided.sentences[1:] == [
        (
            "y was asked, and refused with status 403. Check the credentials of the SAN account, or of the "
            "configuration. This was decided without its answer."
        ),
        "z was asked, and claims nothing.",
    ]


async def test_an_engagement_tells_what_it_won(world: World) -> None:
    opened = record_pb2.DeepLinkOpen(uri="https://shop.example/sale", tracker_id=RE_TRACKER)
    async with world.worker():
        await world.send(click(0, device(1), record_id="k1"), click(0, device(2), record_id="k2"))
        await world.send(event(10, device(1), record_id="e1"), event(2 * HOUR, device(1), record_id="e2"))
        await world.send(record(3 * HOUR, device(3), deep_link_open=opened, record_id="o1"))
        await world.send(event(3 * HOUR + 1, device(3), record_id="e3"))
        await world.decided("e1", "e2", "e3")
        k1, k2, o1 = await explain(world, "k1"), await explain(world, "k2"), await explain(world, "o1")
    assert k1.state == k2.state == Explanation.STATE_NOT_A_CONVERSION
    assert list(k1.won_conversion_ids) == ["e1", "e2"]
    assert timeless(k1.summary) == ("A click on tracker re at T, which may win conversions. It has won 2 conversions.")
    assert k2.summary.endswith("It has won no conversion.")
    assert (o1.state, list(o1.won_conversion_ids)) == (Explanation.STATE_DECIDED, ["e3"])


async def test_what_is_not_decided_tells_what_it_is(world: World) -> None:
    start = record_pb2.Session(state=record_pb2.Session.STATE_START)
    stop = record_pb2.Session(state=record_pb2.Session.STATE_STOP)
    await world.send(event(0, device(2), record_id="e0"), click(0, device(1), record_id="k0"))
    waiting, clicked = await explain(world, "e0"), await explain(world, "k0")
    assert (waiting.state, clicked.state) == (Explanation.STATE_WAITING, Explanation.STATE_NOT_A_CONVERSION)
    assert timeless(waiting.summary) == (
        "Purchase at T was received at T. It is not decided yet; decisions follow within seconds."
    )
    async with world.worker():
        await world.send(record(1, device(1), session=start, record_id="s1"))
        await world.send(record(2, device(1), session=stop, record_id="s2"))
        await world.send(record(3, device(1), session=start, record_id="s3"), event(4, device(1), record_id="end"))
        await world.decided("end")
        s1, s2, s3 = [await explain(world, record_id) for record_id in ("s1", "s2", "s3")]
    assert [answer.state for answer in (s1, s2, s3)] == [
        Explanation.STATE_DECIDED,
        Explanation.STATE_NOT_A_CONVERSION,
        Explanation.STATE_NOT_A_CONVERSION,
    ]
    assert "It is the end of a session, so nothing is decided about it." in s2.summary
    assert "a session that goes on with what the device did in the 30 minutes before" in s3.summary


async def test_a_refused_record_tells_every_violation(world: World) -> None:
    wrong = event(0, {}, "_install", record_id="r1", ip_address="")
    for _ in range(3):
        await world.ingest.RecordBatch(record_batch_pb2.RecordBatchRequest(records=[wrong]))
    async with asyncio.timeout(10):  # they are written by and by
        while await world.log_pool.fetchval("SELECT count(*) FROM rejected") < 3:
            await asyncio.sleep(0.01)
    answer = await explain(world, "r1")
    assert answer.state == Explanation.STATE_REFUSED
    assert [violation.reason for violation in answer.violations] == ["REQUIRED", "RESERVED_NAME"]
    assert timeless(answer.summary) == (
        "It was refused at T and not stored: device_ids: must hold a usable device id, or there must be an address; "
        "event.event_name: kept as data_…: names beginning with _install are reserved. It had been refused 2 times "
        "before."
    )
    assert len(answer.sentences) == 2
    async with world.worker():
        await world.send(event(0, device(1), record_id="r1"))
        await world.decided("r1")
        assert (await explain(world, "r1")).state == Explanation.STATE_DECIDED, "sent again, and right"


@pytest.mark.slow
async def test_what_nobody_knows_is_not_found(world: World) -> None:
    assert await failure(explain(world, "nothing")) == (grpc.StatusCode.NOT_FOUND, "CONVERSION_NOT_FOUND")
    await world.send(event(0, device(1), record_id="gone"))
    await world.log_pool.execute("DELETE FROM log")  # as an erasure does
    assert await failure(explain(world, "gone")) == (grpc.StatusCode.NOT_FOUND, "CONVERSION_NOT_FOUND")
    world.log_pool.terminate()
    assert await failure(explain(world, "nothing")) == (grpc.StatusCode.UNAVAILABLE, "LOG_UNAVAILABLE")


async def test_an_ingest_that_hangs_is_named(world: World) -> None:
    background = Background(world.pool, world.settings, PastRules(world.settings, world.feed.at))
    explanations = Explanations(world.pool, world.ingest, background, look_up_timeout_s=0.1)
    async with world.log_pool.acquire() as connection, connection.transaction():
        await connection.execute("LOCK TABLE rejected IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(Unavailable) as raised:
            await explanations.of_record(APP, "nothing")
    assert raised.value.reason == "LOG_UNAVAILABLE"


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({}, ["conversion_id"]),
        ({"conversion_id": "c", "device_id": "d"}, ["conversion_id", "time"]),
        ({"device_id": "d"}, ["time"]),
        ({"device_id": "d", "time": timestamp_pb2.Timestamp(seconds=10**17)}, ["time"]),
        ({"conversion_id": "c" * 257}, ["conversion_id"]),
    ],
)
async def test_a_request_that_names_nothing_or_two_is_refused(
    world: World, fields: dict[str, Any], wrong: list[str]
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await explain(world, **fields)
    assert [violation.field for violation in from_rpc_error(raised.value).violations] == wrong


async def test_an_event_that_gives_a_click_back_came_after_it_whatever_its_clock_says(world: World) -> None:
    a = device(1)
    given_back = record_pb2.Event(event_name="Purchase", click_record_id="k1")
    async with world.worker():
        await world.send(install(0, a, record_id="i1"), click(3 * HOUR, a, record_id="k1"))
        await world.send(record(3 * HOUR - 300, a, event=given_back, record_id="early"))
        await world.send(event(3 * HOUR - 300, device(2), record_id="end"))
        (early,) = await world.decided("early")
        explained = await explain(world, "early")
    assert (early.outcome, early.engagement_id, early.lookback.seconds) == (decision_pb2.OUTCOME_REENGAGED, "k1", 0)
    assert dict(early.custom_dimensions) == {"clock_skew": "300"}
    assert "won: before the conversion, which gave it back, whatever the clocks say" in explained.sentences[0]


def candidate(verdict: decision_pb2.Verdict.ValueType, lookback_s: float = 90, **fields: Any) -> decision_pb2.Candidate:
    made = decision_pb2.Candidate(
        engagement_id="k1",
        verdict=verdict,
        engagement_kind=decision_pb2.ENGAGEMENT_KIND_CLICK,
        tracker_id="t",
        network_id="n",
        **{"matched_by": decision_pb2.MATCH_KIND_DEVICE_ID, **fields},
    )
    made.engagement_time.FromSeconds(1_800_000_000)
    made.lookback.FromNanoseconds(int(lookback_s * 1e9))
    return made


WINNER = candidate(decision_pb2.VERDICT_WON, 60)
WINNER.engagement_id = "k0"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (
            candidate(decision_pb2.VERDICT_AFTER_CONVERSION, -90),
            "was refused: it came 1 min 30 s after the conversion.",
        ),
        (
            candidate(decision_pb2.VERDICT_AFTER_CONVERSION, 0),
            "was refused: it came at the same instant as the conversion, not before it.",
        ),
        (
            candidate(decision_pb2.VERDICT_WINDOW_DISABLED, window_layer=decision_pb2.LAYER_TRACKER),
            "was refused: matched by device id, for which the window is off (set on the tracker).",
        ),
        (
            candidate(
                decision_pb2.VERDICT_OUTSIDE_WINDOW,
                8 * 86400,
                window=duration_pb2.Duration(seconds=7 * 86400),
                window_layer=decision_pb2.LAYER_NETWORK,
            ),
            (
                "was refused: 8 days before the conversion, outside its window of 7 days (set for the network), "
                "matched by device id."
            ),
        ),
        (
            candidate(decision_pb2.VERDICT_LOST_TO_MORE_RECENT),
            (
                "(1 min 30 s before the conversion, matched by device id) lost to click k0, which was as recent and "
                "has the lower id."
            ),
        ),
        (
            candidate(decision_pb2.VERDICT_LOST_TO_COMPLETED_VIEW),
            "(1 min 30 s before the conversion, matched by device id) lost to click k0, which was a completed view.",
        ),
        (
            candidate(
                decision_pb2.VERDICT_WON,
                0,
                matched_by=decision_pb2.MATCH_KIND_CLICK_ID,
                window=duration_pb2.Duration(seconds=7 * 86400),
                window_layer=decision_pb2.LAYER_BUILT_IN,
            ),
            (
                "won: before the conversion, which gave it back, whatever the clocks say, "
                "inside its window of 7 days (built in), matched by its click id."
            ),
        ),
        (
            candidate(decision_pb2.VERDICT_TRAFFIC_RULE, traffic_rule=decision_pb2.TRAFFIC_RULE_DATES),
            "was refused: its tracker's traffic rules do not take that time.",
        ),
        (
            candidate(decision_pb2.VERDICT_TRAFFIC_RULE, traffic_rule=decision_pb2.TRAFFIC_RULE_OS_VERSION),
            "was refused: its tracker's traffic rules do not take its version of the operating system.",
        ),
        (
            candidate(decision_pb2.VERDICT_DEVICE_ACTIVE),
            "was refused: the device had been active within the app's inactivity window before it.",
        ),
        (
            candidate(decision_pb2.VERDICT_REPORTED_LATE),
            "was refused: a server reported it after the conversion, later than late_pings of its network allows.",
        ),
        (candidate(cast("decision_pb2.Verdict.ValueType", 99)), "was refused: 99."),
    ],
    ids=lambda value: (
        short_name(decision_pb2.Verdict.DESCRIPTOR, value.verdict) if isinstance(value, decision_pb2.Candidate) else ""
    ),
)
def test_what_is_said_of_a_candidate(said: decision_pb2.Candidate, expected: str) -> None:
    decision = decision_pb2.Decision(candidates=[WINNER, said])
    assert list(sentences.sentences(decision))[1] == f"Click k1 on tracker t of n at 2027-01-15 08:00:00 UTC {expected}"


@pytest.mark.parametrize(
    ("late_pings_us", "expected"),
    [
        (0, "was refused: reported 1 s after the conversion; late_pings of n is 0."),
        (500_000, "was refused: reported 1 s after the conversion; late_pings of n is 0.5 s."),
    ],
)
def test_what_is_known_of_a_late_ping_is_said(late_pings_us: int, expected: str) -> None:
    late = candidate(decision_pb2.VERDICT_REPORTED_LATE)
    known = {"k1": sentences.Known(reported_us=1_000_000, late_pings_us=late_pings_us)}
    said = sentences.sentences(decision_pb2.Decision(candidates=[WINNER]), late_pings=[late], known=known)
    assert list(said)[1] == f"Click k1 on tracker t of n at 2027-01-15 08:00:00 UTC {expected}"


@pytest.mark.parametrize(
    ("late", "expected"),
    [
        (sentences.Late("click", 182_000_000), "click c-17 arrived 3 min 2 s after it"),
        (sentences.Late("click", -1), "click c-17 arrived late"),  # before it, but after others that it changed
        (None, "click or impression c-17 arrived late"),
    ],
)
def test_what_arrived_late_is_said_as_far_as_it_is_known(late: sentences.Late | None, expected: str) -> None:
    decision = decision_pb2.Decision(
        version=2, because=decision_pb2.BECAUSE_LATE_ENGAGEMENT, late_record_id="c-17", install_known=True
    )
    replaced = sentences.Replaced(decision_pb2.Decision(version=1), "", late)
    assert f"It was decided again as version 2 at 1970-01-01 00:00:00 UTC, because {expected}. Version 1" in (
        sentences.summary(decision, replaced=replaced)
    )


def test_what_is_said_of_claims() -> None:
    refused = candidate(decision_pb2.VERDICT_GRANULAR_DATA_NOT_ALLOWED)
    refused.engagement_id, refused.tracker_id, refused.matched_by = "claim:n", "", decision_pb2.MATCH_KIND_CLAIM
    decision = decision_pb2.Decision(candidates=[refused], claims_unavailable=["x-ios"])
    silent = unavailable("x-ios", reason=claim_pb2.ClaimAnswer.REASON_UNDER_WAY)
    assert list(sentences.sentences(decision, answers=[not_claimed("y-ios"), silent])) == [
        "The click that n claims at 2027-01-15 08:00:00 UTC was refused: the user does not share granular data.",
        "y-ios was asked, and claims nothing.",
        (
            "x-ios was asked, and had not answered when the time was up (REENGAGE_CLAIM_WAIT_S). This was decided "
            "without its answer."
        ),
    ]


@pytest.mark.parametrize("name", decision_pb2.Verdict.keys()[1:])
def test_every_verdict_has_words(name: str) -> None:
    lost = candidate(decision_pb2.Verdict.Value(name))
    *_, sentence = sentences.sentences(decision_pb2.Decision(candidates=[WINNER, lost]))
    assert name.removeprefix("VERDICT_") not in sentence


@pytest.mark.parametrize("name", decision_pb2.Because.keys()[1:])
def test_every_kind_of_late_record_has_words(name: str) -> None:
    decision = decision_pb2.Decision(version=2, because=decision_pb2.Because.Value(name))
    replaced = sentences.Replaced(decision_pb2.Decision(version=1), "")
    assert "because record" not in sentences.summary(decision, replaced=replaced)


@pytest.mark.parametrize("name", decision_pb2.Reason.keys()[1:])
def test_every_reason_has_words(name: str) -> None:
    decision = decision_pb2.Decision(
        outcome=decision_pb2.OUTCOME_UNATTRIBUTED, reason=decision_pb2.Reason.Value(name), install_known=True
    )
    assert name.removeprefix("REASON_") not in sentences.summary(decision)


@pytest.mark.parametrize(
    ("invalidity", "words"),
    [
        ("BAD_SIGNATURE", "its signature was wrong, or its link had expired (BAD_SIGNATURE)"),
        ("TOO_LATE", "a server reported it more than 12 hours late (TOO_LATE)"),
        ("TIME_NOT_READABLE", "a server gave a time for it that cannot be read (TIME_NOT_READABLE)"),
        ("UNSPECIFIED", "it was marked as invalid"),
    ],
)
async def test_what_is_invalid_tells_why(world: World, invalidity: str, words: str) -> None:
    a, number = device(1), record_pb2.Invalidity.Value(f"INVALIDITY_{invalidity}")
    said = {"invalid": not number, "invalidity": number}
    async with world.worker():
        await world.send(install(0, a, record_id="i1"), click(23 * HOUR, a, record_id="k1", click=said))
        await world.send(event(27 * HOUR, a, record_id="e1"))
        (e1,) = await world.decided("e1")
        answer, of_click = await explain(world, "e1"), await explain(world, "k1")
    assert e1.reason == decision_pb2.REASON_NO_WINNER
    assert [each.verdict for each in e1.candidates] == [decision_pb2.VERDICT_BLOCKLISTED]
    assert answer.sentences[0].endswith(f"was refused: {words}.")
    if number:
        assert of_click.summary.endswith(f"{words[0].upper()}{words[1:]}, so it wins nothing.")


@pytest.mark.parametrize("kind", ["click", "impression"])
async def test_what_is_blocked_tells_why(world: World, kind: str) -> None:
    app = app_pb2.App(app_id=APP, name="Shop", platform=app_pb2.PLATFORM_ANDROID, status=status_pb2.STATUS_LIVE)
    app.settings.blocklist.add(device_id=device(1), reason="a farm of phones")
    await in_use_by_ingest(world, await world.feed.publish(snapshot_pb2.Resource(app=app)))
    a = device(1)
    seen = record(26 * HOUR, a, record_id="k1", impression=record_pb2.Impression(tracker_id=RE_TRACKER))
    async with world.worker():
        engaged = click(26 * HOUR, a, record_id="k1") if kind == "click" else seen
        await world.send(install(0, a, record_id="i1"), engaged)
        await world.send(event(27 * HOUR, a, record_id="e1"))
        (e1,) = await world.decided("e1")
        answer, of_it = await explain(world, "e1"), await explain(world, "k1")
    assert [each.verdict for each in e1.candidates] == [decision_pb2.VERDICT_BLOCKLISTED]
    words = "he app's blocklist names its device: a farm of phones (BLOCKED_DEVICE_ID)"
    assert answer.sentences[0].endswith(f"was refused: t{words}.")
    assert of_it.summary.endswith(f"T{words}, so it wins nothing.")


async def in_use_by_ingest(world: World, revision: int) -> None:
    """Waits until ingest goes by the settings of a revision."""

    async def is_used(number: int) -> bool:
        await world.send(click(0, "", record_id=f"asks-{number}", ip_address="198.51.100.200"))
        request = record_lookup_pb2.LookUpRecordRequest(app_id=APP, record_id=f"asks-{number}")
        return (await world.ingest.LookUpRecord(request)).record.settings_revision >= revision

    numbers = itertools.count()
    async with asyncio.timeout(10):
        while not await is_used(next(numbers)):
            await asyncio.sleep(0.02)
