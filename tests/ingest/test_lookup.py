"""What became of a record: LookUpRecord."""

import asyncio
from collections.abc import Awaitable

import asyncpg
import grpc
import pytest

from libs.errors import from_rpc_error
from reengage.ingest.v1 import record_lookup_pb2, record_pb2
from services.ingest.lookup import AFTER_S, MOST_REFUSALS
from services.ingest.model import DAY_S
from services.ingest.retention import purge
from services.ingest.storage import log as store
from tests.conftest import Database
from tests.ingest.conftest import APP, STRICT_APP, Ingest, event, record


async def look_up(ingest: Ingest, record_id: str, app_id: str = APP) -> record_lookup_pb2.LookUpRecordResponse:
    return await ingest.stub.LookUpRecord(record_lookup_pb2.LookUpRecordRequest(app_id=app_id, record_id=record_id))


async def failure(call: Awaitable[object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    details = from_rpc_error(raised.value)
    return details.code, details.reason


async def age_all(database: Database, seconds: int) -> None:
    """As if everything had been accepted that much earlier."""
    connection = await asyncpg.connect(database.admin_dsn)
    await connection.execute(
        f"UPDATE ingest.dedupe SET first_time_s = first_time_s - {seconds};"
        f"UPDATE ingest.log SET receive_time_us = receive_time_us - {seconds}::bigint * 1000000"
    )
    await connection.close()


@pytest.mark.parametrize("given", ["sender-7", "0123456789abcdef01234567-0badcafe", ""])
async def test_an_accepted_record_is_found_with_its_place(ingest: Ingest, given: str) -> None:
    """By an id of the sender's, one that only looks like ingest's, and one that ingest made."""
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
    answer = await look_up(ingest, result.record_id)
    assert answer.record == sent
    assert (answer.place.lane, answer.place.position) == (entry.lane, entry.position)
    assert answer.accept_time.ToMicroseconds() == entry.receive_time_us
    assert not answer.rejected
    assert await failure(look_up(ingest, result.record_id, STRICT_APP)) == (
        grpc.StatusCode.NOT_FOUND,
        "RECORD_NOT_FOUND",
    )


async def test_refusals_are_found_newest_first_beside_other_records(ingest: Ingest) -> None:
    await ingest.send(*(event("_install", record_id=f"r-{n}") for n in range(50)))
    for number in range(MOST_REFUSALS + 2):
        await ingest.send(event(f"_install{number}", record_id="r"))
    async with asyncio.timeout(10):  # they are written by and by
        while await ingest.pool.fetchval("SELECT count(*) FROM rejected WHERE record_id = 'r'") < MOST_REFUSALS + 2:
            await asyncio.sleep(0.01)
    answer = await look_up(ingest, "r")
    assert not answer.HasField("accept_time")
    assert [refusal.record.event.event_name for refusal in answer.rejected] == [
        f"_install{number}" for number in range(MOST_REFUSALS + 1, 1, -1)
    ]
    assert [violation.reason for violation in answer.rejected[0].violations] == ["RESERVED_NAME"]


async def test_what_the_log_holds_no_more_is_known_to_the_second_for_a_week(ingest: Ingest, database: Database) -> None:
    [given, made] = await ingest.send(event(record_id="given"), event())
    exact = (await look_up(ingest, "given")).accept_time
    await ingest.pool.execute("DELETE FROM log")
    answer = await look_up(ingest, given.record_id)
    assert not answer.HasField("record")
    assert not answer.HasField("place")
    assert answer.accept_time.nanos == 0
    assert 0 <= exact.seconds - answer.accept_time.seconds <= AFTER_S
    assert (await failure(look_up(ingest, made.record_id)))[1] == "RECORD_NOT_FOUND"
    await age_all(database, 7 * DAY_S + 60)
    await purge(ingest.store, log_days=35)
    assert (await failure(look_up(ingest, given.record_id)))[1] == "RECORD_NOT_FOUND"


async def test_a_record_beyond_holes_and_the_purged_is_found(ingest: Ingest) -> None:
    """Halving goes by time, so it must not mind that positions are missing."""
    for number in range(40):
        await ingest.send(event(record_id=f"r-{number}"))
    await ingest.pool.execute("DELETE FROM log WHERE position < 7 OR position BETWEEN 12 AND 31 OR position % 2 = 0")
    found = [number for number in range(40) if (await look_up(ingest, f"r-{number}")).HasField("record")]
    assert found == [7, 9, 11, 33, 35, 37, 39]


async def test_looking_up_reads_by_keys(database: Database) -> None:
    connection = await asyncpg.connect(database.admin_dsn)
    await connection.execute("SET search_path = ingest; SET plan_cache_mode = force_generic_plan")
    await connection.execute(
        "INSERT INTO log SELECT lane, 1, true, position, position * 1000000, 'x'"
        " FROM generate_series(0, 63) AS lane, generate_series(0, 999) AS position;"
        "INSERT INTO rejected SELECT 'shop', n, n, 'x', 'r-' || n FROM generate_series(1, 20000) AS n;"
        "UPDATE lanes SET next_position = 1000; ANALYZE log; ANALYZE rejected"
    )
    await connection.execute(
        f"PREPARE records (bigint, bigint, smallint, bytea, bigint) AS {store._FIND_RECORDS};"
        f"PREPARE refusals (text, text, bigint) AS {store._REFUSALS_OF}"
    )
    plans = [
        "\n".join(row[0] for row in await connection.fetch(f"EXPLAIN (ANALYZE, TIMING OFF) EXECUTE {execute}"))
        for execute in ("records (500000000, 535000000, 1, 'y', 4096)", "refusals ('shop', 'r-7', 10)")
    ]
    await connection.close()
    assert "Seq Scan on log" not in plans[0]
    assert "using log_pkey on log" in plans[0]
    assert "rejected_by_record" in plans[1]


@pytest.mark.parametrize(("app_id", "record_id"), [("", "r"), ("a", ""), ("a\0", "r"), ("a", "r" * 257)])
async def test_what_names_no_record_is_refused(ingest: Ingest, app_id: str, record_id: str) -> None:
    assert (await failure(look_up(ingest, record_id, app_id)))[0] is grpc.StatusCode.INVALID_ARGUMENT
