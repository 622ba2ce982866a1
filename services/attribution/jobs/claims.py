"""Claims of self-attributing networks (section E): who is asked about what, the asking, and deciding with the answers.

Postback asks the networks, durably and once. Here conversions wait for the answers, as long as `wait_s` allows; the
table `waiting` holds them, so that whoever owns their lanes next goes on.
"""

import asyncio
import collections
import contextlib
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import grpc
import structlog
from google.protobuf import duration_pb2
from prometheus_client import Counter, Gauge, Histogram

from libs.db import Connection
from libs.domain.snapshots import Follower
from reengage.attribution.v1 import decision_pb2
from reengage.ingest.v1 import record_pb2
from reengage.postback.v1 import claim_pb2, conversion_pb2
from reengage.postback.v1 import service_pb2_grpc as postback_grpc
from services.attribution.jobs.pace import Pace
from services.attribution.live.batch import decide_batch
from services.attribution.live.claim_triggers import ClaimTriggers
from services.attribution.live.owned_lanes import OwnedLanes
from services.attribution.live.pending import in_turn, logged_of
from services.attribution.storage import pending
from services.attribution.storage.pending import Key, PendingRow
from services.attribution.storage.store import Store
from services.attribution.wire.records import event_name_of
from services.attribution.wire.rulebook import Rulebook

_log = structlog.get_logger()

_waiting = Gauge("attribution_claims_waiting", "Conversions that wait for claims, or behind one that does.")
_overdue = Gauge("attribution_claims_overdue_seconds", "How long the longest wait for claims is past its deadline.")
_answers = Counter("attribution_claim_answers_total", "Answers that conversions were decided with.", ["state"])
_lag = Histogram(
    "attribution_claim_decision_lag_seconds",
    "From receipt to committed decision, of conversions that waited for claims.",
    buckets=(0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 20, 30, 60, 600),
)

_FIRST_CALL_WAIT_S, _CALL_WAIT_S = 0.3, 1.0
"""How long a call waits for answers: what one that is slow costs those that are asked about in the same call."""
_CALL_GRACE_S = 3.0
_MOST_A_CALL = 200  # of at most 64 KB each: a message holds 16 MB
_MOST_CALLS = 8
"""Under way about the same networks; as many more that ask again, as a stuck network has each of these wait in vain."""
_MOST_HELD = 20_000
"""Conversions held in memory; the others wait in the table until there is room."""
_LOOK_S = 5.0
_LOOK_SOON_S = 0.05
_ALARM_S = 10.0
_STATES = {number: name.removeprefix("STATE_") for name, number in claim_pb2.ClaimAnswer.State.items()}


@dataclass(slots=True, kw_only=True)
class _Question:
    """A conversion that networks are asked about, and what is known of the answer."""

    lane: int
    app_id: str
    conversion_id: str
    network_ids: tuple[str, ...]
    deadline_us: int
    was_asked: bool = False
    said: claim_pb2.ConversionClaims | None = None

    @property
    def key(self) -> Key:
        return self.app_id, self.conversion_id

    @property
    def place(self) -> tuple[int, str, str]:
        return self.lane, self.app_id, self.conversion_id

    def is_answered(self) -> bool:
        is_pending = claim_pb2.ClaimAnswer.STATE_PENDING
        return self.said is not None and all(answer.state != is_pending for answer in self.said.answers)

    def claims(self) -> claim_pb2.ConversionClaims:
        """What it is decided with: who has not answered is UNAVAILABLE (E4)."""
        states = claim_pb2.ClaimAnswer
        if self.said is None:
            answers = [states(network_id=each, state=states.STATE_UNAVAILABLE) for each in self.network_ids]
        else:
            answers = [
                states(network_id=answer.network_id, state=states.STATE_UNAVAILABLE)
                if answer.state == states.STATE_PENDING
                else answer
                for answer in self.said.answers
            ]
        return claim_pb2.ConversionClaims(app_id=self.app_id, conversion_id=self.conversion_id, answers=answers)


@dataclass(slots=True, kw_only=True)
class _Queue:
    """Conversions to ask about, in turn, and how many calls are under way for those that were in it."""

    waiting: collections.deque[_Question] = field(default_factory=collections.deque)
    calls: int = 0


