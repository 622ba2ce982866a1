"""Looking up one record by its id, in a log that has no index on ids."""

from libs.domain.lanes import lane_of
from libs.time import SECOND_US, to_timestamp
from reengage.ingest.v1 import record_lookup_pb2, record_pb2
from services.ingest.model import given_key, made_time_us
from services.ingest.parsing import parse_record, parse_refusal
from services.ingest.storage.log import LogStore
from services.ingest.storage.rejected import RejectedStore

MAX_REFUSALS = 10
_MAX_ENTRIES = 4_096
"""Entries of a lane that are looked into."""
_BEFORE_US, AFTER_US = 5 * SECOND_US, 30 * SECOND_US
"""The time to search, around that of acceptance. That was read from a clock of the service; the time in the log is that
of the database, a little later: a group waits and, at worst, is tried again."""


async def look_up(
    log: LogStore, rejected: RejectedStore, app_id: str, record_id: str
) -> record_lookup_pb2.LookUpRecordResponse:
    """Returns what is known of a record by its id, given or made; an empty response when nothing is."""
    refusals = await rejected.read_of_record(app_id, record_id, size=MAX_REFUSALS)
    response = record_lookup_pb2.LookUpRecordResponse(
        rejected=[parsed for refusal in refusals if (parsed := parse_refusal(refusal))]
    )
    accept_time_us = await log.accept_time_us(given_key(app_id, record_id))
    if accept_time_us is not None:
        response.accept_time.CopyFrom(to_timestamp(accept_time_us))
    search_time_us = made_time_us(record_id) if accept_time_us is None else accept_time_us
    if search_time_us is None:
        return response
    for row in await log.find_records(
        lane_of(app_id),
        record_pb2.Record(record_id=record_id).SerializeToString(),
        since_us=search_time_us - _BEFORE_US,
        until_us=search_time_us + AFTER_US,
        max_entries=_MAX_ENTRIES,
    ):
        record = parse_record(row)
        if record and (record.app_id, record.record_id) == (app_id, record_id):
            response.record.CopyFrom(record)
            response.place.lane, response.place.position = row.lane, row.position
            response.accept_time.CopyFrom(to_timestamp(row.receive_time_us))
            break
    return response
