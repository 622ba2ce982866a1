"""The tables of hashed ids (A3): the kinds that came from each app, and the raw ids behind the hashes."""

import uuid
from collections.abc import AsyncIterator, Collection, Mapping
from typing import NamedTuple

from libs.db import Connection, Pool, columns, in_statements
from libs.domain.device_ids import HASHED_KINDS
from libs.time import DAY_US
from services.attribution.storage.devices import NO_DEVICE, Identifier, IdKey

_MAX_AT_ONCE = 64
"""Engagements in memory, each of which may have half a megabyte."""


class HashedKind(NamedTuple):
    """A kind of hashed ids that came from an app, with the home lane of the app."""

    app_id: str
    kind: str
    lane: int


class HashedId(NamedTuple):
    """The match key of a raw id that an engagement carries, under that of a hash of it, as the table's columns."""

    hash_key: bytes
    raw_key: bytes
    time_us: int
    retention_days: int

    @classmethod
    def of(cls, hash_key: bytes, raw_key: bytes, time_us: int, retention_days: int) -> "HashedId":
        """Returns the row of an engagement of this time: one a day is enough."""
        return cls(hash_key, raw_key, time_us - time_us % DAY_US, retention_days)


class ToIndex(NamedTuple):
    """A kind of hashed ids that is not indexed yet; `are_devices_indexed`: the ids of devices are."""

    kind: HashedKind
    is_on_conversions: bool
    are_devices_indexed: bool

    @property
    def app_id(self) -> str:
        return self.kind.app_id


class Indexed(NamedTuple):
    """A kind of hashed ids, and whether it is indexed for conversions."""

    kind: HashedKind
    is_ready: bool


async def note_hashed_kinds(connection: Connection, kinds: Collection[HashedKind], *, is_on_conversions: bool) -> None:
    """Notes the kinds of hashed ids that came on engagements, or on conversions; what is noted stays as it is."""
    if not kinds:
        return
    await connection.execute(
        """
        INSERT INTO hashed_kinds (app_id, kind, lane, is_on_conversions)
        SELECT *, $4::boolean FROM unnest($1::text[], $2::text[], $3::smallint[])
        ON CONFLICT DO NOTHING
        """,
        *columns(sorted(kinds), len(HashedKind._fields)),
        is_on_conversions,
    )


async def note_indexed(connection: Connection, kinds: Collection[HashedKind], *, is_on_conversions: bool) -> None:
    """Notes that kinds of hashed ids are indexed."""
    await connection.execute(
        """
        UPDATE hashed_kinds AS known SET is_indexed = true
        FROM unnest($1::text[], $2::text[], $3::smallint[]) AS done (app_id, kind, lane)
        WHERE known.app_id = done.app_id AND known.kind = done.kind AND known.is_on_conversions = $4
        """,
        *columns(kinds, len(HashedKind._fields)),
        is_on_conversions,
    )


async def read_hashed_kinds(pool: Pool, lanes: Collection[int]) -> list[Indexed]:
    """Returns the kinds that came from the apps of these home lanes."""
    rows = await pool.fetch(
        """
        SELECT app_id, kind, lane, bool_or(is_indexed AND is_on_conversions) FROM hashed_kinds
        WHERE lane = ANY($1) GROUP BY app_id, kind, lane
        """,
        list(lanes),
    )
    return [Indexed(HashedKind(*row[:3]), row[3]) for row in rows]


async def kinds_to_index(pool: Pool, lanes: Collection[int]) -> list[ToIndex]:
    """Returns the kinds of the apps of these home lanes that are not indexed yet, or that conversions wait for."""
    rows = await pool.fetch(
        """
        SELECT app_id, kind, lane, is_on_conversions, EXISTS (
                   SELECT FROM hashed_kinds AS other
                   WHERE other.app_id = kinds.app_id AND other.kind = kinds.kind AND other.is_indexed
               )
        FROM hashed_kinds AS kinds
        WHERE lane = ANY($1) AND (NOT is_indexed OR is_on_conversions AND EXISTS (
            -- An owner that never heard that it had noted this as indexed lets them wait.
            SELECT FROM pending_conversions
            WHERE lane = kinds.lane AND device_id = $2 AND app_id = kinds.app_id
        ))
        ORDER BY app_id, kind
        """,
        list(lanes),
        NO_DEVICE,
    )
    return [ToIndex(HashedKind(*row[:3]), row[3], row[4]) for row in rows]


async def find_hash_lengths(
    connection: "Connection | Pool", app_ids: Collection[str], *, is_on_conversions: bool
) -> dict[str, frozenset[int]]:
    """Returns the lengths of the hashes that engagements of these apps ever carried, or conversions."""
    rows = await connection.fetch(
        """
        SELECT app_id, array_agg(kind) FROM hashed_kinds WHERE app_id = ANY($1) AND is_on_conversions = $2
        GROUP BY app_id
        """,
        list(app_ids),
        is_on_conversions,
    )
    return {row[0]: frozenset(HASHED_KINDS[kind][1] for kind in row[1]) for row in rows}


