"""A migrated PostgreSQL of one's own, for benchmarks."""

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

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
