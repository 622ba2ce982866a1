"""Parsers of the plain values of a scenario file: each returns what a value stands for, or raises MisfitError.

A plain value is a dict, a list, a str, a bool or None. A time without an offset is UTC.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, TypeAlias

from libs.domain.setting_ranges import Range
from libs.time import SECOND_US, parse_duration
from services.attribution.decision.matching import normalise_ip

Parser: TypeAlias = Callable[[Any], Any]

_FLAGS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_DECIMAL = re.compile(r"-?(0|[1-9]\d{0,17})")
_AMOUNT = re.compile(r"-?[0-9]{1,15}(\.[0-9]{1,6})?")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Unquoted(str):
    """A scalar without quotes, which may stand for more than its text: a number, `true`, `off`."""

    __slots__ = ()


class MisfitError(Exception):
    """A value that does not fit. Without a message, the problem is noted already."""


def parse_text(value: Any) -> str:
    """Returns a text, or a flag as one."""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    raise MisfitError("should be a text")


def parse_id(value: Any) -> str:
    """Returns a text that is not empty."""
    if not (text := parse_text(value)):
        raise MisfitError("should not be empty")
    return text


def parse_flag(value: Any) -> bool:
    """Returns true or false, for any of YAML's words without quotes."""
    flag = _FLAGS.get(value.lower()) if isinstance(value, Unquoted) else value
    if not isinstance(flag, bool):
        raise MisfitError("should be true or false")
    return flag


def parse_count(value: Any) -> int:
    """Returns a whole number that is not negative."""
    text = parse_text(value)
    if not re.fullmatch(r"\d{1,9}", text):
        raise MisfitError("should be a whole number, 0 or more")
    return int(text)


def parse_amount(value: Any) -> Decimal:
    """Returns a decimal number."""
    text = parse_text(value)
    if not _AMOUNT.fullmatch(text):
        raise MisfitError("should be an amount such as 49.00 or -19.90")
    return Decimal(text)


def parse_ip(value: Any) -> str:
    """Returns an IP address in its usual form, "" for none."""
    if not (text := parse_text(value)):
        return ""
    try:
        return normalise_ip(text)
    except ValueError:
        raise MisfitError(f"{text!r} is not an IP address") from None


def parse_time(value: Any) -> int:
    """Returns the microseconds of an ISO 8601 time."""
    text = parse_text(value)
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise MisfitError(f"{text!r} is not an ISO 8601 time such as 2026-03-01T09:00:00Z") from None
    return ((time if time.tzinfo else time.replace(tzinfo=UTC)) - _EPOCH) // timedelta(microseconds=1)


def parse_country(value: Any) -> str:
    """Returns an ISO 3166-1 code. `NO` without quotes is Norway, and no flag."""
    text = str(value) if isinstance(value, str) else ""
    if not re.fullmatch(r"[A-Z]{2}", text):
        raise MisfitError("should be an ISO 3166-1 code, as DE")
    return text


def parse_version(value: Any) -> tuple[int, ...]:
    """Returns the numbers of a version."""
    text = parse_text(value)
    if not re.fullmatch(r"[0-9]{1,5}(\.[0-9]{1,5}){0,2}", text):
        raise MisfitError("should be 1 to 3 numbers with dots, as 17.4")
    return tuple(int(part) for part in text.split("."))


def plain(value: Any) -> Any:
    """Returns a value as JSON would have it: a time or a word that YAML knows otherwise stays a text."""
    if isinstance(value, list):
        return [plain(child) for child in value]
    if isinstance(value, dict):
        return {key: plain(child) for key, child in value.items()}
    if isinstance(value, Unquoted):
        if value.lower() in _FLAGS:
            return _FLAGS[value.lower()]
        return int(value) if _DECIMAL.fullmatch(value) else str(value)
    return value


def new_id(taken: set[str], kind: str) -> Parser:
    """Returns a parser of ids that are not taken yet; each is taken from then on."""

    def parse(value: Any) -> str:
        text = parse_id(value)
        if text in taken:
            raise MisfitError(f"there is a {kind} {text!r} already")
        taken.add(text)
        return text

    return parse


def known_id(known: set[str], kind: str) -> Parser:
    """Returns a parser of ids that the file has defined."""

    def parse(value: Any) -> str:
        if (text := parse_id(value)) not in known:
            raise MisfitError(f"there is no {kind} {text!r}")
        return text

    return parse


def one_of(choices: Iterable[str]) -> Parser:
    """Returns a parser of these words."""
    by_name: dict[str, str] = {str(choice): choice for choice in choices}

    def parse(value: Any) -> str:
        if (text := parse_text(value)) not in by_name:
            raise MisfitError(f"should be one of {', '.join(by_name)}")
        return by_name[text]

    return parse


def duration_in(allowed: Range, words: Mapping[str, int | None]) -> Parser:
    """Returns a parser of durations in a range: microseconds, or the value of a word that has one."""

    def parse(value: Any) -> int | None:
        text = parse_text(value)
        if text in words:
            return words[text]
        try:
            length_us = parse_duration(text)
        except ValueError:
            examples = ", ".join(("30s", "15m", "24h", "7d", *words))
            raise MisfitError(f"{text!r} is not a duration such as {examples}") from None
        if not allowed.min_s * SECOND_US <= length_us <= allowed.max_s * SECOND_US:
            raise MisfitError(f"{text} is out of range: must be {allowed.text}")
        return length_us

    return parse
