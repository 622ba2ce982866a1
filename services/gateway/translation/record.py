"""Server-to-server JSON into records, tolerant of all that real senders do. Pure.

Choices of our own where the format is silent: an `update` (new ids of a device) is carried as the event `_Update`, so
that its ids join the device's; an IDFA is dropped on iOS 14 and later unless tracking is authorised.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from google.protobuf.timestamp_pb2 import Timestamp

from libs.domain.device_ids import HASH_METHODS, KNOWN_KINDS, is_usable
from libs.domain.event_names import DEEP_LINK, RESERVED_EVENT_DATA, UPDATE
from libs.errors import Violation, Violations
from reengage.ingest.v1 import record_pb2
from services.gateway.links import epoch_s, is_ip_address
from services.gateway.model import CLICK_ID_KEY

UNKNOWN_APP = "UNKNOWN_APP"

_MAX_AMOUNT = 9 * 10**12  # its millionths fit 64 bits
_TRUE = (True, "true", "True", "TRUE", "1", 1)
_FALSE = (False, "false", "False", "FALSE", "0", 0, "", None)
_ABSENT: tuple[Any, ...] = (None, "", [], {})
_IOS_VERSION = re.compile(r"(?:iPhone OS|CPU OS|iOS|iPadOS)[ /]?(\d+)")
_DARWIN_VERSION = re.compile(r"Darwin/(\d+)")
_CURRENCY = re.compile(r"[A-Z]{3}")
_ATT_DETAILS = {
    name.removeprefix("DETAIL_").lower(): value
    for name, value in record_pb2.TrackingTransparency.Detail.items()
    if value != record_pb2.TrackingTransparency.DETAIL_UNSPECIFIED
} | {"notdetermined": record_pb2.TrackingTransparency.DETAIL_NOT_DETERMINED}
# Keys that the wire gives a meaning; in the data of an identity link every other one is a name of a person.
_WIRE_KEYS = frozenset(
    {
        "app_version", "app_ver", "device_ids", "device_id", "origination_ip", "device_ua", "device_ver", "usertime",
        "event_name", "event_data", "device_limit_tracking", "app_tracking_transparency", "gdpr_privacy_consent",
        "install_referrer", "data_controlled", "identity_link", "record_id", "kochava_device_id", "currency", "state",
    }
)  # fmt: skip
_ROOT_KEYS = frozenset({"kochava_app_id", "kochava_device_id"})
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


class Body:
    """One JSON object: finds each key in `data` or at the root, and collects what is wrong by its path."""

    __slots__ = ("data", "root", "violations")

    def __init__(self, root: Mapping[str, Any]) -> None:
        self.root = root
        data = root.get("data")
        self.violations = Violations()
        if data not in _ABSENT and not isinstance(data, dict):
            self.violations.add("data", "INVALID_TYPE", "must be an object")
        self.data: Mapping[str, Any] = data if isinstance(data, dict) else {}

    def get(self, key: str) -> Any:
        """The value of a key; None when it is absent."""
        value = self.data.get(key)
        return self.root.get(key) if value is None else value

    def path(self, key: str) -> str:
        """Where the sender wrote this key, or would be expected to."""
        if self.data.get(key) is None and (
            self.root.get(key) is not None or key in _ROOT_KEYS or "data" not in self.root
        ):
            return key
        return f"data.{key}"

    def text(self, *keys: str) -> str:
        """The text of the first of these keys that has one; numbers as they are written."""
        for key in keys:
            value = self.get(key)
            if value is None or value == "":
                continue
            if type(value) is str:
                return value
            if type(value) is int:
                return str(value)
            if type(value) is float:
                return json.dumps(value)
            self.violations.add(self.path(key), "INVALID_TYPE", "must be text")
        return ""

    def as_flag(self, path: str, value: Any) -> bool:
        """A yes or no: bool, "true", "1"."""
        if isinstance(value, dict | list | float) or value not in (*_TRUE, *_FALSE):
            self.violations.add(path, "INVALID_BOOLEAN", "must be true or false")
            return False
        return value in _TRUE

    def object(self, key: str) -> Mapping[str, Any]:
        """A JSON object; empty when absent, as "" and [] too are."""
        value = self.get(key)
        if isinstance(value, dict):
            return value
        if value not in _ABSENT:
            self.violations.add(self.path(key), "INVALID_TYPE", "must be an object")
        return {}


def translate(
    root: Mapping[str, Any], find_app: Callable[[str], object | None], wrong: Iterable[Violation] = ()
) -> record_pb2.Record:
    """The record in one JSON object, as far as a record can say it: what is missing or out of bounds, ingest says.

    Raises `InvalidArgument` when something cannot be said in a record or `wrong` names what is found already; then it
    names all that, and what can be known here of what ingest would name. `find_app` answers None when no live app has
    this id.
    """
    body = Body(root)
    body.violations.found.extend(wrong)
    record = record_pb2.Record(
        record_id=body.text("record_id"),
        app_id=body.text("kochava_app_id"),
        ip_address=body.text("origination_ip"),
        user_agent=_user_agent(body),
        app_version=body.text("app_version", "app_ver"),
    )
    for name, value in _device_ids(body):
        record.device_ids[name] = value
    for key, take in _OPTIONAL:
        if (given := body.get(key)) is not None:
            take(body, record, given)
    _drop_untracked_idfa(record)
    action = root.get("action")
    take_action = _ACTIONS.get(action) if isinstance(action, str) else None
    if take_action is not None:
        take_action(body, record)
    else:
        reason = "REQUIRED" if action in _ABSENT else "UNKNOWN_ACTION"
        body.violations.add("action", reason, f"must be one of {_ACTION_NAMES}")
    if body.violations.found:
        _add_what_ingest_would_say(body, record, find_app)
        body.violations.check()
    return record


def _add_what_ingest_would_say(body: Body, record: record_pb2.Record, find_app: Callable[[str], object | None]) -> None:
    named = {violation.field for violation in body.violations.found}
    event, ip_address, kind = record.event, record.ip_address, record.WhichOneof("kind")
    has_device = any(map(is_usable, record.device_ids.values()))
    missing = [
        (record.app_id, "kochava_app_id", "which app it belongs to"),
        (has_device, "device_ids", _no_device(body.root) or "at least one usable device id"),
        (ip_address or kind in _NEED_NO_IP_ADDRESS, "origination_ip", "the device's IP address"),
        (event.event_name or kind != "event", "event_name", "what happened"),
        (record.session.state or kind != "session", "state", "start or stop"),
    ]
    for given, key, description in missing:
        if not given and body.path(key) not in named:
            body.violations.add(body.path(key), "REQUIRED", description)
    if record.app_id and find_app(record.app_id) is None:
        body.violations.found.append(unknown_app(body.path("kochava_app_id")))
    if ip_address and body.path("origination_ip") not in named and not is_ip_address(ip_address):
        body.violations.add(body.path("origination_ip"), "INVALID_IP_ADDRESS", "an IPv4 or IPv6 address")
    for name in sorted(RESERVED_EVENT_DATA & event.event_data.keys()):
        path = f"{body.path('event_data')}.{name}"
        body.violations.add(path, "RESERVED_NAME", "this name is reserved; use another")


def unknown_app(path: str) -> Violation:
    """What is wrong with the id of an app that is not, or no longer, there; as ingest says it."""
    return Violation(field=path, reason=UNKNOWN_APP, description="no live app has this id")


def in_senders_words(root: Mapping[str, Any], violations: Iterable[Violation]) -> list[Violation]:
    """Violations that name fields of a record, renamed to where the sender wrote them."""
    body = Body(root)
    return [
        Violation(
            field=_senders_path(body, v.field),
            reason=v.reason,
            description=((v.field, v.reason) == ("device_ids", "REQUIRED") and _no_device(root)) or v.description,
        )
        for v in violations
    ]


def _no_device(root: Mapping[str, Any]) -> str:
    """Why no id is left of those that the sender gave; empty when he gave none that could have counted."""
    is_dropped = any(name.startswith("idfa") and is_usable(value) for name, value in _device_ids(Body(root)))
    return "an idfa counts from iOS 14 on only with app_tracking_transparency.att" if is_dropped else ""


def nul_fields(value: Any, path: str = "") -> Iterator[str]:
    """Paths of the texts and keys in a JSON value that hold a NUL."""
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


def is_too_deep(value: Any, levels: int) -> bool:
    """Whether objects and arrays lie in each other more than `levels` deep."""
    if not isinstance(value, dict | list):
        return False
    if levels == 0:
        return True
    return any(is_too_deep(inner, levels - 1) for inner in (value.values() if isinstance(value, dict) else value))


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


def _device_ids(body: Body) -> Iterator[tuple[str, str]]:
    known = body.text("kochava_device_id")
    if known:
        yield "kochava_device_id", known
    for key in ("device_ids", "device_id"):
        given = body.get(key)
        if given is None or given == "":
            continue
        for ids in given if isinstance(given, list) else (given,):
            if isinstance(ids, dict):
                yield from _ids_in(body, key, ids)
            else:
                body.violations.add(body.path(key), "INVALID_TYPE", "must be an object of ids by name")


def _ids_in(body: Body, key: str, ids: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for written, value in ids.items():
        name = written.lower()
        # Clients send ids that we have no use for; they are no reason to refuse the rest.
        if value is None or value == "" or name not in KNOWN_KINDS:
            continue
        if type(value) is str:
            yield _hashed(body, name), value
        elif type(value) is int:
            yield _hashed(body, name), str(value)
        else:
            body.violations.add(f"{body.path(key)}.{written}", "INVALID_TYPE", "must be text")


def _hashed(body: Body, name: str) -> str:
    methods = body.get("device_hash_method")
    method = methods.get(name) if isinstance(methods, dict) else None
    return f"{name}_{method.lower()}" if isinstance(method, str) and method.lower() in HASH_METHODS else name


def _user_agent(body: Body) -> str:
    given = body.text("device_ua")
    if given:
        return unquote(given) if "%" in given and " " not in given else given
    version = body.text("device_ver")
    parts = version.rsplit("-", 2)
    if len(parts) != 3:
        return version
    model, os, number = parts
    if os.lower() in ("ios", "ipados", "iphone os"):
        device = "iPad" if model.startswith("iPad") else "iPhone"
        system = "CPU OS" if device == "iPad" else "CPU iPhone OS"
        return f"Mozilla/5.0 ({device}; {system} {number.replace('.', '_')} like Mac OS X)"
    if os.lower() == "android":
        return f"Mozilla/5.0 (Linux; Android {number}; {model})"
    return f"Mozilla/5.0 ({model}; {os} {number})"


def _take_time(body: Body, into: Timestamp, path: str, value: Any) -> None:
    seconds = epoch_s(value)
    if seconds is None:
        body.violations.add(path, "INVALID_TIME", "must be epoch seconds or milliseconds")
        return
    into.seconds = int(seconds)
    into.nanos = round((seconds - into.seconds) * 1000) * 1_000_000 % 1_000_000_000


def _take_usertime(body: Body, record: record_pb2.Record, given: Any) -> None:
    if given != "":
        _take_time(body, record.event_time, body.path("usertime"), given)


def _take_limit_tracking(body: Body, record: record_pb2.Record, given: Any) -> None:
    record.limit_ad_tracking = body.as_flag(body.path("device_limit_tracking"), given)


def _take_data_controlled(body: Body, record: record_pb2.Record, given: Any) -> None:
    record.data_controlled = body.as_flag(body.path("data_controlled"), given)


def _take_consent(body: Body, record: record_pb2.Record, given: Any) -> None:
    path, into = body.path("gdpr_privacy_consent"), record.privacy_consent
    if not isinstance(given, dict):
        if given not in _ABSENT:
            body.violations.add(path, "INVALID_TYPE", "must be an object")
        return
    into.gdpr_applies = body.as_flag(f"{path}.gdpr_applies", given.get("gdpr_applies"))
    tc_string = given.get("tc_string")
    if isinstance(tc_string, str):
        into.tc_string = tc_string
    elif tc_string is not None:
        body.violations.add(f"{path}.tc_string", "INVALID_TYPE", "must be text")
    for name in ("ad_user_data", "ad_personalization"):
        if given.get(name) not in _ABSENT:
            setattr(into, name, body.as_flag(f"{path}.{name}", given[name]))


def _take_transparency(body: Body, record: record_pb2.Record, given: Any) -> None:
    path, into = body.path("app_tracking_transparency"), record.tracking_transparency
    if not isinstance(given, dict):
        if given not in _ABSENT:
            body.violations.add(path, "INVALID_TYPE", "must be an object")
        return
    if not given:
        return
    into.authorized = body.as_flag(f"{path}.att", given.get("att"))
    detail = str(given.get("att_detail") or "").lower()
    if detail in _ATT_DETAILS:
        into.detail = _ATT_DETAILS[detail]
    elif detail:
        allowed = ", ".join(_ATT_DETAILS)
        body.violations.add(f"{path}.att_detail", "INVALID_VALUE", f"must be one of {allowed}")
    if given.get("att_time") not in _ABSENT:
        _take_time(body, into.answer_time, f"{path}.att_time", given["att_time"])


def _drop_untracked_idfa(record: record_pb2.Record) -> None:
    if record.tracking_transparency.authorized or not _needs_transparency(record.user_agent):
        return
    for name in [name for name in record.device_ids if name.startswith("idfa")]:
        del record.device_ids[name]


def _needs_transparency(user_agent: str) -> bool:
    if found := _IOS_VERSION.search(user_agent):
        return int(found[1][:4]) >= 14
    if "CFNetwork" in user_agent and (found := _DARWIN_VERSION.search(user_agent)):
        return int(found[1][:4]) >= 20  # Darwin 20 is iOS 14
    return False


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
        _take_revenue(body, given, path, event)


def _take_revenue(body: Body, given: Mapping[str, Any], path: str, event: record_pb2.Event) -> None:
    for key in ("sum", "price", "revenue"):
        value = given.get(key)
        if value is None or value == "":
            continue
        micros = _micros(value)
        if micros is None:
            body.violations.add(f"{path}.{key}", "INVALID_AMOUNT", "must be a number of currency units")
        currency = given.get("currency") or body.get("currency") or "USD"
        currency = currency.upper() if isinstance(currency, str) else ""
        if _CURRENCY.fullmatch(currency) is None:
            place = f"{path}.currency" if given.get("currency") else body.path("currency")
            body.violations.add(place, "INVALID_CURRENCY", "must be an ISO 4217 code")
        event.revenue.amount_micros = micros or 0
        event.revenue.currency_code = currency
        return


def _micros(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str) or len(str(value)) > 64:
        return None
    try:
        amount = Decimal(str(value))
    except InvalidOperation:
        return None
    # Compared before it becomes an integer: 1e999999 would be a large one.
    return round(amount * 1_000_000) if amount.is_finite() and abs(amount) < _MAX_AMOUNT else None


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
    """A query parameter of a link or a referrer, which may be encoded once more than needed."""
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
_ACTIONS: dict[str, Callable[[Body, record_pb2.Record], None]] = {
    "install": _take_install,
    "event": _take_event,
    "session": _take_session,
    "update": _take_update,
    "identityLink": _take_identity_link,
}
_OPTIONAL: tuple[tuple[str, Callable[[Body, record_pb2.Record, Any], None]], ...] = (
    ("usertime", _take_usertime),
    ("device_limit_tracking", _take_limit_tracking),
    ("data_controlled", _take_data_controlled),
    ("gdpr_privacy_consent", _take_consent),
    ("app_tracking_transparency", _take_transparency),
)
_ACTION_NAMES = ", ".join([*_ACTIONS, "get_attribution"])
