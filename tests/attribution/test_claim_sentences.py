"""Sentences of explain on networks that made no claim: what happened, and the remedy."""

import pytest

from reengage.postback.v1 import claim_pb2
from services.attribution.queries.claim_sentences import claim_sentences

Answer = claim_pb2.ClaimAnswer
NOT_SENT = (
    *("CONNECTION_FAILED", "ADDRESS_FORBIDDEN", "SANDBOX", "NOT_RENDERED", "NO_CREDENTIALS", "CREDENTIALS_UNAVAILABLE"),
    *("QUEUED", "PAUSED", "REFUND", "COUNTRY", "DATA_CONTROLLED", "POSTBACK_UNAVAILABLE", "SUPERSEDED"),
)


def said(reason: str, *, state: int = Answer.STATE_UNAVAILABLE, status_code: int = 0, detail: str = "") -> str:
    answer = Answer(
        network_id="x-ios", state=Answer.State.ValueType(state), reason=Answer.Reason.Value(f"REASON_{reason}"),
        status_code=status_code, detail=detail, delivery_id="d1",
    )  # fmt: skip
    (sentence,) = claim_sentences([answer])
    return sentence


@pytest.mark.parametrize("name", Answer.Reason.keys()[1:])
def test_every_reason_is_told_and_nothing_that_was_not_sent_is_said_to_be_asked(name: str) -> None:
    reason = name.removeprefix("REASON_")
    sentence = said(reason, status_code=403, detail="a detail")
    assert sentence.startswith("x-ios ")
    assert sentence.endswith("This was decided without its answer.")
    assert reason not in sentence, "a reason is told in words"
    assert ("x-ios was asked" in sentence) is (reason not in NOT_SENT)
    assert "gave no usable answer" not in sentence


@pytest.mark.parametrize(
    ("reason", "more", "expected"),
    [
        (
            "HTTP_STATUS",
            {"status_code": 401},
            (
                "was asked, and refused with status 401; see delivery d1. Check the credentials of the SAN account, or "
                "of the configuration."
            ),
        ),
        (
            "HTTP_STATUS",
            {"status_code": 429},
            (
                "was asked, and refused with status 429; see delivery d1. It is asked too often: lower "
                "deliveries_per_second of its configuration."
            ),
        ),
        ("HTTP_STATUS", {"status_code": 503}, "was asked, and refused with status 503; see delivery d1."),
        (
            "NOT_RENDERED",
            {"detail": "no IDFA or advertising id, which X knows devices by"},
            (
                "was not asked: the request could not be made (no IDFA or advertising id, which X knows devices by); "
                "see delivery d1."
            ),
        ),
        (
            "NO_CREDENTIALS",
            {"detail": "no token: neither configuration k nor SAN account x1 has"},
            (
                "was not asked: it lacks credentials (no token: neither configuration k nor SAN account x1 has); see "
                "delivery d1. Give them to the SAN account, or to the configuration."
            ),
        ),
        ("PAUSED", {}, "was not asked: its configuration is paused; see delivery d1. Set it LIVE."),
    ],
)
def test_what_happened_and_what_to_do(reason: str, more: dict[str, object], expected: str) -> None:
    assert said(reason, **more) == f"x-ios {expected} This was decided without its answer."  # type: ignore[arg-type]


def test_of_answers_without_a_known_reason_it_is_said_that_there_is_none() -> None:
    """A newer postback may have reasons that this release does not know."""
    unknown = Answer(network_id="y", state=Answer.STATE_UNAVAILABLE, reason=Answer.Reason.ValueType(99))
    none = Answer(network_id="z", state=Answer.STATE_UNAVAILABLE)
    assert list(claim_sentences([unknown, none])) == [
        "y gave no usable answer in time (99). This was decided without its answer.",
        "z gave no usable answer in time (no reason is known). This was decided without its answer.",
    ]
