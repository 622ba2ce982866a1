"""The devices of a batch of records: found by their ids, made, extended and merged, in the order of the records."""

import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import NamedTuple

from libs.db import Connection
from libs.domain.device_ids import ADVERTISING_KINDS, KINDS_OF_ADVERTISING_IDS, normalise
from reengage.ingest.v1 import log_pb2, record_pb2
from services.attribution.decision.grouping import MAX_IDS, Sighting, with_sighting
from services.attribution.decision.matching import device_key, hash_keys, hashed_as, sought_ids
from services.attribution.decision.shared_ids import count_of, is_shared, joined, meeting
from services.attribution.storage.devices import Device, Identifier, IdKey, find_devices, find_identifiers
from services.attribution.storage.shared_ids import SharedIdRow
from services.attribution.wire.records import event_time_us


class Taken(NamedTuple):
    """A record's device, None if it has none, and those that turned out to be the same one.

    `ids` are those by which its engagements are found, as (kind, value): the record's own, and those of its device.
    `shared`: how many advertising ids share those ids of the record, by kind, that are nobody's therefore (A8).
    """

    device: Device | None
    merged: tuple[Device, ...]
    ids: tuple[tuple[str, str], ...]
    shared: Mapping[str, int]


@dataclass(slots=True)
class _Id:
    """An id as the records so far have made it: its device, and what it has met (A8). A shared one has no device."""

    device: Device | None = None
    met: bytes = b""
    is_shared: bool = False


class Identities:
    """The devices of one batch, and the ids that lead to them.

    `devices` are all that were read or made, `shared` the ids that turned out to be nobody's (A8). `hashed` are the
    kinds of hashed ids of each app: the hashes of a raw id lead where it leads, whichever came first (A3).
    """

    def __init__(
        self,
        devices: Iterable[Device],
        ids: dict[IdKey, _Id],
        new_id: Callable[[], uuid.UUID],
        hashed: Mapping[str, Collection[str]],
    ) -> None:
        self.devices = list(devices)
        self.shared: list[SharedIdRow] = []
        self._became: dict[uuid.UUID, Device] = {}
        self._ids, self._new_id, self._hashed = ids, new_id, hashed
        self._changed: dict[IdKey, _Id] = {}

    def take(self, entry: log_pb2.LogEntry, record: record_pb2.Record, *, may_create: bool) -> Taken:
        """Returns the record's device. Of several that turn out to be one the one known longest stays.

        The ids of the merged ones move at once; their histories when the record's turn to be decided comes.
        """
        values = _keys(record)
        ids = {key: self._ids.get(key) or _Id() for key in values}
        self._meet(entry, values, ids, record.app_id)
        shared = {key.kind: count_of(each.met) for key, each in ids.items() if each.is_shared}
        if shared:
            ids = {key: each for key, each in ids.items() if not each.is_shared}
        hashes = self._hashes_of_new(record.app_id, values, ids)
        leading = (*ids.values(), *hashes.values())
        found = {device.device_id: device for each in leading if (device := self._led_to(each)) is not None}
        known = sorted(found.values(), key=lambda device: (device.create_time_us, device.device_id))
        if not known:
            if not may_create:
                return Taken(None, (), (), shared)
            known = [self._make(entry, record)]
        device, *others = known
        for other in others:
            self._merge(other, into=device)
        for key, each in ids.items():
            if self._led_to(each) is not device:
                each.device = device
                self._ids[key] = self._changed[key] = each
                _learn(device, key.kind, [values[key]])
                device.changed = True
        for key, each in hashes.items():
            if self._led_to(each) is not device:
                each.device = device
                self._ids[key] = self._changed[key] = each
        own = {key.kind: values[key] for key in ids}
        _see(device, Sighting(event_time_us(record), entry.receive_time_us, own))
        return Taken(device, tuple(others), _ids_of(device, own), shared)

    @property
    def identifiers(self) -> dict[IdKey, Identifier]:
        """Returns the ids that lead to another device now or to one at all, and those that have met another id."""
        return {
            key: Identifier(None if (device := self._led_to(each)) is None else device.device_id, each.met)
            for key, each in self._changed.items()
        }

    def _meet(
        self, entry: log_pb2.LogEntry, values: Mapping[IdKey, str], ids: Mapping[IdKey, _Id], app_id: str
    ) -> None:
        """Notes which advertising ids the others of a record were met with, and those that are shared now (A8).

        Only a new pair of ids teaches something.
        """
        advertising_keys = [key.key for key in values if key.kind in ADVERTISING_KINDS]
        if not advertising_keys:
            return
        for key, each in ids.items():
            if key.kind in KINDS_OF_ADVERTISING_IDS:
                continue
            met = meeting(each.met, advertising_keys)
            if met == each.met:
                continue
            each.met = met
            if key in self._ids:  # else it has met too few, and is written with its device, if it gets one
                self._changed[key] = each
            if is_shared(met) and not each.is_shared:
                _share(each, self._led_to(each), key.kind, values[key])
                self.shared.append(SharedIdRow(app_id, entry.receive_time_us, key.kind, values[key], key.key))
            if each.is_shared:
                self._share_hashes(app_id, key.kind, values[key], met, ids)

    def _share_hashes(self, app_id: str, kind: str, value: str, met: bytes, ids: Mapping[IdKey, _Id]) -> None:
        """Has the hashes of a shared id, of a record with these ids, be shared with it."""
        for hash_key, hash_value in _hashes(app_id, kind, value, self._hashed):
            each = self._ids.get(hash_key) or ids.get(hash_key) or _Id()
            _share(each, self._led_to(each), hash_key.kind, hash_value)
            each.met = joined(each.met, met)
            self._ids[hash_key] = self._changed[hash_key] = each

    def _hashes_of_new(self, app_id: str, values: Mapping[IdKey, str], ids: Mapping[IdKey, _Id]) -> dict[IdKey, _Id]:
        """Returns the hashes of those raw ids of a record that lead nowhere yet; not its own, nor what is nobody's."""
        if app_id not in self._hashed:
            return {}
        new = (key for key in ids if key not in self._ids)
        hashes = (each for key in new for each, _ in _hashes(app_id, key.kind, values[key], self._hashed))
        found = {key: self._ids.get(key) or _Id() for key in hashes if key not in ids}
        return {key: each for key, each in found.items() if not each.is_shared}

    def _make(self, entry: log_pb2.LogEntry, record: record_pb2.Record) -> Device:
        device = Device.new(self._new_id(), record.app_id, entry.receive_time_us)
        self.devices.append(device)
        return device

    def _led_to(self, each: _Id) -> Device | None:
        """Returns the device that an id leads to, after the merges so far."""
        passed = []
        while each.device is not None and each.device.device_id in self._became:
            passed.append(each.device.device_id)
            each.device = self._became[each.device.device_id]
        for device_id in passed[:-1]:  # so that nobody goes the whole way again
            assert each.device is not None
            self._became[device_id] = each.device
        return each.device

    def _merge(self, other: Device, *, into: Device) -> None:
        self._became[other.device_id] = into
        for kind, values in other.ids.items():
            _learn(into, kind, values)
            for value in values:
                key = IdKey(device_key(other.app_id, value), kind)
                self._changed[key] = self._ids.get(key) or _Id(into)
        for sighting in other.sightings:
            _see(into, sighting)
        other.merged_into, other.sightings = into.device_id, []
        other.changed = into.changed = True


