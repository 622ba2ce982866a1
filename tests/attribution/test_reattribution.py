"""Re-attribution and what-if as they are called: new versions, histories, what is offered, stops and crashes."""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import grpc
import pytest
from google.protobuf import timestamp_pb2
from hypothesis import given
from hypothesis import strategies as st

from libs.db import Pool
from libs.domain.lanes import LANES
from libs.domain.snapshots import Follower
from libs.errors import from_rpc_error
from reengage.attribution.v1 import (
    credit_total_pb2,
    decision_pb2,
    device_pb2,
    offer_pb2,
    reattribution_pb2,
    what_if_pb2,
)
from reengage.tracker.v1 import (
    account_pb2,
    app_pb2,
    event_definition_pb2,
    network_settings_pb2,
    snapshot_pb2,
    status_pb2,
)
from services.attribution.decision.history import DeviceHistory
from services.attribution.decision.rules import AppRules
from services.attribution.jobs.reattribution import Reattributions, Reattributor, ReattributorConfig
from services.attribution.live.owned_lanes import OwnedLanes
from services.attribution.pace import Pace
from services.attribution.redecide.what_if import WhatIfConfig
from services.attribution.storage.lanes import read_owned_lanes
from services.attribution.storage.reattributions import State
from services.attribution.storage.replay import Period
from services.attribution.wire.decisions import says
from services.attribution.wire.reattributions import reattribution_message
from services.attribution.wire.rulebook import Rulebook
from tests.attribution.conftest import (
    APP,
    COUNTRIES,
    OTHER_RE_TRACKER,
    RE_TRACKER,
    UA_TRACKER,
    World,
    claimed,
    click,
    device,
    event,
    install,
    tracker_resource,
)
from tests.attribution.stories import ALL_TIME, Story, examples, findable, owning, seeds, story_of
from tests.attribution.strategies import scenario
from tests.attribution.test_replay import replay, unlimited, with_index_of
from tests.conftest import Database
from tests.support.eventually import eventually
from tests.support.feed import serve_settings
from tests.support.processes import attribution_process

HOUR = 3600
FAR = timestamp_pb2.Timestamp(seconds=4_000_000_000)
LONG_AGO = timestamp_pb2.Timestamp(seconds=0)
RUNNING = reattribution_pb2.Reattribution.STATE_RUNNING
DONE = reattribution_pb2.Reattribution.STATE_DONE
CANCELLED = reattribution_pb2.Reattribution.STATE_CANCELLED


# Through the store, with random stories.


def settings_of(rules: AppRules) -> "Follower[Rulebook]":
    """Returns these rules as the settings that are in use."""
    current = SimpleNamespace(apps={rules.app.app_id: rules})
    return cast("Follower[Rulebook]", SimpleNamespace(current=current))


async def reattribute(
    story: Story, rules: AppRules, *, random: Random, crashes: bool
) -> reattribution_pb2.Reattribution:
    """Re-attributes all of a story, by a worker that is stopped now and then in the middle, if it `crashes`."""
    using = settings_of(rules)
    jobs = Reattributions(story.pool, using)
    period = Period(app_id=story.app_id, start_us=ALL_TIME[0], end_us=ALL_TIME[1])
    job = await jobs.start(period, "r1", send_postbacks=False)
    worker = Reattributor(
        story.pool, using, Pace(), lambda: 1 << 50, ReattributorConfig(page_size=random.choice((1, 2, 1000)))
    )
    while job.state is State.RUNNING:
        # As a worker begins anew: all it knows is what is stored.
        lanes = OwnedLanes(story.pool, "test", await read_owned_lanes(story.pool, "test", range(LANES)))
        running = asyncio.ensure_future(worker.run(lanes))
        turns = random.randint(0, 60)
        while job.state is State.RUNNING and not (crashes and turns == 0):
            turns -= 1
            await asyncio.sleep(0.0005)
            job = await jobs.get(story.app_id, "r1")
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    return reattribution_message(job)


async def decided(story: Story) -> dict[str, decision_pb2.Decision]:
    """Returns the newest versions of all but sessions that turned out to have gone on (D12)."""
    newest = await story.newest()
    return {each: d for each, d in newest.items() if d.outcome != decision_pb2.OUTCOME_CONTINUED}


async def histories(story: Story) -> set[tuple[Any, ...]]:
    """Returns what every device is credited to, whatever its id, as far as a record that still comes may ask for it."""
    now_us = story.logged[-1].entry.receive_time_us
    rows = await story.pool.fetch("SELECT history FROM devices WHERE app_id = $1", story.app_id)
    return {DeviceHistory.from_json(row["history"]).compacted(now_us).attributions for row in rows}


