"""Finds all that attribution knows of a device that is to be forgotten."""

import uuid
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from libs.db import Connection
from reengage.ingest.v1 import record_pb2
from services.attribution.decision.matching import device_key, own_key, raw_id_keys
from services.attribution.storage import erasures
from services.attribution.storage.devices import find_identifiers, is_nobodys
from services.attribution.storage.erasures import StoredEngagement
from services.attribution.wire.records import click_id_of


@dataclass(slots=True, kw_only=True)
class DeviceTraces:
    """All that is known of a device: its ids as they were received, our ids of it, its conversions and engagements.

    `shared_keys` are the match keys of ids that came with its own and are nobody's (A8): nothing is found by them.
    `record_ids` are the records that are known to be of the device by their own id alone.
    """

    ids: set[str] = field(default_factory=set)
    shared_keys: set[bytes] = field(default_factory=set)
    devices: set[uuid.UUID] = field(default_factory=set)
    conversion_ids: set[str] = field(default_factory=set)
    engagements: set[StoredEngagement] = field(default_factory=set)
    record_ids: set[str] = field(default_factory=set)


async def find_traces(
    connection: Connection, app_id: str, given: Collection[str], below: Sequence[int]
) -> DeviceTraces:
    """Returns the traces of the device, or the devices, with one of these ids, of whatever kind.

    An engagement is of the device when it carries one of its ids in any form (A3), or when it carries none and a
    conversion of the device named its click id. `below` are the positions that attribution has reached in the log.
    """
    found, click_ids, ids_of_record = DeviceTraces(), set[str](), dict[str, set[str]]()
    new, seen = set(given), set[str]()
    while new:
        seen |= new
        owners = set(_uuids(new))
        for device_id in new:
            identifiers = await find_identifiers(connection, raw_id_keys(app_id, device_id))
            if is_nobodys(key := device_key(app_id, device_id), identifiers):
                found.shared_keys.add(key)
            else:
                found.ids.add(device_id)
                owners.update(each.device_id for each in identifiers.values() if each.device_id is not None)
        devices = await erasures.merged_devices(connection, app_id, owners) - found.devices
        found.devices |= devices
        new = {value for ids in await erasures.ids_of(connection, devices) for each in ids.values() for value in each}
        async for conversion_id, content, known_ids in erasures.conversions_of(connection, app_id, devices):
            record = record_pb2.Record.FromString(content)
            ids_of_record[conversion_id] = set(record.device_ids.values())
            click_ids.add(click_id_of(record))
            new.update(record.device_ids.values(), *(known_ids or {}).values())
        new -= seen
    found.conversion_ids = set(ids_of_record)
    found.record_ids = {each for each, ids in ids_of_record.items() if ids and ids.isdisjoint(found.ids)}
    for device_id in found.ids:
        found.engagements |= await erasures.engagements_under(connection, raw_id_keys(app_id, device_id), below)
    by_click = {own_key(app_id, click_id) for click_id in click_ids if click_id}
    given_back = await erasures.engagements_under(connection, by_click, below)
    for each in given_back - found.engagements:
        identifiers = await find_identifiers(connection, each.keys)
        if all(is_nobodys(key, identifiers) for key in each.keys):
            found.engagements.add(each)
            found.record_ids.add(each.engagement_id)
    return found


def _uuids(texts: Collection[str]) -> Iterator[uuid.UUID]:
    """Yields the texts that may be our own id of a device."""
    for text in texts:
        try:
            yield uuid.UUID(text)
        except ValueError:
            continue
