"""The meaning of an answer, and the time of the next try (rules: success, which failures are retried, the schedule)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import assert_never

from libs.numbers import read_number

SCHEDULE_S = (5, 30, 120, 600, 1800, 3600, 7200, 14400, 28800, 43200)
"""The longest wait after the first, second, … failure; the wait is drawn evenly from 0 to it (full jitter)."""
QUICK_TRIES_S = (1, 2, 5)
"""Before them and on top of them, where the answer is a claim: one that comes late is worth nothing (E4), but the
request is also the postback, whose tries a minute's trouble must not use up."""
MAX_ASKED_S = 43_200
"""An endpoint can ask for no longer a wait than the schedule's longest."""
MAX_INTERRUPTIONS = 10
"""An attempt that this service did not survive is no failure of the endpoint's, but neither repeated for ever."""

_RETRIED = frozenset({408, 423, 425, 429})
_RATE_LIMITS = ("x-rate-limit", "x-account-rate-limit")


class Word(StrEnum):
    """The stable word for what became of an attempt."""

    DELIVERED = "DELIVERED"
    HTTP_STATUS = "HTTP_STATUS"
    REDIRECT = "REDIRECT"
    BODY_MISMATCH = "BODY_MISMATCH"
    TIMEOUT = "TIMEOUT"
    CONNECTION_FAILED = "CONNECTION_FAILED"
    ADDRESS_FORBIDDEN = "ADDRESS_FORBIDDEN"
    SANDBOX = "SANDBOX"
    NOT_RENDERED = "NOT_RENDERED"
    INTERRUPTED = "INTERRUPTED"
    NO_CREDENTIALS = "NO_CREDENTIALS"
    CREDENTIALS_UNAVAILABLE = "CREDENTIALS_UNAVAILABLE"
    SUPERSEDED = "SUPERSEDED"


class Failure(StrEnum):
    """The reason for which there was no whole answer."""

    TIMEOUT = "TIMEOUT"
    CONNECTION_FAILED = "CONNECTION_FAILED"
    ADDRESS_FORBIDDEN = "ADDRESS_FORBIDDEN"
    SANDBOX = "SANDBOX"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An endpoint's answer; `status_code` is 0 when there was none. Headers by lower-case name."""

    status_code: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: str = ""
    """Its first 64 KB."""
    failure: Failure | None = None


class Next(StrEnum):
    """The step that follows an attempt."""

    DONE = "DONE"
    RETRY = "RETRY"
    GIVE_UP = "GIVE_UP"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The judgement of one attempt; `word` is kept with it."""

    word: Word
    next: Next
    pauses_configuration: bool = False


def judge(answer: Answer, *, success_substring: str = "") -> Verdict:
    """Returns the verdict on an attempt. Success is a 2xx status, and `success_substring` in the body.

    Tried again: no whole answer, 408, 423, 425, 429, 5xx. All else is for good: a redirect is never followed, and 410
    also pauses the configuration.
    """
    status_code = answer.status_code
    match answer.failure:
        case None:
            pass
        case Failure.TIMEOUT | Failure.CONNECTION_FAILED:
            return Verdict(word=Word(answer.failure), next=Next.RETRY)
        case Failure.ADDRESS_FORBIDDEN | Failure.SANDBOX:
            return Verdict(word=Word(answer.failure), next=Next.GIVE_UP)
        case _:
            assert_never(answer.failure)
    if 200 <= status_code < 300:
        if success_substring in answer.body:
            return Verdict(word=Word.DELIVERED, next=Next.DONE)
        return Verdict(word=Word.BODY_MISMATCH, next=Next.GIVE_UP)
    if 300 <= status_code < 400:
        return Verdict(word=Word.REDIRECT, next=Next.GIVE_UP)
    if status_code in _RETRIED or status_code >= 500:
        return Verdict(word=Word.HTTP_STATUS, next=Next.RETRY)
    return Verdict(word=Word.HTTP_STATUS, next=Next.GIVE_UP, pauses_configuration=status_code == 410)


def next_attempt(
    *,
    failures: int,
    retry_attempts: int,
    jitter: float,
    asked_s: float = 0.0,
    quick_s: Sequence[float] = (),
) -> float | None:
    """Returns the seconds until the next attempt after `failures` (1 or more) failed ones; None when no try is left.

    `jitter` is drawn evenly from [0, 1). The endpoint's wish `asked_s` is the least wait, up to 12 hours. `quick_s`
    are tries that come first and do not count.
    """
    schedule_s = (*quick_s, *SCHEDULE_S)
    if failures > retry_attempts + len(quick_s):
        return None
    longest = schedule_s[min(failures, len(schedule_s)) - 1]
    return max(longest * jitter, min(asked_s, MAX_ASKED_S))


def asked_wait(answer: Answer, now_s: float) -> float:
    """Returns the seconds that an answer asks to wait: `Retry-After` (seconds or a date), or the reset of a 429.

    `now_s`, `x-rate-limit-reset` and `x-account-rate-limit-reset` in seconds since 1970. Nonsense asks nothing.
    """
    asked = _retry_after(answer.headers.get("retry-after", ""), now_s)
    if answer.status_code == 429:  # others send them with every answer, as information
        asked = max(asked, *(_reset(answer.headers, limit) - now_s for limit in _RATE_LIMITS))
    return max(0.0, asked)


def _reset(headers: Mapping[str, str], limit: str) -> float:
    # Of several limits one was met: another that has calls left is not waited for.
    has_left = _number(headers.get(f"{limit}-remaining", "")) > 0
    return 0.0 if has_left else _number(headers.get(f"{limit}-reset", ""))


def _retry_after(text: str, now_s: float) -> float:
    try:
        date = parsedate_to_datetime(text)
        # A date without a zone means UTC, as every HTTP date does.
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now_s
    except (ValueError, OverflowError):  # no date, or one of another age
        return _number(text)


def _number(text: str) -> float:
    return float(read_number(text) or 0)
