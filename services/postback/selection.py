"""The choice of configurations that want a conversion."""

from enum import StrEnum

from libs.domain.event_names import SESSION_BEGIN
from reengage.attribution.v1 import decision_pb2
from reengage.postback.v1 import conversion_pb2
from services.postback.model import Configuration, Status, Superseded

_TOLD = frozenset(
    {
        decision_pb2.OUTCOME_ATTRIBUTED,
        decision_pb2.OUTCOME_ORGANIC,
        decision_pb2.OUTCOME_REPROCESSED,
        decision_pb2.OUTCOME_REPROCESSED_ORGANIC,
        decision_pb2.OUTCOME_REENGAGED,
        decision_pb2.OUTCOME_CREDITED,
        decision_pb2.OUTCOME_UNATTRIBUTED,
    }
)
_CREDITED = frozenset(
    {decision_pb2.ATTRIBUTION_TYPE_INSTALL, decision_pb2.ATTRIBUTION_TYPE_REENGAGEMENT},
)


class Withheld(StrEnum):
    """Reason for which a network is not told of a conversion: a refund (D11), its country, or a person's wish."""

    REFUND = "REFUND"
    COUNTRY = "COUNTRY"
    DATA_CONTROLLED = "DATA_CONTROLLED"


def wants(configuration: Configuration, conversion: conversion_pb2.Conversion) -> bool:
    """Returns whether a configuration of the conversion's app and event wants it: it is live, and it fits."""
    return configuration.status is Status.LIVE and fits(configuration, conversion)


def wants_claim(configuration: Configuration, conversion: conversion_pb2.Conversion) -> bool:
    """Returns whether a configuration of the conversion's app and event asks for a claim, before it is decided (E1)."""
    return (
        configuration.is_claim_capable
        and configuration.status is Status.LIVE
        and withheld(configuration, conversion) is None
    )


def fits(configuration: Configuration, conversion: conversion_pb2.Conversion) -> bool:
    """Returns whether a decided conversion is one of those that a configuration of its app and event is for.

    Duplicate installs, sessions that went on, identity links and refused records are never sent. NETWORK_ONLY wants
    what its network won or is credited with. Clicks only wants what an ad's click won, or what is credited to a source
    that a click won.
    """
    return withheld(configuration, conversion) is None and superseded(configuration, conversion) is None


def superseded(configuration: Configuration, conversion: conversion_pb2.Conversion) -> Superseded | None:
    """Returns why what was decided is nothing that a configuration of its app and event is for; None when it is.

    So a delivery that an older version of the decision made is not to be sent (D12). A claim request is for every
    conversion (E1): it is superseded where there is none any more.
    """
    decision = conversion.decision
    if decision.outcome not in _TOLD:
        return Superseded.NO_CONVERSION
    if configuration.network_only and (
        decision.network_id != configuration.network_id or decision.attribution_type not in _CREDITED
    ):
        return Superseded.OTHER_WINNER
    if configuration.clicks_only and not _by_click(conversion):
        return Superseded.NO_CLICK
    return None


def once_a_day(configuration: Configuration) -> bool:
    """Returns whether at most one conversion of a device goes out to this configuration in 24 hours: NETWORK_ONLY
    SessionBegin.

    OURS: rolling, by the time of the conversions, won or credited alike; one older than the last told is held back.
    """
    return configuration.network_only and configuration.trigger == SESSION_BEGIN


def withheld(configuration: Configuration, conversion: conversion_pb2.Conversion) -> Withheld | None:
    """Returns why a network is not told of a conversion at all; None when it may be."""
    if conversion.record.event.revenue.amount_micros < 0:
        return Withheld.REFUND
    country = conversion.record.country  # "" is none of those allowed, and none of those blocked
    if country in configuration.blocked_countries or (
        configuration.allowed_countries and country not in configuration.allowed_countries
    ):
        return Withheld.COUNTRY
    if configuration.respect_data_controlled and conversion.record.data_controlled:
        return Withheld.DATA_CONTROLLED
    return None


def _by_click(conversion: conversion_pb2.Conversion) -> bool:
    for candidate in conversion.decision.candidates:
        if candidate.verdict == decision_pb2.VERDICT_WON:
            return candidate.engagement_kind == decision_pb2.ENGAGEMENT_KIND_CLICK
    # Credited to an earlier winner. With no recorded click, the opening of a deep link is one.
    return conversion.engagement.WhichOneof("kind") in ("click", "deep_link_open")
