"""The job that sends claim requests (section E), and decides the conversions that waited for the answers.

Postback asks the networks, durably and once. Here conversions wait for the answers, up to their deadline. The table of
pending conversions holds them, so that the next owner of their lanes goes on.
"""

import asyncio
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import grpc
import structlog
from prometheus_client import Counter, Gauge, Histogram

from libs.broadcast import within
from libs.db import Connection, Pool
from libs.domain.event_names import INSTALL
from libs.domain.snapshots import Follower
from libs.messages import short_name
from libs.time import now_us, to_duration, to_timestamp
from reengage.attribution.v1 import decision_pb2
from reengage.ingest.v1 import record_pb2
from reengage.postback.v1 import claim_pb2, conversion_pb2
from reengage.postback.v1 import service_pb2_grpc as postback_grpc
from services.attribution.decision.decide import needed_type
from services.attribution.decision.model import ConversionKind
from services.attribution.jobs.claim_requests import ClaimRequest, ClaimRequests
from services.attribution.live.batch import decide_batch
from services.attribution.live.claim_triggers import ClaimTriggers
from services.attribution.live.owned_lanes import OwnedLanes
from services.attribution.live.pending import in_turn, logged_of
from services.attribution.pace import Pace
from services.attribution.storage import pending
from services.attribution.storage.pending import Key, PendingRow
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
        new_id: Callable[[], uuid.UUID] = uuid.uuid4,
    ) -> None:
        self._pool, self._settings, self._triggers, self._postback = pool, settings, triggers, postback
        self._pace, self._config, self._now_us, self._new_id = pace, config, now_us, new_id

    async def run(self, lanes: OwnedLanes) -> None:
        """Asks and decides for as long as the lanes are owned. Raises LanesLostError."""
        mark = await pending.mark(self._pool, lanes.lanes)
        requests, calls = self._no_requests(), set[asyncio.Task[None]]()
        looked = -self._config.look_interval_s
        try:
            while True:
                lanes.pending.changed.clear()
                requests.add(lanes.pending.take())
                if time.monotonic() - looked >= self._config.look_interval_s:
                    looked = time.monotonic()
                    await self._look(lanes, requests)
                for some in requests.begin_calls(self._now_us()):
                    call = asyncio.ensure_future(self._call(some, requests))
                    call.add_done_callback(lambda _: lanes.pending.changed.set())
                    calls.add(call)
                for call in [call for call in calls if call.done()]:
                    calls.remove(call)
                    call.result()
                may_decide = mark.is_reached(lanes.heads, self._settings.current.revision)
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
        return ClaimRequests(max_per_call=config.max_per_call, max_calls=config.max_calls, max_held=config.max_held)

    async def _look(self, lanes: OwnedLanes, requests: ClaimRequests) -> None:
        """Measures what is pending, and adds requests: at the start all, later those that there was no room for."""
        count, unanswered, earliest_us = await pending.overview(self._pool, lanes.lanes)
        overdue_s = 0.0 if earliest_us is None else max(0.0, (self._now_us() - earliest_us) / 1e6)
        _pending.set(count)
        _overdue.set(overdue_s)
        if overdue_s > _OVERDUE_ALARM_S:
            _log.warning("claims.overdue", seconds=round(overdue_s, 1), count=count)
        if unanswered > len(requests):
            requests.add(await pending.unanswered(self._pool, lanes.lanes, self._config.max_held))

    # Asking.

    async def _call(self, some: Sequence[ClaimRequest], requests: ClaimRequests) -> None:
        """Makes one call; requests that it does not answer are sent again."""
        found = await pending.to_ask(self._pool, [request.place for request in some])
        sent = [request for request in some if request.key in found]
        if sent:
            answers = await self._ask([self._conversion(each, found[each.key]) for each in sent], self._wait_s(sent))
            for request in sent:
                request.answered = answers.get(request.key, request.answered)
        requests.end_call(some, found.keys())

    def _wait_s(self, sent: Sequence[ClaimRequest]) -> float:
        """Returns how long a call waits for answers: no longer than until the first deadline."""
        left_s = (min(request.deadline_us for request in sent) - self._now_us()) / 1e6
        max_wait_s = self._config.call_wait_s if sent[0].was_sent else self._config.first_call_wait_s
        return min(max(left_s, 0.0), max_wait_s)

    async def _ask(
        self, conversions: Sequence[conversion_pb2.Conversion], wait_s: float
    ) -> dict[Key, claim_pb2.ConversionClaims]:
        """Returns what networks have answered; nothing while postback is away."""
        wait = to_duration(round(wait_s * 1000) * 1000)
        request = claim_pb2.RequestClaimsRequest(conversions=conversions, wait=wait)
        try:
            response = await self._postback.RequestClaims(request, timeout=wait_s + self._config.call_grace_s)
        except grpc.aio.AioRpcError as error:
            _log.warning("claims.failed", code=error.code().name, conversions=len(conversions))
            await asyncio.sleep(wait_s)
            return {}
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
        """Stores answers, and decides what has all of its own and is in turn, in one transaction."""
        some = requests.take_finished(self._config.max_per_call)
        claims = {request.place: request.claims() for request in some}
        with self._pace.live():
            async with lanes.fenced() as connection:
                due = await _take_due(connection, claims)
                now_us = self._now_us()
                changes = await decide_batch(
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
                await lanes.append(connection, changes, lanes={request.lane for request in some})
        requests.remove(some)
        self._measure(due, {row.key for row in changes.pending}, claims.values())

    def _measure(
        self, due: Sequence[PendingRow], still_pending: set[Key], claims: Iterable[claim_pb2.ConversionClaims]
    ) -> None:
        now_us = self._now_us()
        for row in due:
            if row.key not in still_pending:
                _lag.observe((now_us - row.receive_time_us) / 1e6)
        for each in claims:
            for answer in each.answers:
                _answers.labels(_STATES[answer.state], short_name(_REASON, answer.reason)).inc()


async def _take_due(
    connection: Connection, claims: Mapping[tuple[int, str, str], claim_pb2.ConversionClaims]
) -> list[PendingRow]:
    """Stores answers, and takes from the table the conversions that are in turn now, in order of receipt."""
    devices = await pending.answer(connection, {at: said.SerializeToString() for at, said in claims.items()})
    due = in_turn(await pending.of_devices(connection, devices))
    due.sort(key=lambda row: (row.receive_time_us, row.log_lane, row.position))
    await pending.delete(connection, due)
    return due
