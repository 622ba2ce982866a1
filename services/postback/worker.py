"""Sends what is due: claims deliveries, makes their requests side by side, settles them in batches."""

import asyncio
import json
import math
import time
from collections import Counter as Tally
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import quote, quote_plus

import structlog
from prometheus_client import Counter, Gauge, Histogram

from libs.worker import keep_running
from reengage.postback.v1 import claim_pb2, conversion_pb2, delivery_pb2
from services.postback import retry
from services.postback.adapters.adapter import NotRenderableError, Request, Stamp
from services.postback.claims import Endings, note_late
from services.postback.configurations import Catalog
from services.postback.delivery import requests
from services.postback.macros import MASK
from services.postback.model import Asked, Claimed, Configuration, Settled, State
from services.postback.retry import Answer
from services.postback.sender import Sender
from services.postback.store import Store

POLL_S = 0.1
LEASE_MARGIN_S, CLAIM_LEASE_MARGIN_S = 15.0, 5.0
"""Beyond an attempt's timeout: for settling it, though the database be away for a moment. A claim cannot wait."""
DRAIN_S = 5.0
GATHER_S = 0.01
"""How long a claim waits for more to claim, and a settlement for more to settle: batches cost the database less."""
SETTLE_AT_ONCE = 500
KEPT_BODY = 4096

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 600.0)
_attempts = Counter("postback_attempts_total", "Attempts made, by verdict.", ["verdict"])
_ended = Counter("postback_deliveries_ended_total", "Deliveries that ended, by state.", ["state"])
_under_way = Gauge("postback_attempts_under_way", "Attempts being made.")
_waited = Histogram("postback_wait_seconds", "From the time a delivery was due to its attempt.", buckets=_SECONDS)
_took = Histogram("postback_attempt_seconds", "Time an attempt took.", buckets=_SECONDS)
_log = structlog.get_logger()


@dataclass(slots=True)
class _Bucket:
    """Tokens of one configuration's rate; it fills in a fifth of a second, so that a poll never finds it wasted."""

    per_second: int
    tokens: float
    filled: float

    def fill(self, now: float) -> int:
        most = max(1.0, self.per_second / 5)
        self.tokens = min(most, self.tokens + (now - self.filled) * self.per_second)
        self.filled = now
        return int(self.tokens)


