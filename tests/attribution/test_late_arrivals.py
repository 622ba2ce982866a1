"""What arrives late decides again what it changes (D12): by the laws, and through the store as the simulator says."""

from collections.abc import AsyncIterator
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from libs.db import Pool, open_pool
from reengage.attribution.v1 import decision_pb2
from services.attribution.simulator.simulation import simulate
from services.attribution.storage import PLANNER
from tests.attribution.stories import findable, owning, story_of
from tests.attribution.strategies import scenario
from tests.conftest import Database

seeds = st.integers(0, (1 << 64) - 1)


@pytest.fixture
async def pool(database: Database) -> AsyncIterator[Pool]:
    async with open_pool(
        database.dsn("attribution"), schema="attribution", application_name="test", settings=PLANNER
    ) as opened:
        yield opened


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
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


TOLD = ("outcome", "attribution_type", "tracker", "network", "source", "engagement", "level", "lookback_s")


def told(decision: decision_pb2.Decision) -> dict[str, Any]:
    is_won = bool(decision.engagement_id)
    return {
        "outcome": decision_pb2.Outcome.Name(decision.outcome).removeprefix("OUTCOME_"),
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
