"""Ad links: the query of a click or impression, and the record it makes. Pure."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import unquote, unquote_plus

from google.protobuf.timestamp_pb2 import Timestamp

from libs.domain.addresses import read_ip_address
from libs.domain.device_ids import HASH_METHOD_OF_LENGTH, HASH_METHODS, KINDS, KNOWN_KINDS, is_macro, is_usable
from libs.domain.visitors import find_bot
from libs.numbers import read_number
from reengage.ingest.v1 import record_pb2
from services.gateway.model import Platform, Tracker

MAX_CUSTOM_PARAMETERS = 64
MAX_PING_DELAY_S = 12 * 3600
MAX_PING_LEAD_S = 24 * 3600
"""OURS: a ping may be ahead by a time zone and a clock that is wrong; what is further ahead was not meant."""
MAX_ID = 256
MAX_TEXT_BYTES = 4096
"""The limits of ingest: what is longer is cut, as it must not cost the click."""
_TRUE = ("1", "true", "yes")
_PURPOSES = frozenset({b"sec-purpose", b"purpose", b"x-purpose", b"x-moz"})
_BEFOREHAND = re.compile(rb"\s*(?:prefetch|prerender|preview)", re.IGNORECASE)
_COMPLETED = frozenset({"complete", "completed", "completed_view", "video_complete"})
_REPORTED = frozenset({"click_time", "ip_address", "device_ua", "user_agent"})
"""Parameters that only a report of an engagement has: a browser that follows a link says all this by being there."""
_QUOTED = re.compile(rb'"([ !#-\[\]-~]{1,256})"')
"""A string as headers have it, without escapes and parameters: no browser needs them to name a model or a version."""
_ZONE = re.compile(r" (?=\d\d:?\d\d$)")
_FRACTION = re.compile(r"(?<=\.\d{6})\d+")
_EPOCH_UNITS = ((1e11, 1), (1e14, 10**3), (1e17, 10**6), (1e20, 10**9))
"""Units of epoch times as fractions of a second, and the number below which a time is in them."""

_IDS = {**{name: name for name in KINDS}, "ios_idfa": "idfa", "gaid": "adid"}
_AD = frozenset({"site_id", "sub_site_id", "creative_id", "partner_campaign_id", "partner_campaign_name"})
# Keys that mean something to us; every other one is a custom parameter.
_OURS = frozenset(
    {
        "campaign_id", "network_id", "device_id", "device_id_type", "device_id_is_hashed", "device_hash_method",
        "ip_address", "device_ua", "user_agent", "click_time", "expires", "signature",
        "att", "att_time", "append_app_conv_trk_params", *_IDS, *_AD,
    }
)  # fmt: skip
_OF_CLICKS, _OF_IMPRESSIONS = _OURS | {"click_id"}, _OURS | {"impression_id", "event"}
_KNOWN = _OF_CLICKS | _OF_IMPRESSIONS | {f"cp_{number}" for number in range(10)}
"""The keys of which letter case does not matter: whoever makes up a key of his own knows how he wrote it."""
_NOT_PASSED_ON = frozenset({"expires", "signature", "append_app_conv_trk_params", "ko_click_id", "referrer"})

_LINK = re.compile(r"/+(c/+|v1/cpi/click|track/impression)([^?&]*)[?&]?(.*)", re.IGNORECASE | re.DOTALL)
_AFTER_LINKS = "/., )"
"""The characters that stand behind a link in a text, and that programs take for a part of it."""


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


def read_link(raw_path: bytes, query: bytes) -> tuple[str, str, bytes] | None:
    """Returns path, what follows on it, and query of a link as people and mail programs leave it; None for no link.

    The letter case of the path does not matter, `&` or `%3F` may stand for `?`, and what ended a sentence is cut off.
    """
    text = raw_path.decode("latin-1")
    found = _LINK.fullmatch(unquote(text, "latin-1") if "%3f" in text.lower() else text)
    if found is None:
        return None
    path, rest, of_path = f"/{found[1].lower().rstrip('/')}", unquote(found[2]).strip(_AFTER_LINKS), found[3]
    is_short = path == "/c"
    if rest and not is_short:
        return None  # /v1/cpi/clicks, /track/impression/more
    query = b"&".join(filter(None, (of_path.encode("latin-1", "ignore"), query)))
    return f"{path}/" if is_short else path, rest, query


def parse_query(raw: bytes) -> dict[str, str]:
    """Returns the parameters of a query string, of equal keys the first. Absent values (empty, macros) are left out.

    Keys that mean something to us are in lower case. `?campaign_id?campaign_id=x`, which some networks make, reads as
    `campaign_id=x`, `&amp;` as `&`; what ended the sentence that a link stood in is cut off.
    """
    text = raw.decode("latin-1")
    if text[-1:] in "/., )+" or text.endswith("%20"):
        text = _without_end(text)
    pairs: Iterable[str] = text.split("&")
    if "?" in text:
        pairs = [part for pair in pairs for part in _at_question_marks(pair)]
    encoded = "%" in text or "+" in text
    found: dict[str, str] = {}
    for pair in pairs:
        key, _, value = pair.partition("=")
        written = value
        if encoded and ("%" in pair or "+" in pair):
            key, value = unquote_plus(key), unquote_plus(value)
        elif not pair.isascii():
            key, value = (part.encode("latin-1").decode("utf-8", "replace") for part in (key, value))
        if "\0" in value or "\0" in key:
            key, value = key.replace("\0", ""), value.replace("\0", "")
        if key not in _KNOWN:
            key = _as_known(key)
        if key and key not in found and is_present(key, value, written):
            found[key] = value
    return found


def is_present(key: str, value: str, written: str) -> bool:
    """Returns whether a value says something: not empty, no unreplaced macro (A7), not `null`, not its own name.

    It is a macro also as it was `written`, since `%AD_ID%` begins like an encoded character, or if it was encoded
    twice.
    """
    if not value or value == key or is_macro(value):
        return False
    lower = value.lower()
    if lower == "null" or lower == key.lower():
        return False
    return "%" not in written or not (is_macro(written) or ("%" in value and is_macro(unquote(value))))


def parameters_of(record: record_pb2.Record) -> dict[str, str]:
    """Returns the parameters of the link of a click, as far as its record keeps them."""
    click = record.click
    ad = {name: getattr(click.ad, name) for name in _AD}
    return {**record.device_ids, **ad, "click_id": click.click_id, **click.ad.custom_parameters}


def custom_parameters(parameters: Mapping[str, str]) -> dict[str, str]:
    """Returns the custom parameters of a click's link."""
    return {key: value for key, value in parameters.items() if key not in _OF_CLICKS}


