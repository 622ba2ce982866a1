"""Conversions a second that postback takes, and deliveries that it sends, next to those of bare tools."""

import asyncio
import time
from uuid import uuid4

import aiohttp
import asyncpg
import grpc
import psutil
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct

from libs.channels import open_channel
from reengage.postback.v1 import configuration_pb2, conversion_pb2
from reengage.postback.v1 import service_pb2_grpc as postback_grpc
from tests.bench.row import Row
from tests.postback.conftest import purchase
from tests.support.databases import migrated_postgres
from tests.support.processes import ServiceProcess, postback_process

BATCH = 100
CONCURRENT = 8
LIMIT_ROWS = 2_000
STEADY_PER_SECOND = 300


class Endpoint(asyncio.Protocol):
    """An endpoint that answers 200 to every GET, at next to no cost."""

    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n" * data.count(b"\r\n\r\n"))


async def bench(*, deliveries: int = 6_000, conversions: int = 100_000, steady_s: int = 15) -> list[Row]:
    """Measures both limits; then taking conversions, sending a backlog, and sending as they come at 300/s."""
    server = await asyncio.get_running_loop().create_server(Endpoint, "127.0.0.1", 0)
    host = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with migrated_postgres("postback") as (postgres, directory):
        admin = await asyncpg.connect(postgres.admin_dsn(), server_settings={"search_path": "postback"})
        process = postback_process(
            directory / "log", dsn=postgres.dsn("postback"), allowed_hosts=host, log_level="info"
        )
        await process.start()
        try:
            async with open_channel(process.target) as channel:
                await _configure(channel, host)
                stub = postback_grpc.PostbackServiceStub(channel)
                requests = await _request_limit(f"http://{host}/", deliveries)
                rows = await _row_limit(admin, deliveries * 5)
                unwanted = await _take(stub, conversions, "Unwanted")
                wanted = await _take(stub, deliveries * 5, "Delayed")
                sent = await _send(stub, admin, deliveries)
                steady = await _steady(stub, admin, process, steady_s)
        finally:
            await process.stop()
            await admin.close()
    server.close()
    row_limit = f"one INSERT .. SELECT unnest of {LIMIT_ROWS:,} equal rows, again and again"
    request_limit = "a bare aiohttp client, 64 at a time, to the same endpoint"
    return [
        Row(name="postback: rows, PostgreSQL alone", value=rows, unit="rows/s"),
        Row(name="postback: requests, bare client", value=requests, unit="requests/s"),
        Row(name="EnqueueConversions that nobody wants", value=unwanted, unit="conversions/s"),
        Row(
            name="EnqueueConversions, each a delivery",
            value=wanted,
            unit="conversions/s",
            limit_name=row_limit,
            limit=rows,
        ),
        Row(
            name="deliveries, from enqueued to the last one settled",
            value=sent,
            unit="deliveries/s",
            limit_name=request_limit,
            limit=requests,
        ),
        *steady,
    ]


async def _configure(channel: grpc.aio.Channel, host: str) -> None:
    stub = postback_grpc.PostbackConfigServiceStub(channel)
    for trigger, delay_s in (("Purchase", 0), ("Delayed", 600)):
        configuration = configuration_pb2.Configuration(
            app_id="app",
            network_id="network",
            trigger=trigger,
            adapter="template",
            adapter_fields=ParseDict(
                {
                    "url": f"http://{host}/postback?click={{click_id}}&event={{event_name}}&time={{event_timestamp}}&"
                    "revenue={revenue}&currency={currency}&type={attribution_type}&id={delivery_id}"
                },
                Struct(),
            ),
            is_revenue=True,
        )
        configuration.delivery_delay.FromSeconds(delay_s)
        request = configuration_pb2.CreateConfigurationRequest(configuration=configuration)
        await stub.CreateConfiguration(request, wait_for_ready=True, timeout=30)


async def _request_limit(url: str, requests: int) -> float:
    left = iter(range(requests))
    connector = aiohttp.TCPConnector(limit=64)
    async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as session:

        async def ask() -> None:
            for _ in left:
                async with session.get(url) as response:
                    await response.read()

        began = time.perf_counter()
        await asyncio.gather(*(ask() for _ in range(64)))
        return requests / (time.perf_counter() - began)


