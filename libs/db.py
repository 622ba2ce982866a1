"""A pool of PostgreSQL connections for one service, and transactions that are tried again when that is right."""

import asyncio
import contextlib
import itertools
import json
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import Any, Literal, TypeAlias, TypeVar

import asyncpg
import orjson

Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record] | asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"
Isolation: TypeAlias = Literal["read_committed", "repeatable_read", "serializable"]

T = TypeVar("T")

MAX_ROWS = 2_000
"""The rows or keys of one statement, where their number is the senders' choice."""

CONNECTION_LOST = (
    ConnectionError,
    FileNotFoundError,  # the unix socket of a server that restarts
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.InternalClientError,  # asked between the last words of a server that stops and the end of the connection
)
ASKED_TO_RETRY = (asyncpg.SerializationError, asyncpg.DeadlockDetectedError, asyncpg.LockNotAvailableError)
TRANSIENT = (*ASKED_TO_RETRY, *CONNECTION_LOST)
"""Errors after which the same transaction may well succeed at once."""


class DatabaseUnavailableError(Exception):
    """A database that took no connection in time. Names no DSN, as that holds a password."""


DATABASE_AWAY = (
    *CONNECTION_LOST,
    *ASKED_TO_RETRY,
    asyncpg.InsufficientResourcesError,  # no connection left, no memory, no disk
    asyncpg.OperatorInterventionError,
    asyncpg.ReadOnlySQLTransactionError,  # a standby that is not promoted yet
    TimeoutError,  # of a connection, or a statement, that takes too long
    DatabaseUnavailableError,
)
"""Errors that say nothing against the request: it may well succeed a little later."""


@contextlib.asynccontextmanager
async def open_pool(
    dsn: str,
    *,
    schema: str,
    application_name: str,
    min_size: int = 1,
    max_size: int = 10,
    wait_s: float = 30,
    command_timeout_s: float = 30,
    lock_timeout_s: float = 10,
    settings: Mapping[str, str] = MappingProxyType({}),
) -> AsyncIterator[Pool]:
    """Opens a pool. Its connections look for tables in `schema` alone, and give `jsonb` as Python values.

    Waits up to `wait_s` for the database, then raises DatabaseUnavailableError. A wrong DSN raises ValueError, a
    wrong password, role or database asyncpg's error, both at once. In use: a statement is given up after
    `command_timeout_s` (TimeoutError), or after `lock_timeout_s` of waiting for a lock
    (LockNotAvailableError); the server ends a transaction that lies idle for a minute. `settings` are PostgreSQL's, for
    its connections.
    """

    async def connect() -> Pool:
        return await asyncpg.create_pool(
            dsn,
            min_size=min_size,
            max_size=max_size,
            timeout=10,
            command_timeout=command_timeout_s,
            init=_take_json_as_python,
            server_settings={
                "search_path": schema,
                "application_name": application_name,
                "timezone": "UTC",
                "lock_timeout": f"{round(lock_timeout_s * 1000)}ms",
                "idle_in_transaction_session_timeout": "60s",
                **settings,
            },
        )

    pool = await _when_reachable(connect, schema=schema, wait_s=wait_s)
    try:
        yield pool
    finally:
        await pool.close()


async def transactions(
    pool: Pool, *, isolation: Isolation = "read_committed", retry_s: float = 10
) -> AsyncIterator["Attempt"]:
    """Yields attempts at one transaction until one has committed.

        rows: list[Record] = []
        async for attempt in transactions(pool):
            async with attempt as connection:
                rows = await connection.fetch(...)
        return rows

    The block runs again, on a fresh connection, after a serialization failure, a deadlock, a lock timeout or a lost
    connection, for up to `retry_s`; then the last error is raised. When the connection is lost while committing,
    nobody knows whether it did: so the block must be safe to repeat. For the same reason nothing leaves it by `return`,
    `break` or `continue`: that would take an attempt for done that is to be repeated. A test looks for such blocks.
    """
    give_up = time.monotonic() + retry_s
    for pause in _pauses():
        attempted = transaction(pool, isolation=isolation)
        try:
            connection = await attempted.__aenter__()
        except TRANSIENT:
            if time.monotonic() + pause > give_up:
                raise
        else:
            attempt = Attempt(attempted, connection, give_up - pause)
            yield attempt
            if attempt.committed:
                return
        await asyncio.sleep(pause)


class Attempt:
    """One attempt at a transaction, as `transactions` yields them: `async with attempt as connection`."""

    def __init__(
        self,
        transaction: contextlib.AbstractAsyncContextManager[Connection],
        connection: Connection,
        repeat_until: float,
    ) -> None:
        self.committed = False
        self._transaction, self._connection, self._repeat_until = transaction, connection, repeat_until

    async def __aenter__(self) -> Connection:
        """Returns the connection that the transaction has begun on."""
        return self._connection

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        """Commits, or rolls back; True where the error is one after which `transactions` tries again."""
        try:
            await self._transaction.__aexit__(kind, error, traceback)
        except TRANSIENT:  # the commit, or the rollback
            if time.monotonic() > self._repeat_until:
                raise
            return True
        self.committed = error is None
        return isinstance(error, TRANSIENT) and time.monotonic() <= self._repeat_until


@contextlib.asynccontextmanager
async def transaction(pool: Pool, *, isolation: Isolation = "read_committed") -> AsyncIterator[Connection]:
    """Yields one transaction, which is not tried again. A lost connection raises one of CONNECTION_LOST."""
    async with pool.acquire() as connection:
        try:
            async with connection.transaction(isolation=isolation):
                yield connection
        except asyncpg.InterfaceError as error:
            # asyncpg says this of a connection that is gone, at the rollback for one, but also of misuse.
            if not _is_gone(connection):
                raise
            raise asyncpg.ConnectionDoesNotExistError("the connection was lost") from error


def rows_affected(tag: str) -> int:
    """Returns how many rows a statement changed, from what `execute` returned for it."""
    return int(tag.rpartition(" ")[2])


def columns(rows: Iterable[Sequence[Any]], count: int) -> list[list[Any]]:
    """Returns rows as their columns, each an array for `unnest`; `count` empty ones where there are no rows."""
    return [list(column) for column in zip(*rows, strict=True)] or [[] for _ in range(count)]


def in_statements(rows: Iterable[T], size: int = MAX_ROWS) -> Iterator[list[T]]:
    """Yields rows in lists, each for one statement: so none grows with what senders send."""
    left = iter(rows)
    while part := list(itertools.islice(left, size)):
        yield part


async def _when_reachable(connect: Callable[[], Awaitable[Pool]], *, schema: str, wait_s: float) -> Pool:
    give_up = time.monotonic() + wait_s
    for pause in _pauses():
        try:
            return await connect()
        except (OSError, asyncpg.TooManyConnectionsError, *CONNECTION_LOST) as error:
            if time.monotonic() + pause > give_up:
                raise DatabaseUnavailableError(
                    f"no database for schema {schema} within {wait_s:g} s: {type(error).__name__}"
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
    """Yields seconds to wait between tries, without end: doubling from 20 ms to a second, each with full jitter."""
    for doubling in itertools.count():
        yield random.uniform(0, min(1.0, 0.02 * 2 ** min(doubling, 10)))


async def _take_json_as_python(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    # Binary, as COPY takes no text: a version byte, then the text.
    await connection.set_type_codec(
        "jsonb",
        schema="pg_catalog",
        encoder=lambda value: b"\x01" + json.dumps(value, separators=(",", ":")).encode(),
        decoder=lambda data: orjson.loads(data[1:]),
        format="binary",
    )
