"""Decisions as postback is told of them: the conversions of its API."""

from collections.abc import Iterable, Iterator

from libs.domain.event_names import INSTALL
from libs.parts import MAX_MESSAGE_BYTES
from libs.time import to_duration
from reengage.attribution.v1 import decision_pb2
from reengage.ingest.v1 import record_pb2
from reengage.postback.v1 import conversion_pb2
from services.attribution.decision.model import TrackerType, WindowKind
from services.attribution.storage.decisions import OutboxRow
from services.attribution.wire.records import RecordTooLargeError
from services.attribution.wire.rulebook import Rulebook

_MAX_BYTES = MAX_MESSAGE_BYTES - 1024 * 1024
"""The bytes of a decision with its records: a conversion has more, but never a megabyte more."""
_NOT_FOR_POSTBACK = frozenset(
    {decision_pb2.OUTCOME_DUPLICATE, decision_pb2.OUTCOME_LINKED, decision_pb2.OUTCOME_REFUSED}
)


def conversions_for_postback(rows: Iterable[OutboxRow], rulebook: Rulebook) -> list[conversion_pb2.Conversion]:
    """Returns all but what can never be delivered, with the names that things have now.

    A newer version is told of whatever it says: what an older one made may not have been sent yet (D12).

    A delivery is kept as long as its decision: were it gone before, a later version would have it made again.
    Raises RecordTooLargeError for one that does not fit into a message, and DecodeError for bytes that are none.
    """
    conversions = []
    for row in rows:
        if row.size > _MAX_BYTES:
            raise RecordTooLargeError(f"with its records it has {row.size:,} bytes")
        decision = decision_pb2.Decision.FromString(row.decision)
        if decision.outcome in _NOT_FOR_POSTBACK and decision.version == 1:
            continue
        names = rulebook.tracker_names.get(decision.tracker_id) or rulebook.app_names.get(decision.app_id)
        conversion = conversion_pb2.Conversion(
            decision=decision,
            record=record_pb2.Record.FromString(row.record),
            engagement=None if row.engagement is None else record_pb2.Record.FromString(row.engagement),
            names=names,
        )
        conversion.names.retention_days = row.retention_days
        is_first_install = decision.event_name == INSTALL and not decision.reprocess_for
        needed = TrackerType.ACQUISITION if is_first_install else TrackerType.REENGAGEMENT
        conversion.claim_trackers.extend(claim_trackers(rulebook, decision.app_id, needed, decision.event_name))
        if not decision.campaign_id:  # withheld (E2)
            conversion.names.ClearField("campaign")
            conversion.names.ClearField("segment")
        conversions.append(conversion)
    return conversions


def claim_trackers(
    rulebook: Rulebook, app_id: str, needed: TrackerType, event_name: str
) -> Iterator[conversion_pb2.ClaimTracker]:
    """Yields for each self-attributing network of an app the tracker that its claim would go to, if it names none (E3).

    `needed` is the type of that tracker, `event_name` that of the conversion.
    """
    rules, selected_event = rulebook.apps.get(app_id), "" if event_name == INSTALL else event_name
    if rules is None:
        return
    for network_id in rules.self_attributing:
        found = rules.tracker_for_claim(network_id, "", needed, selected_event)
        if found is not None:
            tracker_id = found.tracker.tracker_id
            source = rulebook.sources[app_id].trackers[tracker_id]
            yield conversion_pb2.ClaimTracker(
                network_id=network_id,
                tracker_id=tracker_id,
                post_engagement_window=to_duration(found.windows[WindowKind.POST_ENGAGEMENT].us),
                post_view_window=to_duration(found.windows[WindowKind.POST_VIEW].us),
                accounts=[
                    conversion_pb2.ClaimAccount(san_account_id=account_id, revision=rulebook.san_accounts[account_id])
                    for account_id in source.san_account_ids
                    if account_id in rulebook.san_accounts
                ],
                target_event=source.target_event,
                bundle_id=source.bundle_id,
            )
