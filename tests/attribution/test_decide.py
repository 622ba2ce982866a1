"""Decisions that the stories in scenarios/ cannot tell: sections B to G on plain values, and the device's history."""

from dataclasses import replace
from itertools import product

import pytest

from services.attribution.decision.decide import decide, eligibility
from services.attribution.decision.history import Attribution, DeviceHistory, identity_link_refusal, merge
from services.attribution.decision.model import (
    DAY_US,
    HOUR_US,
    MINUTE_US,
    AttributionType,
    Claim,
    Conversion,
    ConversionKind,
    Decision,
    Engagement,
    EngagementKind,
    Layer,
    MatchKind,
    Outcome,
    Reason,
    TrackerType,
    UserAgent,
    Verdict,
    Visitor,
    WindowKind,
)
from services.attribution.decision.rules import (
    DISABLED,
    WATERFALL,
    App,
    AppRules,
    EventDefinition,
    GranularDataPolicy,
    Network,
    Platform,
    Tracker,
    compile_rules,
)
from services.attribution.decision.traffic import TrafficRules

NOW = 1_000 * DAY_US
KEY = b"device"

APP = App(app_id="app", platform=Platform.IOS)
ACME = Network(network_id="acme")
SAN = Network(network_id="x", self_attributing=True)
UA = Tracker(tracker_id="ua", network_id="acme", type=TrackerType.ACQUISITION, campaign="Launch", segment="A")
RE = Tracker(
    tracker_id="re",
    network_id="acme",
    type=TrackerType.REENGAGEMENT,
    events=frozenset({"Purchase", "SessionBegin"}),
    campaign="Comeback",
    segment="B",
)
XRE = replace(RE, tracker_id="xre", network_id="x", campaign="Secret")


def rules_of(
    *trackers: Tracker,
    app: App = APP,
    networks: tuple[Network, ...] = (ACME, SAN),
    events: tuple[EventDefinition, ...] = (),
) -> AppRules:
    return compile_rules(app=app, networks=networks, trackers=trackers, events=events, revision=7)


RULES = rules_of(UA, RE, XRE)
PURCHASE = Conversion(
    conversion_id="e1",
    kind=ConversionKind.EVENT,
    event_name="Purchase",
    time_us=NOW,
    receive_time_us=NOW,
    device_keys=frozenset({KEY}),
    ip="1.1.1.1",
)
INSTALL = replace(PURCHASE, conversion_id="i1", kind=ConversionKind.INSTALL, event_name="")
CLICK = Engagement(
    engagement_id="k1",
    kind=EngagementKind.CLICK,
    tracker_id="re",
    time_us=NOW - HOUR_US,
    receive_time_us=NOW - HOUR_US,
    device_keys=(KEY,),
)
CLAIM = Claim(network_id="x", kind=EngagementKind.CLICK, time_us=NOW - 2 * HOUR_US)
NEW = DeviceHistory()
FOR_GOOD_US = NOW - DAY_US - 1
"""A receipt so long ago that its conversion is decided for good (D12)."""


def installed(age_us: int, **more: object) -> DeviceHistory:
    install = Attribution(NOW - age_us, NOW - age_us, "i0", ConversionKind.INSTALL, AttributionType.NONE)
    return DeviceHistory(attributions=(install._replace(**more),))  # type: ignore[arg-type]


def reengaged(age_us: int, event_name: str = "Purchase", **more: object) -> DeviceHistory:
    won = Attribution(
        NOW - age_us,
        NOW - age_us,
        "e0",
        ConversionKind.EVENT,
        AttributionType.REENGAGEMENT,
        event_name,
        "re",
        "acme",
        "k0",
    )
    return DeviceHistory(attributions=(won._replace(**more),))  # type: ignore[arg-type]


