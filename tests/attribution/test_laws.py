"""Laws that hold for every story: random settings and timelines through the simulator and the decision."""

from collections import Counter
from dataclasses import replace
from itertools import accumulate
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.attribution.decision.decide import decide
from services.attribution.decision.history import DeviceHistory
from services.attribution.decision.model import (
    DAY_US,
    HOUR_US,
    MINUTE_US,
    Claim,
    Conversion,
    ConversionKind,
    Engagement,
    EngagementKind,
    MatchKind,
    TrackerType,
    UserAgent,
    Verdict,
    WindowKind,
)
from services.attribution.decision.rules import (
    DISABLED,
    App,
    AppRules,
    DeviceAttribution,
    EventDefinition,
    GranularDataPolicy,
    ModeledLevel,
    Network,
    Platform,
    Tracker,
    compile_rules,
)
from services.attribution.simulator.scenario import ConversionRecord, EngagementRecord, Scenario
from services.attribution.simulator.simulation import simulate

pytestmark = pytest.mark.slow

START = 20_000 * DAY_US
END = START + 20 * DAY_US
EVENTS = ("Purchase", "SessionBegin", "View")
IDS = ("a1", "b2", "c3")
IPS = ("", "203.0.113.7", "203.0.113.8")
AGENTS = ("", "Mozilla/5.0 (Linux; Android 14; Pixel 8)", "Mozilla/5.0 (Linux; Android 13; Pixel 8)")

# Coarse times and short durations, so that edges and ties are met often.
times = st.integers(0, 14 * 24).map(lambda hours: START + hours * HOUR_US)
durations = st.sampled_from((DISABLED, MINUTE_US, HOUR_US, 12 * HOUR_US, DAY_US, 5 * DAY_US))
windows = st.dictionaries(st.sampled_from(list(WindowKind)), durations, max_size=4)
kinds = st.sampled_from(list(EngagementKind))

networks = st.builds(
    lambda **values: values,
    supports_impressions=st.booleans(),
    granular_data_policy=st.sampled_from(list(GranularDataPolicy)),
    windows=windows,
).map(lambda values: (Network(network_id="acme", **values), Network(network_id="x", self_attributing=True, **values)))
apps = st.builds(
    App,
    app_id=st.just("app"),
    platform=st.just(Platform.ANDROID),
    windows=windows,
    device_attribution=st.sampled_from(list(DeviceAttribution)),
    modeled_level=st.sampled_from(list(ModeledLevel)),
    omit_os_minor=st.booleans(),
    allow_reengagement_impressions=st.booleans(),
    prioritize_completed_view=st.booleans(),
    limit_ad_tracking_fallback=st.booleans(),
    install_reprocessing_window_us=st.sampled_from((None, DAY_US, 3 * DAY_US)),
)


def tracker(tracker_id: str, network_id: str) -> st.SearchStrategy[Tracker]:
    return st.builds(
        Tracker,
        tracker_id=st.just(tracker_id),
        network_id=st.just(network_id),
        type=st.sampled_from(list(TrackerType)),
        events=st.frozensets(st.sampled_from(EVENTS)),
        windows=windows,
        live=st.sampled_from((True, True, True, False)),
        default_tracker=st.booleans(),
        max_conversions_per_engagement=st.sampled_from((0, 0, 1)),
        create_time_us=st.integers(0, 2),
    )


