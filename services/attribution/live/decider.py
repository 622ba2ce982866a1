"""The loop that decides the conversions homed in the owned lanes, in order of receipt.

A conversion is decided only when *every* lane of the log, whoever owns it, is indexed up to the end the log had when
the conversion was read: any engagement accepted before it is then considered, however slow another worker is.
"""

import time
import uuid
from collections.abc import Callable, Mapping, Sequence

import structlog
from prometheus_client import Gauge, Histogram

from libs.broadcast import within
from libs.db import Pool
from libs.domain.lanes import LANES
from libs.domain.snapshots import Follower
from libs.time import now_us
from reengage.attribution.v1 import quarantine_pb2
from reengage.ingest.v1 import log_pb2
from services.attribution.live.batch import decide_batch
from services.attribution.live.changes import Changes
from services.attribution.live.claim_triggers import ClaimTriggers
from services.attribution.live.log_reader import LogReader, moved, positions_after, rulebook_for
from services.attribution.live.owned_lanes import OwnedLanes
from services.attribution.live.quarantine import entry_set_aside, in_halves
from services.attribution.pace import Pace
from services.attribution.storage.lanes import read_indexed, read_owned_lanes
from services.attribution.wire.records import Logged, parse
from services.attribution.wire.rulebook import Rulebook

_log = structlog.get_logger()

_lag = Histogram(
    "attribution_decision_lag_seconds",
    "From receipt to committed decision, of conversions that did not wait for claims.",
    buckets=(0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 60, 600),
)
_barrier_wait = Gauge("attribution_barrier_wait_seconds", "How long deciding has been waiting for lanes to be indexed.")

FLUSH_INTERVAL_S = 5.0
_BARRIER_LOOK_INTERVAL_S = 0.02
_BARRIER_ALARM_S = 10.0


class Decider:
    """The deciding loop of a worker."""

    def __init__(
        self,
        pool: Pool,
        rulebooks: Follower[Rulebook],
        log: LogReader,
        *,
        triggers: ClaimTriggers,
        pace: Pace,
        flush_interval_s: float = FLUSH_INTERVAL_S,
        now_us: Callable[[], int] = now_us,
        new_id: Callable[[], uuid.UUID] = uuid.uuid4,
    ) -> None:
        self._pool, self._rulebooks, self._log = pool, rulebooks, log
        self._triggers, self._pace, self._flush_interval_s = triggers, pace, flush_interval_s
        self._now_us, self._new_id = now_us, new_id

    async def run(self, lanes: OwnedLanes) -> None:
        """Decides until cancelled. Raises LanesLostError."""
        stored = await read_owned_lanes(self._pool, lanes.worker_id, lanes.lanes)
        begun = {lane: each.decided for lane, each in stored.items()}
        # Lanes that come from different workers are at different places: begin at the earliest, skip what was decided.
        position = [min(vector[lane] for vector in begun.values()) for lane in range(LANES)]
        flushed = -self._flush_interval_s  # at once: whoever decides beside this loop needs heads
        log = self._log.read(
            dict(enumerate(position)), log_pb2.ReadLogRequest.SELECTION_CONVERSIONS, app_lanes=sorted(lanes.lanes)
        )
        async for response in log:
            before = list(position)
            entries = [e for e in response.entries if e.position >= begun[e.app_lane][e.lane]]
            for lane, moved_to in moved(dict(enumerate(position)), response).items():
                position[lane] = moved_to
            homes = {entry.app_lane for entry in entries}
            if time.monotonic() - flushed > self._flush_interval_s:
                # Quiet lanes move along now and then, so that whoever takes them over need not read all from long ago.
                homes, flushed = set(lanes.lanes), time.monotonic()
            if homes:
                vectors = {lane: _later(begun[lane], position) for lane in homes}
                await self._barrier(response.heads, lanes)
                lanes.heads = list(response.heads)
                await self._decide_page(lanes, entries, vectors, {lane: _later(begun[lane], before) for lane in homes})
            lanes.positions = list(position)

    async def _decide_page(
        self,
        lanes: OwnedLanes,
        entries: Sequence[log_pb2.LogEntry],
        vectors: Mapping[int, list[int]],
        before: Mapping[int, list[int]],
    ) -> None:
        """Decides a page of the log, which moves home lanes on from `before`; what cannot be decided is set aside."""

        def decided_by(stop: int) -> Mapping[int, list[int]]:
            if stop == len(entries):
                return vectors
            after = positions_after(entries[:stop])
            homes = {entry.app_lane for entry in entries[:stop]}
            return {home: [max(at, after.get(lane, 0)) for lane, at in enumerate(before[home])] for home in homes}

        async def decide(some: range) -> None:
            await self._decide(lanes, parse(entries[some.start : some.stop]), decided_by(some.stop))

        async def set_aside(place: int, error: Exception) -> None:
            row = entry_set_aside(entries[place], quarantine_pb2.QUARANTINE_WORK_DECIDE, error)
            async with lanes.fenced() as connection:
                await lanes.append(connection, Changes(set_aside=[row]), decided=decided_by(place + 1))

        if entries:
            await in_halves(len(entries), decide, set_aside)
        else:
            await self._decide(lanes, [], vectors)

    async def _decide(self, lanes: OwnedLanes, logged: Sequence[Logged], vectors: Mapping[int, list[int]]) -> None:
        """Decides records, and writes all that this changes with the read position, in one transaction."""
        rulebook = await rulebook_for(self._rulebooks, logged)
        now_us = self._now_us()
        with self._pace.live():
            async with lanes.fenced() as connection:
                changes = await decide_batch(
                    connection,
                    logged,
                    apps=rulebook.apps,
                    next_sequences=lanes.next_sequences,
                    new_id=self._new_id,
                    now_us=now_us,
                    asking=self._triggers.asking(lanes.pending.app_ids, now_us),
                    hashed=lanes.hashed.by_app,
                )
                await lanes.append(connection, changes, decided=vectors)
        now_us = self._now_us()
        waiting = {row.key for row in changes.pending}
        for entry, record in logged:
            if not waiting or (record.app_id, record.record_id) not in waiting:
                _lag.observe((now_us - entry.receive_time_us) / 1e6)

    async def _barrier(self, heads: Sequence[int], lanes: OwnedLanes) -> None:
        """Waits until every lane is indexed up to `heads`.

        A worker that is slow is waited for; one that is dead loses its lanes after its lease, so the wait is bounded.
        """
        began = alarmed = time.monotonic()
        while behind := lanes.indexed.behind(heads):
            await within(lanes.indexed.moved.next(), _BARRIER_LOOK_INTERVAL_S)
            if lanes.indexed.behind(heads):
                lanes.indexed.advance(dict(enumerate(await read_indexed(self._pool))))
            _barrier_wait.set(time.monotonic() - began)
            if time.monotonic() - alarmed > _BARRIER_ALARM_S:
                alarmed = time.monotonic()
                _log.warning("barrier.waiting", seconds=round(alarmed - began, 1), lanes=behind)
        _barrier_wait.set(0)


def _later(one: Sequence[int], other: Sequence[int]) -> list[int]:
    """Returns the later position of each lane of the log."""
    return [max(pair) for pair in zip(one, other, strict=True)]
