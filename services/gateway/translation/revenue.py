"""Revenue: what an event was worth, as its data says it."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from libs.domain.currencies import read_amount, read_currency
from libs.numbers import read_number
from reengage.ingest.v1 import record_pb2
from services.gateway.translation.body import Body

_MAX_AMOUNT = Decimal(9 * 10**12)  # its millionths fit 64 bits
_KEYS = ("sum", "revenue", "value", "amount", "price")
_DIGITS = frozenset("0123456789")
_OTHERWISE_USED = frozenset({"value", "amount"})
"""Keys that many events have for something else: what is no amount there is none that is missing."""


def take_revenue(body: Body, given: Mapping[str, Any], path: str, event: record_pb2.Event) -> None:
    """Reads the revenue of an event out of its data (`given`, at `path`).

    It is the first of `sum`, `revenue`, `value`, `amount`, and `price` times `quantity`, that is present and not zero.
    What cannot be read leaves the event without revenue: an amount of another currency would be another amount.
    """
    is_zero, unread = False, ""
    for key in _KEYS:
        value = given.get(key)
        if value is None or value == "":
            continue
        amount = read_amount(value)
        if amount is None and key in _OTHERWISE_USED:
            unread = unread or (key if _may_be_amount(value) else "")
            continue
        number = amount.number if amount is not None else _MAX_AMOUNT
        if key == "price":
            quantity = _quantity(body, given.get("quantity"), f"{path}.quantity")
            if quantity is None:
                return
            number *= quantity
        if amount is None or abs(number) >= _MAX_AMOUNT:
            _warn_of_amount(body, f"{path}.{key}")
            return
        if number:
            _set(body, given, path, event, number, amount.currency)
            return
        is_zero = True
    if is_zero:
        _set(body, given, path, event, Decimal(0), "")
    elif unread:
        _warn_of_amount(body, f"{path}.{unread}")


def _set(
    body: Body, given: Mapping[str, Any], path: str, event: record_pb2.Event, number: Decimal, beside: str
) -> None:
    """Sets the revenue, in the currency that is given, else the one written beside the amount, else the app's."""
    named = given.get("currency") or body.get("currency")
    usual = body.currency_code
    currency = read_currency(named if isinstance(named, str) else "?", usual) if named else ""
    if named and not currency:
        place = f"{path}.currency" if given.get("currency") else body.path("currency")
        body.warnings.add(place, "INVALID_CURRENCY", "no revenue: must be an ISO 4217 code")
        return
    currency = currency or (read_currency(beside, usual) if beside else usual)
    if not currency:
        body.warnings.add(path, "INVALID_CURRENCY", f"no revenue: {beside} is no currency")
        return
    event.revenue.amount_micros = round(number * 1_000_000)
    event.revenue.currency_code = currency


def _quantity(body: Body, value: Any, path: str) -> Decimal | None:
    """Returns a quantity, 1 if there is none; None if it cannot be read, which is noted."""
    if value is None or value == "":
        return Decimal(1)
    quantity = read_number(value)
    if quantity is None:
        body.warnings.add(path, "INVALID_AMOUNT", "no revenue: the quantity must be a number")
    return quantity


def _may_be_amount(value: Any) -> bool:
    return type(value) is int or (isinstance(value, str) and not _DIGITS.isdisjoint(value))


def _warn_of_amount(body: Body, path: str) -> None:
    most = f"{_MAX_AMOUNT:,}"
    body.warnings.add(path, "INVALID_AMOUNT", f"no revenue: must be a number of currency units, less than {most}")
