"""Tracker as its callers see it: a running server and a channel to it."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

import pytest
from cryptography.fernet import Fernet

from libs.channels import open_channel
from libs.db import open_pool
from libs.server import ServerConfig, build_server
from libs.time import now_us
from reengage.tracker.v1 import service_pb2_grpc
from services.tracker.following import MAX_CHANGES
from services.tracker.wiring import wire_parts
from tests.conftest import Database
from tests.tracker.samples import Stub

ADMIN_KEY = "the admin's own key"
SERVICE_KEY = "the services' key"
POSTBACK_KEY = "postback's key"
SECRETS_KEY = Fernet.generate_key().decode()


class Clock:
    """Time that stands still until it is moved."""

    def __init__(self) -> None:
        self.now_us = now_us()


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A running tracker, and the clock by which its keys end."""

    target: str
    clock: Clock


@asynccontextmanager
async def serving(database: Database, *, max_changes: int = MAX_CHANGES) -> AsyncIterator[Served]:
    """Yields a tracker on this database. The ids it makes are made-1, made-2 and so on."""
    numbers, clock = itertools.count(1), Clock()
    async with open_pool(database.dsn("tracker"), schema="tracker", application_name="test") as pool:
        parts = wire_parts(
            pool,
            admin_key=ADMIN_KEY,
            service_key=SERVICE_KEY,
            postback_key=POSTBACK_KEY,
            secrets_keys=SECRETS_KEY,
            new_id=lambda: f"made-{next(numbers)}",
            new_key=lambda: f"key-{next(numbers)}",
            now_us=lambda: clock.now_us,
            max_changes=max_changes,
        )
        server, _ = build_server(ServerConfig(listen=""), [parts.face])
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        polling = asyncio.ensure_future(parts.loops["revisions"]())
        try:
            yield Served(target=f"127.0.0.1:{port}", clock=clock)
        finally:
            await server.stop(0)
            polling.cancel()
            await asyncio.wait([polling])


@asynccontextmanager
async def running(database: Database, *, max_changes: int = MAX_CHANGES) -> AsyncIterator[Stub]:
    """Yields a tracker, and a client of it that may do everything."""
    async with (
        serving(database, max_changes=max_changes) as served,
        open_channel(served.target, key=ADMIN_KEY) as channel,
    ):
        yield service_pb2_grpc.TrackerConfigServiceStub(channel)


@pytest.fixture
def start_tracker(database: Database) -> Callable[[], AbstractAsyncContextManager[Stub]]:
    """Starts a tracker, or one more, on the test's database."""
    return lambda: running(database)


@pytest.fixture
async def tracker(database: Database) -> AsyncIterator[Stub]:
    """Yields a running tracker with nothing in it."""
    async with running(database) as stub:
        yield stub
