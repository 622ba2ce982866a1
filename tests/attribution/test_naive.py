"""The product and a naive second reading of the rules decide random scenarios alike.

Where they ever differed the rules said who was right; what the rules do not say is marked OURS in both. The suite looks
at a thousand scenarios; for more set REENGAGE_NAIVE_SCENARIOS, for others --hypothesis-seed.
"""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings

from services.attribution.scenario import Scenario, read_scenario
from services.attribution.simulate import check, simulate
from tests.attribution.naive import decide_all
from tests.attribution.strategies import scenarios, without_needless_records

STORIES = sorted((Path(__file__).parent / "scenarios").iterdir())
SCENARIOS = int(os.environ.get("REENGAGE_NAIVE_SCENARIOS", "1000"))


@pytest.mark.parametrize("path", STORIES, ids=lambda path: path.stem)
def test_the_naive_reading_holds_every_story(path: Path) -> None:
    scenario = read_scenario(path.read_text())
    assert check(decide_all(scenario), scenario.expect) == []


@pytest.mark.timeout(3600)
@settings(max_examples=SCENARIOS, deadline=None)
@given(scenarios)
def test_both_readings_decide_alike(scenario: Scenario) -> None:
    if differ(scenario):
        scenario = without_needless_records(scenario, differ)
        assert simulate(scenario) == decide_all(scenario), scenario


def differ(scenario: Scenario) -> bool:
    return simulate(scenario) != decide_all(scenario)
