"""Every query on the schema."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

import asyncpg
from google.protobuf.message import Message

from libs.db import Connection, Pool, in_transaction
from libs.errors import AlreadyExists
from reengage.tracker.v1.tracker_pb2 import Resource, Tracker
from services.tracker.kinds import CAMPAIGN, EVENT_DEFINITION, KINDS, NETWORK, SEGMENT, TRACKER, Key, Kind

M = TypeVar("M", bound=Message)
T = TypeVar("T")

PART = 1000
"""Resources of one part of a snapshot."""
MAX_USERS = 10
# Each holds a connection until its reader has it all; the others are left for changes.
_SNAPSHOTS_AT_ONCE = 4

_USERS = {
    NETWORK.name: "SELECT tracker_id FROM trackers WHERE status = 'STATUS_LIVE' AND network_id = $1",
    CAMPAIGN.name: "SELECT tracker_id FROM trackers WHERE status = 'STATUS_LIVE' AND campaign_id = $1",
    SEGMENT.name: "SELECT tracker_id FROM trackers WHERE status = 'STATUS_LIVE' AND segment_id = $1",
    EVENT_DEFINITION.name: (
        "SELECT tracker_id FROM trackers WHERE status = 'STATUS_LIVE' AND app_id = $1 AND $2 = ANY(events)"
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part of a snapshot: its revision, at most 1,000 resources, and whether more parts follow."""

    revision: int
    resources: list[Resource]
    more: bool