@examples(40)
@given(seed=seeds, crashes=st.booleans())
@pytest.mark.slow
async def test_it_leaves_what_the_new_settings_would_have_made_from_the_start(
    pool: Pool, seed: int, crashes: bool
) -> None:
    random = Random(seed)
    told, other = unlimited(findable(scenario(random))), unlimited(scenario(random))
    anew = replace(
        told,
        app=with_index_of(told.app, other.app),
        networks=other.networks,
        trackers=other.trackers,
        events=other.events,
    )
    order = random.randint(0, 1 << 60)
    async with owning(pool) as lanes:
        story, afresh = story_of(told, lanes, pool), story_of(anew, lanes, pool)
        await story.live(Random(order))
        await afresh.live(Random(order))
        rules = story.rules_of(anew)
        before, expected = await decided(story), await decided(afresh)
        would_change = [c for replayed in await replay(story, rules) for c in replayed.changed]
        job = await reattribute(story, rules, random=random, crashes=crashes)
        after = await decided(story)
        versions = {conversion_id: decision.version for conversion_id, decision in after.items()}
        changed = {c.stored.conversion_id: c.decision for c in would_change}
        assert versions == {each: decision.version + (each in changed) for each, decision in before.items()}
        assert all(decision is not None and says(after[each], decision) for each, decision in changed.items())
        assert (job.conversion_count, job.changed_count) == (len(before), len(changed))
        assert {(d.conversion_id, d.outcome, d.reason, d.tracker_id, d.campaign_id) for d in after.values()} == {
            (d.conversion_id, d.outcome, d.reason, d.tracker_id, d.campaign_id) for d in expected.values()
        }
        credited = sum(sum_of(total.before) for total in job.totals), sum(sum_of(total.after) for total in job.totals)
        assert credited == (counted(before.values()), counted(after.values()))
        assert await histories(story) == await histories(afresh)
        assert not [c for replayed in await replay(story, rules) for c in replayed.changed], "it is the settings' now"


def sum_of(counts: credit_total_pb2.CreditCounts) -> int:
    return counts.installs + counts.reengagements + counts.credited_events


def counted(decisions: Any) -> int:
    return sum(decision.outcome != decision_pb2.OUTCOME_DUPLICATE for decision in decisions)


# As it is called.


def what_if(*changes: snapshot_pb2.Resource, **fields: Any) -> what_if_pb2.WhatIfRequest:
    return what_if_pb2.WhatIfRequest(
        **{"app_id": APP, "start_time": LONG_AGO, "end_time": FAR, "overrides": changes, **fields}
    )


def reattribution(reattribution_id: str = "r1", **fields: Any) -> reattribution_pb2.ReattributeRequest:
    return reattribution_pb2.ReattributeRequest(
        **{"app_id": APP, "reattribution_id": reattribution_id, "start_time": LONG_AGO, "end_time": FAR, **fields}
    )


async def ended(world: World, reattribution_id: str = "r1") -> reattribution_pb2.Reattribution:
    request = reattribution_pb2.GetReattributionRequest(app_id=APP, reattribution_id=reattribution_id)
    while (found := (await world.attribution.GetReattribution(request)).reattribution).state == RUNNING:
        await asyncio.sleep(0.01)
    return found


def working(world: World) -> Any:
    """Returns a worker that re-attributes, too."""
    job = Reattributor(world.pool, world.settings, world.pace, lambda: 1 << 50)
    return world.worker(jobs={"reattributor": job.run})


class Watched(Reattributor):
    """A re-attributor that does something after its first step."""

    def __init__(
        self, world: World, then: Callable[[], Awaitable[None]], config: ReattributorConfig | None = None
    ) -> None:
        super().__init__(world.pool, world.settings, world.pace, lambda: 1 << 50, config or ReattributorConfig())
        self._then: Callable[[], Awaitable[None]] | None = then

    async def _step(self, shared: OwnedLanes, job: Any, some: Sequence[Any]) -> Any:
        done = await super()._step(shared, job, some)
        if self._then is not None:
            then, self._then = self._then, None
            await then()
        return done


async def a_story(world: World) -> None:
    """Returns a story of two devices: install by `ua`, reengagement by `re` and a credited event; an event."""
    one, two = device(1), device(2)
    await world.send(click(0, one, UA_TRACKER, record_id="k1"))
    await world.send(install(60, one, record_id="i1"))
    await world.send(click(HOUR, one, OTHER_RE_TRACKER, record_id="k2"), click(HOUR + 60, one, record_id="k3"))
    await world.send(event(2 * HOUR, one, record_id="e1"), event(2 * HOUR + 60, one, "View", record_id="e2"))
    await world.send(event(2 * HOUR, two, "View", record_id="s1", ip_address="192.0.2.9"))
    await world.decided("e2", "s1")


NARROW = tracker_resource(RE_TRACKER, network_id="acme", events=["Purchase"])
NARROW.tracker.windows.click_device.duration.FromSeconds(600)
"""The click of `a_story` that wins is 59 minutes before its event."""


