"""A database that is slow, or has no connection left: things wait or are refused, nothing is lost, all recovers."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import asyncpg
import grpc
import pytest

from deploy.local.embedded import EmbeddedPostgres
from libs.channels import open_channel
from libs.errors import from_rpc_error
from reengage.postback.v1 import delivery_pb2
from reengage.tracker.v1 import app_pb2
from reengage.tracker.v1.service_pb2_grpc import TrackerConfigServiceStub
from tests.attribution.conftest import (  # noqa: F401  # fixtures
    StartWorld,
    event,
    following_config,
    hand_over_s,
    start_world,
    what_if_config,
)
from tests.conftest import Database, create_migrated_database
from tests.postback.conftest import purchase, running, serving, until_ended
from tests.support.eventually import eventually
from tests.tracker import samples
from tests.tracker.conftest import ADMIN_KEY
from tests.tracker.conftest import serving as serving_tracker

DELAY_S = 0.1
MAX_CONNECTIONS = 24
POOL_SIZE = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowDatabase(Database):
    """A database behind a proxy: whatever a service says to it arrives a while later."""

    directory: Path

    def dsn(self, service: str) -> str:
        return f"postgresql://{service}_app@/{self.name}?host={quote(str(self.directory), safe='')}"


async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_s: float) -> None:
    try:
        while data := await reader.read(65_536):
            if delay_s:
                await asyncio.sleep(delay_s)  # this is the slowness
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


@pytest.fixture
async def slow(database: Database, tmp_path: Path) -> AsyncIterator[SlowDatabase]:
    """Yields the test's database, a tenth of a second away."""
    socket = str(database.postgres._socket_directory / ".s.PGSQL.5432")
    tasks: set[asyncio.Task[None]] = set()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind_reader, behind_writer = await asyncio.open_unix_connection(socket)
        for passing in (pass_on(reader, behind_writer, DELAY_S), pass_on(behind_reader, writer, 0)):
            tasks.add(task := asyncio.ensure_future(passing))
            task.add_done_callback(tasks.discard)

    async with await asyncio.start_unix_server(connect, tmp_path / ".s.PGSQL.5432"):
        yield SlowDatabase(postgres=database.postgres, name=database.name, directory=tmp_path)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def connection_counts(database: Database) -> dict[str, int]:
    """Returns how many connections each role has to the database."""
    connection = await asyncpg.connect(database.admin_dsn)
    try:
        rows = await connection.fetch(
            "SELECT usename, count(*) AS count FROM pg_stat_activity WHERE datname = $1 GROUP BY usename", database.name
        )
    finally:
        await connection.close()
    return {row["usename"]: row["count"] for row in rows}


@pytest.mark.slow
async def test_a_slow_database_loses_nothing(slow: SlowDatabase, start_world: StartWorld) -> None:  # noqa: F811
    ids = [f"e{number}" for number in range(60)]
    async with start_world(slow) as world, world.worker():
        device = {"adid": "cdda802e-fb9c-47ad-9866-0794d394c912"}
        sent = await asyncio.gather(*(world.send(event(60, device, "View", record_id=one)) for one in ids))
        assert sorted(one for (one,) in sent) == sorted(ids)
        decided = await world.decided(*ids)
        assert [one.conversion_id for one in decided] == ids
        counts = await connection_counts(slow)
        assert counts["ingest_app"] <= POOL_SIZE
        assert counts["attribution_app"] <= POOL_SIZE


@pytest.mark.slow
async def test_a_slow_database_doubles_nothing(slow: SlowDatabase, tmp_path: Path) -> None:
    count = 40
    async with serving() as endpoint, running(slow, tmp_path / "s", allowed=endpoint.host) as service:
        await service.configure(template={"url": endpoint.url("/")})
        made = await asyncio.gather(*(service.enqueue(purchase(f"c{number}")) for number in range(count)))
        assert sum(made) == count
        ended = await until_ended(service, count)
        assert {one.state for one in ended} == {delivery_pb2.Delivery.STATE_DELIVERED}
        assert len(endpoint.received) == len({one.delivery_id for one in endpoint.received}) == count
        assert (await connection_counts(slow))["postback_app"] <= POOL_SIZE


