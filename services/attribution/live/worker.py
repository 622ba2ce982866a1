"""The worker: owns lanes, indexes their engagements, decides the conversions homed in them, hands them to postback.

Three loops, and the jobs given, run for as long as the set of owned lanes stays the same; each rebuilds all it holds
from the database, so a crash needs no cleanup, and every transaction is fenced by the lanes' owner.

A conversion is decided only when *every* lane of the log, whoever owns it, is indexed up to the end the log had when
the conversion was read: any engagement accepted before it is then considered, however slow another worker is.
"""

import asyncio
import collections
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import TypeAlias

import structlog
from prometheus_client import Counter, Gauge, Histogram

from libs.db import Connection, in_transaction
from libs.domain.lanes import LANES
from libs.domain.snapshots import Follower
from libs.worker import keep_running
from reengage.ingest.v1 import log_pb2
from reengage.ingest.v1.service_pb2_grpc import IngestServiceStub
from reengage.postback.v1 import conversion_pb2
from reengage.postback.v1 import service_pb2_grpc as postback_grpc
from services.attribution.jobs.claims import ClaimTriggers
from services.attribution.jobs.pace import Pace
from services.attribution.live.decider import Batch, decide_batch
from services.attribution.live.owned_lanes import OwnedLanes
from services.attribution.live.relay import conversions_for_postback, in_calls
from services.attribution.storage.pending import app_ids_waiting
from services.attribution.storage.store import IndexRows, LanesLostError, Store
from services.attribution.wire.records import Logged, index_rows, parse
from services.attribution.wire.rulebook import Rulebook

_log = structlog.get_logger()

_lanes_owned = Gauge("attribution_lanes_owned", "Lanes this worker owns.")
_indexed = Counter("attribution_engagements_indexed_total", "Engagements stored.")
_relayed = Counter("attribution_decisions_relayed_total", "Decisions handed to postback.")
_lag = Histogram(
    "attribution_decision_lag_seconds",
    "From receipt to committed decision, of conversions that did not wait for claims.",
    buckets=(0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 60, 600),
)
_waiting = Gauge("attribution_barrier_wait_seconds", "How long deciding has been waiting for lanes to be indexed.")

_FLUSH_S = 5.0
_SETTINGS_WAIT_S = 10.0
_BARRIER_POLL_S = 0.02
_BARRIER_ALARM_S = 10.0
_RELAY_BATCH = 500


Job: TypeAlias = Callable[[OwnedLanes], Awaitable[None]]
"""A loop beside those of the worker: it writes through `OwnedLanes.append` and starts from the database each time."""


class LogShorterError(Exception):
    """Of the log less is there than was read before: a standby that is behind, for a moment, or a backup, for good."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """`lease_s`: after this long without a sign of life a worker's lanes go to others. `batch`: records at a time."""

    worker_id: str
    lease_s: float = 5.0
    batch: int = 1000


@dataclass(slots=True, kw_only=True)
class _Progress:
    """How far every lane of the log is indexed, as far as this worker knows; it may know too little, never too much."""

    indexed: list[int] = field(default_factory=lambda: [0] * LANES)
    moved: asyncio.Event = field(default_factory=asyncio.Event)

    def behind(self, heads: Sequence[int]) -> list[int]:
        return [lane for lane, head in enumerate(heads) if self.indexed[lane] < head]

    def advance(self, positions: Mapping[int, int]) -> None:
        for lane, position in positions.items():
            self.indexed[lane] = max(self.indexed[lane], position)
        self.moved.set()


