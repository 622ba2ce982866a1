"""Sends what is due: leases deliveries, makes their requests side by side, settles them in batches."""

import asyncio
import math
import time
from collections import Counter as Tally
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from uuid import UUID

import structlog
from prometheus_client import Counter, Gauge, Histogram

from libs.broadcast import within
from libs.db import DATABASE_AWAY
from libs.parts import PART_BYTES
from libs.time import SECOND_US, is_plausible
from libs.worker import keep_running
from reengage.postback.v1 import conversion_pb2
from reengage.postback.v1.delivery_pb2 import Attempt
from services.postback import retry
from services.postback.adapters.adapter import NotRenderableError, Request, Stamp
from services.postback.claims import IMPOSSIBLE_TIME, Endings, note_late
from services.postback.configurations import Configurations
from services.postback.delivery import requests
from services.postback.model import Configuration, Leased, LeaseRequest, Settled, State
from services.postback.retry import Answer
from services.postback.san_accounts import CredentialsMissingError, CredentialsUnavailableError, SanAccounts
from services.postback.sender import Sender
from services.postback.settlement import Exchange, settlement
from services.postback.storage.queue import Queue

POLL_INTERVAL_S = 0.1
LEASE_MARGIN_S, CLAIM_LEASE_MARGIN_S = 15.0, 5.0
"""Beyond an attempt's timeout: for settling it, though the database be away for a moment. A claim cannot wait."""
DRAIN_S = 5.0
GATHER_S = 0.01
"""The time in which more can come due, or end, before it is leased or settled: batches cost the database less."""
MAX_SETTLED_AT_ONCE = 500

_UNUSABLE = retry.Verdict(word=retry.Word.BODY_MISMATCH, next=retry.Next.GIVE_UP)
_UNREADABLE = retry.Verdict(word=retry.Word.BODY_MISMATCH, next=retry.Next.RETRY)

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 600.0)
_attempts = Counter("postback_attempts_total", "Attempts made, by verdict.", ["verdict"])
_ended = Counter("postback_deliveries_ended_total", "Deliveries that ended, by state.", ["state"])
_under_way = Gauge("postback_attempts_under_way", "Attempts being made.")
_waited = Histogram("postback_wait_seconds", "From the time a delivery was due to its attempt.", buckets=_SECONDS)
_took = Histogram("postback_attempt_seconds", "Time an attempt took.", buckets=_SECONDS)
_log = structlog.get_logger()


@dataclass(slots=True)
class _Bucket:
    """The tokens of one configuration's rate. It fills in a fifth of a second, so that a poll never finds it wasted."""

    per_second: int
    tokens: float
    filled: float

    def fill(self, now: float) -> int:
        capacity = max(1.0, self.per_second / 5)
        self.tokens = min(capacity, self.tokens + (now - self.filled) * self.per_second)
        self.filled = now
        return int(self.tokens)