def test_g1_a_won_decision_says_all_of_it() -> None:
    rules = rules_of(replace(RE, windows={WindowKind.CLICK_DEVICE: 2 * DAY_US}))
    older = replace(CLICK, engagement_id="k0", time_us=NOW - DAY_US)
    decision = decide(PURCHASE, NEW, rules, candidates=[CLICK, older], wins={})
    won, lost = sorted(decision.candidates, key=lambda c: c.lookback_us)
    assert decision == Decision(
        conversion_id="e1",
        outcome=Outcome.REENGAGED,
        attribution_type=AttributionType.REENGAGEMENT,
        settings_revision=7,
        install_time_us=None,
        source_conversion_id="e1",
        source_time_us=NOW,
        source_engagement_id="k1",
        tracker_id="re",
        network_id="acme",
        campaign="Comeback",
        segment="B",
        engagement_id="k1",
        matched_by=MatchKind.DEVICE_ID,
        level=1,
        lookback_us=HOUR_US,
        window=WindowKind.CLICK_DEVICE,
        window_us=2 * DAY_US,
        window_layer=Layer.TRACKER,
        candidates=(lost, won),
    )
    assert decision.influencers == (lost,)
    assert (lost.verdict, lost.window_us, lost.window_layer) == (
        Verdict.LOST_TO_MORE_RECENT,
        2 * DAY_US,
        Layer.TRACKER,
    )


HOPELESS = replace(
    CLICK,
    kind=EngagementKind.IMPRESSION,
    device_keys=(b"other",),
    ip="1.1.1.1",
    duplicate=True,
    valid=False,
    visitor=Visitor.BOT,
    time_us=NOW,
)
"""An impression on an archived tracker of the wrong type, and so on: every refusal of G2 but those of claims holds."""
UNIQUE = replace(HOPELESS, device_keys=(), duplicate=False)
WORST = replace(
    UA,
    live=False,
    windows={WindowKind.IMPRESSION_IP: DISABLED},
    max_conversions_per_engagement=1,
    traffic_rules=TrafficRules(end_us=0),
)
MUTE = replace(ACME, supports_impressions=False)
RE_WORST = replace(WORST, live=True, type=TrackerType.REENGAGEMENT)
SELECTED = replace(RE_WORST, events=RE.events)
OPEN = replace(SELECTED, windows={})
FREE = replace(OPEN, traffic_rules=None)


@pytest.mark.parametrize(
    ("tracker", "network", "engagement", "expected"),
    [
        (WORST, MUTE, HOPELESS, Verdict.TRACKER_ARCHIVED),
        (replace(WORST, live=True), MUTE, HOPELESS, Verdict.WRONG_TRACKER_TYPE),
        (RE_WORST, MUTE, HOPELESS, Verdict.EVENT_NOT_SELECTED),
        (SELECTED, MUTE, HOPELESS, Verdict.IMPRESSIONS_NOT_ALLOWED),
        (SELECTED, ACME, HOPELESS, Verdict.MATCH_KIND_NOT_ALLOWED),
        (SELECTED, ACME, replace(HOPELESS, device_keys=()), Verdict.DUPLICATE_CLICK),
        (SELECTED, ACME, UNIQUE, Verdict.BOT),
        (SELECTED, ACME, replace(UNIQUE, visitor=Visitor.PREFETCH), Verdict.PREFETCH),
        (SELECTED, ACME, replace(UNIQUE, visitor=Visitor.PERSON), Verdict.BLOCKLISTED),
        (SELECTED, ACME, replace(UNIQUE, visitor=Visitor.PERSON, valid=True), Verdict.WINDOW_DISABLED),
        (OPEN, ACME, replace(UNIQUE, visitor=Visitor.PERSON, valid=True), Verdict.AFTER_CONVERSION),
        (OPEN, ACME, replace(CLICK, time_us=NOW - 30 * DAY_US), Verdict.OUTSIDE_WINDOW),
        (OPEN, ACME, CLICK, Verdict.TRAFFIC_RULE),
        (FREE, ACME, CLICK, Verdict.ENGAGEMENT_SPENT),
        (replace(FREE, max_conversions_per_engagement=2), ACME, CLICK, Verdict.WON),
    ],
    ids=lambda value: value.value if isinstance(value, Verdict) else "",
)
def test_g2_of_several_verdicts_the_first_is_stored(
    tracker: Tracker, network: Network, engagement: Engagement, expected: Verdict
) -> None:
    rules = rules_of(RE, tracker, networks=(network,))
    decision = decide(
        PURCHASE, NEW, rules, candidates=[replace(engagement, tracker_id="ua")], wins={engagement.engagement_id: 1}
    )
    assert [candidate.verdict for candidate in decision.candidates] == [expected]
    assert decision.reason is (None if expected is Verdict.WON else Reason.NO_WINNER)


