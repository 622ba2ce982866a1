"""Forgets devices (ForgetDevice): the job that erases all that was received of one, in every schema.

Attribution's own rows go in one transaction, the cut: what it knew up to then is erased everywhere, what comes later is
of a new device. The others are told what to erase afterwards, step by step; each step can be repeated, and what is left
is stored after each.
"""

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

import structlog
from prometheus_client import Counter, Gauge

from libs.db import Connection, Pool
from libs.domain.device_ids import HASH_METHODS, KINDS, RAW_KINDS, normalise
from libs.domain.lanes import LANES
from reengage.ingest.v1 import log_pb2, record_erasure_pb2, record_pb2
from reengage.ingest.v1.service_pb2_grpc import IngestServiceStub
from reengage.postback.v1 import conversion_pb2
from reengage.postback.v1 import service_pb2_grpc as postback_grpc
from services.attribution.decision.matching import (
    device_key,
    id_forms,
    own_key,
)
from services.attribution.live.owned_lanes import OwnedLanes
from services.attribution.storage import erasures
from services.attribution.storage.devices import find_identifiers
from services.attribution.storage.erasures import Erasure, Erasures, StoredEngagement, Work
from services.attribution.storage.lanes import read_indexed
from services.attribution.wire.records import click_id_of, identity_key

_log = structlog.get_logger()
_done = Counter("attribution_erasures_total", "Devices forgotten.")
_age = Gauge("attribution_erasure_age_seconds", "How long ago the erasure was asked for that is at work.")

CLAIMS_END_S = 10.0
"""A request for claims that was under way at the cut has ended by then, and a call that hands over what was offered:
both are given up earlier."""
_LOOK_S = 0.5
_WAIT_S = 0.1
_BATCH = 1_000
_HASH_OF_LENGTH = {length: method for method, length in HASH_METHODS.items()}
_DEVICE_IDS = 500
_RECORD_IDS = 100_000
"""In one search of the log; of each device id there are up to 190 forms, and ingest takes 100,000."""