trackers = st.tuples(*(tracker(f"t{n}", "x" if n > 3 else "acme") for n in range(1, 6)))
definitions = st.lists(
    st.builds(
        EventDefinition,
        event_name=st.sampled_from(EVENTS),
        mtr_us=st.sampled_from((0, HOUR_US, DAY_US, 3 * DAY_US)),
        reengagement_period_us=durations,
    ),
    unique_by=lambda definition: definition.event_name,
)
claims = st.builds(
    Claim,
    network_id=st.just("x"),
    kind=kinds,
    time_us=times,
    campaign_name=st.sampled_from(("", "t4", "Spring t5")),
    granular_data_allowed=st.booleans(),
)
devices = st.dictionaries(st.sampled_from(("adid", "custom")), st.sampled_from(IDS), max_size=2)
engagement_records = st.builds(
    EngagementRecord,
    id=st.just(""),
    kind=kinds,
    time_us=times,
    receive_time_us=st.just(0),
    tracker=st.sampled_from([f"t{n}" for n in range(1, 6)]),
    device=devices,
    ip=st.sampled_from(IPS),
    ua=st.sampled_from(AGENTS),
    click_id=st.sampled_from(("", "n1", "n2")),
    completed_view=st.booleans(),
)
conversion_records = st.builds(
    ConversionRecord,
    id=st.just(""),
    time_us=times,
    receive_time_us=st.just(0),
    name=st.sampled_from(("", *EVENTS)),
    device=devices,
    ip=st.sampled_from(IPS),
    ua=st.sampled_from(AGENTS),
    click=st.sampled_from(("", "r0", "r1")),
    claims=st.lists(claims, max_size=2).map(tuple),
)


def numbered(
    records: list[EngagementRecord | ConversionRecord],
) -> tuple[EngagementRecord | ConversionRecord, ...]:
    return received([replace(record, id=f"r{n}") for n, record in enumerate(records)])


def received(
    records: list[EngagementRecord | ConversionRecord],
) -> tuple[EngagementRecord | ConversionRecord, ...]:
    """Records in order of receipt: each is received when it happens, or after those that happened before it."""
    latest_us = accumulate((record.time_us for record in records), max)
    return tuple(replace(record, receive_time_us=time_us) for record, time_us in zip(records, latest_us, strict=True))


scenarios = st.builds(
    Scenario,
    text=st.just(""),
    app=apps,
    networks=networks,
    trackers=trackers,
    events=definitions.map(tuple),
    timeline=st.lists(engagement_records | conversion_records, min_size=1, max_size=25).map(numbered),
    expect=st.just({}),
)

KEY = b"key"
engagements = st.lists(
    st.builds(
        Engagement,
        engagement_id=st.integers(0, 99).map(lambda n: f"k{n:02}"),
        kind=kinds,
        tracker_id=st.sampled_from([f"t{n}" for n in range(6)]),
        time_us=times,
        receive_time_us=st.just(START),
        device_keys=st.sampled_from(((), (KEY,), (b"other",))),
        ip=st.sampled_from(IPS),
        user_agent=st.sampled_from((None, UserAgent("m", "o", "1", "0"), UserAgent("m", "o", "1", "1"))),
        completed_view=st.booleans(),
        valid=st.sampled_from((True, True, False)),
        duplicate=st.sampled_from((False, False, True)),
    ),
    max_size=12,
    unique_by=lambda engagement: engagement.engagement_id,
)
conversions = st.builds(
    Conversion,
    conversion_id=st.just("c1"),
    kind=st.sampled_from(list(ConversionKind)),
    time_us=times,
    receive_time_us=st.just(START),
    event_name=st.sampled_from(EVENTS),
    device_keys=st.just(frozenset({KEY})),
    click_id=st.sampled_from(("", "k01", "k02")),
    ip=st.sampled_from(IPS),
    user_agent=st.just(UserAgent("m", "o", "1", "0")),
).map(lambda c: replace(c, event_name="") if c.kind is ConversionKind.INSTALL else c)
rules_of_apps = st.builds(
    lambda app, networks, trackers, events: compile_rules(app=app, networks=networks, trackers=trackers, events=events),
    apps,
    networks,
    trackers,
    definitions,
)
some_wins = st.dictionaries(st.integers(0, 99).map(lambda n: f"k{n:02}"), st.integers(0, 2))


