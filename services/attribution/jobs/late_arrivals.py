"""The job that decides again what late arrivals change (D12): clicks out of a spool, an install behind its first event.

Late records lie in a table, written with what they are late for: so a crash loses none. What one changes is decided
again, written and ticked off in one transaction, in which nobody else decides for the app. A conversion that is decided
later sees the late record by itself.
"""

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client import Counter, Gauge

from libs.db import Connection, Pool
from libs.domain.snapshots import Follower
from libs.time import now_us
from reengage.attribution.v1 import quarantine_pb2
from services.attribution.decision.decide import CONSIDERED_US
from services.attribution.decision.matching import own_key
from services.attribution.decision.rules import AppRules
from services.attribution.live.changes import Changes
from services.attribution.live.lateness import Concerned, concerned_devices
from services.attribution.live.owned_lanes import OwnedLanes
from services.attribution.live.quarantine import in_halves, is_circumstance, reason_of, text_of
from services.attribution.pace import Pace
from services.attribution.redecide.replay import Replay
from services.attribution.redecide.replayed import Replayed
from services.attribution.redecide.rewriting import changed_devices, new_versions, winners
from services.attribution.storage import late_arrivals
from services.attribution.storage.engagements import find_records
from services.attribution.storage.late_arrivals import LateArrival, Placed
from services.attribution.storage.quarantine import SetAside
from services.attribution.storage.replay import Period, Stored, find_settings_revisions
from services.attribution.wire.past_rules import PastRules
from services.attribution.wire.rulebook import Rulebook

_END_OF_TIME_US = 1 << 62

