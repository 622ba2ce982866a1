"""Ad links: the query of a click or impression, and the record it makes. Pure."""

import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote_plus

from google.protobuf.timestamp_pb2 import Timestamp

from libs.domain.device_ids import HASH_METHOD_OF_LENGTH, HASH_METHODS, KINDS, KNOWN_KINDS, is_macro
from libs.numbers import read_number
from reengage.ingest.v1 import record_pb2
from services.gateway.model import Platform, Tracker

MAX_CUSTOM_PARAMETERS = 64
MAX_PING_DELAY_S = 12 * 3600
_TRUE = ("1", "true", "yes")
_PURPOSES = frozenset({b"sec-purpose", b"purpose", b"x-purpose", b"x-moz"})
_BEFOREHAND = re.compile(rb"\s*(?:prefetch|prerender|preview)", re.IGNORECASE)
_COMPLETED = frozenset({"complete", "completed", "completed_view", "video_complete"})
_REPORTED = frozenset({"click_time", "ip_address", "device_ua", "user_agent"})
"""Parameters that only a report of an engagement has: a browser that follows a link says all this by being there."""
_QUOTED = re.compile(rb'"([ !#-\[\]-~]{1,256})"')
"""A string as headers have it, without escapes and parameters: no browser needs them to name a model or a version."""

