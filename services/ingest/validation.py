"""Validation of records. Pure: every wrong field of a record is named."""

import re
import socket
from collections.abc import Callable, Mapping

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from libs.domain.device_ids import KNOWN_KINDS, RAW_KINDS
from libs.domain.event_names import INSTALL, RESERVED_EVENT_DATA, is_reserved
from libs.domain.record_sizes import MAX_RECORD_BYTES
from libs.errors import Violation, Violations, first_of
from libs.messages import take_unknown_fields
from libs.time import MAX_TIME_US, MIN_TIME_US, SECOND_US, timestamp_us
from reengage.ingest.v1 import record_pb2
from services.ingest.model import IngestSettings

MAX_ID = 256
MAX_EVENT_NAME = 128
MAX_PAIRS = 64
MAX_TEXT_BYTES = 4096
"""The limit of a value of event data and the like, and of every other text that is no id."""
MAX_VIOLATIONS = 32
"""Wrong fields of one record that are named: a response has room for 1,000 records."""
UNPARSABLE = b"\xf8\xff\xff\xff\x0f\x01"
"""The content of a record that stands for one which cannot be parsed: the highest field number, which stays unused."""
TOO_LARGE = Violation(
    field="record", reason="TOO_LARGE", description=f"must be at most {MAX_RECORD_BYTES:,} bytes as a message"
)
_UNPARSABLE = Violation(
    field="record", reason="UNPARSABLE", description="must be a serialised Record, with texts in UTF-8"
)
_MAX_SHOWN_NAME = 64

_TRANSPARENCY_DETAILS = frozenset(record_pb2.TrackingTransparency.Detail.values())
_VISITORS = frozenset(record_pb2.Visitor.values())
_NEED_DEVICE_ID = frozenset({"install", "event", "session", "deep_link_open", "identity_link"})
_NEED_IP_ADDRESS = frozenset({"install", "event", "session"})
_CURRENCY_CODE = re.compile(r"[A-Z]{3}")


def violations(
    record: record_pb2.Record,
    settings: IngestSettings,
    now_us: int,
    *,
    content: bytes,
    has_unknown: bool,
    kind: str | None,
    device_ids: Mapping[str, str],
    has_device: bool,
) -> list[Violation]:
    """Returns every wrong field of a record that came at `now_us`, at most 32; an empty list if it is acceptable.

    The caller has these at hand, so they are
    not taken from `record` again: `content` is the record serialised as it came, `has_unknown` says whether that had
    fields which `record` does not have, `kind` and `device_ids` are its own, and `has_device` says whether one of the
    ids is usable.
    """
    found = _Found(settings, content)
    if has_unknown:
        if content == UNPARSABLE:
            return [_UNPARSABLE]
        for path in take_unknown_fields(record_pb2.Record.FromString(content)):
            found.add(path or "record", "UNKNOWN_FIELD", "must have no fields but those of the contract")
    _check_app_and_time(record, found, now_us)
    _check_device_ids(device_ids, found)
    if not has_device and kind in _NEED_DEVICE_ID:
        found.add("device_ids", "REQUIRED", "must hold at least one usable device id")
    _check_surroundings(record, found, kind)
    _check_privacy(record, found)
    if kind is None:
        found.add("kind", "REQUIRED", "must be exactly one of the kinds of records")
    else:
        _CHECKS[kind](record, found)
    return list(first_of(found.violations.found, found.violations.count, MAX_VIOLATIONS))


