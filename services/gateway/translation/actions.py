"""Actions: the kind of record that a body is.

A choice of our own where the format is silent: an `update` (new ids of a device) becomes the event `_Update`, so that
its ids join the device's.
"""

from collections.abc import Callable, Mapping, MutableMapping
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from libs.domain.event_names import DEEP_LINK, UPDATE
from reengage.ingest.v1 import record_pb2
from services.gateway.bodies import json_text
from services.gateway.model import CLICK_ID_KEY
from services.gateway.translation.body import ID_NAMES, Body
from services.gateway.translation.revenue import take_revenue

_PUSH = "push_token"
"""The name of a push token among the identities of its device; it is empty once it was removed."""

# Keys that the wire gives a meaning; in the data of an identity link every other one is a name of a person.
_WIRE_KEYS = ID_NAMES | {
    "app_version", "app_ver", "device_ids", "device_id", "origination_ip", "device_ua", "device_ver", "usertime",
    "event_name", "event_data", "device_limit_tracking", "app_tracking_transparency", "gdpr_privacy_consent",
    "install_referrer", "data_controlled", "identity_link", "record_id", "currency", "state", "device_hash_method",
    "action", "kochava_app_id",
}  # fmt: skip
# What SDKs send with every record for their own use.
_BOOKKEEPING = frozenset(
    {
        "uptime", "starttime", "updelta", "last_post_time", "send_date", "nt_id", "sdk_version", "sdk_protocol",
        "sdk_id", "sdk_build_date", "sdk_procotol", "state_active", "state_active_count", "partner_name", "package",
        "package_name", "app_name", "app_short_string", "app_limit_tracking", "limit_ad_tracking", "os_version",
        "platform", "device", "device_orientation", "device_cores", "disp_w", "disp_h", "screen_dpi", "screen_inches",
        "screen_brightness", "manufacturer", "product_name", "architecture", "processor", "battery_level",
        "battery_status", "volume", "language", "locale", "timezone", "carrier_name", "network_conn_type",
        "network_metered", "signal_bars", "ssid", "bssid", "bms", "is_genuine", "installer_package", "installed_date",
        "install_date", "ui_mode", "notifications_enabled", "background_location", "instant_app", "metrics",
        "conversion_type", "conversion_data", "iab_usp", "init_token", "date", "count", "root", "sandbox",
    }
)  # fmt: skip
_NO_NAMES_OF_PERSONS = _WIRE_KEYS | _BOOKKEEPING
_STATES = {
    "start": record_pb2.Session.STATE_START,
    "resume": record_pb2.Session.STATE_START,
    "stop": record_pb2.Session.STATE_STOP,
    "pause": record_pb2.Session.STATE_STOP,
}


def _take_install(body: Body, record: record_pb2.Record) -> None:
    install = record.install
    install.SetInParent()
    given = body.get("install_referrer")
    referrer = given.get("referrer") if isinstance(given, dict) else given
    if referrer is None or referrer in ("", [], {}):
        return
    if not isinstance(referrer, str):
        why = "left out: must be an object with `referrer`, or text"
        body.warnings.add(body.path("install_referrer"), "INVALID_TYPE", why)
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
        _take_pairs(body, path, given, event.event_data)
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
            body.warnings.add(f"{path}.uri", "INVALID_TYPE", "left out: must be text")
        return
    opened.uri = uri
    opened.click_record_id = _parameter(uri, CLICK_ID_KEY)
    opened.tracker_id = _parameter(uri, "campaign_id") or _tracker_in_path(uri)


def _take_session(body: Body, record: record_pb2.Record) -> None:
    record.session.SetInParent()
    state = body.text("state").strip().lower()
    record.session.state = _STATES.get(state, record_pb2.Session.STATE_UNSPECIFIED)
    if state and state not in _STATES:
        why = f"kept as a session that neither begins nor ends: must be one of {', '.join(_STATES)}"
        body.warnings.add(body.path("state"), "INVALID_VALUE", why)


def _take_update(_: Body, record: record_pb2.Record) -> None:
    record.event.event_name = UPDATE


def _take_identity_link(body: Body, record: record_pb2.Record) -> None:
    link = record.identity_link
    link.SetInParent()
    nested = body.object("identity_link")
    if nested:  # what stands around it is the SDK's
        _take_pairs(body, body.path("identity_link"), nested, link.identities)
    else:
        names = {name: value for name, value in body.data.items() if name.lower() not in _NO_NAMES_OF_PERSONS}
        _take_pairs(body, "data", names, link.identities)


def _take_pairs(body: Body, path: str, given: Mapping[str, Any], into: MutableMapping[str, str]) -> None:
    """Reads flat values as texts; what is nested is kept as JSON."""
    for key, value in given.items():
        if isinstance(value, str):
            into[key] = value
        elif value is None:
            continue
        else:
            into[key] = json_text(value)
            if isinstance(value, dict | list):
                body.warnings.add(f"{path}.{key}", "NOT_FLAT", "kept as JSON text: must be a single value")


def _take_new_push_token(body: Body, record: record_pb2.Record) -> None:
    if token := body.text("token"):
        record.identity_link.identities[_PUSH] = token
    else:
        record.identity_link.SetInParent()


def _take_removed_push_token(_: Body, record: record_pb2.Record) -> None:
    record.identity_link.identities[_PUSH] = ""  # whichever it was


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


ACTIONS: dict[str, Callable[[Body, record_pb2.Record], None]] = {
    "install": _take_install,
    "event": _take_event,
    "session": _take_session,
    "update": _take_update,
    "identityLink": _take_identity_link,
    "initial": _take_install,
    "push_token_add": _take_new_push_token,
    "push_token_remove": _take_removed_push_token,
}
"""By action, the function that reads the rest of a body into a record."""
