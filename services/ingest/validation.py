"""Validation of records. Pure: what leaves nothing to work with refuses a record, all else costs one field.

A wrong field is put right where it is found, so a record that is as it should be is looked at once and not changed.
"""

import re
from collections.abc import Callable, MutableMapping, Sequence
from typing import NamedTuple

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from libs.domain.addresses import is_ip_address, read_ip_address
from libs.domain.device_ids import KNOWN_KINDS, RAW_KINDS
from libs.domain.event_names import INSTALL, RESERVED_EVENT_DATA, is_reserved
from libs.domain.record_sizes import (
    MAX_EVENT_NAME,
    MAX_ID,
    MAX_PAIRS,
    MAX_RECORD_BYTES,
    MAX_TEXT_BYTES,
    MAX_WARNINGS,
    cut,
    is_long,
    readable,
)
from libs.errors import Violation, Violations, first_of
from libs.messages import take_unknown_fields
from libs.time import MAX_TIME_US, MIN_TIME_US, SECOND_US, timestamp_us
from reengage.ingest.v1 import record_pb2
from services.ingest.model import IngestSettings

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
_INVALIDITIES = frozenset(record_pb2.Invalidity.values())
_STATES = frozenset(record_pb2.Session.State.values()) - {record_pb2.Session.STATE_UNSPECIFIED}
_NEED_DEVICE = frozenset({"install", "event", "session", "deep_link_open"})
_CURRENCY_CODE = re.compile(r"[A-Z]{3}")


class Findings(NamedTuple):
    """The wrong fields of a record, at most 32 each: `refusals`, if it cannot be kept, else `warnings`."""

    refusals: tuple[Violation, ...]
    """All that is wrong with it: what refuses it, and what alone would have cost a field."""
    warnings: tuple[Violation, ...]
    is_changed: bool
    """The record is not as it came."""


_NOTHING = Findings((), (), is_changed=False)


def check(
    record: record_pb2.Record,
    settings: IngestSettings,
    now_us: int,
    *,
    content: bytes,
    has_unknown: bool,
    kind: str | None,
    device_ids: MutableMapping[str, str],
    usable: MutableMapping[str, str],
) -> Findings:
    """Returns what is wrong with a record that came at `now_us`, which is put right as far as it can be.

    The caller has these at hand, so they are not taken from `record` again: `content` is the record serialised as it
    came, `has_unknown` says whether that had fields which `record` does not have, `kind` and `device_ids` are its own,
    and `usable` are those of the ids that are somebody's. Ids that are left out are taken from both, too.
    """
    found = _Found(settings, content)
    if has_unknown:
        if content == UNPARSABLE:
            return Findings((_UNPARSABLE,), (), is_changed=False)
        for path in take_unknown_fields(record_pb2.Record.FromString(content)):
            found.refuse(path or "record", "UNKNOWN_FIELD", "must have no fields but those of the contract")
    _check_app_and_time(record, found, now_us)
    _check_device_ids(record, found, device_ids, usable)
    _check_surroundings(record, found)
    if not usable:
        _check_without_ids(record, found, kind)
    _check_privacy(record, found)
    if kind is None:
        found.refuse("kind", "REQUIRED", "must be exactly one of the kinds of records")
    else:
        _CHECKS[kind](record, found)
    return found.findings()