async def insert_hashed_ids(connection: Connection, rows: Collection[HashedId]) -> None:
    """Stores the raw ids of engagements under their hashes; there must be partitions for them."""
    for some in in_statements(sorted(rows)):
        await connection.execute(
            """
            INSERT INTO hashed_ids (hash_key, raw_key, time_us, retention_days)
            SELECT * FROM unnest($1::bytea[], $2::bytea[], $3::bigint[], $4::smallint[])
            ON CONFLICT DO NOTHING
            """,
            *columns(some, len(HashedId._fields)),
        )


async def find_raw_keys(
    connection: Connection, hash_keys: Collection[bytes], *, start_us: int, end_us: int
) -> dict[bytes, set[bytes]]:
    """Returns for hashes the match keys of the raw ids that engagements of this time carry."""
    found: dict[bytes, set[bytes]] = {}
    for some in in_statements(hash_keys):
        rows = await connection.fetch(
            """
            SELECT DISTINCT hash_key, raw_key FROM hashed_ids
            WHERE hash_key = ANY($1) AND time_us > $2 AND time_us <= $3
            """,
            some,
            start_us - DAY_US,
            end_us,
        )
        for hash_key, raw_key in rows:
            found.setdefault(hash_key, set()).add(raw_key)
    return found


# What came before a kind of hashed ids was first seen.


class KnownIds(NamedTuple):
    """The ids of a device by kind; or, without a device, a shared id (A8) and what it has met."""

    device_id: uuid.UUID | None
    ids: dict[str, list[str]]
    met: bytes = b""


async def ids_of_devices(
    connection: Connection, app_id: str, after: uuid.UUID, limit: int
) -> tuple[list[KnownIds], uuid.UUID | None]:
    """Returns the ids of an app's devices among the next `limit` of all devices, and the last of these.

    None in place of it when there are no more.
    """
    rows = await connection.fetch(
        """
        SELECT device_id, app_id = $1 AND merged_into IS NULL AS is_wanted, ids FROM devices
        WHERE device_id > $2 ORDER BY device_id LIMIT $3
        """,
        app_id,
        after,
        limit,
    )
    found = [KnownIds(row["device_id"], row["ids"]) for row in rows if row["is_wanted"]]
    return found, rows[-1]["device_id"] if len(rows) == limit else None


async def all_shared_ids(connection: Connection, app_id: str) -> list[KnownIds]:
    """Returns the shared ids of an app (A8)."""
    rows = await connection.fetch(
        "SELECT kind, value, met FROM shared_ids JOIN identifiers USING (id_key, kind) WHERE app_id = $1", app_id
    )
    return [KnownIds(None, {row["kind"]: [row["value"]]}, row["met"] or b"") for row in rows]


async def insert_new_identifiers(connection: Connection, identifiers: Mapping[IdKey, Identifier]) -> None:
    """Stores where ids lead that lead nowhere yet."""
    for some in in_statements(sorted((*key, each.device_id, each.met or None) for key, each in identifiers.items())):
        await connection.execute(
            """
            INSERT INTO identifiers (id_key, kind, device_id, met)
            SELECT * FROM unnest($1::bytea[], $2::text[], $3::uuid[], $4::bytea[])
            ON CONFLICT DO NOTHING
            """,
            *columns(some, 4),
        )


class Blocks(NamedTuple):
    """A partition of the engagements, and the number of its blocks."""

    partition: str
    block_count: int


class StoredRecord(NamedTuple):
    """The record of an engagement, its time, and for how long it is kept."""

    record: bytes
    time_us: int
    retention_days: int


async def engagement_blocks(pool: Pool, since_month: str) -> list[Blocks]:
    """Returns the partitions of engagements of this month (202611) and later."""
    rows = await pool.fetch(
        """
        SELECT relid::text, pg_relation_size(relid) / current_setting('block_size')::integer
        FROM pg_partition_tree('engagements')
        WHERE isleaf AND split_part(relid::text, '_', 2) >= $1
        ORDER BY relid::text
        """,
        since_month,
    )
    return [Blocks(*row) for row in rows]


async def engagements_in(
    connection: Connection, partition: str, start: int, end: int, tracker_ids: Collection[str]
) -> AsyncIterator[StoredRecord]:
    """Yields the engagements on these trackers in some blocks of a partition, few at a time: they may be large."""
    rows = connection.cursor(
        f"""
        SELECT record, time_us, retention_days FROM {partition}
        WHERE ctid >= $1::text::tid AND ctid < $2::text::tid AND record IS NOT NULL AND tracker_id = ANY($3)
        """,  # as the catalogue has it
        f"({start},0)",
        f"({end},0)",
        list(tracker_ids),
        prefetch=_MAX_AT_ONCE,
    )
    async for row in rows:
        yield StoredRecord(*row)
