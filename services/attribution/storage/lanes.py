"""The tables of lanes and of the workers that own them.

Indexing, deciding, relaying and renewing write the rows of the same lanes at once. Who locks them in any order
deadlocks: so each statement locks its rows in the order of the lanes first.
"""

from collections.abc import Collection, Mapping
from typing import NamedTuple

from libs.db import Connection, Pool, rows_affected


class LanesLostError(Exception):
    """Another worker owns lanes that this one believed to own: nothing was written, begin anew."""


class OwnedLane(NamedTuple):
    """The positions that a lane is indexed up to, decided up to (one per lane of the log) and relayed up to."""

    lane: int
    indexed: int
    decided: list[int]
    next_sequence: int
    relayed: int


async def see_worker(connection: Connection, worker_id: str, lease_s: float) -> int:
    """Notes that a worker is alive, forgets those that are not, and returns how many are."""
    await connection.execute(
        """
        INSERT INTO workers (worker_id, seen_time_us) VALUES ($1, now_us())
        ON CONFLICT (worker_id) DO UPDATE SET seen_time_us = excluded.seen_time_us
        """,
        worker_id,
    )
    # One that was seen in the future was seen before the clock was set back; it comes again if it is alive.
    await connection.execute(
        "DELETE FROM workers WHERE abs(now_us() - seen_time_us) > $1::bigint", round(lease_s * 1e6)
    )
    return int(await connection.fetchval("SELECT count(*) FROM workers"))


async def forget_worker(pool: Pool, worker_id: str) -> None:
    """Gives back all lanes of a worker that ends."""
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute("DELETE FROM workers WHERE worker_id = $1", worker_id)
        await connection.execute(
            """
            UPDATE lanes SET owner = NULL, lease_until_us = 0
            WHERE lane IN (SELECT lane FROM lanes WHERE owner = $1 ORDER BY lane FOR UPDATE)
            """,
            worker_id,
        )


async def renew_lanes(connection: Connection, worker_id: str, lease_s: float) -> set[int]:
    """Prolongs the leases of a worker's lanes, and returns which they are."""
    rows = await connection.fetch(
        """
        UPDATE lanes SET lease_until_us = now_us() + $2::bigint
        WHERE lane IN (SELECT lane FROM lanes WHERE owner = $1 ORDER BY lane FOR UPDATE)
        RETURNING lane
        """,
        worker_id,
        round(lease_s * 1e6),
    )
    return {row["lane"] for row in rows}


async def take_lanes(connection: Connection, worker_id: str, count: int, lease_s: float) -> set[int]:
    """Takes up to `count` lanes that nobody owns, or whose owner's lease has ended, and returns which.

    A lease that ends much later than any lease does is of before the clock was set back, and has ended too.
    """
    rows = await connection.fetch(
        """
        UPDATE lanes SET owner = $1, lease_until_us = now_us() + $3::bigint
        WHERE lane IN (
            SELECT lane FROM lanes
            WHERE owner IS NULL OR lease_until_us < now_us() OR lease_until_us > now_us() + 10 * $3::bigint
            ORDER BY lane LIMIT $2
            FOR UPDATE SKIP LOCKED -- several workers take at once
        )
        RETURNING lane
        """,
        worker_id,
        count,
        round(lease_s * 1e6),
    )
    return {row["lane"] for row in rows}


async def release_lanes(connection: "Connection | Pool", worker_id: str, lanes: Collection[int]) -> None:
    """Gives lanes to whoever takes them."""
    await connection.execute(
        """
        UPDATE lanes SET owner = NULL, lease_until_us = 0
        WHERE owner = $1 AND lane IN (SELECT lane FROM lanes WHERE lane = ANY($2) ORDER BY lane FOR UPDATE)
        """,
        worker_id,
        list(lanes),
    )


async def read_owned_lanes(pool: Pool, worker_id: str, lanes: Collection[int]) -> dict[int, OwnedLane]:
    """Returns how far lanes are. Raises LanesLostError if the worker does not own them all."""
    rows = await pool.fetch(
        """
        SELECT lane, indexed, decided, next_sequence, relayed FROM lanes
        WHERE owner = $1 AND lane = ANY($2)
        """,
        worker_id,
        list(lanes),
    )
    if len(rows) != len(lanes):
        raise LanesLostError
    return {row["lane"]: OwnedLane(*row) for row in rows}


