"""Re-attributions (G4): what starts, shows and stops them, and the job that works on them.

The job goes through the devices of an app in the order of their ids. Most come out as they were and cost live work
nothing. The others are decided once more in the transaction that writes new versions, device histories and the progress
of the job, so that a crash loses nothing and does nothing twice.
"""

import asyncio
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import structlog

from libs.db import Connection, Pool
from libs.domain.snapshots import Follower
from libs.errors import AlreadyExists, FailedPrecondition, NotFound
from reengage.attribution.v1 import quarantine_pb2
from services.attribution.live.changes import Changes
from services.attribution.live.owned_lanes import OwnedLanes
from services.attribution.live.quarantine import is_circumstance, reason_of, text_of
from services.attribution.pace import Guest, Pace
from services.attribution.redecide.replay import Replay
from services.attribution.redecide.replayed import Replayed
from services.attribution.redecide.rewriting import changed_devices, new_versions, winners
from services.attribution.redecide.totals import Totals
from services.attribution.storage import reattributions
from services.attribution.storage.quarantine import SetAside
from services.attribution.storage.reattributions import Reattribution, State
from services.attribution.storage.replay import FIRST_DEVICE, Period, estimate, find_devices
from services.attribution.wire.rulebook import Rulebook

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReattributorConfig:
    """The limits and intervals of the job."""

    page_size: int = 1_000
    """About how many conversions are read and decided again at a time."""
    max_written: int = 200
    """Conversions of changed devices in one transaction: live work waits for it, some 20 ms."""
    look_interval_s: float = 0.5
    """The time between two looks at the table, while there is nothing to do."""


class Reattributions:
    """The re-attributions, for those who start, look at and stop them."""

    def __init__(self, pool: Pool, settings: Follower[Rulebook]) -> None:
        self._pool, self._settings = pool, settings

    async def start(self, period: Period, reattribution_id: str, *, send_postbacks: bool) -> Reattribution:
        """Returns a new re-attribution, or the one with this id. Raises NotFound, AlreadyExists, FailedPrecondition."""
        if period.app_id not in self._settings.current.apps:
            raise NotFound("APP_NOT_FOUND", "there is no such app")
        async with self._pool.acquire() as connection:
            total = await estimate(connection, period)
        await reattributions.insert(self._pool, period, reattribution_id, send_postbacks, total)
        job = await reattributions.find(self._pool, period.app_id, reattribution_id)
        if job is None:
            raise FailedPrecondition(
                "REATTRIBUTION_RUNNING", "another re-attribution of this app is running; wait for it or cancel it"
            )
        if (job.period, job.send_postbacks) != (period, send_postbacks):
            raise AlreadyExists("REATTRIBUTION_EXISTS", "another re-attribution has this id")
        return job

    async def get(self, app_id: str, reattribution_id: str) -> Reattribution:
        """Returns a re-attribution. Raises NotFound."""
        job = await reattributions.find(self._pool, app_id, reattribution_id)
        if job is None:
            raise NotFound("REATTRIBUTION_NOT_FOUND", "this app has no such re-attribution")
        return job

    async def page(self, app_id: str, *, before: tuple[int, str] | None, limit: int) -> list[Reattribution]:
        """Returns re-attributions of an app, newest first: those after a place in that order, or the first."""
        return await reattributions.list_page(self._pool, app_id, before, limit)

    async def cancel(self, job: Reattribution) -> Reattribution:
        """Stops a re-attribution if it still runs; returns it as it is then."""
        await reattributions.end(self._pool, job, State.CANCELLED)
        return await self.get(job.app_id, job.reattribution_id)