class Worker:
    """One attribution worker; several share the lanes. `run` until cancelled."""

    def __init__(
        self,
        config: WorkerConfig,
        *,
        store: Store,
        settings: Follower[Rulebook],
        ingest: IngestServiceStub,
        postback: postback_grpc.PostbackServiceStub,
        triggers: ClaimTriggers,
        pace: Pace,
        jobs: Mapping[str, Job] = MappingProxyType({}),
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
        new_id: Callable[[], uuid.UUID] = uuid.uuid4,
    ) -> None:
        self._config, self._store, self._settings = config, store, settings
        self._ingest, self._postback, self._triggers, self._jobs = ingest, postback, triggers, jobs
        self._pace, self._now_us, self._new_id = pace, now_us, new_id

    async def run(self) -> None:
        """Work until cancelled, then give the lanes back."""
        await asyncio.gather(self._settings.ready(), self._triggers.ready())
        try:
            await keep_running("ownership", self._own)
        finally:
            with contextlib.suppress(Exception):  # the leases end by themselves
                await self._store.forget_worker(self._config.worker_id)

    # Ownership.

    async def _own(self) -> None:
        """Hold a fair share of the lanes and work on them; anew whenever the share changes."""
        owned: frozenset[int] = frozenset()
        work: asyncio.Task[None] | None = None
        try:
            while True:
                share = await self._balance(owned)
                if share != owned or (work is not None and work.done()):
                    await _stop(work)
                    if surplus := owned - share:
                        await self._store.release_lanes(self._store.pool, self._config.worker_id, surplus)
                    owned = share
                    work = asyncio.ensure_future(self._work(owned)) if owned else None
                    _lanes_owned.set(len(owned))
                    _log.info("lanes.owned", count=len(owned))
                beat_s = min(1.0, self._config.lease_s / 5)
                if work is None:
                    await asyncio.sleep(beat_s)
                else:
                    await asyncio.wait([work], timeout=beat_s)
        finally:
            await _stop(work)
            _lanes_owned.set(0)

    async def _balance(self, owned: frozenset[int]) -> frozenset[int]:
        """Renew the leases, take what is free up to the fair share, and answer what to own from now on."""
        worker_id, lease_s = self._config.worker_id, self._config.lease_s

        async def balance(connection: Connection) -> frozenset[int]:
            workers = await self._store.see_worker(connection, worker_id, lease_s)
            mine = await self._store.renew_lanes(connection, worker_id, lease_s)
            fair = -(-LANES // workers)
            if len(mine) < fair:
                mine |= await self._store.take_lanes(connection, worker_id, fair - len(mine), lease_s)
            # Keep what is already being worked on; a lane given away goes to a worker that has too few.
            share = frozenset(sorted(mine, key=lambda lane: (lane not in owned, lane))[:fair])
            if idle := mine - share - owned:  # left over from a run that failed: nobody works on them
                await self._store.release_lanes(connection, worker_id, idle)
            return share

        return await in_transaction(self._store.pool, balance)

    async def _work(self, owned: frozenset[int]) -> None:
        """Index, decide, relay and do the jobs until cancelled, or until the owned lanes turn out to be lost."""
        lanes = await self._store.owned_lanes(self._config.worker_id, owned)
        progress = _Progress()
        progress.advance(dict(enumerate(await self._store.indexed())))
        shared = OwnedLanes(
            self._store,
            self._config.worker_id,
            lanes,
            waiting_app_ids=await app_ids_waiting(self._store.pool, owned),
        )
        try:
            async with asyncio.TaskGroup() as group:
                loops: dict[str, Callable[[], Awaitable[None]]] = {
                    "indexer": partial(self._index, owned, progress),
                    "decider": partial(self._decide, shared, progress),
                    "relay": partial(self._relay, shared),
                    **{name: partial(job, shared) for name, job in self._jobs.items()},
                }
                for name, loop in loops.items():
                    group.create_task(_until_lanes_lost(name, loop))
        except* LanesLostError:  # the next beat says which lanes are left
            pass

    # Indexing.

    async def _index(self, owned: frozenset[int], progress: _Progress) -> None:
        """Store the engagements of the owned lanes of the log, as they come."""
        lanes = await self._store.owned_lanes(self._config.worker_id, owned)
        positions = {lane: lanes[lane].indexed for lane in owned}
        async for response in self._read_log(positions, log_pb2.ReadLogRequest.SELECTION_ENGAGEMENTS):
            moved = _moved(positions, response)
            if not moved:
                continue
            logged = parse(response.entries)
            settings = await self._settings_for(logged)
            rows = index_rows(logged, settings.apps)
            await in_transaction(self._store.pool, partial(self._write_index, rows, moved))
            positions.update(moved)
            progress.advance(moved)
            _indexed.inc(len(response.entries))

    async def _write_index(self, rows: IndexRows, moved: dict[int, int], connection: Connection) -> None:
        await self._store.insert_index(connection, rows)
        await self._store.advance_indexed(connection, self._config.worker_id, moved)

    # Deciding.

    async def _decide(self, shared: OwnedLanes, progress: _Progress) -> None:
        """Decide the conversions of the apps homed in the owned lanes, in order of receipt."""
        lanes = await self._store.owned_lanes(self._config.worker_id, shared.lanes)
        begun = {lane: owned_lane.decided for lane, owned_lane in lanes.items()}
        # Lanes that come from different workers are at different places: begin at the earliest, skip what was decided.
        position = [min(vector[lane] for vector in begun.values()) for lane in range(LANES)]
        flushed = -_FLUSH_S  # at once: whoever decides beside this loop needs heads
        log = self._read_log(
            dict(enumerate(position)), log_pb2.ReadLogRequest.SELECTION_CONVERSIONS, app_lanes=sorted(shared.lanes)
        )
        async for response in log:
            entries = [e for e in response.entries if e.position >= begun[e.app_lane][e.lane]]
            for lane, moved_to in _moved(dict(enumerate(position)), response).items():
                position[lane] = moved_to
            homes = {entry.app_lane for entry in entries}
            if time.monotonic() - flushed > _FLUSH_S:
                # Quiet lanes move along now and then, so that whoever takes them over need not read all from long ago.
                homes, flushed = set(shared.lanes), time.monotonic()
            if homes:
                vectors = {lane: [max(pair) for pair in zip(begun[lane], position, strict=True)] for lane in homes}
                await self._barrier(response.heads, progress)
                shared.heads = list(response.heads)
                await self._decide_batch(shared, parse(entries), vectors)
            shared.positions = list(position)

    async def _decide_batch(
        self, shared: OwnedLanes, logged: Sequence[Logged], vectors: Mapping[int, list[int]]
    ) -> None:
        """Decisions, device state, what waits, what is to be sent and the read position, in one transaction."""
        settings = await self._settings_for(logged)
        now_us = self._now_us()
        asking = self._triggers.asking(shared.waiting.app_ids, now_us)

        async def decide(connection: Connection, next_sequences: Mapping[int, int]) -> Batch:
            return await decide_batch(
                self._store,
                connection,
                logged,
                heads=shared.heads,
                apps=settings.apps,
                next_sequences=next_sequences,
                new_id=self._new_id,
                now_us=now_us,
                asking=asking,
            )

        with self._pace.live():
            batch = await shared.append(decide, decided=vectors)
        now_us = self._now_us()
        waiting = {row.key for row in batch.waiting}
        for entry, record in logged:
            if not waiting or (record.app_id, record.record_id) not in waiting:
                _lag.observe((now_us - entry.receive_time_us) / 1e6)

    async def _barrier(self, heads: Sequence[int], progress: _Progress) -> None:
        """Wait until every lane is indexed up to `heads`.

        A worker that is slow is waited for; one that is dead loses its lanes after its lease, so the wait is bounded.
        """
        began = alarmed = time.monotonic()
        while behind := progress.behind(heads):
            progress.moved.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(progress.moved.wait(), _BARRIER_POLL_S)
            if progress.behind(heads):
                progress.advance(dict(enumerate(await self._store.indexed())))
            _waiting.set(time.monotonic() - began)
            if time.monotonic() - alarmed > _BARRIER_ALARM_S:
                alarmed = time.monotonic()
                _log.warning("barrier.waiting", seconds=round(alarmed - began, 1), lanes=behind)
        _waiting.set(0)

    # Handing over.

    async def _relay(self, shared: OwnedLanes) -> None:
        """Hand decisions to postback in order, at least once; postback makes each delivery once."""
        lanes = await self._store.owned_lanes(self._config.worker_id, shared.lanes)
        positions = {lane: owned_lane.relayed for lane, owned_lane in lanes.items()}
        while True:
            wanted = await shared.beyond(positions)
            limit = -(-_RELAY_BATCH // len(wanted))
            rows = await self._store.read_outbox(wanted, limit)
            relayed = (row for row in rows if row.is_relayed)
            conversions = conversions_for_postback(relayed, self._settings.current)
            for some in in_calls(conversions):
                await self._postback.EnqueueConversions(conversion_pb2.EnqueueConversionsRequest(conversions=some))
            found = collections.Counter(row.lane for row in rows)
            last = {row.lane: row.sequence for row in rows}  # rows of a lane come in order
            # Where fewer were found than asked for, there are no more: the rest was erased.
            moved = {lane: last[lane] + 1 if found[lane] == limit else some.stop for lane, some in wanted.items()}
            await self._store.advance_relayed(self._config.worker_id, moved)
            positions.update(moved)
            _relayed.inc(len(conversions))

    # The log and the settings.

    async def _settings_for(self, logged: Sequence[Logged]) -> Rulebook:
        """Settings at least as new as those the records were accepted under, so that what they name is known."""
        if logged:
            async with asyncio.timeout(_SETTINGS_WAIT_S):
                await self._settings.reached(max(record.settings_revision for _, record in logged))
        return self._settings.current

    async def _read_log(
        self,
        positions: Mapping[int, int],
        selection: log_pb2.ReadLogRequest.Selection.ValueType,
        app_lanes: Sequence[int] = (),
    ) -> AsyncIterator[log_pb2.ReadLogResponse]:
        call = self._ingest.ReadLog(
            log_pb2.ReadLogRequest(
                **{"from": [log_pb2.LanePosition(lane=lane, position=at) for lane, at in positions.items()]},
                selection=selection,
                app_lanes=app_lanes,
                max_entries=self._config.batch,
            )
        )
        try:
            async for response in call:
                yield response
        finally:
            call.cancel()


def _moved(positions: Mapping[int, int], response: log_pb2.ReadLogResponse) -> dict[int, int]:
    """The lanes that a response moves on, each with its new position.

    Raises LogShorterError when the log ends before these positions: what is written there from now on would be skipped.
    """
    if any(response.heads[lane] < position for lane, position in positions.items()):
        raise LogShorterError
    if response.caught_up:
        ends = {lane: response.heads[lane] for lane in positions}
    else:
        ends = {entry.lane: entry.position + 1 for entry in response.entries}  # in the order of their positions
    return {lane: end for lane, end in ends.items() if end > positions[lane]}


async def _until_lanes_lost(name: str, body: Callable[[], Awaitable[None]]) -> None:
    """Keep a loop running through every failure but one: who lost lanes must stop, not try again."""
    lost = False

    async def guarded() -> None:
        nonlocal lost
        try:
            await body()
        except LanesLostError:
            lost = True
            raise asyncio.CancelledError from None

    try:
        await keep_running(name, guarded)
    except asyncio.CancelledError:
        if lost:
            raise LanesLostError from None
        raise


async def _stop(task: asyncio.Task[None] | None) -> None:
    """Cancel a task and wait for its end; how it ended does not matter any more."""
    if task is not None:
        task.cancel()
        await asyncio.wait([task])
