"""Tracker as its callers see it: a running server and a channel to it."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from libs.client import open_channel
from libs.db import open_pool
from libs.server import Face, ServerConfig, build_server
from reengage.tracker.v1 import tracker_pb2_grpc
from services.tracker.revisions import Revisions
from services.tracker.service import TrackerConfigService
from services.tracker.settings import Settings
from services.tracker.store import Store
from tests.conftest import Database
from tests.tracker.samples import Stub

NAME = "reengage.tracker.v1.TrackerConfigService"


@asynccontextmanager
async def running(database: Database) -> AsyncIterator[Stub]:
    """A tracker on this database, and a client of it. The ids it makes are made-1, made-2 and so on."""
    numbers = itertools.count(1)
    async with open_pool(database.dsn("tracker"), schema="tracker", application_name="test") as pool:
        store = Store(pool)
        revisions = Revisions(store.revision)
        settings = Settings(store, revisions, new_id=lambda: f"made-{next(numbers)}")
        service = TrackerConfigService(settings, store, revisions)
        face = Face(
            name=NAME,
            add=lambda server: tracker_pb2_grpc.add_TrackerConfigServiceServicer_to_server(service, server),
        )
        server, _ = build_server(ServerConfig(listen=""), [face])
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        polling = asyncio.ensure_future(revisions.run())
        try:
            async with open_channel(f"127.0.0.1:{port}") as channel:
                yield tracker_pb2_grpc.TrackerConfigServiceStub(channel)
        finally:
            await server.stop(0)
            polling.cancel()
            await asyncio.wait([polling])


@pytest.fixture
def start_tracker(database: Database) -> Callable[[], AbstractAsyncContextManager[Stub]]:
    """Starts a tracker, or one more, on the test's database."""
    return lambda: running(database)


@pytest.fixture
async def tracker(database: Database) -> AsyncIterator[Stub]:
    """A running tracker with nothing in it."""
    async with running(database) as stub:
        yield stub
