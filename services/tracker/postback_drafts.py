"""Postback configurations to fill in for a tracker. Pure."""

from collections.abc import Mapping

from google.protobuf.duration_pb2 import Duration

from libs.domain.event_names import INSTALL
from reengage.tracker.v1.app_pb2 import App
from reengage.tracker.v1.event_definition_pb2 import EventDefinition
from reengage.tracker.v1.network_pb2 import Network
from reengage.tracker.v1.postback_draft_pb2 import PostbackDraft
from reengage.tracker.v1.san_account_pb2 import SanAccount
from reengage.tracker.v1.tracker_pb2 import Tracker

_RETRY_ATTEMPTS = 3
_ATTEMPT_TIMEOUT_S = 5


def postback_drafts(
    tracker: Tracker,
    app: App,
    network: Network,
    definitions: Mapping[str, EventDefinition],
    accounts: Mapping[str, SanAccount],
) -> list[PostbackDraft]:
    """Returns one draft an event of the tracker, or that of the install for an acquisition tracker.

    `definitions` are those of the events, by name; `accounts` those of the tracker, by id: the first is asked with.
    """
    known = _known(tracker, app)
    account = next((accounts[one] for one in tracker.san_account_ids if one in accounts), SanAccount())
    return [
        PostbackDraft(
            app_id=app.app_id,
            network_id=network.network_id,
            trigger=trigger,
            delivery_delay=Duration(),
            retry_attempts=_RETRY_ATTEMPTS,
            delivery_method=PostbackDraft.DELIVERY_METHOD_ALL,
            is_revenue=trigger in definitions and definitions[trigger].revenue,
            attempt_timeout=Duration(seconds=_ATTEMPT_TIMEOUT_S),
            known=known,
            needs=[need for need in network.postback_needs if need.name not in (*known, *account.credential_names)],
        )
        for trigger in tracker.events or (INSTALL,)
    ]


def _known(tracker: Tracker, app: App) -> dict[str, str]:
    known = {
        "app_name": app.name,
        "store_app_id": app.store_app_id,
        "bundle_id": tracker.bundle_id or app.bundle_id,
        "conversion_type": tracker.target_event,
    }
    return {name: value for name, value in known.items() if value}
