"""Server-to-server JSON into records, tolerant of all that real senders do. Pure."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from libs.errors import Violation
from reengage.ingest.v1 import record_pb2
from services.gateway.model import App
from services.gateway.translation.actions import ACTIONS
from services.gateway.translation.body import ABSENT, Body, take_time
from services.gateway.translation.device import device_ids, drop_untracked_idfa, user_agent
from services.gateway.translation.privacy import (
    take_consent,
    take_data_controlled,
    take_limit_tracking,
    take_transparency,
)
from services.gateway.translation.violations import add_what_ingest_would_say


def translate(
    root: Mapping[str, Any], find_app: Callable[[str], App | None], wrong: Iterable[Violation] = ()
) -> record_pb2.Record:
    """Returns the record in one JSON object. What is missing or out of bounds, ingest says.

    Raises `InvalidArgument` when something cannot be said in a record or `wrong` names what is found already; then it
    names all that, and what can be known here of what ingest would name. `find_app` returns None when no live app has
    this id.
    """
    body = Body(root)
    body.violations.extend(wrong)
    record = record_pb2.Record(
        record_id=body.text("record_id"),
        app_id=body.text("kochava_app_id"),
        ip_address=body.text("origination_ip"),
        user_agent=user_agent(body),
        app_version=body.text("app_version", "app_ver"),
    )
    if (app := find_app(record.app_id)) is not None:
        body.currency_code = app.currency_code
    for name, value in device_ids(body):
        record.device_ids[name] = value
    for key, take in _OPTIONAL:
        if (given := body.get(key)) is not None:
            take(body, record, given)
    drop_untracked_idfa(record)
    action = root.get("action")
    take_action = ACTIONS.get(action) if isinstance(action, str) else None
    if take_action is not None:
        take_action(body, record)
    else:
        reason = "REQUIRED" if action in ABSENT else "UNKNOWN_ACTION"
        body.violations.add("action", reason, f"must be one of {_ACTION_NAMES}")
    if body.violations.found:
        add_what_ingest_would_say(body, record, find_app)
        body.violations.check()
    return record


def _take_usertime(body: Body, record: record_pb2.Record, given: Any) -> None:
    if given != "":
        take_time(body, record.event_time, body.path("usertime"), given)


_OPTIONAL: tuple[tuple[str, Callable[[Body, record_pb2.Record, Any], None]], ...] = (
    ("usertime", _take_usertime),
    ("device_limit_tracking", take_limit_tracking),
    ("data_controlled", take_data_controlled),
    ("gdpr_privacy_consent", take_consent),
    ("app_tracking_transparency", take_transparency),
)
_ACTION_NAMES = ", ".join([*ACTIONS, "get_attribution"])
