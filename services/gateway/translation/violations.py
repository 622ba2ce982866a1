"""Wrong fields of a body, named where the sender wrote them."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from libs.domain.device_ids import is_usable
from libs.domain.event_names import RESERVED_EVENT_DATA
from libs.errors import Violation
from reengage.ingest.v1 import record_pb2
from services.gateway.errors import unknown_app
from services.gateway.links import is_ip_address
from services.gateway.translation.body import Body
from services.gateway.translation.device import device_ids

_NEED_NO_IP_ADDRESS = ("identity_link", "deep_link_open")
# Where the fields of a record come from, most likely first.
_SOURCES = {
    "record_id": ("record_id",),
    "app_id": ("kochava_app_id",),
    "event_time": ("usertime",),
    "device_ids": ("device_ids", "device_id"),
    "ip_address": ("origination_ip",),
    "user_agent": ("device_ua", "device_ver"),
    "app_version": ("app_version", "app_ver"),
    "tracking_transparency": ("app_tracking_transparency",),
    "privacy_consent": ("gdpr_privacy_consent",),
    "install": ("install_referrer",),
    "session.state": ("state",),
    "event.event_name": ("event_name",),
    "event.event_data": ("event_data",),
    "event.revenue": ("event_data",),
    "event.click_record_id": ("event_data",),
    "deep_link_open.uri": ("event_data",),
    "identity_link": ("data",),
}


def add_what_ingest_would_say(body: Body, record: record_pb2.Record, find_app: Callable[[str], object | None]) -> None:
    """Adds what ingest would find wrong with a record that it does not get to see, as far as that is known here."""
    named = {violation.field for violation in body.violations.found}
    event, ip_address, kind = record.event, record.ip_address, record.WhichOneof("kind")
    has_device = any(map(is_usable, record.device_ids.values()))
    missing = [
        (record.app_id, "kochava_app_id", "must be the app that it belongs to"),
        (has_device, "device_ids", _no_device(body.root) or "must hold at least one usable device id"),
        (ip_address or kind in _NEED_NO_IP_ADDRESS, "origination_ip", "must be the device's IP address"),
        (event.event_name or kind != "event", "event_name", "must be set"),
        (record.session.state or kind != "session", "state", "must be start or stop"),
    ]
    for given, key, description in missing:
        if not given and body.path(key) not in named:
            body.violations.add(body.path(key), "REQUIRED", description)
    if record.app_id and find_app(record.app_id) is None:
        body.violations.extend([unknown_app(body.path("kochava_app_id"))])
    if ip_address and body.path("origination_ip") not in named and not is_ip_address(ip_address):
        body.violations.add(body.path("origination_ip"), "INVALID_IP_ADDRESS", "must be an IPv4 or IPv6 address")
    for name in sorted(RESERVED_EVENT_DATA & event.event_data.keys()):
        path = f"{body.path('event_data')}.{name}"
        body.violations.add(path, "RESERVED_NAME", "this name is reserved; use another")


def in_senders_words(root: Mapping[str, Any], violations: Iterable[Violation]) -> list[Violation]:
    """Returns violations that name fields of a record, renamed to where the sender wrote them."""
    body = Body(root)
    return [
        Violation(
            field=_senders_path(body, v.field),
            reason=v.reason,
            description=((v.field, v.reason) == ("device_ids", "REQUIRED") and _no_device(root)) or v.description,
        )
        for v in violations
    ]


def nul_fields(value: Any, path: str = "") -> Iterator[str]:
    """Yields the paths of the texts and keys in a JSON value that hold a NUL."""
    if isinstance(value, str):
        if "\0" in value:
            yield path
    elif isinstance(value, dict):
        for key, inner in value.items():
            inside = f"{path}.{key}" if path else key
            if "\0" in key:
                yield inside.replace("\0", "")
            else:
                yield from nul_fields(inner, inside)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from nul_fields(inner, f"{path}[{index}]")


def _no_device(root: Mapping[str, Any]) -> str:
    """Returns why no id is left of those that the sender gave; empty when he gave none that could have counted."""
    is_dropped = any(name.startswith("idfa") and is_usable(value) for name, value in device_ids(Body(root)))
    return "an idfa counts from iOS 14 on only with app_tracking_transparency.att" if is_dropped else ""


def _senders_path(body: Body, field: str) -> str:
    head, _, rest = field.partition(".")
    known, inside = (head, rest) if head in _SOURCES else (field, "")
    if known not in _SOURCES:
        two, _, inside = rest.partition(".")
        known = f"{head}.{two}"
    keys = _SOURCES.get(known)
    if keys is None:
        return field
    key = next((key for key in keys if body.get(key) is not None), keys[0])
    if key == "data":
        return f"data.{rest.partition('.')[2]}".rstrip(".")
    if known == "device_ids" and inside == "kochava_device_id":
        return body.path("kochava_device_id")
    if known == "deep_link_open.uri":
        inside = "uri"
    path = body.path(key)
    return f"{path}.{inside}" if inside and known in ("device_ids", "event.event_data", "deep_link_open.uri") else path
