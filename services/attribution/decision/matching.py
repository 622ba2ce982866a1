"""Matches engagements to devices: usable ids, match keys, match kinds, duplicates (section A).

A match key is a 16-byte digest of app, kind and value. An engagement is stored under its keys, a conversion looks its
keys up; what is found that way is only fetched, `match_kind` says whether it matches.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import lru_cache
from hashlib import blake2b, md5, sha1, sha256
from ipaddress import ip_network
from itertools import zip_longest
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from typing import TypeAlias

from libs.domain.device_ids import HASH_METHODS, HASHED_KINDS, normalise
from services.attribution.decision.model import DAY_US, Conversion, Engagement, EngagementKind, MatchKind, Visitor
from services.attribution.decision.rules import App, ModeledLevel
from services.attribution.decision.user_agents import are_alike

Id: TypeAlias = tuple[str, str]
"""The kind of a device id, and its value."""

HASH_LENGTHS = frozenset(HASH_METHODS.values())
"""Hex digits of an MD5, a SHA-1 and a SHA-256."""
DUPLICATE_CLICK_US = 7 * DAY_US
MAX_SOUGHT_IDS = 30
"""OURS: by so many ids of its device a conversion looks for engagements, its own among them; its own are all sought.

Else a device that was given twenty ids of each kind is sought under 22,000 keys with each of its events."""

_IPV4_IN_IPV6, _BROADCAST = bytes(10) + b"\xff\xff", b"\xff" * 4
_UNSPECIFIED_AND_LOOPBACK = (bytes(16), bytes(15) + b"\x01")
_HASHES = {32: md5, 40: sha1, 64: sha256}
_HEX = re.compile(r"[0-9a-f]+")
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[1-5][0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", re.IGNORECASE)


def hash_length(value: str) -> int | None:
    """Returns 32, 40 or 64 when an engagement's device id may be a hash of that length (A3), else None.

    A dashed UUID whose version and variant are in place is an id: without this every app would seem to send MD5.
    """
    normalised = normalise(value)
    if len(normalised) in HASH_LENGTHS and _HEX.fullmatch(normalised) and not _UUID.fullmatch(value):
        return len(normalised)
    return None


def normalise_ip(value: str) -> str:
    """Returns an IP address as it is compared, "" for one that is nobody's alone (A5). Raises ValueError for none.

    IPv4 inside IPv6 is IPv4. Of IPv6 the first 64 bits count: the rest changes from day to day.
    """
    text = value.strip()
    try:
        packed = inet_pton(AF_INET6 if ":" in text else AF_INET, text)  # a quarter of the time of the module ipaddress
    except (OSError, ValueError):
        raise ValueError(f"{text!r} is no IP address") from None
    if packed.startswith(_IPV4_IN_IPV6):
        packed = packed[12:]
    if len(packed) == 4:
        return "" if _is_nobodys_ipv4(packed[0], packed[1], packed) else inet_ntop(AF_INET, packed)
    is_local = packed[0] & 0xFE == 0xFC or (packed[0] == 0xFE and packed[1] & 0xC0 == 0x80)  # unique, or to its link
    if is_local or packed in _UNSPECIFIED_AND_LOOPBACK:
        return ""
    return inet_ntop(AF_INET6, packed[:8] + bytes(8))


def _is_nobodys_ipv4(first: int, second: int, packed: bytes) -> bool:
    """Returns whether many devices have an address at once: private, of carriers, loopback, link-local and the like."""
    match first:
        case 0 | 10 | 127:
            return True
        case 100:
            return second & 0xC0 == 64
        case 169:
            return second == 254
        case 172:
            return second & 0xF0 == 16
        case 192:
            return second == 168
        case _:
            return packed == _BROADCAST


@lru_cache(maxsize=65_536)
def ip_range(ip: str) -> str:
    """Returns the first three octets of a normalised address, of IPv6 the first 48 bits (A5)."""
    return str(ip_network((ip, 48 if ":" in ip else 24), strict=False).network_address)


def device_key(app_id: str, device_id: str) -> bytes:
    """Returns the key of a usable device id or hash, whatever its kind: who sends an engagement mixes the kinds up."""
    return _key(app_id, "DEVICE", normalise(device_id))


def own_key(app_id: str, engagement_id: str) -> bytes:
    """Returns the key of an engagement's own id, under which a conversion that gives a click id back finds it."""
    return _key(app_id, "CLICK_ID", engagement_id)


