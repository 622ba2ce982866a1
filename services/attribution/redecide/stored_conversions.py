"""Stored conversions as a replay reads them: what decides one again, and what one that stays leaves in its history."""

from libs.domain.event_names import INSTALL
from libs.time import timestamp_us
from services.attribution.decision.history import DeviceHistory
from services.attribution.decision.model import Conversion, ConversionKind
from services.attribution.storage.replay import Stored
from services.attribution.wire.decisions import attribution_of
from services.attribution.wire.records import claims_of


def outline(stored: Stored) -> Conversion:
    """Returns a conversion without the fields that only its candidates are found by."""
    decision = stored.decision
    is_install = decision.event_name == INSTALL
    return Conversion(
        conversion_id=stored.conversion_id,
        kind=ConversionKind.INSTALL if is_install else ConversionKind.EVENT,
        time_us=timestamp_us(decision.conversion_time),
        event_name="" if is_install else decision.event_name,
        is_refund=decision.revenue.amount_micros < 0,
    )


def history_after(history: DeviceHistory, stored: Stored) -> DeviceHistory:
    """Returns the history after a conversion that stays as it is stored."""
    attribution = attribution_of(stored.decision, redacted=_is_redacted(stored))
    return history if attribution is None else history.including(attribution)


def _is_redacted(stored: Stored) -> bool:
    claims, _ = claims_of(stored.claims)
    return any(
        claim.candidate_id == stored.decision.engagement_id and not claim.granular_data_allowed for claim in claims
    )
