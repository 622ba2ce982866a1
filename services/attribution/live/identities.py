"""The devices of a batch of records: found by their ids, made, extended and merged, in the order of the records."""

import uuid
from collections.abc import Callable, Collection, Iterable, Sequence

from libs.db import Connection
from reengage.ingest.v1 import log_pb2, record_pb2
from services.attribution.decision.matching import device_key
from services.attribution.storage.devices import Device, IdKey, find_devices, find_identifiers

MAX_IDS = 20
"""OURS: a device keeps its latest ids of each kind; older ones still lead to it, but find no engagements any more.

Else an id that many devices share, a `custom` of "guest" say, makes one device of them that grows with every record."""


class Identities:
    """The devices of one batch, and the ids that lead to them.

    `devices` are all that were read or made, `learned` the ids that lead to another device now, or to one at all.
    """

    def __init__(self, devices: Iterable[Device], by_key: dict[IdKey, Device], new_id: Callable[[], uuid.UUID]) -> None:
        self.devices = list(devices)
        self.learned: dict[IdKey, uuid.UUID] = {}
        self._by_key, self._new_id = by_key, new_id

    def take(
        self, entry: log_pb2.LogEntry, record: record_pb2.Record, *, may_create: bool
    ) -> tuple[Device | None, tuple[Device, ...]]:
        """Returns the record's device, and those that turn out to be the same one: they become the one known longest.

        The ids of the merged ones move at once; their histories when the record's turn to be decided comes.
        """
        keys = _keys(record)
        found = {device.device_id: device for key in keys if (device := self._by_key.get(key)) is not None}
        known = sorted(found.values(), key=lambda device: (device.create_time_us, device.device_id))
        if not known:
            if not may_create:
                return None, ()
            known = [self._make(entry, record)]
        device, *others = known
        for other in others:
            self._merge(other, into=device)
        for key, value in keys.items():
            if self._by_key.get(key) is not device:
                self._by_key[key] = device
                self.learned[key] = device.device_id
                _learn(device, key.kind, [value])
                device.changed = True
        return device, tuple(others)

    def _make(self, entry: log_pb2.LogEntry, record: record_pb2.Record) -> Device:
        device = Device.new(self._new_id(), record.app_id, entry.receive_time_us)
        self.devices.append(device)
        return device

    def _merge(self, other: Device, *, into: Device) -> None:
        self._by_key = {key: into if device is other else device for key, device in self._by_key.items()}
        for kind, values in other.ids.items():
            _learn(into, kind, values)
            for value in values:
                key = IdKey(device_key(other.app_id, value), kind)
                self._by_key[key] = into
                self.learned[key] = into.device_id
        other.merged_into = into.device_id
        other.changed = into.changed = True


async def load(
    connection: Connection, records: Collection[record_pb2.Record], new_id: Callable[[], uuid.UUID]
) -> Identities:
    """Returns the devices that the ids of these records lead to; those that were merged with all that they became."""
    keys = {key for record in records for key in _keys(record)}
    known = await find_identifiers(connection, {key.key for key in keys})
    owners = {key: device_id for key, device_id in known.items() if key in keys}  # the kind counts here
    devices = await find_devices(connection, set(owners.values()))
    while signposts := {into for each in devices.values() if (into := each.merged_into)} - devices.keys():
        devices |= await find_devices(connection, signposts)
    by_key = {}
    for key, device_id in owners.items():
        device = devices[device_id]
        while device.merged_into is not None:
            device = devices[device.merged_into]
        by_key[key] = device
    return Identities(devices.values(), by_key, new_id)


def ids_of(device: Device, record: record_pb2.Record) -> tuple[tuple[str, str], ...]:
    """Returns the ids by which a record's engagements are found: its own, and those of its device."""
    known = ((kind, value) for kind, values in device.ids.items() for value in values)
    return tuple(dict.fromkeys((*record.device_ids.items(), *known)))


def _learn(device: Device, kind: str, values: Sequence[str]) -> None:
    device.ids[kind] = [*device.ids.get(kind, ()), *values][-MAX_IDS:]


def _keys(record: record_pb2.Record) -> dict[IdKey, str]:
    return {IdKey(device_key(record.app_id, value), kind): value for kind, value in record.device_ids.items()}