class Reattributor:
    """The job: it works on the re-attributions of the apps that are homed in the owned lanes."""

    def __init__(
        self,
        pool: Pool,
        settings: Follower[Rulebook],
        pace: Pace,
        now_us: Callable[[], int],
        config: ReattributorConfig = ReattributorConfig(),
    ) -> None:
        self._pool, self._settings, self._pace, self._now_us = pool, settings, pace, now_us
        self._config = config
        self._sizes: dict[str, int] = {}

    async def run(self, lanes: OwnedLanes) -> None:
        """Works on the oldest re-attribution, a page at a time, until cancelled."""
        while True:
            job = await reattributions.oldest_running(self._pool, lanes.lanes)
            if job is None:
                await asyncio.sleep(self._config.look_interval_s)
                continue
            with self._pace.guest() as guest:
                try:
                    await self._try(lanes, job, guest)
                except _MovedOnError:  # it was cancelled, or somebody else has gone on with it
                    continue

    async def _try(self, lanes: OwnedLanes, job: Reattribution, guest: Guest) -> None:
        """Works on one page of a re-attribution; on smaller ones where that fails, until one device is set aside."""
        size = self._sizes.get(job.reattribution_id, self._config.page_size)
        try:
            await self._work(lanes, job, guest, size)
        except Exception as error:
            if isinstance(error, _MovedOnError) or is_circumstance(error):
                raise
            self._sizes[job.reattribution_id] = size // 4
            if size > 0:
                return
            await self._set_aside(lanes, job, error)
        larger = max(1, 2 * size)
        self._sizes.pop(job.reattribution_id, None)
        if larger < self._config.page_size:
            self._sizes[job.reattribution_id] = larger

    async def _set_aside(self, lanes: OwnedLanes, job: Reattribution, error: Exception) -> None:
        """Sets the next device aside, and moves past it."""
        async with lanes.fenced() as connection:
            # It may have been written by a re-attribution that began later, or be gone: then the next page shows it.
            (device_id, *_), _ = await find_devices(connection, job.period, job.after_device or FIRST_DEVICE, 1)
            await _advance(connection, job, replace(job, after_device=device_id))
            row = SetAside(
                lane=job.period.lane,
                work=quarantine_pb2.QUARANTINE_WORK_REATTRIBUTE,
                app_id=job.app_id,
                place=f"{job.reattribution_id}:{device_id}",
                record_id=job.reattribution_id,
                reason=reason_of(error),
                error=text_of(error),
                device_id=device_id,
            )
            await lanes.append(connection, Changes(set_aside=[row]), lanes=[job.period.lane])

    async def _work(self, lanes: OwnedLanes, job: Reattribution, guest: Guest, size: int) -> None:
        """Works on one page of a re-attribution."""
        rules = self._settings.current.apps[job.app_id]
        replay = Replay(self._pool, job.period, rules, guest.turn, until_us=job.create_time_us)
        page = await replay.page(job.after_device or FIRST_DEVICE, max(1, size))
        for some in _in_steps(page.replayed, self._config.max_written):
            job = await self._step(lanes, job, some)
            await guest.turn()
        if page.last_device_id is not None:
            await _advance(self._pool, job, replace(job, after_device=page.last_device_id))
            return
        await reattributions.end(self._pool, job, State.DONE)
        _log.info(
            "reattribution.done",
            app_id=job.app_id,
            reattribution_id=job.reattribution_id,
            conversions=job.conversion_count,
            changed=job.changed_count,
        )

    async def _step(self, lanes: OwnedLanes, job: Reattribution, some: Sequence[Replayed]) -> Reattribution:
        """Finishes devices: those that come out as they were by a note, the others by writing them anew."""
        unchanged = [replayed for replayed in some if not replayed.changed]
        if len(unchanged) == len(some):
            done = _done(job, some, some[-1].last_device_id)
            await _advance(self._pool, job, done)
            return done
        device_ids = {each.device_id for each in some if each.changed}
        async with lanes.fenced() as connection:
            replayed, changes = await self.decide_devices(connection, lanes, job, device_ids)
            done = _done(job, [*unchanged, *replayed], some[-1].last_device_id)
            await _advance(connection, job, done)
            await lanes.append(connection, changes, lanes=[job.period.lane])
        return done

    async def decide_devices(
        self, connection: Connection, lanes: OwnedLanes, job: Reattribution, device_ids: Collection[uuid.UUID]
    ) -> tuple[list[Replayed], Changes]:
        """Decides devices again in a fenced transaction: only there nobody else decides for them."""
        rules = self._settings.current.apps[job.app_id]
        replay = Replay(self._pool, job.period, rules, _at_once, until_us=job.create_time_us)
        replayed = await replay.devices(connection, device_ids)
        versions = new_versions(
            [changed for each in replayed for changed in each.changed],
            job.period,
            sequence=lanes.next_sequences[job.period.lane],
            now_us=self._now_us(),
            reattribution_id=job.reattribution_id,
            is_relayed=job.send_postbacks,
        )
        devices = await changed_devices(connection, replayed, self._now_us())
        return replayed, Changes(decisions=versions, won=winners(versions), devices=devices)


async def _advance(connection: "Connection | Pool", now: Reattribution, then: Reattribution) -> None:
    """Notes how far a re-attribution is. Raises _MovedOnError when it is not where it was, or does not run any more."""
    if not await reattributions.advance(connection, now, then):
        raise _MovedOnError


class _MovedOnError(Exception):
    """A re-attribution that is not where it was: nothing was written."""


async def _at_once() -> None:
    """Gives others a turn and does not rest: others wait for the transaction, but leases must be renewed."""
    await asyncio.sleep(0)


def _in_steps(replayed: Iterable[Replayed], max_written: int) -> Iterator[list[Replayed]]:
    """Yields devices in parts, each with as many conversions of changed devices as one transaction may write."""
    some: list[Replayed] = []
    count = 0
    for each in replayed:
        more = len(each.credits) if each.changed else 0
        if some and count + more > max_written:
            yield some
            some, count = [], 0
        some.append(each)
        count += more
    if some:
        yield some


def _done(job: Reattribution, replayed: Iterable[Replayed], last_device_id: uuid.UUID) -> Reattribution:
    """Returns the re-attribution with these devices done."""
    replayed = list(replayed)
    totals = Totals.from_json(job.totals)
    for each in replayed:
        totals.add(each.credits)
    return replace(
        job,
        after_device=last_device_id,
        conversion_count=job.conversion_count + sum(len(each.credits) for each in replayed),
        changed_count=job.changed_count + sum(len(each.changed) for each in replayed),
        totals=totals.to_json(),
    )
