"""Deciding again: the same settings change nothing, others give what they would have given from the start."""

import uuid
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import given

from libs.db import Pool
from libs.time import timestamp_us
from reengage.attribution.v1 import decision_pb2
from reengage.ingest.v1 import record_pb2
from services.attribution.decision.rules import App, AppRules, ModeledLevel
from services.attribution.redecide.replay import Replay
from services.attribution.redecide.replayed import Replayed
from services.attribution.simulator.scenario import Scenario
from services.attribution.storage.replay import FIRST_DEVICE, Period, estimate
from services.attribution.wire.decisions import says
from tests.attribution.conftest import APP, World, device, event, record
from tests.attribution.stories import ALL_TIME, Story, examples, findable, owning, seeds, story_of
from tests.attribution.strategies import scenario

many_stories = examples(60)


async def at_once() -> None:
    """Does not pause."""


async def replay(
    story: Story, rules: AppRules, *, size: int = 1000, period: tuple[int, int] = ALL_TIME
) -> list[Replayed]:
    """Replays the whole period, page by page."""
    asked = Period(app_id=story.app_id, start_us=period[0], end_us=period[1])
    return await pages(Replay(story.pool, asked, rules, at_once, until_us=ALL_TIME[1]), size)


async def pages(replaying: Replay, size: int) -> list[Replayed]:
    found: list[Replayed] = []
    after: uuid.UUID | None = FIRST_DEVICE
    while after is not None:
        page = await replaying.page(after, size)
        found += page.replayed
        after = page.last_device_id
    return found


@many_stories
@given(seed=seeds)
@pytest.mark.slow
async def test_unchanged_settings_change_nothing(pool: Pool, seed: int) -> None:
    random = Random(seed)
    async with owning(pool) as lanes:
        story = story_of(findable(scenario(random)), lanes, pool)
        await story.live(random)
        times = sorted(record.time_us for record in story.scenario.timeline)
        halves = [ALL_TIME, (0, random.choice(times) + 1), (random.choice(times), ALL_TIME[1])]
        for period in halves:
            replayed = await replay(story, story.rules, size=random.choice((1, 2, 1000)), period=period)
            changed = [each for device in replayed for each in device.changed]
            assert not changed, (changed[0].stored.decision, changed[0].decision)
            decisions = [d for d in (await story.newest()).values() if d.outcome != decision_pb2.OUTCOME_CONTINUED]
            in_period = [d for d in decisions if period[0] <= d.conversion_time.ToMicroseconds() < period[1]]
            assert sum(len(device.credits) for device in replayed) == len(in_period)
            async with pool.acquire() as connection:
                asked = Period(app_id=story.app_id, start_us=period[0], end_us=period[1])
                assert await estimate(connection, asked) == len(in_period) + await continued(story, period)


async def continued(story: Story, period: tuple[int, int]) -> int:
    """Returns the sessions that turned out to have gone on, which an estimate counts."""
    times = [d.conversion_time for d in (await story.newest()).values() if d.outcome == decision_pb2.OUTCOME_CONTINUED]
    return sum(period[0] <= time.ToMicroseconds() < period[1] for time in times)


@many_stories
@given(seed=seeds)
@pytest.mark.slow
async def test_other_settings_give_what_they_would_have_given_from_the_start(pool: Pool, seed: int) -> None:
    random = Random(seed)
    told, other = unlimited(findable(scenario(random))), unlimited(scenario(random))
    order = random.randint(0, 1 << 60)
    async with owning(pool) as lanes:
        story = story_of(told, lanes, pool)
        await story.live(Random(order))
        afresh = story_of(
            replace(
                told,
                app=with_index_of(told.app, other.app),
                networks=other.networks,
                trackers=other.trackers,
                events=other.events,
            ),
            lanes,
            pool,
        )
        await afresh.live(Random(order))
        replayed = await replay(story, story.rules_of(afresh.scenario), size=random.choice((1, 3, 1000)))
        changed = {each.stored.conversion_id: each for device in replayed for each in device.changed}
        before, expected = await story.newest(), await afresh.newest()
        assert before.keys() == expected.keys()
        for conversion_id, decision in expected.items():
            if conversion_id in changed:
                now = changed[conversion_id].decision
                assert now is not None
                assert says(decision, now), (decision, changed[conversion_id])
                assert not says(before[conversion_id], now)
            else:
                assert plain(before[conversion_id]) == plain(decision)


def with_index_of(told: App, other: App) -> App:
    """Returns the other settings, with the ranges of addresses (A5) that engagements are stored under.

    The late window stays, too: what was decided again stays so.
    """
    ranges = ModeledLevel.IP_RANGE
    level = told.modeled_level if ranges in (told.modeled_level, other.modeled_level) else other.modeled_level
    return replace(other, modeled_level=level, late_window_us=told.late_window_us)


def unlimited(told: Scenario) -> Scenario:
    """Returns rules without D5, which looks at other devices: they count as they are stored."""
    return replace(
        told, trackers=tuple(replace(tracker, max_conversions_per_engagement=0) for tracker in told.trackers)
    )


def plain(decision: decision_pb2.Decision) -> decision_pb2.Decision:
    """Returns what a decision says, without what differs between two apps of the same story."""
    copy = decision_pb2.Decision()
    copy.CopyFrom(decision)
    for app_dependent in ("app_id", "device_id", "decide_time", "candidates", "window", "window_layer", "os"):
        copy.ClearField(app_dependent)
    for last_decided in ("version", "because", "late_record_id"):
        copy.ClearField(last_decided)
    return copy


async def test_each_conversion_comes_on_one_page(world: World) -> None:
    """Whichever of two devices that met comes first, and if the other has nothing to decide again."""
    async with world.worker():
        for n in range(8):
            one, two = {"adid": device(n)}, {"android_id": f"a{n}"}
            await world.send(event(0, one, record_id=f"e{n}"), event(0, two, record_id=f"f{n}"))
            await world.decided(f"e{n}", f"f{n}")
            linked = record(60, two, identity_link=record_pb2.IdentityLink(identities={"email": "a@example.com"}))
            linked.record_id = f"l{n}"
            await world.send(linked)
            await world.send(event(120, one | two, record_id=f"meet{n}"))
            await world.decided(f"l{n}", f"meet{n}")
        rules = world.settings.current.apps[APP]
    period = Period(app_id=APP, start_us=timestamp_us(record(60).event_time), end_us=ALL_TIME[1])
    replaying = Replay(world.pool, period, rules, at_once, until_us=ALL_TIME[1])
    found = await pages(replaying, size=1)
    assert sum(len(each.credits) for each in found) == 8, "the meetings"


async def test_others_get_turns_while_one_device_is_decided(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many conversions it has: else the worker would lose its lanes over it, again and again."""
    random = Random(1)
    async with owning(pool) as lanes:
        story = story_of(findable(scenario(random)), lanes, pool)
        await story.live(random)
        turns = 0

        async def turn() -> None:
            nonlocal turns
            turns += 1

        asked = Period(app_id=story.app_id, start_us=ALL_TIME[0], end_us=ALL_TIME[1])
        replaying = Replay(story.pool, asked, story.rules, turn, until_us=ALL_TIME[1])
        deciding: list[int] = []
        decide_one = replaying._decide_one

        def noted(*arguments: Any) -> Any:
            deciding.append(turns)
            return decide_one(*arguments)

        monkeypatch.setattr(replaying, "_decide_one", noted)
        await replaying.page(FIRST_DEVICE, 1000)
    assert len(deciding) > 1
    assert len(set(deciding)) == len(deciding), "a turn before each"