class DeliveryWorker:
    """The loop that sends due deliveries, at most `in_flight` at a time, of one configuration at most `in_flight_each`.

    No more are begun while the conversions of those under way, and not settled yet, have `in_flight_bytes`.

    Several processes may do so at once. A rate limit holds for each process by itself.
    """

    def __init__(
        self,
        queue: Queue,
        configurations: Configurations,
        sender: Sender,
        accounts: SanAccounts,
        endings: Endings,
        *,
        jitter: Callable[[], float],
        stamp: Callable[[], Stamp],
        in_flight: int = 1024,
        in_flight_each: int = 64,
        in_flight_bytes: int = 32 * 1024 * 1024,
        drain_s: float = DRAIN_S,
    ) -> None:
        """Takes `jitter`, which draws evenly from [0, 1), and `stamp`, each another one; `endings` hears what ended.

        At a stop, attempts under way have `drain_s` to end, and as long again to be settled.
        """
        self._queue, self._configurations, self._sender, self._endings = queue, configurations, sender, endings
        self._accounts = accounts
        self._jitter, self._stamp, self._drain_s = jitter, stamp, drain_s
        self._in_flight, self._in_flight_each, self._in_flight_bytes = in_flight, in_flight_each, in_flight_bytes
        self._bytes = 0
        self._under_way: set[asyncio.Task[None]] = set()
        self._under_way_of: Tally[str] = Tally()
        self._leases: Tally[UUID] = Tally()
        self._buckets: dict[str, _Bucket] = {}
        self._scarce = False
        self._retries_at = 0.0
        self._finished: list[Settled] = []
        self._something_due, self._something_finished = asyncio.Event(), asyncio.Event()

    def wake(self) -> None:
        """Says that something may be due: it is looked for at once, not only at the next poll."""
        self._something_due.set()

    async def run(self) -> None:
        """Sends until cancelled; then lets the attempts under way end, and settles them.

        What cannot be settled then is sent again when its lease ends.
        """
        settling = asyncio.create_task(keep_running("settle", self._settle_finished))
        try:
            await keep_running("deliver", self._lease_due)
        finally:
            if self._under_way:
                await asyncio.wait(self._under_way, timeout=self._drain_s)
            for attempt in self._under_way:
                attempt.cancel()
            settling.cancel()
            await asyncio.gather(settling, *self._under_way, return_exceptions=True)
            try:
                async with asyncio.timeout(self._drain_s):
                    while self._finished:
                        await self._settle_finished()
            except Exception as error:  # the worker's edge: a stop is a stop
                _log.warning("deliveries.unsettled", count=len(self._finished), error=type(error).__name__)

    async def _lease_due(self) -> None:
        self._something_due.clear()
        await self._lease(retries=False)
        # First tries go first; and nobody waits to the millisecond for a second try.
        if time.monotonic() >= self._retries_at:
            self._retries_at = time.monotonic() + POLL_INTERVAL_S
            await self._lease(retries=True)
        if await within(self._something_due, POLL_INTERVAL_S):
            await asyncio.sleep(GATHER_S)

    async def _lease(self, *, retries: bool) -> None:
        wanted = self._lease_requests() if self._bytes < self._in_flight_bytes else []
        if wanted:
            leasing = asyncio.ensure_future(
                self._queue.lease(
                    wanted,
                    limit=self._free,
                    retries=retries,
                    max_bytes=min(PART_BYTES, self._in_flight_bytes - self._bytes),
                    under_way=self._leases.keys(),
                )
            )
            try:
                leased = await asyncio.shield(leasing)
            except asyncio.CancelledError:
                # What is leased by now would else wait for its lease to end; but a stop is a stop, whatever fails.
                with suppress(Exception):
                    self._begin_all(await asyncio.wait_for(leasing, self._drain_s))
                raise
            self._begin_all(leased)
        # What is left in the queue then, only the end of an attempt makes room for.
        self._scarce = self._free <= 0 or max(self._under_way_of.values(), default=0) >= self._in_flight_each

    @property
    def _free(self) -> int:
        return self._in_flight - len(self._under_way)

    def _lease_requests(self) -> list[LeaseRequest]:
        """Returns a request for each configuration that there is room for."""
        now = time.monotonic()
        wanted = []
        for one in self._configurations.sendable():
            identity = one.configuration_id
            room = min(self._free, self._in_flight_each - self._under_way_of[identity], self._tokens(one, now))
            if room > 0:
                is_claim = one.is_claim_capable
                length_us = round((one.timeout_s + (CLAIM_LEASE_MARGIN_S if is_claim else LEASE_MARGIN_S)) * SECOND_US)
                wanted.append(
                    LeaseRequest(configuration_id=identity, room=room, length_us=length_us, is_claim=is_claim)
                )
        # When all room is scarce, nobody is always the last in the row; but somebody waits for the answer to a claim.
        first = math.floor(self._jitter() * len(wanted))
        return sorted(wanted[first:] + wanted[:first], key=lambda one: not one.is_claim)

    def _tokens(self, configuration: Configuration, now: float) -> int:
        rate = configuration.deliveries_per_second
        if not rate:
            return self._in_flight
        bucket = self._buckets.get(configuration.configuration_id)
        if bucket is None or bucket.per_second != rate:
            bucket = self._buckets[configuration.configuration_id] = _Bucket(rate, 1.0, now)
        return bucket.fill(now)

    def _begin_all(self, leased: Sequence[Leased]) -> None:
        for one in leased:
            self._begin(one)

    def _begin(self, leased: Leased) -> None:
        configuration = self._configurations.get(leased.configuration_id)
        if configuration is None:
            return  # a newer release gave it an adapter that this one does not know: that sends it when the lease ends
        # A limit that was set while this was being leased has no bucket yet.
        if configuration.deliveries_per_second and (bucket := self._buckets.get(leased.configuration_id)):
            bucket.tokens -= 1
        _waited.observe(leased.waited_us / SECOND_US)
        task = asyncio.create_task(self._attempt(configuration, leased))
        self._under_way.add(task)
        self._under_way_of[leased.configuration_id] += 1
        self._leases[leased.lease_id] += 1
        self._bytes += len(leased.conversion)
        _under_way.inc()
        task.add_done_callback(lambda done: self._end(done, leased))

    def _end(self, task: "asyncio.Task[None]", leased: Leased) -> None:
        self._under_way.discard(task)
        self._under_way_of[leased.configuration_id] -= 1
        _under_way.dec()
        if self._scarce:
            self._something_due.set()

    async def _attempt(self, configuration: Configuration, leased: Leased) -> None:
        began = time.monotonic()
        if leased.number - 1 - leased.failure_count > retry.MAX_INTERRUPTIONS:
            exchange = _unsent(configuration, retry.Word.INTERRUPTED, retry.Next.GIVE_UP)
        elif leased.is_superseded:
            exchange = _unsent(configuration, retry.Word.SUPERSEDED, retry.Next.GIVE_UP)
        else:
            exchange = await self._exchange(configuration, leased)
        took_us = round((time.monotonic() - began) * SECOND_US)
        self._finished.append(_settled(configuration, leased, exchange, took_us=took_us, jitter=self._jitter()))
        self._something_finished.set()
        _attempts.labels(exchange.verdict.word).inc()
        _took.observe(took_us / SECOND_US)

    async def _exchange(self, configuration: Configuration, leased: Leased) -> Exchange:
        try:
            conversion = conversion_pb2.Conversion.FromString(leased.conversion)
            secrets = await self._accounts.secrets(configuration, conversion)
        except CredentialsMissingError as error:
            return _unsent(configuration, retry.Word.NO_CREDENTIALS, retry.Next.GIVE_UP, str(error))
        except CredentialsUnavailableError as error:
            return _unsent(configuration, retry.Word.CREDENTIALS_UNAVAILABLE, retry.Next.RETRY, str(error))
        except Exception as error:  # the worker's edge: one delivery's trouble is not the others'
            return _unsent(configuration, retry.Word.NOT_RENDERED, retry.Next.RETRY, _unhandled(leased, error))
        try:
            request, shown = requests(
                configuration, conversion, leased.delivery_id, secrets=secrets, stamp=self._stamp()
            )
        except NotRenderableError as error:
            return _unsent(configuration, retry.Word.NOT_RENDERED, retry.Next.GIVE_UP, str(error))
        except Exception as error:  # the same conversion would never make another request
            return _unsent(configuration, retry.Word.NOT_RENDERED, retry.Next.GIVE_UP, _unhandled(leased, error))
        answer, detail = await self._answer(configuration, leased, request, sandbox=conversion.names.sandbox)
        network_claim = None
        try:
            verdict = configuration.adapter.judge(answer)
            if verdict.next is retry.Next.DONE:
                network_claim = configuration.adapter.claim(answer.body)
                if network_claim is not None and not is_plausible(network_claim.engagement_time):
                    network_claim, verdict, detail = None, _UNUSABLE, IMPOSSIBLE_TIME
        except Exception as error:  # whatever it says, the endpoint had the request: the schedule is kept
            verdict, detail = _UNREADABLE, _unhandled(leased, error)
        return Exchange(
            shown=shown,
            secrets=secrets,
            answer=answer,
            verdict=verdict,
            network_claim=network_claim,
            detail=detail,
            version=conversion.decision.version,
        )

    async def _answer(
        self, configuration: Configuration, leased: Leased, request: Request, *, sandbox: bool
    ) -> tuple[Answer, str]:
        """Returns the endpoint's answer, and what could not be handled of it."""
        try:
            return await self._sender.send(request, timeout_s=configuration.timeout_s, sandbox=sandbox), ""
        except Exception as error:
            return Answer(failure=retry.Failure.CONNECTION_FAILED), _unhandled(leased, error)

    async def _settle_finished(self) -> None:
        if not self._finished:
            self._something_finished.clear()
            await self._something_finished.wait()
            await asyncio.sleep(GATHER_S)
        batch = self._finished[:MAX_SETTLED_AT_ONCE]
        decided = await self._settle(batch)
        # Only now: a batch that could not be settled is tried again, until its leases are long over.
        del self._finished[: len(batch)]
        self._leases -= Tally(one.leased.lease_id for one in batch)
        self._bytes -= sum(len(one.leased.conversion) for one in batch)
        self._endings.note(one.leased.delivery_id for one in batch if one.state is not State.PENDING)
        if any(one.pauses_configuration for one in batch):
            await self._configurations.refresh()
        _note(batch)
        for one in batch:
            if one.network_claim is not None and one.leased.delivery_id in decided:
                note_late(one.leased.delivery_id, one.leased.configuration_id)

    async def _settle(self, batch: Sequence[Settled]) -> set[UUID]:
        """Settles attempts; of those that the database refuses it drops none but the one that is refused.

        That one is sent again when its lease ends, until it is given up as interrupted.
        """
        try:
            return await self._queue.settle(batch)
        except DATABASE_AWAY:
            raise
        except Exception as error:  # the worker's edge, as above
            if len(batch) == 1:
                _unhandled(batch[0].leased, error)
                return set()
            middle = len(batch) // 2
            return await self._settle(batch[:middle]) | await self._settle(batch[middle:])


