import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest

from deploy.local.embedded import EmbeddedPostgres
from libs.db import Connection
from libs.migrations import MigrationError, prepare, read_migrations
from tests.conftest import Database

CREATE_THINGS = """
CREATE TABLE things (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL);
CREATE FUNCTION purge_things() RETURNS void LANGUAGE sql SECURITY DEFINER SET search_path = alpha
    AS $$ TRUNCATE things $$;
"""


@pytest.fixture
async def fresh(postgres: EmbeddedPostgres) -> AsyncIterator[Database]:
    """Yields a database that nobody has bootstrapped."""
    await postgres.create_database("fresh")
    yield Database(postgres=postgres, name="fresh")
    async with connected(postgres.admin_dsn("postgres")) as connection:
        await connection.execute("DROP DATABASE fresh WITH (FORCE)")


@asynccontextmanager
async def connected(dsn: str) -> AsyncIterator[Connection]:
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        await connection.close()


def write(directory: Path, **files: str) -> Path:
    directory.mkdir(exist_ok=True)
    for name, sql in files.items():
        (directory / f"{name[1:]}.sql").write_text(sql)
    return directory


async def test_applies_each_once_in_order(fresh: Database, tmp_path: Path) -> None:
    directory = write(tmp_path, _0001_things=CREATE_THINGS)
    names = [m.name for m in await prepare(fresh.admin_dsn, schema="alpha", directory=directory)]
    assert names == ["0001_things"]
    write(
        tmp_path,
        _0002_size="ALTER TABLE things ADD COLUMN size int",
        _0003_index="-- no transaction\nCREATE INDEX CONCURRENTLY IF NOT EXISTS things_by_size ON things (size)",
    )
    names = [m.name for m in await prepare(fresh.admin_dsn, schema="alpha", directory=directory)]
    assert names == ["0002_size", "0003_index"]
    assert await prepare(fresh.admin_dsn, schema="alpha", directory=directory) == []
    async with connected(fresh.admin_dsn) as connection:
        owner = await connection.fetchval("SELECT tableowner FROM pg_tables WHERE tablename = 'things'")
        assert owner == "alpha_owner"
        assert await connection.fetchval(
            "SELECT indisvalid FROM pg_index WHERE indexrelid = 'alpha.things_by_size'::regclass"
        )


async def test_concurrent_callers_apply_once(fresh: Database, tmp_path: Path) -> None:
    write(tmp_path, _0001_things=CREATE_THINGS, _0002_slow="SELECT pg_sleep(0.2)",
          _0003_index="-- no transaction\nCREATE INDEX CONCURRENTLY ON things (name)")  # fmt: skip
    applied = await asyncio.gather(
        *(prepare(fresh.admin_dsn, schema="alpha", directory=tmp_path) for _ in range(4)),
        *(prepare(fresh.admin_dsn, schema=schema, directory=tmp_path / "empty") for schema in ("beta", "gamma")),
    )
    assert sorted(map(len, applied)) == [0, 0, 0, 0, 0, 3]


async def test_failed_migration_leaves_nothing(fresh: Database, tmp_path: Path) -> None:
    write(tmp_path, _0001_half="CREATE TABLE half (id int); SELECT 1 / 0")
    with pytest.raises(MigrationError, match="alpha/0001_half: division by zero"):
        await prepare(fresh.admin_dsn, schema="alpha", directory=tmp_path)
    write(tmp_path, _0001_half="CREATE TABLE half (id int)")
    assert len(await prepare(fresh.admin_dsn, schema="alpha", directory=tmp_path)) == 1


async def test_changed_file_is_refused(fresh: Database, tmp_path: Path) -> None:
    write(tmp_path, _0001_things=CREATE_THINGS)
    await prepare(fresh.admin_dsn, schema="alpha", directory=tmp_path)
    write(tmp_path, _0001_things=CREATE_THINGS + "-- an afterthought")
    with pytest.raises(MigrationError, match="0001_things differs"):
        await prepare(fresh.admin_dsn, schema="alpha", directory=tmp_path)


async def test_database_ahead_of_the_files_is_left_alone(fresh: Database, tmp_path: Path) -> None:
    write(tmp_path, _0001_things=CREATE_THINGS, _0002_more="CREATE TABLE more (id int)")
    await prepare(fresh.admin_dsn, schema="alpha", directory=tmp_path)
    (tmp_path / "0002_more.sql").unlink()
    assert await prepare(fresh.admin_dsn, schema="alpha", directory=tmp_path) == []


