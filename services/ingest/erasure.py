"""Erasing a device's records from the log, in small steps, so that writers and readers of the log go first."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from libs.domain.device_ids import normalise
from libs.domain.lanes import LANES, lane_of
from libs.domain.record_sizes import MAX_ID
from libs.errors import Violations
from reengage.ingest.v1 import record_erasure_pb2, record_pb2
from services.ingest.model import MADE_ID_KEY_BYTES, LogRow, given_key, made_time_us
from services.ingest.parsing import parse_record, parse_refusal
from services.ingest.refusals import MAX_DELAY_S
from services.ingest.storage.log import LogStore
from services.ingest.storage.rejected import RejectedStore
from services.ingest.storage.warned import WarnedStore

MAX_IDS = 100_000
"""Device ids, and record ids, of one request."""
SETTLE_S = 10 * MAX_DELAY_S
_STEP = 2_000
"""Positions that are looked into at a time."""
_PAGE_SIZE = 500
"""Refusals that are looked into at a time; one may have 64 KB."""
_REST = 3
"""A step is followed by a rest this many times as long as it took."""
_KEY_BYTES = 16
_FIRST_PAGE = (2**63 - 1, 0)


class Eraser:
    """The eraser of records. Its calls take turns, step by step: together they cost the database what one does.

    Refusals and warnings are written with a delay. So it waits `settle_s` from the beginning of a call before it erases
    those of before the call.
    """

    def __init__(
        self, log: LogStore, rejected: RejectedStore, warned: WarnedStore, *, settle_s: float = SETTLE_S
    ) -> None:
        self._log, self._rejected, self._warned, self._settle_s = log, rejected, warned, settle_s
        self._turn = asyncio.Lock()

    async def erase(
        self, request: record_erasure_pb2.EraseRecordsRequest
    ) -> AsyncIterator[record_erasure_pb2.EraseRecordsResponse]:
        """Erases what `request` names, and yields after every lane. Raises InvalidArgument with every wrong field."""
        below = _parse(request)
        settled = time.monotonic() + self._settle_s
        wanted = _Wanted.of(request)
        kept = await self._log.kept(below)
        for place, (lane, end) in enumerate(below.items(), start=1):
            erased = await self._erase_lane(wanted, lane, range(kept[lane].start, min(end, kept[lane].stop)))
            if place == len(below):
                await asyncio.sleep(settled - time.monotonic())
                erased += await self._erase_refusals(wanted)
                erased += await self._erase_warned(wanted, wanted.warned_ids)
            yield record_erasure_pb2.EraseRecordsResponse(lanes_done=[lane], erased_counts=erased)

    async def _erase_lane(self, wanted: "_Wanted", lane: int, positions: range) -> Counter[str]:
        erased = Counter[str]()
        while positions:
            async with self._step():
                rows, go_on_at = await self._log.read_lane(lane, positions[:_STEP], app_lane=wanted.app_lane)
                found = [each for row in rows if (each := wanted.entry(row))]
                # Before the entries: once these are gone, nobody knows whose the warnings are.
                warned_ids = [record.record_id for _, record in found if record.warnings]
                wanted.warned_ids.update(warned_ids)
                erased += await self._erase_warned(wanted, warned_ids)
                erased += await self._erase_entries(lane, found)
            positions = range(go_on_at, positions.stop)
        return erased

    async def _erase_entries(self, lane: int, found: Sequence[tuple[LogRow, record_pb2.Record]]) -> Counter[str]:
        if not found:
            return Counter()
        keys = [each for row, record in found for each in _key_ranges(row, record)]
        entries, repeats = await self._log.erase(lane, [row.position for row, _ in found], keys)
        return Counter(log=entries, dedupe=repeats)

    async def _erase_refusals(self, wanted: "_Wanted") -> Counter[str]:
        erased = Counter[str]()
        before = _FIRST_PAGE
        is_more = True
        while is_more:
            async with self._step():
                refusals, is_more = await self._rejected.read_page(wanted.app_id, before=before, size=_PAGE_SIZE)
                # One that cannot be parsed is of no use to anybody, and may be of the device.
                found = [each for each in refusals if (it := parse_refusal(each)) is None or wanted.has(it.record)]
                erased["rejected"] += await self._rejected.erase(wanted.app_id, found) if found else 0
            if is_more:
                before = (refusals[-1].reject_time_us, refusals[-1].rejected_id)
        return +erased

    async def _erase_warned(self, wanted: "_Wanted", record_ids: Collection[str]) -> Counter[str]:
        return +Counter(warned=await self._warned.erase(wanted.app_id, record_ids)) if record_ids else Counter()

    @asynccontextmanager
    async def _step(self) -> AsyncIterator[None]:
        """Waits for a turn, and ends it with a rest."""
        async with self._turn:
            began = time.monotonic()
            yield
            await asyncio.sleep(_REST * (time.monotonic() - began))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """The records that a request names."""

    app_id: str
    app_lane: int
    device_ids: frozenset[str]
    record_ids: frozenset[str]
    warned_ids: set[str]
    """The erased records that had warnings, of which some may have been on their way to their table."""

    @classmethod
    def of(cls, request: record_erasure_pb2.EraseRecordsRequest) -> "_Wanted":
        return cls(
            app_id=request.app_id,
            app_lane=lane_of(request.app_id),
            device_ids=frozenset(map(normalise, request.device_ids)),
            record_ids=frozenset(request.record_ids),
            warned_ids=set(),
        )

    def entry(self, row: LogRow) -> tuple[LogRow, record_pb2.Record] | None:
        """Returns the entry with its record, if it is wanted."""
        record = parse_record(row)
        # Apps share lanes.
        return (row, record) if record and record.app_id == self.app_id and self.has(record) else None

    def has(self, record: record_pb2.Record) -> bool:
        """Returns whether a record of the app is wanted."""
        ids = record.device_ids
        return record.record_id in self.record_ids or any(normalise(ids[name]) in self.device_ids for name in ids)


def _key_ranges(row: LogRow, record: record_pb2.Record) -> list[tuple[bytes, bytes, int]]:
    """Returns ranges that hold the dedupe key of a record, and when it was received.

    The key of a sender's id is known. An id that ingest made holds the first bytes of its key.
    """
    given = given_key(record.app_id, record.record_id)
    ranges = [(given, given, row.receive_time_us)]
    if made_time_us(record.record_id) is not None:
        begins = bytes.fromhex(record.record_id[: 2 * MADE_ID_KEY_BYTES])
        rest = _KEY_BYTES - MADE_ID_KEY_BYTES
        ranges.append((begins + b"\0" * rest, begins + b"\xff" * rest, row.receive_time_us))
    return ranges


def _parse(request: record_erasure_pb2.EraseRecordsRequest) -> Mapping[int, int]:
    """Returns the position below which to erase, by lane. Raises InvalidArgument with every wrong field."""
    found = Violations()
    found.check_text("app_id", request.app_id, max_characters=MAX_ID, required=True)
    if not request.device_ids and not request.record_ids:
        found.add("device_ids", "REQUIRED", "must name at least one id, of a device or a record")
    for field, ids in (("device_ids", request.device_ids), ("record_ids", request.record_ids)):
        if len(ids) > MAX_IDS:
            found.add(field, "TOO_MANY", f"must be at most {MAX_IDS:,}")
    if any(not normalise(device_id).strip("0") for device_id in request.device_ids):
        found.add("device_ids", "INVALID_ID", "must not be empty or all zero")
    below: dict[int, int] = {}
    for index, place in enumerate(request.below):
        if not 0 <= place.lane < LANES or place.lane in below:
            found.add(f"below[{index}].lane", "OUT_OF_RANGE", f"must be 0 to {LANES - 1}, each named once")
        if place.position < 0:
            found.add(f"below[{index}].position", "OUT_OF_RANGE", "must be 0 or more")
        below[place.lane] = place.position
    if not below:
        found.add("below", "REQUIRED", "must name at least one lane")
    found.check()
    return below