class _Found:
    """The wrong fields found so far. Its methods take the path of a field and its value."""

    __slots__ = ("is_plain", "settings", "violations")

    def __init__(self, settings: IngestSettings, content: bytes) -> None:
        self.settings = settings
        self.violations = Violations()
        # A record that is short as a whole and holds no zero byte has no text that need be looked at by itself.
        self.is_plain = len(content) <= MAX_TEXT_BYTES and b"\0" not in content

    def is_short(self, part: Message) -> bool:
        """Returns whether nothing in a part of the record can be too long, too many or hold NUL."""
        return self.is_plain and part.ByteSize() <= MAX_ID

    def add(self, field: str, reason: str, description: str) -> None:
        self.violations.add(field, reason, description)

    def check_id(self, field: str, value: str, max_characters: int = MAX_ID) -> None:
        if len(value) > max_characters:
            self.add(field, "TOO_LONG", f"must be at most {max_characters:,} characters")
        if "\0" in value:
            self.add(field, "INVALID_TEXT", "must not contain NUL")

    def check_text(self, field: str, value: str) -> None:
        # Counting bytes costs a copy: only what may be too long in UTF-8 is counted.
        if len(value) > MAX_TEXT_BYTES // 4 and len(value.encode()) > MAX_TEXT_BYTES:
            self.add(field, "TOO_LONG", f"must be at most {MAX_TEXT_BYTES:,} bytes")
        if "\0" in value:
            self.add(field, "INVALID_TEXT", "must not contain NUL")

    def check_given(self, field: str, value: str) -> None:
        if not value:
            self.add(field, "REQUIRED", "must be set")

    def check_pairs(self, field: str, pairs: Mapping[str, str]) -> None:
        if len(pairs) > MAX_PAIRS:
            self.add(field, "TOO_MANY", f"must be at most {MAX_PAIRS} keys")
            return
        for name, value in pairs.items():
            self.check_id(field, name)
            self.check_text(f"{field}.{name[:_MAX_SHOWN_NAME]}", value)

    def check_time(self, field: str, time: Timestamp) -> int | None:
        """Returns the time in microseconds; None if it is none, which is noted."""
        time_us = timestamp_us(time)
        if 0 <= time.nanos < 1_000_000_000 and MIN_TIME_US <= time_us <= MAX_TIME_US:
            return time_us
        self.add(field, "INVALID_TIME", "seconds or nanos are out of range")
        return None

    def check_tracker(self, field: str, tracker_id: str, app_id: str) -> None:
        if not tracker_id:
            self.add(field, "REQUIRED", "must be set")
        # Of an unknown app nothing can be said about its trackers.
        elif app_id in self.settings.apps and self.settings.app_of_tracker.get(tracker_id) != app_id:
            self.add(field, "UNKNOWN_TRACKER", "the app has no such tracker")

    def check_visitor(self, field: str, visitor: record_pb2.Visitor.ValueType) -> None:
        if visitor not in _VISITORS:
            self.add(field, "INVALID_VALUE", "must be one of the named visitors")

    def check_ad(self, field: str, ad: record_pb2.AdDetails) -> None:
        self.check_id(f"{field}.site_id", ad.site_id)
        self.check_id(f"{field}.sub_site_id", ad.sub_site_id)
        self.check_id(f"{field}.creative_id", ad.creative_id)
        self.check_id(f"{field}.partner_campaign_id", ad.partner_campaign_id)
        self.check_text(f"{field}.partner_campaign_name", ad.partner_campaign_name)
        self.check_pairs(f"{field}.custom_parameters", ad.custom_parameters)


def _check_app_and_time(record: record_pb2.Record, found: _Found, now_us: int) -> None:
    app_id = record.app_id
    app = found.settings.apps.get(app_id)
    if not app_id:
        found.add("app_id", "REQUIRED", "must be the app that the record belongs to")
    elif app is None:
        found.add("app_id", "UNKNOWN_APP", "no live app has this id")
    found.check_id("record_id", record.record_id)
    time_us = found.check_time("event_time", record.event_time) if record.HasField("event_time") else None
    if app is not None and time_us is not None:
        if time_us > now_us + app.max_lead_us:
            found.add("event_time", "EVENT_TIME_IN_FUTURE", f"must be at most {app.max_lead_us // SECOND_US} s ahead")
        elif time_us < now_us - app.max_age_us:
            found.add("event_time", "EVENT_TIME_TOO_OLD", f"must be at most {app.max_age_us // SECOND_US} s back")


def _check_device_ids(device_ids: Mapping[str, str], found: _Found) -> None:
    if not device_ids.keys() <= KNOWN_KINDS:
        found.add("device_ids", "UNKNOWN_DEVICE_ID", f"names must be of {', '.join(RAW_KINDS)}, with or without a hash")
    for name, value in device_ids.items():
        if name in KNOWN_KINDS and (len(value) > MAX_ID or not found.is_plain):
            found.check_id(f"device_ids.{name}", value)


def _check_surroundings(record: record_pb2.Record, found: _Found, kind: str | None) -> None:
    ip_address = record.ip_address
    if ip_address:
        if not _is_ip_address(ip_address):
            found.add("ip_address", "INVALID_IP_ADDRESS", "must be an IPv4 or IPv6 address")
    elif kind in _NEED_IP_ADDRESS:
        found.add("ip_address", "REQUIRED", "must be the device's IP address")
    if not found.is_plain:
        found.check_text("user_agent", record.user_agent)
        found.check_text("app_version", record.app_version)
    if record.HasField("client_hints") and not found.is_short(record.client_hints):
        hints = record.client_hints
        found.check_id("client_hints.model", hints.model)
        found.check_id("client_hints.platform", hints.platform)
        found.check_id("client_hints.platform_version", hints.platform_version)


