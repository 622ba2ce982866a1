"""The device that a body speaks of: its ids and its user agent."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import unquote, unquote_plus

from libs.domain.device_ids import HASH_METHODS, KNOWN_KINDS, is_usable
from libs.domain.record_sizes import MAX_ID
from reengage.ingest.v1 import record_pb2
from services.gateway.translation.body import ABSENT, ID_NAMES, Body

_IOS_VERSION = re.compile(r"(?:iPhone OS|CPU OS|iOS|iPadOS|tvOS)[ /-]?([0-9]+)")
_DARWIN_VERSION = re.compile(r"Darwin/([0-9]+)")
_VERSION = re.compile(r"([0-9]{1,3})(?:\.[0-9]+){0,3}")
_ALIASES = {"gaid": "adid"}
_ALONE = ID_NAMES - {"kochava_device_id"}
_SDK_KEYS = ("sdk_version", "sdk_protocol", "nt_id")


class Peer(NamedTuple):
    """The other end of a request: its address, and the user agent that it names."""

    ip_address: str
    user_agent: str


FindPeer: TypeAlias = Callable[[], Peer]


def nobody() -> Peer:
    """Returns a peer of whom nothing is known."""
    return Peer("", "")


def device_ids(body: Body) -> Iterator[tuple[str, str]]:
    """Yields the device ids of a body by kind, usable or not: those of `device_ids` last, as they go first."""
    known = body.text("kochava_device_id")
    if known:
        yield "kochava_device_id", known
    for prefix, place in (("", body.root), ("data.", body.data)):
        if _ALONE.isdisjoint(map(str.lower, place)):
            continue
        alone = {key: place[key] for key in place if key.lower() in _ALONE}
        # What is no text is something else of that name.
        yield from _ids_in(body, prefix, {key: value for key, value in alone.items() if isinstance(value, str | int)})
    for key in ("device_ids", "device_id"):
        given = body.get(key)
        if given in ABSENT:
            continue
        if isinstance(given, str):
            given = body.object(key)
        for ids in given if isinstance(given, list) else (given,):
            if isinstance(ids, dict):
                yield from _ids_in(body, f"{body.path(key)}.", ids)
            elif ids not in ABSENT:
                body.warnings.add(body.path(key), "INVALID_TYPE", "left out: must be an object of ids by name")


def _ids_in(body: Body, prefix: str, ids: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for written, value in ids.items():
        if value in ABSENT:
            continue
        name = _ALIASES.get(written.lower(), written.lower())
        if name not in KNOWN_KINDS:
            body.warnings.add(f"{prefix}{written}", "UNKNOWN_DEVICE_ID", "left out: no kind of device id has this name")
        elif not isinstance(value, str | int):
            body.warnings.add(f"{prefix}{written}", "INVALID_TYPE", "left out: must be text")
        elif len(text := str(value)) > MAX_ID:
            body.warnings.add(f"{prefix}{written}", "TOO_LONG", f"left out: must be at most {MAX_ID} characters")
        else:
            yield _hashed(body, name), text


def _hashed(body: Body, name: str) -> str:
    methods = body.get("device_hash_method")
    given = methods.get(name) if isinstance(methods, dict) else None
    method = given.lower().replace("-", "") if isinstance(given, str) else ""  # they are written `SHA-256`, too
    return f"{name}_{method}" if method in HASH_METHODS else name


def take_place(body: Body, record: record_pb2.Record, find_peer: FindPeer) -> None:
    """Reads the address and the user agent of the device. Of an SDK that gives no address they are the peer's."""
    record.ip_address = body.text("origination_ip")
    record.user_agent = user_agent(body)
    if not record.ip_address and any(body.get(key) is not None for key in _SDK_KEYS):
        peer = find_peer()
        record.ip_address = peer.ip_address
        record.user_agent = record.user_agent or peer.user_agent


def user_agent(body: Body) -> str:
    """Returns the user agent: as it was given, else one made from `device_ver` (`<model>-<OS>-<version>`)."""
    given = body.text("device_ua")
    if not given:
        return _made_user_agent(body.text("device_ver"))
    if " " in given:
        return given
    if "%" in given:
        return unquote_plus(given) if "+" in given else unquote(given)
    return given.replace("+", " ") if "+(" in given else given


def _made_user_agent(version: str) -> str:
    *models, os, number = ["", "", *version.rsplit("-", 2)][-3:]
    if not os:  # a version alone, of whatever it is, is no user agent
        return "" if _VERSION.fullmatch(version) else version
    model = models[0]
    if os.lower() in ("ios", "ipados", "iphone os"):
        device = "iPad" if model.startswith("iPad") else "iPhone"
        system = "CPU OS" if device == "iPad" else "CPU iPhone OS"
        return f"Mozilla/5.0 ({device}; {system} {number.replace('.', '_')} like Mac OS X)"
    if os.lower() == "android":
        return f"Mozilla/5.0 (Linux; Android {number}; {model})" if model else f"Mozilla/5.0 (Linux; Android {number})"
    return f"Mozilla/5.0 ({model}; {os} {number})" if model else version


def drop_untracked_idfa(body: Body, record: record_pb2.Record) -> None:
    """Removes the IDFA of a device on iOS or tvOS 14 or later, unless tracking is authorised."""
    names = [name for name in record.device_ids if name.startswith("idfa")]
    if not names or record.tracking_transparency.authorized or not _needs_transparency(body, record.user_agent):
        return
    for name in names:
        if is_usable(record.device_ids[name]):
            why = "left out: from iOS 14 on it counts only with app_tracking_transparency.att"
            body.warnings.add(f"{body.path('device_ids')}.{name}", "TRACKING_NOT_AUTHORIZED", why)
        del record.device_ids[name]


def _needs_transparency(body: Body, agent: str) -> bool:
    if found := _IOS_VERSION.search(agent):
        if int(found[1][:4]) >= 14:
            return True
    elif "CFNetwork" in agent and (found := _DARWIN_VERSION.search(agent)) and int(found[1][:4]) >= 20:
        return True  # Darwin 20 is iOS 14
    version = body.text("device_ver")
    # Only Apple's devices have an IDFA: so a version alone is that of their OS.
    found = _VERSION.fullmatch(version) or _IOS_VERSION.search(version)
    return found is not None and int(found[1][:4]) >= 14
