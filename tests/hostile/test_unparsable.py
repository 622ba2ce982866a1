"""Bytes that are no message: they cost themselves, whoever receives or keeps them."""

from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import grpc
import pytest

from libs.errors import from_rpc_error
from reengage.ingest.v1 import (
    record_batch_pb2,
    record_erasure_pb2,
    record_lookup_pb2,
    record_pb2,
    rejected_record_pb2,
)
from tests.conftest import Database
from tests.ingest.conftest import APP, Ingest, event, ingest, start_ingest  # noqa: F401, its fixtures
from tests.support.eventually import eventually

_ACCEPTED, _REJECTED = record_batch_pb2.RecordResult.STATUS_ACCEPTED, record_batch_pb2.RecordResult.STATUS_REJECTED
_SERVICE = "/reengage.ingest.v1.IngestService"

BROKEN = {
    "no UTF-8": b"\x12\x01\xff",
    "cut off": event().SerializeToString()[:-1],
    "a group without end": b"\x0b",
    "field 0": b"\x00\x00",
    "the kind": b"\xba\x01\x02\xff\xff",
}


def batch(*records: bytes) -> bytes:
    return record_batch_pb2.SerialisedRecords(records=records).SerializeToString()


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN.keys())
async def test_a_record_that_cannot_be_parsed_costs_itself(ingest: Ingest, broken: bytes) -> None:  # noqa: F811
    with pytest.raises(Exception, match="Error parsing"):
        record_pb2.Record.FromString(broken)
    channel: Any = ingest.channel  # its types want what makes bytes of requests
    call = channel.unary_unary(
        f"{_SERVICE}/RecordBatch", response_deserializer=record_batch_pb2.RecordBatchResponse.FromString
    )
    good = [event(record_id=name).SerializeToString() for name in ("before", "after")]
    response = await call(batch(good[0], broken, good[1]))
    assert [result.status for result in response.results] == [_ACCEPTED, _REJECTED, _ACCEPTED]
    [violation] = response.results[1].violations
    assert (violation.field, violation.reason) == ("record", "UNPARSABLE")
    assert len(await ingest.log()) == 2


async def test_a_message_that_cannot_be_parsed_costs_itself_and_the_stream_goes_on(ingest: Ingest) -> None:  # noqa: F811
    channel: Any = ingest.channel
    call = channel.stream_stream(
        f"{_SERVICE}/RecordStream", response_deserializer=record_batch_pb2.RecordStreamResponse.FromString
    )
    good = event(record_id="good").SerializeToString()

    async def requests() -> AsyncIterator[bytes]:
        for request in (b"\x0b", batch(b"\x12\x01\xff"), batch(good)):
            yield request

    statuses = [[result.status for result in response.results] async for response in call(requests())]
    assert statuses == [[_REJECTED], [_REJECTED], [_ACCEPTED]]


@pytest.mark.parametrize("method", ["RecordBatch", "ListRejected", "LookUpRecord"])
@pytest.mark.parametrize("request_", [b"\x0b", b"\x0a\x01", b"\xff"], ids=["group", "cut off", "no tag"])
async def test_a_request_that_cannot_be_parsed_is_an_invalid_argument(
    ingest: Ingest,  # noqa: F811
    method: str,
    request_: bytes,
) -> None:
    channel: Any = ingest.channel
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await channel.unary_unary(f"{_SERVICE}/{method}")(request_)
    found = from_rpc_error(raised.value)
    assert (found.code, found.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "UNPARSABLE_REQUEST")


@pytest.mark.parametrize("method", ["ReadLog", "EraseRecords"])
async def test_so_is_the_request_of_a_call_that_streams(ingest: Ingest, method: str) -> None:  # noqa: F811
    channel: Any = ingest.channel
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        async for _ in channel.unary_stream(f"{_SERVICE}/{method}")(b"\x0b"):
            pass
    found = from_rpc_error(raised.value)
    assert (found.code, found.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "UNPARSABLE_REQUEST")


async def test_what_is_stored_and_cannot_be_parsed_costs_itself(ingest: Ingest, database: Database) -> None:  # noqa: F811
    """Erasures, lookups and lists go on past it."""
    wanted = event(record_id="wanted", device_ids={"adid": "gone"})
    await ingest.send(wanted, event("", record_id="refused"))

    async def listed() -> int:
        response = await ingest.stub.ListRejected(rejected_record_pb2.ListRejectedRequest(app_id=APP))
        return len(response.rejected)

    await eventually(listed)
    connection = await asyncpg.connect(database.admin_dsn)
    for statement in (
        # Beside the others, in every lane; the id of the one that is looked for is in it.
        """
        INSERT INTO ingest.log (lane, app_lane, is_engagement, position, receive_time_us, record)
        SELECT lane, (SELECT app_lane FROM ingest.log LIMIT 1), false, next_position,
            (SELECT receive_time_us FROM ingest.log LIMIT 1), '\\x0a0677616e7465640b'
        FROM ingest.lanes
        """,
        "UPDATE ingest.lanes SET next_position = next_position + 1",
        "UPDATE ingest.rejected SET refusal = '\\x0b'",
    ):
        await connection.execute(statement)
    await connection.close()
    assert await listed() == 0
    looked_up = await ingest.stub.LookUpRecord(record_lookup_pb2.LookUpRecordRequest(app_id=APP, record_id="wanted"))
    assert looked_up.record.record_id == "wanted"
    request = record_erasure_pb2.EraseRecordsRequest(app_id=APP, device_ids=["gone"])
    for lane in range(64):
        request.below.add(lane=lane, position=10)
    counts: dict[str, int] = {}
    async for response in ingest.stub.EraseRecords(request, timeout=60):
        for table, count in response.erased_counts.items():
            counts[table] = counts.get(table, 0) + count
    assert counts == {"log": 1, "dedupe": 1, "rejected": 1}
    assert len(await ingest.log()) == 64
