"""Ids that several devices share, which are nobody's therefore (A8).

What an id has met is a text of bytes: a digest of each advertising id that came in one record with it, one after the
other.
"""

from collections.abc import Iterable

MAX_ADVERTISING_IDS = 5
"""An id that was met with more raw advertising ids than this is nobody's from then on (A8)."""
MAX_COUNTED = 100
"""OURS: so many are counted; there may be more."""

_DIGEST_SIZE = 8


def meeting(met: bytes, advertising_keys: Iterable[bytes]) -> bytes:
    """Returns what an id has met once it was met with these advertising ids, given as match keys, too."""
    return joined(met, b"".join(_digests(advertising_keys)))


def joined(met: bytes, other: bytes) -> bytes:
    """Returns what an id has met that is the same as another, which has met these."""
    for digest in _split(other):
        if len(met) >= MAX_COUNTED * _DIGEST_SIZE:
            break
        if digest not in _split(met):
            met += digest
    return met


def forgetting(met: bytes, advertising_keys: Iterable[bytes]) -> bytes:
    """Returns what an id has met without these advertising ids."""
    forgotten = set(_digests(advertising_keys))
    return b"".join(digest for digest in _split(met) if digest not in forgotten)


def count_of(met: bytes) -> int:
    """Returns how many advertising ids an id has met, as far as they are counted."""
    return len(met) // _DIGEST_SIZE


def is_shared(met: bytes) -> bool:
    """Returns whether an id that has met these is nobody's from now on (A8)."""
    return count_of(met) > MAX_ADVERTISING_IDS


def _digests(advertising_keys: Iterable[bytes]) -> list[bytes]:
    return [key[:_DIGEST_SIZE] for key in advertising_keys]


def _split(met: bytes) -> list[bytes]:
    return [met[at : at + _DIGEST_SIZE] for at in range(0, len(met), _DIGEST_SIZE)]
