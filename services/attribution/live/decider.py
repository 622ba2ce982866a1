"""The loop that decides the conversions homed in the owned lanes, in order of receipt.

A conversion is decided only when *every* lane of the log, whoever owns it, is indexed up to the end the log had when
the conversion was read: any engagement accepted before it is then considered, however slow another worker is.

All home lanes are read together, each with a share of a page. One that has more is read apart, in turns, until it has
caught up: see `turns.py`. While indexing is far behind, lanes that have little in it do not wait for it, and the
others are read apart, too: see `index_ahead.py`.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from contextlib import aclosing

import structlog
from prometheus_client import Gauge, Histogram

from libs.broadcast import within
from libs.db import Pool
from libs.domain.lanes import lane_of
from libs.domain.snapshots import Follower
from libs.time import now_us
from reengage.attribution.v1 import quarantine_pb2
from reengage.ingest.v1 import log_pb2
from services.attribution.live.batch import decide_batch
from services.attribution.live.changes import Changes
from services.attribution.live.claim_triggers import ClaimTriggers
from services.attribution.live.index_ahead import FAR_BEHIND, IndexAhead
from services.attribution.live.log_reader import LogReader, moved, positions_after, rulebook_for
from services.attribution.live.owned_lanes import OwnedLanes
from services.attribution.live.quarantine import entry_set_aside, in_halves
from services.attribution.live.turns import MAX_SHARE, Turns, first_failure_of_group
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
MAX_TURN = 500
"""Records of a home lane that is read apart are decided in one turn, at most; fewer where they are slow."""
_TURN_S = 0.2
"""Such a turn takes about so long at most: the others wait for it."""
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
        self._ahead = IndexAhead(pool, rulebooks, log)
        self._awaited: list[int] = []

    async def run(self, lanes: OwnedLanes) -> None:
        """Decides until cancelled. Raises LanesLostError."""
        self._awaited = []
        stored = await read_owned_lanes(self._pool, lanes.worker_id, lanes.lanes)
        turns = Turns({lane: each.decided for lane, each in stored.items()})
        async with first_failure_of_group() as group:
            for lane in turns.apart:
                group.create_task(self._catch_up(lanes, turns, lane))
            await self._follow(lanes, turns, group)

    async def _follow(self, lanes: OwnedLanes, turns: Turns, group: asyncio.TaskGroup) -> None:
        """Decides what comes of all home lanes but those that are read apart."""
        flushed = -self._flush_interval_s  # at once: whoever decides beside this loop needs heads
        async for response in self._read(turns.together, lanes.lanes):
            is_due = time.monotonic() - flushed > self._flush_interval_s
            unindexed = await self._index(response.heads, lanes, turns) if response.entries or is_due else set[int]()
            shares = turns.shares(response.entries, self._shares_with_others(lanes), unindexed)
            before = turns.before()
            turns.move(moved(dict(enumerate(turns.together)), response))
            homes = {entry.app_lane for entry in shares.entries}
            if is_due:
                # Quiet lanes move along now and then, so that whoever takes them over need not read all from long ago.
                homes, flushed = set(lanes.lanes - turns.apart.keys()), time.monotonic()
            if homes:
                vectors = {home: shares.beyond.get(home) or turns.decided(home) for home in homes}
                await self._decide_page(lanes, shares.entries, vectors, {home: before[home] for home in homes})
            for home, decided in shares.beyond.items():
                turns.apart[home] = decided
                group.create_task(self._catch_up(lanes, turns, home))
            lanes.positions, lanes.apart = list(turns.together), turns.apart

    async def _catch_up(self, lanes: OwnedLanes, turns: Turns, home: int) -> None:
        """Decides what lies of one home lane, a little in each turn, until it has caught up with the others.

        So whoever sends more than is decided, or what is slow to decide, waits for himself: the others wait for a turn.
        """
        _log.info("lane.apart", lane=home)
        size = MAX_SHARE
        async with aclosing(self._read(turns.apart[home], [home])) as log:
            async for response in log:
                entries = [e for e in response.entries if e.position >= turns.apart[home][e.lane]]
                ends = moved(dict(enumerate(turns.apart[home])), response)
                if entries:
                    await self._barrier(response.heads, lanes)
                while entries:
                    some, entries = entries[:size], entries[size:]
                    before, began = turns.apart[home], time.monotonic()
                    after = positions_after(some) if entries else ends
                    turns.apart[home] = [max(at, after.get(lane, 0)) for lane, at in enumerate(before)]
                    await self._decide_page(lanes, some, {home: turns.apart[home]}, {home: before})
                    size = _size_of_turn(size, time.monotonic() - began)
                    await asyncio.sleep(0)
                turns.apart[home] = [max(at, ends.get(lane, 0)) for lane, at in enumerate(turns.apart[home])]
                if not await self._is_far_behind(response.heads, lanes) and turns.rejoin(home):
                    break
        _log.info("lane.together", lane=home)

    def _read(self, positions: Sequence[int], homes: Collection[int]) -> AsyncGenerator[log_pb2.ReadLogResponse, None]:
        return self._log.read(
            dict(enumerate(positions)), log_pb2.ReadLogRequest.SELECTION_CONVERSIONS, app_lanes=sorted(homes)
        )

    def _shares_with_others(self, lanes: OwnedLanes) -> bool:
        """Returns whether apps of several of these home lanes wait for each other."""
        homes = {lane_of(app_id) for app_id in self._rulebooks.current.apps}
        return len(homes & lanes.lanes) > 1

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
            done: dict[int, list[log_pb2.LogEntry]] = {}
            for entry in entries[:stop]:
                done.setdefault(entry.app_lane, []).append(entry)
            after = {home: positions_after(its) for home, its in done.items()}
            return {
                home: [max(at, ends.get(lane, 0)) for lane, at in enumerate(before[home])]
                for home, ends in after.items()
            }

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

    async def _index(self, heads: Sequence[int], lanes: OwnedLanes, turns: Turns) -> set[int]:
        """Has lanes that follow indexed up to `heads`; returns those that have too many engagements below for now."""
        if self._shares_with_others(lanes) and await self._is_far_behind(heads, lanes):
            unindexed = await self._ahead.reach(heads, lanes.indexed, lanes.lanes - turns.apart.keys())
            if turns.has_room(len(unindexed)):
                # What waits for heads gets those of an earlier page, once indexing is there: a flood may last.
                self._awaited = self._awaited or list(heads)
                if not lanes.indexed.behind(self._awaited):
                    lanes.heads, self._awaited = self._awaited, list(heads)
                return unindexed
        self._ahead.end()
        self._awaited = []
        await self._barrier(heads, lanes)
        lanes.heads = list(heads)
        return set()

    async def _is_far_behind(self, heads: Sequence[int], lanes: OwnedLanes) -> bool:
        """Returns whether indexing has so much to do up to `heads` that others need not wait for it."""
        if lanes.indexed.missing(heads) > FAR_BEHIND:
            lanes.indexed.advance(dict(enumerate(await read_indexed(self._pool))))
        return lanes.indexed.missing(heads) > FAR_BEHIND

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


def _size_of_turn(size: int, took_s: float) -> int:
    """Returns how many records of a lane that is read apart are decided in its next turn, after one of this size."""
    if took_s > _TURN_S:
        return max(1, size // 2)
    return min(MAX_TURN, 2 * size) if took_s < _TURN_S / 4 else size
