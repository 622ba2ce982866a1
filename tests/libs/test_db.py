import ast
import asyncio
import itertools
import struct
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from libs.db import DatabaseUnavailableError, Pool, open_pool, transactions
from tests.conftest import Database


@pytest.fixture
async def pool(database: Database) -> AsyncIterator[Pool]:
    async with open_pool(database.admin_dsn, schema="sandbox", application_name="test") as pool:
        await pool.execute(
            "CREATE SCHEMA sandbox; CREATE TABLE counter (id int PRIMARY KEY, n int NOT NULL, extra jsonb)"
        )
        await pool.execute("INSERT INTO counter (id, n) VALUES (1, 0), (2, 0)")
        yield pool


async def test_session_settings(pool: Pool) -> None:
    names = ["search_path", "application_name", "lock_timeout", "idle_in_transaction_session_timeout", "TimeZone"]
    rows = [await pool.fetchval("SELECT current_setting($1)", name) for name in names]
    assert rows == ["sandbox", "test", "10s", "1min", "UTC"]
    assert (await pool.fetchval("SELECT now()")).tzinfo == UTC
    assert await pool.fetchval("SELECT $1::timestamptz", datetime(2026, 1, 1, tzinfo=UTC)) == datetime(
        2026, 1, 1, tzinfo=UTC
    )


async def test_jsonb_is_python_in_arguments_arrays_and_copy(pool: Pool) -> None:
    value = {"a": [1, "ü", None], "b": {"c": 1.5}}
    assert await pool.fetchval("SELECT $1::jsonb", value) == value
    rows = await pool.fetch("SELECT unnest($1::jsonb[]) AS v", [value, "text"])
    assert [row["v"] for row in rows] == [value, "text"]
    await pool.copy_records_to_table("counter", records=[(3, 0, value)], columns=["id", "n", "extra"])
    assert await pool.fetchval("SELECT extra FROM counter WHERE id = 3") == value


async def test_unreachable_database_names_no_password() -> None:
    with pytest.raises(DatabaseUnavailableError) as caught:
        async with open_pool("postgresql://me:hunter2@127.0.0.1:1/none", schema="s", application_name="t", wait_s=0.1):
            pass
    assert "hunter2" not in str(caught.value)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("dsn", ["postgresql://me@host:hunter2/db", "me:hunter2@host"], ids=["port", "scheme"])
async def test_invalid_dsn_is_not_quoted(dsn: str) -> None:
    with pytest.raises(ValueError, match="not a valid") as caught:
        async with open_pool(dsn, schema="s", application_name="t"):
            pass
    assert "hunter2" not in str(caught.value)


async def test_unknown_role_fails_at_once(database: Database) -> None:
    dsn = database.postgres.dsn("nobody_knows", database.name)
    with pytest.raises(asyncpg.InvalidAuthorizationSpecificationError):
        async with open_pool(dsn, schema="s", application_name="t", wait_s=60):
            pass


async def test_pool_waits_for_a_database_that_starts_later(durable_database: Database) -> None:
    await durable_database.postgres.stop()

    async def ask() -> object:
        async with open_pool(durable_database.admin_dsn, schema="public", application_name="t") as pool:
            return await pool.fetchval("SELECT 1")

    asking = asyncio.create_task(ask())
    await durable_database.postgres.start()
    assert await asking == 1


async def test_deadlock_and_serialization_failures_are_retried(pool: Pool) -> None:
    both_hold_one, one_is_through = asyncio.Barrier(2), asyncio.Event()
    runs = itertools.count(1)

    async def increment(*ids: int, looks_for_deadlocks: bool) -> None:
        async for attempt in transactions(pool):
            async with attempt as connection:
                run = next(runs)
                if run > 2:
                    await one_is_through.wait()  # or they might meet once more
                # If both looked, both might find it at once, and both begin anew.
                await connection.execute(f"SET LOCAL deadlock_timeout = '{'10ms' if looks_for_deadlocks else '1h'}'")
                await connection.execute("UPDATE counter SET n = n + 1 WHERE id = $1", ids[0])
                if run <= 2:
                    await both_hold_one.wait()
                await connection.execute("UPDATE counter SET n = n + 1 WHERE id = $1", ids[1])
        one_is_through.set()

    await asyncio.gather(increment(1, 2, looks_for_deadlocks=True), increment(2, 1, looks_for_deadlocks=False))
    assert next(runs) == 4
    assert [row["n"] for row in await pool.fetch("SELECT n FROM counter ORDER BY id")] == [2, 2]

    async def read_then_write() -> None:
        async for attempt in transactions(pool, isolation="serializable"):
            async with attempt as connection:
                n = await connection.fetchval("SELECT n FROM counter WHERE id = 1")
                await connection.execute("UPDATE counter SET n = $1 WHERE id = 1", n + 1)

    await asyncio.gather(*(read_then_write() for _ in range(5)))
    assert await pool.fetchval("SELECT n FROM counter WHERE id = 1") == 7


