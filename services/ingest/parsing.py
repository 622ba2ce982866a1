"""Parsing what senders send and what the tables hold, record by record: one that cannot be parsed costs itself."""

import structlog
from google.protobuf.message import DecodeError
from prometheus_client import Counter

from reengage.ingest.v1 import record_batch_pb2, record_pb2, rejected_record_pb2
from services.ingest.model import LogRow, Refusal
from services.ingest.validation import UNPARSABLE

_unparsable = Counter("ingest_unparsable_rows_total", "Stored rows that were met and cannot be parsed.", ["table"])
_log = structlog.get_logger()

_MARK = record_pb2.Record.FromString(UNPARSABLE)


def salvage_batch(request: bytes) -> record_batch_pb2.RecordBatchRequest:
    """Returns a request that cannot be parsed, with records that will be refused in place of those that cannot.

    Raises DecodeError when it holds no records.
    """
    batch = record_batch_pb2.SerialisedRecords.FromString(request)
    return record_batch_pb2.RecordBatchRequest(records=map(_record_or_mark, batch.records), rate_check=batch.rate_check)


def salvage_message(request: bytes) -> record_batch_pb2.RecordStreamRequest:
    """Returns the same for a message of a stream, with one record that will be refused if it holds none."""
    try:
        records = salvage_batch(request).records
    except DecodeError:
        return record_batch_pb2.RecordStreamRequest(records=[_MARK])
    return record_batch_pb2.RecordStreamRequest(records=records)


def _record_or_mark(content: bytes) -> record_pb2.Record:
    try:
        return record_pb2.Record.FromString(content)
    except DecodeError:
        return _MARK


def parse_record(row: LogRow) -> record_pb2.Record | None:
    """Returns the record of an entry, None if it cannot be parsed."""
    try:
        return record_pb2.Record.FromString(row.record)
    except DecodeError:
        _unparsable.labels("log").inc()
        _log.error("entry.unparsable", lane=row.lane, position=row.position)
        return None


def parse_refusal(row: Refusal) -> rejected_record_pb2.RejectedRecord | None:
    """Returns a refused record, None if it cannot be parsed."""
    try:
        return rejected_record_pb2.RejectedRecord.FromString(row.refusal)
    except DecodeError:
        _unparsable.labels("rejected").inc()
        _log.error("refusal.unparsable", reject_time_us=row.reject_time_us)
        return None