def _check_privacy(record: record_pb2.Record, found: _Found) -> None:
    if record.HasField("tracking_transparency"):
        transparency = record.tracking_transparency
        if transparency.detail not in _TRANSPARENCY_DETAILS:
            found.add("tracking_transparency.detail", "INVALID_VALUE", "must be one of the named details")
        if transparency.HasField("answer_time"):
            found.check_time("tracking_transparency.answer_time", transparency.answer_time)
    if record.HasField("privacy_consent"):
        found.check_text("privacy_consent.tc_string", record.privacy_consent.tc_string)


def _check_click(record: record_pb2.Record, found: _Found) -> None:
    click = record.click
    found.check_tracker("click.tracker_id", click.tracker_id, record.app_id)
    found.check_visitor("click.visitor", click.visitor)
    if not found.is_short(click):
        found.check_id("click.click_id", click.click_id)
        found.check_ad("click.ad", click.ad)


def _check_impression(record: record_pb2.Record, found: _Found) -> None:
    impression = record.impression
    found.check_tracker("impression.tracker_id", impression.tracker_id, record.app_id)
    found.check_visitor("impression.visitor", impression.visitor)
    if not found.is_short(impression):
        found.check_id("impression.impression_id", impression.impression_id)
        found.check_ad("impression.ad", impression.ad)


def _check_install(record: record_pb2.Record, found: _Found) -> None:
    install = record.install
    if not found.is_short(install):
        found.check_id("install.click_record_id", install.click_record_id)
        found.check_text("install.referrer", install.referrer)


def _check_event(record: record_pb2.Record, found: _Found) -> None:
    event = record.event
    event_name = event.event_name
    found.check_given("event.event_name", event_name)
    found.check_id("event.event_name", event_name, MAX_EVENT_NAME)
    if is_reserved(event_name):
        found.add("event.event_name", "RESERVED_NAME", f"names beginning with {INSTALL} are reserved")
    for name in event.event_data:
        if name in RESERVED_EVENT_DATA:
            found.add(f"event.event_data.{name}", "RESERVED_NAME", "this name is reserved; use another")
    if event.HasField("revenue") and not _CURRENCY_CODE.fullmatch(event.revenue.currency_code):
        found.add("event.revenue.currency_code", "INVALID_CURRENCY_CODE", "must be an ISO 4217 code, as USD")
    if not found.is_short(event):
        found.check_pairs("event.event_data", event.event_data)
        found.check_id("event.click_record_id", event.click_record_id)


def _check_session(record: record_pb2.Record, found: _Found) -> None:
    if record.session.state not in (record_pb2.Session.STATE_START, record_pb2.Session.STATE_STOP):
        found.add("session.state", "REQUIRED", "must be STATE_START or STATE_STOP")
    found.check_id("session.click_record_id", record.session.click_record_id)


def _check_deep_link_open(record: record_pb2.Record, found: _Found) -> None:
    link = record.deep_link_open
    found.check_given("deep_link_open.uri", link.uri)
    found.check_text("deep_link_open.uri", link.uri)
    found.check_id("deep_link_open.click_record_id", link.click_record_id)
    # Links come from anywhere: a tracker that is not ours makes no candidate, but the app was opened all the same.
    found.check_id("deep_link_open.tracker_id", link.tracker_id)


def _check_identity_link(record: record_pb2.Record, found: _Found) -> None:
    identities = record.identity_link.identities
    if not identities:
        found.add("identity_link.identities", "REQUIRED", "must hold at least one name and value")
    found.check_pairs("identity_link.identities", identities)


_CHECKS: dict[str, Callable[[record_pb2.Record, _Found], None]] = {
    "click": _check_click,
    "impression": _check_impression,
    "install": _check_install,
    "event": _check_event,
    "session": _check_session,
    "deep_link_open": _check_deep_link_open,
    "identity_link": _check_identity_link,
}


def _is_ip_address(text: str) -> bool:
    try:
        socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)
    except (OSError, ValueError):  # no address; a NUL in it
        return False
    return True
