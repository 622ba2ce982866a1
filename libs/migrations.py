"""Forward-only SQL migrations of one schema, and the two roles that schema has.

`<schema>_owner` owns the schema and cannot log in: migrations run as it. `<schema>_app` is what a service logs in as:
it reads and writes the rows of that schema, runs its functions, and reaches nothing else. What a service must do beyond
rows, as dropping a partition, it does by a SECURITY DEFINER function: `schema.sql` has those of every schema.
"""

import asyncio
import hashlib
import re
import time
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from libs.db import Connection

FILE_NAME = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")
SCHEMA_NAME = re.compile(r"[a-z][a-z0-9_]{0,40}")
NO_TRANSACTION = "-- no transaction"
ADVISORY_LOCK = int.from_bytes(b"reengage")
EVERY_SCHEMA = Path(__file__).with_name("schema.sql")


class MigrationError(Exception):
    """A contradiction between the files and the database, or a file that failed; the message names the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """One file, `0001_what.sql`.

    It runs in a transaction, unless its first line is `-- no transaction`: then it holds one statement, which must be
    safe to repeat, as a crash can come before it is recorded.
    """

    number: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()

    @property
    def transactional(self) -> bool:
        return self.sql.partition("\n")[0].strip() != NO_TRANSACTION


def read_migrations(directory: Path) -> list[Migration]:
    """Returns the `.sql` files of a directory in order. Raises MigrationError unless numbered 0001, 0002, and so on."""
    migrations = []
    for number, file in enumerate(sorted(directory.glob("*.sql")), start=1):
        match = FILE_NAME.fullmatch(file.name)
        if match is None or int(match[1]) != number:
            raise MigrationError(f"{file} should be named {number:04}_what.sql: numbers leave no gap and repeat none")
        migrations.append(Migration(number=number, name=file.stem, sql=file.read_text(encoding="utf-8")))
    return migrations


async def prepare(
    admin_dsn: str, *, schema: str, directory: Path, app_password: str | None = None, wait_s: float = 300
) -> list[Migration]:
    """Bootstraps the schema and brings it up to date; returns the migrations this call applied.

    Any number of callers may do so at once: one works, the others wait, up to `wait_s` (then TimeoutError).
    """
    migrations = read_migrations(directory)
    connection = await asyncpg.connect(admin_dsn, server_settings={"application_name": f"migrate {schema}"})
    try:
        # Tried again and again, not waited for: a session that waits inside a statement holds a snapshot, which
        # CREATE INDEX CONCURRENTLY waits for in turn. The lock goes with the session.
        give_up = time.monotonic() + wait_s
        while not await connection.fetchval("SELECT pg_try_advisory_lock($1)", ADVISORY_LOCK):
            if time.monotonic() > give_up:
                raise TimeoutError(f"another migration held the lock for {wait_s:g} s")
            await asyncio.sleep(0.1)
        await bootstrap(connection, schema=schema, app_password=app_password)
        return await migrate(connection, schema=schema, migrations=migrations)
    finally:
        await connection.close()


async def bootstrap(connection: Connection, *, schema: str, app_password: str | None = None) -> None:
    """Creates what is missing of the schema and its two roles, sets privileges and functions; repeating it is safe.

    The connection's role owns the database and has CREATEROLE; it need not be a superuser. A password, when given,
    becomes that of `<schema>_app`; without one the role logs in by whatever else the server trusts.
    """
    if not SCHEMA_NAME.fullmatch(schema):
        raise ValueError(f"{schema!r} is no name for a schema")
    owner, app = f"{schema}_owner", f"{schema}_app"
    await _create_role(connection, f"CREATE ROLE {owner} NOLOGIN")
    await _create_role(connection, f"CREATE ROLE {app} LOGIN")
    if app_password is not None:
        statement = "SELECT format('ALTER ROLE %I PASSWORD %L', $1::text, $2::text)"
        await connection.execute(await connection.fetchval(statement, app, app_password))
    database = await connection.fetchval("SELECT quote_ident(current_database())")
    async with connection.transaction():
        await connection.execute(
            f"""
            -- Whoever may create a role is not yet a member of it; CREATE SCHEMA and SET ROLE ask for that.
            GRANT {owner} TO CURRENT_USER;
            -- By default everybody may connect to every database, and look into its schema public.
            REVOKE ALL ON DATABASE {database} FROM PUBLIC;
            REVOKE ALL ON SCHEMA public FROM PUBLIC;
            GRANT CONNECT ON DATABASE {database} TO {app};
            CREATE SCHEMA IF NOT EXISTS {schema} AUTHORIZATION {owner};
            SET LOCAL ROLE {owner};
            SET LOCAL search_path = {schema};
            GRANT USAGE ON SCHEMA {schema} TO {app};
            ALTER DEFAULT PRIVILEGES IN SCHEMA {schema} GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO {app};
            ALTER DEFAULT PRIVILEGES IN SCHEMA {schema} GRANT USAGE, SELECT ON SEQUENCES TO {app};
            ALTER DEFAULT PRIVILEGES IN SCHEMA {schema} GRANT EXECUTE ON FUNCTIONS TO {app};
            """
        )
        await connection.execute(EVERY_SCHEMA.read_text(encoding="utf-8"))
        await connection.execute(f"REVOKE INSERT, UPDATE, DELETE ON schema_migrations FROM {app}")


async def migrate(connection: Connection, *, schema: str, migrations: list[Migration]) -> list[Migration]:
    """Applies what the database has not seen, as the schema's owner and with the schema as search path; returns those.

    Migrations the database has beyond the last file are left alone: a release that was rolled back finds them. The
    connection is to be closed afterwards; callers see to it that one runs at a time, as `prepare` does.
    """
    await connection.execute(f"SET ROLE {schema}_owner; SET search_path = {schema}; SET lock_timeout = '10s'")
    rows = await connection.fetch("SELECT number, name, checksum FROM schema_migrations")
    recorded = {row["number"]: row for row in rows}
    pending = []
    for migration in migrations:
        row = recorded.get(migration.number)
        if row is None:
            pending.append(migration)
        elif row["checksum"] != migration.checksum:
            raise MigrationError(
                f"{schema}/{migration.name} differs from what was applied ({row['name']}): "
                "applied migrations never change, write a new one"
            )
    for migration in pending:
        try:
            if migration.transactional:
                async with connection.transaction():
                    await connection.execute(migration.sql)
                    await _record(connection, migration)
            else:
                await connection.execute(migration.sql)
                await _record(connection, migration)
        except asyncpg.PostgresError as error:
            raise MigrationError(f"{schema}/{migration.name}: {error}") from error
    return pending


async def _create_role(connection: Connection, statement: str) -> None:
    # Roles belong to the whole cluster, so another database's bootstrap may be at it at this moment; hence no IF.
    try:
        await connection.execute(statement)
    except (asyncpg.DuplicateObjectError, asyncpg.UniqueViolationError):
        return


async def _record(connection: Connection, migration: Migration) -> None:
    await connection.execute(
        "INSERT INTO schema_migrations (number, name, checksum) VALUES ($1, $2, $3)",
        migration.number,
        migration.name,
        migration.checksum,
    )
