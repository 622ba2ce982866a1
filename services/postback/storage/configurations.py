"""The queries on configurations."""

from dataclasses import dataclass, field, fields
from typing import Any

import asyncpg

from libs.db import Connection, Pool, rows_affected, transactions
from libs.parts import PART_BYTES
from services.postback.model import Status


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredConfiguration:
    """A configuration as it is stored; `settings` and `secrets` are the service's to read."""

    configuration_id: str
    app_id: str
    status: Status
    settings: dict[str, Any]
    secrets: bytes = field(repr=False)
    revision: int
    create_us: int
    update_us: int


_COLUMNS = [column.name for column in fields(StoredConfiguration)]


class ConfigurationStore:
    """The queries on configurations, each in a transaction of its own."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def create(
        self, *, configuration_id: str, app_id: str, status: Status, settings: dict[str, Any], secrets: bytes
    ) -> bool:
        """Stores a new configuration; returns False when its id is taken."""
        tag = ""
        async for attempt in transactions(self._pool):
            async with attempt as connection:
                tag = await connection.execute(
                    """
                    INSERT INTO configurations (configuration_id, app_id, status, settings, secrets, revision)
                    VALUES ($1, $2, $3, $4, $5, $6)
                    ON CONFLICT DO NOTHING
                    """,
                    configuration_id,
                    app_id,
                    status,
                    settings,
                    secrets,
                    await next_revision(connection),
                )
        return rows_affected(tag) == 1

    async def update(
        self, before: StoredConfiguration, *, status: Status, settings: dict[str, Any], secrets: bytes
    ) -> bool:
        """Stores new values in place of `before`; returns False when those are no longer what is stored."""
        tag = ""
        async for attempt in transactions(self._pool):
            async with attempt as connection:
                tag = await connection.execute(
                    """
                    UPDATE configurations
                    SET status = $2, settings = $3, secrets = $4, revision = $5, update_us = now_us()
                    WHERE configuration_id = $1 AND revision = $6
                    """,
                    before.configuration_id,
                    status,
                    settings,
                    secrets,
                    await next_revision(connection),
                    before.revision,
                )
        return rows_affected(tag) == 1

    async def get(self, configuration_id: str) -> StoredConfiguration | None:
        """Returns a configuration by its id."""
        row = await self._pool.fetchrow(
            """
            SELECT configuration_id, app_id, status, settings, secrets, revision, create_us, update_us
            FROM configurations
            WHERE configuration_id = $1
            """,
            configuration_id,
        )
        return _configuration(row) if row else None

    async def page(
        self, *, app_id: str, after: str, limit: int, archived: bool
    ) -> tuple[list[StoredConfiguration], int]:
        """Returns an app's configurations after one, by id, and how many there are in all.

        Up to `limit` of them, of about PART_BYTES.
        """
        rows = await self._pool.fetch(
            """
            SELECT configuration_id, app_id, status, settings, secrets, revision, create_us, update_us, total_count
            FROM (
                SELECT *, count(*) OVER () AS total_count,
                    sum(octet_length(settings::text)) OVER (ORDER BY configuration_id) AS bytes
                FROM configurations
                WHERE app_id = $1 AND configuration_id > $2
                    AND (status <> 3 OR $4) -- ARCHIVED
                ORDER BY configuration_id
                LIMIT $3
            ) AS page
            WHERE bytes - octet_length(settings::text) < $5
            ORDER BY configuration_id
            """,
            app_id,
            after,
            limit,
            archived,
            PART_BYTES,
        )
        return [_configuration(row) for row in rows], rows[0]["total_count"] if rows else 0

    async def since(self, revision: int) -> tuple[int, list[StoredConfiguration]]:
        """Returns the newest revision, and all configurations written after `revision`."""
        rows = await self._pool.fetch(
            """
            SELECT configuration_id, app_id, status, settings, secrets, revision, create_us, update_us
            FROM configurations
            WHERE revision > $1
            ORDER BY revision
            """,
            revision,
        )
        return (rows[-1]["revision"] if rows else revision), [_configuration(row) for row in rows]


async def next_revision(connection: Connection) -> int:
    """Takes the next revision. Others wait for it until the transaction ends: whoever sees it sees all before it."""
    revision: int = await connection.fetchval(
        """
        UPDATE configuration_revision
        SET revision = revision + 1
        RETURNING revision
        """
    )
    return revision


def _configuration(row: asyncpg.Record) -> StoredConfiguration:
    return StoredConfiguration(**{**{name: row[name] for name in _COLUMNS}, "status": Status(row["status"])})
