"""The ids of a story: raw ones by their hashes (A3), and those that are nobody's (A8)."""

from collections.abc import Iterator, Mapping, Sequence
from functools import reduce

from libs.domain.device_ids import ADVERTISING_KINDS, HASHED_KINDS, KINDS_OF_ADVERTISING_IDS, normalise
from services.attribution.decision.matching import Id, device_key, hash_keys
from services.attribution.decision.shared_ids import count_of, is_shared, joined, meeting

_APP = ""
"""A story has one app: its keys need not tell it from others."""


class RawIds:
    """Raw ids, found by their hashes (A3); those of a length are made once they are asked for."""

    def __init__(self) -> None:
        self._ids: dict[Id, str] = {}
        self._by_hash: dict[int, dict[str, list[Id]]] = {}

    def add(self, kind: str, value: str) -> None:
        """Adds an id, unless it is a hash."""
        known_as = kind, normalise(value)
        if kind not in HASHED_KINDS and known_as not in self._ids:
            self._ids[known_as] = value
            for length, by_hash in self._by_hash.items():
                _add(by_hash, known_as, value, length)

    def of(self, hash_value: str, length: int) -> Sequence[Id]:
        """Returns the raw ids that give a hash of this length."""
        if length not in self._by_hash:
            by_hash = self._by_hash[length] = {}
            for known_as, value in self._ids.items():
                _add(by_hash, known_as, value, length)
        return self._by_hash[length].get(normalise(hash_value), ())


class SharedIds:
    """The ids that are nobody's because many share them (A8), in the order of receipt, whatever the times (OURS)."""

    def __init__(self) -> None:
        self._met: dict[Id, bytes] = {}
        self._sharing: dict[Id, dict[Id, None]] = {}
        """By shared id those for which it is shared: itself, or for a hash the raw ids that give it."""
        self._since: dict[Id, int] = {}

    def meet(self, device_ids: Mapping[str, str], place: int) -> dict[str, int]:
        """Notes which ids came together in the record of a place, and returns those that are shared from now on.

        By kind, with how many advertising ids share each.
        """
        advertising_keys = [device_key(_APP, value) for kind, value in device_ids.items() if kind in ADVERTISING_KINDS]
        others = {
            kind: (kind, normalise(value)) for kind, value in device_ids.items() if kind not in KINDS_OF_ADVERTISING_IDS
        }
        for known_as in others.values():
            self._met[known_as] = meeting(self._met.get(known_as, b""), advertising_keys)
        for kind, known_as in others.items():
            if is_shared(self._met[known_as]) and known_as not in self._sharing.get(known_as, ()):
                self._share(known_as, known_as, place)
                for hash_as in _hashes_of(kind, device_ids[kind]):
                    self._share(hash_as, known_as, place)
        return {kind: self._count(known_as) for kind, known_as in others.items() if known_as in self._sharing}

    def is_shared_at(self, known_as: Id, place: int) -> bool:
        """Returns whether an id was shared once the record of a place was received."""
        return self._since.get(known_as, place + 1) <= place

    def _share(self, known_as: Id, because_of: Id, place: int) -> None:
        """Has an id be nobody's, because of what this one has met."""
        self._sharing.setdefault(known_as, {known_as: None})[because_of] = None
        self._since.setdefault(known_as, place)

    def _count(self, known_as: Id) -> int:
        return count_of(reduce(joined, (self._met.get(each, b"") for each in self._sharing[known_as])))


def _add(by_hash: dict[str, list[Id]], known_as: Id, value: str, length: int) -> None:
    for hash_value in hash_keys(_APP, value, length).values():
        by_hash.setdefault(hash_value, []).append(known_as)


def _hashes_of(kind: str, value: str) -> Iterator[Id]:
    """Yields all hashes of a raw id."""
    for hashed_kind, (raw_kind, length) in HASHED_KINDS.items():
        if raw_kind == kind:
            yield from ((hashed_kind, each) for each in hash_keys(_APP, value, length).values())
