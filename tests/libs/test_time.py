"""Times and lengths of time, to messages and text and back."""

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from libs.time import (
    DAY_US,
    MAX_TIME_US,
    MIN_TIME_US,
    duration_us,
    format_duration,
    is_plausible,
    is_timestamp,
    parse_duration,
    timestamp_us,
    to_duration,
    to_timestamp,
)


@given(st.integers(MIN_TIME_US, MAX_TIME_US))
def test_times_survive_the_wire(time_us: int) -> None:
    message = to_timestamp(time_us)
    assert timestamp_us(message) == time_us
    assert timestamp_us(Timestamp.FromString(message.SerializeToString())) == time_us
    message.ToJsonString()  # raises for what is no valid Timestamp


@given(st.integers(-(10**15), 10**15))
def test_lengths_survive_the_wire(length_us: int) -> None:
    message = to_duration(length_us)
    assert duration_us(message) == length_us
    assert message.seconds * message.nanos >= 0
    message.ToJsonString()


def test_fractions_of_a_microsecond_are_cut_towards_zero() -> None:
    assert duration_us(Duration(seconds=-1, nanos=-1_999)) == -1_000_001


@given(st.integers(0, 10**9 - 1))
def test_durations_survive_as_text(seconds: int) -> None:
    assert parse_duration(format_duration(seconds * 1_000_000)) == seconds * 1_000_000


@pytest.mark.parametrize(
    ("length_us", "text"), [(0, "0s"), (DAY_US, "1d"), (90_000_000, "90s"), (7 * DAY_US, "7d"), (3_600_000_000, "1h")]
)
def test_the_largest_unit_is_written(length_us: int, text: str) -> None:
    assert format_duration(length_us) == text


@pytest.mark.parametrize("text", ["", "7", "d", "1.5h", "-1d", "1w", "7 d", "٧d", "1d\n", "9999999999s"])
def test_other_texts_are_no_durations(text: str) -> None:
    with pytest.raises(ValueError, match="should be a duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("timestamp", "is_one"),
    [
        pytest.param(Timestamp(), True, id="1970"),
        pytest.param(Timestamp(seconds=-62_135_596_800), True, id="the first"),
        pytest.param(Timestamp(seconds=253_402_300_799, nanos=999_999_999), True, id="the last"),
        pytest.param(Timestamp(seconds=253_402_300_800), False, id="after the last"),
        pytest.param(Timestamp(seconds=-62_135_596_801), False, id="before the first"),
        pytest.param(Timestamp(nanos=1_000_000_000), False, id="too many nanos"),
        pytest.param(Timestamp(nanos=-1), False, id="negative nanos"),
    ],
)
def test_is_timestamp(timestamp: Timestamp, is_one: bool) -> None:
    assert is_timestamp(timestamp) is is_one


@pytest.mark.parametrize(
    ("timestamp", "is_one"),
    [
        pytest.param(Timestamp(), True, id="1970"),
        pytest.param(Timestamp(seconds=32_503_679_999, nanos=999_999_999), True, id="the end of 2999"),
        pytest.param(Timestamp(seconds=32_503_680_000), False, id="the year 3000"),
        pytest.param(Timestamp(seconds=-1, nanos=999_999_999), False, id="before 1970"),
        pytest.param(Timestamp(nanos=-1), False, id="negative nanos"),
        pytest.param(Timestamp(seconds=2**62), False, id="2^62 s"),
        pytest.param(Timestamp(seconds=-(2**62)), False, id="-2^62 s"),
    ],
)
def test_is_plausible(timestamp: Timestamp, is_one: bool) -> None:
    assert is_plausible(timestamp) is is_one
