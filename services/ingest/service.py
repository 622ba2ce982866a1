"""IngestService: the gRPC face of the record log."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from itertools import compress
from typing import Any, TypeAlias

import grpc
from prometheus_client import Counter

from libs.broadcast import Broadcast
from libs.domain.lanes import LANES
from libs.domain.record_sizes import MAX_ID
from libs.domain.snapshots import Follower
from libs.errors import InvalidArgument, NotFound, Violation, Violations
from libs.interceptors import salvaged_by
from libs.pages import decode_token, encode_token, page_size
from libs.parts import in_parts
from libs.time import now_us as clock_us
from reengage.ingest.v1 import (
    log_pb2,
    record_batch_pb2,
    record_erasure_pb2,
    record_lookup_pb2,
    record_pb2,
    rejected_record_pb2,
    warned_record_pb2,
)
from reengage.ingest.v1.service_pb2_grpc import IngestServiceServicer
from services.ingest.app_rates import AppRates, check_some_taken
from services.ingest.countries import CountryOf
from services.ingest.entry import admit
from services.ingest.erasure import Eraser
from services.ingest.lookup import look_up
from services.ingest.model import Entry, IngestSettings, LogPage, LogRow, Outcome
from services.ingest.parsing import parse_refusal, salvage_batch, salvage_message
from services.ingest.reader import follow
from services.ingest.refusals import Refusals
from services.ingest.registrations import Registrations
from services.ingest.senders import UNAUTHENTICATED, may_send
from services.ingest.storage.log import LogStore
from services.ingest.storage.rejected import RejectedStore
from services.ingest.storage.warned import WarnedStore
from services.ingest.warned import WarnedRecords
from services.ingest.writer import Outcomes, Writer

MAX_RECORDS = 1_000
_MAX_ENTRIES, _DEFAULT_ENTRIES = 10_000, 2_000
_MAX_RESPONSE_BYTES = 1_900_000
"""Bytes of the records in one ReadLogResponse: under 2 MB with all that is around them."""
_ENTRY_OVERHEAD_BYTES = 32
_MAX_REQUESTS = 16
"""Requests of one RecordStream that may be under way."""

_records = Counter("ingest_records_total", "Records, by what became of them.", ["status"])
_accepted, _repeated, _rejected, _rate_limited = (
    _records.labels(status) for status in ("accepted", "repeated", "rejected", "rate_limited")
)
_ACCEPTED, _REPEATED = record_batch_pb2.RecordResult.STATUS_ACCEPTED, record_batch_pb2.RecordResult.STATUS_REPEATED
_RateCheck = record_batch_pb2.RecordBatchRequest.RateCheck
_REUSED = Violation(
    field="record_id",
    reason="RECORD_ID_REUSED",
    description="must not be that of a record of another kind or event name, accepted in the last 7 days",
)
_SELECTIONS = {
    log_pb2.ReadLogRequest.SELECTION_UNSPECIFIED: None,
    log_pb2.ReadLogRequest.SELECTION_ENGAGEMENTS: True,
    log_pb2.ReadLogRequest.SELECTION_CONVERSIONS: False,
}

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
Checked: TypeAlias = list[record_batch_pb2.RecordResult | Entry]
"""One item a record of a request: the result of a refused one, the entry of one that was handed to the writer."""
UnderWay: TypeAlias = "asyncio.Queue[tuple[Checked, Outcomes | None] | None]"
"""Requests of a stream that wait for their outcomes, in order; None ends it."""


class IngestService(IngestServiceServicer):
    """The methods of service.proto. `now_us` is the time of receipt, `country_of` returns the country of an address."""

    def __init__(
        self,
        *,
        settings: Follower[IngestSettings],
        writer: Writer,
        refusals: Refusals,
        warned: WarnedRecords,
        registrations: Registrations,
        rates: AppRates,
        log: LogStore,
        rejected: RejectedStore,
        warned_store: WarnedStore,
        eraser: Eraser,
        grown: Broadcast,
        country_of: CountryOf,
        now_us: Callable[[], int] = clock_us,
    ) -> None:
        self._settings, self._writer, self._registrations = settings, writer, registrations
        self._refusals, self._warned, self._rates = refusals, warned, rates
        self._log, self._rejected, self._warned_store = log, rejected, warned_store
        self._eraser, self._grown = eraser, grown
        self._country_of, self._now_us = country_of, now_us

    @salvaged_by(salvage_batch)
    async def RecordBatch(
        self, request: record_batch_pb2.RecordBatchRequest, context: Context
    ) -> record_batch_pb2.RecordBatchResponse:
        results, entries = self._check(request.records, request.rate_check)
        if request.rate_check != _RateCheck.RATE_CHECK_OVER:
            check_some_taken(results)
        outcomes = await self._writer.submit(entries) if entries else []
        return record_batch_pb2.RecordBatchResponse(results=self._merge(results, outcomes))

    @salvaged_by(salvage_message)
    async def RecordStream(
        self, request_iterator: AsyncIterator[record_batch_pb2.RecordStreamRequest], context: Context
    ) -> AsyncIterator[record_batch_pb2.RecordStreamResponse]:
        under_way: UnderWay = asyncio.Queue(_MAX_REQUESTS)
        receiving = asyncio.create_task(self._receive(request_iterator, under_way))
        try:
            while (item := await _next_of(under_way, receiving)) is not None:
                results, outcomes = item
                stored = await outcomes if outcomes is not None else []
                yield record_batch_pb2.RecordStreamResponse(results=self._merge(results, stored))
        finally:
            receiving.cancel()

    async def ReadLog(
        self, request: log_pb2.ReadLogRequest, context: Context
    ) -> AsyncIterator[log_pb2.ReadLogResponse]:
        start = _parse_read_log(request)
        max_entries = request.max_entries or _DEFAULT_ENTRIES
        pages = follow(
            self._log,
            self._grown,
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
        before, size = _parse_list(request)
        rows, is_more = await self._rejected.read_page(request.app_id, before=before, size=size)
        return rejected_record_pb2.ListRejectedResponse(
            rejected=[refusal for row in rows if (refusal := parse_refusal(row))],
            next_page_token=encode_token(rows[-1].reject_time_us, rows[-1].rejected_id) if is_more else "",
        )

    async def ListWarnings(
        self, request: warned_record_pb2.ListWarningsRequest, context: Context
    ) -> warned_record_pb2.ListWarningsResponse:
        before, size = _parse_list(request)
        rows, is_more = await self._warned_store.read_page(request.app_id, before=before, size=size)
        return warned_record_pb2.ListWarningsResponse(
            warned=[warned_record_pb2.WarnedRecord.FromString(row.warned) for row in rows],
            next_page_token=encode_token(rows[-1].warn_time_us, rows[-1].warned_id) if is_more else "",
        )

    async def LookUpRecord(
        self, request: record_lookup_pb2.LookUpRecordRequest, context: Context
    ) -> record_lookup_pb2.LookUpRecordResponse:
        found = Violations()
        found.check_text("app_id", request.app_id, max_characters=MAX_ID, required=True)
        found.check_text("record_id", request.record_id, max_characters=MAX_ID, required=True)
        found.check()
        response = await look_up(self._log, self._rejected, request.app_id, request.record_id)
        if not response.HasField("accept_time") and not response.rejected:
            raise NotFound("RECORD_NOT_FOUND", "no record with this id is known, or no longer")
        return response

    async def EraseRecords(
        self, request: record_erasure_pb2.EraseRecordsRequest, context: Context
    ) -> AsyncIterator[record_erasure_pb2.EraseRecordsResponse]:
        async for response in self._eraser.erase(request):
            yield response

    async def _receive(
        self, requests: AsyncIterator[record_batch_pb2.RecordStreamRequest], under_way: UnderWay
    ) -> None:
        async for request in requests:
            await self._writer.room(len(request.records))
            results, entries = self._check(request.records, _RateCheck.RATE_CHECK_UNSPECIFIED)
            await under_way.put((results, self._writer.submit(entries) if entries else None))
        await under_way.put(None)

    def _check(
        self, records: Sequence[record_pb2.Record], rate_check: _RateCheck.ValueType
    ) -> tuple[Checked, list[Entry]]:
        """Returns results of refused records among the entries of the others, and the entries alone. Never waits."""
        if not records:
            raise InvalidArgument([Violation(field="records", reason="REQUIRED", description="must hold a record")])
        if len(records) > MAX_RECORDS:
            too_many = Violation(field="records", reason="TOO_MANY", description=f"must be at most {MAX_RECORDS:,}")
            raise InvalidArgument([too_many], reason="BATCH_TOO_LARGE")
        settings, now_us = self._settings.current, self._now_us()
        vouched = [may_send(one.app_id, settings.apps.get(one.app_id), settings.senders, now_us) for one in records]
        # What a stranger sends in an app's name takes nothing of its rate.
        over_rate, over_count = self._rates.hold([*compress(records, vouched)], settings, rate_check), 0
        results: Checked = []
        entries = []
        for record, is_vouched in zip(records, vouched, strict=True):
            if not is_vouched:
                results.append(_refused([UNAUTHENTICATED]))  # what nobody vouches for is not kept
                continue
            if (limited := over_rate.get(record.app_id)) is not None:
                self._refusals.add_over_rate(record, limited.violations, now_us)
                results.append(limited)
                over_count += 1
                continue
            admitted = admit(record, settings, now_us, self._country_of)
            if isinstance(admitted, Entry):
                entries.append(admitted)
                results.append(admitted)
                if not admitted.is_engagement and (event_name := record.event.event_name):
                    app_id = record.app_id
                    self._registrations.add(app_id, event_name, settings.apps[app_id].event_names)
            else:
                result = _refused(admitted)
                self._refusals.add(record, result.violations, now_us)
                results.append(result)
        _rate_limited.inc(over_count)
        _rejected.inc(len(records) - len(entries) - over_count)
        return results, entries

    def _merge(self, checked: Checked, outcomes: Sequence[Outcome]) -> list[record_batch_pb2.RecordResult]:
        """Returns the results of a request whose entries have these outcomes."""
        stored, repeats, reused = iter(outcomes), 0, 0
        merged = []
        for each in checked:
            if not isinstance(each, Entry):
                merged.append(each)
                continue
            outcome = next(stored)
            if outcome.reused:
                merged.append(self._refuse_reused(each))
                reused += 1
                continue
            status, warned = _REPEATED if outcome.repeated else _ACCEPTED, each.warned
            repeats += outcome.repeated
            merged.append(
                record_batch_pb2.RecordResult(status=status, record_id=outcome.record_id)
                if warned is None
                else record_batch_pb2.RecordResult(status=status, record_id=outcome.record_id, warnings=warned.found)
            )
            if warned is not None and not outcome.repeated:
                self._warned.add(outcome.record_id, warned, each.accept_time_us)
        _rejected.inc(reused)
        _repeated.inc(repeats)
        _accepted.inc(len(outcomes) - repeats - reused)
        return merged

    def _refuse_reused(self, entry: Entry) -> record_batch_pb2.RecordResult:
        result = _refused([_REUSED])
        record = record_pb2.Record.FromString(entry.record)
        record.ClearField("settings_revision")
        record.ClearField("country")
        self._refusals.add(record, result.violations, entry.accept_time_us)
        return result


async def _next_of(under_way: UnderWay, receiving: "asyncio.Task[None]") -> tuple[Checked, Outcomes | None] | None:
    """Returns the next request under way, None at the end. Raises what ended the receiving before its end."""
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


def _parse_list(
    request: rejected_record_pb2.ListRejectedRequest | warned_record_pb2.ListWarningsRequest,
) -> tuple[tuple[int, int], int]:
    """Returns the time and the id before which a page begins, and its size. Raises InvalidArgument."""
    found = Violations()
    found.check_text("app_id", request.app_id, max_characters=MAX_ID, required=True)
    size = page_size(request.page_size, found)
    token = decode_token(request.page_token, (int, int), found)
    found.check()
    return (int(token[0]), int(token[1])) if token is not None else (2**63 - 1, 0), size


def _parse_read_log(request: log_pb2.ReadLogRequest) -> dict[int, int]:
    """Returns the first position wanted, by lane. Raises InvalidArgument with every wrong field."""
    found = Violations()
    start: dict[int, int] = {}
    places = getattr(request, "from")  # a keyword of Python
    for index, place in enumerate(places):
        if not 0 <= place.lane < LANES:
            found.add(f"from[{index}].lane", "OUT_OF_RANGE", f"must be 0 to {LANES - 1}")
        if place.lane in start:
            found.add(f"from[{index}].lane", "DUPLICATE", "must be named once")
        if place.position < 0:
            found.add(f"from[{index}].position", "OUT_OF_RANGE", "must be 0 or more")
        start[place.lane] = place.position
    if not places:
        found.add("from", "REQUIRED", "must name at least one lane")
    if request.selection not in _SELECTIONS:
        found.add("selection", "INVALID_VALUE", "must be one of the named selections")
    if any(not 0 <= lane < LANES for lane in request.app_lanes):
        found.add("app_lanes", "OUT_OF_RANGE", f"must be 0 to {LANES - 1}")
    if not 0 <= request.max_entries <= _MAX_ENTRIES:
        found.add("max_entries", "OUT_OF_RANGE", f"must be 1 to {_MAX_ENTRIES:,}")
    found.check()
    return start


def _responses(page: LogPage, max_entries: int) -> Iterator[log_pb2.ReadLogResponse]:
    """Yields the page as responses of bounded size; the last of them may say that the reader has caught up."""
    last: list[log_pb2.LogEntry] = []
    for rows in in_parts(page.rows, _entry_bytes, max_bytes=_MAX_RESPONSE_BYTES, max_items=max_entries):
        if last:
            yield log_pb2.ReadLogResponse(entries=last, heads=page.heads)
        last = [
            log_pb2.LogEntry(
                lane=lane,
                position=position,
                app_lane=app_lane,
                receive_time_us=receive_time_us,
                record=record,
                too_large_bytes=too_large_bytes,
            )
            for lane, position, app_lane, receive_time_us, record, too_large_bytes in rows
        ]
    yield log_pb2.ReadLogResponse(entries=last, heads=page.heads, caught_up=page.caught_up)


def _entry_bytes(row: LogRow) -> int:
    return len(row.record) + _ENTRY_OVERHEAD_BYTES