@pytest.mark.parametrize(
    ("late", "verdicts", "reason"),
    [
        pytest.param(CLICK, [Verdict.WON], None, id="it wins"),
        pytest.param(replace(CLICK, tracker_id="ua"), [Verdict.WRONG_TRACKER_TYPE], Reason.NO_CANDIDATE, id="refused"),
        pytest.param(replace(CLICK, is_ping=True), [Verdict.REPORTED_LATE], Reason.NO_CANDIDATE, id="reported late"),
        pytest.param(replace(CLICK, time_us=NOW), [], Reason.NO_CANDIDATE, id="the same instant"),
        pytest.param(replace(CLICK, time_us=NOW + 1), [], Reason.NO_CANDIDATE, id="after it"),
    ],
)
def test_d12_what_is_received_later_gives_no_reason(
    late: Engagement, verdicts: list[Verdict], reason: Reason | None
) -> None:
    """Else the reason would say how soon the conversion was decided. What happened after it is no candidate either."""
    late = replace(late, receive_time_us=NOW + 1)
    decision = decide(PURCHASE, NEW, RULES, candidates=[late], wins={})
    assert ([each.verdict for each in decision.candidates], decision.reason) == (verdicts, reason)
    in_time = replace(CLICK, engagement_id="k0", tracker_id="ua")
    both = decide(PURCHASE, NEW, RULES, candidates=[late, in_time], wins={})
    assert ([each.verdict for each in both.candidates], both.reason) == (
        [Verdict.WRONG_TRACKER_TYPE, *verdicts],
        reason and Reason.NO_WINNER,
    )


@pytest.mark.parametrize(
    ("trackers", "network", "claim", "expected"),
    [
        ((RE,), SAN, CLAIM, Verdict.NO_TRACKER_FOR_CLAIM),
        ((RE, replace(XRE, live=False)), SAN, CLAIM, Verdict.NO_TRACKER_FOR_CLAIM),
        ((RE, replace(XRE, type=TrackerType.ACQUISITION)), SAN, CLAIM, Verdict.NO_TRACKER_FOR_CLAIM),
        ((RE, replace(XRE, events=frozenset())), SAN, CLAIM, Verdict.NO_TRACKER_FOR_CLAIM),
        ((XRE,), SAN, replace(CLAIM, granular_data_allowed=False), Verdict.GRANULAR_DATA_NOT_ALLOWED),
        ((XRE,), SAN, replace(CLAIM, kind=EngagementKind.IMPRESSION), Verdict.VIEW_WINDOW_ZERO),
        (
            (replace(XRE, windows={WindowKind.POST_ENGAGEMENT: DISABLED}),),
            SAN,
            replace(CLAIM, time_us=NOW),
            Verdict.WINDOW_DISABLED,
        ),
        ((XRE,), SAN, replace(CLAIM, time_us=NOW), Verdict.AFTER_CONVERSION),
        ((XRE,), SAN, replace(CLAIM, time_us=NOW - 14 * DAY_US), Verdict.OUTSIDE_WINDOW),
        (
            (replace(XRE, traffic_rules=TrafficRules(start_us=CLAIM.time_us + 1)),),
            SAN,
            CLAIM,
            Verdict.TRAFFIC_RULE,
        ),
        ((XRE,), SAN, replace(CLAIM, time_us=NOW - 14 * DAY_US + 1), Verdict.WON),
    ],
    ids=lambda value: value.value if isinstance(value, Verdict) else "",
)
def test_e_claims(trackers: tuple[Tracker, ...], network: Network, claim: Claim, expected: Verdict) -> None:
    decision = decide(
        PURCHASE, NEW, rules_of(*trackers, networks=(ACME, network)), candidates=[], wins={}, claims=[claim]
    )
    assert [(candidate.engagement_id, candidate.verdict) for candidate in decision.candidates] == [
        ("claim:x", expected)
    ]


