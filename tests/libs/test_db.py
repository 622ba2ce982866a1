import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from functools import partial

import asyncpg
import pytest

from libs.db import Connection, DatabaseUnavailableError, Pool, in_transaction, open_pool
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
        async with open_pool(
            "postgresql://me:hunter2@127.0.0.1:1/none", schema="s", application_name="t", wait_seconds=0.1
        ):
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
        async with open_pool(dsn, schema="s", application_name="t", wait_seconds=60):
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
    both_hold_one = asyncio.Barrier(2)
    runs = 0

    async def increment(ids: tuple[int, int], connection: Connection) -> None:
        nonlocal runs
        runs += 1
        await connection.execute("UPDATE counter SET n = n + 1 WHERE id = $1", ids[0])
        if runs <= 2:
            await both_hold_one.wait()
        await connection.execute("UPDATE counter SET n = n + 1 WHERE id = $1", ids[1])

    await asyncio.gather(*(in_transaction(pool, partial(increment, ids)) for ids in [(1, 2), (2, 1)]))
    assert runs == 3
    assert [row["n"] for row in await pool.fetch("SELECT n FROM counter ORDER BY id")] == [2, 2]

    async def read_then_write(connection: Connection) -> None:
        n = await connection.fetchval("SELECT n FROM counter WHERE id = 1")
        await connection.execute("UPDATE counter SET n = $1 WHERE id = 1", n + 1)

    await asyncio.gather(*(in_transaction(pool, read_then_write, isolation="serializable") for _ in range(5)))
    assert await pool.fetchval("SELECT n FROM counter WHERE id = 1") == 7


@pytest.mark.parametrize("lose_it", ["terminate", "close"])
async def test_lost_connection_is_retried(pool: Pool, lose_it: str) -> None:
    runs = 0

    async def work(connection: Connection) -> int:
        nonlocal runs
        runs += 1
        await connection.execute("UPDATE counter SET n = n + 1 WHERE id = 1")
        if runs == 1 and lose_it == "close":
            connection.terminate()
        if runs == 1 and lose_it == "terminate":
            await connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        return int(await connection.fetchval("SELECT n FROM counter WHERE id = 1"))

    assert await in_transaction(pool, work) == 1
    assert runs == 2


async def test_retries_end(pool: Pool) -> None:
    async def fail(connection: Connection) -> None:
        await connection.execute("DO $$ BEGIN RAISE EXCEPTION 'again' USING ERRCODE = 'serialization_failure'; END $$")

    with pytest.raises(asyncpg.SerializationError):
        await in_transaction(pool, fail, retry_seconds=0.05)


async def test_other_errors_are_not_retried(pool: Pool) -> None:
    runs = 0

    async def work(connection: Connection) -> None:
        nonlocal runs
        runs += 1
        await connection.execute("INSERT INTO counter (id, n) VALUES (9, 9)")
        await connection.execute("INSERT INTO counter (id, n) VALUES (1, 1)")

    with pytest.raises(asyncpg.UniqueViolationError):
        await in_transaction(pool, work)
    assert runs == 1
    assert await pool.fetchval("SELECT count(*) FROM counter WHERE id = 9") == 0


@pytest.mark.crash
async def test_transaction_survives_a_crash_of_the_database(durable_database: Database) -> None:
    async with open_pool(durable_database.admin_dsn, schema="public", application_name="t") as pool:
        await pool.execute("CREATE TABLE kept (n int)")
        await pool.execute("INSERT INTO kept SELECT generate_series(1, 1000)")
        restarting: list[asyncio.Task[None]] = []

        async def work(connection: Connection) -> int:
            if not restarting:
                await durable_database.postgres.kill()
                restarting.append(asyncio.create_task(durable_database.postgres.start()))
            return int(await connection.fetchval("SELECT count(*) FROM kept"))

        assert await in_transaction(pool, work, retry_seconds=30) == 1000
        await restarting[0]
