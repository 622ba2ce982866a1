"""Candidates of a conversion: what is found under its match keys, and what is left out."""

import asyncio
import hashlib

from libs.domain.lanes import lane_of
from reengage.attribution.v1 import decision_pb2, explanation_pb2
from reengage.ingest.v1 import record_batch_pb2, record_pb2
from reengage.tracker.v1 import app_pb2, snapshot_pb2, status_pb2
from services.attribution.live.candidates import MAX_CONSIDERED
from tests.attribution.conftest import (
    APP,
    COUNTRIES,
    RE_TRACKER,
    World,
    click,
    device,
    event,
    install,
    record,
    tracker_resource,
)

HOUR = 3600
REENGAGED = decision_pb2.OUTCOME_REENGAGED


async def test_a_tab_in_a_user_agent_stops_nobody(world: World) -> None:
    """Agents are stored tab-separated: a tab in a model made every later conversion of that address fail, for ever."""
    agent = "Mozilla/5.0 (Linux; Android 10; SM\tG960F Build/QP1A) AppleWebKit/537.36 Chrome/80 Mobile"
    async with world.worker():
        await world.send(click(0, record_id="k1", user_agent=agent))
        await world.send(event(10, device(1), record_id="e1", user_agent=agent.replace("\t", " ")))
        (e1,) = await world.decided("e1")
    assert (e1.outcome, e1.matched_by) == (REENGAGED, decision_pb2.MATCH_KIND_MODELED)


async def test_client_hints_are_kept_with_the_click_that_they_came_with(world: World) -> None:
    """A5, of a model with a tab as well: the agent is stored tab-separated."""
    frozen = "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 Chrome/126.0.0.0 Mobile Safari/537.36"
    hints = record_pb2.ClientHints(model="Pixel\t8", platform="Android", platform_version="14.0.0")
    async with world.worker():
        await world.send(click(0, record_id="hinted", user_agent=frozen, client_hints=hints))
        await world.send(click(5, record_id="frozen", user_agent=frozen))
        await world.send(
            event(10, device(1), record_id="e1", user_agent="Dalvik/2.1.0 (Linux; U; Android 14; Pixel 8)")
        )
        (e1,) = await world.decided("e1")
    assert (e1.engagement_id, e1.matched_by) == ("hinted", decision_pb2.MATCH_KIND_MODELED)


async def test_of_an_address_that_thousands_share_the_nearest_engagements_are_considered(world: World) -> None:
    """All of them were read, judged and stored with each conversion; and the device's own click lies further back."""
    at_s = 10 * MAX_CONSIDERED + 15
    async with world.worker():
        await world.send(click(0, device(1), record_id="own"))
        await world.send(*(click(10 * n, record_id=f"k{n}") for n in range(1, 3 * MAX_CONSIDERED)))
        await world.send(event(at_s, {"android_id": "ab12"}, record_id="e1"), event(at_s, device(1), record_id="e2"))
        e1, e2 = await world.decided("e1", "e2")
    nearest = {f"k{n}" for n in range(2, 2 * MAX_CONSIDERED + 2)}
    assert {c.engagement_id for c in e1.candidates} == nearest
    assert (e1.engagement_id, e2.engagement_id) == (f"k{MAX_CONSIDERED + 1}", "own")
    assert {c.engagement_id for c in e2.candidates} == nearest | {"own"}


async def test_a_flood_of_clicks_that_cannot_win_hides_none_that_can(world: World) -> None:
    """Else who floods a device with refused clicks, or an address with others' clicks, takes it from the honest one."""
    phone = {"user_agent": "Mozilla/5.0 (Linux; Android 14; Pixel 8) AppleWebKit/537.36"}
    flood = range(1, MAX_CONSIDERED + 5)
    async with world.worker():
        await world.send(click(0, device(1), record_id="honest", ip_address="198.51.100.1"))
        await world.send(*(click(n, device(1), "ua", record_id=f"k{n}") for n in flood))
        await world.send(click(0, record_id="same phone", ip_address="198.51.100.2", **phone))
        await world.send(*(click(n, record_id=f"nat{n}", ip_address="198.51.100.2") for n in flood))
        await world.send(event(100, device(1), record_id="e1", ip_address="198.51.100.3"))
        await world.send(event(100, device(2), record_id="e2", ip_address="198.51.100.2", **phone))
        e1, e2 = await world.decided("e1", "e2")
    assert (e1.engagement_id, e2.engagement_id) == ("honest", "same phone")


