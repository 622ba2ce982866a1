"""The job that forgets devices (ForgetDevice): it erases all that was received of a device, in every schema.

Attribution's own rows go in one transaction, the cut. All that it knew before the cut is erased everywhere; what comes
later is of a new device. Then postback and ingest are told what to erase, step by step. Each step can be repeated, and
the rest is stored after each.
"""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass

import structlog
from google.protobuf.message import DecodeError
from prometheus_client import Counter, Gauge

from libs.db import Connection, Pool
from libs.domain.device_ids import normalise
from libs.domain.lanes import LANES
from libs.parts import first_part
from libs.time import now_us
from reengage.attribution.v1 import quarantine_pb2
from reengage.ingest.v1 import log_pb2, record_erasure_pb2, record_pb2
from reengage.ingest.v1.service_pb2_grpc import IngestServiceStub
from reengage.postback.v1 import conversion_pb2
from reengage.postback.v1 import service_pb2_grpc as postback_grpc
from services.attribution.decision.matching import device_key, id_forms
from services.attribution.jobs.device_traces import DeviceTraces, find_traces
from services.attribution.live.changes import Changes
from services.attribution.live.log_reader import log_heads
from services.attribution.live.owned_lanes import OwnedLanes
from services.attribution.live.quarantine import is_circumstance, reason_of
from services.attribution.storage import erasures, quarantine
from services.attribution.storage.erasures import Erasure, StoredEngagement, Work
from services.attribution.storage.lanes import read_indexed
from services.attribution.storage.pending import count_early
from services.attribution.storage.quarantine import SetAside

_log = structlog.get_logger()
_done = Counter("attribution_erasures_total", "Devices forgotten.")
_age = Gauge("attribution_erasure_age_seconds", "Time since the request of the erasure that is at work.")


@dataclass(frozen=True, slots=True, kw_only=True)
class EraserConfig:
    """The limits and intervals of the job."""

    calls_end_s: float = 10.0
    """The time after the cut in which calls to postback that were under way have ended, because they are given up
    earlier: requests for claims, and offers that are handed over (queries/offers.py)."""
    look_interval_s: float = 0.5
    """The time between two looks at the table."""
    wait_interval_s: float = 0.1
    """The time between two looks at what an erasure waits for."""
    max_conversions: int = 1_000
    """Conversions of one call to postback, and devices."""
    max_device_ids: int = 500
    """Device ids of one search of the log: each has up to 190 forms, and ingest takes 100,000."""
    max_tries: int = 3
    """So often an erasure is tried before it is set aside."""
    max_record_ids: int = 100_000
    """Record ids of one search of the log."""