async def test_what_if_says_what_would_change_and_writes_nothing(world: World) -> None:
    async with working(world):
        await a_story(world)
    before = await everything(world.pool)
    unchanged = [part async for part in world.attribution.WhatIf(what_if())]
    parts = [part async for part in world.attribution.WhatIf(what_if(NARROW))]
    assert await everything(world.pool) == before
    assert [(len(part.changed), part.conversion_count) for part in unchanged] == [(0, 4)]
    assert [part.estimated_total_count for part in parts] == [4]
    changed = {pair.before.conversion_id: pair for part in parts for pair in part.changed}
    assert changed.keys() == {"e1", "e2"}
    e1, e2 = changed["e1"], changed["e2"]
    assert (e1.before.tracker_id, e1.after.tracker_id, e1.after.engagement_id) == (RE_TRACKER, OTHER_RE_TRACKER, "k2")
    assert (e2.before.tracker_id, e2.after.tracker_id) == (RE_TRACKER, OTHER_RE_TRACKER)
    assert (e1.after.version, e1.after.device_id, e1.after.event_name) == (2, e1.before.device_id, "Purchase")
    totals = {(t.network_id, t.tracker_id): (counts_of(t.before), counts_of(t.after)) for t in parts[-1].totals}
    assert totals == {
        ("bolt", UA_TRACKER): ((1, 0, 0), (1, 0, 0)),
        ("acme", RE_TRACKER): ((0, 1, 1), (0, 0, 0)),
        ("bolt", OTHER_RE_TRACKER): ((0, 0, 0), (0, 1, 1)),
        ("", ""): ((0, 0, 1), (0, 0, 1)),
    }
    assert parts[-1].resume_token == ""


async def test_what_if_shows_what_traffic_rules_would_have_refused(world: World) -> None:
    """The country is the one that was known when the click was received."""
    german, french = COUNTRIES
    async with working(world):
        await world.send(click(0, device(1), record_id="k1", ip_address=german))
        await world.send(click(0, device(2), record_id="k2", ip_address=french))
        await world.send(event(HOUR, device(1), record_id="e1"), event(HOUR, device(2), record_id="e2"))
        await world.decided("e1", "e2")
    narrowed = tracker_resource(RE_TRACKER, network_id="acme", events=["Purchase"])
    narrowed.tracker.traffic_rules.allowed_countries.append("DE")
    changed = [pair async for part in world.attribution.WhatIf(what_if(narrowed)) for pair in part.changed]
    assert [pair.after.conversion_id for pair in changed] == ["e2"]
    (refused,) = changed[0].after.candidates
    assert refused.verdict == decision_pb2.VERDICT_TRAFFIC_RULE
    assert refused.traffic_rule == decision_pb2.TRAFFIC_RULE_COUNTRY


async def test_what_if_believes_pings_and_late_records_as_the_changed_settings_do(world: World) -> None:
    """D12: a ping and a click that came after their events, and win them or not."""
    ping, seen = {"is_ping": True}, {"is_ping": False}
    async with working(world):
        await world.send(event(HOUR, device(1), record_id="e1"), event(HOUR, device(2), record_id="e2"))
        await world.decided("e1", "e2")
        await world.send(click(0, device(1), record_id="k1", click=ping))
        await world.send(click(0, device(2), record_id="k2", click=seen))

        async def is_decided_again() -> bool:
            (e2,) = await world.decided("e2")
            return e2.version == 2

        await eventually(is_decided_again)
    trusted = network_settings_pb2.NetworkSettings(app_id=APP, network_id="acme")
    trusted.late_pings.FromSeconds(HOUR)
    unforgiving = app_pb2.App(app_id=APP, name="Shop", platform=app_pb2.PLATFORM_ANDROID)
    unforgiving.status = status_pb2.STATUS_LIVE
    unforgiving.settings.late_window.FromSeconds(0)

    async def changed(resource: snapshot_pb2.Resource) -> list[tuple[str, str]]:
        parts = [part async for part in world.attribution.WhatIf(what_if(resource))]
        return [(pair.after.conversion_id, pair.after.engagement_id) for part in parts for pair in part.changed]

    assert await changed(snapshot_pb2.Resource(network_settings=trusted)) == [("e1", "k1")]
    assert await changed(snapshot_pb2.Resource(app=unforgiving)) == [("e2", "")]


async def test_what_if_of_a_part_of_the_time_leaves_the_rest_as_it_is(world: World) -> None:
    async with working(world):
        await a_story(world)
    (e2,) = await world.decided("e2")
    request = what_if(NARROW, start_time=e2.conversion_time)
    (part,) = [part async for part in world.attribution.WhatIf(request)]
    assert (part.conversion_count, len(part.changed)) == (1, 0), "the reengagement before it stays, and so its source"


