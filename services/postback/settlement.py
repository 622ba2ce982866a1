"""The settlement of an attempt: the next state of its delivery, and the record that is kept."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import quote, quote_plus

from libs.time import SECOND_US, to_duration, to_timestamp
from reengage.postback.v1.claim_pb2 import Claim
from reengage.postback.v1.delivery_pb2 import Attempt
from reengage.postback.v1.method_pb2 import Method
from services.postback import retry
from services.postback.adapters.adapter import Request
from services.postback.macros import MASK
from services.postback.model import Configuration, Leased, Settled, State
from services.postback.wire import verdict_of

MAX_KEPT_CHARACTERS = 4096
"""Of an answer's body; and of its headers, names and all."""
MAX_HEADER_CHARACTERS = 512
MAX_REQUEST_CHARACTERS = 16_384
"""Of a request's URL, and of its body."""
_TELLING_HEADERS = ("retry-after", "location", "content-type", "www-authenticate")
_TELLING_PREFIXES = ("x-rate-limit", "x-account-rate-limit", "x-request-id", "x-transaction-id")
_GIVEN_UP = {retry.Word.INTERRUPTED: State.EXHAUSTED, retry.Word.SUPERSEDED: State.SUPERSEDED}
"""The ends of what is given up; else the endpoint, or what it needs, has refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """A request, its secrets masked, and what became of it. `secrets` are those it was made with."""

    shown: Request
    secrets: Mapping[str, str] = field(repr=False)
    answer: retry.Answer
    verdict: retry.Verdict
    network_claim: Claim | None
    detail: str = ""
    """The missing things, for people."""
    version: int = 0
    """The version of the decision that the request told."""


def settlement(
    configuration: Configuration, leased: Leased, exchange: Exchange, *, took_us: int, jitter: float
) -> Settled:
    """Returns what an attempt, which took so long, makes of its delivery. `jitter` is drawn evenly from [0, 1)."""
    end_us = leased.leased_us + took_us
    state, wait_us = _next(configuration, leased, exchange, end_us, jitter)
    attempt = _record(exchange)
    attempt.start_time.CopyFrom(to_timestamp(leased.leased_us))
    attempt.duration.CopyFrom(to_duration(took_us))
    attempt.redelivery_count = leased.redelivery_count
    if state is State.PENDING:
        attempt.will_retry = True
        attempt.next_attempt_time.CopyFrom(to_timestamp(end_us + wait_us))
    return Settled(
        leased=leased,
        state=state,
        wait_us=wait_us,
        verdict=attempt.verdict,
        attempt=attempt.SerializeToString(),
        pauses_configuration=exchange.verdict.pauses_configuration,
        network_claim=exchange.network_claim.SerializeToString() if exchange.network_claim else None,
    )


def _next(
    configuration: Configuration, leased: Leased, exchange: Exchange, end_us: int, jitter: float
) -> tuple[State, int]:
    """Returns the state of the delivery, and the time until its next attempt while it is PENDING."""
    match exchange.verdict.next:
        case retry.Next.DONE:
            return State.DELIVERED, 0
        case retry.Next.GIVE_UP:
            return _GIVEN_UP.get(exchange.verdict.word, State.REFUSED), 0
        case retry.Next.RETRY:
            wait_s = retry.next_attempt(
                failures=leased.failure_count + 1,
                retry_attempts=configuration.retry_attempts,
                jitter=jitter,
                asked_s=retry.asked_wait(exchange.answer, end_us / SECOND_US),
                quick_s=retry.QUICK_TRIES_S if configuration.makes_quick_tries else (),
            )
            return (State.EXHAUSTED, 0) if wait_s is None else (State.PENDING, round(wait_s * SECOND_US))


def _record(exchange: Exchange) -> Attempt:
    shown, answer, hide = exchange.shown, exchange.answer, _scrubber(exchange.secrets)
    headers = _kept({hide(name): hide(value) for name, value in answer.headers.items()})
    return Attempt(
        method=Method.Value(f"METHOD_{shown.method}"),
        url=shown.url[:MAX_REQUEST_CHARACTERS],
        request_headers=shown.headers,
        request_body=shown.body[:MAX_REQUEST_CHARACTERS],
        status_code=answer.status_code,
        response_headers=headers,
        dropped_response_header_count=len(answer.headers) - len(headers),
        response_body=hide(answer.body)[:MAX_KEPT_CHARACTERS],
        verdict=verdict_of(exchange.verdict.word),
        detail=exchange.detail,
        decision_version=exchange.version,
    )


def _kept(headers: Mapping[str, str]) -> dict[str, str]:
    """Returns the headers that are kept: an endpoint may send a megabyte of them with each answer."""
    kept, left = dict[str, str](), MAX_KEPT_CHARACTERS
    for name, value in sorted(headers.items(), key=lambda header: not _is_telling(header[0])):
        shown = value if len(value) <= MAX_HEADER_CHARACTERS else f"{value[:MAX_HEADER_CHARACTERS]}…"
        if len(name) + len(shown) <= left:
            kept[name] = shown
            left -= len(name) + len(shown)
    return kept


def _is_telling(name: str) -> bool:
    return name in _TELLING_HEADERS or name.startswith(_TELLING_PREFIXES)


def _scrubber(secrets: Mapping[str, str]) -> Callable[[str], str]:
    """Returns a function that hides secrets in what an endpoint answers: some echo what they were sent."""
    forms = {
        form
        for value in secrets.values()
        for form in (value, quote(value, safe=""), quote(value), quote_plus(value), json.dumps(value)[1:-1])
    }
    longest_first = sorted(forms, key=len, reverse=True)  # one may hold another

    def hide(text: str) -> str:
        for form in longest_first:
            text = text.replace(form, MASK)
        # What was no text came as lone surrogates.
        return text.encode(errors="replace").decode()

    return hide
