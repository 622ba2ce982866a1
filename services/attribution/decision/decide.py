"""Decides a conversion: who won it, who is credited with it, and what became of every candidate (sections B to G).

Pure and total. The simulator, what-if, re-attribution and the live worker call the same two functions: `eligibility`
before any candidate is fetched, `decide` with them.
"""

from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import NamedTuple, assert_never

from libs.domain.event_names import SESSION_BEGIN
from services.attribution.decision.history import Attribution, DeviceHistory
from services.attribution.decision.matching import match_kind
from services.attribution.decision.model import (
    DAY_US,
    SECOND_US,
    AttributionType,
    Candidate,
    Claim,
    Conversion,
    ConversionKind,
    Decision,
    Engagement,
    EngagementKind,
    MatchKind,
    Outcome,
    Reason,
    TrackerType,
    Verdict,
    Visitor,
    WindowKind,
)
from services.attribution.decision.rules import (
    DISABLED,
    AppRules,
    DeviceAttribution,
    GranularDataPolicy,
    Platform,
    TrackerRules,
)
from services.attribution.decision.traffic import broken_rule

CONSIDERED_US = 31 * DAY_US
"""An engagement further than this from the conversion, on either side, is not considered at all."""

_CLICK, _IMPRESSION = EngagementKind.CLICK, EngagementKind.IMPRESSION
_BY_LESS_THAN_ID = (MatchKind.MODELED, MatchKind.IP)
_WINDOW_OF = {
    (_CLICK, MatchKind.CLICK_ID): WindowKind.CLICK_DEVICE,
    (_CLICK, MatchKind.DEVICE_ID): WindowKind.CLICK_DEVICE,
    (_CLICK, MatchKind.MODELED): WindowKind.CLICK_MODELED,
    (_CLICK, MatchKind.IP): WindowKind.CLICK_IP,
    (_CLICK, MatchKind.CLAIM): WindowKind.POST_ENGAGEMENT,
    (_IMPRESSION, MatchKind.DEVICE_ID): WindowKind.IMPRESSION_DEVICE,
    (_IMPRESSION, MatchKind.MODELED): WindowKind.IMPRESSION_MODELED,
    (_IMPRESSION, MatchKind.IP): WindowKind.IMPRESSION_IP,
    (_IMPRESSION, MatchKind.CLAIM): WindowKind.POST_VIEW,
}
"""The window that judges a candidate, and with it its level (C1). No impression is matched by click id."""


def eligibility(conversion: Conversion, history: DeviceHistory, rules: AppRules) -> Reason | None:
    """Returns why nobody can win a conversion, whatever its candidates (the first of G2 that holds), if so it is."""
    return _eligibility(conversion, history.known_to(conversion, rules.app.late_window_us), rules)


def _eligibility(conversion: Conversion, history: DeviceHistory, rules: AppRules) -> Reason | None:
    match conversion.kind:
        case ConversionKind.INSTALL:
            latest_install, window_us = history.latest_install, rules.app.install_reprocessing_window_us
            if latest_install is None or (
                window_us is not None and conversion.time_us - latest_install.time_us >= window_us
            ):
                return None
            return Reason.DUPLICATE_INSTALL
        case ConversionKind.EVENT:
            return _event_eligibility(conversion, history, rules)
        case _:
            assert_never(conversion.kind)


def _event_eligibility(conversion: Conversion, history: DeviceHistory, rules: AppRules) -> Reason | None:
    """Applies D10, D1, D11, D3, D4.

    OURS: the MTR counts from the latest attribution even when it happened later and was decided for good before the
    record arrived: so no order of arrival puts two reengagements inside one MTR.
    """
    name, time_us = conversion.event_name, conversion.time_us
    first_install, latest = history.first_install, history.latest
    if first_install is not None and time_us <= first_install.time_us:
        return Reason.EVENT_BEFORE_INSTALL
    if name not in rules.reengaging_events:
        return Reason.EVENT_NOT_SELECTED
    if conversion.is_refund:
        return Reason.REFUND
    mtr_us = rules.mtr_us(name)
    if mtr_us and latest is not None and time_us - latest.time_us < mtr_us:
        return Reason.MTR_NOT_MET
    if name == SESSION_BEGIN and history.session_reengaged_near(time_us):
        return Reason.SESSION_ALREADY_REENGAGED
    return None