class Eraser:
    """The job `eraser`: does the erasures of the apps homed in the owned lanes, one after the other."""

    def __init__(
        self,
        *,
        pool: Pool,
        ingest: IngestServiceStub,
        postback: postback_grpc.PostbackServiceStub,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self._pool, self._ingest, self._postback, self._now_us = pool, ingest, postback, now_us
        self._erasures = Erasures(pool)

    async def run(self, shared: OwnedLanes) -> None:
        """Erase for as long as the lanes are owned. Raises LanesLostError."""
        while True:
            under_way = await self._erasures.under_way(shared.lanes)
            for erasure in under_way:
                _age.set(self._now_us() / 1e6 - erasure.request_time.timestamp())
                await self._erase(shared, erasure)
            if not under_way:
                _age.set(0)
                await asyncio.sleep(_LOOK_S)

    async def _erase(self, shared: OwnedLanes, erasure: Erasure) -> None:
        assert erasure.work is not None
        if not erasure.work.below:
            await self._until_taken(shared)
            await self._cut(shared, erasure)
        await self._erase_refused_links(shared, erasure, erasure.work)
        await self._erase_conversions(shared, erasure, erasure.work)
        await self._erase_records(shared, erasure, erasure.work)
        erasure.work = None
        await self._save(shared, erasure)
        _done.inc()
        _log.info("erasure.done", erasure_id=str(erasure.erasure_id), app_id=erasure.app_id, **erasure.erased_counts)

    async def _until_taken(self, shared: OwnedLanes) -> None:
        """Wait until all that the log holds now is indexed, and decided or waiting for claims."""
        heads = await self._heads()
        while True:
            indexed = await read_indexed(self._pool)
            if all(head <= min(at) for head, *at in zip(heads, indexed, shared.positions, strict=True)):
                return
            await asyncio.sleep(_WAIT_S)

    async def _heads(self) -> list[int]:
        """Where the lanes of the log end."""
        request = log_pb2.ReadLogRequest()
        getattr(request, "from").add(lane=0, position=2**62)  # beyond all entries
        call = self._ingest.ReadLog(request)
        try:
            async for response in call:
                return list(response.heads)
        finally:
            call.cancel()
        raise AssertionError("ReadLog does not end")

    # The cut.

    async def _cut(self, shared: OwnedLanes, erasure: Erasure) -> None:
        """Erase what attribution has of the device, and note what the others are to erase."""
        asked = erasure.work
        assert asked is not None
        async with self._saving(shared, erasure) as connection:
            below = await erasures.known_below(connection, erasure.lane, shared.positions)
            found = await _find(connection, erasure.app_id, asked.device_ids, below)
            decided_again = await erasures.decided_again(connection, erasure.app_id, found.conversion_ids)
            rows = await erasures.erase_devices(connection, erasure.app_id, found.devices)
            erasure.count("attribution", rows)
            stripped: list[str] = []
            if found.engagements:
                stripped = await _strip(connection, erasure, {each.engagement_id for each in found.engagements})
                gone = await erasures.erase_engagements(connection, erasure.app_id, found.engagements)
                erasure.count("attribution", gone)
                decided_again |= await erasures.decided_again(connection, erasure.app_id, stripped)
            # Whoever hands over what a re-attribution offers (offers.py) has perhaps read it before the cut.
            may_be_called = decided_again or rows["waiting"] > 0
            erasure.work = Work(
                device_ids=sorted(filter(_is_one, found.ids)),
                below=below,
                lanes=list(range(LANES)),
                record_ids=sorted(each.engagement_id for each in found.engagements if not each.device_keys),
                conversion_ids=sorted(found.conversion_ids),
                stripped_conversion_ids=stripped,
                our_ids=sorted(map(str, found.devices)),
                sequence=shared.next_sequences[erasure.lane],
                claims_end_us=self._now_us() + round(CLAIMS_END_S * 1e6) if may_be_called else 0,
            )

    # The others.

    async def _erase_refused_links(self, shared: OwnedLanes, erasure: Erasure, work: Work) -> None:
        """Delete the decisions on identity links that came when nothing was known of the device (F3)."""
        wanted = {form for device_id in work.device_ids for form in id_forms(device_id)}
        after = (-(2**63), 0)
        while links := await self._erasures.refused_links(erasure, after=after, below=work.sequence):
            after = links[-1].time_us, links[-1].sequence
            found = [link.sequence for link in links if not wanted.isdisjoint(_ids(link.record))]
            if found:
                async with self._saving(shared, erasure) as connection:
                    rows = await erasures.erase_decisions(connection, erasure.lane, found)
                    erasure.count("attribution", {"decisions": rows})

    async def _erase_conversions(self, shared: OwnedLanes, erasure: Erasure, work: Work) -> None:
        """Have postback erase what it has, once nothing can be on its way to it any more."""
        await self._until_handed_over(erasure.lane, work)
        while work.conversion_ids or work.our_ids or work.stripped_conversion_ids:
            response = await self._postback.EraseConversions(
                conversion_pb2.EraseConversionsRequest(
                    app_id=erasure.app_id,
                    conversion_ids=work.conversion_ids[:_BATCH],
                    device_ids=work.our_ids[:_BATCH],
                    stripped_conversion_ids=work.stripped_conversion_ids[:_BATCH],
                )
            )
            erasure.count("postback", response.erased_counts)
            for done in (work.conversion_ids, work.our_ids, work.stripped_conversion_ids):
                del done[:_BATCH]
            await self._save(shared, erasure)

    async def _until_handed_over(self, lane: int, work: Work) -> None:
        while True:
            if self._now_us() >= work.claims_end_us and await self._erasures.relayed(lane, work.sequence):
                return
            await asyncio.sleep(_WAIT_S)

    async def _erase_records(self, shared: OwnedLanes, erasure: Erasure, work: Work) -> None:
        """Have ingest erase what the log held at the cut, a lane at a time."""
        while work.device_ids or work.record_ids:
            forms = {form for device_id in work.device_ids[:_DEVICE_IDS] for form in id_forms(device_id)}
            call = self._ingest.EraseRecords(
                record_erasure_pb2.EraseRecordsRequest(
                    app_id=erasure.app_id,
                    device_ids=sorted(forms),
                    record_ids=work.record_ids[:_RECORD_IDS],
                    below=[log_pb2.LanePosition(lane=lane, position=work.below[lane]) for lane in work.lanes],
                )
            )
            try:
                async for response in call:
                    work.lanes = [lane for lane in work.lanes if lane not in response.lanes_done]
                    erasure.count("ingest", response.erased_counts)
                    if not work.lanes:  # begin anew with what a request had no room for
                        del work.device_ids[:_DEVICE_IDS], work.record_ids[:_RECORD_IDS]
                        work.lanes = list(range(LANES))
                    await self._save(shared, erasure)
            finally:
                call.cancel()

    async def _save(self, shared: OwnedLanes, erasure: Erasure) -> None:
        """Stores how an erasure stands."""
        async with self._saving(shared, erasure):
            pass

    @contextlib.asynccontextmanager
    async def _saving(self, shared: OwnedLanes, erasure: Erasure) -> AsyncIterator[Connection]:
        """Yields a fenced transaction that ends with storing how an erasure stands."""
        async with shared.fenced() as connection:
            yield connection
            await erasures.save(connection, erasure)
            await shared.append(connection, lanes=[erasure.lane])


@dataclass(slots=True, kw_only=True)
class _Found:
    """What is a device's: its ids, as they were received, our ids of it, its conversions, and its engagements."""

    ids: set[str] = field(default_factory=set)
    devices: set[uuid.UUID] = field(default_factory=set)
    conversion_ids: set[str] = field(default_factory=set)
    engagements: set[StoredEngagement] = field(default_factory=set)


async def _find(connection: Connection, app_id: str, given: Collection[str], below: Sequence[int]) -> _Found:
    """All that is known of the device that has one of these ids, or several devices: an id is one whatever its kind.

    An engagement is the device's when it carries one of its ids, in any form (A3), or when it carries none and one of
    the device's conversions gave its click id back.
    """
    found, click_ids = _Found(), set[str]()
    new = set(given)
    while new:
        found.ids |= new
        owners = set(_uuids(new))
        for device_id in new:
            owners.update((await find_identifiers(connection, identity_keys(app_id, device_id))).values())
        devices = await erasures.merged_devices(connection, app_id, owners) - found.devices
        found.devices |= devices
        new = {value for ids in await erasures.ids_of(connection, devices) for each in ids.values() for value in each}
        async for conversion_id, content, known_ids in erasures.conversions_of(connection, app_id, devices):
            record = record_pb2.Record.FromString(content)
            found.conversion_ids.add(conversion_id)
            click_ids.add(click_id_of(record))
            new.update(record.device_ids.values(), *(known_ids or {}).values())
        new -= found.ids
    for device_id in found.ids:
        keys = {device_key(app_id, form) for form in id_forms(device_id)}
        found.engagements |= await erasures.engagements_under(connection, keys, below)
    by_click = {own_key(app_id, click_id) for click_id in click_ids if click_id}
    given_back = await erasures.engagements_under(connection, by_click, below)
    found.engagements |= {each for each in given_back if not each.device_keys}
    return found


async def _strip(connection: Connection, erasure: Erasure, engagement_ids: Collection[str]) -> list[str]:
    """Take these engagements from the decisions on other devices' conversions; answers which those are."""
    found = {
        sequence: conversion_id
        async for sequence, conversion_id, content in erasures.decisions_holding(
            connection, erasure.app_id, engagement_ids
        )
        if record_pb2.Record.FromString(content).record_id in engagement_ids
    }
    await erasures.strip_decisions(connection, erasure.lane, found.keys())
    return sorted(set(found.values()))


def identity_keys(app_id: str, device_id: str) -> set[bytes]:
    """The keys under which a device may be known by an id, or by a hash of it."""
    key = identity_key.__wrapped__  # its cache is for ids that come again
    keys = {key(app_id, kind, device_id) for kind in KINDS}
    for form in id_forms(device_id):
        if name := _HASH_OF_LENGTH.get(len(form)):
            keys.update(key(app_id, f"{kind}_{name}", form) for kind in RAW_KINDS)
    return keys


def _is_one(device_id: str) -> bool:
    """Whether ingest takes an id for one: of `- 0` or `: :` nothing is left, and a search for it is refused."""
    return bool(normalise(device_id).strip("0"))


def _ids(content: bytes) -> set[str]:
    return {normalise(value) for value in record_pb2.Record.FromString(content).device_ids.values()}


def _uuids(texts: Collection[str]) -> Iterator[uuid.UUID]:
    """Those of the texts that may be our own id of a device."""
    for text in texts:
        try:
            yield uuid.UUID(text)
        except ValueError:
            continue