def test_e2_a_redacted_claim_is_credited_and_its_campaign_withheld_for_good() -> None:
    redact = replace(SAN, granular_data_policy=GranularDataPolicy.REDACT)
    rules = rules_of(XRE, networks=(redact,))
    decision = decide(
        PURCHASE, NEW, rules, candidates=[], wins={}, claims=[replace(CLAIM, granular_data_allowed=False)]
    )
    assert (decision.tracker_id, decision.network_id) == ("xre", "x")
    assert (decision.campaign, decision.segment, decision.redacted) == (None, None, True)
    view = replace(PURCHASE, event_name="View", time_us=NOW + 1)
    credited = decide(view, NEW.after(PURCHASE, decision), rules, candidates=[], wins={})
    assert (credited.outcome, credited.tracker_id) == (Outcome.CREDITED, "xre")
    assert (credited.campaign, credited.segment, credited.redacted) == (None, None, True)


def test_e3_without_a_name_or_default_the_tracker_set_up_most_recently() -> None:
    trackers = [replace(XRE, tracker_id=name, create_time_us=at) for name, at in (("x1", 1), ("x3", 3), ("x2", 3))]
    decision = decide(PURCHASE, NEW, rules_of(*trackers), candidates=[], wins={}, claims=[CLAIM])
    assert decision.tracker_id == "x3"


def test_e4_a_claim_that_never_came_is_listed_and_the_rest_decided() -> None:
    decision = decide(PURCHASE, NEW, RULES, candidates=[CLICK], wins={}, claims_unavailable=["y", "x"])
    assert (decision.outcome, decision.claims_unavailable) == (Outcome.REENGAGED, ("x", "y"))
    nobody = decide(PURCHASE, NEW, RULES, candidates=[], wins={}, claims_unavailable=["x"])
    assert (nobody.reason, nobody.claims_unavailable) == (Reason.NO_CANDIDATE, ("x",))


@pytest.mark.parametrize(
    ("conversion", "history", "expected"),
    [
        pytest.param(INSTALL, NEW, None, id="F1"),
        pytest.param(INSTALL, installed(400 * DAY_US), Reason.DUPLICATE_INSTALL, id="F2"),
        pytest.param(INSTALL, reengaged(DAY_US), None, id="F2 a device without an install"),
        pytest.param(
            PURCHASE, installed(0), Reason.EVENT_BEFORE_INSTALL, id="D10 the same instant, and before the MTR"
        ),
        pytest.param(
            replace(PURCHASE, event_name="View"),
            installed(-1, receive_time_us=FOR_GOOD_US),
            Reason.EVENT_BEFORE_INSTALL,
            id="D10 before D1",
        ),
        pytest.param(replace(PURCHASE, event_name="View"), installed(1), Reason.EVENT_NOT_SELECTED, id="D1 before D3"),
        pytest.param(PURCHASE, installed(DAY_US - 1), Reason.MTR_NOT_MET, id="D3"),
        pytest.param(PURCHASE, installed(DAY_US), None, id="D3 equal"),
        pytest.param(PURCHASE, reengaged(DAY_US - 1), Reason.MTR_NOT_MET, id="D3 after a reengagement"),
        pytest.param(
            PURCHASE,
            reengaged(-DAY_US, receive_time_us=FOR_GOOD_US),
            Reason.MTR_NOT_MET,
            id="D3 behind a later attribution",
        ),
        pytest.param(PURCHASE, reengaged(-DAY_US), None, id="D12 before a later attribution"),
        pytest.param(PURCHASE, installed(-1), None, id="D12 before a later install"),
        pytest.param(PURCHASE, NEW, None, id="D9"),
        pytest.param(
            replace(PURCHASE, event_name="SessionBegin"),
            reengaged(DAY_US - 1, "SessionBegin"),
            Reason.MTR_NOT_MET,
            id="D3 before D4",
        ),
    ],
)
def test_eligibility(conversion: Conversion, history: DeviceHistory, expected: Reason | None) -> None:
    assert eligibility(conversion, history, RULES) is expected
    decision = decide(conversion, history, RULES, candidates=[CLICK], wins={})
    if expected is not None:
        assert (decision.reason, decision.candidates) == (expected, ())
    assert (decision.custom_dimensions == {"mtr_rejected": "86400"}) == (expected is Reason.MTR_NOT_MET)


