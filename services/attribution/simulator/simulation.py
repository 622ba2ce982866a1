"""Runs a scenario: the real decision code on a story, with no server and no database."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from services.attribution.decision.grouping import hashed_kinds_of
from services.attribution.decision.model import SECOND_US, Decision
from services.attribution.decision.rules import compile_rules
from services.attribution.simulator.collector import collector_paused
from services.attribution.simulator.scenario import OUTPUT_KEYS, ConversionRecord, EngagementRecord, Scenario
from services.attribution.simulator.story import Story, Told

_Timeline = Iterable[EngagementRecord | ConversionRecord]


def simulate(scenario: Scenario, follow: Callable[[_Timeline], _Timeline] = iter) -> list[dict[str, Any]]:
    """Returns the output: an object for the newest version of each conversion, in the order of receipt.

    It has the keys OUTPUT_KEYS, the last of them from version 2 on. `follow` is given the timeline, and yields it.
    """
    with collector_paused():  # it ends when the story is gone: else it would look through that once more
        return [_line(told, told.decision) for told in _tell(scenario, follow) if told.decision is not None]


def _tell(scenario: Scenario, follow: Callable[[_Timeline], _Timeline]) -> Sequence[Told]:
    rules = compile_rules(
        app=scenario.app, networks=scenario.networks, trackers=scenario.trackers, events=scenario.events
    )
    conversions = (record for record in scenario.timeline if isinstance(record, ConversionRecord))
    story = Story(rules, hashed_kinds_of(each for record in conversions for each in record.device.items()))
    for record in follow(scenario.timeline):
        if isinstance(record, EngagementRecord):
            story.receive_engagement(record)
        else:
            story.receive_conversion(record)
    return story.told


def check(output: list[dict[str, Any]], expect: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns a readable line for each difference between the output and what is expected by conversion id.

    A list must be equal, an object may be a subset.
    """
    lines = {line["id"]: line for line in output}
    return [d for name, expected in expect.items() for d in _differences(name, expected, lines.get(name))]


def _differences(place: str, expected: Any, actual: Any) -> list[str]:
    if isinstance(expected, Mapping) and isinstance(actual, Mapping):
        return [d for key, value in expected.items() for d in _differences(f"{place}.{key}", value, actual.get(key))]
    if isinstance(expected, list) and isinstance(actual, list) and len(expected) == len(actual):
        pairs = enumerate(zip(expected, actual, strict=True))
        return [d for at, (value, other) in pairs for d in _differences(f"{place}[{at}]", value, other)]
    if type(expected) is type(actual) and expected == actual:
        return []
    return [f"{place}: expected {_json(expected)}, got {_json(actual)}"]


def _line(told: Told, decision: Decision) -> dict[str, Any]:
    lookback_us = decision.lookback_us
    values = (
        told.record.id,
        "event" if told.record.name else "install",
        decision.outcome.value,
        decision.attribution_type.value,
        decision.tracker_id,
        decision.network_id,
        decision.source_conversion_id,
        decision.engagement_id,
        None if decision.matched_by is None else decision.matched_by.value,
        decision.level,
        None if lookback_us is None else lookback_us // SECOND_US,
        None if decision.reason is None else decision.reason.value,
        decision.install_known,
        dict(decision.custom_dimensions),
        [{"engagement": c.engagement_id, "verdict": c.verdict.value} for c in decision.candidates],
        dict(told.shared),
        told.version,
        *(() if told.because is None else (told.because.value,)),
    )
    return dict(zip(OUTPUT_KEYS, values, strict=False))


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
