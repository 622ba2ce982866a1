"""The job that tries again what was set aside, once somebody asks for it.

It is processed as it would have been in its turn, and gone from the table in the same transaction. What it changes of
later decisions the late arrivals decide again (D12). A retry that fails leaves it where it is, with one try more.
"""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import structlog

from libs.db import Connection, Pool
from libs.domain.snapshots import Follower
from libs.messages import short_name
from libs.time import now_us
from reengage.attribution.v1 import quarantine_pb2
from reengage.ingest.v1 import log_pb2
from reengage.postback.v1 import service_pb2_grpc as postback_grpc
from services.attribution.jobs.late_arrivals import LateArrivals
from services.attribution.jobs.reattribution import Reattributor
from services.attribution.live.batch import decide_batch
from services.attribution.live.changes import NO_CHANGES, Changes
from services.attribution.live.claim_triggers import ClaimTriggers
from services.attribution.live.log_reader import rulebook_for
from services.attribution.live.owned_lanes import OwnedLanes
from services.attribution.live.pending import row_of
from services.attribution.live.quarantine import is_circumstance, lying, reason_of, text_of
from services.attribution.live.relay import hand_to_postback, is_circumstance_of_relaying
from services.attribution.storage import quarantine, reattributions
from services.attribution.storage.decisions import read_outbox
from services.attribution.storage.devices import NO_DEVICE
from services.attribution.storage.engagements import EngagementIndex
from services.attribution.storage.hashed_ids import find_hash_lengths
from services.attribution.storage.late_arrivals import LateArrival
from services.attribution.storage.pending import PendingRow
from services.attribution.storage.quarantine import Quarantined, SetAside
from services.attribution.wire.records import Logged, index_rows, parse
from services.attribution.wire.rulebook import Rulebook

_Process: TypeAlias = Callable[[Connection], Awaitable[Changes]]

_log = structlog.get_logger()

_WORK = quarantine_pb2.QuarantineWork
_RELAY = quarantine_pb2.QUARANTINE_WORK_RELAY


@dataclass(frozen=True, slots=True, kw_only=True)
class QuarantineConfig:
    """The limits and intervals of the job."""

    max_held: int = 20
    """Things that are held at once."""
    look_interval_s: float = 1.0
    """The time between two looks at the table."""
    count_interval_s: float = 10.0
    """The time between two counts of what lies there."""


