"""Every query on the schema."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

import asyncpg
from google.protobuf.message import Message

from libs.db import Connection, Isolation, Pool, in_transaction
from libs.errors import AlreadyExists
from reengage.tracker.v1.api_key_pb2 import ApiKey
from reengage.tracker.v1.event_definition_pb2 import EventDefinition
from reengage.tracker.v1.snapshot_pb2 import Resource
from reengage.tracker.v1.tracker_pb2 import Tracker
from services.tracker.kinds import (
    ACCOUNT,
    AGENCY,
    API_KEY,
    CAMPAIGN,
    EVENT_DEFINITION,
    KINDS,
    NETWORK,
    SAN_ACCOUNT,
    SEGMENT,
    TRACKER,
    Key,
    Kind,
)

M = TypeVar("M", bound=Message)
T = TypeVar("T")

PART = 1000
"""Resources of one part of a snapshot."""
MAX_USERS = 10
# Each holds a connection until its reader has it all; the others are left for changes.
_SNAPSHOTS_AT_ONCE = 4

_TRACKERS = "SELECT tracker_id AS id FROM trackers WHERE status = 'STATUS_LIVE' AND"
_USERS = {
    ACCOUNT.name: ("apps", "SELECT app_id AS id FROM apps WHERE status = 'STATUS_LIVE' AND account_id = $1"),
    NETWORK.name: ("trackers", f"{_TRACKERS} network_id = $1"),
    AGENCY.name: ("trackers", f"{_TRACKERS} agency_id = $1"),
    SAN_ACCOUNT.name: ("trackers", f"{_TRACKERS} $1 = ANY(san_account_ids)"),
    CAMPAIGN.name: ("trackers", f"{_TRACKERS} campaign_id = $1"),
    SEGMENT.name: ("trackers", f"{_TRACKERS} segment_id = $1"),
    EVENT_DEFINITION.name: ("trackers", f"{_TRACKERS} app_id = $1 AND $2 = ANY(events)"),
}
"""What can need a resource, and which live ones do."""

Condition = tuple[str, Any]
"""A condition on a kind's table, with `{}` or `{0}` where its value goes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part of a snapshot: its revision, at most 1,000 resources, and whether more parts follow."""

    revision: int
    resources: list[Resource]
    more: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldKey:
    """A stored key: its resource, the account of its scope, its app's too, and when it was last used."""

    api_key: ApiKey
    account_id: str
    last_use_time: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NotedChange:
    """One resource as a revision left it, and as it was before; None if it was not."""

    revision: int
    time: datetime
    actor: str
    kind: str
    key: Key
    before: Any
    after: Any


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

    async def many(self, kind: Kind[M], ids: Collection[str]) -> dict[str, M]:
        """Those of these ids that exist, archived or not; of a kind with one id."""
        if not ids:
            return {}
        [key] = kind.key
        rows = await self._connection.fetch(
            f"SELECT {key}, resource FROM {kind.table} WHERE {key} = ANY($1) ORDER BY {key}", list(ids)
        )
        return {row[key]: kind.parse(row["resource"]) for row in rows}

    async def page(
        self, kind: Kind[M], conditions: Sequence[Condition], *, after: str, archived_too: bool, size: int
    ) -> list[M]:
        """Up to `size` resources that meet the conditions, in the order of the last field of their key."""
        key = kind.key[-1]
        narrowed = "".join(f" AND {text.format(f'${at}')}" for at, (text, _) in enumerate(conditions, start=4))
        rows = await self._connection.fetch(
            f"""
            SELECT resource FROM {kind.table}
            WHERE {key} > $1 AND (status = 'STATUS_LIVE' OR $2) {narrowed}
            ORDER BY {key} LIMIT $3
            """,
            *(after, archived_too, size, *(value for _, value in conditions)),
        )
        return [kind.parse(row["resource"]) for row in rows]

    async def stored(self, kind: Kind[Any], ids: Iterable[str]) -> set[str]:
        """Which of these ids are stored; of a kind with one id."""
        [key] = kind.key
        rows = await self._connection.fetch(f"SELECT {key} FROM {kind.table} WHERE {key} = ANY($1)", list(ids))
        return {row[key] for row in rows}

    async def users(self, kind: Kind[Any], key: Key) -> tuple[str, list[str]]:
        """What the live resources are that need it, as `trackers`, and the ids of up to `MAX_USERS` of them."""
        users, query = _USERS.get(kind.name, ("", ""))
        rows = await self._connection.fetch(f"{query} ORDER BY 1 LIMIT {MAX_USERS}", *key) if query else []
        return users, [row["id"] for row in rows]

    async def definitions_of(self, app_id: str, events: Collection[str]) -> dict[str, EventDefinition]:
        """The definitions that these events have, archived or not, by name."""
        rows = await self._connection.fetch(
            "SELECT event_name, resource FROM event_definitions WHERE app_id = $1 AND event_name = ANY($2)",
            app_id, list(events),
        )  # fmt: skip
        return {row["event_name"]: EVENT_DEFINITION.parse(row["resource"]) for row in rows}

    async def newest_revision(self) -> int:
        """The newest revision."""
        newest: int = await self._connection.fetchval("SELECT revision FROM revision")
        return newest

    async def sealed(self, kind: Kind[Any], key: Key) -> bytes | None:
        """What is kept encrypted of the resource."""
        held: bytes | None = await self._connection.fetchval(
            "SELECT sealed FROM sealed WHERE kind = $1 AND resource_key = $2", kind.name, list(key)
        )
        return held

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