async def test_an_engagement_is_spent_in_its_own_app_only(world: World) -> None:
    """Record ids are unique within an app; two apps may share a home lane."""
    other = next(f"app-{n}" for n in range(1000) if lane_of(f"app-{n}") == lane_of(APP))
    theirs = tracker_resource("theirs", network_id="acme", events=["Purchase"], max_conversions_per_engagement=1)
    theirs.tracker.app_id = other
    app = app_pb2.App(app_id=other, platform=app_pb2.PLATFORM_ANDROID, status=status_pb2.STATUS_LIVE)
    ours = tracker_resource("ours", network_id="acme", events=["Purchase"], max_conversions_per_engagement=1)
    await world.feed.publish(snapshot_pb2.Resource(app=app), theirs, ours)

    def of_other(made: record_pb2.Record) -> record_pb2.Record:
        made.app_id = other
        return made

    async with world.worker():
        known = record_batch_pb2.RecordBatchRequest(records=[of_other(click(0, device(1), "theirs", record_id="k1"))])
        while (await world.ingest.RecordBatch(known)).results[0].violations:
            await asyncio.sleep(0.01)  # until ingest has heard of the app
        await world.send(of_other(event(5, device(1), record_id="e1")))
        await world.send(click(0, device(1), "ours", record_id="k1"))
        await world.send(event(5, device(1), record_id="e2"))
        (e2,) = await world.decided("e2")
    assert (e2.outcome, e2.engagement_id) == (REENGAGED, "k1")


async def test_what_no_person_clicked_wins_nothing_and_is_repeated_by_nothing(world: World) -> None:
    """A link preview comes before the click, with the same click id of the network (A9, A6)."""
    link, hundreds = {"click_id": "net-1"}, range(MAX_CONSIDERED + 5)
    async with world.worker():
        await world.send(
            click(0, device(1), record_id="preview", user_agent="WhatsApp/2.23.20.0", click=link),
            click(1, device(1), record_id="fetched", click={**link, "visitor": record_pb2.VISITOR_PREFETCH}),
            click(2, device(1), record_id="person", click=link),
            click(3, device(1), record_id="later preview", user_agent="WhatsApp/2.23.20.0", click=link),
            *(click(4, device(1), record_id=f"b{n}", user_agent="Googlebot/2.1") for n in hundreds),
        )
        await world.send(event(20, device(1), record_id="e1"))
        (e1,) = await world.decided("e1")
        said = await world.attribution.ExplainDecision(
            explanation_pb2.ExplainDecisionRequest(app_id=APP, conversion_id="e1")
        )
        clicked = await world.attribution.ExplainDecision(
            explanation_pb2.ExplainDecisionRequest(app_id=APP, conversion_id="preview")
        )
    assert (e1.outcome, e1.engagement_id) == (REENGAGED, "person")
    verdicts = {c.engagement_id: decision_pb2.Verdict.Name(c.verdict) for c in e1.candidates}
    assert verdicts["b9"] == "VERDICT_BOT"
    sentences = {sentence.split(" on ")[0]: sentence.partition(" UTC ")[2] for sentence in said.sentences}
    assert sentences["Click b9"] == "was refused: the search engine's crawler Googlebot made it, no person."
    assert clicked.summary.endswith(" by a link preview of WhatsApp. No person made it, so it wins nothing.")


async def test_a_traffic_rule_refuses_and_explain_says_which(world: World) -> None:
    german, french = COUNTRIES
    narrowed = tracker_resource(RE_TRACKER, network_id="acme", events=["Purchase"])
    narrowed.tracker.traffic_rules.allowed_countries.append("DE")
    await world.feed.publish(narrowed)
    async with world.worker():
        await world.send(
            click(0, device(1), record_id="german", ip_address=german),
            click(10, device(1), record_id="french", ip_address=french),
            click(20, device(1), record_id="anywhere"),
        )
        await world.send(event(30, device(1), record_id="e1", ip_address=french))
        (e1,) = await world.decided("e1")
        said = await world.attribution.ExplainDecision(
            explanation_pb2.ExplainDecisionRequest(app_id=APP, conversion_id="e1")
        )
    assert (e1.outcome, e1.engagement_id) == (REENGAGED, "german")
    anywhere, french_, _ = (sentence.partition(" UTC ")[2] for sentence in said.sentences)
    assert anywhere == ("was refused: its tracker's traffic rules do not take its country, which is not known.")
    assert french_ == "was refused: its tracker's traffic rules do not take its country, FR."


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
    assert (e1.outcome, e1.tracker_id, e1.engagement_id, e1.lookback.seconds) == (REENGAGED, RE_TRACKER, "o1", 60)
