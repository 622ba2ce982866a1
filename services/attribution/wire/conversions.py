"""Decisions as postback is told of them: the conversions of its API, in calls that fit into a message."""

from collections.abc import Iterable, Iterator

from reengage.attribution.v1 import decision_pb2
from reengage.ingest.v1 import record_pb2
from reengage.postback.v1 import conversion_pb2
from services.attribution.storage.decisions import OutboxRow
from services.attribution.wire.rulebook import Rulebook

_CALL_BYTES = 8_000_000
"""Half of what a message may have. A single conversion has less than that."""
_NOT_FOR_POSTBACK = frozenset(
    {decision_pb2.OUTCOME_DUPLICATE, decision_pb2.OUTCOME_LINKED, decision_pb2.OUTCOME_REFUSED}
)


def conversions_for_postback(rows: Iterable[OutboxRow], rulebook: Rulebook) -> list[conversion_pb2.Conversion]:
    """Returns all but what can never be delivered, with the names that things have now.

    A delivery is kept as long as its decision: were it gone before, a later version would have it made again.
    """
    conversions = []
    for row in rows:
        decision = decision_pb2.Decision.FromString(row.decision)
        if decision.outcome in _NOT_FOR_POSTBACK:
            continue
        names = rulebook.tracker_names.get(decision.tracker_id) or rulebook.app_names.get(decision.app_id)
        conversion = conversion_pb2.Conversion(
            decision=decision,
            record=record_pb2.Record.FromString(row.record),
            engagement=None if row.engagement is None else record_pb2.Record.FromString(row.engagement),
            names=names,
        )
        conversion.names.retention_days = row.retention_days
        if not decision.campaign_id:  # withheld (E2)
            conversion.names.ClearField("campaign")
            conversion.names.ClearField("segment")
        conversions.append(conversion)
    return conversions


def in_calls(conversions: Iterable[conversion_pb2.Conversion]) -> Iterator[list[conversion_pb2.Conversion]]:
    """Yields the conversions, in their order, in parts that each fit into a message."""
    some: list[conversion_pb2.Conversion] = []
    size = 0
    for conversion in conversions:
        bytes_more = conversion.ByteSize()
        if some and size + bytes_more > _CALL_BYTES:
            yield some
            some, size = [], 0
        some.append(conversion)
        size += bytes_more
    if some:
        yield some