def passed_on(parameters: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yields the parameters that a link wants to be passed on to where it leads (`append_app_conv_trk_params`)."""
    if parameters.get("append_app_conv_trk_params", "").lower() in _TRUE:
        for key, value in parameters.items():
            if key.lower() not in _NOT_PASSED_ON:
                yield key, value


def click_record(
    tracker: Tracker, parameters: Mapping[str, str], visit: Visit, *, click_id: str, is_signed: bool
) -> record_pb2.Record:
    """Returns the record of a click. `click_id` becomes its record id; the redirect hands it on as `ko_click_id`.

    It is invalid, so kept and never a candidate, if it is not `is_signed` although its tracker asks for that, or if it
    is a ping of more than 12 hours ago or of no time.
    """
    time_s, invalidity = _time_of(parameters, visit)
    record = _record(tracker, parameters, visit, click_id, time_s)
    click = record.click
    click.tracker_id = tracker.tracker_id
    if (value := parameters.get("click_id")) and is_usable(value):
        click.click_id = value[:MAX_ID]
    if not is_signed:
        invalidity = record_pb2.INVALIDITY_BAD_SIGNATURE
    if invalidity:
        click.invalid, click.invalidity = True, invalidity
    if is_ping(parameters):
        click.is_ping = True
    if visit.is_prefetch:
        click.visitor = record_pb2.VISITOR_PREFETCH
    _describe_ad(click.ad, parameters, _OF_CLICKS)
    return record


def impression_record(
    tracker: Tracker, parameters: Mapping[str, str], visit: Visit, *, record_id: str
) -> record_pb2.Record:
    """Returns the record of a view. The parameter `event` says whether a video was seen to its end."""
    time_s, invalidity = _time_of(parameters, visit)
    record = _record(tracker, parameters, visit, record_id, time_s)
    impression = record.impression
    impression.tracker_id = tracker.tracker_id
    if (value := parameters.get("impression_id")) and is_usable(value):
        impression.impression_id = value[:MAX_ID]
    if parameters.get("event", "").lower() in _COMPLETED:
        impression.completed_view = True
    if invalidity:
        impression.invalidity = invalidity
    if is_ping(parameters):
        impression.is_ping = True
    if visit.is_prefetch:
        impression.visitor = record_pb2.VISITOR_PREFETCH
    _describe_ad(impression.ad, parameters, _OF_IMPRESSIONS)
    return record


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
    """Returns the device's user agent: the one given, else the visitor's.

    The latter is not that of a robot: then a server speaks for the device.
    """
    given = parameters.get("device_ua") or parameters.get("user_agent")
    if not given:
        given = visit.user_agent
        if "ip_address" in parameters and find_bot(given) is not None:
            return ""
    return unquote(given) if "%" in given and " " not in given else given  # encoded twice


def read_time_s(text: str) -> float | None:
    """Returns the seconds since 1970 that a time means; None if it cannot be read.

    It is epoch seconds, milli-, micro- or nanoseconds (by magnitude), or ISO 8601, with a space for the `T` if need be;
    without a zone in UTC.
    """
    number = read_number(text)
    if number is not None:
        units = float(number)
        for below, per_second in _EPOCH_UNITS:
            if 0 <= units < below:
                return units / per_second
        return None
    try:
        # The `+` of a zone that was not encoded has become a space.
        time = datetime.fromisoformat(_FRACTION.sub("", _ZONE.sub("+", text.strip())))
        return (time if time.tzinfo is not None else time.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def _without_end(text: str) -> str:
    """Returns a query without what ended the sentence that its link stood in, as `).` does.

    A value that holds spaces is a sentence of its own, brackets may be a pair, and the `/` of a path is its own.
    """
    start = max(text.rfind("&"), text.rfind("=")) + 1
    value = text[start:]
    while value:
        inner = value.rstrip("+ ").removesuffix("%20")
        if inner == value:
            is_sentence = "+" in value or " " in value or "%20" in value
            if (
                (value[-1] in ".," and not is_sentence)
                or (value[-1] == ")" and value.count(")") > value.count("("))
                or (value[-1] == "/" and "/" not in value[:-1] and "%2f" not in value.lower())
            ):
                inner = value[:-1]
            else:
                break
        value = inner
    return text[:start] + value


def _at_question_marks(pair: str) -> list[str]:
    """Returns the pairs that one is that was put together with `?` for `&`; in a URL of its own it belongs to that."""
    first, *others = pair.split("?")
    pairs = [first]
    for other in others:
        if "=" in pairs[-1] and ("://" in pairs[-1] or other.partition("=")[0].lower() not in _KNOWN):
            pairs[-1] += f"?{other}"
        else:
            pairs.append(other)
    return pairs


def _as_known(key: str) -> str:
    """Returns a key that means something to us as we write it, any other as it is, both without a stray `amp;`."""
    key = key.strip()
    while key[:4].lower() == "amp;":
        key = key[4:]
    lower = key.lower()
    return lower if lower in _KNOWN else key


def _cut(text: str) -> str:
    """Returns what ingest takes of a text: cut at the boundary of a character."""
    if len(text) <= MAX_TEXT_BYTES // 4:
        return text
    return text.encode()[:MAX_TEXT_BYTES].decode("utf-8", "ignore")


def _hint(header: bytes | None) -> str:
    """Returns the text of a header that is a quoted string, "" if it is none or an empty one."""
    found = _QUOTED.fullmatch(header) if header else None
    return found[1].decode("ascii") if found else ""


def _record(
    tracker: Tracker, parameters: Mapping[str, str], visit: Visit, record_id: str, time_s: float
) -> record_pb2.Record:
    given = parameters.get("ip_address")
    whole_s = int(time_s)
    record = record_pb2.Record(
        record_id=record_id,
        app_id=tracker.app.app_id,
        event_time=Timestamp(seconds=whole_s, nanos=int((time_s - whole_s) * 1e9)),
        ip_address=(read_ip_address(given) if given else "") or visit.ip_address,
        user_agent=_cut(device_user_agent(parameters, visit)),
        client_hints=None if is_ping(parameters) else visit.client_hints,
    )
    named = parameters.keys() & _IDS.keys()
    # Of two names of one kind the first counts, and before it what `device_id` is.
    for key in named if len(named) < 2 else reversed([key for key in parameters if key in named]):
        _take_device_id(record, _IDS[key], parameters[key])
    if (device_id := parameters.get("device_id")) is not None:
        _take_device_id(record, _name_of_device_id(tracker, parameters, device_id), device_id)
    if (att := parameters.get("att")) is not None:
        record.tracking_transparency.authorized = att.lower() in _TRUE
        answered_s = read_time_s(parameters.get("att_time", ""))
        if answered_s is not None:
            record.tracking_transparency.answer_time.seconds = int(answered_s)
    return record


def _take_device_id(record: record_pb2.Record, name: str, value: str) -> None:
    # Half an id is the id of somebody else.
    if len(value) <= MAX_ID:
        record.device_ids[name] = value


def _name_of_device_id(tracker: Tracker, parameters: Mapping[str, str], device_id: str) -> str:
    default = "adid" if tracker.app.platform is Platform.ANDROID else "idfa"
    name = _IDS.get(parameters.get("device_id_type", "").lower(), default)
    method = parameters.get("device_hash_method", "").lower().replace("-", "")
    if method not in HASH_METHODS:
        hashed = parameters.get("device_id_is_hashed", "").lower() in _TRUE
        method = HASH_METHOD_OF_LENGTH.get(len(device_id), "") if hashed else ""
    return f"{name}_{method}" if method and f"{name}_{method}" in KNOWN_KINDS else name


def _describe_ad(ad: record_pb2.AdDetails, parameters: Mapping[str, str], ours: frozenset[str]) -> None:
    for key in parameters.keys() & _AD:
        value = parameters[key]
        setattr(ad, key, _cut(value) if key == "partner_campaign_name" else value[:MAX_ID])
    custom = parameters.keys() - ours
    if custom:
        for key in sorted(custom)[:MAX_CUSTOM_PARAMETERS]:
            ad.custom_parameters[key[:MAX_ID]] = _cut(parameters[key])


def _time_of(parameters: Mapping[str, str], visit: Visit) -> tuple[float, record_pb2.Invalidity.ValueType]:
    """Returns the time of an engagement, and why it is none that can be believed."""
    given = parameters.get("click_time")
    if given is None:
        return visit.time_s, record_pb2.INVALIDITY_UNSPECIFIED
    time_s = read_time_s(given)
    if time_s is None or time_s > visit.time_s + MAX_PING_LEAD_S:
        return visit.time_s, record_pb2.INVALIDITY_TIME_NOT_READABLE
    if visit.time_s - time_s > MAX_PING_DELAY_S:
        return visit.time_s - MAX_PING_DELAY_S, record_pb2.INVALIDITY_TOO_LATE
    # What has been heard of has happened.
    return min(time_s, visit.time_s), record_pb2.INVALIDITY_UNSPECIFIED


def epoch_s(value: object) -> float | None:
    """Returns the seconds of epoch seconds or milliseconds (by magnitude), a number or its text; else None."""
    number = read_number(value)
    if number is None:
        return None
    if number >= 1e11:
        number /= 1000
    return float(number) if 0 <= number < 253_402_300_800 else None