@pytest.mark.parametrize(
    ("age_us", "event_name", "expected"),
    [
        (DAY_US - 1, "SessionBegin", Reason.SESSION_ALREADY_REENGAGED),
        (DAY_US, "SessionBegin", None),
        (1 - DAY_US, "SessionBegin", Reason.SESSION_ALREADY_REENGAGED),
        (-DAY_US, "SessionBegin", None),
        (1, "Purchase", None),
    ],
)
def test_d4_is_rolling_on_both_sides(age_us: int, event_name: str, expected: Reason | None) -> None:
    rules = rules_of(RE, events=(EventDefinition(event_name="SessionBegin", mtr_us=0),))
    session = replace(PURCHASE, event_name="SessionBegin")
    assert eligibility(session, reengaged(age_us, event_name, receive_time_us=FOR_GOOD_US), rules) is expected


def test_d1_a_tracker_that_is_archived_or_of_the_other_type_selects_nothing() -> None:
    rules = rules_of(replace(RE, live=False), replace(UA, events=frozenset({"Purchase"})))
    assert eligibility(PURCHASE, NEW, rules) is Reason.EVENT_NOT_SELECTED


def test_f2_a_reprocessed_install_names_the_original() -> None:
    rules = rules_of(UA, replace(RE, events=frozenset()), app=replace(APP, install_reprocessing_window_us=30 * DAY_US))
    history = installed(30 * DAY_US)
    lost = decide(INSTALL, history, rules, candidates=[replace(CLICK, tracker_id="ua")], wins={})
    assert (lost.outcome, lost.reprocess_for) == (Outcome.REPROCESSED_ORGANIC, "i0")
    won = decide(INSTALL, history, rules, candidates=[CLICK], wins={})
    assert (won.outcome, won.reprocess_for) == (Outcome.REPROCESSED, "i0")
    again = replace(INSTALL, conversion_id="i2", time_us=NOW + 30 * DAY_US)
    assert decide(again, history.after(INSTALL, won), rules, candidates=[], wins={}).reprocess_for == "i0"
    just_before = replace(again, time_us=again.time_us - 1)
    assert eligibility(just_before, history.after(INSTALL, won), rules) is Reason.DUPLICATE_INSTALL


def test_d8_a_source_whose_tracker_the_settings_no_longer_hold_stays_the_source() -> None:
    decision = decide(PURCHASE, reengaged(DAY_US, tracker_id="gone"), RULES, candidates=[], wins={})
    assert (decision.outcome, decision.tracker_id, decision.campaign) == (Outcome.CREDITED, "gone", None)


def test_an_engagement_of_a_tracker_the_settings_do_not_hold_cannot_win() -> None:
    decision = decide(PURCHASE, NEW, RULES, candidates=[replace(CLICK, tracker_id="gone")], wins={})
    assert [candidate.verdict for candidate in decision.candidates] == [Verdict.TRACKER_ARCHIVED]


def test_c1_the_order_of_levels_is_data() -> None:
    by_id = replace(CLICK, time_us=NOW - 2 * HOUR_US)
    by_ip = replace(CLICK, engagement_id="k2", device_keys=(), ip="1.1.1.1")
    assert decide(PURCHASE, NEW, RULES, candidates=[by_id, by_ip], wins={}).engagement_id == "k1"
    ip_first = rules_of(RE, app=replace(APP, waterfall=(WATERFALL[2], *WATERFALL[:2], *WATERFALL[3:])))
    assert decide(PURCHASE, NEW, ip_first, candidates=[by_id, by_ip], wins={}).engagement_id == "k2"
    with pytest.raises(ValueError, match="waterfall"):
        rules_of(RE, app=replace(APP, waterfall=WATERFALL[1:]))


def test_c2_completed_views_come_first_only_when_asked_and_only_within_a_level() -> None:
    completed = replace(
        CLICK, kind=EngagementKind.IMPRESSION, engagement_id="m1", completed_view=True, time_us=NOW - 3 * HOUR_US
    )
    newer = replace(completed, engagement_id="m2", completed_view=False, time_us=NOW - 2 * HOUR_US)
    older = replace(newer, engagement_id="m3", time_us=NOW - 4 * HOUR_US)
    candidates = [completed, newer, older]
    assert decide(PURCHASE, NEW, RULES, candidates=candidates, wins={}).engagement_id == "m2"
    completed_first = rules_of(RE, app=replace(APP, prioritize_completed_view=True))
    decision = decide(PURCHASE, NEW, completed_first, candidates=candidates, wins={})
    lost = Verdict.LOST_TO_COMPLETED_VIEW
    assert [candidate.verdict for candidate in decision.candidates] == [Verdict.WON, lost, lost]
    assert decide(PURCHASE, NEW, completed_first, candidates=[*candidates, CLICK], wins={}).engagement_id == "k1"


