"""A running tracker, and the command line that asks it."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import pytest
import pytest_asyncio
from cryptography.fernet import Fernet
from typer.testing import CliRunner

from deploy.local.cli import app
from deploy.local.embedded import EmbeddedPostgres
from libs.channels import open_channel
from reengage.tracker.v1 import app_pb2, service_pb2_grpc
from tests.conftest import TEMPLATE
from tests.gateway.processes import ServiceProcess, free_port


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a command wrote, and its exit code."""

    code: int
    out: str
    err: str


Reengage = Callable[..., Answer]
"""Runs `reengage` with these arguments against the running tracker, `input` typed in, with the API key `key`."""


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def tracker_target(postgres: EmbeddedPostgres) -> AsyncIterator[str]:
    """A tracker process on a database that all tests here share: each has an app of its own."""
    await postgres.create_database("settings", template=TEMPLATE)
    process = ServiceProcess(
        "tracker",
        dsn=postgres.dsn("tracker", "settings"),
        metrics_port=str(free_port()),
        admin_key="admin",
        service_key="service",
        secrets_keys=Fernet.generate_key().decode(),
    )
    await process.start()
    async with open_channel(process.target, key="admin") as channel:
        stub = service_pb2_grpc.TrackerConfigServiceStub(channel)
        await stub.ListApps(app_pb2.ListAppsRequest(), wait_for_ready=True)
    yield process.target
    await process.stop()


@pytest.fixture
def reengage(tracker_target: str) -> Reengage:
    """The command line."""

    def run(*arguments: str, input: str | None = None, key: str = "admin") -> Answer:  # noqa: A002
        environment = {"REENGAGE_API_KEY": key, "REENGAGE_TRACKER_TARGET": tracker_target}
        result = CliRunner().invoke(app, arguments, input=input, env=environment)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Answer(code=result.exit_code, out=result.stdout, err=result.stderr)

    return run