class View:
    """Reads settings on one connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def get(self, kind: Kind[M], key: Key) -> M | None:
        """The resource, archived or not; None if there is none."""
        stored = await self._connection.fetchval(
            f"SELECT resource FROM {kind.table} WHERE {_conditions(kind.key)}", *key
        )
        return None if stored is None else kind.parse(stored)

    async def page(self, kind: Kind[M], *, app_id: str | None, after: str, archived_too: bool, size: int) -> list[M]:
        """Up to `size` resources, of one app or of all, in the order of the last field of their key."""
        key = kind.key[-1]
        rows = await self._connection.fetch(
            f"""
            SELECT resource FROM {kind.table}
            WHERE {key} > $1 AND (status = 'STATUS_LIVE' OR $2) {"" if app_id is None else "AND app_id = $4"}
            ORDER BY {key} LIMIT $3
            """,
            *(after, archived_too, size, *([] if app_id is None else [app_id])),
        )
        return [kind.parse(row["resource"]) for row in rows]

    async def users(self, kind: Kind[Any], key: Key) -> list[str]:
        """The ids of up to `MAX_USERS` live trackers that need the resource."""
        query = _USERS.get(kind.name)
        if query is None:
            return []
        rows = await self._connection.fetch(f"{query} ORDER BY tracker_id LIMIT {MAX_USERS}", *key)
        return [row["tracker_id"] for row in rows]

    async def other_default_trackers(self, tracker: Tracker) -> list[Tracker]:
        """The live default trackers of the same app, network and type, apart from this one."""
        rows = await self._connection.fetch(
            """
            SELECT resource FROM trackers
            WHERE app_id = $1 AND network_id = $2 AND type = $3 AND tracker_id <> $4
                AND default_tracker AND status = 'STATUS_LIVE'
            """,
            tracker.app_id, tracker.network_id, Tracker.Type.Name(tracker.type), tracker.tracker_id,
        )  # fmt: skip
        return [TRACKER.parse(row["resource"]) for row in rows]

    async def made_by(self, kind: Kind[Any], request_id: str) -> Key | None:
        """What the create with this request id made within the last day."""
        key = await self._connection.fetchval(
            """
            SELECT resource_key FROM requests
            WHERE kind = $1 AND request_id = $2 AND request_time > now() - INTERVAL '1 day'
            """,
            kind.name, request_id,
        )  # fmt: skip
        return None if key is None else tuple(key)


class Change(View):
    """A change under way. It holds the lock on the revision, so nothing else changes until it commits."""

    def __init__(self, connection: Connection, revision: int) -> None:
        super().__init__(connection)
        self.revision = revision
        self._time: datetime | None = None

    async def put(self, kind: Kind[Any], message: Any) -> None:
        """Write the resource, new or not, after setting its revision, and its create time if it has none.

        All that one change puts gets the same revision. Raises AlreadyExists `NAME_TAKEN`.
        """
        if self._time is None:
            row = await self._connection.fetchrow(
                "UPDATE revision SET revision = revision + 1 RETURNING revision, clock_timestamp() AS time"
            )
            assert row is not None
            self.revision, self._time = row["revision"], row["time"]
        message.revision = self.revision
        if "create_time" in message.DESCRIPTOR.fields_by_name and not message.HasField("create_time"):
            message.create_time.FromDatetime(self._time)
        stored = message.SerializeToString(deterministic=True)
        columns = (*kind.key, *kind.columns)
        try:
            await self._connection.execute(_upsert(kind), *(_column(message, name) for name in columns), stored)
        except asyncpg.UniqueViolationError as error:
            if error.constraint_name != f"{kind.table}_live_name":
                raise
            raise AlreadyExists(
                "NAME_TAKEN", f"another live {kind.name} has the name {message.name!r}", name=message.name
            ) from None
        await self._connection.execute(
            "INSERT INTO changes (revision, kind, resource_key, change_time, resource) VALUES ($1, $2, $3, $4, $5)",
            self.revision, kind.name, list(kind.key_of(message)), self._time, stored,
        )  # fmt: skip

    async def remember(self, kind: Kind[Any], request_id: str, key: Key) -> None:
        """Keep what this request id made, and forget those of yesterday."""
        await self._connection.execute("DELETE FROM requests WHERE request_time <= now() - INTERVAL '1 day'")
        await self._connection.execute(
            "INSERT INTO requests (kind, request_id, resource_key) VALUES ($1, $2, $3)",
            kind.name, request_id, list(key),
        )  # fmt: skip


class Store:
    """The tracker schema."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._snapshots = asyncio.Semaphore(_SNAPSHOTS_AT_ONCE)

    async def read(self, work: Callable[[View], Awaitable[T]]) -> T:
        """What `work` returns; it may run more than once."""
        return await in_transaction(self._pool, lambda connection: work(View(connection)))

    async def change(self, work: Callable[[Change], Awaitable[T]]) -> tuple[T, int]:
        """What `work` returns, and the newest revision once all it put is committed; it may run more than once."""

        async def locked(connection: Connection) -> tuple[T, int]:
            revision = await connection.fetchval("SELECT revision FROM revision FOR UPDATE")
            change = Change(connection, revision)
            return await work(change), change.revision

        return await in_transaction(self._pool, locked)

    async def revision(self) -> int:
        """The newest revision."""

        async def read(connection: Connection) -> int:
            newest: int = await connection.fetchval("SELECT revision FROM revision")
            return newest

        return await in_transaction(self._pool, read)

    async def changes_after(self, revision: int, *, limit: int) -> list[tuple[int, Resource]] | None:
        """All changes after the revision, in order, each with its own; None if they do not lead on from it.

        That is when there are more than `limit`, when the revision is ahead of ours, or when those after it are gone.
        """

        async def read(connection: Connection) -> list[asyncpg.Record] | None:
            newest = await connection.fetchval("SELECT revision FROM revision")
            # Revisions commit in their order, so this later look at the table still sees all up to the last it sees.
            rows = await connection.fetch(
                "SELECT revision, kind, resource FROM changes WHERE revision > $1 ORDER BY revision LIMIT $2",
                revision, limit + 1,
            )  # fmt: skip
            leads_on = rows[0]["revision"] == revision + 1 if rows else newest == revision
            return rows if leads_on and len(rows) <= limit else None

        rows = await in_transaction(self._pool, read)
        if rows is None:
            return None
        return [(row["revision"], KINDS[row["kind"]].parse_any(row["resource"])) for row in rows]

    async def snapshot(self) -> AsyncGenerator[Part, None]:
        """All settings as they are at one revision, in at least one part, parents before their children."""
        async with (
            self._snapshots,
            self._pool.acquire() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            revision = await connection.fetchval("SELECT revision FROM revision")
            resources: list[Resource] = []
            for kind in KINDS.values():
                async for row in connection.cursor(f"SELECT resource FROM {kind.table}", prefetch=PART):
                    if len(resources) == PART:
                        yield Part(revision=revision, resources=resources, more=True)
                        resources = []
                    resources.append(kind.parse_any(row["resource"]))
            yield Part(revision=revision, resources=resources, more=False)


def _upsert(kind: Kind[Any]) -> str:
    columns = (*kind.key, *kind.columns, "resource")
    return f"""
        INSERT INTO {kind.table} ({", ".join(columns)})
        VALUES ({", ".join(f"${number}" for number, _ in enumerate(columns, start=1))})
        ON CONFLICT ({", ".join(kind.key)}) DO UPDATE
        SET {", ".join(f"{name} = EXCLUDED.{name}" for name in columns[len(kind.key) :])}
    """


def _conditions(names: tuple[str, ...]) -> str:
    return " AND ".join(f"{name} = ${number}" for number, name in enumerate(names, start=1))


def _column(message: Message, name: str) -> Any:
    """A field as its column holds it."""
    field = message.DESCRIPTOR.fields_by_name[name]
    value = getattr(message, name)
    if field.enum_type is not None:
        return field.enum_type.values_by_number[value].name
    return list(value) if field.is_repeated else value
