"""The job that sends claim requests (section E), and decides the conversions that waited for the answers.

Postback asks the networks, durably and once. Here conversions wait for the answers, up to their deadline. The table of
pending conversions holds them, so that the next owner of their lanes goes on.
"""

import asyncio
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import grpc
import structlog
from prometheus_client import Counter, Gauge, Histogram

from libs.broadcast import within
from libs.db import Connection, Pool
from libs.domain.event_names import INSTALL
from libs.domain.snapshots import Follower
from libs.messages import short_name
from libs.parts import first_part, in_parts
from libs.time import now_us, to_duration, to_timestamp
from reengage.attribution.v1 import decision_pb2
from reengage.ingest.v1 import record_pb2
from reengage.postback.v1 import claim_pb2, conversion_pb2
from reengage.postback.v1 import service_pb2_grpc as postback_grpc
from services.attribution.decision.decide import needed_type
from services.attribution.decision.model import ConversionKind
from services.attribution.jobs.claim_requests import ClaimRequest, ClaimRequests
from services.attribution.live.batch import decide_batch
from services.attribution.live.changes import Changes
from services.attribution.live.claim_triggers import ClaimTriggers
from services.attribution.live.owned_lanes import OwnedLanes
from services.attribution.live.pending import in_turn, logged_of
from services.attribution.live.pending_aside import set_pending_aside
from services.attribution.live.quarantine import REFUSING, in_halves, is_circumstance
from services.attribution.pace import Pace
from services.attribution.storage import pending
from services.attribution.storage.pending import Key, PendingRow, Unanswered, Waiting
from services.attribution.wire.conversions import claim_trackers
from services.attribution.wire.records import event_name_of
from services.attribution.wire.rulebook import Rulebook

_log = structlog.get_logger()

_pending = Gauge("attribution_claims_pending", "Conversions that wait for claims, or behind one that does.")
_overdue = Gauge("attribution_claims_overdue_seconds", "Time that the longest wait for claims is past its deadline.")
_answers = Counter(
    "attribution_claim_answers_total", "Answers that conversions were decided with.", ["state", "reason"]
)
_lag = Histogram(
    "attribution_claim_decision_lag_seconds",
    "From receipt to committed decision, of conversions that waited for claims.",
    buckets=(0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 20, 30, 60, 600),
)