@pytest.mark.parametrize("what_if_config", [pytest.param(WhatIfConfig(page_size=3), id="small pages")])
async def test_what_if_goes_on_where_it_was(world: World) -> None:
    async with working(world):
        for number in range(10):
            await world.send(click(0, device(number), record_id=f"k{number}"))
        await world.send(*(event(HOUR, device(number), record_id=f"e{number}") for number in range(10)))
        await world.decided(*(f"e{number}" for number in range(10)))
    whole = [part async for part in world.attribution.WhatIf(what_if(NARROW))]
    assert (len(whole), sum(part.conversion_count for part in whole)) == (4, 10)
    token = ""
    seen: list[what_if_pb2.WhatIfResponse] = []
    while not seen or token:
        part, *_ = [part async for part in world.attribution.WhatIf(what_if(NARROW, resume_token=token))]
        seen.append(part)
        token = part.resume_token
    without_times = [[pair.after.conversion_id for pair in part.changed] for part in seen]
    assert without_times == [[pair.after.conversion_id for pair in part.changed] for part in whole]
    assert sorted(each for ids in without_times for each in ids) == [f"e{number}" for number in range(10)]


@pytest.mark.parametrize("what_if_config", [pytest.param(WhatIfConfig(max_response_bytes=1), id="small responses")])
async def test_a_part_that_would_be_too_large_comes_in_several(world: World) -> None:
    async with working(world):
        await a_story(world)
    parts = [part async for part in world.attribution.WhatIf(what_if(NARROW))]
    assert [len(part.changed) for part in parts] == [1, 1]
    again = [part async for part in world.attribution.WhatIf(what_if(NARROW, resume_token=parts[0].resume_token))]
    assert parts[0].conversion_count + sum(part.conversion_count for part in again) == 4


async def test_what_if_names_every_wrong_field(world: World) -> None:
    foreign = tracker_resource("t9", network_id="acme")
    foreign.tracker.app_id = "other"
    stray = tracker_resource("t8", network_id="nowhere")
    account = snapshot_pb2.Resource(account=account_pb2.Account(account_id="a"))
    assert await refusal(world.attribution.WhatIf(what_if(foreign, stray, account, snapshot_pb2.Resource()))) == (
        "INVALID_ARGUMENT",
        [
            ("overrides[0].tracker.app_id", "OTHER_APP"),
            ("overrides[1].tracker.network_id", "NOT_FOUND"),
            ("overrides[2].account", "NOT_ALLOWED"),
            ("overrides[3].resource", "NOT_ALLOWED"),
        ],
    )
    assert await refusal(world.attribution.WhatIf(what_if_pb2.WhatIfRequest(resume_token="x"))) == (
        "INVALID_ARGUMENT",
        [
            ("app_id", "REQUIRED"),
            ("start_time", "REQUIRED"),
            ("end_time", "REQUIRED"),
            ("resume_token", "INVALID_TOKEN"),
        ],
    )
    assert await refusal(world.attribution.WhatIf(what_if(app_id="nobody"))) == ("APP_NOT_FOUND", [])


async def test_what_if_refuses_what_tracker_would_not_take(world: World) -> None:
    wrong_event = event_definition_pb2.EventDefinition(app_id=APP, event_name="Order\0")
    wrong_event.min_time_to_reengagement.FromSeconds(-5)
    wrong_event.reengagement_period.FromSeconds(315_576_000_000)
    wrong = tracker_resource("t" * 257, network_id="acme", events=["Order", "\0"], max_conversions_per_engagement=-1)
    wrong.tracker.windows.click_device.duration.FromSeconds(31 * 86_400)
    wrong.tracker.windows.impression_ip.unlimited = True
    wrong.tracker.create_time.seconds = 1 << 60
    wrong.tracker.traffic_rules.min_os_version = "17.x"
    wrong.tracker.traffic_rules.allowed_device_types.append(9)  # type: ignore[arg-type]
    app = app_pb2.App(app_id=APP)
    app.settings.windows.event_association.duration.FromSeconds(59)
    app.settings.retention.FromSeconds(0)
    app.settings.late_window.FromSeconds(7 * 86_400 + 1)
    app.settings.inactivity_window.FromSeconds(-1)
    pings = network_settings_pb2.NetworkSettings(app_id=APP, network_id="acme")
    pings.late_pings.FromSeconds(12 * HOUR + 1)
    changes = (
        snapshot_pb2.Resource(event_definition=wrong_event),
        wrong,
        snapshot_pb2.Resource(app=app),
        snapshot_pb2.Resource(network_settings=pings),
    )
    assert await refusal(world.attribution.WhatIf(what_if(*changes))) == (
        "INVALID_ARGUMENT",
        [
            ("overrides[0].event_definition.event_name", "INVALID_TEXT"),
            ("overrides[0].event_definition.min_time_to_reengagement", "OUT_OF_RANGE"),
            ("overrides[0].event_definition.reengagement_period", "OUT_OF_RANGE"),
            ("overrides[1].tracker.tracker_id", "TOO_LONG"),
            ("overrides[1].tracker.events[1]", "INVALID_TEXT"),
            ("overrides[1].tracker.create_time", "INVALID_TIME"),
            ("overrides[1].tracker.windows.click_device.duration", "OUT_OF_RANGE"),
            ("overrides[1].tracker.windows.impression_ip.unlimited", "NOT_ALLOWED"),
            ("overrides[1].tracker.max_conversions_per_engagement", "OUT_OF_RANGE"),
            ("overrides[1].tracker.traffic_rules.min_os_version", "INVALID_VERSION"),
            ("overrides[1].tracker.traffic_rules.allowed_device_types[0]", "UNKNOWN_VALUE"),
            ("overrides[2].app.settings.windows.event_association.duration", "OUT_OF_RANGE"),
            ("overrides[2].app.settings.retention", "OUT_OF_RANGE"),
            ("overrides[2].app.settings.late_window", "OUT_OF_RANGE"),
            ("overrides[2].app.settings.inactivity_window", "OUT_OF_RANGE"),
            ("overrides[3].network_settings.late_pings", "OUT_OF_RANGE"),
        ],
    )


