"""The queries that read and write resources on one connection: views, and changes under way."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import asyncpg
from google.protobuf.message import Message

from libs.db import Connection
from libs.errors import AlreadyExists
from libs.time import to_timestamp
from reengage.tracker.v1.event_definition_pb2 import EventDefinition
from reengage.tracker.v1.status_pb2 import STATUS_LIVE
from reengage.tracker.v1.tracker_pb2 import Tracker
from services.tracker.kinds import (
    ACCOUNT,
    AGENCY,
    CAMPAIGN,
    EVENT_DEFINITION,
    NETWORK,
    SAN_ACCOUNT,
    SEGMENT,
    TRACKER,
    Key,
    Kind,
)
from services.tracker.storage.codec import Codec

M = TypeVar("M", bound=Message)

MAX_USERS = 10

_TRACKERS = f"SELECT tracker_id AS id FROM trackers WHERE status = {STATUS_LIVE} AND"
_USERS = {
    ACCOUNT.name: ("apps", f"SELECT app_id AS id FROM apps WHERE status = {STATUS_LIVE} AND account_id = $1"),
    NETWORK.name: ("trackers", f"{_TRACKERS} network_id = $1"),
    AGENCY.name: ("trackers", f"{_TRACKERS} agency_id = $1"),
    SAN_ACCOUNT.name: ("trackers", f"{_TRACKERS} $1 = ANY(san_account_ids)"),
    CAMPAIGN.name: ("trackers", f"{_TRACKERS} campaign_id = $1"),
    SEGMENT.name: ("trackers", f"{_TRACKERS} segment_id = $1"),
    EVENT_DEFINITION.name: ("trackers", f"{_TRACKERS} app_id = $1 AND $2 = ANY(events)"),
}
"""The kinds that others can need, and the live resources that do."""

Condition = tuple[str, Any]
"""A condition on a kind's table, with `{}` or `{0}` where its value goes."""


class View:
    """The settings, read on one connection."""

    def __init__(self, connection: Connection, codec: Codec) -> None:
        self._connection, self._codec = connection, codec

    async def get(self, kind: Kind[M], key: Key) -> M | None:
        """Returns the resource, archived or not; None if there is none."""
        stored = await self._connection.fetchval(
            f"SELECT resource FROM {kind.table} WHERE {_conditions(kind.key)}", *key
        )
        return None if stored is None else self._codec.parse(kind, stored)

    async def many(self, kind: Kind[M], ids: Collection[str]) -> dict[str, M]:
        """Returns those of these ids that exist, archived or not; of a kind with one id."""
        if not ids:
            return {}
        [key] = kind.key
        rows = await self._connection.fetch(
            f"SELECT {key}, resource FROM {kind.table} WHERE {key} = ANY($1) ORDER BY {key}", list(ids)
        )
        return {row[key]: self._codec.parse(kind, row["resource"]) for row in rows}

    async def of_app(self, kind: Kind[M], app_id: str) -> list[M]:
        """Returns all resources of a kind that belong to an app, archived or not, by their key."""
        rows = await self._connection.fetch(
            f"SELECT resource FROM {kind.table} WHERE app_id = $1 ORDER BY {', '.join(kind.key)}", app_id
        )
        return [self._codec.parse(kind, row["resource"]) for row in rows]

    async def page(
        self, kind: Kind[M], conditions: Sequence[Condition], *, after: str, with_archived: bool, max_count: int
    ) -> list[M]:
        """Returns resources that meet the conditions, in the order of the last field of their key."""
        key = kind.key[-1]
        narrowed = "".join(f" AND {text.format(f'${at}')}" for at, (text, _) in enumerate(conditions, start=4))
        rows = await self._connection.fetch(
            f"""
            SELECT resource FROM {kind.table}
            WHERE {key} > $1 AND (status = {STATUS_LIVE} OR $2) {narrowed}
            ORDER BY {key} LIMIT $3
            """,
            *(after, with_archived, max_count, *(value for _, value in conditions)),
        )
        return [self._codec.parse(kind, row["resource"]) for row in rows]

    async def stored(self, kind: Kind[Any], ids: Iterable[str]) -> set[str]:
        """Returns those of these ids that are stored; of a kind with one id."""
        [key] = kind.key
        rows = await self._connection.fetch(f"SELECT {key} FROM {kind.table} WHERE {key} = ANY($1)", list(ids))
        return {row[key] for row in rows}

    async def users(self, kind: Kind[Any], key: Key) -> tuple[str, list[str]]:
        """Returns what live resources need it, as `trackers`, and the ids of up to `MAX_USERS` of them."""
        users, query = _USERS.get(kind.name, ("", ""))
        rows = await self._connection.fetch(f"{query} ORDER BY 1 LIMIT {MAX_USERS}", *key) if query else []
        return users, [row["id"] for row in rows]

    async def definitions_of(self, app_id: str, events: Collection[str]) -> dict[str, EventDefinition]:
        """Returns the definitions that these events have, archived or not, by name."""
        rows = await self._connection.fetch(
            """
            SELECT event_name, resource FROM event_definitions
            WHERE app_id = $1 AND event_name = ANY($2)
            """,
            app_id, list(events),
        )  # fmt: skip
        return {row["event_name"]: self._codec.parse(EVENT_DEFINITION, row["resource"]) for row in rows}

    async def newest_revision(self) -> int:
        """Returns the newest revision."""
        newest: int = await self._connection.fetchval("SELECT revision FROM revision")
        return newest

    async def sealed(self, kind: Kind[Any], key: Key) -> bytes | None:
        """Returns the encrypted secrets of the resource."""
        held: bytes | None = await self._connection.fetchval(
            "SELECT sealed FROM sealed WHERE kind = $1 AND resource_key = $2", kind.number, list(key)
        )
        return held

    async def other_default_trackers(self, tracker: Tracker) -> list[Tracker]:
        """Returns the live default trackers of the same app, network, type and event, apart from this one (E3)."""
        rows = await self._connection.fetch(
            """
            SELECT resource FROM trackers
            WHERE app_id = $1 AND network_id = $2 AND type = $3 AND tracker_id <> $4
                AND events = $5 AND default_tracker AND status = $6
            """,
            tracker.app_id, tracker.network_id, tracker.type, tracker.tracker_id, list(tracker.events), STATUS_LIVE,
        )  # fmt: skip
        return [self._codec.parse(TRACKER, row["resource"]) for row in rows]