class Eraser:
    """The job: it does the erasures of the apps that are homed in the owned lanes, one after the other."""

    def __init__(
        self,
        *,
        pool: Pool,
        ingest: IngestServiceStub,
        postback: postback_grpc.PostbackServiceStub,
        config: EraserConfig = EraserConfig(),
        now_us: Callable[[], int] = now_us,
    ) -> None:
        self._pool, self._ingest, self._postback = pool, ingest, postback
        self._config, self._now_us = config, now_us
        self._failures: dict[uuid.UUID, int] = {}

    async def run(self, lanes: OwnedLanes) -> None:
        """Erases for as long as the lanes are owned. Raises LanesLostError."""
        while True:
            under_way = await erasures.under_way(self._pool, lanes.lanes)
            for erasure in under_way:
                _age.set((self._now_us() - erasure.request_time_us) / 1e6)
                await self._try(lanes, erasure)
            if not under_way:
                _age.set(0)
                await asyncio.sleep(self._config.look_interval_s)

    async def _try(self, lanes: OwnedLanes, erasure: Erasure) -> None:
        """Erases; what fails again and again is set aside, and the others go on."""
        try:
            await self._erase(lanes, erasure)
        except Exception as error:
            if is_circumstance(error):
                raise
            tries = self._failures[erasure.erasure_id] = self._failures.get(erasure.erasure_id, 0) + 1
            _log.warning("erasure.failed", erasure_id=str(erasure.erasure_id), exc_info=error)
            if tries < self._config.max_tries:
                return
            row = SetAside(
                lane=erasure.lane,
                work=quarantine_pb2.QUARANTINE_WORK_ERASE,
                app_id=erasure.app_id,
                place=str(erasure.erasure_id),
                record_id=str(erasure.erasure_id),
                reason=reason_of(error),
                error=type(error).__name__,  # its text may name the device
            )
            async with lanes.fenced() as connection:
                await lanes.append(connection, Changes(set_aside=[row]), lanes=[erasure.lane])
        self._failures.pop(erasure.erasure_id, None)

    async def _erase(self, lanes: OwnedLanes, erasure: Erasure) -> None:
        assert erasure.work is not None
        if not erasure.work.below:
            await self._until_taken(lanes, erasure)
            await self._cut(lanes, erasure)
        await self._erase_refused_links(lanes, erasure, erasure.work)
        await self._erase_conversions(lanes, erasure, erasure.work)
        await self._erase_records(lanes, erasure, erasure.work)
        erasure.work = None
        async with self._saving(lanes, erasure) as connection:
            await quarantine.forget(
                connection, erasure.lane, quarantine_pb2.QUARANTINE_WORK_ERASE, erasure.app_id, str(erasure.erasure_id)
            )
        _done.inc()
        _log.info("erasure.done", erasure_id=str(erasure.erasure_id), app_id=erasure.app_id, **erasure.erased_counts)

    async def _until_taken(self, lanes: OwnedLanes, erasure: Erasure) -> None:
        """Waits until all that the log holds now is indexed, and decided or pending with its device known."""
        heads = await log_heads(self._ingest)
        while True:
            indexed = await read_indexed(self._pool)
            is_taken = all(head <= min(at) for head, *at in zip(heads, indexed, lanes.taken(erasure.lane), strict=True))
            if is_taken and not await count_early(self._pool, [erasure.lane], erasure.app_id):
                return
            await asyncio.sleep(self._config.wait_interval_s)

    # The cut.

    async def _cut(self, lanes: OwnedLanes, erasure: Erasure) -> None:
        """Erases attribution's rows of the device, and notes what the others are to erase."""
        assert erasure.work is not None
        async with self._saving(lanes, erasure) as connection:
            below = await erasures.known_below(connection, erasure.lane, lanes.taken(erasure.lane))
            found = await find_traces(connection, erasure.app_id, erasure.work.device_ids, below)
            # A call that hands over offers may have read these conversions before the cut.
            may_be_called = await erasures.decided_again(connection, erasure.app_id, found.conversion_ids)
            rows = await erasures.erase_devices(connection, erasure.app_id, found.devices)
            rows["quarantined"] = await _erase_quarantined(connection, erasure, found)
            erasure.count("attribution", rows)
            stripped = await _erase_engagements(connection, erasure, found.engagements)
            ids = [device_key(erasure.app_id, each) for each in found.ids]
            await erasures.forget_meetings(connection, found.shared_keys, ids)
            may_be_called |= (
                await erasures.decided_again(connection, erasure.app_id, stripped) or rows["pending_conversions"] > 0
            )
            erasure.work = Work(
                device_ids=sorted(filter(_is_searched, found.ids)),
                below=below,
                lanes=list(range(LANES)),
                record_ids=sorted(found.record_ids),
                conversion_ids=sorted(found.conversion_ids),
                stripped_conversion_ids=stripped,
                our_ids=sorted(map(str, found.devices)),
                sequence=lanes.next_sequences[erasure.lane],
                claims_end_us=self._now_us() + round(self._config.calls_end_s * 1e6) if may_be_called else 0,
            )

    # The others.

    async def _erase_refused_links(self, lanes: OwnedLanes, erasure: Erasure, work: Work) -> None:
        """Deletes the decisions on identity links that came when nothing was known of the device (F3)."""
        wanted = {form for device_id in work.device_ids for form in id_forms(device_id)}
        after = (-(2**63), 0)
        while links := await erasures.refused_links(self._pool, erasure, after=after, below=work.sequence):
            after = links[-1].time_us, links[-1].sequence
            found = [link.sequence for link in links if not wanted.isdisjoint(_normalised_ids(link.record))]
            if found:
                async with self._saving(lanes, erasure) as connection:
                    rows = await erasures.erase_decisions(connection, erasure.lane, found)
                    erasure.count("attribution", {"decisions": rows})

    async def _erase_conversions(self, lanes: OwnedLanes, erasure: Erasure, work: Work) -> None:
        """Has postback erase its rows, once nothing of the device can be on its way to it."""
        await self._until_handed_over(erasure.lane, work)
        while work.conversion_ids or work.our_ids or work.stripped_conversion_ids:
            response = await self._postback.EraseConversions(
                conversion_pb2.EraseConversionsRequest(
                    app_id=erasure.app_id,
                    conversion_ids=work.conversion_ids[: self._config.max_conversions],
                    device_ids=work.our_ids[: self._config.max_conversions],
                    stripped_conversion_ids=work.stripped_conversion_ids[: self._config.max_conversions],
                )
            )
            erasure.count("postback", response.erased_counts)
            for done in (work.conversion_ids, work.our_ids, work.stripped_conversion_ids):
                del done[: self._config.max_conversions]
            await self._save(lanes, erasure)

    async def _until_handed_over(self, lane: int, work: Work) -> None:
        while True:
            if self._now_us() >= work.claims_end_us and await erasures.relayed(self._pool, lane, work.sequence):
                return
            await asyncio.sleep(self._config.wait_interval_s)

    async def _erase_records(self, lanes: OwnedLanes, erasure: Erasure, work: Work) -> None:
        """Has ingest erase what the log held at the cut, a lane at a time."""
        while work.device_ids or work.record_ids:
            forms = {
                form for device_id in work.device_ids[: self._config.max_device_ids] for form in id_forms(device_id)
            }
            record_ids = first_part(work.record_ids[: self._config.max_record_ids], lambda each: len(each.encode()))
            call = self._ingest.EraseRecords(
                record_erasure_pb2.EraseRecordsRequest(
                    app_id=erasure.app_id,
                    device_ids=sorted(forms),
                    record_ids=record_ids,
                    below=[log_pb2.LanePosition(lane=lane, position=work.below[lane]) for lane in work.lanes],
                )
            )
            try:
                async for response in call:
                    work.lanes = [lane for lane in work.lanes if lane not in response.lanes_done]
                    erasure.count("ingest", response.erased_counts)
                    if not work.lanes:  # begin anew with what a request had no room for
                        del (
                            work.device_ids[: self._config.max_device_ids],
                            work.record_ids[: len(record_ids)],
                        )
                        work.lanes = list(range(LANES))
                    await self._save(lanes, erasure)
            finally:
                call.cancel()

    async def _save(self, lanes: OwnedLanes, erasure: Erasure) -> None:
        """Stores an erasure."""
        async with self._saving(lanes, erasure):
            pass

    @contextlib.asynccontextmanager
    async def _saving(self, lanes: OwnedLanes, erasure: Erasure) -> AsyncIterator[Connection]:
        """Yields a fenced transaction that ends with storing an erasure."""
        async with lanes.fenced() as connection:
            yield connection
            await erasures.save(connection, erasure)
            await lanes.append(connection, lanes=[erasure.lane])


