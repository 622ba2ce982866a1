"""The table of shared ids: those that are nobody's because several devices share them (A8)."""

from collections.abc import Collection
from typing import NamedTuple

from libs.db import Connection, Pool, columns
from services.attribution.decision.shared_ids import count_of


class SharedIdRow(NamedTuple):
    """A shared id, as the table's columns."""

    app_id: str
    share_time_us: int
    kind: str
    value: str
    id_key: bytes


class Place(NamedTuple):
    """A place in the order of an app's shared ids, newest first."""

    share_time_us: int
    id_key: bytes
    kind: str


class SharedId(NamedTuple):
    """A shared id as it is listed, its place, and how many advertising ids share it."""

    kind: str
    value: str
    place: Place
    advertising_id_count: int


async def insert(connection: Connection, rows: Collection[SharedIdRow]) -> None:
    """Adds ids that turned out to be shared."""
    await connection.execute(
        """
        INSERT INTO shared_ids (app_id, share_time_us, kind, value, id_key)
        SELECT * FROM unnest($1::text[], $2::bigint[], $3::text[], $4::text[], $5::bytea[])
        """,
        *columns(rows, len(SharedIdRow._fields)),
    )


async def shared_since(connection: Connection, app_id: str) -> list[tuple[str, str, int]]:
    """Returns the shared ids of an app as (kind, value, since when)."""
    rows = await connection.fetch("SELECT kind, value, share_time_us FROM shared_ids WHERE app_id = $1", app_id)
    return [(row["kind"], row["value"], row["share_time_us"]) for row in rows]


async def list_page(pool: Pool, app_id: str, before: Place | None, limit: int) -> list[SharedId]:
    """Returns shared ids of an app, newest first: those after a place in that order, or the first."""
    rows = await pool.fetch(
        """
        SELECT kind, value, share_time_us, id_key, met FROM shared_ids JOIN identifiers USING (id_key, kind)
        WHERE app_id = $1 AND ($2::bigint IS NULL OR (share_time_us, id_key, kind) < ($2::bigint, $3::bytea, $4::text))
        ORDER BY share_time_us DESC, id_key DESC, kind DESC LIMIT $5
        """,
        app_id,
        *(before or (None, None, None)),
        limit,
    )
    return [SharedId(row[0], row[1], Place(row[2], row[3], row[0]), count_of(row[4] or b"")) for row in rows]
