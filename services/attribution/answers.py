"""Decisions in the words of the API: as messages, and as sentences a person can read."""

from collections.abc import Iterator

from google.protobuf import duration_pb2, timestamp_pb2

from reengage.attribution.v1 import attribution_pb2
from services.attribution.history import Attribution
from services.attribution.model import AttributionType, Candidate, Conversion, ConversionKind, Decision, Reason
from services.attribution.rules import UNLIMITED

_OUTCOMES = {name.removeprefix("OUTCOME_"): number for name, number in attribution_pb2.Outcome.items()}
_TYPES = {name.removeprefix("ATTRIBUTION_TYPE_"): number for name, number in attribution_pb2.AttributionType.items()}
_KINDS = {name.removeprefix("MATCH_KIND_"): number for name, number in attribution_pb2.MatchKind.items()}
_LAYERS = {name.removeprefix("LAYER_"): number for name, number in attribution_pb2.Layer.items()}


def decision_message(conversion: Conversion, decision: Decision) -> attribution_pb2.Decision:
    """The decision as a message, without what only the caller knows: app, version, event, device, other times."""
    message = _message(conversion, decision.settings_revision, _OUTCOMES[decision.outcome])
    message.attribution_type = _TYPES[decision.attribution_type]
    message.install_known = decision.install_known
    if decision.reason is not None:
        message.reason = decision.reason
    if decision.tracker_id is not None:
        message.tracker_id = decision.tracker_id
        message.network_id = decision.network_id or ""
        message.campaign_id = decision.campaign or ""
        message.segment_id = decision.segment or ""
    if decision.engagement_id is not None and decision.matched_by is not None:
        message.engagement_id = decision.engagement_id
        message.matched_by = _KINDS[decision.matched_by]
        message.level = decision.level or 0
        message.lookback.CopyFrom(_duration(decision.lookback_us or 0))
        if decision.window_us is not None and decision.window_layer is not None:
            message.window.CopyFrom(_duration(decision.window_us))
            message.window_layer = _LAYERS[decision.window_layer]
    if decision.reprocess_for is not None:
        message.reprocess_for = decision.reprocess_for
    if decision.custom_dimensions:
        message.custom_dimensions.update(decision.custom_dimensions)
    if decision.candidates:
        message.candidates.extend(_candidate(candidate) for candidate in decision.candidates)
    if decision.claims_unavailable:
        message.claims_unavailable.extend(decision.claims_unavailable)
    return message


def linked_message(conversion: Conversion, revision: int) -> attribution_pb2.Decision:
    """An identity link that was taken (F3)."""
    return _message(conversion, revision, attribution_pb2.OUTCOME_LINKED)


def refused_message(conversion: Conversion, revision: int, reason: Reason) -> attribution_pb2.Decision:
    """A record without effect, and why."""
    message = _message(conversion, revision, attribution_pb2.OUTCOME_REFUSED)
    message.reason = reason
    return message


def source_message(source: Attribution, campaign_id: str) -> attribution_pb2.Source:
    """An attribution of a device."""
    is_install = source.kind is ConversionKind.INSTALL
    return attribution_pb2.Source(
        conversion_id=source.conversion_id,
        since_time=_timestamp(source.time_us),
        attribution_type=_TYPES[
            AttributionType.INSTALL if is_install and source.type is AttributionType.NONE else source.type
        ],
        event_name="_install" if is_install else source.event_name,
        tracker_id=source.tracker_id or "",
        network_id=source.network_id or "",
        campaign_id=campaign_id,
        engagement_id=source.engagement_id or "",
        matched_by=_KINDS[source.matched_by] if source.matched_by else attribution_pb2.MATCH_KIND_UNSPECIFIED,
    )


def _message(
    conversion: Conversion, revision: int, outcome: attribution_pb2.Outcome.ValueType
) -> attribution_pb2.Decision:
    message = attribution_pb2.Decision(
        conversion_id=conversion.conversion_id, outcome=outcome, settings_revision=revision
    )
    message.conversion_time.CopyFrom(_timestamp(conversion.time_us))
    return message


