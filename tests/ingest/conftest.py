"""A real ingest service on a real database, with settings that arrive as tracker would send them."""

import asyncio
import itertools
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import asyncpg
import grpc
import pytest

from libs.channels import open_channel
from libs.db import Pool, open_pool
from libs.domain.lanes import LANES
from libs.domain.snapshots import Follower
from libs.server import ServerConfig, build_server
from reengage.ingest.v1 import log_pb2, record_batch_pb2, record_pb2
from reengage.ingest.v1.service_pb2_grpc import IngestServiceStub
from reengage.tracker.v1 import app_pb2, event_definition_pb2, snapshot_pb2, status_pb2, tracker_pb2
from services.ingest.countries import Countries
from services.ingest.registrations import Registrations
from services.ingest.settings import build_settings
from services.ingest.storage.log import PAGE_BYTES, LogStore
from services.ingest.storage.rejected import RejectedStore
from services.ingest.storage.warned import WarnedStore
from services.ingest.wiring import wire_parts
from services.ingest.writer import MAX_WAITING
from tests.conftest import Database

APP, STRICT_APP, ARCHIVED_APP, LIMITED_APP = "shop", "strict", "gone", "limited"
LIMIT = 5
TRACKER, ARCHIVED_TRACKER, STRICT_TRACKER = "tr-1", "tr-old", "tr-strict"
DEFINED_EVENTS = frozenset({"Login", "Old login"})


def settings_response() -> snapshot_pb2.WatchSnapshotResponse:
    """Returns apps (one with narrow limits of time, one of 5 records a second), trackers and events; some archived."""
    archived = status_pb2.STATUS_ARCHIVED
    strict = app_pb2.AppSettings()
    strict.max_record_age.seconds = 3600
    strict.max_record_lead.seconds = 0
    apps = [
        app_pb2.App(app_id=APP, sandbox=True),
        app_pb2.App(app_id=STRICT_APP, settings=strict),
        app_pb2.App(app_id=ARCHIVED_APP, status=archived),
        app_pb2.App(app_id=LIMITED_APP, settings=app_pb2.AppSettings(records_per_second=LIMIT)),
    ]
    trackers = [
        tracker_pb2.Tracker(tracker_id=TRACKER, app_id=APP),
        tracker_pb2.Tracker(tracker_id=ARCHIVED_TRACKER, app_id=APP, status=archived),
        tracker_pb2.Tracker(tracker_id=STRICT_TRACKER, app_id=STRICT_APP),
    ]
    events = [
        event_definition_pb2.EventDefinition(app_id=APP, event_name="Login"),
        event_definition_pb2.EventDefinition(app_id=APP, event_name="Old login", status=archived),
    ]
    return snapshot_pb2.WatchSnapshotResponse(
        revision=7,
        reset=True,
        resources=[snapshot_pb2.Resource(app=app) for app in apps]
        + [snapshot_pb2.Resource(tracker=tracker) for tracker in trackers]
        + [snapshot_pb2.Resource(event_definition=event) for event in events],
    )


async def watch(_revision: int) -> AsyncIterator[snapshot_pb2.WatchSnapshotResponse]:
    """Yields tracker's stream: everything once, then silence."""
    yield settings_response()
    await asyncio.Event().wait()