async def read_indexed(pool: Pool) -> list[int]:
    """Returns for each lane of the log the position below which all engagements are stored."""
    return [row["indexed"] for row in await pool.fetch("SELECT indexed FROM lanes ORDER BY lane")]


async def advance_indexed(connection: Connection, worker_id: str, positions: Mapping[int, int]) -> None:
    """Moves the index positions of lanes. Raises LanesLostError if the worker does not own them all."""
    tag = await connection.execute(
        """
        UPDATE lanes SET indexed = moved.position
        FROM unnest($2::smallint[], $3::bigint[]) AS moved (lane, position)
        WHERE lanes.lane = moved.lane AND lanes.owner = $1
          AND lanes.lane IN (SELECT lane FROM lanes WHERE lane = ANY($2) ORDER BY lane FOR UPDATE)
        """,
        worker_id,
        list(positions.keys()),
        list(positions.values()),
    )
    _check_fence(tag, len(positions))


async def hold_unindexed(connection: Connection, positions: Mapping[int, int]) -> bool:
    """Returns whether no lane is indexed beyond its position, and keeps it so until the transaction ends."""
    rows = await connection.fetch(
        "SELECT lane, indexed FROM lanes WHERE lane = ANY($1) ORDER BY lane FOR SHARE", list(positions)
    )
    return all(row["indexed"] <= positions[row["lane"]] for row in rows)


async def advance_decided(
    connection: Connection,
    worker_id: str,
    decided: Mapping[int, list[int] | None],
    sequences: Mapping[int, int],
    next_sequences: Mapping[int, int],
) -> None:
    """Moves the sequences and decide positions (lane: the new vector, None as it is) of lanes.

    Raises LanesLostError if the worker does not own them all, or if `sequences`, which it began with, are not what is
    stored. Then its last transaction did commit although it never heard so: it knows too little, and must begin anew.
    """
    tag = await connection.execute(
        """
        UPDATE lanes
        SET next_sequence = moved.next_sequence,
            -- The vectors come as text: unnest would take an array of arrays apart.
            decided = COALESCE(moved.decided::bigint[], lanes.decided)
        FROM unnest($2::smallint[], $3::bigint[], $4::bigint[], $5::text[])
            AS moved (lane, sequence, next_sequence, decided)
        WHERE lanes.lane = moved.lane AND lanes.owner = $1 AND lanes.next_sequence = moved.sequence
          AND lanes.lane IN (SELECT lane FROM lanes WHERE lane = ANY($2) ORDER BY lane FOR UPDATE)
        """,
        worker_id,
        list(decided.keys()),
        [sequences[lane] for lane in decided],
        [next_sequences[lane] for lane in decided],
        [None if vector is None else _as_text(vector) for vector in decided.values()],
    )
    _check_fence(tag, len(decided))


async def advance_relayed(connection: "Connection | Pool", worker_id: str, positions: Mapping[int, int]) -> None:
    """Moves the outbox positions of lanes. Raises LanesLostError if the worker does not own them all."""
    tag = await connection.execute(
        """
        UPDATE lanes SET relayed = moved.sequence
        FROM unnest($2::smallint[], $3::bigint[]) AS moved (lane, sequence)
        WHERE lanes.lane = moved.lane AND lanes.owner = $1
          AND lanes.lane IN (SELECT lane FROM lanes WHERE lane = ANY($2) ORDER BY lane FOR UPDATE)
        """,
        worker_id,
        list(positions.keys()),
        list(positions.values()),
    )
    _check_fence(tag, len(positions))


def _as_text(positions: Collection[int]) -> str:
    """Returns positions as the text of an array."""
    return "{" + ",".join(map(str, positions)) + "}"


def _check_fence(tag: str, count: int) -> None:
    """Raises LanesLostError unless all rows were changed: a worker that lost a lane meanwhile writes nothing."""
    if rows_affected(tag) != count:
        raise LanesLostError