def _settled(
    configuration: Configuration, leased: Leased, exchange: Exchange, *, took_us: int, jitter: float
) -> Settled:
    try:
        return settlement(configuration, leased, exchange, took_us=took_us, jitter=jitter)
    except Exception as error:  # an answer that cannot be kept does not lose the attempt
        bare = replace(exchange, answer=Answer(), verdict=_UNREADABLE, detail=_unhandled(leased, error))
        return settlement(configuration, leased, bare, took_us=took_us, jitter=jitter)


def _unhandled(leased: Leased, error: Exception) -> str:
    """Logs a fault of this service, and returns it for people: its kind, as its text may quote what was to be sent."""
    kind = type(error).__name__
    _log.error("delivery.failed", delivery_id=str(leased.delivery_id), error=kind)
    return f"could not be handled ({kind})"


def _unsent(configuration: Configuration, word: retry.Word, following: retry.Next, detail: str = "") -> Exchange:
    """Returns an exchange without a request."""
    return Exchange(
        shown=Request(method=configuration.adapter.method, url="", headers={}, body=""),
        secrets={},
        answer=Answer(),
        verdict=retry.Verdict(word=word, next=following),
        network_claim=None,
        detail=detail,
    )


def _note(batch: Sequence[Settled]) -> None:
    for one in batch:
        if one.state is not State.PENDING:
            _ended.labels(one.state.name).inc()
        _log.info(
            "delivery.settled",
            delivery_id=str(one.leased.delivery_id),
            configuration_id=one.leased.configuration_id,
            attempt=one.leased.number,
            verdict=Attempt.Verdict.Name(Attempt.Verdict.ValueType(one.verdict)).removeprefix("VERDICT_"),
            state=one.state.name,
            retry_in_s=round(one.wait_us / SECOND_US, 1),
        )
