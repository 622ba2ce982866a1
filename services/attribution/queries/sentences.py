"""Sentences that tell people what became of a record, and why. Times are UTC, to the second."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from google.protobuf import duration_pb2, timestamp_pb2

from libs.domain.event_names import DEEP_LINK, IDENTITY_LINK, INSTALL
from libs.domain.visitors import find_bot
from libs.messages import short_name
from libs.time import SECOND_US, describe_duration, timestamp_us, to_duration
from reengage.attribution.v1 import decision_pb2
from reengage.ingest.v1 import record_batch_pb2, record_pb2, rejected_record_pb2
from reengage.postback.v1 import claim_pb2
from services.attribution.decision.rules import UNLIMITED
from services.attribution.decision.shared_ids import MAX_COUNTED
from services.attribution.queries.claim_sentences import claim_sentences

_REASONS = {
    decision_pb2.REASON_DUPLICATE_INSTALL: "this device had installed the app before",
    decision_pb2.REASON_EVENT_BEFORE_INSTALL: "it happened at or before the device's first known install",
    decision_pb2.REASON_EVENT_NOT_SELECTED: "no live reengagement tracker of the app selects this event",
    decision_pb2.REASON_REFUND: "its amount is negative, and a refund reengages nobody",
    decision_pb2.REASON_SESSION_ALREADY_REENGAGED: "SessionBegin had reengaged this device within 24 hours",
    decision_pb2.REASON_NO_CANDIDATE: "no click or impression received before it, and no claim, matched this device",
    decision_pb2.REASON_NO_WINNER: "every candidate was refused",
    decision_pb2.REASON_DEVICE_NOT_KNOWN: "nothing of this device was received before it",
}

_REFUSALS = {
    decision_pb2.VERDICT_NO_TRACKER_FOR_CLAIM: "its network has no live tracker for it",
    decision_pb2.VERDICT_TRACKER_ARCHIVED: "its tracker is archived or not known",
    decision_pb2.VERDICT_WRONG_TRACKER_TYPE: "its tracker is for the other kind of conversion",
    decision_pb2.VERDICT_EVENT_NOT_SELECTED: "its tracker does not select this event",
    decision_pb2.VERDICT_IMPRESSIONS_NOT_ALLOWED: "impressions do not take part in reengagement here",
    decision_pb2.VERDICT_MATCH_KIND_NOT_ALLOWED: (
        "it carried a device id of its own, so IP address and user agent do not count"
    ),
    decision_pb2.VERDICT_REPORTED_LATE: (
        "a server reported it after the conversion, later than late_pings of its network allows"
    ),
    decision_pb2.VERDICT_DUPLICATE_CLICK: "it repeats an earlier click with the same click id",
    decision_pb2.VERDICT_PREFETCH: "a browser fetched it beforehand, no person made it",
    decision_pb2.VERDICT_BLOCKLISTED: "it was marked as invalid",
    decision_pb2.VERDICT_GRANULAR_DATA_NOT_ALLOWED: "the user does not share granular data",
    decision_pb2.VERDICT_VIEW_WINDOW_ZERO: "the tracker accepts no view claims",
    decision_pb2.VERDICT_DEVICE_ACTIVE: "the device had been active within the app's inactivity window before it",
    decision_pb2.VERDICT_ENGAGEMENT_SPENT: "it has won as many conversions as its tracker allows",
}

_INVALIDITIES = {
    record_pb2.INVALIDITY_BAD_SIGNATURE: "its signature was wrong, or its link had expired",
    record_pb2.INVALIDITY_TOO_LATE: "a server reported it more than 12 hours late",
    record_pb2.INVALIDITY_TIME_NOT_READABLE: "a server gave a time for it that cannot be read",
    record_pb2.INVALIDITY_BLOCKED_SITE: "the app's blocklist names its site",
    record_pb2.INVALIDITY_BLOCKED_IP_ADDRESS: "the app's blocklist names its address",
    record_pb2.INVALIDITY_BLOCKED_DEVICE_ID: "the app's blocklist names its device",
}

_TRAFFIC = {
    decision_pb2.TRAFFIC_RULE_DATES: "that time",
    decision_pb2.TRAFFIC_RULE_OS: "its operating system",
    decision_pb2.TRAFFIC_RULE_OS_VERSION: "its version of the operating system",
    decision_pb2.TRAFFIC_RULE_DEVICE_TYPE: "its type of device",
    decision_pb2.TRAFFIC_RULE_COUNTRY: "its country",
}

_LOST = frozenset(
    (
        decision_pb2.VERDICT_LOST_TO_HIGHER_LEVEL,
        decision_pb2.VERDICT_LOST_TO_COMPLETED_VIEW,
        decision_pb2.VERDICT_LOST_TO_MORE_RECENT,
    )
)

_EFFECTS = {
    decision_pb2.OUTCOME_LINKED: "tied its identities to the device",
    decision_pb2.OUTCOME_CONTINUED: (
        "is no event: its session goes on with what the device did in the 30 minutes before"
    ),
}
"""The effects of records that are no conversions."""

_NO_EVENTS = frozenset((decision_pb2.OUTCOME_REFUSED, decision_pb2.OUTCOME_CONTINUED))
"""Outcomes of what is named like an event, and was none."""

_LAYERS = {
    decision_pb2.LAYER_TRACKER: "set on the tracker",
    decision_pb2.LAYER_NETWORK: "set for the network",
    decision_pb2.LAYER_APP: "set for the app",
    decision_pb2.LAYER_BUILT_IN: "built in",
}

_MATCHES = {
    decision_pb2.MATCH_KIND_CLICK_ID: "matched by its click id",
    decision_pb2.MATCH_KIND_DEVICE_ID: "matched by device id",
    decision_pb2.MATCH_KIND_MODELED: "modeled from IP address and user agent",
    decision_pb2.MATCH_KIND_IP: "matched by IP address alone",
    decision_pb2.MATCH_KIND_CLAIM: "claimed by its network",
}

_NAMES = {INSTALL: "The install", DEEP_LINK: "The open by deep link", IDENTITY_LINK: "The identity link"}

_LATE = {
    decision_pb2.BECAUSE_LATE_ENGAGEMENT: "click or impression",
    decision_pb2.BECAUSE_LATE_INSTALL: "install",
    decision_pb2.BECAUSE_LATE_EVENT: "event",
}


class Attributed(NamedTuple):
    """The attribution at which the minimum time to reengagement of a conversion began."""

    conversion_id: str
    event_name: str
    time_us: int


class Late(NamedTuple):
    """A record that arrived late (D12): a word for what it is, as `click` or the name of an event, and its receipt."""

    name: str
    receive_time_us: int


class Replaced(NamedTuple):
    """The version before the one explained, and what replaced it: a re-attribution, or "" and a late record.

    `late` is None when that record is no longer stored.
    """

    decision: decision_pb2.Decision
    reattribution_id: str
    late: Late | None = None


class Known(NamedTuple):
    """The facts behind the verdict on a candidate, as far as they are known.

    `record` is that of an engagement, received `reported_us` after the conversion; its network has `late_pings_us`
    (D12). The device was last active at `active_us`, `idle_us` before, and its app has `inactivity_window_us` (D13).
    """

    record: record_pb2.Record | None = None
    reported_us: int | None = None
    late_pings_us: int | None = None
    active_us: int | None = None
    idle_us: int = 0
    inactivity_window_us: int = 0


NOTHING = Known()


def summary(
    decision: decision_pb2.Decision, *, latest: Attributed | None = None, replaced: Replaced | None = None
) -> str:
    """Returns what happened and why, in a few sentences. `latest` is needed only when the reason is MTR_NOT_MET."""
    parts = [_outcome(decision, _reason(decision, latest))]
    is_event = decision.event_name not in (INSTALL, IDENTITY_LINK)
    if is_event and decision.outcome not in _NO_EVENTS and not decision.install_known:
        parts.append("No install of the device is known.")
    if replaced is not None:
        before = replaced.decision
        parts.append(f"{_version(decision, replaced)} Version {before.version} was {_short(before)}.")
    if decision.HasField("receive_time"):
        parts.append(f"It was first received at {_at(decision.receive_time)}.")
    return " ".join(parts)


def sentences(
    decision: decision_pb2.Decision,
    *,
    late_pings: Iterable[decision_pb2.Candidate] = (),
    answers: Iterable[claim_pb2.ClaimAnswer] = (),
    known: Mapping[str, Known] = MappingProxyType({}),
) -> Iterator[str]:
    """Yields one sentence for each candidate, then for each late ping, which the decision does not list (D12).

    Then one for each network that made no claim (E4), given its `answers`, and for each id of the record that was not
    used, because it is shared (A8). `known` has, by engagement id, what more is known of candidates than their verdict.
    """
    winner = next((each for each in decision.candidates if each.verdict == decision_pb2.VERDICT_WON), None)
    for candidate in (*decision.candidates, *late_pings):
        yield f"{_who(candidate)} {_fate(candidate, winner, known.get(candidate.engagement_id, NOTHING))}."
    yield from claim_sentences(answers)
    for shared in decision.shared_ids:
        count = shared.advertising_id_count
        many = f"{count} or more" if count == MAX_COUNTED else str(count)
        yield f"Its device id of kind {shared.kind} is shared by {many} advertising ids, so it was not used."


def pending_summary(
    record: record_pb2.Record, receive_time: timestamp_pb2.Timestamp, network_ids: Sequence[str], until_us: int
) -> str:
    """Returns the summary of a conversion that waits for claims (E1)."""
    return (
        f"{_received(record, receive_time)}. It waits for {_list(network_ids)} to claim it or not, and is decided at "
        f"{_at_us(until_us)} at the latest."
    )


def behind_summary(
    record: record_pb2.Record, receive_time: timestamp_pb2.Timestamp, first_id: str, network_ids: Sequence[str]
) -> str:
    """Returns the summary of a conversion that is decided after an earlier one, which waits for claims."""
    return (
        f"{_received(record, receive_time)}. It is decided after {first_id} of the same device, which waits for "
        f"{_list(network_ids)} to claim it or not."
    )


def early_summary(record: record_pb2.Record, receive_time: timestamp_pb2.Timestamp) -> str:
    """Returns the summary of a conversion with the first hashed ids of an app (A3)."""
    return (
        f"{_received(record, receive_time)}. Its hashed id is the first of its kind that came from this app: it is "
        "decided once the hashes of the ids that came before are known."
    )


def accepted_summary(record: record_pb2.Record, receive_time: timestamp_pb2.Timestamp) -> str:
    """Returns the summary of a conversion that is about to be decided."""
    return f"{_received(record, receive_time)}. It is not decided yet; decisions follow within seconds."


def engagement_summary(record: record_pb2.Record, won_count: int) -> str:
    """Returns the summary of a click or an impression."""
    kind = record.WhichOneof("kind")
    tracker_id = record.impression.tracker_id if kind == "impression" else record.click.tracker_id
    name = "An impression" if kind == "impression" else "A click"
    made = f"{name} on tracker {tracker_id} at {_at(record.event_time)}"
    visitor = record.impression.visitor or record.click.visitor
    if visitor:
        by = _bot(record) if visitor == record_pb2.VISITOR_BOT else "a browser that fetched it beforehand"
        return f"{made} by {by}. No person made it, so it wins nothing."
    if why := _invalidity(record):
        return f"{made}. {why[0].upper()}{why[1:]}, so it wins nothing."
    won = (
        f"It has won {won_count} conversion{'s' if won_count > 1 else ''}" if won_count else "It has won no conversion"
    )
    return f"{made}, which may win conversions. {won}."


def session_summary(record: record_pb2.Record, receive_time: timestamp_pb2.Timestamp) -> str:
    """Returns the summary of a session that fired no event."""
    if record.session.state == record_pb2.Session.STATE_STOP:
        why = "the end of a session"
    else:
        why = "a session that goes on with what the device did in the 30 minutes before"
    return f"{_received(record, receive_time)}. It is {why}, so nothing is decided about it."


def refused_summary(refusals: Sequence[rejected_record_pb2.RejectedRecord]) -> str:
    """Returns the summary of a record that was never accepted; the newest refusal comes first."""
    newest = refusals[0]
    fields = "; ".join(f"{wrong.field}: {wrong.description}" for wrong in newest.violations)
    times = f"{len(refusals) - 1} time{'s' if len(refusals) > 2 else ''}"
    before = f" It had been refused {times} before." if refusals[1:] else ""
    return f"It was refused at {_at(newest.reject_time)} and not stored: {fields}.{before}"


def violation_sentences(violations: Sequence[record_batch_pb2.FieldViolation]) -> Iterator[str]:
    """Yields one sentence for each wrong field."""
    for wrong in violations:
        yield f"{wrong.field or 'The record'} was refused ({wrong.reason}): {wrong.description}."


def _outcome(decision: decision_pb2.Decision, reason: str) -> str:
    what = f"{_NAMES.get(decision.event_name, decision.event_name)} at {_at(decision.conversion_time)}"
    match decision.outcome:
        case decision_pb2.OUTCOME_ATTRIBUTED:
            return f"{what} is credited to {_tracker(decision)}: {_winner(decision)}."
        case decision_pb2.OUTCOME_REENGAGED:
            return f"{what} reengaged the device for {_tracker(decision)}: {_winner(decision)}."
        case decision_pb2.OUTCOME_REPROCESSED:
            return f"{what}, {_anew(decision)}, is credited to {_tracker(decision)}: {_winner(decision)}."
        case decision_pb2.OUTCOME_CREDITED:
            kind = decision_pb2.AttributionType.Name(decision.attribution_type).removeprefix("ATTRIBUTION_TYPE_")
            return (
                f"{what} is credited to the device's current source, the {kind.lower()} of {_tracker(decision)}. "
                f"It did not reengage: {reason}."
            )
        case decision_pb2.OUTCOME_UNATTRIBUTED:
            return (
                f"{what} is credited to nobody, because the device had no attributed source then. "
                f"It did not reengage: {reason}."
            )
        case decision_pb2.OUTCOME_ORGANIC:
            return f"{what} is organic: {reason}."
        case decision_pb2.OUTCOME_REPROCESSED_ORGANIC:
            return f"{what}, {_anew(decision)}, is organic: {reason}."
        case decision_pb2.OUTCOME_DUPLICATE:
            return f"{what} is a duplicate: {reason}."
        case _:
            return f"{what} {_EFFECTS.get(decision.outcome) or f'had no effect: {reason}'}."


def _winner(decision: decision_pb2.Decision) -> str:
    won = next((each for each in decision.candidates if each.verdict == decision_pb2.VERDICT_WON), None)
    if won is None:
        return decision.engagement_id
    others = len(decision.candidates) - 1
    beside = f"; {others} other candidate{'s' if others > 1 else ''} did not win" if others else ""
    return f"{_name(won)} came {_before(won, 'it')}, inside its window of {_window(won)}, and was {_match(won)}{beside}"


def _anew(decision: decision_pb2.Decision) -> str:
    return f"which came so long after the first install {decision.reprocess_for} that it counts as a new one"


def _reason(decision: decision_pb2.Decision, latest: Attributed | None) -> str:
    if decision.reason != decision_pb2.REASON_MTR_NOT_MET:
        return _REASONS.get(decision.reason) or _reason_name(decision)
    seconds = int(decision.custom_dimensions.get("mtr_rejected", "0"))
    least = f"the minimum time to reengagement, {describe_duration(duration_pb2.Duration(seconds=seconds))},"
    if latest is None:
        return f"{least} had not passed since the device's latest attribution"
    until = _at_us(latest.time_us + seconds * SECOND_US)
    return (
        f"{least} had not passed since the device's latest attribution, {noun(latest.event_name)} "
        f"{latest.conversion_id} at {_at_us(latest.time_us)}; it lasts until {until}"
    )


def _version(decision: decision_pb2.Decision, replaced: Replaced) -> str:
    """Says what made a version that is not the first."""
    number, at = decision.version, _at(decision.decide_time)
    if replaced.reattribution_id:
        return f"This is version {number}, made at {at} by the re-attribution {replaced.reattribution_id}."
    name = _LATE.get(decision.because, "record") if replaced.late is None else replaced.late.name
    late_us = 0 if replaced.late is None else replaced.late.receive_time_us - timestamp_us(decision.receive_time)
    arrived = f"arrived {_length(late_us)} after it" if late_us > 0 else "arrived late"
    return f"It was decided again as version {number} at {at}, because {name} {decision.late_record_id} {arrived}."


def _reason_name(decision: decision_pb2.Decision) -> str:
    return short_name(decision_pb2.Reason.DESCRIPTOR, decision.reason)


def _verdict_name(candidate: decision_pb2.Candidate) -> str:
    return short_name(decision_pb2.Verdict.DESCRIPTOR, candidate.verdict)


def _short(decision: decision_pb2.Decision) -> str:
    outcome = decision_pb2.Outcome.Name(decision.outcome).removeprefix("OUTCOME_")
    credited = f" to {_tracker(decision)}" if decision.tracker_id else ""
    engagement = f" by {decision.engagement_id}" if decision.engagement_id else ""
    reason = f" ({_reason_name(decision)})" if decision.reason else ""
    return f"{outcome}{credited}{engagement}{reason}"


def _who(candidate: decision_pb2.Candidate) -> str:
    name = _name(candidate)
    on = f" on {_tracker(candidate)}" if candidate.tracker_id else ""
    return f"{name[0].upper()}{name[1:]}{on} at {_at(candidate.engagement_time)}"


def _fate(candidate: decision_pb2.Candidate, winner: decision_pb2.Candidate | None, known: Known) -> str:
    if winner is not None and candidate.verdict in _LOST:
        return _lost(candidate, winner)
    lookback = _before(candidate, "the conversion")
    match candidate.verdict:
        case decision_pb2.VERDICT_WON:
            return f"won: {lookback}, inside its window of {_window(candidate)}, {_match(candidate)}"
        case decision_pb2.VERDICT_BOT:
            return f"was refused: {_bot(known.record)} made it, no person"
        case decision_pb2.VERDICT_TRAFFIC_RULE:
            return f"was refused: its tracker's traffic rules do not take {_traffic(candidate, known.record)}"
        case decision_pb2.VERDICT_OUTSIDE_WINDOW:
            return f"was refused: {lookback}, outside its window of {_window(candidate)}, {_match(candidate)}"
        case decision_pb2.VERDICT_WINDOW_DISABLED:
            layer = _LAYERS.get(candidate.window_layer, "unknown")
            return f"was refused: {_match(candidate)}, for which the window is off ({layer})"
        case decision_pb2.VERDICT_AFTER_CONVERSION if candidate.lookback.ToNanoseconds() == 0:
            return "was refused: it came at the same instant as the conversion, not before it"
        case decision_pb2.VERDICT_AFTER_CONVERSION:
            after = duration_pb2.Duration()
            after.FromNanoseconds(-candidate.lookback.ToNanoseconds())
            return f"was refused: it came {describe_duration(after)} after the conversion"
        case _:
            return f"was refused: {_refusal(candidate, known)}"


def _refusal(candidate: decision_pb2.Candidate, known: Known) -> str:
    match candidate.verdict:
        case decision_pb2.VERDICT_REPORTED_LATE if known.reported_us is not None and known.late_pings_us is not None:
            allowed = _length(known.late_pings_us) if known.late_pings_us else "0"
            reported = f"reported {_length(known.reported_us)} after the conversion"
            return f"{reported}; late_pings of {candidate.network_id} is {allowed}"
        case decision_pb2.VERDICT_BLOCKLISTED:
            return _invalidity(known.record) or _REFUSALS[candidate.verdict]
        case decision_pb2.VERDICT_DEVICE_ACTIVE if known.active_us is not None:
            active = f"the device was last active {_length(known.idle_us)} before, at {_at_us(known.active_us)}"
            return f"{active}; inactivity_window of the app is {_length(known.inactivity_window_us)}"
        case _:
            return _REFUSALS.get(candidate.verdict) or _verdict_name(candidate)


def _lost(candidate: decision_pb2.Candidate, winner: decision_pb2.Candidate) -> str:
    before = f"{describe_duration(candidate.lookback)} before the conversion"
    lost = f"({before}, {_match(candidate)}) lost to {_name(winner)}, which"
    match candidate.verdict:
        case decision_pb2.VERDICT_LOST_TO_HIGHER_LEVEL:
            return (
                f"{lost} is on level {winner.level} of the waterfall, this one on level {candidate.level}: that one "
                f"was {_match(winner)}"
            )
        case decision_pb2.VERDICT_LOST_TO_COMPLETED_VIEW:
            return f"{lost} was a completed view"
        case _ if winner.engagement_time == candidate.engagement_time:
            return f"{lost} was as recent and has the lower id"
        case _:
            return f"{lost} was more recent: {describe_duration(winner.lookback)} before the conversion"


def _invalidity(record: record_pb2.Record | None) -> str:
    """Returns words for why an engagement is invalid, with the reason as programs know it; "" if nobody said why."""
    if record is None:
        return ""
    said = record.impression if record.WhichOneof("kind") == "impression" else record.click
    words = _INVALIDITIES.get(said.invalidity)
    if words is None:
        return ""
    reason = f": {said.block_reason}" if said.block_reason else ""
    return f"{words}{reason} ({record_pb2.Invalidity.Name(said.invalidity).removeprefix('INVALIDITY_')})"


def _bot(record: record_pb2.Record | None) -> str:
    """Returns words for the bot that made an engagement (A9); its sender may know it by more than its user agent."""
    return (record and find_bot(record.user_agent)) or "a bot"


def _traffic(candidate: decision_pb2.Candidate, record: record_pb2.Record | None) -> str:
    """Returns words for what a traffic rule refused; `record` has the country of an engagement that is still stored."""
    words = _TRAFFIC.get(candidate.traffic_rule, "it")
    if candidate.traffic_rule != decision_pb2.TRAFFIC_RULE_COUNTRY or record is None:
        return words
    return f"{words}, {record.country or 'which is not known'}"


def _before(candidate: decision_pb2.Candidate, conversion: str) -> str:
    """Says how long before the conversion a candidate came, if the clocks say so (B1)."""
    if candidate.matched_by == decision_pb2.MATCH_KIND_CLICK_ID and candidate.lookback.ToNanoseconds() == 0:
        return f"before {conversion}, which gave it back, whatever the clocks say"
    return f"{describe_duration(candidate.lookback)} before {conversion}"


def _name(candidate: decision_pb2.Candidate) -> str:
    kind = short_name(decision_pb2.EngagementKind.DESCRIPTOR, candidate.engagement_kind).lower() or "engagement"
    if candidate.matched_by == decision_pb2.MATCH_KIND_CLAIM:
        return f"the {kind} that {candidate.network_id} claims"
    return f"{kind} {candidate.engagement_id}"


def _tracker(credited: decision_pb2.Decision | decision_pb2.Candidate) -> str:
    return f"tracker {credited.tracker_id} of {credited.network_id}"


def _match(candidate: decision_pb2.Candidate) -> str:
    return _MATCHES.get(candidate.matched_by, "matched")


def _window(candidate: decision_pb2.Candidate) -> str:
    length = "no limit" if candidate.window.ToMicroseconds() >= UNLIMITED else describe_duration(candidate.window)
    return f"{length} ({_LAYERS.get(candidate.window_layer, 'unknown')})"


def _received(record: record_pb2.Record, receive_time: timestamp_pb2.Timestamp) -> str:
    match record.WhichOneof("kind"):
        case "install":
            what = "The install"
        case "event":
            what = record.event.event_name
        case "session":
            what = "The session"
        case "deep_link_open":
            what = "The open by deep link"
        case _:
            what = "The identity link"
    return f"{what} at {_at(record.event_time)} was received at {_at(receive_time)}"


def noun(event_name: str) -> str:
    """Returns a word for a conversion, to stand before its id."""
    return _NAMES[event_name].removeprefix("The ") if event_name in _NAMES else event_name


def _length(length_us: int) -> str:
    return describe_duration(to_duration(length_us))


def _list(words: Sequence[str]) -> str:
    *others, last = words
    return f"{', '.join(others)} and {last}" if others else last


def _at(time: timestamp_pb2.Timestamp) -> str:
    return _at_us(time.seconds * SECOND_US)


def _at_us(time_us: int) -> str:
    time = timestamp_pb2.Timestamp(seconds=time_us // SECOND_US)
    return time.ToDatetime().strftime("%Y-%m-%d %H:%M:%S UTC")