class QuarantineRetrier:
    """The job: it tries again what lies in the owned lanes and is asked for, one after the other."""

    def __init__(
        self,
        *,
        pool: Pool,
        settings: Follower[Rulebook],
        triggers: ClaimTriggers,
        postback: postback_grpc.PostbackServiceStub,
        late_arrivals: LateArrivals,
        reattributor: Reattributor,
        config: QuarantineConfig = QuarantineConfig(),
        now_us: Callable[[], int] = now_us,
        new_id: Callable[[], uuid.UUID] = uuid.uuid4,
    ) -> None:
        self._pool, self._settings, self._triggers, self._postback = pool, settings, triggers, postback
        self._late_arrivals, self._reattributor, self._index = late_arrivals, reattributor, EngagementIndex(pool)
        self._config, self._now_us, self._new_id = config, now_us, new_id

    async def run(self, lanes: OwnedLanes) -> None:
        """Tries again for as long as the lanes are owned. Raises LanesLostError."""
        counted = -self._config.count_interval_s
        while True:
            if time.monotonic() - counted >= self._config.count_interval_s:
                counted = time.monotonic()
                await self._count(lanes)
            rows = await quarantine.to_retry(self._pool, lanes.lanes, self._config.max_held)
            for row in rows:
                await self._try(lanes, row)
            if rows:
                await self._count(lanes)
            else:
                await asyncio.sleep(self._config.look_interval_s)

    async def _count(self, lanes: OwnedLanes) -> None:
        counts = await quarantine.count(self._pool, lanes.lanes)
        for work in _WORK.values():
            if work:
                lying.labels(short_name(_WORK.DESCRIPTOR, work)).set(counts.get(work, 0))

    async def _try(self, lanes: OwnedLanes, row: Quarantined) -> None:
        """Tries one thing again."""
        try:
            await self._process(lanes, row)
        except Exception as error:
            of_relaying = row.what.work == _RELAY
            if is_circumstance_of_relaying(error) if of_relaying else is_circumstance(error):
                raise
            async with lanes.fenced() as connection:
                await quarantine.note_failure(connection, row, reason_of(error), text_of(error))
                await lanes.append(connection, lanes=[row.what.lane])
            _log.warning("quarantine.failed_again", app_id=row.what.app_id, tries=row.try_count + 1)

    async def _process(self, lanes: OwnedLanes, row: Quarantined) -> None:
        match _WORK.ValueType(row.what.work):
            case quarantine_pb2.QUARANTINE_WORK_INDEX:
                await self._write(lanes, row, partial(self._indexed, what=row.what))
            case quarantine_pb2.QUARANTINE_WORK_DECIDE:
                await self._write(lanes, row, partial(self._decided, lanes=lanes, what=row.what))
            case quarantine_pb2.QUARANTINE_WORK_RELAY:
                await self._hand_over(row.what)
                await self._write(lanes, row, _nothing)
            case quarantine_pb2.QUARANTINE_WORK_LATE_ARRIVAL:
                await self._late_arrivals.decide_again(lanes, [_arrival(row.what)], also=partial(_take, row=row))
            case quarantine_pb2.QUARANTINE_WORK_REATTRIBUTE:
                await self._write(lanes, row, partial(self._decided_again, lanes=lanes, what=row.what))
            case work:
                raise AssertionError(f"work {work} is not tried here")

    async def _write(self, lanes: OwnedLanes, row: Quarantined, process: _Process) -> None:
        """Processes a thing, unless it is gone, in the transaction that takes it out of the table."""
        async with lanes.fenced() as connection:
            is_there = await quarantine.take(connection, row)
            changes = await process(connection) if is_there else NO_CHANGES
            await lanes.append(connection, changes, lanes=[row.what.lane])

    async def _indexed(self, connection: Connection, what: SetAside) -> Changes:
        """Indexes an engagement. Whatever its time, what was decided meanwhile was decided without it."""
        logged = parse([_entry(what)])
        apps = (await rulebook_for(self._settings, logged)).apps
        lengths = await find_hash_lengths(connection, {what.app_id}, is_on_conversions=True)
        rows = index_rows(logged, apps, lengths, are_late=True)
        await self._index.insert(connection, rows)
        return NO_CHANGES

    async def _decided(self, connection: Connection, lanes: OwnedLanes, what: SetAside) -> Changes:
        logged = parse([_entry(what)])
        rulebook = await rulebook_for(self._settings, logged)
        now_us = self._now_us()
        return await decide_batch(
            connection,
            logged,
            apps=rulebook.apps,
            next_sequences=lanes.next_sequences,
            new_id=self._new_id,
            now_us=now_us,
            asking=self._triggers.asking(lanes.pending.app_ids, now_us),
            hashed=lanes.hashed.by_app,
            resumed={} if what.claims is None else {(what.app_id, what.record_id): _waited(logged[0], what.claims)},
        )

    async def _hand_over(self, what: SetAside) -> None:
        assert what.position is not None
        rows, _ = await read_outbox(self._pool, {what.lane: range(what.position, what.position + 1)}, 1)
        await hand_to_postback(self._postback, rows, self._settings.current)

    async def _decided_again(self, connection: Connection, lanes: OwnedLanes, what: SetAside) -> Changes:
        job = await reattributions.find(self._pool, what.app_id, what.record_id)
        if job is None or what.device_id is None:
            return NO_CHANGES
        _, changes = await self._reattributor.decide_devices(connection, lanes, job, {what.device_id})
        return changes


async def _take(connection: Connection, row: Quarantined) -> None:
    await quarantine.take(connection, row)


async def _nothing(_: Connection) -> Changes:
    """Changes nothing: postback has it already."""
    return NO_CHANGES


def _entry(what: SetAside) -> log_pb2.LogEntry:
    """Returns the log entry that was set aside, as the log served it."""
    return log_pb2.LogEntry(
        lane=what.log_lane or 0,
        position=what.position or 0,
        app_lane=what.lane,
        receive_time_us=what.receive_time_us or 0,
        record=what.record or b"",
    )


def _arrival(what: SetAside) -> LateArrival:
    return LateArrival(
        lane=what.lane,
        app_id=what.app_id,
        record_id=what.record_id,
        receive_time_us=what.receive_time_us or 0,
        because=what.because or 0,
        device_id=what.device_id,
        engagement_id=None if what.record is None else what.record_id,
        engagement=what.record,
    )


def _waited(logged: Logged, claims: bytes) -> PendingRow:
    """Returns the row of a conversion that had its answers when it was set aside."""
    return row_of(logged, NO_DEVICE)._replace(claims=claims)
