"""Records a second that ingest makes durable, next to PostgreSQL's equal rows a second in the same run."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable

import asyncpg

from libs.channels import open_channel
from reengage.ingest.v1 import log_pb2, record_batch_pb2, record_pb2
from reengage.ingest.v1.service_pb2_grpc import IngestServiceStub
from reengage.tracker.v1 import snapshot_pb2, tracker_pb2
from tests.bench.row import Row
from tests.support.databases import migrated_postgres
from tests.support.feed import serve_settings
from tests.support.processes import ingest_process

BATCH = 100
CONCURRENT = 32
STATEMENT_ROWS = 1_000
"""Of the statements that are the limit: as many records as ingest itself commits at once."""


async def bench(*, records: int = 200_000) -> list[Row]:
    """Measures the row limit, RecordBatch of 100, ReadLog of all of it, and the row limit again."""
    settings = snapshot_pb2.WatchSnapshotResponse(revision=1, reset=True)
    app = settings.resources.add().app
    app.app_id, app.settings.records_per_second = "bench", 0  # no limit
    settings.resources.add().tracker.CopyFrom(tracker_pb2.Tracker(tracker_id="tr", app_id="bench"))
    async with migrated_postgres("ingest") as (postgres, directory), serve_settings(settings) as tracker:
        ingest = ingest_process(directory / "ingest.log", dsn=postgres.dsn("ingest"), tracker_target=tracker)
        before = await _row_limits(postgres.admin_dsn(), records)
        await ingest.start()
        try:
            async with open_channel(ingest.target) as channel:
                stub = IngestServiceStub(channel)
                written = await _write(stub, records)
                read = await _read(stub)
        finally:
            await ingest.stop()
        after = await _row_limits(postgres.admin_dsn(), records)
    equal, log_alone = map(max, before, after)
    return [
        Row(
            name=f"RecordBatch of {BATCH}",
            value=written,
            unit="records/s",
            limit_name="records/s of INSERT .. SELECT unnest of equal rows (log and dedupe)",
            limit=equal,
            at_least=0.5,
        ),
        Row(
            name="  the same",
            value=written,
            unit="records/s",
            limit_name="rows/s of the same into the log alone, repeats not recognised",
            limit=log_alone,
        ),
        Row(name="ReadLog, one reader that catches up", value=read, unit="records/s"),
    ]


async def _row_limits(dsn: str, records: int) -> tuple[float, float]:
    """Returns records/s of PostgreSQL by itself, into tables like ours: both rows of a record, and the log's."""
    connection = await asyncpg.connect(dsn)
    await connection.execute(
        """
        SET search_path = ingest;
        CREATE TABLE equal_log (LIKE log INCLUDING ALL);
        CREATE TABLE equal_dedupe (LIKE dedupe INCLUDING ALL);
        """
    )
    log = await connection.prepare(
        "INSERT INTO equal_log (lane, position, app_lane, is_engagement, receive_time_us, record)"
        " SELECT * FROM unnest($1::smallint[], $2::bigint[], $3::smallint[], $4::boolean[], $5::bigint[], $6::bytea[])"
    )
    dedupe = await connection.prepare(
        "INSERT INTO equal_dedupe (key, first_time_us) SELECT * FROM unnest($1::bytea[], $2::bigint[])"
        " ON CONFLICT DO NOTHING"
    )
    size = len(make_record(0).SerializeToString()) + 45  # the id and the time that ingest adds
    log_rows = [
        (
            [row % 64 for row in range(start, start + STATEMENT_ROWS)],
            [row // 64 for row in range(start, start + STATEMENT_ROWS)],
            [row % 7 for row in range(STATEMENT_ROWS)],
            [row % 3 > 0 for row in range(STATEMENT_ROWS)],
            list(range(start, start + STATEMENT_ROWS)),
            [random.randbytes(size) for _ in range(STATEMENT_ROWS)],
        )
        for start in range(0, records, STATEMENT_ROWS)
    ]
    keys = [sorted(random.randbytes(16) for _ in range(STATEMENT_ROWS)) for _ in log_rows]

    async def both() -> None:
        for arguments, some in zip(log_rows, keys, strict=True):
            async with connection.transaction():
                await dedupe.fetch(some, [0] * len(some))
                await log.fetch(*arguments)

    async def log_alone() -> None:
        for arguments in log_rows:
            await log.fetch(*arguments)

    pairs = records / await _seconds(both)
    await connection.execute("TRUNCATE equal_log")
    rows = records / await _seconds(log_alone)
    await connection.execute("DROP TABLE equal_log, equal_dedupe")
    await connection.close()
    return pairs, rows


async def _write(stub: IngestServiceStub, records: int) -> float:
    requests = [
        record_batch_pb2.RecordBatchRequest(records=[make_record(number) for number in range(start, start + BATCH)])
        for start in range(0, records, BATCH)
    ]
    total = len(requests) * BATCH

    async def send() -> None:
        while requests:
            response = await stub.RecordBatch(requests.pop())
            assert all(result.status == record_batch_pb2.RecordResult.STATUS_ACCEPTED for result in response.results)

    return total / await _seconds(lambda: asyncio.gather(*(send() for _ in range(CONCURRENT))))


async def _read(stub: IngestServiceStub) -> float:
    places = [log_pb2.LanePosition(lane=lane) for lane in range(64)]
    count = 0

    async def read() -> None:
        nonlocal count
        call = stub.ReadLog(log_pb2.ReadLogRequest(**{"from": places}))  # type: ignore[arg-type]
        async for response in call:
            count += len(response.entries)
            if response.caught_up:
                break
        call.cancel()

    seconds = await _seconds(read)
    return count / seconds


async def _seconds(work: Callable[[], Awaitable[object]]) -> float:
    began = time.perf_counter()
    await work()
    return time.perf_counter() - began


def make_record(number: int) -> record_pb2.Record:
    """Returns a record of the usual mix: 70 of a hundred clicks and impressions, 5 installs, 25 events."""
    share = number % 20
    record = record_pb2.Record(
        app_id="bench",
        record_id=f"record-{number:012}",
        device_ids={"idfa": f"6D92078A-8246-4BA4-AE5B-{number:012}"},
        ip_address=f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}",
        user_agent="Mozilla/5.0 (iPhone; CPU iPhone OS 17_4 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko)",
    )
    record.event_time.GetCurrentTime()
    if share < 10:
        record.click.tracker_id = "tr"
        record.click.click_id = f"click-{number}"
        record.click.ad.site_id = f"site-{number % 50}"
        record.click.ad.custom_parameters["cp_0"] = "summer"
    elif share < 14:
        record.impression.tracker_id = "tr"
        record.impression.ad.site_id = f"site-{number % 50}"
    elif share < 15:
        record.install.referrer = "utm_source=x"
    else:
        record.event.event_name = "Purchase"
        record.event.event_data["sku"] = f"sku-{number % 100}"
        record.event.revenue.amount_micros = 9_990_000
        record.event.revenue.currency_code = "USD"
    return record