def decide(
    conversion: Conversion,
    history: DeviceHistory,
    rules: AppRules,
    *,
    candidates: Collection[Engagement],
    wins: Mapping[str, int],
    active_us: Iterable[int] = (),
    claims: Iterable[Claim] = (),
    claims_unavailable: Iterable[str] = (),
) -> Decision:
    """Decides one conversion.

    `history` is the device's; what is later is passed over, unless it was decided for good (D12). `candidates` are
    engagements of the app, each once, in any order and more than needed if convenient: one that does not match or lies
    further than 31 days away is not considered. `wins` says how many conversions an engagement, by its id, has already
    won (D5). `active_us` are times of the device's events and session starts in any order: of an app with an inactivity
    window the latest before each candidate, if not in the history (D13). `claims_unavailable` are the networks that
    never answered (E4). The same values give the same decision, whatever their order (G5).
    """
    contest = _contest_of(conversion, history, rules, wins, active_us, tuple(sorted(claims_unavailable)))
    reason = _eligibility(conversion, contest.history, rules)
    if reason is not None:
        return _not_won(contest, reason, ())
    considered = [candidate for e in candidates if (candidate := _judge_engagement(e, contest)) is not None]
    considered += [_judge_claim(claim, contest) for claim in sorted(claims)]
    in_the_race = [candidate for candidate in considered if candidate.verdict is Verdict.WON]
    if not in_the_race:
        # What was received later and wins nothing is no reason either: else the moment of deciding would be one (D12).
        late = {e.engagement_id for e in candidates if e.receive_time_us > conversion.receive_time_us}
        is_refused = any(candidate.engagement_id not in late for candidate in considered)
        return _not_won(contest, Reason.NO_WINNER if is_refused else Reason.NO_CANDIDATE, _by_id(considered))
    completed_first = rules.app.prioritize_completed_view
    winner = min(in_the_race, key=lambda c: (c.level, completed_first and not c.completed_view, c.lookback_us, c[0]))
    return _won(contest, winner, _by_id([_against(winner, candidate, completed_first) for candidate in considered]))


def is_same(one: Decision | None, other: Decision | None) -> bool:
    """Returns whether two decisions on a conversion tell the same: else it gets a new version (D12).

    That a candidate was considered which did not win is no change. None: a session that goes on.
    """
    return _told(one) == _told(other)


def _told(decision: Decision | None) -> Decision | None:
    if decision is None:
        return None
    return decision._replace(candidates=(), settings_revision=0)


def judge(engagement: Engagement, conversion: Conversion, history: DeviceHistory, rules: AppRules) -> Candidate | None:
    """Judges one engagement by itself, without D5 and other candidates; None if it is no candidate."""
    return _judge_engagement(engagement, _contest_of(conversion, history, rules, {}, (), ()))


def trackers_that_may_win(conversion: Conversion, rules: AppRules) -> frozenset[str]:
    """Returns the live trackers that may win a conversion, as far as conversion and settings say (D1, F1, F2)."""
    is_install = conversion.kind is ConversionKind.INSTALL
    return frozenset(
        tracker_id
        for tracker_id, each in rules.trackers.items()
        if each.tracker.live and (is_install or conversion.event_name in each.tracker.events)
    )


def asked_activity_us(conversion: Conversion, candidates: Iterable[Engagement], claims: Iterable[Claim]) -> set[int]:
    """Returns the times before which the device's latest activity says whether candidates can win (D13).

    OURS: what happened in the second of an engagement did not come before it: many senders give whole seconds.
    """
    times_us = {min(each.time_us, conversion.time_us) for each in candidates} | {claim.time_us for claim in claims}
    return {second_of(time_us) for time_us in times_us}


def second_of(time_us: int) -> int:
    """Returns the beginning of the second of a time."""
    return time_us - time_us % SECOND_US


