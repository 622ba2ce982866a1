"""Lanes: the fixed number of ordered parts that the log, and the deciding of it, are split into."""

from hashlib import blake2b

LANES = 64
"""Never changes: records and positions already stored depend on it."""


def lane_of(*parts: str) -> int:
    """The lane, 0 to 63, of a text or several: the same on every machine, for ever."""
    return blake2b("\0".join(parts).encode(), digest_size=1).digest()[0] % LANES