class _Found:
    """The findings so far. Methods that begin with `fit` put a field right: that of a message (`part`) at a path."""

    __slots__ = ("_refusals", "_warnings", "is_changed", "is_plain", "settings")

    def __init__(self, settings: IngestSettings, content: bytes) -> None:
        self.settings = settings
        self._refusals: Violations | None = None
        self._warnings: Violations | None = None
        self.is_changed = False
        """Something was put right that nobody needs to hear of; each warning is a change, too."""
        # A record that is short as a whole and holds no zero byte has no text that need be looked at by itself.
        self.is_plain = len(content) <= MAX_TEXT_BYTES and b"\0" not in content

    def is_short(self, part: Message) -> bool:
        """Returns whether nothing in a part of the record can be too long, too many or hold NUL."""
        return self.is_plain and part.ByteSize() <= MAX_ID

    def refuse(self, field: str, reason: str, description: str) -> None:
        if self._refusals is None:
            self._refusals = Violations()
        self._refusals.add(field, reason, description)

    def warn(self, field: str, code: str, message: str) -> None:
        if self._warnings is None:
            self._warnings = Violations()
        self._warnings.add(field, code, message)

    def findings(self) -> Findings:
        refusals, warnings = self._refusals, self._warnings
        if refusals is None:
            if warnings is None:
                return Findings((), (), is_changed=True) if self.is_changed else _NOTHING
            return Findings((), _first(warnings.found, warnings.count), is_changed=True)
        found, count = refusals.found, refusals.count
        if warnings is not None:
            found, count = found + warnings.found, count + warnings.count
        return Findings(_first(found, count), (), is_changed=True)

    def fit_id(self, field: str, part: Message, name: str, max_characters: int = MAX_ID) -> None:
        value = getattr(part, name)
        if len(value) > max_characters or "\0" in value:
            setattr(part, name, self._readable(field, value)[:max_characters])
            if len(value) > max_characters:
                self.warn(field, "TOO_LONG", f"cut to {max_characters:,} characters")

    def fit_text(self, field: str, part: Message, name: str) -> None:
        value = getattr(part, name)
        if is_long(value) or "\0" in value:
            setattr(part, name, self.fitted(field, value))

    def fitted(self, field: str, value: str) -> str:
        """Returns as much of a text as may stay."""
        value = self._readable(field, value)
        if is_long(value):
            self.warn(field, "TOO_LONG", f"cut to {MAX_TEXT_BYTES:,} bytes")
            value = cut(value)
        return value

    def fit_pairs(self, field: str, pairs: MutableMapping[str, str]) -> None:
        for name in list(pairs):
            if len(name) > MAX_ID or "\0" in name:
                self._rename(field, pairs, name)
        # A map has no order: that of the names is the same for a record and its repeats.
        for name in sorted(pairs)[MAX_PAIRS:]:
            self.warn(f"{field}.{name[:_MAX_SHOWN_NAME]}", "TOO_MANY", f"left out: more than {MAX_PAIRS} names")
            del pairs[name]
        for name in list(pairs):
            value = pairs[name]
            if is_long(value) or "\0" in value:
                pairs[name] = self.fitted(f"{field}.{name[:_MAX_SHOWN_NAME]}", value)

    def _rename(self, field: str, pairs: MutableMapping[str, str], name: str) -> None:
        kept = self._readable(field, name)[:MAX_ID]
        if len(name) > MAX_ID:
            self.warn(f"{field}.{kept[:_MAX_SHOWN_NAME]}", "TOO_LONG", f"its name was cut to {MAX_ID:,} characters")
        value = pairs.pop(name)
        if kept not in pairs:
            pairs[kept] = value
        else:
            self.warn(f"{field}.{kept[:_MAX_SHOWN_NAME]}", "TOO_LONG", "left out: another name begins like this one")

    def _readable(self, field: str, value: str) -> str:
        if "\0" not in value:
            return value
        self.warn(field, "INVALID_TEXT", "NUL was replaced by U+FFFD")
        return readable(value)

    def check_tracker(self, field: str, tracker_id: str, app_id: str) -> None:
        if not tracker_id:
            self.refuse(field, "REQUIRED", "must be set")
        # Of an unknown app nothing can be said about its trackers.
        elif app_id in self.settings.apps and self.settings.app_of_tracker.get(tracker_id) != app_id:
            self.refuse(field, "UNKNOWN_TRACKER", "the app has no such tracker")

    def fit_visitor(self, field: str, part: record_pb2.Click | record_pb2.Impression) -> None:
        if part.visitor not in _VISITORS:
            # Whoever says so means no person, and what he means must not win.
            part.visitor = record_pb2.VISITOR_BOT
            self.warn(field, "INVALID_VALUE", "taken for a bot: must be one of the named visitors")

    def fit_invalidity(self, field: str, part: record_pb2.Click | record_pb2.Impression) -> None:
        if part.invalidity not in _INVALIDITIES:
            # Whoever says so means no valid one, and what he means must not win.
            part.invalidity = record_pb2.INVALIDITY_BAD_SIGNATURE
            self.warn(field, "INVALID_VALUE", "taken for a wrong signature: must be one of the named invalidities")

    def fit_ad(self, field: str, ad: record_pb2.AdDetails) -> None:
        self.fit_id(f"{field}.site_id", ad, "site_id")
        self.fit_id(f"{field}.sub_site_id", ad, "sub_site_id")
        self.fit_id(f"{field}.creative_id", ad, "creative_id")
        self.fit_id(f"{field}.partner_campaign_id", ad, "partner_campaign_id")
        self.fit_text(f"{field}.partner_campaign_name", ad, "partner_campaign_name")
        self.fit_pairs(f"{field}.custom_parameters", ad.custom_parameters)


