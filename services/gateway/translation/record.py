"""Server-to-server JSON into records, tolerant of all that real senders do. Pure."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from libs.domain.record_sizes import MAX_RECORD_BYTES, MAX_WARNINGS
from libs.errors import Violation, Violations, first_of
from reengage.ingest.v1 import record_pb2
from services.gateway.model import App
from services.gateway.translation.actions import ACTIONS
from services.gateway.translation.body import ABSENT, Body, read_body, take_time
from services.gateway.translation.device import FindPeer, device_ids, drop_untracked_idfa, nobody, take_place
from services.gateway.translation.privacy import (
    take_consent,
    take_data_controlled,
    take_limit_tracking,
    take_transparency,
)
from services.gateway.translation.sizes import shorten
from services.gateway.translation.violations import in_senders_words

_APP_ID = "kochava_app_id"


class Translated(NamedTuple):
    """A record, and what was left out of the JSON that it was read from, or changed."""

    record: record_pb2.Record
    warnings: Sequence[Violation]


def translate(
    root: Mapping[str, Any],
    find_app: Callable[[str], App | None],
    find_peer: FindPeer = nobody,
    *,
    is_odd: bool = False,
) -> Translated:
    """Returns the record in one JSON object. What refuses it, ingest says: an unknown action leaves it without a kind.

    `find_app` returns None when no live app has this id. `is_odd`: some of its texts or numbers may be none.
    """
    warnings = Violations()
    body = read_body(root, warnings, is_odd=is_odd)
    root = body.root
    record = record_pb2.Record(
        record_id=body.text("record_id"),
        app_id=body.text(_APP_ID),
        app_version=body.text("app_version", "app_ver"),
    )
    take_place(body, record, find_peer)
    if (app := find_app(record.app_id)) is not None:
        body.currency_code = app.currency_code
    for name, value in device_ids(body):
        record.device_ids[name] = value
    for key, take in _OPTIONAL:
        if (given := body.get(key)) is not None:
            take(body, record, given)
    drop_untracked_idfa(body, record)
    action = root.get("action")
    take_action = ACTIONS.get(action) if isinstance(action, str) else None
    if take_action is not None:
        take_action(body, record)
    else:
        reason = "REQUIRED" if action in ABSENT else "UNKNOWN_ACTION"
        warnings.add("action", reason, f"must be one of {_ACTION_NAMES}")
    if record.ByteSize() > MAX_RECORD_BYTES:
        cut = Violations()
        shorten(record, cut)
        warnings.extend(in_senders_words(root, cut.found))
    if not warnings.found:
        return Translated(record, ())
    told = first_of(warnings.found, warnings.count, MAX_WARNINGS)
    for each in told:
        record.warnings.add(field=each.field, code=each.reason, message=each.description)
    return Translated(record, told)


def app_id_of(root: Mapping[str, Any], *, is_odd: bool) -> str:
    """Returns the id of the app that `translate` would make a record of; "" if it names none."""
    return read_body(root, Violations(), is_odd=is_odd).text(_APP_ID)


def _take_usertime(body: Body, record: record_pb2.Record, given: Any) -> None:
    if given == "":
        return
    take_time(body, record.event_time, body.path("usertime"), given)


_OPTIONAL: tuple[tuple[str, Callable[[Body, record_pb2.Record, Any], None]], ...] = (
    ("usertime", _take_usertime),
    ("device_limit_tracking", take_limit_tracking),
    ("data_controlled", take_data_controlled),
    ("gdpr_privacy_consent", take_consent),
    ("app_tracking_transparency", take_transparency),
)
_ACTION_NAMES = ", ".join([*ACTIONS, "get_attribution"])