class DeliveryWorker:
    """Sends due deliveries, at most `in_flight` at a time, of one configuration at most `in_flight_each`.

    Several processes may do so at once. A rate limit holds for each process by itself.
    """

    def __init__(
        self,
        store: Store,
        catalog: Catalog,
        sender: Sender,
        endings: Endings,
        *,
        jitter: Callable[[], float],
        stamp: Callable[[], Stamp],
        in_flight: int = 1024,
        in_flight_each: int = 64,
    ) -> None:
        """`jitter` draws evenly from [0, 1); each `stamp` is another one. `endings` hears what ended."""
        self._store, self._catalog, self._sender, self._endings = store, catalog, sender, endings
        self._jitter, self._stamp = jitter, stamp
        self._in_flight, self._in_flight_each = in_flight, in_flight_each
        self._under_way: set[asyncio.Task[None]] = set()
        self._under_way_of: Tally[str] = Tally()
        self._buckets: dict[str, _Bucket] = {}
        self._scarce = False
        self._retries_at = 0.0
        self._finished: list[Settled] = []
        self._something_due, self._something_finished = asyncio.Event(), asyncio.Event()

    def wake(self) -> None:
        """Say that something may be due: it is looked for at once, not only at the next poll."""
        self._something_due.set()

    async def run(self) -> None:
        """Send until cancelled; then let the attempts under way end, up to 5 s, and settle them, up to 5 s.

        What cannot be settled then is sent again when its lease ends.
        """
        settling = asyncio.create_task(keep_running("settle", self._settle_finished))
        try:
            await keep_running("deliver", self._claim_due)
        finally:
            if self._under_way:
                await asyncio.wait(self._under_way, timeout=DRAIN_S)
            for attempt in self._under_way:
                attempt.cancel()
            settling.cancel()
            await asyncio.gather(settling, *self._under_way, return_exceptions=True)
            try:
                async with asyncio.timeout(DRAIN_S):
                    while self._finished:
                        await self._settle_finished()
            except Exception as error:  # the worker's edge: a stop is a stop
                _log.warning("deliveries.unsettled", count=len(self._finished), error=type(error).__name__)

    async def _claim_due(self) -> None:
        self._something_due.clear()
        await self._claim(retries=False)
        # First tries go first; and nobody waits to the millisecond for a second try.
        if time.monotonic() >= self._retries_at:
            self._retries_at = time.monotonic() + POLL_S
            await self._claim(retries=True)
        try:
            await asyncio.wait_for(self._something_due.wait(), POLL_S)
        except TimeoutError:
            return
        await asyncio.sleep(GATHER_S)

    async def _claim(self, *, retries: bool) -> None:
        asked = self._asked()
        if asked:
            claiming = asyncio.ensure_future(self._store.claim(asked, limit=self._free, retries=retries))
            try:
                claimed = await asyncio.shield(claiming)
            except asyncio.CancelledError:
                # What is claimed by now would else wait for its lease to end; but a stop is a stop, whatever fails.
                with suppress(Exception):
                    self._begin_all(await asyncio.wait_for(claiming, DRAIN_S))
                raise
            self._begin_all(claimed)
        # What is left in the queue then, only the end of an attempt makes room for.
        self._scarce = self._free <= 0 or max(self._under_way_of.values(), default=0) >= self._in_flight_each

    @property
    def _free(self) -> int:
        return self._in_flight - len(self._under_way)

    def _asked(self) -> list[Asked]:
        """For how many deliveries there is room, of each configuration that has any."""
        now = time.monotonic()
        asked = []
        for one in self._catalog.sendable():
            identity = one.configuration_id
            room = min(self._free, self._in_flight_each - self._under_way_of[identity], self._tokens(one, now))
            if room > 0:
                is_claim = one.adapter.is_claim_capable
                lease_s = one.timeout_s + (CLAIM_LEASE_MARGIN_S if is_claim else LEASE_MARGIN_S)
                asked.append(Asked(configuration_id=identity, room=room, lease_s=lease_s, is_claim=is_claim))
        # When all room is scarce, nobody is always the last in the row; but somebody waits for the answer to a claim.
        first = math.floor(self._jitter() * len(asked))
        return sorted(asked[first:] + asked[:first], key=lambda one: not one.is_claim)

    def _tokens(self, configuration: Configuration, now: float) -> int:
        rate = configuration.deliveries_per_second
        if not rate:
            return self._in_flight
        bucket = self._buckets.get(configuration.configuration_id)
        if bucket is None or bucket.per_second != rate:
            bucket = self._buckets[configuration.configuration_id] = _Bucket(rate, 1.0, now)
        return bucket.fill(now)

    def _begin_all(self, claimed: Sequence[Claimed]) -> None:
        for one in claimed:
            self._begin(one)

    def _begin(self, claimed: Claimed) -> None:
        configuration = self._catalog.get(claimed.configuration_id)
        assert configuration is not None, "only known configurations are asked for"
        # A limit that was set while this was being claimed has no bucket yet.
        if configuration.deliveries_per_second and (bucket := self._buckets.get(claimed.configuration_id)):
            bucket.tokens -= 1
        _waited.observe(claimed.waited_s)
        task = asyncio.create_task(self._attempt(configuration, claimed))
        self._under_way.add(task)
        self._under_way_of[claimed.configuration_id] += 1
        _under_way.inc()
        task.add_done_callback(lambda done: self._end(done, claimed.configuration_id))

    def _end(self, task: "asyncio.Task[None]", configuration_id: str) -> None:
        self._under_way.discard(task)
        self._under_way_of[configuration_id] -= 1
        _under_way.dec()
        if self._scarce:
            self._something_due.set()

    async def _attempt(self, configuration: Configuration, claimed: Claimed) -> None:
        began = time.monotonic()
        answer, network_claim = Answer(), None
        shown = Request(method=configuration.adapter.method, url="", headers={}, body="")
        try:
            if claimed.number - 1 - claimed.failure_count > retry.MOST_INTERRUPTIONS:
                verdict = retry.Verdict(word="INTERRUPTED", next=retry.Next.GIVE_UP)
            else:
                conversion = conversion_pb2.Conversion.FromString(claimed.conversion)
                request, shown = requests(configuration, conversion, claimed.delivery_id, self._stamp())
                answer = await self._sender.send(
                    request, timeout_s=configuration.timeout_s, sandbox=conversion.names.sandbox
                )
                verdict = configuration.adapter.judge(answer)
                if verdict.next is retry.Next.DONE:
                    network_claim = configuration.adapter.claim(answer.body)
        except NotRenderableError:
            verdict = retry.Verdict(word="NOT_RENDERED", next=retry.Next.GIVE_UP)
        except Exception as error:  # the worker's edge: one delivery's trouble is not the others'
            # Its text may quote what was to be sent.
            _log.error("delivery.failed", delivery_id=str(claimed.delivery_id), error=type(error).__name__)
            verdict = retry.Verdict(word="NOT_RENDERED", next=retry.Next.RETRY)
        took_s = time.monotonic() - began
        self._finished.append(self._settled(configuration, claimed, shown, answer, verdict, network_claim, took_s))
        self._something_finished.set()

    def _settled(
        self,
        configuration: Configuration,
        claimed: Claimed,
        shown: Request,
        answer: Answer,
        verdict: retry.Verdict,
        network_claim: claim_pb2.Claim | None,
        took_s: float,
    ) -> Settled:
        state, wait_s = State.DELIVERED, 0.0
        now_s = claimed.claim_time.timestamp() + took_s
        if verdict.next is retry.Next.GIVE_UP:
            state = State.EXHAUSTED if verdict.word == "INTERRUPTED" else State.REFUSED
        elif verdict.next is retry.Next.RETRY:
            again_s = retry.next_attempt(
                failures=claimed.failure_count + 1,
                retry_attempts=configuration.retry_attempts,
                jitter=self._jitter(),
                asked_s=retry.asked_wait(answer, now_s),
                quick_s=retry.QUICK_TRIES_S if configuration.makes_quick_tries else (),
            )
            state, wait_s = (State.EXHAUSTED, 0.0) if again_s is None else (State.PENDING, again_s)
        hide = _scrubber(configuration.secrets)
        attempt = delivery_pb2.Attempt(
            method=shown.method,
            url=shown.url,
            request_headers=shown.headers,
            request_body=shown.body,
            status_code=answer.status_code,
            response_headers={hide(name): hide(value) for name, value in answer.headers.items()},
            response_body=hide(answer.body)[:KEPT_BODY],
            verdict=verdict.word,
            will_retry=state is State.PENDING,
            replay_count=claimed.replay_count,
        )
        attempt.start_time.FromDatetime(claimed.claim_time)
        attempt.duration.FromNanoseconds(int(took_s * 1e9))
        if state is State.PENDING:
            attempt.next_attempt_time.FromNanoseconds(int((now_s + wait_s) * 1e9))
        _attempts.labels(verdict.word).inc()
        _took.observe(took_s)
        if state is not State.PENDING:
            _ended.labels(state).inc()
        return Settled(
            claimed=claimed,
            state=state,
            wait_s=wait_s,
            verdict=verdict.word,
            attempt=attempt.SerializeToString(),
            pauses_configuration=verdict.pauses_configuration,
            network_claim=network_claim.SerializeToString() if network_claim else None,
        )

    async def _settle_finished(self) -> None:
        if not self._finished:
            self._something_finished.clear()
            await self._something_finished.wait()
            await asyncio.sleep(GATHER_S)
        batch = self._finished[:SETTLE_AT_ONCE]
        decided = await self._store.settle(batch)
        # Only now: a batch that could not be settled is tried again, until its leases are long over.
        del self._finished[: len(batch)]
        self._endings.note(one.claimed.delivery_id for one in batch if one.state is not State.PENDING)
        if any(one.pauses_configuration for one in batch):
            await self._catalog.refresh()
        _note(batch)
        for one in batch:
            if one.network_claim is not None and one.claimed.delivery_id in decided:
                note_late(one.claimed.delivery_id, one.claimed.configuration_id)


def _note(batch: Sequence[Settled]) -> None:
    for one in batch:
        _log.info(
            "delivery.settled",
            delivery_id=str(one.claimed.delivery_id),
            configuration_id=one.claimed.configuration_id,
            attempt=one.claimed.number,
            verdict=one.verdict,
            state=one.state,
            retry_in_s=round(one.wait_s, 1),
        )


def _scrubber(secrets: Mapping[str, str]) -> Callable[[str], str]:
    """Hides secrets in what an endpoint answers: some echo what they were sent."""
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