@given(conversions, rules_of_apps, engagements, st.lists(claims, max_size=3), some_wins, st.randoms())
def test_the_order_of_known_inputs_never_matters(
    conversion: Conversion,
    rules: AppRules,
    candidates: list[Engagement],
    claimed: list[Claim],
    wins: dict[str, int],
    random: Any,
) -> None:
    """G5."""
    decision = decide(conversion, DeviceHistory(), rules, candidates=candidates, wins=wins, claims=claimed)
    shuffled, claims_shuffled = list(candidates), list(claimed)
    random.shuffle(shuffled)
    random.shuffle(claims_shuffled)
    again = decide(conversion, DeviceHistory(), rules, candidates=shuffled, wins=wins, claims=claims_shuffled)
    assert repr(again) == repr(decision)


@given(conversions, rules_of_apps, engagements, some_wins)
def test_removing_a_loser_changes_no_winner(
    conversion: Conversion, rules: AppRules, candidates: list[Engagement], wins: dict[str, int]
) -> None:
    decision = decide(conversion, DeviceHistory(), rules, candidates=candidates, wins=wins)
    for loser in candidates:
        if loser.engagement_id != decision.engagement_id:
            rest = [candidate for candidate in candidates if candidate is not loser]
            without = decide(conversion, DeviceHistory(), rules, candidates=rest, wins=wins)
            assert without.engagement_id == decision.engagement_id


@given(conversions, rules_of_apps, engagements, st.lists(claims, max_size=3), some_wins)
def test_the_winner_is_in_its_window_and_of_the_right_type(
    conversion: Conversion, rules: AppRules, candidates: list[Engagement], claimed: list[Claim], wins: dict[str, int]
) -> None:
    decision = decide(conversion, DeviceHistory(), rules, candidates=candidates, wins=wins, claims=claimed)
    won = [candidate for candidate in decision.candidates if candidate.verdict is Verdict.WON]
    assert [candidate.engagement_id for candidate in won] == [i for i in (decision.engagement_id,) if i is not None]
    for winner in won:
        assert winner.window_us is not None
        least_us = 0 if winner.matched_by is MatchKind.CLICK_ID else 1  # B1
        assert least_us <= winner.lookback_us < winner.window_us
        tracker = rules.trackers[winner.tracker_id].tracker
        is_install = conversion.kind is ConversionKind.INSTALL
        assert tracker.live
        assert tracker.type is (TrackerType.ACQUISITION if is_install else TrackerType.REENGAGEMENT)
        assert is_install or conversion.event_name in tracker.events
    for candidate in decision.candidates:
        if candidate.is_influencer:
            assert candidate.level >= won[0].level


@given(scenarios)
def test_every_conversion_has_one_outcome_and_every_candidate_one_verdict(scenario: Scenario) -> None:
    output = simulate(scenario)
    conversions = [record for record in scenario.timeline if isinstance(record, ConversionRecord)]
    assert [line["id"] for line in output] == [record.id for record in conversions]
    for line in output:
        verdicts = [candidate["verdict"] for candidate in line["candidates"]]
        is_won = line["outcome"] in ("ATTRIBUTED", "REPROCESSED", "REENGAGED")
        assert verdicts.count("WON") == is_won
        assert (line["reason"] is None) == is_won == (line["engagement"] is not None)
        assert [c["engagement"] for c in line["candidates"]] == sorted(c["engagement"] for c in line["candidates"])
        engagement_ids = [i for c in line["candidates"] if not (i := c["engagement"]).startswith("claim:")]
        assert len(engagement_ids) == len(set(engagement_ids))


@given(scenarios)
def test_attributed_plus_organic_plus_duplicate_equals_installs(scenario: Scenario) -> None:
    installs = sum(isinstance(record, ConversionRecord) and not record.name for record in scenario.timeline)
    outcomes = Counter(line["outcome"] for line in simulate(scenario) if line["kind"] == "install")
    assert installs == sum(outcomes.values())
    assert outcomes.keys() <= {"ATTRIBUTED", "ORGANIC", "DUPLICATE", "REPROCESSED", "REPROCESSED_ORGANIC"}


