"""Decisions a second on one core: the pure function, with few and with many candidates, and the simulator."""

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import yaml

from services.attribution.decision.decide import decide
from services.attribution.decision.history import DeviceHistory
from services.attribution.decision.matching import device_key
from services.attribution.decision.model import (
    HOUR_US,
    SECOND_US,
    AttributionType,
    Candidate,
    Conversion,
    ConversionKind,
    Decision,
    Engagement,
    EngagementKind,
    MatchKind,
    Outcome,
    TrackerType,
    Verdict,
)
from services.attribution.decision.rules import (
    App,
    AppRules,
    EventDefinition,
    Network,
    Platform,
    Tracker,
    compile_rules,
)
from services.attribution.simulator.collector import collector_paused
from services.attribution.simulator.scenario_file import read_scenario
from services.attribution.simulator.simulation import simulate
from tests.bench.row import Row

DECISIONS_ASKED = 50_000
RECORDS_ASKED = 20_000
MANY, FEW = 10_000, 10
DEVICE = device_key("app", "cdda802e-fb9c-47ad-9866-0794d394c912")
START = datetime(2026, 3, 1, tzinfo=UTC)
NOW_US = 20_000 * 24 * HOUR_US


async def bench(*, records: int = 50_000, decisions: int = 20_000) -> list[Row]:
    """Measures one core; each number is the best of three runs."""
    rules, conversion = _rules(), _conversion()
    few = _engagements(3)
    decided = _rate(decisions, lambda: decide(conversion, DeviceHistory(), rules, candidates=few, wins={}))
    tuples = _rate(decisions, _tuples_of_a_decision)
    cost_us = {
        count: 1e6 / (_rate(max(1, 5 * decisions // count), _decision_with(count, conversion, rules)) * count)
        for count in (FEW, MANY)
    }
    story = _story(records)
    as_json, as_yaml = json.dumps(story), _as_yaml(story)
    from_json = records * _rate(1, lambda: simulate(read_scenario(as_json)))
    from_yaml = records * _rate(1, lambda: simulate(read_scenario(as_yaml)))
    with collector_paused():
        parsed = records * _rate(1, lambda: json.loads(as_json))
        composed = records * _rate(1, lambda: yaml.compose(as_yaml, Loader=yaml.CBaseLoader))
    return [
        Row(
            name="decisions with 3 candidates",
            value=decided,
            unit="/s",
            limit_name="asked of one core",
            limit=DECISIONS_ASKED,
            at_least=1,
        ),
        Row(
            name="  the same",
            value=decided,
            unit="/s",
            limit_name="/s of only making the tuples of such a decision",
            limit=tuples,
        ),
        Row(
            name=f"one of {MANY:,} candidates, all in their window",
            value=1_000 * cost_us[MANY],
            unit="ns",
            limit_name=f"ns for one of {FEW}",
            limit=1_000 * cost_us[FEW],
            at_most=3,
        ),
        Row(
            name="simulator, JSON in, lines out",
            value=from_json,
            unit="records/s",
            limit_name="asked of one core",
            limit=RECORDS_ASKED,
            at_least=1,
        ),
        Row(
            name="  the same",
            value=from_json,
            unit="records/s",
            limit_name="records/s of only parsing the JSON",
            limit=parsed,
        ),
        Row(
            name="simulator, YAML in, lines out",
            value=from_yaml,
            unit="records/s",
            limit_name="records/s of only composing the YAML with libyaml",
            limit=composed,
        ),
    ]


def _rate(times: int, act: Callable[[], object]) -> float:
    """Calls a second of processor time, which neighbours do not take away; the best of three rounds."""
    best = 0.0
    for _ in range(3):
        began = time.process_time()
        for _ in range(times):
            act()
        best = max(best, times / (time.process_time() - began))
    return best


def _decision_with(count: int, conversion: Conversion, rules: AppRules) -> Callable[[], object]:
    candidates = _engagements(count)
    return lambda: decide(conversion, DeviceHistory(), rules, candidates=candidates, wins={})


def _rules() -> AppRules:
    return compile_rules(
        app=App(app_id="app", platform=Platform.ANDROID),
        networks=[Network(network_id="acme")],
        trackers=[
            Tracker(tracker_id="t1", network_id="acme", type=TrackerType.REENGAGEMENT, events=frozenset({"Purchase"}))
        ],
        events=[EventDefinition(event_name="Purchase")],
    )


def _conversion() -> Conversion:
    return Conversion(
        conversion_id="e1",
        kind=ConversionKind.EVENT,
        time_us=NOW_US,
        receive_time_us=NOW_US,
        event_name="Purchase",
        device_keys=frozenset({DEVICE}),
        ip="203.0.113.7",
    )


def _engagements(count: int) -> list[Engagement]:
    """Clicks and impressions of one device, all of which could win."""
    return [
        Engagement(
            engagement_id=f"k{at}",
            kind=EngagementKind.IMPRESSION if at % 3 == 2 else EngagementKind.CLICK,
            tracker_id="t1",
            time_us=NOW_US - (at + 1) * SECOND_US,
            receive_time_us=NOW_US - (at + 1) * SECOND_US,
            device_keys=(DEVICE,),
            ip="203.0.113.7",
        )
        for at in range(count)
    ]


def _tuples_of_a_decision() -> Decision:
    judged = [
        Candidate("k1", EngagementKind.CLICK, NOW_US, "t1", "acme", verdict, MatchKind.DEVICE_ID, SECOND_US, 1)
        for verdict in (Verdict.WON, Verdict.LOST_TO_MORE_RECENT, Verdict.LOST_TO_HIGHER_LEVEL)
    ]
    return Decision("e1", Outcome.REENGAGED, AttributionType.REENGAGEMENT, 1, False, candidates=tuple(judged))


def _story(records: int) -> dict[str, object]:
    """Returns half clicks, a fifth impressions, a twentieth installs, else events, of one device for twenty records."""
    kinds = ("click", "impression", "click", "event") * 4 + ("click", "click", "install", "event")
    timeline = []
    for at in range(records):
        kind = kinds[at % len(kinds)]
        record: dict[str, object] = {
            "id": f"r{at}",
            "device": {"adid": f"{at * 7919 % (records // 20 + 1):08x}-fb9c-47ad-9866-0794d394c912"},
            "ip": f"203.0.{at % 251}.{at % 241}",
            "ua": "Mozilla/5.0 (Linux; Android 14; Pixel 8)",
        }
        if kind == "event":
            record["name"] = "Purchase"
        elif kind != "install":
            record["tracker"] = "t1"
        at_time = START + at * timedelta(days=27) / records  # in order: late records (D12) are another matter
        timeline.append({"at": at_time.isoformat(timespec="seconds"), kind: record})
    return {
        "app": {"app_id": "app", "platform": "ANDROID"},
        "networks": [{"network_id": "acme"}],
        "trackers": [{"tracker_id": "t1", "network": "acme", "events": ["Purchase"]}],
        "timeline": timeline,
    }


def _as_yaml(story: dict[str, object]) -> str:
    """Returns a story as a person writes it: a line a record, quotes where they are needed."""
    timeline = story["timeline"]
    assert isinstance(timeline, list)
    settings = json.dumps({key: value for key, value in story.items() if key != "timeline"})[1:-1]
    lines = (yaml.dump(record, Dumper=yaml.CSafeDumper, default_flow_style=True, width=1_000) for record in timeline)
    return "{" + settings + ", timeline: [\n" + ",\n".join(line.strip() for line in lines) + "\n]}\n"
