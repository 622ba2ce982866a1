"""Times and lengths of time: integers of microseconds inside, protobuf messages on the wire, text for people.

A time (`…_us`) counts from 1970 in UTC. Text for a length of time is a whole number and a unit, as `30s`, `15m`, `24h`
or `7d`.
"""

import re
import time
from datetime import UTC, datetime

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

SECOND_US = 1_000_000
MINUTE_US = 60 * SECOND_US
HOUR_US = 60 * MINUTE_US
DAY_US = 24 * HOUR_US

MIN_TIME_US = -62_135_596_800 * SECOND_US
"""The year 1, from which a Timestamp may be."""
MAX_TIME_US = 253_402_300_800 * SECOND_US - 1
"""The end of the year 9999, up to which a Timestamp may be."""
_YEAR_3000_S = 32_503_680_000

_UNITS_US = {"d": DAY_US, "h": HOUR_US, "m": MINUTE_US, "s": SECOND_US}
_DURATION = re.compile(r"([0-9]{1,9})([smhd])")


def now_us() -> int:
    """Returns the time by this machine's clock."""
    return time.time_ns() // 1000


def timestamp_us(timestamp: Timestamp) -> int:
    """Returns a Timestamp as microseconds; what is finer is cut off."""
    return timestamp.seconds * SECOND_US + timestamp.nanos // 1000


def to_timestamp(time_us: int) -> Timestamp:
    """Returns a time as a message."""
    seconds, rest = divmod(time_us, SECOND_US)
    return Timestamp(seconds=seconds, nanos=rest * 1000)


def is_timestamp(timestamp: Timestamp) -> bool:
    """Returns whether a message is a time: in the years 1 to 9999, with at most 999,999,999 ns."""
    return MIN_TIME_US <= timestamp.seconds * SECOND_US <= MAX_TIME_US and 0 <= timestamp.nanos < 1000 * SECOND_US


def is_plausible(timestamp: Timestamp) -> bool:
    """Returns whether a message is a time at which anything happened, or will: in the years 1970 to 2999."""
    return is_timestamp(timestamp) and 0 <= timestamp.seconds < _YEAR_3000_S


def duration_us(duration: Duration) -> int:
    """Returns a Duration as microseconds; what is finer is cut off towards zero."""
    return duration.seconds * SECOND_US + int(duration.nanos / 1000)


def to_duration(length_us: int) -> Duration:
    """Returns a length of time as a message: its seconds and nanoseconds have the same sign."""
    seconds, rest = divmod(abs(length_us), SECOND_US)
    sign = -1 if length_us < 0 else 1
    return Duration(seconds=sign * seconds, nanos=sign * rest * 1000)


def to_datetime(time_us: int) -> datetime:
    """Returns a time in UTC, exactly. Raises OverflowError outside of the years 1 to 9999."""
    return datetime.fromtimestamp(time_us // SECOND_US, UTC).replace(microsecond=time_us % SECOND_US)


def parse_duration(text: str) -> int:
    """Returns the microseconds of a text such as `30s` or `7d`. Raises ValueError for any other."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError("should be a duration, as 90s, 30m, 6h or 30d")
    return int(match[1]) * _UNITS_US[match[2]]


def format_duration(length_us: int) -> str:
    """Returns the shortest text that `parse_duration` reads as this length.

    Raises ValueError for one that is negative or not of whole seconds.
    """
    if length_us < 0 or length_us % SECOND_US:
        raise ValueError("not a whole number of seconds")
    unit = next((unit for unit, size_us in _UNITS_US.items() if length_us % size_us == 0), "s") if length_us else "s"
    return f"{length_us // _UNITS_US[unit]}{unit}"


def describe_duration(duration: Duration) -> str:
    """Returns a length of time for people, in its two largest units: 2 days 3 h, 5 min 1 s, 0.25 s."""
    seconds = duration.seconds + duration.nanos / 1e9
    if abs(seconds) < 1:
        return f"{seconds:.3g} s"
    left, parts = int(abs(seconds)), []
    for unit, size in (("day", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count} {unit}{'s' if unit == 'day' and count > 1 else ''}")
    return ("-" if seconds < 0 else "") + " ".join(parts[:2])