@pytest.mark.parametrize("lose_it", ["terminate", "close"])
async def test_lost_connection_is_retried(pool: Pool, lose_it: str) -> None:
    runs = n = 0
    async for attempt in transactions(pool):
        async with attempt as connection:
            runs += 1
            await connection.execute("UPDATE counter SET n = n + 1 WHERE id = 1")
            if runs == 1 and lose_it == "close":
                connection.terminate()
            if runs == 1 and lose_it == "terminate":
                await connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")
            n = await connection.fetchval("SELECT n FROM counter WHERE id = 1")
    assert (runs, n) == (2, 1)


async def test_a_connection_lost_while_committing_is_retried(pool: Pool) -> None:
    runs = 0
    async for attempt in transactions(pool):
        async with attempt as connection:
            runs += 1
            await connection.execute("UPDATE counter SET n = n + 1 WHERE id = 1")
            if runs == 1:
                pid = await connection.fetchval("SELECT pg_backend_pid()")
                await pool.execute("SELECT pg_terminate_backend($1, 10000)", pid)
    assert runs == 2
    assert await pool.fetchval("SELECT n FROM counter WHERE id = 1") == 1


async def test_a_server_that_says_it_stops_while_nothing_is_asked_is_lost(pool: Pool) -> None:
    """Its words arrive before the end of the connection; what is asked between fails with an error of asyncpg's own."""
    fields = b"SFATAL\0VFATAL\0C57P01\0Mterminating connection due to administrator command\0\0"
    runs = 0
    async for attempt in transactions(pool):
        async with attempt as connection:
            runs += 1
            await connection.execute("UPDATE counter SET n = n + 1 WHERE id = 1")
            taken: Any = connection
            if runs == 1:
                taken._con._protocol.data_received(b"E" + struct.pack("!i", len(fields) + 4) + fields)
    assert runs == 2
    assert await pool.fetchval("SELECT n FROM counter WHERE id = 1") == 1


async def test_retries_end(pool: Pool) -> None:
    async def fail() -> None:
        async for attempt in transactions(pool, retry_s=0.05):
            async with attempt as connection:
                await connection.execute(
                    "DO $$ BEGIN RAISE EXCEPTION 'again' USING ERRCODE = 'serialization_failure'; END $$"
                )

    with pytest.raises(asyncpg.SerializationError):
        await fail()


async def test_other_errors_are_not_retried(pool: Pool) -> None:
    runs = itertools.count(1)

    async def insert_twice() -> None:
        async for attempt in transactions(pool):
            async with attempt as connection:
                next(runs)
                await connection.execute("INSERT INTO counter (id, n) VALUES (9, 9)")
                await connection.execute("INSERT INTO counter (id, n) VALUES (1, 1)")

    with pytest.raises(asyncpg.UniqueViolationError):
        await insert_twice()
    assert next(runs) == 2
    assert await pool.fetchval("SELECT count(*) FROM counter WHERE id = 9") == 0


def test_no_attempt_is_left_early() -> None:
    root = Path(__file__).parents[2]
    left = [
        f"{path.relative_to(root)}:{leaving.lineno}"
        for folder in ("libs", "services", "deploy", "tests")
        for path in sorted((root / folder).rglob("*.py"))
        for loop in ast.walk(ast.parse(path.read_text()))
        if isinstance(loop, ast.AsyncFor) and ast.unparse(loop.iter).startswith("transactions(")
        for leaving in _leaving(loop.body)
    ]
    assert left == []


def _leaving(body: Sequence[ast.AST]) -> Iterator[ast.stmt]:
    """Yields what would leave a block early, but not what only ends something within it."""
    for node in body:
        if isinstance(node, ast.Return | ast.Break | ast.Continue):
            yield node
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        else:
            inner = _leaving(list(ast.iter_child_nodes(node)))
            is_loop = isinstance(node, ast.For | ast.AsyncFor | ast.While)
            yield from (each for each in inner if isinstance(each, ast.Return) or not is_loop)


@pytest.mark.crash
async def test_transaction_survives_a_crash_of_the_database(durable_database: Database) -> None:
    async with open_pool(durable_database.admin_dsn, schema="public", application_name="t") as pool:
        await pool.execute("CREATE TABLE kept (n int)")
        await pool.execute("INSERT INTO kept SELECT generate_series(1, 1000)")
        restarting: list[asyncio.Task[None]] = []
        kept = 0
        async for attempt in transactions(pool, retry_s=30):
            async with attempt as connection:
                if not restarting:
                    await durable_database.postgres.kill()
                    restarting.append(asyncio.create_task(durable_database.postgres.start()))
                kept = await connection.fetchval("SELECT count(*) FROM kept")
        assert kept == 1000
        await restarting[0]
