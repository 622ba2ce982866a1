"""Decisions as messages of the API."""

from libs.domain.event_names import INSTALL
from libs.time import timestamp_us, to_duration, to_timestamp
from reengage.attribution.v1 import decision_pb2, device_pb2
from reengage.ingest.v1 import record_pb2
from services.attribution.decision.history import ATTRIBUTING, Attribution
from services.attribution.decision.model import (
    AttributionType,
    Candidate,
    Conversion,
    ConversionKind,
    Decision,
    MatchKind,
    Reason,
)
from services.attribution.decision.rules import App

_OUTCOMES = {name.removeprefix("OUTCOME_"): number for name, number in decision_pb2.Outcome.items()}
_TYPES = {name.removeprefix("ATTRIBUTION_TYPE_"): number for name, number in decision_pb2.AttributionType.items()}
_KINDS = {name.removeprefix("MATCH_KIND_"): number for name, number in decision_pb2.MatchKind.items()}
_REASONS = {name.removeprefix("REASON_"): number for name, number in decision_pb2.Reason.items()}
_VERDICTS = {name.removeprefix("VERDICT_"): number for name, number in decision_pb2.Verdict.items()}
_ENGAGEMENTS = {name.removeprefix("ENGAGEMENT_KIND_"): number for name, number in decision_pb2.EngagementKind.items()}
_TRAFFIC_RULES = {name.removeprefix("TRAFFIC_RULE_"): number for name, number in decision_pb2.TrafficRule.items()}
_LAYERS = {name.removeprefix("LAYER_"): number for name, number in decision_pb2.Layer.items()}

_TYPE_OF = {number: AttributionType(name) for name, number in _TYPES.items() if number}
_KIND_OF = {number: MatchKind(name) for name, number in _KINDS.items() if number}
ATTRIBUTING_OUTCOMES = frozenset(_OUTCOMES[outcome] for outcome in ATTRIBUTING)
"""Outcomes that make a device's source (D6), as the messages and the table have them."""


def decision_message(conversion: Conversion, decision: Decision) -> decision_pb2.Decision:
    """Returns a decision as a message, without what only the caller knows: app, version, event, device, other times."""
    message = _message(conversion, decision.settings_revision, _OUTCOMES[decision.outcome])
    message.attribution_type = _TYPES[decision.attribution_type]
    message.install_known = decision.install_known
    if decision.install_time_us is not None:
        message.install_time.CopyFrom(to_timestamp(decision.install_time_us))
    if decision.source_conversion_id is not None and decision.source_time_us is not None:
        message.source_conversion_id = decision.source_conversion_id
        message.source_time.CopyFrom(to_timestamp(decision.source_time_us))
        message.source_engagement_id = decision.source_engagement_id or ""
    if decision.reason is not None:
        message.reason = _REASONS[decision.reason]
    if decision.tracker_id is not None:
        message.tracker_id = decision.tracker_id
        message.network_id = decision.network_id or ""
        message.campaign_id = decision.campaign or ""
        message.segment_id = decision.segment or ""
    _add_match(message, decision)
    if decision.reprocess_for is not None:
        message.reprocess_for = decision.reprocess_for
    if decision.custom_dimensions:
        message.custom_dimensions.update(decision.custom_dimensions)
    if decision.candidates:
        message.candidates.extend(candidate_message(candidate) for candidate in decision.candidates)
    if decision.claims_unavailable:
        message.claims_unavailable.extend(decision.claims_unavailable)
    return message


def describe(message: decision_pb2.Decision, record: record_pb2.Record, conversion: Conversion, app: App) -> None:
    """Adds what the record says of a conversion, whatever was decided: its amount, the device, the app's version."""
    if record.event.HasField("revenue"):
        message.revenue.CopyFrom(record.event.revenue)
    agent = conversion.user_agent
    message.os = (app.platform if agent is None else agent.os).lower()
    if agent is not None and agent.os_major:
        message.os_version = f"{agent.os_major}.{agent.os_minor}" if agent.os_minor else agent.os_major
    message.country, message.app_version = record.country, record.app_version


def restate(message: decision_pb2.Decision, before: decision_pb2.Decision) -> None:
    """Adds to a newer version what does not depend on what is decided: it is as in the version before."""
    message.app_id, message.event_name, message.device_id = before.app_id, before.event_name, before.device_id
    message.receive_time.CopyFrom(before.receive_time)
    if before.HasField("revenue"):
        message.revenue.CopyFrom(before.revenue)
    message.country, message.os, message.os_version = before.country, before.os, before.os_version
    message.app_version = before.app_version
    message.shared_ids.extend(before.shared_ids)


def ad_details(engagement: bytes) -> bytes:
    """Returns what the link of an engagement, given as its record, said of the ad: the end of a serialised decision.

    Serialised messages that follow each other are read as one: the decision need not be serialised again.
    """
    record = record_pb2.Record.FromString(engagement)
    ad = record.click.ad if record.HasField("click") else record.impression.ad
    return decision_pb2.Decision(
        site_id=ad.site_id, sub_site_id=ad.sub_site_id, creative_id=ad.creative_id
    ).SerializeToString()


