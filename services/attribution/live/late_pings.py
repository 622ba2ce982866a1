"""Server pings that come too late: dated before a conversion, and received after it, later than is allowed (D12).

They change nothing, so nothing is decided again for them; people are told of them all the same.
"""

from collections.abc import Iterable

from libs.time import timestamp_us
from reengage.attribution.v1 import decision_pb2
from services.attribution.decision.decide import judge
from services.attribution.decision.history import Attribution, DeviceHistory
from services.attribution.decision.model import (
    AttributionType,
    Candidate,
    Conversion,
    ConversionKind,
    Engagement,
    Verdict,
)
from services.attribution.decision.rules import AppRules

_WITH_CANDIDATES = frozenset(
    {decision_pb2.REASON_UNSPECIFIED, decision_pb2.REASON_NO_CANDIDATE, decision_pb2.REASON_NO_WINNER}
)
_WITHOUT = frozenset({decision_pb2.OUTCOME_LINKED, decision_pb2.OUTCOME_CONTINUED})


def has_candidates(decision: decision_pb2.Decision) -> bool:
    """Returns whether engagements were considered when a decision was made."""
    return decision.reason in _WITH_CANDIDATES and decision.outcome not in _WITHOUT


def reported_late(
    decision: decision_pb2.Decision, conversion: Conversion, pings: Iterable[Engagement], rules: AppRules
) -> list[Candidate]:
    """Returns, as candidates by engagement id, those of these pings that came too late for a decided conversion.

    Without those that its decision lists. `rules` are those that it was decided by.
    """
    if not has_candidates(decision):
        return []
    listed = {candidate.engagement_id for candidate in decision.candidates}
    history = _history(decision, conversion)
    judged = (judge(ping, conversion, history, rules) for ping in pings if ping.engagement_id not in listed)
    late = [each for each in judged if each and each.verdict is Verdict.REPORTED_LATE]
    return sorted(late, key=lambda candidate: candidate.engagement_id)


def _history(decision: decision_pb2.Decision, conversion: Conversion) -> DeviceHistory:
    """Returns as much of a device's history as verdicts depend on: the install before a reprocessed one (F2)."""
    if not decision.reprocess_for:
        return DeviceHistory()
    first = Attribution(
        time_us=timestamp_us(decision.install_time),
        receive_time_us=conversion.receive_time_us,
        conversion_id=decision.reprocess_for,
        kind=ConversionKind.INSTALL,
        type=AttributionType.NONE,
    )
    return DeviceHistory.made_of([first])
