"""IngestService: the gRPC face of the record log."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

import grpc
from prometheus_client import Counter

from libs.domain.lanes import LANES
from libs.domain.snapshots import Follower
from libs.errors import InvalidArgument, NotFound, Violation, Violations
from libs.pages import decode_token, encode_token, page_size
from reengage.ingest.v1 import (
    log_pb2,
    record_batch_pb2,
    record_erasure_pb2,
    record_lookup_pb2,
    record_pb2,
    rejected_record_pb2,
)
from reengage.ingest.v1.service_pb2_grpc import IngestServiceServicer
from services.ingest.entry import admit
from services.ingest.erasure import erase
from services.ingest.lookup import look_up
from services.ingest.model import Entry, LogPage, Outcome, Settings
from services.ingest.reader import Growth, follow
from services.ingest.refusals import Rejections
from services.ingest.sightings import Sightings
from services.ingest.storage.log import Store
from services.ingest.validation import MAX_ID
from services.ingest.writer import Answer, Writer

MAX_RECORDS = 1_000
MAX_ENTRIES = 10_000
RESPONSE_BYTES = 1_900_000
"""Of records in one ReadLogResponse: under 2 MB with all that is around them."""
PIPELINED_REQUESTS = 16
"""Requests of one RecordStream that may be under way."""
_ENTRY_OVERHEAD_BYTES = 32

_records = Counter("ingest_records_total", "Records answered, by what became of them.", ["status"])
_accepted, _repeated, _rejected = (_records.labels(status) for status in ("accepted", "repeated", "rejected"))
_SELECTIONS = {
    log_pb2.ReadLogRequest.SELECTION_UNSPECIFIED: None,
    log_pb2.ReadLogRequest.SELECTION_ENGAGEMENTS: True,
    log_pb2.ReadLogRequest.SELECTION_CONVERSIONS: False,
}

Context = grpc.aio.ServicerContext[Any, Any]
Checked = list[record_batch_pb2.RecordResult | None]
"""Results of a request: of refused records at once, None for those handed to the writer."""


class IngestService(IngestServiceServicer):
    """See service.proto. `now_us` is the time of receipt, microseconds since 1970."""

    def __init__(
        self,
        *,
        settings: Follower[Settings],
        writer: Writer,
        rejections: Rejections,
        sightings: Sightings,
        store: Store,
        growth: Growth,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self._settings, self._writer, self._rejections, self._sightings = settings, writer, rejections, sightings
        self._store, self._growth, self._now_us = store, growth, now_us
        self._erasing = asyncio.Lock()

    async def RecordBatch(
        self, request: record_batch_pb2.RecordBatchRequest, context: Context
    ) -> record_batch_pb2.RecordBatchResponse:
        results, entries = self._check(request.records)
        outcomes = await self._writer.submit(entries) if entries else []
        return record_batch_pb2.RecordBatchResponse(results=_merge(results, outcomes))

    async def RecordStream(
        self, request_iterator: AsyncIterator[record_batch_pb2.RecordStreamRequest], context: Context
    ) -> AsyncIterator[record_batch_pb2.RecordStreamResponse]:
        under_way: asyncio.Queue[tuple[Checked, Answer | None] | None] = asyncio.Queue(PIPELINED_REQUESTS)
        receiving = asyncio.create_task(self._receive(request_iterator, under_way))
        try:
            while (item := await _next_of(under_way, receiving)) is not None:
                results, answer = item
                outcomes = await answer if answer is not None else []
                yield record_batch_pb2.RecordStreamResponse(results=_merge(results, outcomes))
        finally:
            receiving.cancel()

    async def ReadLog(
        self, request: log_pb2.ReadLogRequest, context: Context
    ) -> AsyncIterator[log_pb2.ReadLogResponse]:
        start = _parse_read_log(request)
        max_entries = request.max_entries or 2_000
        pages = follow(
            self._store,
            self._growth,
            start,
            max_entries=max_entries,
            engagements=_SELECTIONS[request.selection],
            app_lanes=list(request.app_lanes) or None,
        )
        async for page in pages:
            for response in _responses(page, max_entries):
                yield response

    async def ListRejected(
        self, request: rejected_record_pb2.ListRejectedRequest, context: Context
    ) -> rejected_record_pb2.ListRejectedResponse:
        found = Violations()
        if not request.app_id or "\0" in request.app_id:
            found.add("app_id", "REQUIRED", "the app whose refused records to list")
        size = page_size(request.page_size, found)
        token = decode_token(request.page_token, (int, int), found)
        found.check()
        before = (int(token[0]), int(token[1])) if token is not None else (2**63 - 1, 0)
        rows = await self._store.list_rejected(request.app_id, before=before, size=size)
        return rejected_record_pb2.ListRejectedResponse(
            rejected=[rejected_record_pb2.RejectedRecord.FromString(row.refusal) for row in rows],
            next_page_token=encode_token(rows[-1].reject_time_us, rows[-1].rejected_id) if len(rows) == size else "",
        )

    async def LookUpRecord(
        self, request: record_lookup_pb2.LookUpRecordRequest, context: Context
    ) -> record_lookup_pb2.LookUpRecordResponse:
        found = Violations()
        for field in ("app_id", "record_id"):
            value = getattr(request, field)
            if not 0 < len(value) <= MAX_ID or "\0" in value:
                found.add(field, "REQUIRED", f"1 to {MAX_ID} characters")
        found.check()
        response = await look_up(self._store, request.app_id, request.record_id)
        if not response.HasField("accept_time") and not response.rejected:
            raise NotFound("RECORD_NOT_FOUND", "nothing is known of this record (any more)")
        return response

    async def EraseRecords(
        self, request: record_erasure_pb2.EraseRecordsRequest, context: Context
    ) -> AsyncIterator[record_erasure_pb2.EraseRecordsResponse]:
        async with self._erasing:
            async for response in erase(self._store, request):
                yield response

    async def _receive(
        self,
        requests: AsyncIterator[record_batch_pb2.RecordStreamRequest],
        under_way: "asyncio.Queue[tuple[Checked, Answer | None] | None]",
    ) -> None:
        async for request in requests:
            await self._writer.room(len(request.records))
            results, entries = self._check(request.records)
            await under_way.put((results, self._writer.submit(entries) if entries else None))
        await under_way.put(None)

    def _check(self, records: Sequence[record_pb2.Record]) -> tuple[Checked, list[Entry]]:
        """Results of the records that are refused, None for the others, whose entries follow. Never waits."""
        if not records:
            raise InvalidArgument([Violation(field="records", reason="REQUIRED", description="at least one record")])
        if len(records) > MAX_RECORDS:
            too_many = Violation(field="records", reason="TOO_MANY", description=f"at most {MAX_RECORDS:,} records")
            raise InvalidArgument([too_many], reason="BATCH_TOO_LARGE")
        settings, now_us = self._settings.current, self._now_us()
        results: Checked = []
        entries = []
        for record in records:
            admitted = admit(record, settings, now_us)
            if isinstance(admitted, Entry):
                entries.append(admitted)
                results.append(None)
                if not admitted.is_engagement and (event_name := record.event.event_name):
                    app_id = record.app_id
                    self._sightings.add(app_id, event_name, settings.apps[app_id].event_names)
            else:
                result = _refused(admitted)
                self._rejections.add(record, result.violations, now_us)
                results.append(result)
        _rejected.inc(len(records) - len(entries))
        return results, entries


async def _next_of(
    under_way: "asyncio.Queue[tuple[Checked, Answer | None] | None]", receiving: "asyncio.Task[None]"
) -> tuple[Checked, Answer | None] | None:
    """The next request under way, None at the end; raises what ended the receiving before its end."""
    getting = asyncio.ensure_future(under_way.get())
    await asyncio.wait((getting, receiving), return_when=asyncio.FIRST_COMPLETED)
    if not getting.done() and (error := receiving.exception()) is not None:
        getting.cancel()
        raise error
    return await getting


def _refused(found: Sequence[Violation]) -> record_batch_pb2.RecordResult:
    return record_batch_pb2.RecordResult(
        status=record_batch_pb2.RecordResult.STATUS_REJECTED,
        violations=[
            record_batch_pb2.FieldViolation(field=v.field, reason=v.reason, description=v.description) for v in found
        ],
    )


def _merge(results: Checked, outcomes: Sequence[Outcome]) -> list[record_batch_pb2.RecordResult]:
    accepted, repeated = record_batch_pb2.RecordResult.STATUS_ACCEPTED, record_batch_pb2.RecordResult.STATUS_REPEATED
    stored = iter(outcomes)
    merged = []
    for result in results:
        if result is None:
            is_repeat, record_id = next(stored)
            status = repeated if is_repeat else accepted
            merged.append(record_batch_pb2.RecordResult(status=status, record_id=record_id))
        else:
            merged.append(result)
    repeats = sum(outcome.repeated for outcome in outcomes)
    _repeated.inc(repeats)
    _accepted.inc(len(outcomes) - repeats)
    return merged


def _parse_read_log(request: log_pb2.ReadLogRequest) -> dict[int, int]:
    """The first position wanted, by lane."""
    found = Violations()
    start: dict[int, int] = {}
    places = getattr(request, "from")  # a keyword of Python
    for index, place in enumerate(places):
        if not 0 <= place.lane < LANES:
            found.add(f"from[{index}].lane", "OUT_OF_RANGE", f"must be 0 to {LANES - 1}")
        if place.lane in start:
            found.add(f"from[{index}].lane", "DUPLICATE", "a lane is named once")
        if place.position < 0:
            found.add(f"from[{index}].position", "OUT_OF_RANGE", "must be 0 or more")
        start[place.lane] = place.position
    if not places:
        found.add("from", "REQUIRED", "at least one lane")
    if request.selection not in _SELECTIONS:
        found.add("selection", "INVALID_VALUE", "must be one of the named selections")
    if any(not 0 <= lane < LANES for lane in request.app_lanes):
        found.add("app_lanes", "OUT_OF_RANGE", f"must be 0 to {LANES - 1}")
    if not 0 <= request.max_entries <= MAX_ENTRIES:
        found.add("max_entries", "OUT_OF_RANGE", f"must be 1 to {MAX_ENTRIES:,}")
    found.check()
    return start


def _responses(page: LogPage, max_entries: int) -> Iterator[log_pb2.ReadLogResponse]:
    """The page as responses of bounded size; the last of them may say that the reader has caught up."""
    entries: list[log_pb2.LogEntry] = []
    size = 0
    for lane, position, app_lane, receive_time_us, record in page.rows:
        bytes_more = len(record) + _ENTRY_OVERHEAD_BYTES
        if entries and (len(entries) == max_entries or size + bytes_more > RESPONSE_BYTES):
            yield log_pb2.ReadLogResponse(entries=entries, heads=page.heads)
            entries, size = [], 0
        entries.append(
            log_pb2.LogEntry(
                lane=lane, position=position, app_lane=app_lane, receive_time_us=receive_time_us, record=record
            )
        )
        size += bytes_more
    yield log_pb2.ReadLogResponse(entries=entries, heads=page.heads, caught_up=page.caught_up)
