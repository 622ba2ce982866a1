"""A running tracker and postback, and the command line that asks them."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from typer.testing import CliRunner

from deploy.local.embedded import EmbeddedPostgres
from services.cli.app import app
from tests.conftest import TEMPLATE
from tests.support.processes import postback_process, tracker_process


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The output of a command, and its exit code."""

    code: int
    out: str
    err: str


Reengage = Callable[..., Answer]
"""Runs `reengage` with these arguments against what runs, `input` typed in, with the API key `key`."""


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def tracker_target(postgres: EmbeddedPostgres, process_logs: Path) -> AsyncIterator[str]:
    """Yields a tracker process on a database that all tests here share: each has an app of its own."""
    await postgres.create_database("settings", template=TEMPLATE)
    process = tracker_process(process_logs / "tracker.log", dsn=postgres.dsn("tracker", "settings"))
    await process.start()
    yield process.target
    await process.stop()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def postback_target(postgres: EmbeddedPostgres, process_logs: Path) -> AsyncIterator[str]:
    """Yields a postback process, likewise."""
    await postgres.create_database("postbacks", template=TEMPLATE)
    process = postback_process(process_logs / "postback.log", dsn=postgres.dsn("postback", "postbacks"))
    await process.start()
    yield process.target
    await process.stop()


@pytest.fixture
def reengage(tracker_target: str, postback_target: str) -> Reengage:
    """Returns the command line."""

    def run(*arguments: str, input: str | None = None, key: str = "admin") -> Answer:  # noqa: A002
        environment = {
            "REENGAGE_API_KEY": key,
            "REENGAGE_TRACKER_TARGET": tracker_target,
            "REENGAGE_POSTBACK_TARGET": postback_target,
            "REENGAGE_GATEWAY_URL": "https://ads.example/",
        }
        result = CliRunner().invoke(app, arguments, input=input, env=environment)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Answer(code=result.exit_code, out=result.stdout, err=result.stderr)

    return run