async def _erase_engagements(
    connection: Connection, erasure: Erasure, engagements: Collection[StoredEngagement]
) -> list[str]:
    """Erases engagements; returns the conversions of other devices that they had won."""
    if not engagements:
        return []
    stripped = await _strip(connection, erasure, {each.engagement_id for each in engagements})
    erasure.count("attribution", await erasures.erase_engagements(connection, erasure.app_id, engagements))
    return stripped


async def _erase_quarantined(connection: Connection, erasure: Erasure, found: DeviceTraces) -> int:
    """Erases what was set aside of the device, or of a record that cannot be read and names it."""
    forms = {form for each in found.ids for form in id_forms(each)}
    raw = [each.encode() for each in found.ids]

    def is_of_it(what: SetAside) -> bool:
        if what.device_id in found.devices or what.record_id in found.conversion_ids:
            return True
        try:
            return not forms.isdisjoint(_normalised_ids(what.record or b""))
        except DecodeError:
            return any(each in (what.record or b"") for each in raw)

    rows = [each for each in await quarantine.of_app(connection, erasure.app_id) if is_of_it(each.what)]
    return await quarantine.erase(connection, rows) if rows else 0


async def _strip(connection: Connection, erasure: Erasure, engagement_ids: Collection[str]) -> list[str]:
    """Removes these engagements from decisions on other devices; returns their conversions."""
    found = {
        sequence: conversion_id
        async for sequence, conversion_id, content in erasures.decisions_holding(
            connection, erasure.app_id, engagement_ids
        )
        if record_pb2.Record.FromString(content).record_id in engagement_ids
    }
    await erasures.strip_decisions(connection, erasure.lane, found.keys())
    return sorted(set(found.values()))


def _is_searched(device_id: str) -> bool:
    """Returns whether ingest searches for an id: it refuses `- 0` or `: :`, of which nothing is left."""
    return bool(normalise(device_id).strip("0"))


def _normalised_ids(content: bytes) -> set[str]:
    return {normalise(value) for value in record_pb2.Record.FromString(content).device_ids.values()}
