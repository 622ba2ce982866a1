"""The table `dedupe`: the keys that repeats are known by."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from libs.db import Connection, Pool, columns, rows_affected
from libs.time import DAY_US
from services.ingest.model import REPEAT_WINDOW_US, SHORT_REPEAT_WINDOW_US, Entry


class Known(NamedTuple):
    """The first record that a key is known of."""

    first_time_us: int
    meaning: int | None


async def take_keys(connection: Connection, entries: Mapping[bytes, Entry]) -> dict[bytes, Known]:
    """Takes the keys of entries that are new, and returns, by key, what the others were when they were accepted first.

    Until the transaction ends, a writer of the same key waits.
    """
    keys = sorted(entries)  # in one order everywhere, or writers would deadlock
    taken = await _insert_keys(connection, [entries[key] for key in keys])
    if len(taken) == len(keys):
        return {}
    # A statement of its own: it must see what was committed while the insert waited.
    return await _find_known(connection, [key for key in keys if key not in taken])


async def _insert_keys(connection: Connection, entries: Sequence[Entry]) -> set[bytes]:
    # An array each way, so that the statement costs the same to send whatever the number of rows.
    rows = await connection.fetch(
        """
        INSERT INTO dedupe AS known (key, first_time_us, meaning)
        SELECT key, time_us, meaning
        FROM unnest($1::bytea[], $2::bigint[], $3::integer[]) AS new (key, time_us, meaning)
        ON CONFLICT (key) DO UPDATE SET first_time_us = EXCLUDED.first_time_us, meaning = EXCLUDED.meaning
            WHERE known.first_time_us <= EXCLUDED.first_time_us -- no longer a repeat
                - CASE WHEN EXCLUDED.meaning IS NULL THEN $5::bigint ELSE $4::bigint END
        RETURNING key
        """,
        [entry.key for entry in entries],
        [entry.accept_time_us for entry in entries],
        [entry.meaning for entry in entries],
        REPEAT_WINDOW_US,
        SHORT_REPEAT_WINDOW_US,
    )
    return {row[0] for row in rows}


async def _find_known(connection: Connection, keys: Sequence[bytes]) -> dict[bytes, Known]:
    rows = await connection.fetch(
        """
        SELECT key, first_time_us, meaning FROM dedupe WHERE key = ANY($1::bytea[])
        """,
        keys,
    )
    return {row[0]: Known(row[1], row[2]) for row in rows}


async def accept_time_us(pool: Pool, key: bytes) -> int | None:
    """Returns when the record with this key was accepted first, in the last 7 days."""
    found: int | None = await pool.fetchval(
        """
        SELECT first_time_us FROM dedupe WHERE key = $1
        """,
        key,
    )
    return found


async def forget_keys(connection: Connection, ranges: Sequence[tuple[bytes, bytes, int]]) -> int:
    """Deletes keys of erased records and returns how many. `ranges`: first and last key, and when it was received."""
    tag = await connection.execute(
        """
        WITH found AS MATERIALIZED (
            SELECT key
            FROM unnest($1::bytea[], $2::bytea[], $3::bigint[]) AS erased (first_key, last_key, accept_time_us)
            CROSS JOIN LATERAL (
                SELECT key FROM dedupe
                WHERE key BETWEEN first_key AND last_key
                    -- A later time is that of a later record, accepted after the erased one had been forgotten.
                    AND first_time_us < accept_time_us + $4::bigint
                ORDER BY key LIMIT 10 -- more than there ever are: keeps the planner to the primary key
            ) AS one
        ), locked AS MATERIALIZED (
            -- In the order in which writers lock them, or they deadlock.
            SELECT key FROM dedupe WHERE key IN (SELECT key FROM found) ORDER BY key FOR UPDATE
        )
        DELETE FROM dedupe WHERE key IN (SELECT key FROM locked)
        """,
        *columns(ranges, 3),
        DAY_US,
    )
    return rows_affected(tag)


async def purge(pool: Pool, *, before_us: int, size: int) -> int:
    """Deletes up to `size` keys of records that were accepted before then, and returns how many."""
    tag = await pool.execute(
        """
        DELETE FROM dedupe WHERE key IN (SELECT key FROM dedupe WHERE first_time_us < $1 LIMIT $2)
        """,
        before_us,
        size,
    )
    return rows_affected(tag)