@given(scenarios)
def test_a_reengagement_never_falls_inside_an_mtr(scenario: Scenario) -> None:
    """D3, on one device: the time since whatever it was attributed to before, and was known by then (D12)."""
    one_device = tuple(
        replace(record, device={"adid": "a1"}) if isinstance(record, ConversionRecord) else record
        for record in scenario.timeline
    )
    mtr_us = {definition.event_name: definition.mtr_us for definition in scenario.events}
    output = {line["id"]: line for line in simulate(replace(scenario, timeline=one_device))}
    attributed = [
        record
        for record in one_device
        if isinstance(record, ConversionRecord)
        and output[record.id]["outcome"] not in ("DUPLICATE", "CREDITED", "UNATTRIBUTED")
    ]
    for record in attributed:
        if record.name and (mtr := mtr_us.get(record.name, DAY_US)):
            for other in attributed:
                if (
                    other is not record
                    and other.time_us <= record.time_us
                    and (other.name or other.receive_time_us <= record.receive_time_us)
                ):
                    assert record.time_us - other.time_us >= mtr or other.time_us == record.time_us


@given(scenarios, st.randoms())
def test_the_order_in_which_engagements_arrive_between_two_conversions_never_matters(
    scenario: Scenario, random: Any
) -> None:
    """A6 as well. Nothing is decided again here: that is the next law."""
    scenario = replace(scenario, app=replace(scenario.app, late_window_us=0))
    shuffled: list[EngagementRecord | ConversionRecord] = []
    waiting: list[EngagementRecord | ConversionRecord] = []
    for record in scenario.timeline:
        if isinstance(record, ConversionRecord):
            random.shuffle(waiting)
            shuffled += [*waiting, record]
            waiting = []
        else:
            waiting.append(record)
    assert told(replace(scenario, timeline=tuple(shuffled))) == told(scenario)


@given(scenarios, st.randoms())
def test_any_order_of_arrival_within_the_late_window_ends_in_the_order_of_times(
    scenario: Scenario, random: Any
) -> None:
    """D12. No two happen at once, and no click comes back before it was made: there receipt decides (B1)."""
    in_order = sorted(scenario.timeline, key=lambda record: record.time_us)
    apart = [replace(record, time_us=record.time_us + place) for place, record in enumerate(in_order)]
    made_us = {record.id: record.time_us for record in apart}
    records = [
        replace(record, click=record.click if made_us.get(record.click, 0) < record.time_us else "")
        if isinstance(record, ConversionRecord)
        else record
        for record in apart
    ]
    shuffled = random.sample(records, len(records))
    app = replace(scenario.app, late_window_us=7 * DAY_US)
    orders = [
        replace(scenario, app=app, timeline=tuple(replace(r, receive_time_us=END + n) for n, r in enumerate(some)))
        for some in (records, shuffled)
    ]
    assert told(orders[0]) == told(orders[1])


def told(scenario: Scenario) -> dict[str, dict[str, Any]]:
    """Returns the newest version of each conversion, but for what was known when it was decided."""
    candidates = {"candidates", "reason", "version", "because"}
    return {
        line["id"]: {key: value for key, value in line.items() if key not in candidates} for line in simulate(scenario)
    }


@given(scenarios)
def test_no_decision_changes_as_the_clock_moves(scenario: Scenario) -> None:
    """Only differences of times count."""
    moved = tuple(
        replace(
            record,
            time_us=record.time_us + 1_000 * DAY_US,
            receive_time_us=record.receive_time_us + 1_000 * DAY_US,
            claims=tuple(replace(claim, time_us=claim.time_us + 1_000 * DAY_US) for claim in record.claims),
        )
        if isinstance(record, ConversionRecord)
        else replace(
            record,
            time_us=record.time_us + 1_000 * DAY_US,
            receive_time_us=record.receive_time_us + 1_000 * DAY_US,
        )
        for record in scenario.timeline
    )
    assert simulate(replace(scenario, timeline=moved)) == simulate(scenario)
