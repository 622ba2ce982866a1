"""Claims of self-attributing networks (E1 to E4): requested before a conversion is decided, handed to who waits."""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import assert_never
from uuid import UUID

import structlog
from prometheus_client import Counter

from libs.broadcast import within
from libs.time import is_plausible
from reengage.postback.v1 import claim_pb2, conversion_pb2
from reengage.postback.v1.delivery_pb2 import Attempt
from services.postback.adapters.adapter import best_claim
from services.postback.configurations import Configurations
from services.postback.delivery import delivery_id
from services.postback.model import Configuration, NetworkAnswer, State, Status
from services.postback.selection import withheld
from services.postback.storage.claims import ClaimStore

POLL_INTERVAL_S = 0.25
"""Another process may be the one that hears the answer."""
RECHECK_INTERVAL_S = 5.0

IMPOSSIBLE_TIME = "its claim names a time at which nobody engaged"

ClaimAnswer = claim_pb2.ClaimAnswer

# Of several configurations of one network the first of these is its answer: one claim is enough, and while one may
# still come, its network has not answered.
_BEST_FIRST = (
    ClaimAnswer.STATE_CLAIMED,
    ClaimAnswer.STATE_PENDING,
    ClaimAnswer.STATE_NOT_CLAIMED,
    ClaimAnswer.STATE_UNAVAILABLE,
    ClaimAnswer.STATE_NOT_ASKED,
)

_late = Counter("postback_claims_late_total", "Claims that came after their conversion was decided.")
_log = structlog.get_logger()


class Endings:
    """The ends of this process's deliveries, told to those who wait for them."""

    def __init__(self) -> None:
        self._waiters: set[_Waiter] = set()

    def note(self, delivery_ids: Iterable[UUID]) -> None:
        """Tells all who wait which have ended."""
        ended = set(delivery_ids)
        for one in self._waiters:
            one.end(ended)

    @contextmanager
    def waiter(self) -> Iterator["_Waiter"]:
        """Yields a place to wait at, for as long as the context lasts."""
        one = _Waiter()
        self._waiters.add(one)
        try:
            yield one
        finally:
            self._waiters.discard(one)


class _Waiter:
    def __init__(self) -> None:
        self._left: set[UUID] = set()
        self._none_left = asyncio.Event()

    def expect(self, delivery_ids: Iterable[UUID]) -> None:
        """Waits for these from now on."""
        self._left = set(delivery_ids)
        self._none_left.clear()

    def end(self, delivery_ids: set[UUID]) -> None:
        """Waits for these no more, whether they ended or had ended before."""
        self._left -= delivery_ids
        if not self._left:
            self._none_left.set()

    async def all(self, seconds: float) -> None:
        """Returns when all have ended, or time is up."""
        await within(self._none_left, seconds)


class Claims:
    """The answers of networks to claim requests; `endings` hears from the worker that sends them."""

    def __init__(self, store: ClaimStore, configurations: Configurations, endings: Endings) -> None:
        self._store, self._configurations, self._endings = store, configurations, endings

    async def answers(
        self, conversions: Sequence[conversion_pb2.Conversion], wait_s: float
    ) -> list[claim_pb2.ConversionClaims]:
        """Returns the answers of every network asked about each conversion, as far as they come within `wait_s`."""
        asked = [list(self._asked(conversion)) for conversion in conversions]
        known = await self._known([(one.configuration_id, id_) for those in asked for one, id_ in those], wait_s)
        return [
            claim_pb2.ConversionClaims(
                app_id=conversion.decision.app_id,
                conversion_id=conversion.decision.conversion_id,
                answers=_by_network(
                    answer for one, id_ in those if (answer := _answer(one, conversion, known.get(id_))) is not None
                ),
            )
            for conversion, those in zip(conversions, asked, strict=True)
        ]

    async def triggers(self) -> AsyncGenerator[claim_pb2.WatchClaimTriggersResponse, None]:
        """Yields what claims are to be requested for, now and whenever that changes, without end."""
        told = None
        while True:
            change = self._configurations.next_change()  # before reading, so that none comes between
            triggers = self._configurations.claim_triggers()
            if triggers != told:
                yield claim_pb2.WatchClaimTriggersResponse(
                    triggers=[
                        claim_pb2.ClaimTrigger(app_id=app_id, event_name=trigger, network_id=network_id)
                        for app_id, trigger, network_id in triggers
                    ]
                )
                told = triggers
            await within(change, RECHECK_INTERVAL_S)

    def _asked(self, conversion: conversion_pb2.Conversion) -> Iterator[tuple[Configuration, UUID]]:
        """Yields each configuration that may ask (paused and archived ones too), with the delivery that would."""
        decision = conversion.decision
        for one in self._configurations.triggered(decision.app_id, decision.event_name):
            if one.is_claim_capable:
                yield one, delivery_id(one.configuration_id, decision.app_id, decision.conversion_id)

    async def _known(self, asked: Sequence[tuple[str, UUID]], wait_s: float) -> dict[UUID, NetworkAnswer]:
        give_up = time.monotonic() + wait_s
        known: dict[UUID, NetworkAnswer] = {}
        left = asked
        with self._endings.waiter() as waiter:
            while left:
                waiter.expect(identity for _, identity in left)
                found = await self._store.answers(left)
                ended = {identity for _, identity in left if not _is_pending(found.get(identity))}
                # Those that were not asked, or have been erased, end without an answer.
                known |= {identity: found[identity] for identity in ended & found.keys()}
                left = [one for one in left if one[1] not in ended]
                left_s = give_up - time.monotonic()
                if left_s <= 0:
                    return known | {identity: found[identity] for _, identity in left}
                waiter.end(ended)
                await waiter.all(min(left_s, POLL_INTERVAL_S))
        return known