@pytest.mark.parametrize("what_if_config", [pytest.param(WhatIfConfig(max_running=1), id="one at a time")])
async def test_so_many_what_ifs_at_once_and_no_more(world: World) -> None:
    async with world.pool.acquire() as connection, connection.transaction():
        await connection.execute("LOCK TABLE decisions IN ACCESS EXCLUSIVE MODE")
        calls = [world.attribution.WhatIf(what_if()) for _ in range(2)]
        ends = [asyncio.ensure_future(refusal(call)) for call in calls]
        refused, waiting = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        assert [end.result() for end in refused] == [("TOO_MANY_REPLAYS", [])]
        for call in calls:
            call.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    while await refusal(world.attribution.WhatIf(what_if())) is not None:
        await asyncio.sleep(0.01)  # who went away leaves room


async def test_a_reattribution_writes_versions_and_moves_the_device(world: World) -> None:
    async with working(world):
        await a_story(world)
        while len(world.received.conversions) < 4:
            await asyncio.sleep(0.01)
        await world.settings.reached(await world.feed.publish(NARROW))
        started = await world.attribution.Reattribute(reattribution())
        assert started.reattribution.estimated_total_count == 4
        job = await ended(world)
        again = [part async for part in world.attribution.WhatIf(what_if())]
        e1, e2 = await world.decided("e1", "e2")
        listed = await world.attribution.ListDecisions(decision_pb2.ListDecisionsRequest(app_id=APP))
        shown = await world.attribution.GetDeviceAttribution(
            device_pb2.GetDeviceAttributionRequest(app_id=APP, device_id=device(1))
        )
        await world.send(event(3 * HOUR, device(1), "View", record_id="e3"))
        (e3,) = await world.decided("e3")
        while "e3" not in world.received.conversions:  # which comes after all others
            await asyncio.sleep(0.01)
    assert (job.state, job.conversion_count, job.changed_count) == (DONE, 4, 2)
    assert [(part.estimated_total_count, part.conversion_count) for part in again] == [(4, 4)], "not each version"
    assert (e1.version, e1.tracker_id, e1.engagement_id) == (2, OTHER_RE_TRACKER, "k2")
    assert (e2.version, e2.tracker_id, e2.reason) == (2, OTHER_RE_TRACKER, decision_pb2.REASON_EVENT_NOT_SELECTED)
    assert [(d.conversion_id, d.version) for d in listed.decisions if d.conversion_id == "e1"] == [("e1", 2), ("e1", 1)]
    assert (shown.current.tracker_id, shown.install.tracker_id) == (OTHER_RE_TRACKER, UA_TRACKER)
    assert (e3.tracker_id, e3.version) == (OTHER_RE_TRACKER, 1), "what comes after it goes by the new source"
    handed_now = {key: conversion.decision.version for key, conversion in world.received.conversions.items()}
    assert handed_now == dict.fromkeys(("i1", "e1", "e2", "s1", "e3"), 1), "nobody asked to send"
    versions = await world.pool.fetch("SELECT engagement, record FROM decisions WHERE version = 2 ORDER BY sequence")
    assert all(b"k2" in row["engagement"] and row["record"] for row in versions), "networks want the click beside it"


async def test_unchanged_settings_write_nothing(world: World) -> None:
    async with working(world):
        await a_story(world)
        before = await everything(world.pool)
        await world.attribution.Reattribute(reattribution())
        job = await ended(world)
        assert (job.state, job.conversion_count, job.changed_count) == (DONE, 4, 0)
        assert await everything(world.pool) == before