@dataclass(slots=True, kw_only=True)
class _Line:
    """Conversions that the same networks are asked about, so that a slow network holds up no other.

    A call asks either what is new or again, never both: what is answered at once need not wait with what was not.
    """

    new: _Queue = field(default_factory=_Queue)
    again: _Queue = field(default_factory=_Queue)


class _Questions:
    """Every conversion that is asked about, until it is settled: in a line, in a call, or finished."""

    def __init__(self) -> None:
        self._held: dict[Key, _Question] = {}
        self._lines: dict[tuple[str, ...], _Line] = {}
        self.finished: list[_Question] = []

    def __len__(self) -> int:
        return len(self._held)

    def add(self, rows: Iterable[PendingRow | pending.Unanswered]) -> None:
        """Take up those that are not held yet, while there is room."""
        for row in rows:
            key = row.app_id, row.conversion_id
            if not row.network_ids or key in self._held or len(self._held) >= _MOST_HELD:
                continue
            question = _Question(
                lane=row.lane,
                app_id=row.app_id,
                conversion_id=row.conversion_id,
                network_ids=tuple(row.network_ids),
                deadline_us=row.deadline_us,
            )
            self._held[key] = question
            self._lines.setdefault(question.network_ids, _Line()).new.waiting.append(question)

    def next_calls(self, now_us: int) -> Iterable[list[_Question]]:
        """What to ask now, a call each. What was asked in vain until its deadline is finished (E4)."""
        for line in self._lines.values():
            for queue in (line.new, line.again):
                while queue.waiting and queue.calls < _MOST_CALLS:
                    some: list[_Question] = []
                    while queue.waiting and len(some) < _MOST_A_CALL:
                        question = queue.waiting.popleft()
                        gives_up = question.was_asked and question.deadline_us <= now_us
                        (self.finished if gives_up else some).append(question)
                    if some:
                        queue.calls += 1
                        yield some

    def returned(self, questions: Sequence[_Question], present: Collection[Key]) -> None:
        """A call has ended. Those not `present` wait no longer: they were erased, or decided by another worker."""
        line = self._lines[questions[0].network_ids]
        (line.again if questions[0].was_asked else line.new).calls -= 1
        for question in questions:
            question.was_asked = True
            if question.key not in present:
                del self._held[question.key]
            elif question.is_answered():
                self.finished.append(question)
            else:
                line.again.waiting.append(question)

    def settled(self, questions: Iterable[_Question]) -> None:
        """These are decided, or their answers stored."""
        for question in questions:
            del self._held[question.key]