async def register_nothing(app_id: str, event_names: Collection[str]) -> None:
    """Stands for a tracker that takes the names of events, for tests that are about something else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingest:
    """A running ingest service: its client, and what tests look into."""

    address: str
    stub: IngestServiceStub
    channel: grpc.aio.Channel
    pool: Pool
    log_store: LogStore
    rejected: RejectedStore
    warned: WarnedStore
    registrations: Registrations

    async def send(self, *records: record_pb2.Record) -> list[record_batch_pb2.RecordResult]:
        """Sends records in one RecordBatch."""
        response = await self.stub.RecordBatch(record_batch_pb2.RecordBatchRequest(records=records))
        return list(response.results)

    async def log(self) -> list[log_pb2.LogEntry]:
        """Returns all that the log holds, through ReadLog."""
        return [entry async for entry in read_until_caught_up(self.stub)]


StartIngest: TypeAlias = Callable[..., AbstractAsyncContextManager[Ingest]]


def read_log_request(positions: Sequence[int] = (0,) * LANES, **options: Any) -> log_pb2.ReadLogRequest:
    """Returns a request for every lane from these positions on."""
    request = log_pb2.ReadLogRequest(**options)
    for lane, position in enumerate(positions):
        getattr(request, "from").add(lane=lane, position=position)
    return request


async def read_until_caught_up(
    stub: IngestServiceStub, request: log_pb2.ReadLogRequest | None = None
) -> AsyncIterator[log_pb2.LogEntry]:
    """Yields the entries of a ReadLog call up to the first response that says caught_up."""
    call = stub.ReadLog(request or read_log_request())
    async for response in call:
        for entry in response.entries:
            yield entry
        if response.caught_up:
            call.cancel()
            return


@pytest.fixture
def start_ingest(tmp_path: Path) -> StartIngest:
    """Starts services in this process; several on one database are so many replicas."""
    numbers = itertools.count(1)

    @asynccontextmanager
    async def start(
        database: Database,
        *,
        max_waiting: int = MAX_WAITING,
        page_bytes: int = PAGE_BYTES,
        settle_s: float = 0.0,
        write: bool = True,
        watch: Callable[[int], AsyncIterable[snapshot_pb2.WatchSnapshotResponse]] = watch,
        register: Callable[[str, Collection[str]], Awaitable[object]] = register_nothing,
        geoip_database: str = "",
        service_key: str = "",
    ) -> AsyncIterator[Ingest]:
        async with AsyncExitStack() as stack:
            pool = await stack.enter_async_context(
                open_pool(database.dsn("ingest"), schema="ingest", application_name="test", max_size=4)
            )
            settings, countries = Follower(watch, build_settings), Countries(geoip_database)
            countries.read()
            parts = wire_parts(
                pool,
                settings,
                register=register,
                country_of=countries.of,
                service_key=service_key,
                page_bytes=page_bytes,
                max_waiting=max_waiting,
                settle_s=settle_s,
            )
            server, _ = build_server(ServerConfig(listen=""), [parts.face])
            address = f"unix:{tmp_path / f'ingest{next(numbers)}.sock'}"
            server.add_insecure_port(address)
            await server.start()
            stack.push_async_callback(server.stop, 0)
            names = ["settings", "refusals", "warned", *(["writer"] if write else [])]
            tasks = [asyncio.ensure_future(parts.loops[name]()) for name in names]
            stack.push_async_callback(_cancel, tasks)
            await settings.ready()
            channel = await stack.enter_async_context(open_channel(address))
            yield Ingest(
                address=address,
                stub=IngestServiceStub(channel),
                channel=channel,
                pool=pool,
                log_store=parts.log,
                rejected=parts.rejected,
                warned=parts.warned,
                registrations=parts.registrations,
            )

    return start


@pytest.fixture
async def ingest(start_ingest: StartIngest, database: Database) -> AsyncIterator[Ingest]:
    """Yields one service on an empty database."""
    async with start_ingest(database) as running:
        yield running


async def _cancel(tasks: Sequence["asyncio.Task[None]"]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def click(**fields: object) -> record_pb2.Record:
    """Returns an acceptable click."""
    return record(click=record_pb2.Click(tracker_id=TRACKER), **fields)


def event(name: str = "Purchase", **fields: object) -> record_pb2.Record:
    """Returns an acceptable event."""
    return record(event=record_pb2.Event(event_name=name), **fields)


def record(**fields: object) -> record_pb2.Record:
    """Returns a record with what every kind needs."""
    usual = {"app_id": APP, "device_ids": {"idfa": "11111111-1111-4111-8111-111111111111"}, "ip_address": "192.0.2.7"}
    return record_pb2.Record(**{**usual, **fields})  # type: ignore[arg-type]


async def age_all(database: Database, length_us: int) -> None:
    """Makes everything that ingest holds so much older."""
    connection = await asyncpg.connect(database.admin_dsn)
    await connection.execute("SET search_path = ingest")
    await connection.execute("UPDATE dedupe SET first_time_us = first_time_us - $1::bigint", length_us)
    await connection.execute("UPDATE log SET receive_time_us = receive_time_us - $1::bigint", length_us)
    await connection.execute("UPDATE rejected SET reject_time_us = reject_time_us - $1::bigint", length_us)
    await connection.execute("UPDATE warned SET warn_time_us = warn_time_us - $1::bigint", length_us)
    await connection.close()