_arrivals = Counter("attribution_late_arrivals_total", "Late records whose changes were decided.")
_changed = Counter("attribution_decided_again_total", "New versions of decisions because of late records.")
_age = Gauge(
    "attribution_late_arrivals_age_seconds", "Time since the receipt of the oldest late record not dealt with."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LateArrivalsConfig:
    """The limits and intervals of the job."""

    max_arrivals: int = 50
    """Late records of one transaction: live work waits for it. More, as long as they concern no more devices."""
    max_arrivals_of_few: int = 2_000
    """Late records of one transaction that concern few devices: each device is decided again once for all of them."""
    max_bytes: int = 8 << 20
    """The bytes of engagements that are held at once."""
    look_interval_s: float = 0.25
    """The time between two looks at the table, while there is nothing to do."""


class LateArrivals:
    """The job: it works on the late arrivals of the apps that are homed in the owned lanes, the oldest first."""

    def __init__(
        self,
        *,
        pool: Pool,
        settings: Follower[Rulebook],
        past_rules: PastRules,
        pace: Pace,
        config: LateArrivalsConfig = LateArrivalsConfig(),
        now_us: Callable[[], int] = now_us,
    ) -> None:
        self._pool, self._settings, self._past_rules = pool, settings, past_rules
        self._pace, self._config, self._now_us = pace, config, now_us
        self._limits: dict[str, int] = {}

    async def run(self, lanes: OwnedLanes) -> None:
        """Decides again for as long as the lanes are owned. Raises LanesLostError."""
        while True:
            if not await self.work(lanes):
                await asyncio.sleep(self._config.look_interval_s)

    async def work(self, lanes: OwnedLanes) -> bool:
        """Deals with the oldest late arrivals of each app; returns whether there were any. Raises LanesLostError."""
        apps = await late_arrivals.find_apps(self._pool, lanes.lanes)
        ages_us = (self._now_us() - each.receive_time_us for each in apps)
        _age.set(max(0.0, max(ages_us, default=0) / 1e6))
        for lane, app_id, _ in apps:
            await self._work_on_app(lanes, lane, app_id)
        self._limits = {each.app_id: self._limits[each.app_id] for each in apps if each.app_id in self._limits}
        return bool(apps)

    async def _work_on_app(self, lanes: OwnedLanes, lane: int, app_id: str) -> None:
        """Deals with the oldest late arrivals of an app: with more of them at once while they concern few devices.

        One that cannot be dealt with is set aside.
        """
        config = self._config
        limit = self._limits.get(app_id, config.max_arrivals)
        placed = await late_arrivals.oldest(self._pool, lane, app_id, limit, config.max_bytes)
        if len(placed) > config.max_arrivals and not await self._are_of_few(placed):
            placed = placed[: config.max_arrivals]
        self._limits[app_id] = max(config.max_arrivals, min(2 * len(placed), config.max_arrivals_of_few))

        async def decide_again(some: range) -> None:
            part = placed[some.start : some.stop]
            await self.decide_again(
                lanes,
                [each.arrival for each in part],
                also=lambda connection: late_arrivals.delete(connection, part),
            )

        async def set_aside(at: int, error: Exception) -> None:
            rows = await self._decide_apart(lanes, placed[at].arrival, error)
            async with lanes.fenced() as connection:
                await late_arrivals.delete(connection, [placed[at]])
                await lanes.append(connection, Changes(set_aside=rows), lanes=[lane])

        await in_halves(len(placed), decide_again, set_aside)

    async def _decide_apart(self, lanes: OwnedLanes, arrival: LateArrival, error: Exception) -> list[SetAside]:
        """Deals with a late arrival device by device; returns what is set aside, for that device alone if it can be."""
        try:
            async with self._pool.acquire() as connection:
                device_ids = sorted(await concerned_devices(connection, [arrival]))
        except Exception as why:
            if is_circumstance(why):
                raise
            device_ids = []
        if len(device_ids) < 2:
            return [_set_aside(arrival, error)]
        rows: list[SetAside] = []

        async def decide_again(some: range) -> None:
            await self.decide_again(lanes, [arrival], only=device_ids[some.start : some.stop])

        async def set_aside(at: int, error: Exception) -> None:
            of_device = arrival._replace(device_id=device_ids[at], engagement_id=None, engagement=None)
            rows.append(_set_aside(of_device, error))

        await in_halves(len(device_ids), decide_again, set_aside)
        return rows

    async def _are_of_few(self, placed: Sequence[Placed]) -> bool:
        """Returns whether late arrivals concern few devices."""
        try:
            async with self._pool.acquire() as connection:
                concerned = await concerned_devices(connection, [each.arrival for each in placed])
        except Exception as error:
            if is_circumstance(error):
                raise
            return False  # one of them cannot be dealt with
        return 2 * len(concerned) <= len(placed)

    async def decide_again(
        self,
        lanes: OwnedLanes,
        arrivals: Sequence[LateArrival],
        *,
        only: Collection[uuid.UUID] | None = None,
        also: Callable[[Connection], Awaitable[object]] | None = None,
    ) -> None:
        """Deals with late arrivals of one app, given in order of receipt: with all devices, or with some of them only.

        `also` is done in the same transaction.
        """
        app_id, lane = arrivals[0].app_id, arrivals[0].lane
        rules = self._settings.current.apps[app_id]
        period = Period(
            app_id=app_id,
            start_us=0,
            end_us=_END_OF_TIME_US,
            received_since_us=arrivals[0].receive_time_us - rules.app.late_window_us,
        )
        async with self._pool.acquire() as connection:
            concerned = await _concerned(connection, arrivals, only)
            revisions = await find_settings_revisions(connection, period, concerned)
        await self._past_rules.learn(app_id, revisions)
        with self._pace.live():
            async with lanes.fenced() as connection:
                # Once more: only here nobody else decides for these devices.
                concerned = await _concerned(connection, arrivals, only)
                replayed = await self._replay(connection, period, concerned)
                changes = await self._changes(connection, period, concerned, replayed, lanes.next_sequences[lane])
                if also is not None:
                    await also(connection)
                await lanes.append(connection, changes, lanes=[lane])
        _arrivals.inc(len(arrivals))
        _changed.inc(len(changes.decisions))

    async def _replay(
        self, connection: Connection, period: Period, device_ids: Collection[uuid.UUID]
    ) -> list[Replayed]:
        def rules_of(stored: Stored) -> AppRules:
            return self._past_rules.at(period.app_id, stored.decision.settings_revision)

        rules = self._settings.current.apps[period.app_id]
        replay = Replay(
            self._pool,
            period,
            rules,
            _at_once,
            until_us=_END_OF_TIME_US,
            rules_of=rules_of,
            sessions_too=True,
        )
        return await replay.devices(connection, device_ids) if device_ids else []

    async def _changes(
        self,
        connection: Connection,
        period: Period,
        concerned: Concerned,
        replayed: Sequence[Replayed],
        sequence: int,
    ) -> Changes:
        because = {
            changed.stored.conversion_id: late
            for each in replayed
            for changed in each.changed
            if (late := _first(concerned, each.device_ids)) is not None
        }
        changed = [changed for each in replayed for changed in each.changed]
        now_us = self._now_us()
        versions = new_versions(changed, period, sequence=sequence, now_us=now_us, because=because)
        return Changes(
            decisions=versions,
            won=winners(versions),
            devices=await changed_devices(connection, [each for each in replayed if each.changed], now_us),
            late=await _moved(connection, period, concerned, replayed),
        )


async def _moved(
    connection: Connection, period: Period, concerned: Mapping[uuid.UUID, LateArrival], replayed: Iterable[Replayed]
) -> list[LateArrival]:
    """Returns what is to be decided again because an engagement can win once more, or once less (D5)."""
    moved = {
        engagement_id: (time_us, late)
        for each in replayed
        if (late := _first(concerned, each.device_ids)) is not None
        for engagement_id, time_us in each.moved.items()
    }
    keys = {engagement_id: own_key(period.app_id, engagement_id) for engagement_id in moved}
    asked = {(keys[engagement_id], time_us, period.app_id) for engagement_id, (time_us, _) in moved.items()}
    records = dict[bytes, bytes]()
    while asked:
        found, asked = await find_records(connection, asked, span_us=CONSIDERED_US)
        records |= found
    return [
        late._replace(device_id=None, engagement_id=engagement_id, engagement=record)
        for engagement_id, (_, late) in moved.items()
        if (record := records.get(keys[engagement_id])) is not None
    ]


async def _concerned(
    connection: Connection, arrivals: Sequence[LateArrival], only: Collection[uuid.UUID] | None
) -> Concerned:
    concerned = await concerned_devices(connection, arrivals)
    return {each: late for each, late in concerned.items() if only is None or each in only}


def _set_aside(arrival: LateArrival, error: Exception) -> SetAside:
    return SetAside(
        lane=arrival.lane,
        work=quarantine_pb2.QUARANTINE_WORK_LATE_ARRIVAL,
        app_id=arrival.app_id,
        place=f"{arrival.record_id}:{arrival.device_id or ''}",
        record_id=arrival.record_id,
        reason=reason_of(error),
        error=text_of(error),
        receive_time_us=arrival.receive_time_us,
        record=arrival.engagement,
        because=arrival.because,
        device_id=arrival.device_id,
    )


def _first(concerned: Mapping[uuid.UUID, LateArrival], device_ids: Collection[uuid.UUID]) -> LateArrival | None:
    """Returns the late arrival that was received first of those that concern one of these devices."""
    found = (concerned[device_id] for device_id in device_ids if device_id in concerned)
    return min(found, key=lambda late: late.receive_time_us, default=None)


async def _at_once() -> None:
    """Gives others a turn and does not rest: others wait for the transaction, but leases must be renewed."""
    await asyncio.sleep(0)