class Remembering(View):
    """A view that reads each resource once: for looking at many that share their parents, while nothing changes."""

    def __init__(self, view: View) -> None:
        super().__init__(view._connection, view._codec)  # noqa: SLF001  # of its own class
        self._got: dict[tuple[str, tuple[str, ...]], Any] = {}

    async def get(self, kind: Kind[M], key: Key) -> M | None:
        """Returns the resource as it was when it was first asked for; not to be changed."""
        asked = (kind.name, key)
        if asked not in self._got:
            self._got[asked] = await super().get(kind, key)
        found: M | None = self._got[asked]
        return found

    async def definitions_of(self, app_id: str, events: Collection[str]) -> dict[str, EventDefinition]:
        """Returns the definitions as they were when they were first asked for."""
        asked = (app_id, tuple(events))
        if asked not in self._got:
            self._got[asked] = await super().definitions_of(app_id, events)
        found: dict[str, EventDefinition] = self._got[asked]
        return found


class Planned(Remembering):
    """A view of settings as they will be: the planned resources, by kind and key, instead of those that are stored."""

    def __init__(self, view: View, planned: Mapping[tuple[str, Key], Any]) -> None:
        super().__init__(view)
        self._planned = planned

    async def get(self, kind: Kind[M], key: Key) -> M | None:
        """Returns the resource as planned, else as stored; not to be changed."""
        found: M | None = self._planned.get((kind.name, key))
        return found if found is not None else await super().get(kind, key)

    async def many(self, kind: Kind[M], ids: Collection[str]) -> dict[str, M]:
        """Returns those of these ids that are planned or stored; of a kind with one id."""
        planned = {name: self._planned[kind.name, (name,)] for name in ids if (kind.name, (name,)) in self._planned}
        return {**await super().many(kind, [name for name in ids if name not in planned]), **planned}

    async def definitions_of(self, app_id: str, events: Collection[str]) -> dict[str, EventDefinition]:
        """Returns the definitions that are planned or stored."""
        kind = EVENT_DEFINITION.name
        planned = {
            name: self._planned[kind, (app_id, name)] for name in events if (kind, (app_id, name)) in self._planned
        }
        rest = [name for name in events if name not in planned]
        return {**(await super().definitions_of(app_id, rest) if rest else {}), **planned}


