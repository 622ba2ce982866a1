"""A delivery: its id, how it is made of a conversion, what a newer version makes of it, and its request."""

from collections.abc import Mapping
from typing import assert_never
from uuid import UUID, uuid5

from libs.time import timestamp_us
from reengage.postback.v1 import conversion_pb2
from services.postback.adapters.adapter import Request, Stamp
from services.postback.macros import Values
from services.postback.model import Configuration, Handed, NewDelivery, State
from services.postback.selection import once_a_day, superseded

RETENTION_DAYS = 400
"""The retention of an app that says nothing else."""

# Never changes: with another namespace, conversions handed over again would be told again.
_NAMESPACE = UUID("6a3f2f0e-3b0c-5d57-9d0b-1a1f5c1f7e55")


def delivery_id(configuration_id: str, app_id: str, conversion_id: str) -> UUID:
    """Returns the id of the one delivery of a conversion to a configuration; a re-attributed conversion keeps it."""
    # With lengths, as any character may stand in an id.
    return uuid5(_NAMESPACE, f"{len(configuration_id)}:{configuration_id}{len(app_id)}:{app_id}{conversion_id}")


def new_delivery(
    conversion: conversion_pb2.Conversion, configuration: Configuration, *, awaits_decision: bool = False
) -> NewDelivery:
    """Returns the delivery of a conversion to a configuration; `awaits_decision` for a claim request, made before the
    conversion is decided."""
    decision = conversion.decision
    return NewDelivery(
        delivery_id=delivery_id(configuration.configuration_id, decision.app_id, decision.conversion_id),
        configuration_id=configuration.configuration_id,
        app_id=decision.app_id,
        network_id=configuration.network_id,
        conversion_id=decision.conversion_id,
        event_name=decision.event_name,
        device_id=decision.device_id,
        conversion_us=timestamp_us(decision.conversion_time),
        retention_days=conversion.names.retention_days or RETENTION_DAYS,
        version=0 if awaits_decision else decision.version,
        conversion=conversion.SerializeToString(),
        delay_us=configuration.delay_us,
        once_a_day=bool(decision.device_id) and once_a_day(configuration),
        awaits_decision=awaits_decision,
    )


def handed_over(conversion: conversion_pb2.Conversion, configuration: Configuration, *, is_wanted: bool) -> Handed:
    """Returns what a decided conversion is to a configuration of its app and event."""
    return Handed(
        delivery=new_delivery(conversion, configuration),
        is_wanted=is_wanted,
        superseded=superseded(configuration, conversion),
    )


def renewed(state: State, newer: Handed, *, is_under_way: bool) -> State:
    """Returns the state of a delivery that an older version of the decision made, by a newer one (D12).

    What is under way is left to its end, and what has ended is not begun again, unless it is wanted and was never told.
    """
    match state:
        case State.PENDING:
            return State.PENDING if newer.superseded is None or is_under_way else State.SUPERSEDED
        case State.SUPERSEDED:
            return State.PENDING if newer.is_wanted else State.SUPERSEDED
        case State.DELIVERED | State.REFUSED | State.EXHAUSTED:
            return state
        case _:
            assert_never(state)


def claim_tracker(
    configuration: Configuration, conversion: conversion_pb2.Conversion
) -> conversion_pb2.ClaimTracker | None:
    """Returns the tracker that a claim of the configuration's network would go to (E3), None when there is none."""
    return next((one for one in conversion.claim_trackers if one.network_id == configuration.network_id), None)


def requests(
    configuration: Configuration,
    conversion: conversion_pb2.Conversion,
    delivery_id: UUID,
    *,
    secrets: Mapping[str, str],
    stamp: Stamp,
) -> tuple[Request, Request]:
    """Returns the request of a delivery, and the same with its secrets masked, to be kept and shown.

    `secrets` are all that the adapter cannot do without. Raises NotRenderableError when the conversion lacks what the
    network needs.
    """
    values = Values(
        conversion,
        delivery_id=str(delivery_id),
        is_revenue=configuration.is_revenue,
        claim_tracker=claim_tracker(configuration, conversion),
    )
    request, shown = configuration.adapter.requests(values, secrets, stamp)
    for one in (request, shown):
        one.headers["Idempotency-Key"] = one.headers["webhook-id"] = str(delivery_id)
    return request, shown
