"""The product and a naive second reading of the rules decide random scenarios alike.

Where they ever differed the rules said who was right; what the rules do not say is marked OURS in both. The suite looks
at a few hundred scenarios; for more set REENGAGE_NAIVE_SCENARIOS, for others --hypothesis-seed.
"""

import os
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings

from services.attribution.decision.model import Outcome, Reason, Verdict
from services.attribution.simulator.scenario import Scenario
from services.attribution.simulator.scenario_file import read_scenario
from services.attribution.simulator.simulation import check, simulate
from tests.attribution.naive import decide_all
from tests.attribution.strategies import scenario, scenarios, without_needless_records

STORIES = sorted((Path(__file__).parent / "scenarios").iterdir())
SCENARIOS = int(os.environ.get("REENGAGE_NAIVE_SCENARIOS", "600"))


@pytest.mark.parametrize("path", STORIES, ids=lambda path: path.stem)
def test_the_naive_reading_holds_every_story(path: Path) -> None:
    story = read_scenario(path.read_text())
    assert check(decide_all(story), story.expect) == []


@pytest.mark.timeout(3600)
@settings(max_examples=SCENARIOS, deadline=None)
@given(scenarios)
@pytest.mark.slow
def test_both_readings_decide_alike(story: Scenario) -> None:
    if differ(story):
        story = without_needless_records(story, differ)
        assert simulate(story) == decide_all(story), story


@pytest.mark.slow
def test_the_scenarios_reach_every_outcome_reason_and_verdict() -> None:
    """All but what a scenario cannot say: a click that failed its checks, and identity links."""
    lines = [line for seed in range(2_000) for line in simulate(scenario(Random(seed)))]
    assert {line["outcome"] for line in lines} == set(Outcome)
    assert {line["reason"] for line in lines} == {None, *Reason} - {Reason.DEVICE_NOT_KNOWN}
    assert any(line["shared_ids"] for line in lines)
    assert {name for line in lines for name in line["custom_dimensions"]} == {"mtr_rejected", "clock_skew"}
    verdicts = {candidate["verdict"] for line in lines for candidate in line["candidates"]}
    assert verdicts == set(Verdict) - {Verdict.BLOCKLISTED}


def differ(story: Scenario) -> bool:
    return simulate(story) != decide_all(story)