@pytest.fixture
async def scarce(tmp_path: Path) -> AsyncIterator[Database]:
    """Yields a database of a server that has few connections."""
    settings = {"max_connections": str(MAX_CONNECTIONS), "superuser_reserved_connections": "3"}
    async with EmbeddedPostgres(tmp_path / "postgres", durable=False, settings=settings) as server:
        await create_migrated_database(server, "scarce")
        yield Database(postgres=server, name="scarce")


@asynccontextmanager
async def all_connections(database: Database) -> AsyncIterator[None]:
    """Takes every connection that the server has left, as somebody else would."""
    async with contextlib.AsyncExitStack() as stack:
        with contextlib.suppress(asyncpg.TooManyConnectionsError):
            while True:
                connection = await asyncpg.connect(database.dsn("ingest"))
                stack.push_async_callback(connection.close)
        yield


async def outcomes(calls: list[Coroutine[Any, Any, Any]]) -> set[str]:
    """Returns the reasons that calls made side by side failed with, OK among them."""

    async def outcome(call: Coroutine[Any, Any, Any]) -> str:
        try:
            await call
        except grpc.aio.AioRpcError as error:
            return from_rpc_error(error).reason
        return "OK"

    return set(await asyncio.gather(*map(outcome, calls)))


async def has_recovered(calls: Callable[[], list[Coroutine[Any, Any, Any]]]) -> None:
    async def fine() -> bool:
        return await outcomes(calls()) == {"OK"}

    await eventually(fine)


@pytest.mark.slow
async def test_tracker_without_a_connection_to_spare_recovers(scarce: Database) -> None:
    async with serving_tracker(scarce) as served, open_channel(served.target, key=ADMIN_KEY) as channel:
        stub = TrackerConfigServiceStub(channel)
        await stub.CreateApp(app_pb2.CreateAppRequest(app=samples.app()))

        async def get() -> None:
            await stub.GetApp(app_pb2.GetAppRequest(app_id="kodemo1"))

        async with all_connections(scarce):
            assert await outcomes([get() for _ in range(60)]) <= {"OK", "DATABASE_UNAVAILABLE"}
        await has_recovered(lambda: [get() for _ in range(60)])


@pytest.mark.slow
async def test_postback_without_a_connection_to_spare_recovers(scarce: Database, tmp_path: Path) -> None:
    async with serving() as endpoint, running(scarce, tmp_path / "s", allowed=endpoint.host) as service:
        await service.configure(template={"url": endpoint.url("/")})
        async with all_connections(scarce):
            tried = await outcomes([_enqueue(service, number) for number in range(40)])
            assert tried <= {"OK", "DATABASE_UNAVAILABLE"}
        await has_recovered(lambda: [_enqueue(service, number) for number in range(40)])
        ended = await until_ended(service, 40)
        assert {one.state for one in ended} == {delivery_pb2.Delivery.STATE_DELIVERED}
        assert len(endpoint.received) == 40


async def _enqueue(service: Any, number: int) -> None:
    await service.enqueue(purchase(f"c{number}"))


@pytest.mark.slow
async def test_ingest_and_attribution_without_a_connection_to_spare_recover(
    scarce: Database,
    start_world: StartWorld,  # noqa: F811
) -> None:
    device = {"adid": "cdda802e-fb9c-47ad-9866-0794d394c912"}
    ids = [f"e{number}" for number in range(40)]
    async with start_world(scarce) as world, world.worker():
        await world.send(event(60, device, "View", record_id="before"))

        async def send(record_id: str) -> None:
            await world.send(event(60, device, "View", record_id=record_id))

        async with all_connections(scarce):
            tried = await outcomes([send(one) for one in ids])
            assert tried <= {"OK", "DATABASE_UNAVAILABLE", "LOG_UNAVAILABLE"}
        await has_recovered(lambda: [send(one) for one in ids])
        assert [one.conversion_id for one in await world.decided(*ids)] == ids
