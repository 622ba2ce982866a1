"""Short codes of trackers: what stands for a tracker's id in links on paper and in QR codes. Pure.

A code is made of the id, so nobody keeps it. Of its 50 bits 100,000 trackers share one with a chance of 1 in 200,000;
a code that is of two trackers leads to neither.
"""

from functools import lru_cache
from hashlib import blake2b

_DIGITS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
"""Crockford's: letters that are taken for digits, and for each other, are left out."""
_LENGTH = 10


@lru_cache(1 << 18)
def short_code(tracker_id: str) -> str:
    """Returns the code of a tracker: ten digits and upper-case letters, which QR codes hold in half the room."""
    number = int.from_bytes(blake2b(tracker_id.encode(), digest_size=8, person=b"short code").digest(), "big")
    return "".join(_DIGITS[number >> 5 * place & 31] for place in range(_LENGTH))
