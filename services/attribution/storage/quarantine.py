"""The table of what could not be processed and was set aside."""

import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from libs.db import Connection, Pool, columns, rows_affected
from reengage.attribution.v1 import quarantine_pb2

MAX_ERROR = 500


class SetAside(NamedTuple):
    """A thing that is set aside, as the table's columns. `place` tells it from others of its work and app."""

    lane: int
    work: int
    app_id: str
    place: str
    record_id: str
    reason: int
    error: str
    log_lane: int | None = None
    position: int | None = None
    receive_time_us: int | None = None
    record: bytes | None = None
    claims: bytes | None = None
    because: int | None = None
    device_id: uuid.UUID | None = None


class Quarantined(NamedTuple):
    """A thing that was set aside, under its number in its lane."""

    number: int
    what: SetAside
    create_time_us: int
    try_time_us: int
    try_count: int
    is_retry_asked: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """A choice of what was set aside: all that fits what is given. `items` are (lane, number)."""

    items: Collection[tuple[int, int]] | None = None
    app_id: str = ""
    work: int = 0
    reason: int = 0


_COLUMNS = """
    lane, work, app_id, place, record_id, reason, error, log_lane, position, receive_time_us, record, claims, because,
    device_id
"""
_FITS = """
    ($1::smallint[] IS NULL OR (lane, number) IN (SELECT * FROM unnest($1, $2::bigint[])))
    AND ($3 = '' OR app_id = $3) AND ($4::smallint = 0 OR work = $4) AND ($5::smallint = 0 OR reason = $5)
"""


async def insert(connection: Connection, rows: Sequence[SetAside]) -> None:
    """Sets things aside; one that lies there already has failed once more."""
    await connection.execute(
        f"""
        INSERT INTO quarantined AS known ({_COLUMNS})
        SELECT * FROM unnest(
            $1::smallint[], $2::smallint[], $3::text[], $4::text[], $5::text[], $6::smallint[], $7::text[],
            $8::smallint[], $9::bigint[], $10::bigint[], $11::bytea[], $12::bytea[], $13::smallint[], $14::uuid[]
        )
        ON CONFLICT (lane, work, app_id, place) DO UPDATE SET
            reason = excluded.reason, error = excluded.error, try_time_us = now_us(), try_count = known.try_count + 1,
            is_retry_asked = false
        """,
        *columns(rows, len(SetAside._fields)),
    )


async def to_retry(pool: Pool, lanes: Collection[int], limit: int) -> list[Quarantined]:
    """Returns what is to be tried again in these lanes, the oldest first; the eraser sees to its own."""
    rows = await pool.fetch(
        f"""
        SELECT number, create_time_us, try_time_us, try_count, is_retry_asked, {_COLUMNS}
        FROM quarantined WHERE is_retry_asked AND lane = ANY($1) AND work <> $3 ORDER BY number LIMIT $2
        """,
        list(lanes),
        limit,
        quarantine_pb2.QUARANTINE_WORK_ERASE,
    )
    return [_quarantined(*row) for row in rows]


async def take(connection: Connection, row: Quarantined) -> bool:
    """Takes a thing out of the table; returns whether it still lay there to be tried again."""
    tag = await connection.execute(
        "DELETE FROM quarantined WHERE lane = $1 AND number = $2 AND is_retry_asked", row.what.lane, row.number
    )
    return rows_affected(tag) > 0


async def forget(connection: Connection, lane: int, work: int, app_id: str, place: str) -> None:
    """Takes a thing out of the table that has been processed after all, if it lies there."""
    await connection.execute(
        "DELETE FROM quarantined WHERE lane = $1 AND work = $2 AND app_id = $3 AND place = $4",
        lane,
        work,
        app_id,
        place,
    )


async def note_failure(connection: Connection, row: Quarantined, reason: int, error: str) -> None:
    """Notes that a thing has failed once more."""
    await connection.execute(
        """
        UPDATE quarantined SET
            reason = $3, error = $4, try_time_us = now_us(), try_count = try_count + 1, is_retry_asked = false
        WHERE lane = $1 AND number = $2
        """,
        row.what.lane,
        row.number,
        reason,
        error,
    )


async def list_page(pool: Pool, app_id: str, work: int, after: tuple[int, int] | None, limit: int) -> list[Quarantined]:
    """Returns what was set aside, by lane and number: what comes after a place in that order, or the first."""
    rows = await pool.fetch(
        f"""
        SELECT number, create_time_us, try_time_us, try_count, is_retry_asked, {_COLUMNS}
        FROM quarantined
        WHERE ($1 = '' OR app_id = $1) AND ($2::smallint = 0 OR work = $2)
          AND ($3::smallint IS NULL OR (lane, number) > ($3, $4::bigint))
        ORDER BY lane, number LIMIT $5
        """,
        app_id,
        work,
        *(after or (None, None)),
        limit,
    )
    return [_quarantined(*row) for row in rows]


async def ask_retry(pool: Pool, what: Filter) -> int:
    """Asks that what fits be tried again; returns how much that is."""
    tag = await pool.execute(f"UPDATE quarantined SET is_retry_asked = true WHERE {_FITS}", *_values(what))
    return rows_affected(tag)


async def drop(pool: Pool, what: Filter) -> list[tuple[int, str]]:
    """Deletes what fits, all but erasures; returns of each the work and the app."""
    rows = await pool.fetch(
        f"DELETE FROM quarantined WHERE {_FITS} AND work <> $6 RETURNING work, app_id",
        *_values(what),
        quarantine_pb2.QUARANTINE_WORK_ERASE,
    )
    return [(row["work"], row["app_id"]) for row in rows]


async def count(pool: Pool, lanes: Collection[int]) -> dict[int, int]:
    """Returns how much lies there of these lanes, by work."""
    rows = await pool.fetch("SELECT work, count(*) FROM quarantined WHERE lane = ANY($1) GROUP BY work", list(lanes))
    return {row["work"]: row["count"] for row in rows}


async def of_app(connection: Connection, app_id: str) -> list[Quarantined]:
    """Returns all that was set aside of an app, and what could not be read, for an erasure."""
    rows = await connection.fetch(
        f"""
        SELECT number, create_time_us, try_time_us, try_count, is_retry_asked, {_COLUMNS}
        FROM quarantined WHERE app_id IN ($1, '')
        """,
        app_id,
    )
    return [_quarantined(*row) for row in rows]


async def erase(connection: Connection, rows: Collection[Quarantined]) -> int:
    """Deletes what is of a device that is forgotten; returns how much."""
    tag = await connection.execute(
        """
        DELETE FROM quarantined AS row USING unnest($1::smallint[], $2::bigint[]) AS done (lane, number)
        WHERE row.lane = done.lane AND row.number = done.number
        """,
        *columns(((each.what.lane, each.number) for each in rows), 2),
    )
    return rows_affected(tag)


def _quarantined(
    number: int, create_time_us: int, try_time_us: int, try_count: int, is_retry_asked: bool, *what: Any
) -> Quarantined:
    return Quarantined(number, SetAside(*what), create_time_us, try_time_us, try_count, is_retry_asked)


def _values(what: Filter) -> tuple[object, ...]:
    lanes, numbers = (None, None) if what.items is None else columns(what.items, 2)
    return lanes, numbers, what.app_id, what.work, what.reason
