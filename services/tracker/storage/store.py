"""The queries on the schema as a whole: snapshots, changes and keys. Those on resources are in `views`."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import asyncpg

from libs.db import Isolation, Pool, transactions
from libs.vault import Vault
from reengage.tracker.v1.api_key_pb2 import ApiKey
from reengage.tracker.v1.snapshot_pb2 import Resource
from services.tracker.kinds import API_KEY, BY_NUMBER, KINDS, Key, Kind
from services.tracker.storage.codec import Codec
from services.tracker.storage.views import Change, Condition, View

T = TypeVar("T")

MAX_PART_RESOURCES = 1000
"""The resources of one part of a snapshot."""
# Each holds a connection until its reader has it all; the others are left for changes.
_MAX_SNAPSHOTS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part of a snapshot: its revision, its resources, and whether more parts follow."""

    revision: int
    resources: list[Resource]
    more: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldKey:
    """A stored key: its resource, the account of its scope or of its app, and when it was last used."""

    api_key: ApiKey
    account_id: str
    last_use_us: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NotedChange:
    """One resource as a revision left it, and as it was before; None if it was not."""

    revision: int
    time_us: int
    actor: str
    kind: Kind[Any]
    key: Key
    before: Any
    after: Any


class Store:
    """The tracker schema."""

    def __init__(self, pool: Pool, vault: Vault) -> None:
        """Takes the vault that secrets inside of resources are kept in."""
        self._pool, self._codec = pool, Codec(vault)
        self._snapshots = asyncio.Semaphore(_MAX_SNAPSHOTS)

    async def read(self, work: Callable[[View], Awaitable[T]], *, isolation: Isolation = "read_committed") -> T:
        """Returns what `work` returns; it may run more than once."""
        async for attempt in transactions(self._pool, isolation=isolation):
            async with attempt as connection:
                result = await work(View(connection, self._codec))
        return result  # type: ignore[possibly-undefined]  # one attempt has committed

    async def change(
        self, work: Callable[[Change], Awaitable[T]], *, actor: str, validate_only: bool = False
    ) -> tuple[T, int]:
        """Returns what `work` returns, and the newest revision once all it put is committed; it may run more than once.

        With `validate_only` all it put is undone.
        """
        async for attempt in transactions(self._pool):
            async with attempt as connection:
                change = await Change.begin(connection, self._codec, actor=actor)
                result = await work(change)
                if validate_only:
                    await change.undo()
        return result, change.revision  # type: ignore[possibly-undefined]  # one attempt has committed

    async def key_by_hash(self, key_hash: bytes) -> HeldKey | None:
        """Returns the key of this hash."""
        row: asyncpg.Record | None = None
        async for attempt in transactions(self._pool):
            async with attempt as connection:
                row = await connection.fetchrow(
                    """
                    SELECT
                        api_keys.resource, last_use_us,
                        coalesce(api_keys.account_id, apps.account_id, '') AS account_id
                    FROM api_key_hashes
                    JOIN api_keys USING (api_key_id)
                    -- The account of an app's key is the app's.
                    LEFT JOIN apps ON apps.app_id = api_keys.app_id
                    WHERE key_hash = $1
                    """,
                    key_hash,
                )
        if row is None:
            return None
        return HeldKey(
            api_key=self._codec.parse(API_KEY, row["resource"]),
            account_id=row["account_id"],
            last_use_us=row["last_use_us"],
        )

    async def note_use(self, api_key_id: str, time_us: int) -> None:
        """Keeps when a key was last used; takes no revision."""
        await self._pool.execute(
            "UPDATE api_key_hashes SET last_use_us = $2 WHERE api_key_id = $1", api_key_id, time_us
        )

    async def last_uses_us(self, api_key_ids: list[str]) -> dict[str, int]:
        """Returns when these keys were last used; those that never were are left out."""
        rows = await self._pool.fetch(
            """
            SELECT api_key_id, last_use_us FROM api_key_hashes
            WHERE api_key_id = ANY($1) AND last_use_us IS NOT NULL
            """,
            api_key_ids,
        )
        return {row["api_key_id"]: row["last_use_us"] for row in rows}

    async def revision(self) -> int:
        """Returns the newest revision."""
        newest = 0
        async for attempt in transactions(self._pool):
            async with attempt as connection:
                newest = await connection.fetchval("SELECT revision FROM revision")
        return newest

    async def changes_after(
        self, revision: int, *, max_count: int, with_secrets: bool = False
    ) -> list[tuple[int, Resource]] | None:
        """Returns all changes after the revision, in order, each with its own; None if they do not lead on from it.

        That is when there are more than `max_count`, when the revision is ahead of ours, or when those after it are
        gone.
        """
        newest, rows = 0, list[asyncpg.Record]()
        async for attempt in transactions(self._pool):
            async with attempt as connection:
                newest = await connection.fetchval("SELECT revision FROM revision")
                # Revisions commit in their order, so this later look at the table sees all up to the last it sees.
                rows = await connection.fetch(
                    """
                    SELECT revision, kind, resource FROM changes
                    WHERE revision > $1 ORDER BY revision LIMIT $2
                    """,
                    revision, max_count + 1,
                )  # fmt: skip
        leads_on = rows[0]["revision"] == revision + 1 if rows else newest == revision
        if not leads_on or len(rows) > max_count:
            return None
        return [
            (
                row["revision"],
                self._codec.parse_any(BY_NUMBER[row["kind"]], row["resource"], with_secrets=with_secrets),
            )
            for row in rows
        ]

    async def changes(
        self, conditions: Sequence[Condition], *, before: tuple[int, int, str] | None, max_count: int
    ) -> list[NotedChange]:
        """Returns changes that meet the conditions, newest first: those before this revision, kind and key."""
        narrowed = "".join(f" AND {text.format(f'${at}')}" for at, (text, _) in enumerate(conditions, start=5))
        at_revision, at_kind, at_key = before or (None, 0, "")
        rows: list[asyncpg.Record] = []
        async for attempt in transactions(self._pool):
            async with attempt as connection:
                rows = await connection.fetch(
                    f"""
                    SELECT revision, kind, resource_key, change_us, actor, resource, (
                        SELECT earlier.resource FROM changes AS earlier
                        WHERE earlier.kind = changes.kind AND earlier.resource_key = changes.resource_key
                            AND earlier.revision < changes.revision
                        ORDER BY earlier.revision DESC LIMIT 1
                    ) AS previous
                    FROM changes
                    WHERE ($1::bigint IS NULL
                        OR (revision, kind, array_to_string(resource_key, '/')) < ($1, $2, $3)) {narrowed}
                    ORDER BY revision DESC, kind DESC, array_to_string(resource_key, '/') DESC LIMIT $4
                    """,
                    at_revision, at_kind, at_key, max_count, *(value for _, value in conditions),
                )  # fmt: skip
        return [self._noted(row) for row in rows]

    async def past(self, revision: int) -> AsyncGenerator[Part, None]:
        """Yields all settings as they were at a revision that is reached, as `snapshot` does."""
        async with (
            self._snapshots,
            self._pool.acquire() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            resources: list[Resource] = []
            for kind in KINDS.values():
                rows = connection.cursor(
                    """
                    -- The last change of each resource up to the revision.
                    SELECT DISTINCT ON (resource_key) resource FROM changes
                    WHERE kind = $1 AND revision <= $2 ORDER BY resource_key, revision DESC
                    """,
                    kind.number, revision, prefetch=MAX_PART_RESOURCES,
                )  # fmt: skip
                async for row in rows:
                    if len(resources) == MAX_PART_RESOURCES:
                        yield Part(revision=revision, resources=resources, more=True)
                        resources = []
                    resources.append(self._codec.parse_any(kind, row["resource"], with_secrets=False))
            yield Part(revision=revision, resources=resources, more=False)

    async def snapshot(self, *, with_secrets: bool = False) -> AsyncGenerator[Part, None]:
        """Yields all settings as they are at one revision, in at least one part, parents before their children."""
        async with (
            self._snapshots,
            self._pool.acquire() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            revision = await connection.fetchval("SELECT revision FROM revision")
            resources: list[Resource] = []
            for kind in KINDS.values():
                async for row in connection.cursor(f"SELECT resource FROM {kind.table}", prefetch=MAX_PART_RESOURCES):
                    if len(resources) == MAX_PART_RESOURCES:
                        yield Part(revision=revision, resources=resources, more=True)
                        resources = []
                    resources.append(self._codec.parse_any(kind, row["resource"], with_secrets=with_secrets))
            yield Part(revision=revision, resources=resources, more=False)

    def _noted(self, row: asyncpg.Record) -> NotedChange:
        kind = BY_NUMBER[row["kind"]]
        return NotedChange(
            revision=row["revision"],
            time_us=row["change_us"],
            actor=row["actor"],
            kind=kind,
            key=tuple(row["resource_key"]),
            before=None if row["previous"] is None else self._codec.parse(kind, row["previous"]),
            after=self._codec.parse(kind, row["resource"]),
        )