def needed_type(kind: ConversionKind, first_install: Attribution | None) -> TrackerType:
    """Returns the type of the trackers that may win a conversion.

    Acquisition trackers a first install (F1), the others an event (D2) or a reprocessed install (F2).
    """
    if kind is ConversionKind.INSTALL and first_install is None:
        return TrackerType.ACQUISITION
    return TrackerType.REENGAGEMENT


class _Contest(NamedTuple):
    """A conversion that is decided, with all that its candidates are judged by.

    `active_us` are all times at which the device was active, in their order; none where they do not matter (D13).
    `selected_event` is what a winner's tracker must have selected, "" for an install, which asks for none (F2).
    `first_install` is that of the history.
    """

    conversion: Conversion
    history: DeviceHistory
    first_install: Attribution | None
    rules: AppRules
    wins: Mapping[str, int]
    active_us: Sequence[int]
    claims_unavailable: tuple[str, ...]
    needed: TrackerType
    selected_event: str
    inclusive: bool


def _contest_of(
    conversion: Conversion,
    history: DeviceHistory,
    rules: AppRules,
    wins: Mapping[str, int],
    active_us: Iterable[int],
    claims_unavailable: tuple[str, ...],
) -> _Contest:
    """Applies A4, which says who is INCLUSIVE."""
    app = rules.app
    history = history.known_to(conversion, app.late_window_us)
    falls_back = (
        app.limit_ad_tracking_fallback
        and app.platform is Platform.IOS
        and conversion.limit_ad_tracking
        and not conversion.has_idfa
    )
    is_asked = app.inactivity_window_us and conversion.kind is ConversionKind.EVENT
    first_install = history.first_install
    return _Contest(
        conversion,
        history,
        first_install,
        rules,
        wins,
        sorted((*active_us, *history.active_us)) if is_asked else (),
        claims_unavailable,
        needed_type(conversion.kind, first_install),
        conversion.event_name,
        falls_back or app.device_attribution is DeviceAttribution.INCLUSIVE,
    )


def _judge_engagement(engagement: Engagement, contest: _Contest) -> Candidate | None:
    """Returns the first verdict of G2 that holds, WON while nothing refuses it; None if it is no candidate at all."""
    conversion, rules = contest.conversion, contest.rules
    lookback_us = conversion.time_us - engagement.time_us
    if not -CONSIDERED_US <= lookback_us <= CONSIDERED_US:
        return None
    late_us = engagement.receive_time_us - conversion.receive_time_us
    if late_us > 0 and late_us > rules.app.late_window_us:
        return None
    matched_by = match_kind(engagement, conversion, rules.app)
    if matched_by is None:
        return None
    is_given_back = matched_by is MatchKind.CLICK_ID and late_us <= 0
    if is_given_back:  # B1: it came before what gave it back, whatever the clocks say
        lookback_us = max(lookback_us, 0)
    elif lookback_us <= 0 and engagement.time_us % SECOND_US and engagement.time_us < conversion.latest_us:
        lookback_us = conversion.latest_us - engagement.time_us
    if lookback_us <= 0 < late_us:  # it happened after the conversion, and was received after it: what is it to it?
        return None
    engagement_id, kind, tracker_id = engagement.engagement_id, engagement.kind, engagement.tracker_id
    rules_of_tracker = rules.trackers.get(tracker_id)
    if rules_of_tracker is None:  # OURS: a tracker that the settings do not hold can win as little as an archived one
        verdict = Verdict.TRACKER_ARCHIVED
        return Candidate(engagement_id, kind, engagement.time_us, tracker_id, "", verdict, matched_by, lookback_us)
    tracker, network, windows = rules_of_tracker
    window_kind = _WINDOW_OF[kind, matched_by]
    window, level = windows[window_kind], rules.levels[window_kind]
    if window_kind is WindowKind.CLICK_MODELED and 0 < lookback_us < windows[WindowKind.CLICK_EQUALIZER].us:
        level = rules.levels[WindowKind.CLICK_EQUALIZER]  # C1: lifted, but judged by its modeled window all the same
    rule = None
    if (traffic := tracker.traffic_rules) is not None:
        rule = broken_rule(
            traffic, rules.app.platform.os, engagement.time_us, engagement.user_agent, engagement.country
        )
    verdict = (
        _refusal_by_tracker(rules_of_tracker, kind, contest)
        or _refusal_of_engagement(engagement, matched_by, contest.inclusive, late_us, network.late_pings_us)
        or _refusal_by_window(window.us, lookback_us, is_given_back=is_given_back)
        or (contest.active_us and _refusal_by_activity(min(engagement.time_us, conversion.time_us), contest))
        or (None if rule is None else Verdict.TRAFFIC_RULE)
        or _refusal_by_limit(tracker.max_conversions_per_engagement, contest.wins.get(engagement_id, 0))
        or Verdict.WON
    )
    candidate = Candidate(
        engagement_id,
        kind,
        engagement.time_us,
        tracker_id,
        network.network_id,
        verdict,
        matched_by,
        lookback_us,
        level,
        window_kind,
        window.us,
        window.layer,
        engagement.completed_view,
    )
    return candidate if verdict is not Verdict.TRAFFIC_RULE else candidate._replace(traffic_rule=rule)


