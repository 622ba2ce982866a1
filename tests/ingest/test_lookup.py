"""LookUpRecord: what became of a record."""

import asyncio
from collections.abc import Awaitable

import grpc
import pytest

from libs.errors import from_rpc_error
from libs.time import DAY_US, MINUTE_US
from reengage.ingest.v1 import record_lookup_pb2, record_pb2
from services.ingest.lookup import AFTER_US, MAX_REFUSALS
from services.ingest.retention import purge
from services.ingest.storage.log import LogStore
from services.ingest.storage.rejected import RejectedStore
from tests.conftest import Database
from tests.ingest.conftest import APP, STRICT_APP, Ingest, age_all, event, record
from tests.support.plans import query_log


async def look_up(ingest: Ingest, record_id: str, app_id: str = APP) -> record_lookup_pb2.LookUpRecordResponse:
    return await ingest.stub.LookUpRecord(record_lookup_pb2.LookUpRecordRequest(app_id=app_id, record_id=record_id))


async def failure(call: Awaitable[object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    details = from_rpc_error(raised.value)
    return details.code, details.reason


@pytest.mark.parametrize(
    "given", ["sender-7", "0123456789abcdef01234567-0badcafe", ""], ids=["sender's", "looks like ingest's", "ingest's"]
)
async def test_an_accepted_record_is_found_with_its_place(ingest: Ingest, given: str) -> None:
    await ingest.send(*(event(record_id=f"r-{n}", device_ids={"idfa": f"d-{n}"}) for n in range(200)))
    # Holds the very bytes as well, elsewhere.
    await ingest.send(record(install=record_pb2.Install(click_record_id=given or "c")))
    [result] = await ingest.send(event("Mine", record_id=given, device_ids={"idfa": "mine"}))
    await ingest.send(event("Mine", record_id=given, device_ids={"idfa": "mine"}))
    [(entry, sent)] = [
        (entry, sent)
        for entry in await ingest.log()
        if (sent := record_pb2.Record.FromString(entry.record)).event.event_name == "Mine"
    ]
    response = await look_up(ingest, result.record_id)
    assert response.record == sent
    assert (response.place.lane, response.place.position) == (entry.lane, entry.position)
    assert response.accept_time.ToMicroseconds() == entry.receive_time_us
    assert not response.rejected
    assert await failure(look_up(ingest, result.record_id, STRICT_APP)) == (
        grpc.StatusCode.NOT_FOUND,
        "RECORD_NOT_FOUND",
    )


async def test_refusals_are_found_newest_first_beside_other_records(ingest: Ingest) -> None:
    await ingest.send(*(event("", record_id=f"r-{n}") for n in range(50)))
    for number in range(MAX_REFUSALS + 2):
        await ingest.send(event("", app_version=f"{number}", record_id="r"))
    async with asyncio.timeout(10):  # they are written by and by
        while await ingest.pool.fetchval("SELECT count(*) FROM rejected WHERE record_id = 'r'") < MAX_REFUSALS + 2:
            await asyncio.sleep(0.01)
    response = await look_up(ingest, "r")
    assert not response.HasField("accept_time")
    assert [refusal.record.app_version for refusal in response.rejected] == [
        f"{number}" for number in range(MAX_REFUSALS + 1, 1, -1)
    ]
    assert [violation.reason for violation in response.rejected[0].violations] == ["REQUIRED"]


async def test_what_the_log_holds_no_more_is_known_for_a_week(ingest: Ingest, database: Database) -> None:
    [given, made] = await ingest.send(event(record_id="given"), event())
    received_us = (await look_up(ingest, "given")).accept_time.ToMicroseconds()
    await ingest.pool.execute("DELETE FROM log")
    response = await look_up(ingest, given.record_id)
    assert not response.HasField("record")
    assert not response.HasField("place")
    assert 0 <= received_us - response.accept_time.ToMicroseconds() <= AFTER_US
    assert (await failure(look_up(ingest, made.record_id)))[1] == "RECORD_NOT_FOUND"
    await age_all(database, 7 * DAY_US + MINUTE_US)
    await purge(ingest.log_store, ingest.rejected, ingest.warned, log_days=35)
    assert (await failure(look_up(ingest, given.record_id)))[1] == "RECORD_NOT_FOUND"


async def test_a_record_beyond_holes_and_the_purged_is_found(ingest: Ingest) -> None:
    """Halving goes by time, so it must not mind that positions are missing."""
    for number in range(40):
        await ingest.send(event(record_id=f"r-{number}"))
    await ingest.pool.execute("DELETE FROM log WHERE position < 7 OR position BETWEEN 12 AND 31 OR position % 2 = 0")
    found = [number for number in range(40) if (await look_up(ingest, f"r-{number}")).HasField("record")]
    assert found == [7, 9, 11, 33, 35, 37, 39]


async def test_looking_up_reads_by_keys(database: Database) -> None:
    async with query_log(database.admin_dsn, "ingest") as log:
        await log.pool.execute(
            """
            INSERT INTO log (lane, app_lane, is_engagement, position, receive_time_us, record)
            SELECT lane, 1, true, position, position * 1000000, 'x'
            FROM generate_series(0, 63) AS lane, generate_series(0, 999) AS position;
            INSERT INTO rejected (app_id, reject_time_us, rejected_id, record_id, refusal)
            SELECT 'shop', n, n, 'r-' || n, 'x' FROM generate_series(1, 20000) AS n;
            UPDATE lanes SET next_position = 1000; ANALYZE log; ANALYZE rejected
            """
        )
        await LogStore(log.pool).find_records(1, b"y", since_us=500_000_000, until_us=535_000_000, max_entries=4096)
        records = await log.last_plan()
        await RejectedStore(log.pool).read_of_record(APP, "r-7", size=10)
        refusals = await log.last_plan()
    assert "Seq Scan on log" not in records
    assert "using log_pkey on log" in records
    assert "rejected_by_record" in refusals