def test_every_way_to_match_has_a_window_on_a_level() -> None:
    pixel = UserAgent(model="Pixel 8", os="Android", os_major="14", os_minor="0")
    back = replace(PURCHASE, click_id="k1", user_agent=pixel)
    by_ip = replace(CLICK, device_keys=(), ip="1.1.1.1")
    matched = set()
    for kind, conversion, engagement in product(
        EngagementKind, (PURCHASE, back), (CLICK, by_ip, replace(by_ip, engagement_id="k2", user_agent=pixel))
    ):
        decision = decide(conversion, NEW, RULES, candidates=[replace(engagement, kind=kind)], wins={})
        (candidate,) = decision.candidates
        assert candidate.window is not None
        assert candidate.window in WATERFALL[candidate.level - 1]
        matched.add((kind, candidate.matched_by))
    assert len(matched) == len(EngagementKind) * 4 - 1, "all but an impression by click id"


def test_b3_each_window_on_its_own_and_no_override_for_a_san() -> None:
    app = replace(APP, windows={WindowKind.CLICK_IP: HOUR_US, WindowKind.CLICK_MODELED: HOUR_US})
    acme = replace(ACME, windows={WindowKind.CLICK_IP: 2 * HOUR_US})
    override = {WindowKind.CLICK_DEVICE: 3 * HOUR_US, WindowKind.POST_VIEW: DAY_US}
    rules = rules_of(replace(RE, windows=override), replace(XRE, windows=override), app=app, networks=(acme, SAN))
    link, claims = rules.trackers["re"].windows, rules.trackers["xre"].windows
    assert link[WindowKind.CLICK_DEVICE] == (3 * HOUR_US, Layer.TRACKER)
    assert link[WindowKind.CLICK_IP] == (2 * HOUR_US, Layer.NETWORK)
    assert link[WindowKind.CLICK_MODELED] == (HOUR_US, Layer.APP)
    assert link[WindowKind.IMPRESSION_IP] == (DAY_US, Layer.BUILT_IN)
    assert claims[WindowKind.CLICK_DEVICE] == (30 * DAY_US, Layer.BUILT_IN)
    assert claims[WindowKind.POST_VIEW] == (DAY_US, Layer.TRACKER)
    assert claims[WindowKind.POST_ENGAGEMENT] == (14 * DAY_US, Layer.BUILT_IN)


def test_history_grows_only_by_what_attributes() -> None:
    click = replace(CLICK, tracker_id="ua")
    attributed = decide(INSTALL, NEW, RULES, candidates=[click], wins={})
    history = NEW.after(INSTALL, attributed)
    assert history.latest == Attribution(
        NOW,
        NOW,
        "i1",
        ConversionKind.INSTALL,
        AttributionType.INSTALL,
        "",
        "ua",
        "acme",
        "k1",
        MatchKind.DEVICE_ID,
    )
    second = replace(INSTALL, conversion_id="i2", time_us=NOW + 1)
    duplicate = decide(second, history, RULES, candidates=[click], wins={})
    assert history.after(second, duplicate) is history
    view = replace(PURCHASE, event_name="View", time_us=NOW + 1)
    credited = decide(view, history, RULES, candidates=[], wins={})
    assert credited.outcome is Outcome.CREDITED
    assert history.after(view, credited) is history


def test_a_late_install_finds_its_place() -> None:
    organic = decide(replace(INSTALL, time_us=NOW - DAY_US), reengaged(0), RULES, candidates=[], wins={})
    history = reengaged(0).after(replace(INSTALL, time_us=NOW - DAY_US), organic)
    assert [attribution.conversion_id for attribution in history.attributions] == ["i1", "e0"]
    assert history.first_install is not None


def test_merged_devices_keep_both_histories_and_the_older_install_is_the_first() -> None:
    a = installed(3 * DAY_US).after_session(NOW)
    b = installed(5 * DAY_US, conversion_id="i5").after_session(NOW - DAY_US)
    merged = merge(a, b)
    assert merged == merge(b, a)
    assert merged.first_install is not None
    assert merged.first_install.conversion_id == "i5"
    assert merged.latest_install is not None
    assert merged.latest_install.conversion_id == "i0"
    assert merged.session_us == (NOW - DAY_US, NOW)
    assert merge(merged, a) == merge(merged, NEW) == merge(NEW, merged) == merged