def _judge_claim(claim: Claim, contest: _Contest) -> Candidate:
    """Judges as `_judge_engagement`. OURS: each claim is an answer of its own, so D5 does not limit it.

    OURS: its traffic is its own time and, as its network tells no more, the device of the conversion.
    """
    rules, conversion = contest.rules, contest.conversion
    lookback_us = conversion.time_us - claim.time_us
    claim_id, network_id = claim.candidate_id, claim.network_id
    rules_of_tracker = rules.tracker_for_claim(network_id, claim.campaign_name, contest.needed, contest.selected_event)
    if rules_of_tracker is None:
        verdict, matched_by = Verdict.NO_TRACKER_FOR_CLAIM, MatchKind.CLAIM
        return Candidate(claim_id, claim.kind, claim.time_us, "", network_id, verdict, matched_by, lookback_us)
    tracker, network, windows = rules_of_tracker
    window_kind = _WINDOW_OF[claim.kind, MatchKind.CLAIM]
    window = windows[window_kind]
    rule = None
    if (traffic := tracker.traffic_rules) is not None:
        rule = broken_rule(traffic, rules.app.platform.os, claim.time_us, conversion.user_agent, conversion.country)
    verdict = (
        _refusal_by_tracker(rules_of_tracker, claim.kind, contest)
        or _refusal_of_claim(claim, network.granular_data_policy, window.us)
        or _refusal_by_window(window.us, lookback_us)
        or (contest.active_us and _refusal_by_activity(claim.time_us, contest))
        or (None if rule is None else Verdict.TRAFFIC_RULE)
        or Verdict.WON
    )
    return Candidate(
        claim_id,
        claim.kind,
        claim.time_us,
        tracker.tracker_id,
        network_id,
        verdict,
        MatchKind.CLAIM,
        lookback_us,
        rules.levels[window_kind],
        window_kind,
        window.us,
        window.layer,
        redacted=not claim.granular_data_allowed,
        traffic_rule=rule if verdict is Verdict.TRAFFIC_RULE else None,
    )


def _refusal_by_tracker(rules_of_tracker: TrackerRules, kind: EngagementKind, contest: _Contest) -> Verdict | None:
    """Applies D1, D2, F1, F2, B5."""
    tracker = rules_of_tracker.tracker
    if not tracker.live:
        return Verdict.TRACKER_ARCHIVED
    if tracker.type is not contest.needed:
        return Verdict.WRONG_TRACKER_TYPE
    if contest.selected_event and contest.selected_event not in tracker.events:
        return Verdict.EVENT_NOT_SELECTED
    if kind is _IMPRESSION and contest.needed is TrackerType.REENGAGEMENT:
        allowed = contest.rules.app.allow_reengagement_impressions and rules_of_tracker.network.supports_impressions
        return None if allowed else Verdict.IMPRESSIONS_NOT_ALLOWED
    return None


