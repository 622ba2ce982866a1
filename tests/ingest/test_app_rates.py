"""The rates of apps: what is over one is told so record by record, and costs the others of its batch nothing."""

from typing import Any, TypeAlias

import grpc
import pytest

from libs.client import RecordSender, connect
from libs.errors import from_rpc_error
from reengage.ingest.v1 import record_batch_pb2, record_pb2, rejected_record_pb2
from services.ingest.refusals import MAX_OVER_RATE_PER_SECOND
from tests.ingest.conftest import APP, LIMIT, LIMITED_APP, Ingest, event
from tests.support.eventually import eventually

Request: TypeAlias = record_batch_pb2.RecordBatchRequest
Result: TypeAlias = record_batch_pb2.RecordResult
ACCEPTED, REJECTED, RATE_LIMITED = Result.STATUS_ACCEPTED, Result.STATUS_REJECTED, Result.STATUS_RATE_LIMITED
WITHIN, OVER = Request.RATE_CHECK_WITHIN, Request.RATE_CHECK_OVER
DEBT = 500
"""Records that nobody is long enough patient for: at 5 a second, 100 s."""


def events(count: int, app_id: str = LIMITED_APP, mark: str = "") -> list[record_pb2.Record]:
    return [event("View", app_id=app_id, record_id=f"{app_id}{mark}-{number}") for number in range(count)]


async def empty(ingest: Ingest) -> None:
    """Empties the bucket of the limited app: the batch that does so is taken as a whole."""
    assert {result.status for result in await ingest.send(*events(DEBT))} == {ACCEPTED}


async def ids_in_log(ingest: Ingest) -> set[str]:
    return {record_pb2.Record.FromString(entry.record).record_id for entry in await ingest.log()}


async def test_the_records_of_others_in_a_batch_are_kept(ingest: Ingest) -> None:
    await empty(ingest)
    mine, unknown = events(2, mark="over"), event("View", app_id="nobody")
    results = await ingest.send(mine[0], event("View", record_id="other"), mine[1], unknown)
    assert [result.status for result in results] == [RATE_LIMITED, ACCEPTED, RATE_LIMITED, REJECTED]
    assert [(one.field, one.reason) for one in results[0].violations] == [("record", "RATE_LIMITED")]
    assert (DEBT - LIMIT) / LIMIT - 60 < results[0].retry_delay.seconds <= (DEBT - LIMIT) / LIMIT
    assert not results[1].HasField("retry_delay")
    assert await ids_in_log(ingest) == {"other", *(record.record_id for record in events(DEBT))}


async def test_a_batch_that_is_all_over_ends_with_the_time_to_wait(ingest: Ingest) -> None:
    await empty(ingest)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await ingest.send(*events(3, mark="over"))
    error = from_rpc_error(raised.value)
    assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED")
    assert error.retry_after_s is not None
    assert error.retry_after_s > 1
    assert len(await ids_in_log(ingest)) == DEBT


async def test_a_stream_goes_on(ingest: Ingest) -> None:
    await empty(ingest)
    batches = [events(2, mark="over"), events(1, APP), [*events(1, APP, "b"), *events(1, mark="over")]]
    call = ingest.stub.RecordStream(iter([record_batch_pb2.RecordStreamRequest(records=batch) for batch in batches]))
    found = [[result.status for result in response.results] async for response in call]
    assert found == [[RATE_LIMITED] * 2, [ACCEPTED], [ACCEPTED, RATE_LIMITED]]


async def test_a_flood_that_is_refused_is_listed_in_part(ingest: Ingest) -> None:
    await empty(ingest)
    for _ in range(3):
        await ingest.send(event("View"), *events(DEBT, mark="over"))

    async def listed() -> list[rejected_record_pb2.RejectedRecord]:
        request = rejected_record_pb2.ListRejectedRequest(app_id=LIMITED_APP, page_size=1_000)
        return list((await ingest.stub.ListRejected(request)).rejected)

    found = await eventually(listed)
    assert {one.violations[0].reason for one in found} == {"RATE_LIMITED"}
    assert {one.record.event.event_name for one in found} == {"View"}
    assert len(found) < DEBT, f"about {MAX_OVER_RATE_PER_SECOND} a second"


async def test_what_a_gateway_took_is_taken_and_what_it_refused_is_not(ingest: Ingest) -> None:
    await empty(ingest)
    taken = await ingest.stub.RecordBatch(Request(records=events(2, mark="within"), rate_check=WITHIN))
    refused = await ingest.stub.RecordBatch(Request(records=events(2, APP, "over"), rate_check=OVER))
    assert [result.status for result in taken.results] == [ACCEPTED] * 2
    assert [result.status for result in refused.results] == [RATE_LIMITED] * 2
    assert len(await ids_in_log(ingest)) == DEBT + 2


async def test_one_record_that_cannot_be_parsed_frees_no_batch_from_its_rate(ingest: Ingest) -> None:
    await empty(ingest)
    records = [record.SerializeToString() for record in events(2, mark="over")]
    call: Any = ingest.channel.unary_unary(
        "/reengage.ingest.v1.IngestService/RecordBatch",
        response_deserializer=record_batch_pb2.RecordBatchResponse.FromString,
    )
    response = await call(record_batch_pb2.SerialisedRecords(records=[*records, b"\x0a\x01\xff"]).SerializeToString())
    assert [result.status for result in response.results] == [RATE_LIMITED, RATE_LIMITED, REJECTED]


async def test_a_record_sender_waits_and_sends_again(ingest: Ingest) -> None:
    """Three seconds' worth, among others' records; none is lost, and none refused."""
    statuses: dict[str, int] = {}

    def note(record: record_pb2.Record, result: Result) -> None:
        statuses[record.record_id] = result.status

    sent = [*events(3 * LIMIT), *events(20, APP)]
    async with (
        connect(ingest.address) as channel,
        RecordSender(channel, on_result=note, max_batch_size=7) as sender,
    ):
        for record in sent:
            await sender.send(record)
    assert statuses == dict.fromkeys((record.record_id for record in sent), ACCEPTED)
    assert await ids_in_log(ingest) == statuses.keys()