_DECIDE_SOON_INTERVAL_S = 0.05
_OVERDUE_ALARM_S = 10.0
_REASON = claim_pb2.ClaimAnswer.Reason.DESCRIPTOR
_STATES = {number: name.removeprefix("STATE_") for name, number in claim_pb2.ClaimAnswer.State.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimsConfig:
    """The limits and intervals of the job."""

    first_call_wait_s: float = 0.3
    """The time that a first call waits for answers: the time that a slow one costs the others of the same call."""
    call_wait_s: float = 1.0
    """The time that each later call waits for answers."""
    call_grace_s: float = 3.0
    """The time that postback has besides, before a call is given up."""
    max_per_call: int = 200
    """Conversions of one call: beside their records, of which it takes half a message, each has room for 40 KB."""
    max_calls: int = 8
    """Calls under way about the same networks; as many more for repeated requests, which wait in vain while a network
    is stuck."""
    max_held: int = 20_000
    """Requests in memory; the others stay in the table until there is room."""
    look_interval_s: float = 5.0
    """The time between two looks at the table."""


class Claims:
    """The job: it decides in the order of receipt, device by device."""

    def __init__(
        self,
        *,
        pool: Pool,
        settings: Follower[Rulebook],
        triggers: ClaimTriggers,
        postback: postback_grpc.PostbackServiceStub,
        pace: Pace,
        config: ClaimsConfig = ClaimsConfig(),
        now_us: Callable[[], int] = now_us,
        clock_s: Callable[[], float] = time.monotonic,
        new_id: Callable[[], uuid.UUID] = uuid.uuid4,
    ) -> None:
        self._pool, self._settings, self._triggers, self._postback = pool, settings, triggers, postback
        self._pace, self._config, self._now_us, self._new_id = pace, config, now_us, new_id
        self._clock_s = clock_s

    async def run(self, lanes: OwnedLanes) -> None:
        """Asks and decides for as long as the lanes are owned. Raises LanesLostError."""
        mark = await pending.mark(self._pool, lanes.lanes)
        requests, calls = self._no_requests(), set[asyncio.Task[None]]()
        is_new = True
        looked = -self._config.look_interval_s
        try:
            while True:
                lanes.pending.changed.clear()
                self._add(requests, lanes.pending.take())
                if time.monotonic() - looked >= self._config.look_interval_s:
                    looked = time.monotonic()
                    await self._look(lanes, requests)
                for some in requests.begin_calls(self._clock_s()):
                    call = asyncio.ensure_future(self._call(some, requests))
                    call.add_done_callback(lambda _: lanes.pending.changed.set())
                    calls.add(call)
                for call in [call for call in calls if call.done()]:
                    calls.remove(call)
                    call.result()
                may_decide = mark.is_reached(lanes.heads, self._settings.current.revision)
                if may_decide and is_new:
                    await self._decide_left(lanes)
                    is_new = False
                if may_decide and requests.are_finished:
                    await self._settle(lanes, requests)
                    continue
                pause_s = self._config.look_interval_s if may_decide else _DECIDE_SOON_INTERVAL_S
                await within(lanes.pending.changed, pause_s)
        finally:
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)

    def _no_requests(self) -> ClaimRequests:
        config = self._config
        return ClaimRequests(
            max_per_call=config.max_per_call,
            max_calls=config.max_calls,
            max_held=config.max_held,
            max_wait_s=self._triggers.wait_s,
        )

    def _add(self, requests: ClaimRequests, rows: Iterable[PendingRow | Unanswered]) -> None:
        requests.add(rows, now_us=self._now_us(), now_s=self._clock_s())

    async def _look(self, lanes: OwnedLanes, requests: ClaimRequests) -> None:
        """Measures what is pending, and adds requests: at the start all, later those that there was no room for."""
        count, unanswered, earliest_us = await pending.overview(self._pool, lanes.lanes)
        overdue_s = 0.0 if earliest_us is None else max(0.0, (self._now_us() - earliest_us) / 1e6)
        _pending.set(count)
        _overdue.set(overdue_s)
        if overdue_s > _OVERDUE_ALARM_S:
            _log.warning("claims.overdue", seconds=round(overdue_s, 1), count=count)
        if unanswered > len(requests):
            self._add(requests, await pending.unanswered(self._pool, lanes.lanes, self._config.max_held))

    # Asking.

    async def _call(self, some: Sequence[ClaimRequest], requests: ClaimRequests) -> None:
        """Makes one call; requests that it does not answer are sent again."""
        found = await pending.to_ask(self._pool, [request.place for request in some])
        told: dict[Key, conversion_pb2.Conversion] = {}
        for request in some:
            try:
                if request.key in found:
                    told[request.key] = self._conversion(request, found[request.key])
            except Exception as error:  # nobody can be asked about it; deciding it shows what is wrong
                _log.warning("claims.untellable", error=type(error).__name__)
                request.answered = request.claims()
        sent = [request for request in some if request.key in told]
        if sent:
            answers = await self._ask(list(told.values()), self._wait_s(sent))
            for request in sent:
                request.answered = answers.get(request.key, request.answered)
        requests.end_call(some, found.keys())

    def _wait_s(self, sent: Sequence[ClaimRequest]) -> float:
        """Returns how long a call waits for answers: no longer than until the first deadline."""
        left_s = min(request.deadline_s for request in sent) - self._clock_s()
        max_wait_s = self._config.call_wait_s if sent[0].was_sent else self._config.first_call_wait_s
        return min(max(left_s, 0.0), max_wait_s)

    async def _ask(
        self, conversions: Sequence[conversion_pb2.Conversion], wait_s: float
    ) -> dict[Key, claim_pb2.ConversionClaims]:
        """Returns what networks have answered; nothing while postback is away, nor of one that it refuses."""
        try:
            return await self._request(conversions, wait_s)
        except grpc.aio.AioRpcError as error:
            answers = await self._ask_in_halves(conversions, wait_s) if error.code() in REFUSING else {}
            if not answers:
                _log.warning("claims.failed", code=error.code().name, conversions=len(conversions))
                await asyncio.sleep(wait_s)
            return answers

    async def _ask_in_halves(
        self, conversions: Sequence[conversion_pb2.Conversion], wait_s: float
    ) -> dict[Key, claim_pb2.ConversionClaims]:
        """Returns the answers about all but one that has the others refused; nothing if that is not it."""
        half = len(conversions) // 2
        answers: dict[Key, claim_pb2.ConversionClaims] = {}
        refused: list[Sequence[conversion_pb2.Conversion]] = []
        for some in (conversions[:half], conversions[half:]) if half else ():
            try:
                answers |= await self._request(some, wait_s)
            except grpc.aio.AioRpcError:
                refused.append(some)
        if answers and refused:
            answers |= await self._ask_in_halves(refused[0], wait_s)
        return answers

    async def _request(
        self, conversions: Sequence[conversion_pb2.Conversion], wait_s: float
    ) -> dict[Key, claim_pb2.ConversionClaims]:
        wait = to_duration(round(wait_s * 1000) * 1000)
        request = claim_pb2.RequestClaimsRequest(conversions=conversions, wait=wait)
        response = await self._postback.RequestClaims(request, timeout=wait_s + self._config.call_grace_s)
        return {(claims.app_id, claims.conversion_id): claims for claims in response.conversions}

    def _conversion(self, request: ClaimRequest, asked: pending.Asked) -> conversion_pb2.Conversion:
        record, settings = record_pb2.Record.FromString(asked.record), self._settings.current
        event_name = event_name_of(record) or ""
        decision = decision_pb2.Decision(
            app_id=request.app_id,
            conversion_id=request.conversion_id,
            event_name=event_name,
            device_id=str(asked.device_id),
            conversion_time=record.event_time,
            receive_time=to_timestamp(asked.receive_time_us),
        )
        kind = ConversionKind.INSTALL if event_name == INSTALL else ConversionKind.EVENT
        return conversion_pb2.Conversion(
            decision=decision,
            record=record,
            names=settings.app_names.get(request.app_id),
            claim_trackers=claim_trackers(
                settings, request.app_id, needed_type(kind, asked.history.first_install), event_name
            ),
        )

    # Deciding.

    async def _settle(self, lanes: OwnedLanes, requests: ClaimRequests) -> None:
        """Stores answers, and decides what has all of its own and is in turn; what cannot be decided is set aside."""
        some = requests.take_finished(self._config.max_per_call)
        try:
            await self._store_and_decide(lanes, some)
        except Exception as error:
            if is_circumstance(error):
                raise
            for request in some:
                await self._decide_apart(lanes, request)
        requests.remove(some)
        for request in some:
            for answer in request.claims().answers:
                _answers.labels(_STATES[answer.state], short_name(_REASON, answer.reason)).inc()

    async def _store_and_decide(self, lanes: OwnedLanes, some: Sequence[ClaimRequest]) -> None:
        """Stores answers, and decides what is in turn, in one transaction; of very much the rest in others."""
        with self._pace.live():
            async with lanes.fenced() as connection:
                due = await _find_due(connection, some)
                first = first_part(due[: self._config.max_per_call], lambda row: row.size)
                taken = await pending.take(connection, first)
                changes = await self._decide(connection, lanes, taken)
                await lanes.append(connection, changes, lanes={request.lane for request in some})
        self._measure(taken, {row.key for row in changes.pending})
        await self._decide_parts(lanes, due[len(first) :])

    async def _decide_apart(self, lanes: OwnedLanes, request: ClaimRequest) -> None:
        """Stores one answer, and decides what is in turn then, each by itself if need be."""
        async with lanes.fenced() as connection:
            due = await _find_due(connection, [request])
            await lanes.append(connection, lanes=[request.lane])
        await self._decide_parts(lanes, due)

    async def _decide_left(self, lanes: OwnedLanes) -> None:
        """Decides what is in turn already: a worker that stored the answers has died before it came to that."""
        left = await pending.devices(self._pool, lanes.lanes)
        async with self._pool.acquire() as connection:
            due = in_turn(await pending.of_devices(connection, left))
        await self._decide_parts(lanes, sorted(due, key=lambda row: row.place))

    async def _decide_parts(self, lanes: OwnedLanes, due: Sequence[Waiting]) -> None:
        """Decides conversions in their order, so many at a time that they fit; what cannot be decided is set aside."""
        for part in in_parts(due, lambda row: row.size, max_items=self._config.max_per_call):
            await in_halves(len(part), partial(self._decide_some, lanes, part), partial(set_pending_aside, lanes, part))

    async def _decide_some(self, lanes: OwnedLanes, rows: Sequence[Waiting], some: range) -> None:
        with self._pace.live():
            async with lanes.fenced() as connection:
                taken = await pending.take(connection, rows[some.start : some.stop])
                changes = await self._decide(connection, lanes, taken)
                await lanes.append(connection, changes, lanes={row.lane for row in rows})
        self._measure(taken, {row.key for row in changes.pending})

    async def _decide(self, connection: Connection, lanes: OwnedLanes, due: Sequence[PendingRow]) -> Changes:
        now_us = self._now_us()
        return await decide_batch(
            connection,
            [logged_of(row) for row in due],
            apps=self._settings.current.apps,
            next_sequences=lanes.next_sequences,
            new_id=self._new_id,
            now_us=now_us,
            asking=self._triggers.asking(lanes.pending.app_ids, now_us),
            hashed=lanes.hashed.by_app,
            resumed={row.key: row for row in due},
        )

    def _measure(self, due: Sequence[PendingRow], still_pending: set[Key]) -> None:
        now_us = self._now_us()
        for row in due:
            if row.key not in still_pending:
                _lag.observe((now_us - row.receive_time_us) / 1e6)


async def _find_due(connection: Connection, some: Sequence[ClaimRequest]) -> list[Waiting]:
    """Stores answers, and returns the conversions that are in turn now, in order of receipt."""
    answers = {request.place: request.claims().SerializeToString() for request in some}
    due = in_turn(await pending.of_devices(connection, await pending.answer(connection, answers)))
    return sorted(due, key=lambda row: row.place)
