"""Repeats: the digests by which a record that comes again is known. Pure."""

import re
from collections.abc import Mapping
from functools import lru_cache
from hashlib import blake2b
from zlib import crc32

from reengage.ingest.v1 import record_pb2

_DECIMAL = re.compile(r"[+-]?[0-9]+\.[0-9]*", re.ASCII)
_MAY_END_IN_ZEROS = re.compile(rb"\.[0-9]*(?<![1-9])(?![0-9])")


def content_key(record: record_pb2.Record, kind: str, usable_ids: Mapping[str, str]) -> bytes:
    """Returns the dedupe key of a record without an id: a digest of its app, device and time, and of what happened.

    What may change around a record when it is sent again is left out: address, user agent, versions, the letter case of
    ids. Without ids, address and user agent are all that tells the device.
    """
    device = (
        "\n".join([f"{name}={usable_ids[name]}" for name in sorted(usable_ids)]).lower()
        if usable_ids
        else f"{record.ip_address}\n{record.user_agent}"
    )
    around = f"{record.app_id}\0{kind}\0{device}\0".encode()
    # A time has no byte zero at its end, and what happened none at its beginning.
    said = around + record.event_time.SerializeToString() + b"\0\0" + _content(record, kind)
    return blake2b(said, digest_size=16, person=b"content").digest()


@lru_cache(4096)
def meaning_of(kind: str, event_name: str) -> int:
    """Returns a number for the kind of a record and the name of its event: a record_id stands for one of each."""
    return crc32(f"{kind}\0{event_name}".encode()) - 2**31


def _content(record: record_pb2.Record, kind: str) -> bytes:
    """Returns what a record of this kind says that happened."""
    happened = record.event if kind == "event" else getattr(record, kind)
    # Maps have no order of their own: without one, repeats would differ in their digests.
    content: bytes = happened.SerializeToString(deterministic=True)
    if kind == "event" and _MAY_END_IN_ZEROS.search(content) is not None:
        same = record_pb2.Event()
        same.CopyFrom(record.event)
        for name, value in record.event.event_data.items():
            same.event_data[name] = _without_zeros(value)
        content = same.SerializeToString(deterministic=True)
    return content


def _without_zeros(value: str) -> str:
    """Returns a decimal without zeros at its end: serialisers write `9.99` and `9.990`, `10` and `10.0`."""
    if value[-1:] in ("0", ".") and _DECIMAL.fullmatch(value) is not None:
        return value.rstrip("0").rstrip(".")
    return value