def _first(found: Sequence[Violation], count: int) -> tuple[Violation, ...]:
    return first_of(found, count, MAX_WARNINGS)


def _is_time(time: Timestamp) -> bool:
    return 0 <= time.nanos < 1_000_000_000 and MIN_TIME_US <= timestamp_us(time) <= MAX_TIME_US


def _check_app_and_time(record: record_pb2.Record, found: _Found, now_us: int) -> None:
    app_id = record.app_id
    app = found.settings.apps.get(app_id)
    if not app_id:
        found.refuse("app_id", "REQUIRED", "must be the app that the record belongs to")
    elif app is None:
        found.refuse("app_id", "UNKNOWN_APP", "no live app has this id")
    record_id = record.record_id
    if len(record_id) > MAX_ID or "\0" in record_id:
        # A cut one could be that of another record.
        code = "TOO_LONG" if len(record_id) > MAX_ID else "INVALID_TEXT"
        found.warn("record_id", code, f"replaced by an id made from it: at most {MAX_ID} characters, without NUL")
        record.record_id = ""
    if not record.HasField("event_time"):
        return
    time = record.event_time
    if not _is_time(time):
        found.refuse("event_time", "INVALID_TIME", "seconds or nanos are out of range")
    elif app is not None:
        time_us = timestamp_us(time)
        if time_us > now_us + app.max_lead_us:
            found.refuse(
                "event_time", "EVENT_TIME_IN_FUTURE", f"must be at most {app.max_lead_us // SECOND_US} s ahead"
            )
        elif time_us < now_us - app.max_age_us:
            found.refuse("event_time", "EVENT_TIME_TOO_OLD", f"must be at most {app.max_age_us // SECOND_US} s back")


def _check_device_ids(
    record: record_pb2.Record, found: _Found, device_ids: MutableMapping[str, str], usable: MutableMapping[str, str]
) -> None:
    if found.is_plain and device_ids.keys() <= KNOWN_KINDS and max(map(len, usable.values()), default=0) <= MAX_ID:
        return
    for name, value in list(device_ids.items()):
        path = f"device_ids.{name[:_MAX_SHOWN_NAME]}"
        if name not in KNOWN_KINDS:
            kinds = ", ".join(RAW_KINDS)
            found.warn(path, "UNKNOWN_DEVICE_ID", f"left out: names must be of {kinds}, with or without a hash")
        elif len(value) > MAX_ID:  # a cut one would be another device's
            found.warn(path, "TOO_LONG", f"left out: must be at most {MAX_ID:,} characters")
        elif "\0" in value:
            found.warn(path, "INVALID_TEXT", "left out: must not contain NUL")
        else:
            continue
        del record.device_ids[name], device_ids[name]
        usable.pop(name, None)


def _check_surroundings(record: record_pb2.Record, found: _Found) -> None:
    ip_address = record.ip_address
    if ip_address and not is_ip_address(ip_address):
        record.ip_address = read_ip_address(ip_address)
        found.is_changed = True
        if not record.ip_address:
            found.warn("ip_address", "INVALID_IP_ADDRESS", "left out: must be an IPv4 or IPv6 address")
    if not found.is_plain:
        found.fit_text("user_agent", record, "user_agent")
        found.fit_text("app_version", record, "app_version")
    if record.HasField("client_hints") and not found.is_short(record.client_hints):
        hints = record.client_hints
        found.fit_id("client_hints.model", hints, "model")
        found.fit_id("client_hints.platform", hints, "platform")
        found.fit_id("client_hints.platform_version", hints, "platform_version")


def _check_without_ids(record: record_pb2.Record, found: _Found, kind: str | None) -> None:
    """Checks a record without a usable id."""
    if kind == "identity_link":
        found.refuse("device_ids", "REQUIRED", "must hold at least one usable device id")
    elif kind in _NEED_DEVICE:
        if record.ip_address:
            found.warn("device_ids", "NO_DEVICE_ID", "no usable id: matched by address and user agent alone")
        else:
            found.refuse("device_ids", "REQUIRED", "must hold a usable device id, or there must be an address")


def _check_privacy(record: record_pb2.Record, found: _Found) -> None:
    if record.HasField("tracking_transparency"):
        transparency = record.tracking_transparency
        if transparency.detail not in _TRANSPARENCY_DETAILS:
            transparency.ClearField("detail")
            found.warn("tracking_transparency.detail", "INVALID_VALUE", "left out: must be one of the named details")
        if transparency.HasField("answer_time") and not _is_time(transparency.answer_time):
            transparency.ClearField("answer_time")
            found.warn("tracking_transparency.answer_time", "INVALID_TIME", "left out: out of range")
    if record.HasField("privacy_consent"):
        found.fit_text("privacy_consent.tc_string", record.privacy_consent, "tc_string")


