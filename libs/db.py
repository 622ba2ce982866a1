"""A pool of PostgreSQL connections for one service, and transactions that are tried again when that is right."""

import asyncio
import contextlib
import itertools
import json
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Literal, TypeAlias, TypeVar

import asyncpg

Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record] | asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"
Isolation: TypeAlias = Literal["read_committed", "repeatable_read", "serializable"]

T = TypeVar("T")

CONNECTION_LOST = (
    ConnectionError,
    FileNotFoundError,  # the unix socket of a server that restarts
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
)
ASKED_TO_RETRY = (asyncpg.SerializationError, asyncpg.DeadlockDetectedError, asyncpg.LockNotAvailableError)


class DatabaseUnavailableError(Exception):
    """The database took no connection in time. Names no DSN, as that holds a password."""


DATABASE_AWAY = (*CONNECTION_LOST, *ASKED_TO_RETRY, asyncpg.TooManyConnectionsError, DatabaseUnavailableError)
"""Nothing is wrong with the request: it may well succeed a little later."""


@contextlib.asynccontextmanager
async def open_pool(
    dsn: str,
    *,
    schema: str,
    application_name: str,
    min_size: int = 1,
    max_size: int = 10,
    wait_seconds: float = 30,
    command_timeout_seconds: float = 30,
    lock_timeout_seconds: float = 10,
    settings: Mapping[str, str] = MappingProxyType({}),
) -> AsyncIterator[Pool]:
    """A pool, closed on leaving; its connections look for tables in `schema` alone, and give `jsonb` as Python values.

    Waits up to `wait_seconds` for the database, then raises DatabaseUnavailableError. A wrong DSN raises ValueError, a
    wrong password, role or database asyncpg's error, both at once. In use: a statement is given up after
    `command_timeout_seconds` (TimeoutError), or after `lock_timeout_seconds` of waiting for a lock
    (LockNotAvailableError); the server ends a transaction that lies idle for a minute. `settings` are PostgreSQL's, for
    its connections.
    """

    async def connect() -> Pool:
        return await asyncpg.create_pool(
            dsn,
            min_size=min_size,
            max_size=max_size,
            timeout=10,
            command_timeout=command_timeout_seconds,
            init=_take_json_as_python,
            server_settings={
                "search_path": schema,
                "application_name": application_name,
                "timezone": "UTC",
                "lock_timeout": f"{round(lock_timeout_seconds * 1000)}ms",
                "idle_in_transaction_session_timeout": "60s",
                **settings,
            },
        )

    pool = await _when_reachable(connect, schema=schema, wait_seconds=wait_seconds)
    try:
        yield pool
    finally:
        await pool.close()


async def in_transaction(
    pool: Pool,
    work: Callable[[Connection], Awaitable[T]],
    *,
    isolation: Isolation = "read_committed",
    retry_seconds: float = 10,
) -> T:
    """Runs `work` in a transaction and answers what it returns.

    `work` runs again, on a fresh connection, after a serialization failure, a deadlock, a lock timeout or a lost
    connection, for up to `retry_seconds`; then the last error is raised. When the connection is lost while committing,
    nobody knows whether it did: so `work` must be safe to repeat.
    """
    give_up = time.monotonic() + retry_seconds
    for pause in _pauses():
        try:
            async with pool.acquire() as connection:
                try:
                    async with connection.transaction(isolation=isolation):
                        return await work(connection)
                except asyncpg.InterfaceError as error:
                    # asyncpg says this of a connection that is gone, at the rollback for one, but also of misuse.
                    if not _is_gone(connection):
                        raise
                    raise asyncpg.ConnectionDoesNotExistError("the connection was lost") from error
        except (*ASKED_TO_RETRY, *CONNECTION_LOST):
            if time.monotonic() + pause > give_up:
                raise
        await asyncio.sleep(pause)
    raise AssertionError("pauses do not end")


async def _when_reachable(connect: Callable[[], Awaitable[Pool]], *, schema: str, wait_seconds: float) -> Pool:
    give_up = time.monotonic() + wait_seconds
    for pause in _pauses():
        try:
            return await connect()
        except (OSError, asyncpg.TooManyConnectionsError, *CONNECTION_LOST) as error:
            if time.monotonic() + pause > give_up:
                raise DatabaseUnavailableError(
                    f"no database for schema {schema} within {wait_seconds:g} s: {type(error).__name__}"
                ) from None
        except (ValueError, asyncpg.ClientConfigurationError):
            # Its own message may quote a part of the password.
            raise ValueError(f"the DSN for schema {schema} is not a valid PostgreSQL DSN") from None
        await asyncio.sleep(pause)
    raise AssertionError("pauses do not end")


def _is_gone(connection: Connection) -> bool:
    try:
        return connection.is_closed()
    except asyncpg.InterfaceError:  # the pool has already taken it back, as it does with the dead
        return True


def _pauses() -> Iterator[float]:
    """Seconds to wait between tries, without end: doubling from 20 ms to a second, each with full jitter."""
    for doubling in itertools.count():
        yield random.uniform(0, min(1.0, 0.02 * 2 ** min(doubling, 10)))


async def _take_json_as_python(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    # Binary, as COPY takes no text: a version byte, then the text.
    await connection.set_type_codec(
        "jsonb",
        schema="pg_catalog",
        encoder=lambda value: b"\x01" + json.dumps(value, separators=(",", ":")).encode(),
        decoder=lambda data: json.loads(data[1:]),
        format="binary",
    )
