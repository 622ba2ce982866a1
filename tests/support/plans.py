"""The plans of queries, for tests that a hot query stays on its index."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
from asyncpg.connection import LoggedQuery

from libs.db import Pool


class QueryLog:
    """The queries that were sent over `pool`."""

    def __init__(self, pool: Pool, queries: list[str]) -> None:
        self.pool, self._queries = pool, queries

    async def last_plan(self) -> str:
        """Returns the plan of the last query for any values of its parameters, as a prepared statement comes to use."""
        await asyncio.sleep(0)  # asyncpg calls its loggers in the next turn of the loop
        query = self._queries[-1]
        nulls = ", ".join("NULL" for _ in set(re.findall(r"\$\d+", query)))
        async with self.pool.acquire() as connection, connection.transaction():
            await connection.execute("SET LOCAL plan_cache_mode = force_generic_plan")
            await connection.execute(f"PREPARE explained AS {query}")
            rows = await connection.fetch(f"EXPLAIN EXECUTE explained ({nulls})")
            await connection.execute("DEALLOCATE explained")
        return "\n".join(row[0] for row in rows)


@asynccontextmanager
async def query_log(dsn: str, schema: str) -> AsyncIterator[QueryLog]:
    """Yields a pool of one connection with a log of its queries."""
    queries: list[str] = []

    def note(logged: LoggedQuery) -> None:
        queries.append(logged.query)

    async def init(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        connection.add_query_logger(note)

    async def reset(_: "asyncpg.Connection[asyncpg.Record]") -> None:
        """Does nothing: the pool's own reset would be logged as the last query."""

    async with asyncpg.create_pool(
        dsn, min_size=1, max_size=1, init=init, reset=reset, server_settings={"search_path": schema}
    ) as pool:
        yield QueryLog(pool, queries)
