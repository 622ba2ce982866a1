"""Wrong fields of a body, named where the sender wrote them."""

from collections.abc import Iterable, Mapping
from typing import Any

from libs.errors import Violation, Violations
from services.gateway.translation.body import Body

# Where the fields of a record come from, most likely first.
_SOURCES = {
    "kind": ("action",),
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


def in_senders_words(root: Mapping[str, Any], violations: Iterable[Violation]) -> list[Violation]:
    """Returns violations that name fields of a record, renamed to where the sender wrote them."""
    body = Body(root, Violations())
    return [
        Violation(field=_senders_path(body, v.field), reason=v.reason, description=v.description) for v in violations
    ]


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
    if key == "action":
        return key
    if key == "data":
        return f"data.{rest.partition('.')[2]}".rstrip(".")
    if known == "device_ids" and inside == "kochava_device_id":
        return body.path("kochava_device_id")
    if known == "deep_link_open.uri":
        inside = "uri"
    path = body.path(key)
    return f"{path}.{inside}" if inside and known in ("device_ids", "event.event_data", "deep_link_open.uri") else path
