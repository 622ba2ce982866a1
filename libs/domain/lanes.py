"""Lanes: the fixed number of ordered parts that the log, and the deciding of it, are split into."""

from zlib import crc32

LANES = 64
"""Never changes: records and positions already stored depend on it."""


def lane_of(*parts: str) -> int:
    """Returns the lane, 0 to 63, of a text or several: the same on every machine, for ever.

    A checksum, as this is asked for every record: a fifth of the time of a cryptographic hash, and nobody gains by
    choosing his lane.
    """
    return crc32("\0".join(parts).encode()) % LANES
