"""The store decides random stories as the rules say, read naively: what came in is found, and what is known is kept."""

from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from libs.db import Pool
from libs.messages import short_name
from reengage.attribution.v1 import decision_pb2
from services.attribution.simulator.scenario import ConversionRecord, Scenario
from tests.attribution.naive import decide_all
from tests.attribution.stories import owning, story_of
from tests.attribution.strategies import scenario

seeds = st.integers(0, (1 << 64) - 1)
many_stories = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@many_stories
@given(seed=seeds)
@pytest.mark.slow
async def test_the_store_decides_as_the_naive_reading(pool: Pool, seed: int) -> None:
    random = Random(seed)
    told = in_order(scenario(random))
    await pool.execute("DELETE FROM network_clicks")  # each story is an app of its own, with the same trackers
    async with owning(pool) as lanes:
        story = story_of(told, lanes, pool)
        await story.live(random, sees_beyond=False)
        decided = {decision.conversion_id: as_line(decision) for decision in (await story.newest()).values()}
    lines = {line["id"]: {key: line[key] for key in decided[line["id"]]} for line in decide_all(told)}
    for conversion_id, line in lines.items():
        assert decided[conversion_id] == line, conversion_id


def in_order(told: Scenario) -> Scenario:
    """Returns a scenario as it is when nothing comes late: all is received in the order of times.

    Nobody claims anything, and no session is a refund: the first is another way to decide, the second cannot be sent.
    """
    records = sorted(told.timeline, key=lambda record: (record.time_us, isinstance(record, ConversionRecord)))
    at_once = [replace(record, receive_time_us=record.time_us) for record in records]
    return replace(
        told,
        timeline=tuple(
            replace(record, claims=(), is_refund=record.is_refund and not record.is_session_start)
            if isinstance(record, ConversionRecord)
            else record
            for record in at_once
        ),
    )


def as_line(decision: decision_pb2.Decision) -> dict[str, Any]:
    """Returns the keys of a line of output that a decision tells."""

    def name(enum: Any, number: int) -> str | None:
        return short_name(enum.DESCRIPTOR, number) or None

    return {
        "outcome": name(decision_pb2.Outcome, decision.outcome),
        "attribution_type": name(decision_pb2.AttributionType, decision.attribution_type),
        "tracker": decision.tracker_id or None,
        "network": decision.network_id or None,
        "engagement": decision.engagement_id or None,
        "matched_by": name(decision_pb2.MatchKind, decision.matched_by),
        "level": decision.level or None,
        "reason": name(decision_pb2.Reason, decision.reason),
        "install_known": decision.install_known,
        "custom_dimensions": dict(decision.custom_dimensions),
        "candidates": [
            {"engagement": each.engagement_id, "verdict": name(decision_pb2.Verdict, each.verdict)}
            for each in decision.candidates
        ],
        "shared_ids": {each.kind: each.advertising_id_count for each in decision.shared_ids},
    }
