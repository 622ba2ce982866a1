"""Stored conversions as a replay reads them: what decides one again, and what one that stays leaves in its history."""

from libs.domain.event_names import INSTALL, SESSION_BEGIN
from reengage.ingest.v1 import record_pb2
from services.attribution.decision.history import Attribution
from services.attribution.decision.matching import Id
from services.attribution.decision.model import Conversion, ConversionKind
from services.attribution.storage.replay import Stored
from services.attribution.wire.decisions import ATTRIBUTING_OUTCOMES, attribution_of
from services.attribution.wire.records import claims_of


def outline(stored: Stored) -> Conversion:
    """Returns a conversion without the fields that only its candidates are found by."""
    decision = stored.decision
    is_install = decision.event_name == INSTALL
    return Conversion(
        conversion_id=stored.conversion_id,
        kind=ConversionKind.INSTALL if is_install else ConversionKind.EVENT,
        time_us=stored.time_us,
        receive_time_us=stored.receive_time_us,
        event_name="" if is_install else decision.event_name,
        is_refund=decision.revenue.amount_micros < 0,
    )


def is_session_start(stored: Stored) -> bool:
    """Returns whether a conversion is the start of a session, which may go on (D4)."""
    if stored.decision.event_name != SESSION_BEGIN:
        return False
    return record_pb2.Record.FromString(stored.record).HasField("session")


def is_event(stored: Stored) -> bool:
    """Returns whether a session may go on with a conversion (D4)."""
    return stored.decision.event_name != INSTALL


def ids_of(stored: Stored) -> tuple[Id, ...]:
    """Returns the ids that the record of a conversion names, without those that were shared (A8)."""
    shared = {each.kind for each in stored.decision.shared_ids}
    named = record_pb2.Record.FromString(stored.record).device_ids.items()
    return tuple((kind, value) for kind, value in named if kind not in shared)


def attribution_as_stored(stored: Stored) -> Attribution | None:
    """Returns what a conversion that stays as it is makes of its device's history."""
    if stored.decision.outcome not in ATTRIBUTING_OUTCOMES:
        return None
    return attribution_of(stored.decision, redacted=_is_redacted(stored))


def _is_redacted(stored: Stored) -> bool:
    claims, _ = claims_of(stored.claims)
    return any(
        claim.candidate_id == stored.decision.engagement_id and not claim.granular_data_allowed for claim in claims
    )