class Change(View):
    """A change under way. It holds the lock on the revision, so nothing else changes until it commits."""

    def __init__(self, connection: Connection, codec: Codec, revision: int, actor: str) -> None:
        super().__init__(connection, codec)
        self.revision = revision
        self._first_revision = revision
        self._actor = actor
        self._time_us: int | None = None

    @classmethod
    async def begin(cls, connection: Connection, codec: Codec, *, actor: str) -> "Change":
        """Begins a change in a transaction that has just begun."""
        revision = await connection.fetchval("SELECT revision FROM revision FOR UPDATE")
        await connection.execute("SAVEPOINT unchanged")
        return cls(connection, codec, revision, actor)

    async def undo(self) -> None:
        """Undoes all that was put, and keeps the lock."""
        await self._connection.execute("ROLLBACK TO SAVEPOINT unchanged")
        self.revision, self._time_us = self._first_revision, None

    async def put(self, kind: Kind[Any], *messages: Any) -> None:
        """Writes resources, new or not, after setting their revision, and the create time of those that have none.

        All that one change puts gets the same revision. Raises AlreadyExists `NAME_TAKEN`.
        """
        if not messages:
            return
        time_us = await self._take_revision()
        for message in messages:
            message.revision, message.etag = self.revision, str(self.revision)
            if "create_time" in message.DESCRIPTOR.fields_by_name and not message.HasField("create_time"):
                message.create_time.CopyFrom(to_timestamp(time_us))
        stored = [self._codec.stored(kind, message) for message in messages]
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
            INSERT INTO changes (revision, kind, resource_key, change_us, resource, actor, app_id)
            VALUES ($1, $2, $3, $4, $5, $6, $7)
            """,
            [
                (
                    self.revision, kind.number, list(kind.key_of(message)), time_us, held, self._actor,
                    getattr(message, "app_id", None) or None,
                )
                for message, held in zip(messages, stored, strict=True)
            ],
        )  # fmt: skip

    async def seal(self, kind: Kind[Any], key: Key, sealed: bytes) -> None:
        """Keeps the encrypted secrets of a resource, apart from it."""
        await self._connection.execute(
            """
            INSERT INTO sealed (kind, resource_key, sealed) VALUES ($1, $2, $3)
            ON CONFLICT (kind, resource_key) DO UPDATE SET sealed = EXCLUDED.sealed
            """,
            kind.number, list(key), sealed,
        )  # fmt: skip

    async def keep_key_hash(self, api_key_id: str, key_hash: bytes) -> bool:
        """Makes this key open what the resource says; returns False if another key does already, which stays."""
        kept = await self._connection.fetchval(
            """
            INSERT INTO api_key_hashes (api_key_id, key_hash) VALUES ($1, $2)
            ON CONFLICT (api_key_id) DO NOTHING RETURNING true
            """,
            api_key_id, key_hash,
        )  # fmt: skip
        return bool(kept)

    async def made_by(self, kind: Kind[Any], request_id: str) -> Key | None:
        """Returns the key of what the create of this caller with this request id made within the last day."""
        key = await self._connection.fetchval(
            """
            SELECT resource_key FROM requests
            WHERE kind = $1 AND actor = $2 AND request_id = $3
                -- Younger than a day, in microseconds.
                AND request_us > now_us() - 86400000000
            """,
            kind.number, self._actor, request_id,
        )  # fmt: skip
        return None if key is None else tuple(key)

    async def remember(self, kind: Kind[Any], request_id: str, key: Key) -> None:
        """Keeps what this request id made, and forgets those of yesterday."""
        await self._connection.execute("DELETE FROM requests WHERE request_us <= now_us() - 86400000000")
        await self._connection.execute(
            """
            INSERT INTO requests (kind, actor, request_id, resource_key, request_us)
            VALUES ($1, $2, $3, $4, now_us())
            """,
            kind.number, self._actor, request_id, list(key),
        )  # fmt: skip

    async def _take_revision(self) -> int:
        """Takes the next revision, if this change has none yet; returns the time that it was taken."""
        if self._time_us is None:
            row = await self._connection.fetchrow(
                """
                UPDATE revision SET revision = revision + 1
                -- The time under the lock, not that of the transaction's begin, so that times follow revisions.
                RETURNING revision, (extract(EPOCH FROM clock_timestamp()) * 1000000)::bigint AS time_us
                """
            )
            assert row is not None
            self.revision, self._time_us = row["revision"], row["time_us"]
        time_us: int = self._time_us
        return time_us


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
    """Returns a field as its column holds it: enums as their numbers."""
    field = message.DESCRIPTOR.fields_by_name[name]
    value = getattr(message, name)
    if name in nullable:
        return value or None
    return list(value) if field.is_repeated else value