def _refusal_of_engagement(
    engagement: Engagement, matched_by: MatchKind, inclusive: bool, late_us: int, late_pings_us: int
) -> Verdict | None:
    """Applies A4, D12, A6, A9, and refuses clicks that failed their checks."""
    if engagement.device_keys and not inclusive and matched_by in _BY_LESS_THAN_ID:
        return Verdict.MATCH_KIND_NOT_ALLOWED
    if engagement.is_ping and late_us > late_pings_us:
        return Verdict.REPORTED_LATE
    if engagement.duplicate:
        return Verdict.DUPLICATE_CLICK
    if engagement.visitor is not Visitor.PERSON:
        return Verdict.BOT if engagement.visitor is Visitor.BOT else Verdict.PREFETCH
    if not engagement.valid:
        return Verdict.BLOCKLISTED
    return None


def _refusal_of_claim(claim: Claim, policy: GranularDataPolicy, window_us: int) -> Verdict | None:
    """Applies E2, B4."""
    if not claim.granular_data_allowed and policy is GranularDataPolicy.REJECT:
        return Verdict.GRANULAR_DATA_NOT_ALLOWED
    if claim.kind is _IMPRESSION and window_us == DISABLED:
        return Verdict.VIEW_WINDOW_ZERO
    return None


def _refusal_by_window(window_us: int, lookback_us: int, *, is_given_back: bool = False) -> Verdict | None:
    """Applies B1, B2."""
    if window_us == DISABLED:
        return Verdict.WINDOW_DISABLED
    if lookback_us <= 0 and not is_given_back:
        return Verdict.AFTER_CONVERSION
    if lookback_us >= window_us:
        return Verdict.OUTSIDE_WINDOW
    return None


def _refusal_by_activity(time_us: int, contest: _Contest) -> Verdict | None:
    """Applies D13."""
    before = bisect_left(contest.active_us, second_of(time_us))
    if before == 0 or time_us - contest.active_us[before - 1] >= contest.rules.app.inactivity_window_us:
        return None
    return Verdict.DEVICE_ACTIVE


def _refusal_by_limit(limit: int, won: int) -> Verdict | None:
    """Applies D5."""
    return Verdict.ENGAGEMENT_SPENT if limit and won >= limit else None


def _against(winner: Candidate, candidate: Candidate, completed_first: bool) -> Candidate:
    """Gives a candidate its last verdict: one that nothing refused has lost to the winner, unless it is it (C2)."""
    if candidate is winner or candidate.verdict is not Verdict.WON:
        return candidate
    if candidate.level != winner.level:
        return candidate._replace(verdict=Verdict.LOST_TO_HIGHER_LEVEL)
    if completed_first and winner.completed_view and not candidate.completed_view:
        return candidate._replace(verdict=Verdict.LOST_TO_COMPLETED_VIEW)
    return candidate._replace(verdict=Verdict.LOST_TO_MORE_RECENT)


def _won(contest: _Contest, winner: Candidate, judged: tuple[Candidate, ...]) -> Decision:
    conversion, rules = contest.conversion, contest.rules
    original = contest.first_install if conversion.kind is ConversionKind.INSTALL else None
    if conversion.kind is ConversionKind.EVENT:
        outcome, attribution_type = Outcome.REENGAGED, AttributionType.REENGAGEMENT
    elif original is None:
        outcome, attribution_type = Outcome.ATTRIBUTED, AttributionType.INSTALL
    else:
        outcome, attribution_type = Outcome.REPROCESSED, AttributionType.REENGAGEMENT
    tracker = rules.trackers[winner.tracker_id].tracker
    return Decision(
        conversion_id=conversion.conversion_id,
        outcome=outcome,
        attribution_type=attribution_type,
        settings_revision=rules.revision,
        install_time_us=_install_time_us(contest),
        tracker_id=winner.tracker_id,
        network_id=winner.network_id,
        campaign=None if winner.redacted else tracker.campaign,
        segment=None if winner.redacted else tracker.segment,
        redacted=winner.redacted,
        source_conversion_id=conversion.conversion_id,
        source_time_us=conversion.time_us,
        source_engagement_id=winner.engagement_id,
        engagement_id=winner.engagement_id,
        matched_by=winner.matched_by,
        level=winner.level,
        lookback_us=winner.lookback_us,
        window=winner.window,
        window_us=winner.window_us,
        window_layer=winner.window_layer,
        reprocess_for=None if original is None else original.conversion_id,
        custom_dimensions=_clock_skew(conversion, winner),
        candidates=judged,
        claims_unavailable=contest.claims_unavailable,
    )


