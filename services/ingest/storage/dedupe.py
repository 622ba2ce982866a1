"""The table `dedupe`: the keys that repeats are known by."""

from collections.abc import Mapping, Sequence

from libs.db import Connection, Pool, columns, rows_affected
from libs.time import DAY_US
from services.ingest.model import REPEAT_WINDOW_US, Entry


async def take_keys(connection: Connection, entries: Mapping[bytes, Entry]) -> dict[bytes, int]:
    """Takes the keys of entries that are new, and returns, by key, when the others were accepted first.

    Until the transaction ends, a writer of the same key waits.
    """
    keys = sorted(entries)  # in one order everywhere, or writers would deadlock
    taken = await _insert_keys(connection, keys, [entries[key].accept_time_us for key in keys])
    if len(taken) == len(keys):
        return {}
    # A statement of its own: it must see what was committed while the insert waited.
    return await _first_times(connection, [key for key in keys if key not in taken])


async def _insert_keys(connection: Connection, keys: Sequence[bytes], times_us: Sequence[int]) -> set[bytes]:
    # An array each way, so that the statement costs the same to send whatever the number of rows.
    rows = await connection.fetch(
        """
        INSERT INTO dedupe AS known (key, first_time_us)
        SELECT key, time_us FROM unnest($1::bytea[], $2::bigint[]) AS new (key, time_us)
        ON CONFLICT (key) DO UPDATE SET first_time_us = EXCLUDED.first_time_us
            WHERE known.first_time_us <= EXCLUDED.first_time_us - $3::bigint -- no longer a repeat
        RETURNING key
        """,
        keys,
        times_us,
        REPEAT_WINDOW_US,
    )
    return {row[0] for row in rows}


async def _first_times(connection: Connection, keys: Sequence[bytes]) -> dict[bytes, int]:
    rows = await connection.fetch(
        """
        SELECT key, first_time_us FROM dedupe WHERE key = ANY($1::bytea[])
        """,
        keys,
    )
    return {row[0]: row[1] for row in rows}


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