def _candidate(candidate: Candidate) -> attribution_pb2.Candidate:
    message = attribution_pb2.Candidate(
        engagement_id=candidate.engagement_id,
        verdict=candidate.verdict,
        engagement_kind=candidate.kind,
        tracker_id=candidate.tracker_id,
        network_id=candidate.network_id,
        engagement_time=_timestamp(candidate.time_us),
        matched_by=_KINDS[candidate.matched_by],
        level=candidate.level,
        lookback=_duration(candidate.lookback_us),
    )
    if candidate.window_layer is not None:
        message.window_layer = _LAYERS[candidate.window_layer]
        if candidate.window_us:
            message.window.CopyFrom(_duration(candidate.window_us))
    return message


def _timestamp(time_us: int) -> timestamp_pb2.Timestamp:
    return timestamp_pb2.Timestamp(seconds=time_us // 1_000_000, nanos=time_us % 1_000_000 * 1000)


def _duration(us: int) -> duration_pb2.Duration:
    """Seconds and nanoseconds have the same sign."""
    seconds, rest = divmod(abs(us), 1_000_000)
    sign = -1 if us < 0 else 1
    return duration_pb2.Duration(seconds=sign * seconds, nanos=sign * rest * 1000)


# Sentences.

_REASONS = {
    "DUPLICATE_INSTALL": "this device had installed the app before, so this install counts as a duplicate",
    "EVENT_BEFORE_INSTALL": "it happened at or before the device's first known install",
    "EVENT_NOT_SELECTED": "no live reengagement tracker of the app selects this event",
    "SESSION_ALREADY_REENGAGED": "SessionBegin had reengaged this device within 24 hours",
    "NO_CANDIDATE": "no click, impression or claim matched this device",
    "NO_WINNER": "every candidate was refused",
    "DEVICE_NOT_KNOWN": "nothing of this device was received before it",
}

_VERDICTS = {
    "NO_TRACKER_FOR_CLAIM": "its network has no live tracker for it",
    "TRACKER_ARCHIVED": "its tracker is archived",
    "WRONG_TRACKER_TYPE": "its tracker is of the other type",
    "EVENT_NOT_SELECTED": "its tracker does not select this event",
    "IMPRESSIONS_NOT_ALLOWED": "impressions do not take part in reengagement here",
    "MATCH_KIND_NOT_ALLOWED": "it carried a device id of its own, so IP and user agent do not count",
    "DUPLICATE_CLICK": "it repeats an earlier click of the same click id",
    "BLOCKLISTED": "it failed its check",
    "GRANULAR_DATA_NOT_ALLOWED": "the user does not share granular data",
    "VIEW_WINDOW_ZERO": "the tracker accepts no view claims",
    "WINDOW_DISABLED": "the window for this kind of match is off",
    "AFTER_CONVERSION": "it did not come before the conversion",
    "ENGAGEMENT_SPENT": "it has won as many conversions as its tracker allows",
    "LOST_TO_HIGHER_LEVEL": "the winner matched on a higher level of the waterfall",
    "LOST_TO_COMPLETED_VIEW": "the winner was a completed view",
    "LOST_TO_MORE_RECENT": "the winner was more recent",
}

_LAYER_WORDS = {
    attribution_pb2.LAYER_TRACKER: "set on the tracker",
    attribution_pb2.LAYER_NETWORK: "set for the network",
    attribution_pb2.LAYER_APP: "set for the app",
    attribution_pb2.LAYER_BUILT_IN: "built in",
}


def summary(decision: attribution_pb2.Decision) -> str:
    """What happened and why, in a sentence or two."""
    what = "The install" if decision.event_name == "_install" else f"{decision.event_name}"
    when = _at(decision.conversion_time)
    reason = _reason(decision)
    match decision.outcome:
        case (
            attribution_pb2.OUTCOME_ATTRIBUTED | attribution_pb2.OUTCOME_REENGAGED | attribution_pb2.OUTCOME_REPROCESSED
        ):
            verb = "reengaged the device for" if decision.outcome == attribution_pb2.OUTCOME_REENGAGED else "was won by"
            return (
                f"{what} at {when} {verb} tracker {decision.tracker_id} of {decision.network_id}, by "
                f"{decision.engagement_id} {_span(decision.lookback)} before it, matched by "
                f"{attribution_pb2.MatchKind.Name(decision.matched_by).removeprefix('MATCH_KIND_')} on level "
                f"{decision.level}."
            )
        case attribution_pb2.OUTCOME_CREDITED:
            kind = attribution_pb2.AttributionType.Name(decision.attribution_type).removeprefix("ATTRIBUTION_TYPE_")
            return (
                f"{what} at {when} is credited to the device's current source, the {kind.lower()} of tracker "
                f"{decision.tracker_id} of {decision.network_id}. It did not reengage: {reason}."
            )
        case attribution_pb2.OUTCOME_UNATTRIBUTED:
            return f"{what} at {when} is credited to nobody, as the device has no source then: {reason}."
        case attribution_pb2.OUTCOME_ORGANIC | attribution_pb2.OUTCOME_REPROCESSED_ORGANIC:
            return f"{what} at {when} is organic: {reason}."
        case attribution_pb2.OUTCOME_DUPLICATE:
            return f"{what} at {when} is a duplicate: {reason}."
        case attribution_pb2.OUTCOME_LINKED:
            return f"The identities sent at {when} were tied to the device."
        case _:
            return f"{what} at {when} had no effect: {reason}."


def sentences(decision: attribution_pb2.Decision) -> Iterator[str]:
    """One sentence a candidate, in their order."""
    for candidate in decision.candidates:
        kind = candidate.engagement_kind.capitalize() or "Claim"
        who = f"{kind} {candidate.engagement_id}"
        if candidate.tracker_id:
            who += f" on tracker {candidate.tracker_id}"
        matched = attribution_pb2.MatchKind.Name(candidate.matched_by).removeprefix("MATCH_KIND_")
        yield f"{who} at {_at(candidate.engagement_time)} (matched by {matched}) {_fate(candidate)}."


def _fate(candidate: attribution_pb2.Candidate) -> str:
    window = _window(candidate)
    if candidate.verdict == "WON":
        return f"won: {_span(candidate.lookback)} before the conversion, inside its window of {window}"
    if candidate.verdict == "OUTSIDE_WINDOW":
        return f"was refused: {_span(candidate.lookback)} before the conversion, outside its window of {window}"
    verb = "lost" if candidate.verdict.startswith("LOST_TO_") else "was refused"
    return f"{verb}: {_VERDICTS.get(candidate.verdict, candidate.verdict)}"


def _window(candidate: attribution_pb2.Candidate) -> str:
    us = candidate.window.ToMicroseconds()
    length = "no limit" if us >= UNLIMITED else _span(candidate.window)
    return f"{length} ({_LAYER_WORDS.get(candidate.window_layer, 'unknown')})"


def _reason(decision: attribution_pb2.Decision) -> str:
    if decision.reason == "MTR_NOT_MET":
        seconds = decision.custom_dimensions.get("mtr_rejected", "")
        least = _span(duration_pb2.Duration(seconds=int(seconds))) if seconds else "the minimum time"
        return f"less than {least} had passed since the device's latest attribution (minimum time to reengagement)"
    return _REASONS.get(decision.reason, decision.reason)


def _at(time: timestamp_pb2.Timestamp) -> str:
    return time.ToJsonString()


def _span(duration: duration_pb2.Duration) -> str:
    """A length of time in its two largest units: 2 d 3 h, 5 min 1 s, 0.25 s."""
    seconds = duration.seconds + duration.nanos / 1e9
    if abs(seconds) < 1:
        return f"{seconds:.3g} s"
    left, parts = int(abs(seconds)), []
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count} {unit}")
    return ("-" if seconds < 0 else "") + " ".join(parts[:2])
