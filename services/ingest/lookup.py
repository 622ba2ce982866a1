"""What became of one record: found by its id in a log that has no index on ids."""

from libs.domain.lanes import lane_of
from reengage.ingest.v1 import record_lookup_pb2, record_pb2, rejected_record_pb2
from services.ingest.model import given_key, made_time_s
from services.ingest.storage.log import Store

MOST_REFUSALS = 10
MOST_ENTRIES = 4_096
"""Of a lane that are looked into."""
BEFORE_S, AFTER_S = 5, 30
"""Around the time a record was accepted at. It was then read from a clock of the service; the log's time is that of the
database, some moments later: a group waits and, at worst, is tried again."""


async def look_up(store: Store, app_id: str, record_id: str) -> record_lookup_pb2.LookUpRecordResponse:
    """What is known of a record by the id that its sender gave it, or ingest; an empty answer when nothing is."""
    response = record_lookup_pb2.LookUpRecordResponse(
        rejected=[
            rejected_record_pb2.RejectedRecord.FromString(refusal)
            for refusal in await store.refusals_of(app_id, record_id, size=MOST_REFUSALS)
        ]
    )
    accept_time_s = await store.accept_time_s(given_key(app_id, record_id))
    if accept_time_s is not None:
        response.accept_time.FromSeconds(accept_time_s)
    search_time_s = made_time_s(record_id) if accept_time_s is None else accept_time_s
    if search_time_s is None:
        return response
    for row in await store.find_records(
        lane_of(app_id),
        record_pb2.Record(record_id=record_id).SerializeToString(),
        since_us=(search_time_s - BEFORE_S) * 1_000_000,
        until_us=(search_time_s + AFTER_S) * 1_000_000,
        most=MOST_ENTRIES,
    ):
        record = record_pb2.Record.FromString(row.record)
        if (record.app_id, record.record_id) == (app_id, record_id):
            response.record.CopyFrom(record)
            response.place.lane, response.place.position = row.lane, row.position
            response.accept_time.FromMicroseconds(row.receive_time_us)
            break
    return response