def says(message: decision_pb2.Decision, decision: Decision) -> bool:
    """Returns whether a message tells what was decided: outcome, reason, credit, source, match and dimensions.

    Not the version, the revision, times, and what became of those that lost.
    """
    return (
        message.outcome == _OUTCOMES[decision.outcome]
        and message.reason == (0 if decision.reason is None else _REASONS[decision.reason])
        and message.attribution_type == _TYPES[decision.attribution_type]
        and message.tracker_id == (decision.tracker_id or "")
        and message.network_id == (decision.network_id or "")
        and message.campaign_id == (decision.campaign or "")
        and message.segment_id == (decision.segment or "")
        and message.engagement_id == (decision.engagement_id or "")
        and message.matched_by == (0 if decision.matched_by is None else _KINDS[decision.matched_by])
        and message.level == (decision.level or 0)
        and _install_time_us(message) == decision.install_time_us
        and message.source_conversion_id == (decision.source_conversion_id or "")
        and message.source_engagement_id == (decision.source_engagement_id or "")
        and message.reprocess_for == (decision.reprocess_for or "")
        and dict(message.custom_dimensions) == decision.custom_dimensions
        and tuple(message.claims_unavailable) == decision.claims_unavailable
    )


def attribution_of(message: decision_pb2.Decision, *, redacted: bool) -> Attribution | None:
    """Returns what a decision made of its device's history (D6), None for one that made no source of it.

    `redacted` is what the message does not tell: that a claim won whose campaign is withheld (E2).
    """
    if message.outcome not in ATTRIBUTING_OUTCOMES:
        return None
    is_install = message.event_name == INSTALL
    return Attribution(
        time_us=message.conversion_time.ToMicroseconds(),
        receive_time_us=message.receive_time.ToMicroseconds(),
        conversion_id=message.conversion_id,
        kind=ConversionKind.INSTALL if is_install else ConversionKind.EVENT,
        type=_TYPE_OF[message.attribution_type],
        event_name="" if is_install else message.event_name,
        tracker_id=message.tracker_id or None,
        network_id=message.network_id or None,
        engagement_id=message.engagement_id or None,
        matched_by=_KIND_OF.get(message.matched_by),
        redacted=redacted,
    )


def linked_message(conversion: Conversion, revision: int) -> decision_pb2.Decision:
    """Returns the message of an identity link that was taken (F3)."""
    return _message(conversion, revision, decision_pb2.OUTCOME_LINKED)


def continued_message(conversion: Conversion, revision: int) -> decision_pb2.Decision:
    """Returns the message of a session start that is no event after all: its session went on (D4, D12)."""
    return _message(conversion, revision, decision_pb2.OUTCOME_CONTINUED)


def refused_message(conversion: Conversion, revision: int, reason: Reason) -> decision_pb2.Decision:
    """Returns the message of a record without effect, with the reason."""
    message = _message(conversion, revision, decision_pb2.OUTCOME_REFUSED)
    message.reason = _REASONS[reason]
    return message


def candidate_message(candidate: Candidate) -> decision_pb2.Candidate:
    """Returns a candidate as a message."""
    message = decision_pb2.Candidate(
        engagement_id=candidate.engagement_id,
        verdict=_VERDICTS[candidate.verdict],
        engagement_kind=_ENGAGEMENTS[candidate.kind],
        tracker_id=candidate.tracker_id,
        network_id=candidate.network_id,
        engagement_time=to_timestamp(candidate.time_us),
        matched_by=_KINDS[candidate.matched_by],
        level=candidate.level,
        lookback=to_duration(candidate.lookback_us),
    )
    if candidate.traffic_rule is not None:
        message.traffic_rule = _TRAFFIC_RULES[candidate.traffic_rule]
    if candidate.window_layer is not None:
        message.window_layer = _LAYERS[candidate.window_layer]
        if candidate.window_us:
            message.window.CopyFrom(to_duration(candidate.window_us))
    return message


def source_message(source: Attribution, campaign_id: str) -> device_pb2.Source:
    """Returns an attribution of a device as a message."""
    is_install = source.kind is ConversionKind.INSTALL
    return device_pb2.Source(
        conversion_id=source.conversion_id,
        since_time=to_timestamp(source.time_us),
        attribution_type=_TYPES[
            AttributionType.INSTALL if is_install and source.type is AttributionType.NONE else source.type
        ],
        event_name=INSTALL if is_install else source.event_name,
        tracker_id=source.tracker_id or "",
        network_id=source.network_id or "",
        campaign_id=campaign_id,
        engagement_id=source.engagement_id or "",
        matched_by=_KINDS[source.matched_by] if source.matched_by else decision_pb2.MATCH_KIND_UNSPECIFIED,
    )


def _add_match(message: decision_pb2.Decision, decision: Decision) -> None:
    if decision.engagement_id is None or decision.matched_by is None:
        return
    message.engagement_id = decision.engagement_id
    message.matched_by = _KINDS[decision.matched_by]
    message.level = decision.level or 0
    message.lookback.CopyFrom(to_duration(decision.lookback_us or 0))
    if decision.window_us is not None and decision.window_layer is not None:
        message.window.CopyFrom(to_duration(decision.window_us))
        message.window_layer = _LAYERS[decision.window_layer]


def _install_time_us(message: decision_pb2.Decision) -> int | None:
    return timestamp_us(message.install_time) if message.HasField("install_time") else None


def _message(conversion: Conversion, revision: int, outcome: decision_pb2.Outcome.ValueType) -> decision_pb2.Decision:
    message = decision_pb2.Decision(conversion_id=conversion.conversion_id, outcome=outcome, settings_revision=revision)
    message.conversion_time.CopyFrom(to_timestamp(conversion.time_us))
    return message
