"""The devices of a story, as its installs and events make them known."""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import reduce
from typing import TypeAlias

from libs.domain.device_ids import ADVERTISING_KINDS, HASHED_KINDS, KINDS_OF_ADVERTISING_IDS, normalise
from services.attribution.decision.history import DeviceHistory, merge
from services.attribution.decision.matching import device_key, hash_keys, is_hash
from services.attribution.decision.shared_ids import count_of, is_shared, joined, meeting

_APP = ""
"""A story has one app: its keys need not tell it from others."""

KnownAs: TypeAlias = tuple[str, str]
"""A device id as it is compared: its kind, and its normalised value."""


@dataclass(slots=True)
class Device:
    """A device as the records so far made it known.

    `ids` are its ids, each in the spellings that it came in.
    """

    ids: dict[KnownAs, set[str]] = field(default_factory=dict)
    history: DeviceHistory = field(default_factory=DeviceHistory)
    active_us: list[int] = field(default_factory=list)

    def learn(self, ids: Mapping[KnownAs, Set[str]]) -> None:
        """Adds ids."""
        for known_as, spellings in ids.items():
            self.ids.setdefault(known_as, set()).update(spellings)


class RawIds:
    """Raw ids, found by their hashes (A3); those of a length are made once they are asked for."""

    def __init__(self) -> None:
        self._ids: dict[KnownAs, str] = {}
        self._by_hash: dict[int, dict[str, list[KnownAs]]] = {}

    def add(self, kind: str, value: str) -> None:
        """Adds an id, unless it is a hash."""
        known_as = kind, normalise(value)
        if kind not in HASHED_KINDS and known_as not in self._ids:
            self._ids[known_as] = value
            for length, by_hash in self._by_hash.items():
                _add(by_hash, known_as, value, length)

    def of(self, hash_value: str, length: int) -> Sequence[KnownAs]:
        """Returns the raw ids that give a hash of this length."""
        if length not in self._by_hash:
            by_hash = self._by_hash[length] = {}
            for known_as, value in self._ids.items():
                _add(by_hash, known_as, value, length)
        return self._by_hash[length].get(normalise(hash_value), ())


class Devices:
    """All devices that are known, by their ids."""

    def __init__(self) -> None:
        self._devices: dict[KnownAs, Device] = {}
        self._raw_ids = RawIds()
        self._hashed_kinds: set[str] = set()
        self._met: dict[KnownAs, bytes] = {}
        self._sharing: dict[KnownAs, dict[KnownAs, None]] = {}
        """By shared id (A8) those for which it is shared: itself, or for a hash the raw ids that give it."""

    def take(self, device_ids: Mapping[str, str]) -> tuple[Device, dict[str, int]]:
        """Returns the device of a record with these ids, joining those that turn out to be one.

        And its shared ids (A8) by kind, with how many advertising ids share each.
        """
        shared = self._meet(device_ids)
        return self._device({kind: value for kind, value in device_ids.items() if kind not in shared}), shared

    def _device(self, device_ids: Mapping[str, str]) -> Device:
        ids = {(kind, normalise(value)): {value} for kind, value in device_ids.items()}
        same = [*ids, *(each for kind, value in device_ids.items() for each in self._same_ids(kind, value))]
        known = list({id(device): device for key in same if (device := self._devices.get(key))}.values())
        device = known[0] if known else Device()
        for other in known[1:]:
            device.learn(other.ids)
            device.history = merge(device.history, other.history)
            device.active_us += other.active_us
        device.learn(ids)
        self._devices.update(dict.fromkeys(device.ids, device))
        for kind, value in device_ids.items():
            self._raw_ids.add(kind, value)
            if is_hash(kind, value):
                self._hashed_kinds.add(kind)
        return device

    def _same_ids(self, kind: str, value: str) -> Iterator[KnownAs]:
        """Yields the raw ids that give a hash, or the hashes of a raw id that came before it (A3)."""
        if is_hash(kind, value):
            raw_kind, length = HASHED_KINDS[kind]
            yield from (each for each in self._raw_ids.of(value, length) if each[0] == raw_kind)
        for hashed_kind in self._hashed_kinds:
            raw_kind, length = HASHED_KINDS[hashed_kind]
            if raw_kind == kind:
                yield from ((hashed_kind, each) for each in hash_keys(_APP, value, length).values())

    def _meet(self, device_ids: Mapping[str, str]) -> dict[str, int]:
        """Notes which ids came together, and returns those that are shared from now on."""
        advertising_keys = [device_key(_APP, value) for kind, value in device_ids.items() if kind in ADVERTISING_KINDS]
        others = {
            kind: (kind, normalise(value)) for kind, value in device_ids.items() if kind not in KINDS_OF_ADVERTISING_IDS
        }
        for known_as in others.values():
            self._met[known_as] = meeting(self._met.get(known_as, b""), advertising_keys)
        for kind, known_as in others.items():
            if is_shared(self._met[known_as]) and known_as not in self._sharing.get(known_as, ()):
                self._share(known_as, known_as)
                for hash_as in _hashes_of(kind, device_ids[kind]):
                    self._share(hash_as, known_as)
        return {kind: self._count(known_as) for kind, known_as in others.items() if known_as in self._sharing}

    def _share(self, known_as: KnownAs, because_of: KnownAs) -> None:
        """Has an id be nobody's, because of what this one has met."""
        self._sharing.setdefault(known_as, {known_as: None})[because_of] = None
        if (device := self._devices.pop(known_as, None)) is not None:
            del device.ids[known_as]

    def _count(self, known_as: KnownAs) -> int:
        return count_of(reduce(joined, (self._met.get(each, b"") for each in self._sharing[known_as])))


def _add(by_hash: dict[str, list[KnownAs]], known_as: KnownAs, value: str, length: int) -> None:
    for hash_value in hash_keys(_APP, value, length).values():
        by_hash.setdefault(hash_value, []).append(known_as)


def _hashes_of(kind: str, value: str) -> Iterator[KnownAs]:
    """Yields all hashes of a raw id."""
    for hashed_kind, (raw_kind, length) in HASHED_KINDS.items():
        if raw_kind == kind:
            yield from ((hashed_kind, each) for each in hash_keys(_APP, value, length).values())