_IDS = {**{name: name for name in KINDS}, "ios_idfa": "idfa"}
_AD = frozenset({"site_id", "sub_site_id", "creative_id", "partner_campaign_id", "partner_campaign_name"})
# Keys that mean something to us; every other one is a custom parameter.
_OURS = frozenset(
    {
        "campaign_id", "network_id", "device_id", "device_id_type", "device_id_is_hashed", "device_hash_method",
        "ip_address", "device_ua", "user_agent", "click_id", "impression_id", "click_time", "expires", "signature",
        "att", "att_time", "event", "append_app_conv_trk_params", *_IDS, *_AD,
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """A visit to a link: address and user agent, empty when not known, and the time in seconds since 1970.

    `is_prefetch`: a browser fetches what a person may come to want (A9). `client_hints` are those of the browser, if it
    sent any.
    """

    ip_address: str
    user_agent: str
    time_s: float
    is_prefetch: bool = False
    client_hints: record_pb2.ClientHints | None = None


def parse_query(raw: bytes) -> dict[str, str]:
    """Returns the parameters of a query string, of equal keys the first. Absent values (empty, macros) are left out.

    `?campaign_id?campaign_id=x`, which some networks make, reads as `campaign_id=x`.
    """
    if b"?" in raw:
        head, _, rest = raw.partition(b"?")
        if b"=" not in head:
            raw = rest
    text = raw.decode("latin-1")
    encoded = "%" in text or "+" in text
    found: dict[str, str] = {}
    for pair in text.split("&"):
        key, _, value = pair.partition("=")
        if encoded and ("%" in pair or "+" in pair):
            key, value = unquote_plus(key), unquote_plus(value)
        elif not pair.isascii():
            key, value = (part.encode("latin-1").decode("utf-8", "replace") for part in (key, value))
        if "\0" in value or "\0" in key:
            key, value = key.replace("\0", ""), value.replace("\0", "")
        if key and key not in found and is_present(key, value):
            found[key] = value
    return found


def is_present(key: str, value: str) -> bool:
    """Returns whether a value says something: not empty, no unreplaced macro (A7), not `null`, not its own name."""
    return bool(value) and value not in (key, "null") and not is_macro(value)


def click_record(
    tracker: Tracker, parameters: Mapping[str, str], visit: Visit, *, click_id: str, invalid: bool
) -> record_pb2.Record:
    """Returns the record of a click. `click_id` becomes its record id; the redirect hands it on as `ko_click_id`.

    A ping later than 12 hours is invalid as well: kept, never a candidate.
    """
    time_s = _time_s(parameters, visit)
    record = _record(tracker, parameters, visit, click_id, time_s)
    click = record.click
    click.tracker_id = tracker.tracker_id
    if value := parameters.get("click_id"):
        click.click_id = value
    if invalid or visit.time_s - time_s > MAX_PING_DELAY_S:
        click.invalid = True
    if is_ping(parameters):
        click.is_ping = True
    if visit.is_prefetch:
        click.visitor = record_pb2.VISITOR_PREFETCH
    _describe_ad(click.ad, parameters)
    return record


def impression_record(
    tracker: Tracker, parameters: Mapping[str, str], visit: Visit, *, record_id: str
) -> record_pb2.Record:
    """Returns the record of a view. The parameter `event` says whether a video was seen to its end."""
    record = _record(tracker, parameters, visit, record_id, _time_s(parameters, visit))
    impression = record.impression
    impression.tracker_id = tracker.tracker_id
    if value := parameters.get("impression_id"):
        impression.impression_id = value
    if parameters.get("event", "").lower() in _COMPLETED:
        impression.completed_view = True
    if is_ping(parameters):
        impression.is_ping = True
    if visit.is_prefetch:
        impression.visitor = record_pb2.VISITOR_PREFETCH
    _describe_ad(impression.ad, parameters)
    return record


def is_ip_address(text: str) -> bool:
    """Returns whether this is an IPv4 or IPv6 address."""
    try:
        socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)
    except (OSError, ValueError):
        return False
    return True


def is_ping(parameters: Mapping[str, str]) -> bool:
    """Returns whether a server reports an engagement: it gives the time, or the address or user agent of the device.

    Such a record is somebody's word (D12), also where the time is left to our clock.
    """
    return not _REPORTED.isdisjoint(parameters)


def is_prefetch(headers: Mapping[bytes, bytes]) -> bool:
    """Returns whether the headers of a request, named in lower case, say that no person made it yet (A9)."""
    return any(_BEFOREHAND.match(headers[name]) for name in headers.keys() & _PURPOSES)


def read_client_hints(headers: Mapping[bytes, bytes]) -> record_pb2.ClientHints | None:
    """Returns what the headers of a request, named in lower case, say of its device; None if no more than every one.

    Every browser that knows hints tells its platform. What is no text as headers have it, or too long, says nothing.
    """
    model, version = _hint(headers.get(b"sec-ch-ua-model")), _hint(headers.get(b"sec-ch-ua-platform-version"))
    if not model and not version:
        return None
    platform = _hint(headers.get(b"sec-ch-ua-platform"))
    return record_pb2.ClientHints(model=model, platform=platform, platform_version=version)


def device_user_agent(parameters: Mapping[str, str], visit: Visit) -> str:
    """Returns the device's user agent: the one given, else the visitor's, unless a server speaks for the device."""
    given = parameters.get("device_ua") or parameters.get("user_agent")
    return given or ("" if "ip_address" in parameters else visit.user_agent)


def _record(
    tracker: Tracker, parameters: Mapping[str, str], visit: Visit, record_id: str, time_s: float
) -> record_pb2.Record:
    ip_address = parameters.get("ip_address", visit.ip_address)
    whole_s = int(time_s)
    record = record_pb2.Record(
        record_id=record_id,
        app_id=tracker.app.app_id,
        event_time=Timestamp(seconds=whole_s, nanos=int((time_s - whole_s) * 1e9)),
        # A wrong address must not cost the click: it is still matched by its ids.
        ip_address=ip_address if ip_address is visit.ip_address or is_ip_address(ip_address) else "",
        user_agent=device_user_agent(parameters, visit),
        client_hints=None if is_ping(parameters) else visit.client_hints,
    )
    for key in parameters.keys() & _IDS.keys():
        record.device_ids[_IDS[key]] = parameters[key]
    if (device_id := parameters.get("device_id")) is not None:
        record.device_ids[_name_of_device_id(tracker, parameters, device_id)] = device_id
    if (att := parameters.get("att")) is not None:
        record.tracking_transparency.authorized = att.lower() in _TRUE
        answered_s = epoch_s(parameters.get("att_time", ""))
        if answered_s is not None:
            record.tracking_transparency.answer_time.seconds = int(answered_s)
    return record


def _hint(header: bytes | None) -> str:
    """Returns the text of a header that is a quoted string, "" if it is none or an empty one."""
    found = _QUOTED.fullmatch(header) if header else None
    return found[1].decode("ascii") if found else ""


def _name_of_device_id(tracker: Tracker, parameters: Mapping[str, str], device_id: str) -> str:
    default = "adid" if tracker.app.platform is Platform.ANDROID else "idfa"
    name = _IDS.get(parameters.get("device_id_type", "").lower(), default)
    method = parameters.get("device_hash_method", "").lower().replace("-", "")
    if method not in HASH_METHODS:
        hashed = parameters.get("device_id_is_hashed", "").lower() in _TRUE
        method = HASH_METHOD_OF_LENGTH.get(len(device_id), "") if hashed else ""
    return f"{name}_{method}" if method and f"{name}_{method}" in KNOWN_KINDS else name


def _describe_ad(ad: record_pb2.AdDetails, parameters: Mapping[str, str]) -> None:
    for key in parameters.keys() & _AD:
        setattr(ad, key, parameters[key])
    custom = parameters.keys() - _OURS
    if custom:
        for key in sorted(custom)[:MAX_CUSTOM_PARAMETERS]:
            ad.custom_parameters[key] = parameters[key]


def _time_s(parameters: Mapping[str, str], visit: Visit) -> float:
    given = epoch_s(parameters["click_time"]) if "click_time" in parameters else None
    # What has been heard of has happened.
    return visit.time_s if given is None else min(given, visit.time_s)


def epoch_s(value: object) -> float | None:
    """Returns the seconds of epoch seconds or milliseconds (by magnitude), a number or its text; else None."""
    number = read_number(value)
    if number is None:
        return None
    if number >= 1e11:
        number /= 1000
    return float(number) if 0 <= number < 253_402_300_800 else None
