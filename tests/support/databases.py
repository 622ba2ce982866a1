"""A migrated PostgreSQL of one's own, for benchmarks, and its clock."""

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg

from deploy.local.embedded import EmbeddedPostgres
from libs.migrations import prepare

SERVICES = Path(__file__).parents[2] / "services"


@asynccontextmanager
async def migrated_postgres(*schemas: str) -> AsyncIterator[tuple[EmbeddedPostgres, Path]]:
    """Yields a durable PostgreSQL with these services' schemas, and its directory, which goes with it."""
    with tempfile.TemporaryDirectory(prefix="reengage-bench-", ignore_cleanup_errors=True) as directory:
        async with EmbeddedPostgres(Path(directory) / "postgres") as postgres:
            await postgres.create_database()
            for schema in schemas:
                await prepare(postgres.admin_dsn(), schema=schema, directory=SERVICES / schema / "migrations")
            yield postgres, Path(directory)


async def set_clock(admin_dsn: str, schema: str, step_s: int) -> None:
    """Sets the clock that the statements on a schema read, so many seconds from the right time."""
    connection = await asyncpg.connect(admin_dsn)
    try:
        await connection.execute(
            f"""
            CREATE OR REPLACE FUNCTION {schema}.now_us() RETURNS bigint
            LANGUAGE sql STABLE PARALLEL SAFE
            RETURN ((extract(EPOCH FROM now()) + {step_s}) * 1000000)::bigint
            """
        )
    finally:
        await connection.close()
