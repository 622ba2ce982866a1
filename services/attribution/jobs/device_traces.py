"""Finds all that attribution knows of a device that is to be forgotten."""

import uuid
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from libs.db import Connection
from reengage.ingest.v1 import record_pb2
from services.attribution.decision.matching import own_key, raw_id_keys
from services.attribution.storage import erasures
from services.attribution.storage.devices import find_identifiers
from services.attribution.storage.erasures import StoredEngagement
from services.attribution.wire.records import click_id_of


@dataclass(slots=True, kw_only=True)
class DeviceTraces:
    """All that is known of a device: its ids as they were received, our ids of it, its conversions and engagements."""

    ids: set[str] = field(default_factory=set)
    devices: set[uuid.UUID] = field(default_factory=set)
    conversion_ids: set[str] = field(default_factory=set)
    engagements: set[StoredEngagement] = field(default_factory=set)


async def find_traces(
    connection: Connection, app_id: str, given: Collection[str], below: Sequence[int]
) -> DeviceTraces:
    """Returns the traces of the device, or the devices, with one of these ids, of whatever kind.

    An engagement is of the device when it carries one of its ids in any form (A3), or when it carries none and a
    conversion of the device named its click id. `below` are the positions that attribution has reached in the log.
    """
    found, click_ids = DeviceTraces(), set[str]()
    new = set(given)
    while new:
        found.ids |= new
        owners = set(_uuids(new))
        for device_id in new:
            owners.update((await find_identifiers(connection, raw_id_keys(app_id, device_id))).values())
        devices = await erasures.merged_devices(connection, app_id, owners) - found.devices
        found.devices |= devices
        new = {value for ids in await erasures.ids_of(connection, devices) for each in ids.values() for value in each}
        async for conversion_id, content, known_ids in erasures.conversions_of(connection, app_id, devices):
            record = record_pb2.Record.FromString(content)
            found.conversion_ids.add(conversion_id)
            click_ids.add(click_id_of(record))
            new.update(record.device_ids.values(), *(known_ids or {}).values())
        new -= found.ids
    for device_id in found.ids:
        found.engagements |= await erasures.engagements_under(connection, raw_id_keys(app_id, device_id), below)
    by_click = {own_key(app_id, click_id) for click_id in click_ids if click_id}
    given_back = await erasures.engagements_under(connection, by_click, below)
    found.engagements |= {each for each in given_back if not each.device_keys}
    return found


def _uuids(texts: Collection[str]) -> Iterator[uuid.UUID]:
    """Yields the texts that may be our own id of a device."""
    for text in texts:
        try:
            yield uuid.UUID(text)
        except ValueError:
            continue