class Remembering(View):
    """Reads each resource once: for looking at many that share their parents, while nothing changes."""

    def __init__(self, view: View) -> None:
        super().__init__(view._connection)  # noqa: SLF001  # of its own class
        self._got: dict[tuple[str, tuple[str, ...]], Any] = {}

    async def get(self, kind: Kind[M], key: Key) -> M | None:
        """The resource as it was when first asked for; not to be changed."""
        asked = (kind.name, key)
        if asked not in self._got:
            self._got[asked] = await super().get(kind, key)
        found: M | None = self._got[asked]
        return found

    async def definitions_of(self, app_id: str, events: Collection[str]) -> dict[str, EventDefinition]:
        """The definitions as they were when first asked for."""
        asked = (app_id, tuple(events))
        if asked not in self._got:
            self._got[asked] = await super().definitions_of(app_id, events)
        found: dict[str, EventDefinition] = self._got[asked]
        return found


class Change(View):
    """A change under way. It holds the lock on the revision, so nothing else changes until it commits."""

    def __init__(self, connection: Connection, revision: int, actor: str) -> None:
        super().__init__(connection)
        self.revision = revision
        self._actor = actor
        self._time: datetime | None = None

    async def put(self, kind: Kind[Any], *messages: Any) -> None:
        """Write resources, new or not, after setting their revision, and the create time of those that have none.

        All that one change puts gets the same revision. Raises AlreadyExists `NAME_TAKEN`.
        """
        if not messages:
            return
        if self._time is None:
            row = await self._connection.fetchrow(
                "UPDATE revision SET revision = revision + 1 RETURNING revision, clock_timestamp() AS time"
            )
            assert row is not None
            self.revision, self._time = row["revision"], row["time"]
        for message in messages:
            message.revision, message.etag = self.revision, str(self.revision)
            if "create_time" in message.DESCRIPTOR.fields_by_name and not message.HasField("create_time"):
                message.create_time.FromDatetime(self._time)
        stored = [message.SerializeToString(deterministic=True) for message in messages]
        names = (*kind.key, *kind.columns)
        rows = [
            (*(_column(message, name, kind.nullable) for name in names), held)
            for message, held in zip(messages, stored, strict=True)
        ]
        try:
            await self._connection.executemany(_upsert(kind), rows)
        except asyncpg.UniqueViolationError as error:
            if error.constraint_name != f"{kind.table}_live_name":
                raise
            taken = messages[0].name if len(messages) == 1 else ""
            text = f"another live {kind.name} has the name {taken!r}" if taken else f"two {kind.name}s have one name"
            raise AlreadyExists("NAME_TAKEN", text, name=taken) from None
        await self._connection.executemany(
            """
            INSERT INTO changes (revision, kind, resource_key, change_time, resource, actor, app_id)
            VALUES ($1, $2, $3, $4, $5, $6, $7)
            """,
            [
                (
                    self.revision, kind.name, list(kind.key_of(message)), self._time, held, self._actor,
                    getattr(message, "app_id", None) or None,
                )
                for message, held in zip(messages, stored, strict=True)
            ],
        )  # fmt: skip

    async def seal(self, kind: Kind[Any], key: Key, sealed: bytes) -> None:
        """Keep something encrypted beside the resource."""
        await self._connection.execute(
            """
            INSERT INTO sealed (kind, resource_key, sealed) VALUES ($1, $2, $3)
            ON CONFLICT (kind, resource_key) DO UPDATE SET sealed = EXCLUDED.sealed
            """,
            kind.name, list(key), sealed,
        )  # fmt: skip

    async def keep_key_hash(self, api_key_id: str, key_hash: bytes) -> bool:
        """Have this key open what the resource says; False if another does already, which stays."""
        kept = await self._connection.fetchval(
            """
            INSERT INTO api_key_hashes (api_key_id, key_hash) VALUES ($1, $2)
            ON CONFLICT (api_key_id) DO NOTHING RETURNING true
            """,
            api_key_id, key_hash,
        )  # fmt: skip
        return bool(kept)

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

    async def read(self, work: Callable[[View], Awaitable[T]], *, at_one_revision: bool = False) -> T:
        """What `work` returns; it may run more than once. `at_one_revision`: all it reads is of one and the same."""
        isolation: Isolation = "repeatable_read" if at_one_revision else "read_committed"
        return await in_transaction(self._pool, lambda connection: work(View(connection)), isolation=isolation)

    async def change(self, work: Callable[[Change], Awaitable[T]], *, actor: str) -> tuple[T, int]:
        """What `work` returns, and the newest revision once all it put is committed; it may run more than once."""

        async def locked(connection: Connection) -> tuple[T, int]:
            revision = await connection.fetchval("SELECT revision FROM revision FOR UPDATE")
            change = Change(connection, revision, actor)
            return await work(change), change.revision

        return await in_transaction(self._pool, locked)

    async def key_by_hash(self, key_hash: bytes) -> HeldKey | None:
        """The key of this hash."""

        async def read(connection: Connection) -> asyncpg.Record | None:
            return await connection.fetchrow(
                """
                SELECT
                    api_keys.resource, last_use_time,
                    coalesce(api_keys.account_id, apps.account_id, '') AS account_id
                FROM api_key_hashes
                JOIN api_keys USING (api_key_id)
                LEFT JOIN apps ON apps.app_id = api_keys.app_id
                WHERE key_hash = $1
                """,
                key_hash,
            )

        row = await in_transaction(self._pool, read)
        if row is None:
            return None
        return HeldKey(
            api_key=API_KEY.parse(row["resource"]), account_id=row["account_id"], last_use_time=row["last_use_time"]
        )

    async def note_use(self, api_key_id: str, time: datetime) -> None:
        """Keep when a key was last used; takes no revision."""
        await self._pool.execute("UPDATE api_key_hashes SET last_use_time = $2 WHERE api_key_id = $1", api_key_id, time)

    async def last_uses(self, api_key_ids: list[str]) -> dict[str, datetime]:
        """When these keys were last used; those that never were are left out."""
        rows = await self._pool.fetch(
            """
            SELECT api_key_id, last_use_time FROM api_key_hashes
            WHERE api_key_id = ANY($1) AND last_use_time IS NOT NULL
            """,
            api_key_ids,
        )
        return {row["api_key_id"]: row["last_use_time"] for row in rows}

    async def revision(self) -> int:
        """The newest revision."""

        return await self.read(lambda view: view.newest_revision())

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

    async def changes(
        self, conditions: Sequence[Condition], *, before: tuple[int, str, str] | None, size: int
    ) -> list[NotedChange]:
        """Up to `size` changes that meet the conditions, newest first: those before this revision, kind and key."""
        narrowed = "".join(f" AND {text.format(f'${at}')}" for at, (text, _) in enumerate(conditions, start=5))
        at_revision, at_kind, at_key = before or (None, "", "")

        async def read(connection: Connection) -> list[asyncpg.Record]:
            return await connection.fetch(
                f"""
                SELECT revision, kind, resource_key, change_time, actor, resource, (
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
                at_revision, at_kind, at_key, size, *(value for _, value in conditions),
            )  # fmt: skip

        return [
            NotedChange(
                revision=row["revision"],
                time=row["change_time"],
                actor=row["actor"],
                kind=row["kind"],
                key=tuple(row["resource_key"]),
                before=None if row["previous"] is None else KINDS[row["kind"]].parse(row["previous"]),
                after=KINDS[row["kind"]].parse(row["resource"]),
            )
            for row in await in_transaction(self._pool, read)
        ]

    async def past(self, revision: int) -> AsyncGenerator[Part, None]:
        """All settings as they were at a revision that is reached, as `snapshot`."""
        async with (
            self._snapshots,
            self._pool.acquire() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            resources: list[Resource] = []
            for kind in KINDS.values():
                rows = connection.cursor(
                    """
                    SELECT DISTINCT ON (resource_key) resource FROM changes
                    WHERE kind = $1 AND revision <= $2 ORDER BY resource_key, revision DESC
                    """,
                    kind.name, revision, prefetch=PART,
                )  # fmt: skip
                async for row in rows:
                    if len(resources) == PART:
                        yield Part(revision=revision, resources=resources, more=True)
                        resources = []
                    resources.append(kind.parse_any(row["resource"]))
            yield Part(revision=revision, resources=resources, more=False)

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


def _column(message: Message, name: str, nullable: Collection[str]) -> Any:
    """A field as its column holds it."""
    field = message.DESCRIPTOR.fields_by_name[name]
    value = getattr(message, name)
    if field.enum_type is not None:
        return field.enum_type.values_by_number[value].name
    if name in nullable:
        return value or None
    return list(value) if field.is_repeated else value