def test_history_survives_json() -> None:
    history = merge(installed(3 * DAY_US, matched_by=MatchKind.IP, redacted=True), reengaged(DAY_US)).after_session(NOW)
    assert DeviceHistory.from_json(history.to_json()) == history
    assert DeviceHistory.from_json(NEW.to_json()) == NEW
    assert len(Attribution._fields) == len(history.to_json()["attributions"][0])


def test_compacted_history_answers_the_same_for_any_record_that_may_still_come() -> None:
    history = NEW
    for age in (400, 300, 200, 100, 50, 34, 33, 30, 2):
        won = reengaged(age * DAY_US, "SessionBegin", conversion_id=f"e{age}", tracker_id=f"t{age}").attributions
        history = merge(history, DeviceHistory(attributions=won))
    history = merge(history, installed(350 * DAY_US))
    compacted = history.compacted(NOW)
    assert [a.conversion_id for a in compacted.attributions] == ["i0", "e33", "e30", "e2"]
    for late in range(32 * 24):
        time_us = NOW - late * HOUR_US
        assert compacted.source_at(time_us) == history.source_at(time_us)
        assert compacted.session_reengaged_near(time_us) == history.session_reengaged_near(time_us)
    assert compacted.first_install == history.first_install
    assert compacted.latest == history.latest


@pytest.mark.parametrize(
    ("history", "active_us", "goes_on"),
    [
        pytest.param(NEW, [], False, id="nothing before"),
        pytest.param(NEW, [NOW], True, id="an event at the same time"),
        pytest.param(NEW, [NOW - 30 * MINUTE_US + 1], True, id="an event just within 30 minutes"),
        pytest.param(NEW, [NOW - 30 * MINUTE_US], False, id="an event exactly 30 minutes before"),
        pytest.param(NEW, [NOW + 1], False, id="a later event"),
        pytest.param(NEW.after_session(NOW - MINUTE_US), [], True, id="a session that went on"),
        pytest.param(installed(MINUTE_US), [], False, id="an install"),
        pytest.param(installed(MINUTE_US), [NOW - 2 * MINUTE_US], True, id="an event before an install"),
        pytest.param(installed(MINUTE_US), [NOW - MINUTE_US + 1], True, id="an event after an install"),
    ],
)
def test_d4_a_session_goes_on_within_30_minutes(history: DeviceHistory, active_us: list[int], goes_on: bool) -> None:
    assert history.goes_on(NOW, active_us) is goes_on


def test_d4_the_latest_sessions_are_remembered() -> None:
    history = NEW
    for number in range(100):
        history = history.after_session(NOW + number)
    assert history.session_us == tuple(range(NOW + 80, NOW + 100))


def test_f3_an_identity_link_needs_a_device_that_is_known() -> None:
    assert identity_link_refusal(None) is Reason.DEVICE_NOT_KNOWN
    assert identity_link_refusal(NEW) is None


def test_decision_fields_are_all_set_by_somebody() -> None:
    """A field that is never other than its default would be a promise nobody keeps."""
    redact = replace(SAN, granular_data_policy=GranularDataPolicy.REDACT)
    rules = rules_of(UA, RE, XRE, app=replace(APP, install_reprocessing_window_us=DAY_US), networks=(ACME, redact))
    claim = replace(CLAIM, granular_data_allowed=False)
    decisions = [
        decide(PURCHASE, NEW, rules, candidates=[CLICK], wins={}, claims_unavailable=["x"]),
        decide(PURCHASE, NEW, rules, candidates=[], wins={}, claims=[claim]),
        decide(PURCHASE, installed(1), rules, candidates=[], wins={}),
        decide(INSTALL, installed(DAY_US), rules, candidates=[CLICK], wins={}),
    ]
    blank = Decision(
        conversion_id="",
        outcome=Outcome.ORGANIC,
        attribution_type=AttributionType.NONE,
        settings_revision=0,
        install_time_us=None,
    )
    set_by_none = [
        name for name in Decision._fields if all(getattr(one, name) == getattr(blank, name) for one in decisions)
    ]
    assert set_by_none == []
