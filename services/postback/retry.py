"""What an answer means, and when to try again (domain rules: success, retry on what, on which schedule)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import assert_never

SCHEDULE_S = (5, 30, 120, 600, 1800, 3600, 7200, 14400, 28800, 43200)
"""The longest wait after the first, second, … failure; the wait is drawn evenly from 0 to it (full jitter)."""
LONGEST_ASKED_S = 43_200
"""An endpoint can ask for no longer a wait than the schedule's longest."""
MOST_INTERRUPTIONS = 10
"""An attempt that this service did not survive is no failure of the endpoint's, but neither repeated for ever."""

_RETRIED = frozenset({408, 423, 425, 429})


class Failure(StrEnum):
    """Why there was no whole answer."""

    TIMEOUT = "TIMEOUT"
    CONNECTION_FAILED = "CONNECTION_FAILED"
    ADDRESS_FORBIDDEN = "ADDRESS_FORBIDDEN"
    SANDBOX = "SANDBOX"


class Next(StrEnum):
    """What follows an attempt."""

    DONE = "DONE"
    RETRY = "RETRY"
    GIVE_UP = "GIVE_UP"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """`word` is the stable verdict kept with the attempt."""

    word: str
    next: Next
    pauses_configuration: bool = False


def judge(*, status_code: int, failure: Failure | None, body: str, success_substring: str) -> Verdict:
    """The verdict on an attempt. Success: a 2xx status, and `success_substring` in the body when it is not empty.

    Tried again: no whole answer, 408, 423, 425, 429, 5xx. All else is for good: a redirect is never followed, and 410
    also pauses the configuration.
    """
    if failure is not None:
        match failure:
            case Failure.TIMEOUT | Failure.CONNECTION_FAILED:
                return Verdict(word=failure, next=Next.RETRY)
            case Failure.ADDRESS_FORBIDDEN | Failure.SANDBOX:
                return Verdict(word=failure, next=Next.GIVE_UP)
            case _:
                assert_never(failure)
    if 200 <= status_code < 300:
        if success_substring in body:
            return Verdict(word="DELIVERED", next=Next.DONE)
        return Verdict(word="BODY_MISMATCH", next=Next.GIVE_UP)
    if 300 <= status_code < 400:
        return Verdict(word="REDIRECT", next=Next.GIVE_UP)
    if status_code in _RETRIED or status_code >= 500:
        return Verdict(word="HTTP_STATUS", next=Next.RETRY)
    return Verdict(word="HTTP_STATUS", next=Next.GIVE_UP, pauses_configuration=status_code == 410)


def next_attempt(*, failures: int, retry_attempts: int, jitter: float, asked_s: float = 0.0) -> float | None:
    """Seconds until the next attempt after `failures` (1 or more) failed ones; None when no try is left.

    `jitter` is drawn evenly from [0, 1). The endpoint's wish `asked_s` is the least wait, up to 12 hours.
    """
    if failures > retry_attempts:
        return None
    longest = SCHEDULE_S[min(failures, len(SCHEDULE_S)) - 1]
    return max(longest * jitter, min(asked_s, LONGEST_ASKED_S))


def asked_wait(*, status_code: int, headers: Mapping[str, str], now_s: float) -> float:
    """Seconds an answer asks to wait, 0 or more: `Retry-After` (seconds or a date), and of a 429 `x-rate-limit-reset`.

    Headers by lower-case name; `now_s` and `x-rate-limit-reset` in seconds since 1970. Nonsense asks nothing.
    """
    asked = _retry_after(headers.get("retry-after", ""), now_s)
    if status_code == 429:  # others send it with every answer, as information
        asked = max(asked, _number(headers.get("x-rate-limit-reset", "")) - now_s)
    return max(0.0, asked)


def _retry_after(text: str, now_s: float) -> float:
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return _number(text)
    # A date without a zone means UTC, as every HTTP date does.
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now_s


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        return 0.0
    return number if math.isfinite(number) else 0.0
