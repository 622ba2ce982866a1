"""Facts: whoever follows decisions can compute the lifetime value of every source, without the log."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from random import Random
from typing import Any, TypeAlias

import pytest
from hypothesis import given

from libs.db import Pool, open_pool
from reengage.attribution.v1 import decision_pb2
from reengage.ingest.v1 import record_pb2
from services.attribution.pace import Pace
from services.attribution.queries.following import Filters, Following
from services.attribution.simulator.scenario import ConversionRecord, Scenario
from services.attribution.storage import PLANNER
from tests.attribution.conftest import APP, RE_TRACKER, UA_TRACKER, World, click, device, event, install
from tests.attribution.naive import decide_all
from tests.attribution.stories import Story, amount_micros, examples, findable, owning, seeds, story_of
from tests.attribution.strategies import scenario
from tests.attribution.test_reattribution import reattribute
from tests.attribution.test_replay import unlimited, with_index_of
from tests.conftest import Database

Source: TypeAlias = tuple[str, str, str, str]
"""The conversion that made it, its tracker, the site and the creative of the ad that won it."""


@pytest.fixture
async def pool(database: Database) -> AsyncIterator[Pool]:
    async with open_pool(
        database.dsn("attribution"), schema="attribution", application_name="test", settings=PLANNER
    ) as opened:
        yield opened


class OneByOne(Random):
    """Choices that have each record decided as it comes, as a scenario is read."""

    def randint(self, a: int, b: int) -> int:
        return min(a, b)

    def choice(self, seq: Any) -> Any:
        return seq[0]


@examples(40)
@given(seed=seeds)
@pytest.mark.slow
async def test_lifetime_value_by_source_is_what_the_rules_say_before_and_after_a_reattribution(
    pool: Pool, seed: int
) -> None:
    random = Random(seed)
    told, other = unlimited(findable(without_claims_of_sessions(scenario(random)))), unlimited(scenario(random))
    anew = replace(
        told,
        app=with_index_of(told.app, other.app),
        networks=other.networks,
        trackers=other.trackers,
        events=other.events,
    )
    async with owning(pool) as lanes:
        story = story_of(told, lanes, pool)
        await story.live(OneByOne())
        assert await followed(story) == expected(told)
        await reattribute(story, story.rules_of(anew), random=random, crashes=False)
        assert await followed(story) == expected(anew)


def without_claims_of_sessions(told: Scenario) -> Scenario:
    """Returns a scenario in which nobody is asked about a session: a story has those decided that have waited."""
    timeline = tuple(
        replace(record, claims=()) if isinstance(record, ConversionRecord) and record.is_session_start else record
        for record in told.timeline
    )
    return replace(told, timeline=timeline)


async def followed(story: Story) -> Counter[Source]:
    """Returns the sum of amounts by source, of all facts from the first on."""
    following, filters = Following(story.pool, Pace()), Filters(app_id=story.app_id)
    running = asyncio.ensure_future(following.run())
    end = (await following.now(filters)).token(filters)
    values = Counter[Source]()
    async with aclosing(following.follow(filters, following.first(filters))) as responses:
        async for response in responses:
            for fact in response.facts:
                decision = fact.decision
                source = decision.source_conversion_id, decision.tracker_id, decision.site_id, decision.creative_id
                values[source] += fact.sign * decision.revenue.amount_micros
            if response.resume_token == end:
                break
    running.cancel()
    return Counter({source: value for source, value in values.items() if value})


def expected(scenario: Scenario) -> Counter[Source]:
    """Returns the same, of the naive reading of a scenario."""
    lines = {line["id"]: line for line in decide_all(scenario)}
    values = Counter[Source]()
    for record in scenario.timeline:
        if isinstance(record, ConversionRecord) and record.name and not record.is_session_start:
            line = lines[record.id]
            winner = lines[line["source"]]["engagement"] if line["source"] else None
            has_link = winner is not None and not winner.startswith("claim:")
            ad = (f"site of {winner}", f"creative of {winner}") if has_link else ("", "")
            values[line["source"] or "", line["tracker"] or "", *ad] += amount_micros(record)
    return Counter({source: value for source, value in values.items() if value})


async def test_a_decision_says_what_facts_need(world: World) -> None:
    ad = record_pb2.AdDetails(site_id="s1", sub_site_id="s1-a", creative_id="banner")
    agent = "Mozilla/5.0 (Linux; Android 14; Pixel 8) AppleWebKit/537.36"
    refund = record_pb2.Money(amount_micros=-9_990_000, currency_code="EUR")
    async with world.worker():
        await world.send(
            click(0, device(1), UA_TRACKER, record_id="k1"),
            click(3600, device(1), RE_TRACKER, record_id="k2", click={"ad": ad}),
        )
        await world.send(
            install(60, device(1), record_id="i1"),
            event(90_000, device(1), record_id="p1", user_agent=agent, app_version="3.2", ip_address="198.51.100.49"),
            event(90_060, device(1), record_id="p2", event={"revenue": refund}),
            event(90_120, device(2), record_id="n1"),
        )
        i1, p1, p2, n1 = await world.decided("i1", "p1", "p2", "n1")
    assert (i1.source_conversion_id, i1.source_time, i1.source_engagement_id) == ("i1", i1.conversion_time, "k1")
    assert i1.install_time == i1.conversion_time
    assert (p1.source_conversion_id, p1.source_time, p1.source_engagement_id) == ("p1", p1.conversion_time, "k2")
    assert (p1.country, p1.os, p1.os_version, p1.app_version) == ("DE", "android", "14.0", "3.2")
    assert p1.install_time == i1.conversion_time
    assert p2.outcome == decision_pb2.OUTCOME_CREDITED
    assert (p2.source_conversion_id, p2.source_time, p2.source_engagement_id) == ("p1", p1.conversion_time, "k2")
    assert (p2.revenue, p2.os, p2.os_version) == (refund, "android", "")
    for credited in (p1, p2):
        assert (credited.site_id, credited.sub_site_id, credited.creative_id) == ("s1", "s1-a", "banner")
    assert (n1.source_conversion_id, n1.HasField("source_time"), n1.HasField("install_time")) == ("", False, False)


async def test_a_click_dated_after_what_gave_it_back_is_behind_it_all_the_same(world: World) -> None:
    """B1: networks get their click id back, whatever the clocks say."""
    async with world.worker():
        ad = record_pb2.AdDetails(site_id="s1")
        await world.send(click(3600, tracker_id=RE_TRACKER, record_id="k1", click={"click_id": "n1", "ad": ad}))
        await world.send(event(3000, device(1), record_id="p1", event={"click_record_id": "k1"}))
        (p1,) = await world.decided("p1")
        while "p1" not in world.received.conversions:
            await asyncio.sleep(0.01)
    assert (p1.engagement_id, p1.site_id) == ("k1", "s1")
    assert world.received.conversions["p1"].engagement.click.click_id == "n1"


async def test_the_source_of_an_organic_device_is_its_install(world: World) -> None:
    async with world.worker():
        await world.send(install(0, device(1), record_id="i1"), event(60, device(1), "View", record_id="v1"))
        i1, v1 = await world.decided("i1", "v1")
    assert (i1.outcome, v1.outcome) == (decision_pb2.OUTCOME_ORGANIC, decision_pb2.OUTCOME_UNATTRIBUTED)
    assert (i1.source_conversion_id, v1.source_conversion_id) == ("i1", "i1")
    assert (v1.source_time, v1.source_engagement_id, v1.app_id) == (i1.conversion_time, "", APP)
