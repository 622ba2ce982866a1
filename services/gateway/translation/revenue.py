"""Revenue: what an event was worth, as its data says it."""

import re
from collections.abc import Mapping
from typing import Any

from libs.numbers import read_number
from reengage.ingest.v1 import record_pb2
from services.gateway.translation.body import Body

_MAX_AMOUNT = 9 * 10**12  # its millionths fit 64 bits
_CURRENCY = re.compile(r"[A-Z]{3}")


def take_revenue(body: Body, given: Mapping[str, Any], path: str, event: record_pb2.Event) -> None:
    """Reads the revenue of an event out of its data (`given`, at `path`): `sum`, else `price`, else `revenue`.

    Without a currency it is in the app's.
    """
    for key in ("sum", "price", "revenue"):
        value = given.get(key)
        if value is None or value == "":
            continue
        micros = _micros(value)
        if micros is None:
            body.violations.add(f"{path}.{key}", "INVALID_AMOUNT", "must be a number of currency units")
        currency = given.get("currency") or body.get("currency") or body.currency_code
        currency = currency.upper() if isinstance(currency, str) else ""
        if _CURRENCY.fullmatch(currency) is None:
            place = f"{path}.currency" if given.get("currency") else body.path("currency")
            body.violations.add(place, "INVALID_CURRENCY", "must be an ISO 4217 code")
        event.revenue.amount_micros = micros or 0
        event.revenue.currency_code = currency
        return


def _micros(value: Any) -> int | None:
    amount = read_number(value)
    return round(amount * 1_000_000) if amount is not None and abs(amount) < _MAX_AMOUNT else None