def engagement_keys(app: App, engagement: Engagement) -> list[bytes]:
    """Returns the keys an engagement is stored under beside its own."""
    return [*dict.fromkeys(engagement.device_keys), *_ip_keys(app, engagement.ip)]


def possible_keys(app_id: str, engagement_id: str, device_keys: Iterable[bytes], ip: str) -> list[bytes]:
    """Returns every key an engagement may be stored under, whatever the app's settings were when it was."""
    return [own_key(app_id, engagement_id), *dict.fromkeys(device_keys), *address_keys(app_id, ip)]


def conversion_keys(app: App, conversion: Conversion) -> list[bytes]:
    """Returns the keys under which a conversion finds every engagement that may match it."""
    click_keys = [own_key(app.app_id, conversion.click_id)] if conversion.click_id else []
    return [*click_keys, *conversion.device_keys, *_ip_keys(app, conversion.ip)]


def sought_ids(own: Sequence[Id], known: Sequence[Id]) -> tuple[Id, ...]:
    """Returns the ids by which a conversion looks for engagements: its own, and the latest of what its device has.

    In `known` the latest of a kind comes last. Of each kind the latest is taken first, then of each the one before it.
    """
    if len(own) + len(known) <= MAX_SOUGHT_IDS:
        return tuple(dict.fromkeys((*own, *known)))
    by_kind: dict[str, list[Id]] = {}
    for each in reversed(known):
        by_kind.setdefault(each[0], []).append(each)
    in_turn = (each for of_an_age in zip_longest(*(by_kind[kind] for kind in sorted(by_kind))) for each in of_an_age)
    sought = dict.fromkeys(own)
    for each in filter(None, in_turn):
        if len(sought) >= MAX_SOUGHT_IDS:
            break
        sought[each] = None
    return tuple(sought)


def raw_id_keys(app_id: str, raw_id: str, hash_lengths: Collection[int] = HASH_LENGTHS) -> frozenset[bytes]:
    """Returns the keys of every form in which an engagement may carry a conversion's raw id (A3)."""
    if not hash_lengths:
        return frozenset((device_key(app_id, raw_id),))
    return frozenset(_key(app_id, "DEVICE", form) for form in id_forms(raw_id, hash_lengths))


def hash_keys(app_id: str, raw_id: str, hash_length: int) -> dict[bytes, str]:
    """Returns the hashes of a raw id that a conversion may carry instead of it (A3), by their keys.

    They are hashed once, of each spelling.
    """
    return {_key(app_id, "DEVICE", each): each for each in hashes_of(raw_id, hash_length)}


def hashed_as(kind: str, hashed_kinds: Iterable[str]) -> Iterator[tuple[str, int]]:
    """Yields those of these kinds that are hashes of ids of a raw kind (A3), with their lengths."""
    for hashed_kind in hashed_kinds:
        raw_kind, length = HASHED_KINDS[hashed_kind]
        if raw_kind == kind:
            yield hashed_kind, length


@lru_cache(maxsize=4_096)
def hashes_of(raw_id: str, hash_length: int) -> frozenset[str]:
    """Returns the hashes of a raw id that a conversion may carry instead of it (A3): hashed once, of each spelling."""
    digest = _HASHES[hash_length]
    return frozenset(digest(text.encode()).hexdigest() for text in _spellings(raw_id.strip()))


def is_hash(kind: str, value: str) -> bool:
    """Returns whether the id of a conversion is a hash (A3): its kind says so, and it looks like one."""
    if kind not in HASHED_KINDS:
        return False
    normalised = normalise(value)
    return len(normalised) == HASHED_KINDS[kind][1] and _HEX.fullmatch(normalised) is not None


def id_forms(raw_id: str, hash_lengths: Iterable[int] = HASH_LENGTHS) -> set[str]:
    """Returns every form in which an engagement may carry a raw id (A3), normalised.

    The id itself, and its hashes of the given lengths: of each spelling, and hashed twice with either case of the inner
    hex. With all three lengths these are 85 for a UUID; give only the lengths that the app's engagements ever had.
    """
    forms = {normalise(raw_id)}
    outer = [_HASHES[length] for length in hash_lengths]
    if outer:
        texts = _spellings(raw_id.strip())
        inner = [digest(text.encode()).hexdigest() for text in texts for digest in _HASHES.values()]
        texts += inner + [text.upper() for text in inner]
        forms.update(digest(text.encode()).hexdigest() for digest in outer for text in texts)
    return forms


