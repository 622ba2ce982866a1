"""Redirects and single records a second through the gateway, each durable, next to an empty ASGI application."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

from reengage.tracker.v1 import app_pb2
from tests.bench.row import Row
from tests.support.backend import backend, create_tracker
from tests.support.databases import migrated_postgres
from tests.support.ports import free_port

WARM_UP = 1_000
LIMIT = "redirects/s of an empty ASGI application on uvicorn"


async def bench(*, requests: int = 40_000, connections: int = 256) -> list[Row]:
    """Measures the empty application, clicks, single records, and the empty application again."""
    async with migrated_postgres("tracker", "ingest") as (postgres, directory):
        dsns = {service: postgres.dsn(service) for service in ("tracker", "ingest")}
        async with backend(dsns, directory) as behind:
            app = app_pb2.App(app_id="bench", name="Bench", platform=app_pb2.PLATFORM_ANDROID)
            app.settings.records_per_second = 0  # no limit
            url = "https://play.google.com/store/apps/details?id=com.bench&c={click_id}"
            await create_tracker(behind.settings, app, tracker_id="bench", install_url=url)
            gateway = behind.gateway(directory)
            await gateway.start()
            port = int(gateway.target.rpartition(":")[2])
            try:
                await _load(port, "click", WARM_UP, connections)  # everyone is awake
                before = await _limit(requests, connections)
                clicks = await _load(port, "click", requests, connections)
                records = await _load(port, "track", requests, connections)
                limit = max(before, await _limit(requests, connections))
                stored = await _stored(postgres.admin_dsn(), 2 * requests + WARM_UP)
            finally:
                await gateway.stop()
    if stored != 2 * requests + WARM_UP:
        raise AssertionError(f"{stored} records in the log, {2 * requests + WARM_UP} were answered")
    at = f"{connections} connections"
    return [
        Row(name=f"empty ASGI application, {at}", value=limit, unit="redirects/s"),
        Row(
            name=f"click redirects, {at}",
            value=clicks,
            unit="redirects/s",
            limit_name=LIMIT,
            limit=limit,
            at_least=0.5,
        ),
        Row(
            name=f"single /track/json, {at}",
            value=records,
            unit="records/s",
            limit_name=LIMIT,
            limit=limit,
            at_least=0.4,
        ),
    ]


async def _limit(requests: int, connections: int) -> float:
    async with _empty_application() as port:
        return await _load(port, "click", requests, connections)


@asynccontextmanager
async def _empty_application() -> AsyncIterator[int]:
    port = free_port()
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "tests.bench.empty_asgi", f"127.0.0.1:{port}")
    try:
        async with asyncio.timeout(30):
            while not await _listens(port):
                await asyncio.sleep(0.02)
        yield port
    finally:
        process.terminate()
        await process.wait()


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionError:
        return False
    writer.close()
    return True


async def _load(port: int, kind: str, count: int, connections: int) -> float:
    """Answers a second; all of them must be good ones."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bench.http_load", str(port), kind, str(count), str(connections)),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        out, _ = await asyncio.wait_for(process.communicate(), timeout=120)
    except TimeoutError:
        process.kill()
        raise
    result = json.loads(out)
    if sum(result["statuses"].get(status, 0) for status in ("200", "302")) != count:
        raise AssertionError(f"not all were answered well: {result['statuses']}")
    return count / float(result["seconds"])


async def _stored(dsn: str, wanted: int) -> int:
    """Records in the log, once the spool has been sent on."""
    connection = await asyncpg.connect(dsn)
    try:
        async with asyncio.timeout(60):
            while (stored := int(await connection.fetchval("SELECT count(*) FROM ingest.log"))) < wanted:
                await asyncio.sleep(0.1)
        return stored
    finally:
        await connection.close()


if __name__ == "__main__":
    for row in asyncio.run(bench()):
        ratio = f"  {row.ratio:.2f} of the limit" if row.ratio is not None else ""
        print(f"{row.name:45} {row.value:10,.0f} {row.unit}{ratio}")  # noqa: T201
