"""Currencies and amounts, as senders write them."""

import re
from decimal import Decimal
from typing import NamedTuple

from libs.numbers import MAX_TEXT, read_number

CODES = frozenset(
    {
        "AED", "AFN", "ALL", "AMD", "ANG", "AOA", "ARS", "AUD", "AWG", "AZN", "BAM", "BBD", "BDT", "BGN", "BHD",
        "BIF", "BMD", "BND", "BOB", "BRL", "BSD", "BTN", "BWP", "BYN", "BZD", "CAD", "CDF", "CHF", "CLP", "CNY",
        "COP", "CRC", "CUP", "CVE", "CZK", "DJF", "DKK", "DOP", "DZD", "EGP", "ERN", "ETB", "EUR", "FJD", "FKP",
        "GBP", "GEL", "GHS", "GIP", "GMD", "GNF", "GTQ", "GYD", "HKD", "HNL", "HTG", "HUF", "IDR", "ILS", "INR",
        "IQD", "IRR", "ISK", "JMD", "JOD", "JPY", "KES", "KGS", "KHR", "KMF", "KPW", "KRW", "KWD", "KYD", "KZT",
        "LAK", "LBP", "LKR", "LRD", "LSL", "LYD", "MAD", "MDL", "MGA", "MKD", "MMK", "MNT", "MOP", "MRU", "MUR",
        "MVR", "MWK", "MXN", "MYR", "MZN", "NAD", "NGN", "NIO", "NOK", "NPR", "NZD", "OMR", "PAB", "PEN", "PGK",
        "PHP", "PKR", "PLN", "PYG", "QAR", "RON", "RSD", "RUB", "RWF", "SAR", "SBD", "SCR", "SDG", "SEK", "SGD",
        "SHP", "SLE", "SOS", "SRD", "SSP", "STN", "SVC", "SYP", "SZL", "THB", "TJS", "TMT", "TND", "TOP", "TRY",
        "TTD", "TWD", "TZS", "UAH", "UGX", "USD", "UYU", "UZS", "VED", "VES", "VND", "VUV", "WST", "XAF", "XCD",
        "XCG", "XOF", "XPF", "YER", "ZAR", "ZMW", "ZWG",
    }
)  # fmt: skip
"""The codes of ISO 4217 that stand beside an amount; a field for a currency may hold any three letters."""
_SYMBOLS = {
    "€": "EUR", "£": "GBP", "¥": "JPY", "CN¥": "CNY", "₹": "INR", "₩": "KRW", "₽": "RUB", "₺": "TRY", "₪": "ILS",
    "₫": "VND", "₴": "UAH", "฿": "THB", "₱": "PHP", "₦": "NGN", "US$": "USD", "CA$": "CAD", "C$": "CAD", "A$": "AUD",
    "AU$": "AUD", "NZ$": "NZD", "HK$": "HKD", "S$": "SGD", "NT$": "TWD", "R$": "BRL", "MX$": "MXN",
}  # fmt: skip
_CODE = re.compile(r"[A-Z]{3}")
_BLANKS = str.maketrans({"\u00a0": " ", "\u202f": " ", "\u2009": " ", "’": "'", "−": "-"})
_AFFIX = r"[A-Z]{0,3}[$€£¥₹₩₽₺₪₫₴฿₱₦]|[A-Z]{3}"
_AMOUNT = re.compile(rf"([+-]?) ?({_AFFIX})? ?([+-]?)([0-9][0-9.,' ]*)({_AFFIX})?", re.ASCII)
_POINT_IS_DECIMAL = re.compile(
    r"[1-9][0-9]{0,2}(?:,[0-9]{3})+(?:\.[0-9]+)?|[1-9][0-9]?(?:,[0-9]{2})+,[0-9]{3}(?:\.[0-9]+)?"
    r"|[1-9][0-9]{0,2}(?:[' ][0-9]{3})+(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?",
    re.ASCII,
)
_COMMA_IS_DECIMAL = re.compile(
    r"[1-9][0-9]{0,2}(?:\.[0-9]{3})+,[0-9]+|[1-9][0-9]{0,2}(?:\.[0-9]{3}){2,}"
    r"|[1-9][0-9]{0,2}(?:[' ][0-9]{3})+,[0-9]+|[0-9]+,[0-9]+",
    re.ASCII,
)


class Amount(NamedTuple):
    """An amount, and the currency that stands beside it, as it is written there; empty if none does."""

    number: Decimal
    currency: str


def read_amount(value: object) -> Amount | None:
    """Returns the amount that a value says; None where it says none.

    A number is one, and so is a text as people write it: with a currency before or after it, groups of three digits and
    a point or a comma for the decimals (`13,95`, `1,299.00`, `1.299,00`, `$12.99`). One comma before three digits parts
    thousands; one point never does.
    """
    number = read_number(value)
    if number is not None:
        return Amount(number, "")
    text = value.translate(_BLANKS).strip() if isinstance(value, str) and len(value) <= MAX_TEXT else ""
    found = _AMOUNT.fullmatch(text)
    if found is None or (found[1] and found[3]) or (found[2] and found[5]):
        return None
    digits = found[4].strip()
    if _POINT_IS_DECIMAL.fullmatch(digits) is not None:
        plain = re.sub("[,' ]", "", digits)
    elif _COMMA_IS_DECIMAL.fullmatch(digits) is not None:
        plain = re.sub("[.' ]", "", digits).replace(",", ".")
    else:
        return None
    currency = found[2] or found[5] or ""
    if _CODE.fullmatch(currency) is not None and currency not in CODES:
        return None
    number = read_number((found[1] or found[3]) + plain)
    return None if number is None else Amount(number, currency)


def read_currency(text: str, usual: str) -> str:
    """Returns the code of ISO 4217 that a text means, in any case, or as a symbol; empty if none.

    `$` is `usual`, if that is some dollar or peso, else that of the United States.
    """
    written = text.strip().upper()
    if _CODE.fullmatch(written) is not None:
        return written
    if written == "$":
        return usual if usual in _DOLLARS else "USD"
    return _SYMBOLS.get(written, "")


_DOLLARS = frozenset(
    {
        "ARS", "AUD", "BBD", "BMD", "BND", "BSD", "BZD", "CAD", "CLP", "COP", "DOP", "FJD", "GYD", "HKD", "JMD",
        "KYD", "LRD", "MXN", "NAD", "NZD", "SBD", "SGD", "SRD", "TTD", "TWD", "USD", "UYU", "XCD",
    }
)  # fmt: skip