async def load(
    connection: Connection,
    records: Collection[record_pb2.Record],
    new_id: Callable[[], uuid.UUID],
    hashed: Mapping[str, Collection[str]],
) -> Identities:
    """Returns the devices that the ids of these records lead to; those that were merged with all that they became."""
    identifiers = await _find(connection, {key for record in records for key in _keys(record)})
    if hashes := _hashes_to_find(records, identifiers, hashed):
        identifiers |= await _find(connection, hashes)
    device_ids = {each.device_id for each in identifiers.values() if each.device_id is not None}
    devices = await find_devices(connection, device_ids)
    while signposts := {into for each in devices.values() if (into := each.merged_into)} - devices.keys():
        devices |= await find_devices(connection, signposts)
    ids = {}
    for key, (device_id, met) in identifiers.items():
        device = None if device_id is None else devices[device_id]
        while device is not None and device.merged_into is not None:
            device = devices[device.merged_into]
        ids[key] = _Id(device, met, is_shared=device is None)
    return Identities(devices.values(), ids, new_id, hashed)


async def _find(connection: Connection, keys: Set[IdKey]) -> dict[IdKey, Identifier]:
    """Returns those ids that are known; here the kind counts."""
    found = await find_identifiers(connection, {key.key for key in keys})
    return {key: each for key, each in found.items() if key in keys}


def _hashes_to_find(
    records: Iterable[record_pb2.Record], known: Collection[IdKey], hashed: Mapping[str, Collection[str]]
) -> set[IdKey]:
    """Returns the hashes of those raw ids that are not known, and of those that may turn out to be shared."""
    return {
        hash_key
        for record in records
        if record.app_id in hashed
        for key, value in _keys(record).items()
        if key not in known or key.kind not in KINDS_OF_ADVERTISING_IDS
        for hash_key, _ in _hashes(record.app_id, key.kind, value, hashed)
    }


def _hashes(app_id: str, kind: str, value: str, hashed: Mapping[str, Collection[str]]) -> Iterator[tuple[IdKey, str]]:
    """Yields the hashes of a raw id, of the kinds that its app has."""
    for hashed_kind, length in hashed_as(kind, hashed.get(app_id, ())):
        for key, hash_value in hash_keys(app_id, value, length).items():
            yield IdKey(key, hashed_kind), hash_value


def _ids_of(device: Device, own: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    known = [(kind, value) for kind, values in device.ids.items() for value in values]
    return sought_ids(list(own.items()), known)


def _learn(device: Device, kind: str, values: Sequence[str]) -> None:
    device.ids[kind] = [*device.ids.get(kind, ()), *values][-MAX_IDS:]


def _share(each: _Id, device: Device | None, kind: str, value: str) -> None:
    """Has an id, which leads to this device so far, be nobody's."""
    if device is not None:
        device.ids[kind] = [known for known in device.ids.get(kind, ()) if normalise(known) != normalise(value)]
        device.changed = True
    each.device, each.is_shared = None, True


def _see(device: Device, sighting: Sighting) -> None:
    sightings = with_sighting(device.sightings, sighting)
    if sightings is not None:
        device.sightings, device.changed = sightings, True


def _keys(record: record_pb2.Record) -> dict[IdKey, str]:
    return {IdKey(device_key(record.app_id, value), kind): value for kind, value in record.device_ids.items()}
