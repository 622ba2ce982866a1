"""Sentences that tell people what networks said of a conversion, or why they said nothing, and what to do about it."""

from collections.abc import Iterable, Iterator, Mapping

from libs.messages import short_name
from reengage.postback.v1 import claim_pb2

Answer = claim_pb2.ClaimAnswer

_WHY: Mapping[int, tuple[str, str]] = {
    Answer.REASON_HTTP_STATUS: ("was asked, and refused with status {status_code}", ""),
    Answer.REASON_REDIRECT: ("was asked, and redirected the request, which is never followed", "Correct its address."),
    Answer.REASON_BODY_MISMATCH: ("was asked, and its answer could not be used{detail}", ""),
    Answer.REASON_TIMEOUT: ("was asked, and did not answer within the attempt_timeout of its configuration", ""),
    Answer.REASON_INTERRUPTED: ("was asked, and postback was stopped before it had heard the answer", ""),
    Answer.REASON_UNDER_WAY: ("was asked, and had not answered when the time was up (REENGAGE_CLAIM_WAIT_S)", ""),
    Answer.REASON_CONNECTION_FAILED: ("could not be asked: there was no connection to it, or it broke", ""),
    Answer.REASON_POSTBACK_UNAVAILABLE: ("may not have been asked: postback did not answer attribution", ""),
    Answer.REASON_SUPERSEDED: ("may not have been asked: by a newer version of its decision it is no conversion", ""),
    Answer.REASON_ADDRESS_FORBIDDEN: (
        "was not asked: its host is private or its port unusual",
        "Name the host in REENGAGE_ALLOWED_HOSTS of postback, if it is to be reached.",
    ),
    Answer.REASON_SANDBOX: (
        "was not asked: the app is a sandbox, and REENGAGE_ALLOWED_HOSTS of postback does not name its host",
        "",
    ),
    Answer.REASON_NOT_RENDERED: ("was not asked: the request could not be made{detail}", ""),
    Answer.REASON_NO_CREDENTIALS: (
        "was not asked: it lacks credentials{detail}",
        "Give them to the SAN account, or to the configuration.",
    ),
    Answer.REASON_CREDENTIALS_UNAVAILABLE: (
        "was not asked: its credentials could not be read{detail}",
        "Postback must reach tracker, and both must have the same REENGAGE_POSTBACK_KEY.",
    ),
    Answer.REASON_QUEUED: (
        "was not asked: its turn had not come when the time was up",
        "Raise deliveries_per_second of its configuration, or run more replicas of postback.",
    ),
    Answer.REASON_PAUSED: ("was not asked: its configuration is paused", "Set it LIVE."),
    Answer.REASON_REFUND: ("was not asked: the amount is negative, and no network is told of a refund", ""),
    Answer.REASON_COUNTRY: ("was not asked: its configuration does not want conversions from this country", ""),
    Answer.REASON_DATA_CONTROLLED: (
        "was not asked: the user controls their data, which its configuration respects",
        "",
    ),
}
"""Cause and remedy, in words. None says that a network was asked when nothing was sent to it."""


def claim_sentences(answers: Iterable[claim_pb2.ClaimAnswer]) -> Iterator[str]:
    """Yields what is told of each network that made no claim: it claims nothing, gave no answer, or was not asked (E4).

    A claim is a candidate, and told of as one.
    """
    for answer in answers:
        if answer.state == Answer.STATE_NOT_CLAIMED:
            yield f"{answer.network_id} was asked, and claims nothing."
        elif answer.state in (Answer.STATE_UNAVAILABLE, Answer.STATE_NOT_ASKED):
            yield _without(answer)


def _without(answer: claim_pb2.ClaimAnswer) -> str:
    """Says why a conversion was decided without a network's answer."""
    name = short_name(Answer.Reason.DESCRIPTOR, answer.reason)  # one of a newer release
    what, remedy = _WHY.get(answer.reason, (f"gave no usable answer in time ({name or 'no reason is known'})", ""))
    detail = f" ({answer.detail})" if answer.detail else ""
    delivery = f"; see delivery {answer.delivery_id}" if answer.delivery_id else ""
    said = what.format(status_code=answer.status_code, detail=detail)
    advice = _of_status(answer.status_code) if answer.reason == Answer.REASON_HTTP_STATUS else remedy
    return " ".join(
        filter(None, (f"{answer.network_id} {said}{delivery}.", advice, "This was decided without its answer."))
    )


def _of_status(status_code: int) -> str:
    if status_code in (401, 403):
        return "Check the credentials of the SAN account, or of the configuration."
    if status_code == 429:
        return "It is asked too often: lower deliveries_per_second of its configuration."
    return ""