def _not_won(contest: _Contest, reason: Reason, judged: tuple[Candidate, ...]) -> Decision:
    conversion, rules = contest.conversion, contest.rules
    source = original = None
    made_by: Attribution | Conversion | None = None
    if conversion.kind is ConversionKind.EVENT:
        made_by = source = source_in_force(conversion.time_us, contest.history, rules)
        is_credited = source is not None and source.tracker_id is not None
        outcome = Outcome.CREDITED if is_credited else Outcome.UNATTRIBUTED
    elif reason is Reason.DUPLICATE_INSTALL:
        outcome = Outcome.DUPLICATE
    else:
        made_by, original = conversion, contest.first_install
        outcome = Outcome.ORGANIC if original is None else Outcome.REPROCESSED_ORGANIC
    tracker = None if source is None or source.redacted else rules.trackers.get(source.tracker_id or "")
    return Decision(
        conversion_id=conversion.conversion_id,
        outcome=outcome,
        attribution_type=AttributionType.NONE if source is None else source.type,
        settings_revision=rules.revision,
        install_time_us=_install_time_us(contest),
        reason=reason,
        tracker_id=None if source is None else source.tracker_id,
        network_id=None if source is None else source.network_id,
        campaign=None if tracker is None else tracker.tracker.campaign,
        segment=None if tracker is None else tracker.tracker.segment,
        redacted=source is not None and source.redacted,
        source_conversion_id=None if made_by is None else made_by.conversion_id,
        source_time_us=None if made_by is None else made_by.time_us,
        source_engagement_id=None if source is None else source.engagement_id,
        reprocess_for=None if original is None else original.conversion_id,
        custom_dimensions=_mtr_rejected(conversion, reason, rules),
        candidates=judged,
        claims_unavailable=contest.claims_unavailable,
    )


def source_in_force(time_us: int, history: DeviceHistory, rules: AppRules) -> Attribution | None:
    """Returns the source of a device at a time (D6, D8), an organic one too; None when it has none or has run out.

    OURS: exactly at its end a source has run out, as a window has (B1), and it leaves no older one behind it.
    """
    source = history.source_at(time_us)
    if source is None or source.tracker_id is None:
        return source
    age_us = time_us - source.time_us
    if source.event_name and age_us >= rules.reengagement_period_us(source.event_name):
        return None
    tracker = rules.trackers.get(source.tracker_id)
    if tracker is not None and age_us >= tracker.windows[WindowKind.EVENT_ASSOCIATION].us:
        return None
    return source


def _clock_skew(conversion: Conversion, winner: Candidate) -> Mapping[str, str]:
    """Applies B1: by how many seconds a click's time lies after that of the conversion which gave it back."""
    if winner.time_us <= conversion.latest_us:
        return {}
    seconds = (winner.time_us - conversion.time_us) / SECOND_US
    return {"clock_skew": f"{seconds:.6f}".rstrip("0").rstrip(".")}


def _mtr_rejected(conversion: Conversion, reason: Reason, rules: AppRules) -> Mapping[str, str]:
    """Applies D3."""
    if reason is Reason.MTR_NOT_MET:
        return {"mtr_rejected": str(rules.mtr_us(conversion.event_name) // SECOND_US)}
    return {}


def _install_time_us(contest: _Contest) -> int | None:
    """Applies D9: returns when the first install that is known happened. OURS: an install knows of itself."""
    if contest.first_install is not None:
        return contest.first_install.time_us
    return contest.conversion.time_us if contest.conversion.kind is ConversionKind.INSTALL else None


def _by_id(candidates: Iterable[Candidate]) -> tuple[Candidate, ...]:
    return tuple(sorted(candidates, key=itemgetter(0)))