def _check_click(record: record_pb2.Record, found: _Found) -> None:
    click = record.click
    found.check_tracker("click.tracker_id", click.tracker_id, record.app_id)
    found.fit_visitor("click.visitor", click)
    found.fit_invalidity("click.invalidity", click)
    if not found.is_short(click):
        found.fit_id("click.click_id", click, "click_id")
        found.fit_ad("click.ad", click.ad)


def _check_impression(record: record_pb2.Record, found: _Found) -> None:
    impression = record.impression
    found.check_tracker("impression.tracker_id", impression.tracker_id, record.app_id)
    found.fit_visitor("impression.visitor", impression)
    found.fit_invalidity("impression.invalidity", impression)
    if not found.is_short(impression):
        found.fit_id("impression.impression_id", impression, "impression_id")
        found.fit_ad("impression.ad", impression.ad)


def _check_install(record: record_pb2.Record, found: _Found) -> None:
    install = record.install
    if not found.is_short(install):
        found.fit_id("install.click_record_id", install, "click_record_id")
        found.fit_text("install.referrer", install, "referrer")


def _check_event(record: record_pb2.Record, found: _Found) -> None:
    event = record.event
    event_name = event.event_name
    if not event_name:
        found.refuse("event.event_name", "REQUIRED", "must be set")
    elif is_reserved(event_name):
        found.warn("event.event_name", "RESERVED_NAME", f"kept as data_…: names beginning with {INSTALL} are reserved")
        event.event_name = event_name = f"data_{event_name}"
    for name in event.event_data:
        if name in RESERVED_EVENT_DATA:
            _rename_reserved(event, found)
            break
    if event.HasField("revenue") and not _CURRENCY_CODE.fullmatch(event.revenue.currency_code):
        found.warn("event.revenue.currency_code", "INVALID_CURRENCY", "no revenue: must be an ISO 4217 code, as USD")
        event.ClearField("revenue")
    if not found.is_short(event):
        found.fit_id("event.event_name", event, "event_name", MAX_EVENT_NAME)
        found.fit_pairs("event.event_data", event.event_data)
        found.fit_id("event.click_record_id", event, "click_record_id")
    elif len(event_name) > MAX_EVENT_NAME:
        found.fit_id("event.event_name", event, "event_name", MAX_EVENT_NAME)


def _rename_reserved(event: record_pb2.Event, found: _Found) -> None:
    for name in sorted(RESERVED_EVENT_DATA & event.event_data.keys()):
        kept = f"data_{name}"
        while kept in event.event_data:
            kept = f"data_{kept}"
        event.event_data[kept] = event.event_data.pop(name)
        found.warn(f"event.event_data.{name}", "RESERVED_NAME", f"kept as {kept}: this name is reserved")


def _check_session(record: record_pb2.Record, found: _Found) -> None:
    session = record.session
    if session.state not in _STATES:
        code = "INVALID_VALUE" if session.state else "REQUIRED"
        found.warn("session.state", code, "kept as a session that neither begins nor ends: must be start or stop")
        session.ClearField("state")
    found.fit_id("session.click_record_id", session, "click_record_id")


def _check_deep_link_open(record: record_pb2.Record, found: _Found) -> None:
    link = record.deep_link_open
    if not link.uri:
        found.warn("deep_link_open.uri", "REQUIRED", "kept as an open by an unknown link")
    found.fit_text("deep_link_open.uri", link, "uri")
    found.fit_id("deep_link_open.click_record_id", link, "click_record_id")
    # Links come from anywhere: a tracker that is not ours makes no candidate, but the app was opened all the same.
    found.fit_id("deep_link_open.tracker_id", link, "tracker_id")


def _check_identity_link(record: record_pb2.Record, found: _Found) -> None:
    identities = record.identity_link.identities
    if not identities:
        found.refuse("identity_link.identities", "REQUIRED", "must hold at least one name and value")
    found.fit_pairs("identity_link.identities", identities)


_CHECKS: dict[str, Callable[[record_pb2.Record, _Found], None]] = {
    "click": _check_click,
    "impression": _check_impression,
    "install": _check_install,
    "event": _check_event,
    "session": _check_session,
    "deep_link_open": _check_deep_link_open,
    "identity_link": _check_identity_link,
}
