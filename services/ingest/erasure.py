"""Erases a device's records from the log, in small steps: whoever writes and reads the log goes first."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator

from libs.domain.device_ids import normalise
from libs.domain.lanes import LANES, lane_of
from libs.errors import Violations
from reengage.ingest.v1 import record_erasure_pb2, record_pb2, rejected_record_pb2
from services.ingest.model import LogRow, given_key, made_time_s
from services.ingest.storage.log import Store

STEP = 2_000
"""Positions looked into at a time."""
PAUSES = 3
"""So many times as long as a step took is rested after it."""
SETTLING_S = 2.0
"""Refusals are written by and by (rejections.py): any of before the call is in the table this long after it."""
_REFUSALS = 500
_MOST_IDS = 100_000


async def erase(
    store: Store, request: record_erasure_pb2.EraseRecordsRequest
) -> AsyncIterator[record_erasure_pb2.EraseRecordsResponse]:
    """Erase what `request` names; answers after every lane. Raises InvalidArgument with every wrong field."""
    below = _parse(request)
    settled = time.monotonic() + SETTLING_S
    wanted = _Wanted(request)
    first_kept = await store.first_kept(dict.fromkeys(below, 0))
    for place, (lane, end) in enumerate(below.items(), start=1):
        erased = Counter[str]()
        for start in range(first_kept[lane], end, STEP):
            began = time.monotonic()
            rows = await store.read_lane(lane, start=start, stop=min(start + STEP, end), app_lane=wanted.app_lane)
            erased += await _erase_entries(store, lane, [found for row in rows if (found := wanted.entry(row))])
            await asyncio.sleep(PAUSES * (time.monotonic() - began))
        if place == len(below):
            await asyncio.sleep(settled - time.monotonic())
            erased += await _erase_refusals(store, wanted)
        yield record_erasure_pb2.EraseRecordsResponse(lanes_done=[lane], erased_counts=erased)


class _Wanted:
    """What is to be erased."""

    def __init__(self, request: record_erasure_pb2.EraseRecordsRequest) -> None:
        self.app_id, self.app_lane = request.app_id, lane_of(request.app_id)
        self._device_ids = frozenset(map(normalise, request.device_ids))
        self._record_ids = frozenset(request.record_ids)

    def entry(self, row: LogRow) -> tuple[LogRow, record_pb2.Record] | None:
        """The entry with its record, if it is wanted."""
        record = record_pb2.Record.FromString(row.record)
        return (row, record) if record.app_id == self.app_id and self.has(record) else None  # apps share lanes

    def has(self, record: record_pb2.Record) -> bool:
        ids = record.device_ids
        return record.record_id in self._record_ids or any(normalise(ids[name]) in self._device_ids for name in ids)


async def _erase_entries(store: Store, lane: int, found: list[tuple[LogRow, record_pb2.Record]]) -> Counter[str]:
    if not found:
        return Counter()
    keys = [each for row, record in found for each in _keys(row, record)]
    entries, repeats = await store.erase_entries(lane, [row.position for row, _ in found], keys)
    return Counter(log=entries, dedupe=repeats)


def _keys(row: LogRow, record: record_pb2.Record) -> list[tuple[bytes, bytes, int]]:
    """The ranges of keys its repeats may be recognised by: whoever made its id, and an id that ingest made has most of
    its key in it."""
    receive_time_s = row.receive_time_us // 1_000_000
    given = given_key(record.app_id, record.record_id)
    ranges = [(given, given, receive_time_s)]
    if made_time_s(record.record_id) is not None:
        most = bytes.fromhex(record.record_id[:24])
        ranges.append((most + bytes(4), most + b"\xff" * 4, receive_time_s))
    return ranges


async def _erase_refusals(store: Store, wanted: _Wanted) -> Counter[str]:
    erased = Counter[str]()
    before = (2**63 - 1, 0)
    while refusals := await store.list_rejected(wanted.app_id, before=before, size=_REFUSALS):
        began = time.monotonic()
        found = [
            each for each in refusals if wanted.has(rejected_record_pb2.RejectedRecord.FromString(each.refusal).record)
        ]
        erased["rejected"] += await store.erase_rejected(wanted.app_id, found) if found else 0
        before = (refusals[-1].reject_time_us, refusals[-1].rejected_id)
        await asyncio.sleep(PAUSES * (time.monotonic() - began))
    return +erased


def _parse(request: record_erasure_pb2.EraseRecordsRequest) -> dict[int, int]:
    """The position below which to erase, by lane."""
    found = Violations()
    if not request.app_id or "\0" in request.app_id:
        found.add("app_id", "REQUIRED", "the app whose records to erase")
    if not request.device_ids and not request.record_ids:
        found.add("device_ids", "REQUIRED", "at least one id, of a device or a record")
    for field, ids in (("device_ids", request.device_ids), ("record_ids", request.record_ids)):
        if len(ids) > _MOST_IDS:
            found.add(field, "TOO_MANY", f"at most {_MOST_IDS:,}")
    if any(not normalise(each).strip("0") for each in request.device_ids):
        found.add("device_ids", "INVALID_ID", "an id that is empty or all zero is none")
    below: dict[int, int] = {}
    for index, place in enumerate(request.below):
        if not 0 <= place.lane < LANES or place.lane in below:
            found.add(f"below[{index}].lane", "OUT_OF_RANGE", f"0 to {LANES - 1}, each named once")
        if place.position < 0:
            found.add(f"below[{index}].position", "OUT_OF_RANGE", "must be 0 or more")
        below[place.lane] = place.position
    if not below:
        found.add("below", "REQUIRED", "at least one lane")
    found.check()
    return below