class Claims:
    """The job that asks for claims and decides the conversions that waited, in order of receipt per device."""

    def __init__(
        self,
        *,
        store: Store,
        settings: Follower[Rulebook],
        triggers: ClaimTriggers,
        postback: postback_grpc.PostbackServiceStub,
        pace: Pace,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
        new_id: Callable[[], uuid.UUID] = uuid.uuid4,
    ) -> None:
        self._store, self._settings, self._triggers, self._postback = store, settings, triggers, postback
        self._pace, self._now_us, self._new_id = pace, now_us, new_id

    async def run(self, shared: OwnedLanes) -> None:
        """Ask and decide for as long as the lanes are owned. Raises LanesLostError."""
        mark = await pending.mark(self._store.pool, shared.lanes)
        questions, changed = _Questions(), shared.pending.changed
        calls: set[asyncio.Task[None]] = set()
        looked = -_LOOK_S
        try:
            while True:
                changed.clear()
                questions.add(shared.pending.take())
                if time.monotonic() - looked >= _LOOK_S:
                    looked = time.monotonic()
                    await self._look(shared, questions)
                for some in questions.next_calls(self._now_us()):
                    call = asyncio.ensure_future(self._ask(some, questions))
                    call.add_done_callback(lambda _: changed.set())
                    calls.add(call)
                for call in [call for call in calls if call.done()]:
                    calls.remove(call)
                    call.result()
                may_decide = mark.is_reached(shared.heads, self._settings.current.revision)
                if may_decide and questions.finished:
                    await self._settle(shared, questions)
                    continue
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), _LOOK_S if may_decide else _LOOK_SOON_S)
        finally:
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)

    async def _look(self, shared: OwnedLanes, questions: _Questions) -> None:
        """Say how it stands, and take up what is not: at the start all, later what there was no room for."""
        count, unanswered, earliest_us = await pending.overview(self._store.pool, shared.lanes)
        overdue_s = 0.0 if earliest_us is None else max(0.0, (self._now_us() - earliest_us) / 1e6)
        _waiting.set(count)
        _overdue.set(overdue_s)
        if overdue_s > _ALARM_S:
            _log.warning("claims.overdue", seconds=round(overdue_s, 1), count=count)
        if unanswered > len(questions):
            questions.add(await pending.unanswered(self._store.pool, shared.lanes, _MOST_HELD))

    # Asking.

    async def _ask(self, some: Sequence[_Question], questions: _Questions) -> None:
        """One call; what it does not answer is asked again."""
        found = await pending.to_ask(self._store.pool, [question.place for question in some])
        asked = [question for question in some if question.key in found]
        if asked:
            left_us = min(question.deadline_us for question in asked) - self._now_us()
            most_s = _CALL_WAIT_S if asked[0].was_asked else _FIRST_CALL_WAIT_S
            wait_s = min(max(left_us / 1e6, 0.0), most_s)
            said = await self._request([self._conversion(q, found[q.key]) for q in asked], wait_s)
            for question in asked:
                question.said = said.get(question.key, question.said)
        questions.returned(some, found.keys())

    async def _request(
        self, conversions: Sequence[conversion_pb2.Conversion], wait_s: float
    ) -> dict[Key, claim_pb2.ConversionClaims]:
        """What networks have said; nothing while postback is away."""
        request = claim_pb2.RequestClaimsRequest(conversions=conversions, wait=_duration(wait_s))
        try:
            response = await self._postback.RequestClaims(request, timeout=wait_s + _CALL_GRACE_S)
        except grpc.aio.AioRpcError as error:
            _log.warning("claims.failed", code=error.code().name, conversions=len(conversions))
            await asyncio.sleep(wait_s)
            return {}
        return {(claims.app_id, claims.conversion_id): claims for claims in response.conversions}

    def _conversion(self, question: _Question, asked: pending.Asked) -> conversion_pb2.Conversion:
        record = record_pb2.Record.FromString(asked.record)
        decision = decision_pb2.Decision(
            app_id=question.app_id,
            conversion_id=question.conversion_id,
            event_name=event_name_of(record) or "",
            device_id=str(asked.device_id),
            conversion_time=record.event_time,
        )
        decision.receive_time.FromMicroseconds(asked.receive_time_us)
        return conversion_pb2.Conversion(
            decision=decision, record=record, names=self._settings.current.app_names.get(question.app_id)
        )

    # Deciding.

    async def _settle(self, shared: OwnedLanes, questions: _Questions) -> None:
        """Store answers and decide what has all of its own and is in turn, in one transaction."""
        some, questions.finished = questions.finished[:_MOST_A_CALL], questions.finished[_MOST_A_CALL:]
        claims = {question.place: question.claims() for question in some}
        with self._pace.live():
            async with shared.fenced() as connection:
                due = await _take_due(connection, claims)
                now_us = self._now_us()
                changes = await decide_batch(
                    self._store,
                    connection,
                    [logged_of(row) for row in due],
                    heads=shared.heads,
                    apps=self._settings.current.apps,
                    next_sequences=shared.next_sequences,
                    new_id=self._new_id,
                    now_us=now_us,
                    asking=self._triggers.asking(shared.pending.app_ids, now_us),
                    resumed={row.key: row for row in due},
                )
                await shared.append(connection, changes, lanes={question.lane for question in some})
        questions.settled(some)
        now_us, again = self._now_us(), {row.key for row in changes.pending}
        for row in due:
            if row.key not in again:
                _lag.observe((now_us - row.receive_time_us) / 1e6)
        for said in claims.values():
            for answer in said.answers:
                _answers.labels(_STATES[answer.state]).inc()


async def _take_due(
    connection: Connection, claims: Mapping[tuple[int, str, str], claim_pb2.ConversionClaims]
) -> list[PendingRow]:
    """Stores answers, and takes from the table what is in turn now, in order of receipt."""
    devices = await pending.answer(connection, {at: said.SerializeToString() for at, said in claims.items()})
    due = in_turn(await pending.of_devices(connection, devices))
    due.sort(key=lambda row: (row.receive_time_us, row.log_lane, row.position))
    await pending.delete(connection, due)
    return due


def _duration(seconds: float) -> duration_pb2.Duration:
    duration = duration_pb2.Duration()
    duration.FromMilliseconds(round(seconds * 1000))
    return duration
