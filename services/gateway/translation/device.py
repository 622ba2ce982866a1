"""The device that a body speaks of: its ids and its user agent."""

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

from libs.domain.device_ids import HASH_METHODS, KNOWN_KINDS
from reengage.ingest.v1 import record_pb2
from services.gateway.translation.body import Body

_IOS_VERSION = re.compile(r"(?:iPhone OS|CPU OS|iOS|iPadOS)[ /]?(\d+)")
_DARWIN_VERSION = re.compile(r"Darwin/(\d+)")


def device_ids(body: Body) -> Iterator[tuple[str, str]]:
    """Yields the device ids of a body by kind, usable or not."""
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
    given = methods.get(name) if isinstance(methods, dict) else None
    method = given.lower().replace("-", "") if isinstance(given, str) else ""  # they are written `SHA-256`, too
    return f"{name}_{method}" if method in HASH_METHODS else name


def user_agent(body: Body) -> str:
    """Returns the user agent: as it was given, else one made from `device_ver` (`<model>-<OS>-<version>`)."""
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


def drop_untracked_idfa(record: record_pb2.Record) -> None:
    """Removes the IDFA of a device on iOS 14 or later, unless tracking is authorised."""
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