async def _row_limit(admin: "asyncpg.Connection[asyncpg.Record]", rows: int) -> float:
    """Returns the rows/s into a table like deliveries, rows as large as its own."""
    await admin.execute("CREATE TABLE equal_rows (LIKE deliveries INCLUDING ALL)")
    conversion = purchase().SerializeToString()
    statement = await admin.prepare(
        """
        INSERT INTO equal_rows (
            delivery_id, configuration_id, app_id, network_id, conversion_id, event_name, device_id, conversion, due_us,
            conversion_us, retention_days
        )
        SELECT *, now_us(), now_us(), 400
        FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::bytea[])
        """
    )
    texts = [["configuration"], ["app"], ["network"], ["conversion"], ["Purchase"], ["device"]]
    began = time.perf_counter()
    for _ in range(rows // LIMIT_ROWS):
        ids = sorted(uuid4() for _ in range(LIMIT_ROWS))
        await statement.fetch(ids, *(text * LIMIT_ROWS for text in texts), [conversion] * LIMIT_ROWS)
    elapsed = time.perf_counter() - began
    await admin.execute("DROP TABLE equal_rows")
    return rows // LIMIT_ROWS * LIMIT_ROWS / elapsed


def _request(name: str, first: int, event_name: str, count: int = BATCH) -> conversion_pb2.EnqueueConversionsRequest:
    return conversion_pb2.EnqueueConversionsRequest(
        conversions=[purchase(f"{name}-{first + n}", event_name=event_name) for n in range(count)]
    )


async def _take(stub: postback_grpc.PostbackServiceStub, conversions: int, event_name: str) -> float:
    """Returns conversions/s. The requests are built beforehand: their making is the caller's cost."""
    requests = iter([_request(event_name, first, event_name) for first in range(0, conversions, BATCH)])

    async def hand_over() -> None:
        for request in requests:
            await stub.EnqueueConversions(request, timeout=60)

    began = time.perf_counter()
    await asyncio.gather(*(hand_over() for _ in range(CONCURRENT)))
    return conversions / (time.perf_counter() - began)


async def _send(
    stub: postback_grpc.PostbackServiceStub, admin: "asyncpg.Connection[asyncpg.Record]", deliveries: int
) -> float:
    began = time.perf_counter()
    await _take(stub, deliveries, "Purchase")
    await _all_ended(admin)
    return deliveries / (time.perf_counter() - began)


async def _steady(
    stub: postback_grpc.PostbackServiceStub,
    admin: "asyncpg.Connection[asyncpg.Record]",
    process: ServiceProcess,
    seconds: int,
) -> list[Row]:
    """Measures from a conversion's taking to its attempt, at 300 deliveries a second in ten calls."""
    began, used = time.perf_counter(), _cpu_s(process)
    since = await admin.fetchval("SELECT now_us()")
    for tick in range(seconds * 10):
        count = STEADY_PER_SECOND // 10
        await stub.EnqueueConversions(_request("steady", tick * count, "Purchase", count), timeout=60)
        await asyncio.sleep(max(0.0, began + (tick + 1) / 10 - time.perf_counter()))
    used = (_cpu_s(process) - used) / (time.perf_counter() - began)
    await _all_ended(admin)
    times = await admin.fetch(
        """
        SELECT
            (attempt.start_us - delivery.create_us) / 1000.0::float8 AS begun,
            (delivery.end_us - delivery.create_us) / 1000.0::float8 AS ended
        FROM deliveries AS delivery
        INNER JOIN attempts AS attempt USING (delivery_id, configuration_id)
        WHERE delivery.create_us >= $1
        """,
        since,
    )
    assert len(times) == seconds * STEADY_PER_SECOND
    rows = [Row(name=f"CPU of postback at {STEADY_PER_SECOND} deliveries/s", value=used * 100, unit="% of a core")]
    for what, column in (("leased", "begun"), ("settled", "ended")):
        values = sorted(row[column] for row in times)
        rows += [
            Row(name=f"taken to {what}, p{percent}", value=values[len(values) * percent // 100], unit="ms")
            for percent in (50, 95, 99)
        ]
    return rows


async def _all_ended(admin: "asyncpg.Connection[asyncpg.Record]") -> None:
    async with asyncio.timeout(120):
        while await admin.fetchval(
            "SELECT count(*) FROM deliveries WHERE state = 1 AND event_name = 'Purchase'"  # PENDING
        ):
            await asyncio.sleep(0.02)  # a database says nothing by itself


def _cpu_s(process: ServiceProcess) -> float:
    times = psutil.Process(process.pid).cpu_times()
    return times.user + times.system
