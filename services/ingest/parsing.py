"""Parsing what the tables hold: what cannot be parsed costs itself, and is logged."""

import structlog
from google.protobuf.message import DecodeError
from prometheus_client import Counter

from reengage.ingest.v1 import record_pb2, rejected_record_pb2
from services.ingest.model import LogRow, Refusal

_unparsable = Counter("ingest_unparsable_rows_total", "Stored rows that were met and cannot be parsed.", ["table"])
_log = structlog.get_logger()


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
