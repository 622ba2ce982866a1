"""Numbers as others write them."""

from decimal import Decimal

import pytest

from libs.numbers import read_number


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (5, "5"), (-0.5, "-0.5"), (1e16, "1e16"), ("9.990", "9.990"), (" 12 ", "12"), ("+.5", "0.5"), ("3.", "3"),
        ("1e-7", "1e-7"), ("0.1234567890123456789", "0.1234567890123456789"), ("7E99", "7E99"),
    ],
)  # fmt: skip
def test_a_number_is_read_exactly(value: object, number: str) -> None:
    read = read_number(value)
    assert read is not None
    assert (read, read.as_tuple()) == (Decimal(number), Decimal(str(value).strip()).as_tuple())


@pytest.mark.parametrize(
    "value",
    [
        True, None, [], {}, "", ".", "-", "1_0", "١٢", "１２", "1e", "1e1000000", "1e-1000000", "inf", "-Infinity",
        "nan", float("inf"), float("nan"), 10**5_000, "9" * 65, "0x10", "1,5", "1 2", "12\n3",
    ],
    ids=lambda value: str(value)[:12] if not isinstance(value, int) or value < 99 else "a long one",
)  # fmt: skip
def test_what_only_some_take_for_a_number_is_none(value: object) -> None:
    assert read_number(value) is None
