"""Amounts and currencies as people write them."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.domain.currencies import Amount, read_amount, read_currency

AMOUNTS = {
    "12.99": ("12.99", ""), "13,95": ("13.95", ""), "1,299.00": ("1299", ""), "1.299,00": ("1299", ""),
    "1,299": ("1299", ""), "1.299": ("1.299", ""), "0,999": ("0.999", ""), "1,2995": ("1.2995", ""),
    "1.299.000": ("1299000", ""), "1,299,000": ("1299000", ""), "12,34,567.8": ("1234567.8", ""),
    "1 299,50": ("1299.5", ""), "1'299.50": ("1299.5", ""), "1’299.50": ("1299.5", ""), "1 299": ("1299", ""),
    "$12.99": ("12.99", "$"), "12.99$": ("12.99", "$"), "US$ 12.99": ("12.99", "US$"), "€13,95": ("13.95", "€"),
    "13,95 €": ("13.95", "€"), "EUR 13,95": ("13.95", "EUR"), "13,95EUR": ("13.95", "EUR"), "-$5": ("-5", "$"),
    "$-5": ("-5", "$"), "−5,00": ("-5", ""), "+5": ("5", ""), " 5 ": ("5", ""), "1e3": ("1000", ""),
}  # fmt: skip
NONE = [
    "", " ", "twelve", "12.99.1", "1,29,9", "1.299.00", "12,99,", ",5,", "--5", "-$-5", "$5€", "USD5USD", "5 pcs",
    "5 PCS",
    "buy 3", "1,299.00,00", "1.299,00.00", "1 29,50", "٣", "nan", "inf", "0x10", "5" * 65, "(5)", "5%", "1_0", "usd 5",
]  # fmt: skip


@pytest.mark.parametrize(("written", "meant"), AMOUNTS.items(), ids=AMOUNTS.keys())
def test_amounts(written: str, meant: tuple[str, str]) -> None:
    assert read_amount(written) == Amount(Decimal(meant[0]), meant[1])


@pytest.mark.parametrize("written", NONE)
def test_what_is_no_amount(written: str) -> None:
    assert read_amount(written) is None


@pytest.mark.parametrize("value", [None, True, [5], {"a": 5}, b"5"])
def test_what_cannot_be_one(value: object) -> None:
    assert read_amount(value) is None


@given(st.decimals(min_value=-(10**12), max_value=10**12, places=2, allow_nan=False))
@pytest.mark.slow
def test_law_an_amount_is_read_in_every_style(number: Decimal) -> None:
    point = f"{number:,.2f}"
    comma = point.translate(str.maketrans(",.", ".,"))
    for written in (point, comma, point.replace(",", " "), point.replace(",", "'"), f"{point} USD", f"$ {point}"):
        amount = read_amount(written)
        assert amount is not None
        assert amount.number == number


@pytest.mark.parametrize(
    ("written", "usual", "meant"),
    [
        ("USD", "EUR", "USD"), (" usd ", "EUR", "USD"), ("US$", "EUR", "USD"), ("$", "EUR", "USD"), ("$", "CAD", "CAD"),
        ("€", "USD", "EUR"), ("r$", "USD", "BRL"), ("points", "USD", ""), ("", "USD", ""), ("U S", "USD", ""),
    ],
)  # fmt: skip
def test_currencies(written: str, usual: str, meant: str) -> None:
    assert read_currency(written, usual) == meant