def match_kind(engagement: Engagement, conversion: Conversion, app: App) -> MatchKind | None:
    """Returns the strongest way in which an engagement matches (A1), allowed (A4) or not; None when it does not match.

    Only a click is matched by CLICK_ID: impressions are never given back.
    """
    if conversion.click_id == engagement.engagement_id and engagement.kind is EngagementKind.CLICK:
        return MatchKind.CLICK_ID
    if engagement.device_keys and not conversion.device_keys.isdisjoint(engagement.device_keys):
        return MatchKind.DEVICE_ID
    if not engagement.ip or not conversion.ip:
        return None
    if engagement.ip == conversion.ip:
        return MatchKind.MODELED if _is_modeled(engagement, conversion, app) else MatchKind.IP
    if app.modeled_level is ModeledLevel.IP_RANGE and ip_range(engagement.ip) == ip_range(conversion.ip):
        return MatchKind.MODELED
    return None


def duplicates(engagements: Iterable[Engagement]) -> frozenset[str]:
    """Returns the ids of those that repeat a click (A6), whatever the order they are given in.

    Of two with the same non-empty click id on the same tracker less than 7 days apart, the later is the duplicate.
    OURS: at equal times the higher id is, and a duplicate's own repeat is one too. What no person clicked is repeated
    by nothing (A9): a link preview comes before the click. Nor is what is invalid: anybody can make up such a click.
    """
    found: set[str] = set()
    latest_us: dict[tuple[str, str], int] = {}
    for engagement in sorted(engagements, key=lambda each: (each.counted_us, each.engagement_id)):
        if not engagement.click_id:
            continue
        link = (engagement.tracker_id, engagement.click_id)
        before_us = latest_us.get(link)
        if before_us is not None and engagement.counted_us - before_us < DUPLICATE_CLICK_US:
            found.add(engagement.engagement_id)
        if engagement.visitor is Visitor.PERSON and engagement.valid:
            latest_us[link] = engagement.counted_us
    return frozenset(found)


def _is_modeled(engagement: Engagement, conversion: Conversion, app: App) -> bool:
    """Returns whether, given the same IP, the user agents are alike where the app asks for it (A5)."""
    if app.modeled_level is not ModeledLevel.IP_AND_UA:
        return True
    return are_alike(engagement.user_agent, conversion.user_agent, omit_os_minor=app.omit_os_minor)


def _ip_keys(app: App, ip: str) -> list[bytes]:
    """Makes the address a key at every modeled level, so that after a change of it (B6) what is stored is found."""
    if not ip:
        return []
    keys = [_key(app.app_id, "IP", ip)]
    if app.modeled_level is ModeledLevel.IP_RANGE:
        keys.append(_key(app.app_id, "IP_RANGE", ip_range(ip)))
    return keys


def address_keys(app_id: str, ip: str) -> list[bytes]:
    """Returns the keys that a conversion from an address may be noted under, whatever the app's modeled level."""
    return [_key(app_id, "IP", ip), _key(app_id, "IP_RANGE", ip_range(ip))] if ip else []


def address_key(app: App, ip: str) -> bytes | None:
    """Returns the key under which a conversion from an address is noted; None without one."""
    return _ip_keys(app, ip)[-1] if ip else None


def _key(app_id: str, kind: str, value: str) -> bytes:
    return blake2b(f"{app_id}\0{kind}\0{value}".encode(), digest_size=16).digest()


def _spellings(raw_id: str) -> list[str]:
    """Returns the texts a sender may have hashed: with and without separators, each as given and in either case."""
    plain = raw_id.replace("-", "").replace(":", "")
    forms = [raw_id, plain]
    if _HEX.fullmatch(plain.lower()):
        if len(plain) == 32:
            forms.append("-".join((plain[:8], plain[8:12], plain[12:16], plain[16:20], plain[20:])))
        if len(plain) == 12:
            forms.append(":".join(plain[at : at + 2] for at in range(0, 12, 2)))
    return list(dict.fromkeys(text for form in forms for text in (form, form.lower(), form.upper())))