async def test_postbacks_are_offered_and_sent_when_asked(world: World) -> None:
    async with working(world):
        await a_story(world)
        while len(world.received.conversions) < 4:
            await asyncio.sleep(0.01)
        del world.received.conversions["e1"]  # as if no configuration had wanted it before
        await world.settings.reached(await world.feed.publish(NARROW))
        await world.attribution.Reattribute(reattribution())
        await ended(world)
        named = {"app_id": APP, "reattribution_id": "r1"}
        token = ""
        offered: list[offer_pb2.OfferedPostback] = []
        while not offered or token:
            page = await world.attribution.ListOfferedPostbacks(
                offer_pb2.ListOfferedPostbacksRequest(**named, page_size=1, page_token=token)
            )
            offered += page.postbacks
            token = page.next_page_token
        assert {(each.conversion_id, each.effect) for each in offered} == {
            ("e1", offer_pb2.OfferedPostback.EFFECT_WOULD_BE_SENT),
            ("e2", offer_pb2.OfferedPostback.EFFECT_WAS_SENT),
        }
        assert "e1" not in world.received.conversions, "offering sends nothing"
        request = offer_pb2.SendOfferedPostbacksRequest(**named)
        sent = await world.attribution.SendOfferedPostbacks(request)
        again = await world.attribution.SendOfferedPostbacks(request)
        assert (sent.created_count, again.created_count) == (1, 0)
        assert world.received.conversions["e1"].decision.version == 2


async def test_postbacks_go_out_by_themselves_when_asked_for_at_once(world: World) -> None:
    async with working(world):
        await a_story(world)
        while len(world.received.conversions) < 4:
            await asyncio.sleep(0.01)
        world.received.conversions.clear()
        await world.settings.reached(await world.feed.publish(NARROW))
        await world.attribution.Reattribute(reattribution(send_postbacks=True))
        while world.received.conversions.keys() != {"e1", "e2"}:
            await asyncio.sleep(0.01)
    assert {conversion.decision.version for conversion in world.received.conversions.values()} == {2}


async def test_starting_is_repeat_safe_and_one_runs_at_a_time(world: World) -> None:
    call = world.attribution.Reattribute
    first = await call(reattribution())
    again = await call(reattribution())
    assert first == again
    assert (first.reattribution.state, first.reattribution.reattribution_id) == (RUNNING, "r1")
    assert await refusal(call(reattribution(send_postbacks=True))) == ("REATTRIBUTION_EXISTS", [])
    assert await refusal(call(reattribution("r2"))) == ("REATTRIBUTION_RUNNING", [])
    named = offer_pb2.SendOfferedPostbacksRequest(app_id=APP, reattribution_id="r1")
    assert await refusal(world.attribution.SendOfferedPostbacks(named)) == ("REATTRIBUTION_RUNNING", [])
    cancel = reattribution_pb2.CancelReattributionRequest(app_id=APP, reattribution_id="r1")
    cancelled = (await world.attribution.CancelReattribution(cancel)).reattribution
    assert cancelled.state == CANCELLED
    assert (await world.attribution.CancelReattribution(cancel)).reattribution == cancelled
    for number in range(2, 5):
        await call(reattribution(f"r{number}"))
        await world.attribution.CancelReattribution(
            reattribution_pb2.CancelReattributionRequest(app_id=APP, reattribution_id=f"r{number}")
        )
    token = ""
    listed: list[str] = []
    while not listed or token:
        page = await world.attribution.ListReattributions(
            reattribution_pb2.ListReattributionsRequest(app_id=APP, page_size=3, page_token=token)
        )
        listed += [each.reattribution_id for each in page.reattributions]
        token = page.next_page_token
    assert listed == ["r4", "r3", "r2", "r1"]
    async with working(world):
        await a_story(world)  # what was cancelled is left alone
    assert (await ended(world)).conversion_count == 0


async def test_a_reattribution_is_refused_with_every_wrong_field(world: World) -> None:
    wrong = reattribution("a b", start_time=FAR, end_time=LONG_AGO)
    assert await refusal(world.attribution.Reattribute(wrong)) == (
        "INVALID_ARGUMENT",
        [("end_time", "OUT_OF_RANGE"), ("reattribution_id", "INVALID_ID")],
    )
    assert await refusal(world.attribution.Reattribute(reattribution(app_id="nobody"))) == ("APP_NOT_FOUND", [])
    named = reattribution_pb2.GetReattributionRequest(app_id=APP, reattribution_id="r9")
    assert await refusal(world.attribution.GetReattribution(named)) == ("REATTRIBUTION_NOT_FOUND", [])


async def test_one_stopped_on_its_way_keeps_what_it_wrote(world: World) -> None:
    """Cancelled between two steps: the versions written stay, and count; no further ones come."""
    jobs = Reattributions(world.pool, world.settings)

    async def stop() -> None:
        await jobs.cancel(await jobs.get(APP, "r1"))

    job = Watched(world, stop, ReattributorConfig(max_written=1))
    async with world.worker(jobs={"reattributor": job.run}):
        for number in range(5):
            await world.send(click(0, device(number), record_id=f"k{number}"))
        await world.send(*(event(HOUR, device(number), record_id=f"e{number}") for number in range(5)))
        await world.decided(*(f"e{number}" for number in range(5)))
        await world.settings.reached(await world.feed.publish(NARROW))
        await world.attribution.Reattribute(reattribution())
        stopped = await ended(world)
    assert (stopped.state, stopped.changed_count) == (CANCELLED, 1)
    assert await world.pool.fetchval("SELECT count(*) FROM decisions WHERE version = 2") == 1


