"""Verdicts on answers, and the schedule."""

from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.postback.retry import (
    MAX_ASKED_S,
    QUICK_TRIES_S,
    SCHEDULE_S,
    Answer,
    Failure,
    Next,
    asked_wait,
    judge,
    next_attempt,
)

NOW_S = 1_767_270_896.0


@pytest.mark.parametrize(
    ("status", "word", "following"),
    [
        *((status, "DELIVERED", Next.DONE) for status in (200, 201, 204, 299)),
        *((status, "REDIRECT", Next.GIVE_UP) for status in (300, 301, 302, 304, 307, 308)),
        *((status, "HTTP_STATUS", Next.RETRY) for status in (408, 423, 425, 429, 500, 502, 503, 504, 599)),
        *((status, "HTTP_STATUS", Next.GIVE_UP) for status in (400, 401, 403, 404, 409, 410, 422, 451)),
    ],
)
def test_status(status: int, word: str, following: Next) -> None:
    verdict = judge(Answer(status_code=status))
    assert (verdict.word, verdict.next, verdict.pauses_configuration) == (word, following, status == 410)


@pytest.mark.parametrize(
    ("failure", "following"),
    [
        (Failure.TIMEOUT, Next.RETRY),
        (Failure.CONNECTION_FAILED, Next.RETRY),
        (Failure.ADDRESS_FORBIDDEN, Next.GIVE_UP),
        (Failure.SANDBOX, Next.GIVE_UP),
    ],
)
def test_no_whole_answer(failure: Failure, following: Next) -> None:
    verdict = judge(Answer(status_code=200, failure=failure, body="success"), success_substring="success")
    assert (verdict.word.value, verdict.next) == (failure.value, following)


@pytest.mark.parametrize(
    ("status", "body", "word"),
    [
        (200, '{"message": "success"}', "DELIVERED"),
        (200, '{"message": "failed"}', "BODY_MISMATCH"),
        (500, '{"message": "success"}', "HTTP_STATUS"),
    ],
)
def test_success_substring(status: int, body: str, word: str) -> None:
    assert judge(Answer(status_code=status, body=body), success_substring='"success"').word == word


def test_quick_tries_come_first_and_use_up_none_of_the_others() -> None:
    def wait_s(failures: int) -> float | None:
        return next_attempt(failures=failures, retry_attempts=2, jitter=0.5, quick_s=QUICK_TRIES_S)

    assert [wait_s(failures) for failures in range(1, 7)] == [0.5, 1, 2.5, 2.5, 15, None]


@given(
    failures=st.integers(1, 20),
    retry_attempts=st.integers(0, 10),
    jitter=st.floats(0, 1, exclude_max=True),
    asked_s=st.floats(0, 1e9),
)
def test_schedule(failures: int, retry_attempts: int, jitter: float, asked_s: float) -> None:
    wait_s = next_attempt(failures=failures, retry_attempts=retry_attempts, jitter=jitter, asked_s=asked_s)
    if failures > retry_attempts:
        assert wait_s is None
        return
    assert wait_s is not None
    assert min(asked_s, MAX_ASKED_S) <= wait_s <= MAX_ASKED_S
    assert wait_s < SCHEDULE_S[failures - 1] or wait_s <= asked_s


@given(failures=st.integers(1, 10))
def test_jitter_spreads_from_nothing_to_the_whole(failures: int) -> None:
    waits = [next_attempt(failures=failures, retry_attempts=10, jitter=jitter) for jitter in (0.0, 0.5, 0.999999)]
    longest = SCHEDULE_S[failures - 1]
    assert waits == pytest.approx([0, longest / 2, longest], rel=1e-3)


@pytest.mark.parametrize(
    ("status", "headers", "seconds"),
    [
        (503, {"retry-after": "120"}, 120),
        (429, {"retry-after": format_datetime(datetime.fromtimestamp(NOW_S + 90, UTC), usegmt=True)}, 90),
        (429, {"retry-after": format_datetime(datetime.fromtimestamp(NOW_S - 90, UTC), usegmt=True)}, 0),
        (429, {"retry-after": "Thu, 01 Jan 2026 12:36:26"}, 90),
        (429, {"x-rate-limit-reset": str(int(NOW_S) + 60)}, 60),
        (429, {"x-rate-limit-reset": str(int(NOW_S) + 60), "retry-after": "90"}, 90),
        (429, {"x-account-rate-limit-reset": str(int(NOW_S) + 60), "x-account-rate-limit-remaining": "0"}, 60),
        (429, {"x-rate-limit-reset": str(int(NOW_S) + 60), "x-rate-limit-remaining": "1"}, 0),
        (500, {"x-rate-limit-reset": str(int(NOW_S) + 60)}, 0),
        (429, {"retry-after": "-5"}, 0),
        (429, {"retry-after": "soon"}, 0),
        (429, {"retry-after": "inf"}, 0),
        (429, {"retry-after": "nan"}, 0),
        (429, {"retry-after": "Mon, 99 Foo 2026 12:00:00 GMT"}, 0),
        (429, {}, 0),
    ],
)
def test_what_an_answer_asks_for(status: int, headers: dict[str, str], seconds: float) -> None:
    assert asked_wait(Answer(status_code=status, headers=headers), NOW_S) == pytest.approx(seconds)


@given(text=st.text(), reset=st.text())
def test_no_header_breaks_it(text: str, reset: str) -> None:
    assert asked_wait(Answer(status_code=429, headers={"retry-after": text, "x-rate-limit-reset": reset}), NOW_S) >= 0