@pytest.mark.parametrize(
    "names",
    [["0002_b"], ["0001_a", "0001_b"], ["0001_a", "0003_c"], ["0001_A"], ["first"]],
    ids=["no first", "twice", "gap", "capital", "no number"],
)
def test_misnumbered_files_are_refused(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / f"{name}.sql").write_text("SELECT 1")
    with pytest.raises(MigrationError, match="should be named"):
        read_migrations(tmp_path)


@pytest.fixture
async def two_schemas(fresh: Database, tmp_path: Path) -> Database:
    alpha = write(tmp_path / "alpha", _0001_things=CREATE_THINGS)
    beta = write(
        tmp_path / "beta", _0001_things="CREATE TABLE things (id int); CREATE FUNCTION one() RETURNS int RETURN 1"
    )
    await prepare(fresh.admin_dsn, schema="alpha", directory=alpha)
    await prepare(fresh.admin_dsn, schema="beta", directory=beta)
    return fresh


async def test_app_role_works_with_its_rows(two_schemas: Database) -> None:
    async with connected(two_schemas.dsn("alpha")) as connection:
        await connection.execute("INSERT INTO alpha.things (name) VALUES ('a'), ('b')")
        await connection.execute("UPDATE alpha.things SET name = 'c' WHERE name = 'b'")
        await connection.execute("DELETE FROM alpha.things WHERE name = 'a'")
        assert await connection.fetchval("SELECT name FROM alpha.things") == "c"
        assert await connection.fetchval("SELECT name FROM alpha.schema_migrations") == "0001_things"
        await connection.execute("SELECT alpha.purge_things()")
        assert await connection.fetchval("SELECT count(*) FROM alpha.things") == 0


async def test_app_role_drops_nothing_but_partitions(two_schemas: Database) -> None:
    async with connected(two_schemas.dsn("alpha")) as connection:
        await connection.execute("SELECT alpha.drop_partition('things'), alpha.drop_partition('schema_migrations')")
        assert await connection.fetchval("SELECT count(*) FROM alpha.things") == 0
        assert await connection.fetchval("SELECT count(*) FROM alpha.schema_migrations") == 1


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * FROM beta.things",
        "INSERT INTO beta.things VALUES (1)",
        "SELECT * FROM beta.schema_migrations",
        "SELECT beta.one()",
        "TRUNCATE alpha.things",
        "DROP TABLE alpha.things",
        "ALTER TABLE alpha.things ADD COLUMN x int",
        "CREATE TABLE alpha.mine (id int)",
        "CREATE TABLE public.mine (id int)",
        "CREATE TEMPORARY TABLE mine (id int)",
        "CREATE SCHEMA mine",
        "INSERT INTO alpha.schema_migrations VALUES (9, 'x', 'x')",
        "SET ROLE alpha_owner",
        "SET ROLE beta_app",
        "SELECT pg_read_file('/etc/passwd')",
    ],
)
async def test_app_role_reaches_nothing_else(two_schemas: Database, statement: str) -> None:
    async with connected(two_schemas.dsn("alpha")) as connection:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(statement)


async def test_roles_connect_only_where_they_belong(two_schemas: Database, fresh: Database) -> None:
    async with connected(fresh.admin_dsn) as connection:
        await connection.execute("CREATE ROLE stranger LOGIN")
    try:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await asyncpg.connect(fresh.admin_dsn.replace("postgres@", "stranger@"))
        with pytest.raises(asyncpg.InvalidAuthorizationSpecificationError):
            await asyncpg.connect(fresh.admin_dsn.replace("postgres@", "alpha_owner@"))
    finally:
        async with connected(fresh.admin_dsn) as connection:
            await connection.execute("DROP ROLE stranger")


async def test_admin_need_not_be_superuser(postgres: EmbeddedPostgres, tmp_path: Path) -> None:
    directory = write(tmp_path, _0001_things=CREATE_THINGS.replace("alpha", "managed"))
    async with connected(postgres.admin_dsn("postgres")) as connection:
        await connection.execute("CREATE ROLE chief LOGIN CREATEROLE")
        await connection.execute("CREATE DATABASE managed OWNER chief")
        try:
            dsn = postgres.admin_dsn("managed").replace("postgres@", "chief@")
            for _ in range(2):
                await prepare(dsn, schema="managed", directory=directory, app_password="it's")
            async with connected(postgres.dsn("managed", "managed")) as app:
                assert await app.fetchval("SELECT count(*) FROM managed.things") == 0
            secret = "SELECT rolpassword LIKE 'SCRAM%' FROM pg_authid WHERE rolname = 'managed_app'"
            assert await connection.fetchval(secret)
        finally:
            await connection.execute("DROP DATABASE managed WITH (FORCE)")
            await connection.execute("DROP ROLE managed_app, managed_owner, chief")
