"""Fixtures for every test: a PostgreSQL of its own, migrated."""

import gc
import itertools
import shutil
import signal
from collections.abc import AsyncIterator, Generator
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio
from hypothesis import settings

from deploy.local.embedded import EmbeddedPostgres
from libs.logs import configure_logging
from libs.migrations import prepare
from tests.support.introspection import ask_for_types_once
from tests.support.memory import keep_temporary_files_in_memory

SERVICES = Path(__file__).parent.parent / "services"
TEMPLATE = "migrated"
_numbers = itertools.count(1)

# Many small databases, of which none holds much.
SETTINGS = {"shared_buffers": "64MB", "max_wal_size": "512MB"}
# How long an example takes on a busy machine says nothing.
settings.register_profile("tests", deadline=None)
settings.load_profile("tests")
ask_for_types_once()
_memory = pytest.StashKey[Path | None]()


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Keeps temporary files in memory where there is enough of it; workers are told by the process that starts them."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell has its background jobs ignore Ctrl-C, and the commands under test would inherit that.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(config, "workerinput") or config.option.basetemp:
        return
    config.stash[_memory] = directory = keep_temporary_files_in_memory()
    if directory is not None:
        config.option.basetemp = str(directory / "t")  # short, as it becomes part of the paths of sockets


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection() -> Generator[None, object, object]:
    """Has the garbage collector pass over modules and tests, which stay: half of the time of collection, else."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Removes the temporary files, unless a test has failed: then they say more than it does."""
    directory = session.config.stash.get(_memory, None)
    if directory is not None and exitstatus == pytest.ExitCode.OK:
        shutil.rmtree(directory, ignore_errors=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Database:
    """A database with the schema of every service that has migrations, empty otherwise."""

    postgres: EmbeddedPostgres
    name: str

    @property
    def admin_dsn(self) -> str:
        """Returns the superuser's DSN."""
        return self.postgres.admin_dsn(self.name)

    def dsn(self, service: str) -> str:
        """Returns the DSN of the service's own role."""
        return self.postgres.dsn(service, self.name)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks tests that use a service, or a database of their own, as a process."""
    for item in items:
        if {"process_logs", "durable_database"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.process)


@pytest.fixture(scope="session")
def process_logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the directory for the logs of services that run as processes and that tests share."""
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="session", autouse=True)
def _quiet_logs() -> None:
    """Logs warnings and worse, as in production: no local variables in tracebacks."""
    configure_logging("test", "warning")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def postgres(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EmbeddedPostgres]:
    """Yields one PostgreSQL for the whole run, not durable; it holds the migrated template that `database` copies."""
    async with EmbeddedPostgres(tmp_path_factory.mktemp("postgres"), durable=False, settings=SETTINGS) as server:
        await create_migrated_database(server, TEMPLATE)
        yield server


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def _superuser(postgres: EmbeddedPostgres) -> "AsyncIterator[asyncpg.Connection[asyncpg.Record]]":
    """Yields one connection for the whole run that makes and drops the databases of tests."""
    connection = await asyncpg.connect(postgres.admin_dsn("postgres"))
    yield connection
    await connection.close()


@pytest_asyncio.fixture(loop_scope="session")
async def database(
    postgres: EmbeddedPostgres, _superuser: "asyncpg.Connection[asyncpg.Record]"
) -> AsyncIterator[Database]:
    """Yields a database of the test's own."""
    name = f"test_{next(_numbers)}"
    await _superuser.execute(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE} STRATEGY FILE_COPY")
    yield Database(postgres=postgres, name=name)
    await _superuser.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def durable_database(tmp_path: Path) -> AsyncIterator[Database]:
    """Yields a migrated database on a PostgreSQL of the test's own, durable: for tests that kill or restart it."""
    async with EmbeddedPostgres(tmp_path / "postgres") as server:
        await create_migrated_database(server, "durable")
        yield Database(postgres=server, name="durable")


async def create_migrated_database(server: EmbeddedPostgres, name: str) -> None:
    await server.create_database(name)
    for directory in sorted(SERVICES.glob("*/migrations")):
        await prepare(server.admin_dsn(name), schema=directory.parent.name, directory=directory)
