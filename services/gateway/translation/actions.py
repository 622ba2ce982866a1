"""Actions: the kind of record that a body is.

A choice of our own where the format is silent: an `update` (new ids of a device) becomes the event `_Update`, so that
its ids join the device's.
"""

import json
from collections.abc import Callable
from urllib.parse import parse_qs, unquote, urlsplit

from libs.domain.event_names import DEEP_LINK, UPDATE
from reengage.ingest.v1 import record_pb2
from services.gateway.model import CLICK_ID_KEY
from services.gateway.translation.body import Body
from services.gateway.translation.revenue import take_revenue

# Keys that the wire gives a meaning; in the data of an identity link every other one is a name of a person.
_WIRE_KEYS = frozenset(
    {
        "app_version", "app_ver", "device_ids", "device_id", "origination_ip", "device_ua", "device_ver", "usertime",
        "event_name", "event_data", "device_limit_tracking", "app_tracking_transparency", "gdpr_privacy_consent",
        "install_referrer", "data_controlled", "identity_link", "record_id", "kochava_device_id", "currency", "state",
        "device_hash_method",
    }
)  # fmt: skip


def _take_install(body: Body, record: record_pb2.Record) -> None:
    install = record.install
    install.SetInParent()
    given = body.get("install_referrer")
    referrer = given.get("referrer") if isinstance(given, dict) else given
    if referrer is None or referrer in ("", [], {}):
        return
    if not isinstance(referrer, str):
        body.violations.add(body.path("install_referrer"), "INVALID_TYPE", "must be an object with `referrer`, or text")
        return
    install.referrer = referrer
    install.click_record_id = _parameter(referrer, CLICK_ID_KEY)


def _take_event(body: Body, record: record_pb2.Record) -> None:
    name = body.text("event_name")
    if name == DEEP_LINK:
        _take_deep_link(body, record)
        return
    event = record.event
    event.SetInParent()
    event.event_name = name
    given = body.object("event_data")
    if given:
        path = body.path("event_data")
        for key, value in given.items():
            if type(value) is str:
                event.event_data[key] = value
            elif isinstance(value, dict | list):
                body.violations.add(f"{path}.{key}", "NOT_FLAT", "must be a single value")
            elif value is not None:
                event.event_data[key] = json.dumps(value)
        click_id = given.get(CLICK_ID_KEY)
        if isinstance(click_id, str):
            event.click_record_id = click_id
        take_revenue(body, given, path, event)


def _take_deep_link(body: Body, record: record_pb2.Record) -> None:
    opened = record.deep_link_open
    opened.SetInParent()
    given, path = body.object("event_data"), body.path("event_data")
    uri = given.get("uri")
    if not isinstance(uri, str):
        if uri is not None:
            body.violations.add(f"{path}.uri", "INVALID_TYPE", "must be text")
        return
    opened.uri = uri
    opened.click_record_id = _parameter(uri, CLICK_ID_KEY)
    opened.tracker_id = _parameter(uri, "campaign_id") or _tracker_in_path(uri)


def _take_session(body: Body, record: record_pb2.Record) -> None:
    record.session.SetInParent()
    record.session.state = _STATES.get(body.text("state").lower(), record_pb2.Session.STATE_UNSPECIFIED)


def _take_update(_: Body, record: record_pb2.Record) -> None:
    record.event.event_name = UPDATE


def _take_identity_link(body: Body, record: record_pb2.Record) -> None:
    identities = record.identity_link.identities
    record.identity_link.SetInParent()
    nested = body.object("identity_link")
    for path, names in (("data", body.data), (body.path("identity_link"), nested)):
        for name, value in names.items():
            if (names is body.data and name in _WIRE_KEYS) or value is None or value == "":
                continue
            if isinstance(value, dict | list):
                body.violations.add(f"{path}.{name}", "NOT_FLAT", "must be a single value")
            else:
                identities[name] = value if isinstance(value, str) else json.dumps(value)


def _parameter(link: str, key: str) -> str:
    """Returns a query parameter of a link or a referrer, which may be encoded once more than needed."""
    if key not in link:
        return ""
    text = link if f"{key}=" in link else unquote(link)
    try:
        query = urlsplit(text).query if "?" in text else text.partition("#")[0]
        values = parse_qs(query, max_num_fields=256).get(key)
    except ValueError:
        return ""
    return values[0].replace("\0", "")[:256] if values else ""


def _tracker_in_path(uri: str) -> str:
    try:
        path = urlsplit(uri).path
    except ValueError:
        return ""
    return unquote(path[3:].partition("/")[0])[:64] if path.startswith("/c/") else ""


_STATES = {"start": record_pb2.Session.STATE_START, "stop": record_pb2.Session.STATE_STOP}
ACTIONS: dict[str, Callable[[Body, record_pb2.Record], None]] = {
    "install": _take_install,
    "event": _take_event,
    "session": _take_session,
    "update": _take_update,
    "identityLink": _take_identity_link,
}
"""By action, the function that reads the rest of a body into a record."""