async def test_a_lower_limit_leaves_a_click_to_those_that_won_it_first(world: World) -> None:
    """D5 across devices: of one address, with one click that carries no id. Others count as they are stored."""
    async with working(world):
        await world.send(click(0, record_id="k1"))
        for number in (1, 2, 3):
            await world.send(event(HOUR + number, device(number), record_id=f"e{number}"))
            await world.decided(f"e{number}")
    limited = tracker_resource(RE_TRACKER, network_id="acme", events=["Purchase"], max_conversions_per_engagement=1)
    parts = [part async for part in world.attribution.WhatIf(what_if(limited))]
    changed = {pair.after.conversion_id: pair.after.reason for part in parts for pair in part.changed}
    assert changed == {"e2": decision_pb2.REASON_NO_WINNER, "e3": decision_pb2.REASON_NO_WINNER}


async def test_a_campaign_withheld_before_the_period_stays_withheld(world: World) -> None:
    """E2: what is credited to a claim whose user shares nothing granular names no campaign."""
    policy = network_settings_pb2.NetworkSettings(app_id=APP, network_id="acme")
    policy.granular_data_policy = network_settings_pb2.NetworkSettings.GRANULAR_DATA_POLICY_REDACT
    await world.settings.reached(await world.feed.publish(snapshot_pb2.Resource(network_settings=policy)))
    await world.received.trigger(("Purchase", "acme"))
    await world.received.answer("e1", claimed("acme", HOUR - 60, granular_data_forbidden=True))
    async with working(world):
        await world.send(event(HOUR, device(1), record_id="e1"))
        (e1,) = await world.decided("e1")
        await world.send(event(2 * HOUR, device(1), "View", record_id="e2"))
        (e2,) = await world.decided("e2")
    assert (e1.engagement_id, e1.campaign_id) == ("claim:acme", "")
    assert (e2.tracker_id, e2.campaign_id) == (RE_TRACKER, "")
    (part,) = [part async for part in world.attribution.WhatIf(what_if(start_time=e2.conversion_time))]
    assert (part.conversion_count, len(part.changed)) == (1, 0)


async def test_decisions_whose_engagements_are_gone_stay_as_they_are(world: World) -> None:
    """Retention and erasures take engagements: that would turn what they have won into nobody's."""
    async with working(world):
        await a_story(world)
        await world.pool.execute("DELETE FROM engagements WHERE engagement_id IN ('k1', 'k3')")
        unchanged = [part async for part in world.attribution.WhatIf(what_if())]
        assert [(part.conversion_count, len(part.changed)) for part in unchanged] == [(4, 0)]
        await world.settings.reached(await world.feed.publish(NARROW))
        await world.attribution.Reattribute(reattribution())
        job = await ended(world)
        e1, e2 = await world.decided("e1", "e2")
    assert (job.conversion_count, job.changed_count, e1.engagement_id, e2.tracker_id) == (4, 0, "k3", RE_TRACKER)


async def test_limits_of_an_engagement_count_newest_versions_only(world: World) -> None:
    """D5: a click whose conversion went to another in a re-attribution may win again."""
    limited = tracker_resource(RE_TRACKER, network_id="acme", events=["Purchase"], max_conversions_per_engagement=1)
    narrow = snapshot_pb2.Resource()
    narrow.CopyFrom(limited)
    narrow.tracker.windows.click_device.duration.FromSeconds(600)
    one = device(1)
    async with working(world):
        await world.settings.reached(await world.feed.publish(limited))
        await world.send(click(0, one, OTHER_RE_TRACKER, record_id="k1"), click(60, one, record_id="k2"))
        await world.send(event(HOUR, one, record_id="e1"))
        (e1,) = await world.decided("e1")
        await world.settings.reached(await world.feed.publish(narrow))
        await world.attribution.Reattribute(reattribution())
        await ended(world)
        await world.settings.reached(await world.feed.publish(limited))
        await world.send(event(3 * HOUR, one, record_id="e2"))
        (e2,) = await world.decided("e2")
    assert (e1.engagement_id, e2.engagement_id) == ("k2", "k2")


# Meanwhile.