def note_late(delivery_id: UUID, configuration_id: str) -> None:
    """Counts and logs a claim that changes nothing any more (E4)."""
    _late.inc()
    _log.info("claim.late", delivery_id=str(delivery_id), configuration_id=configuration_id)


def _is_pending(answer: NetworkAnswer | None) -> bool:
    return answer is not None and answer.state is State.PENDING and answer.network_claim is None


def _by_network(answers: Iterable[claim_pb2.ClaimAnswer]) -> list[claim_pb2.ClaimAnswer]:
    by_network: dict[str, list[claim_pb2.ClaimAnswer]] = {}
    for answer in answers:
        by_network.setdefault(answer.network_id, []).append(answer)
    return [_best(by_network[network_id]) for network_id in sorted(by_network)]


def _best(answers: Sequence[claim_pb2.ClaimAnswer]) -> claim_pb2.ClaimAnswer:
    """Returns the answer of one network, of those that its configurations got."""
    claims = [answer for answer in answers if answer.state == ClaimAnswer.STATE_CLAIMED]
    if claims:
        claim = best_claim(answer.claim for answer in claims)
        return next(answer for answer in claims if answer.claim == claim)
    return min(answers, key=lambda answer: _BEST_FIRST.index(answer.state))


def _answer(
    configuration: Configuration, conversion: conversion_pb2.Conversion, known: NetworkAnswer | None
) -> claim_pb2.ClaimAnswer | None:
    """Returns the answer that a configuration got; None when nobody asks with it (any more)."""
    answer = ClaimAnswer(network_id=configuration.network_id)
    if known is None:
        reason = _reason_not_asked(configuration, conversion)
        if reason is None:
            return None
        answer.state, answer.reason = ClaimAnswer.STATE_NOT_ASKED, reason
        return answer
    answer.delivery_id = str(known.delivery_id)
    if known.network_claim is not None:
        answer.claim.MergeFromString(known.network_claim)
        if is_plausible(answer.claim.engagement_time):
            answer.state = ClaimAnswer.STATE_CLAIMED
        else:  # of a release that took it
            answer.ClearField("claim")
            answer.state, answer.reason = ClaimAnswer.STATE_UNAVAILABLE, ClaimAnswer.REASON_BODY_MISMATCH
            answer.detail = IMPOSSIBLE_TIME
        return answer
    match known.state:
        case State.DELIVERED:
            answer.state = ClaimAnswer.STATE_NOT_CLAIMED
            return answer
        case State.PENDING:
            answer.state = ClaimAnswer.STATE_PENDING
        case State.REFUSED | State.EXHAUSTED | State.SUPERSEDED:
            answer.state = ClaimAnswer.STATE_UNAVAILABLE
        case _:
            assert_never(known.state)
    answer.reason = _reason_unanswered(configuration, known)
    last = Attempt.FromString(known.last_attempt or b"")
    answer.status_code, answer.detail = last.status_code, last.detail
    return answer


def _reason_not_asked(
    configuration: Configuration, conversion: conversion_pb2.Conversion
) -> claim_pb2.ClaimAnswer.Reason.ValueType | None:
    """Returns why no delivery was made; None when the configuration is archived, or the delivery was erased."""
    match configuration.status:
        case Status.PAUSED:
            return ClaimAnswer.REASON_PAUSED
        case Status.LIVE if (why := withheld(configuration, conversion)) is not None:
            return ClaimAnswer.Reason.Value(f"REASON_{why}")
        case Status.LIVE | Status.ARCHIVED:
            return None
        case _:
            assert_never(configuration.status)


def _reason_unanswered(configuration: Configuration, known: NetworkAnswer) -> claim_pb2.ClaimAnswer.Reason.ValueType:
    if known.state is State.SUPERSEDED:
        return ClaimAnswer.REASON_SUPERSEDED
    if known.state is State.PENDING and configuration.status is Status.PAUSED and not known.is_under_way:
        return ClaimAnswer.REASON_PAUSED
    if known.last_verdict is not None:
        verdict = Attempt.Verdict.Name(Attempt.Verdict.ValueType(known.last_verdict))
        return ClaimAnswer.Reason.Value(verdict.replace("VERDICT_", "REASON_"))
    return ClaimAnswer.REASON_UNDER_WAY if known.is_under_way else ClaimAnswer.REASON_QUEUED