async def test_live_decisions_go_on_meanwhile(world: World) -> None:
    """Of devices that are done and of those to come; each decision then is as the settings in use say."""
    ids = [f"e{number}" for number in range(8)]

    async def more() -> None:
        await world.send(*(event(3 * HOUR, device(number), "View", record_id=f"v{number}") for number in range(8)))
        await world.decided(*(f"v{number}" for number in range(8)))

    job = Watched(world, more, ReattributorConfig(page_size=2))
    async with world.worker(jobs={"reattributor": job.run}):
        await world.send(*(click(0, device(number), record_id=f"k{number}") for number in range(8)))
        await world.send(*(event(HOUR, device(number), record_id=each) for number, each in enumerate(ids)))
        await world.decided(*ids)
        await world.settings.reached(await world.feed.publish(NARROW))
        await world.attribution.Reattribute(reattribution())
        done = await ended(world)
        views = await world.decided(*(f"v{number}" for number in range(8)))
    assert done.changed_count >= 8
    assert {decision.outcome for decision in views} == {decision_pb2.OUTCOME_UNATTRIBUTED}
    left = [part async for part in world.attribution.WhatIf(what_if())]
    assert [pair for part in left for pair in part.changed] == []


async def test_devices_that_merge_meanwhile_are_both_decided_again(world: World) -> None:
    async def meet() -> None:
        both = {"adid": device(1), "custom": "guest"}
        await world.send(event(3 * HOUR, both, "View", record_id="met"))
        await world.decided("met")

    job = Watched(world, meet, ReattributorConfig(page_size=1))
    async with world.worker(jobs={"reattributor": job.run}):
        await world.send(click(0, device(1), record_id="k1"), click(0, {"custom": "guest"}, record_id="k2"))
        await world.send(event(HOUR, device(1), record_id="e1"), event(HOUR, {"custom": "guest"}, record_id="e2"))
        await world.decided("e1", "e2")
        await world.settings.reached(await world.feed.publish(NARROW))
        await world.attribution.Reattribute(reattribution())
        done = await ended(world)
        e1, e2 = await world.decided("e1", "e2")
    assert (done.state, e1.version, e2.version) == (DONE, 2, 2)
    left = [part async for part in world.attribution.WhatIf(what_if())]
    assert [pair for part in left for pair in part.changed] == []


@pytest.mark.crash
@pytest.mark.timeout(180)
async def test_a_service_that_is_killed_goes_on_where_it_was(world: World, database: Database, tmp_path: Path) -> None:
    """Killed again and again, by SIGKILL: no version is lost or written twice, and every count is right."""
    count = 1200
    async with working(world):
        for start in range(0, count, 400):
            numbers = range(start, start + 400)
            await world.send(*(click(0, device(number), record_id=f"k{number}") for number in numbers))
            await world.send(*(event(HOUR, device(number), record_id=f"e{number}") for number in numbers))
        await world.decided(*(f"e{number}" for number in range(count)))
    await world.settings.reached(await world.feed.publish(NARROW))
    async with serve_settings(await anext(world.feed.watch(0))) as tracker:
        targets = {f"{name}_target": target for name, target in world.targets.items()} | {"tracker_target": tracker}
        service = attribution_process(tmp_path / "log", dsn=database.dsn("attribution"), **targets)
        await service.start()
        await world.attribution.Reattribute(reattribution())
        named = reattribution_pb2.GetReattributionRequest(app_id=APP, reattribution_id="r1")
        seen, kills = 0, 0
        while (job := (await world.attribution.GetReattribution(named)).reattribution).state == RUNNING:
            if job.conversion_count > seen and kills < 3:
                seen, kills = job.conversion_count, kills + 1
                await service.stop(signal.SIGKILL)
                await service.start()
            await asyncio.sleep(0.01)
        await service.stop()
    assert kills == 3, "it was in the middle of it"
    assert (job.state, job.conversion_count, job.changed_count) == (DONE, count, count)
    versions = await world.pool.fetch("SELECT version, count(*) FROM decisions GROUP BY version ORDER BY version")
    assert [tuple(row) for row in versions] == [(1, count), (2, count)]
    (dense,) = await world.pool.fetch("SELECT count(*), min(sequence), max(sequence) FROM decisions")
    assert tuple(dense) == (2 * count, 0, 2 * count - 1)


# What the tests ask.


async def refusal(call: Any) -> tuple[str, list[tuple[str, str]]] | None:
    """Returns the reason that a call was refused for, and the wrong fields; None when it was not."""
    try:
        if hasattr(call, "__aiter__"):
            async for _ in call:
                pass
        else:
            await call
    except grpc.aio.AioRpcError as error:
        details = from_rpc_error(error)
        return details.reason, [(wrong.field, wrong.reason) for wrong in details.violations]
    return None


async def everything(pool: Pool) -> dict[str, list[Any]]:
    """Returns the rows that decisions are made of and leave."""
    tables = ("decisions", "devices", "identifiers", "engagements")
    return {table: sorted(map(repr, await pool.fetch(f"SELECT * FROM {table}"))) for table in tables}


def counts_of(counts: credit_total_pb2.CreditCounts) -> tuple[int, int, int]:
    return counts.installs, counts.reengagements, counts.credited_events
