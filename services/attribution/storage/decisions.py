"""The table of decisions, which is its own outbox."""

import uuid
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from libs.db import Connection, Pool, columns
from libs.parts import PART_BYTES, page_of
from reengage.attribution.v1 import decision_pb2
from services.attribution.decision.model import Win

EVENT_OUTCOMES = (
    decision_pb2.OUTCOME_REENGAGED,
    decision_pb2.OUTCOME_CREDITED,
    decision_pb2.OUTCOME_UNATTRIBUTED,
    decision_pb2.OUTCOME_CONTINUED,
)
"""Outcomes that only events have."""


class DecisionRow(NamedTuple):
    """A decision, as the table's columns."""

    lane: int
    sequence: int
    app_id: str
    conversion_id: str
    version: int
    device_id: uuid.UUID
    outcome: int
    conversion_time_us: int
    receive_time_us: int
    retention_days: int
    """A later version has that of the first: so both are told of, and go, together."""
    tracker_id: str | None
    engagement_id: str | None
    decision: bytes
    record: bytes
    engagement: bytes | None
    known_ids: dict[str, list[str]] | None = None
    claims: bytes | None = None
    reattribution_id: str | None = None
    is_relayed: bool = True
    address_key: bytes | None = None
    missing_click: str | None = None

    @property
    def size(self) -> int:
        """Returns the bytes of its messages."""
        return len(self.decision) + len(self.record) + len(self.engagement or b"")


class OutboxRow(NamedTuple):
    """A decision on its way to postback."""

    lane: int
    sequence: int
    app_id: str
    conversion_id: str
    decision: bytes
    record: bytes
    engagement: bytes | None
    is_relayed: bool
    retention_days: int

    @property
    def size(self) -> int:
        """Returns the bytes of its messages."""
        return len(self.decision) + len(self.record) + len(self.engagement or b"")


class StoredWin(NamedTuple):
    """A conversion that an engagement has won by the newest version of its decision, and its device."""

    app_id: str
    engagement_id: str
    device_id: uuid.UUID
    win: Win


class AskedActivity(NamedTuple):
    """A device that may have been active before a time; `place` is a number that the caller gives it."""

    place: int
    lane: int
    app_id: str
    device_id: uuid.UUID
    time_us: int


async def already_decided(connection: Connection, conversions: Collection[tuple[int, str]]) -> set[tuple[str, str]]:
    """Returns the decided ones (app id, conversion id) of the conversions (lane, conversion id).

    Whatever their time: a sender that gives none repeats a record at another.
    """
    rows = await connection.fetch(
        """
        SELECT app_id, conversion_id
        -- Pair by pair: two lists would be looked up in every combination.
        FROM unnest($1::smallint[], $2::text[]) AS asked (lane, conversion_id)
        JOIN decisions USING (lane, conversion_id)
        """,
        *columns(conversions, 2),
    )
    return {(row["app_id"], row["conversion_id"]) for row in rows}


async def find_activity(
    connection: Connection, asked: Collection[AskedActivity], *, within_us: int
) -> dict[int, list[int]]:
    """Returns by place the time of the latest event of each device asked, if it lies less than so long before."""
    rows = await connection.fetch(
        """
        SELECT asked.place, latest.conversion_time_us
        FROM unnest($1::integer[], $2::smallint[], $3::text[], $4::uuid[], $5::bigint[])
            AS asked (place, lane, app_id, device_id, time_us)
        CROSS JOIN LATERAL (
            SELECT conversion_time_us FROM decisions
            WHERE lane = asked.lane AND app_id = asked.app_id AND device_id = asked.device_id
              AND conversion_time_us > asked.time_us - $6 AND conversion_time_us <= asked.time_us
              AND outcome = ANY($7::smallint[]) -- an install is no activity to go on with
            ORDER BY conversion_time_us DESC, sequence DESC LIMIT 1 -- as the device's index has them
        ) AS latest
        """,
        *columns(asked, 5),
        within_us,
        EVENT_OUTCOMES,
    )
    active: dict[int, list[int]] = {}
    for place, time_us in rows:
        active.setdefault(place, []).append(time_us)
    return active


async def find_wins(connection: Connection, engagements: Collection[tuple[int, str]]) -> list[StoredWin]:
    """Returns the conversions, of every app of the lane, that engagements (lane, engagement id) have won (D5)."""
    rows = await connection.fetch(
        """
        SELECT app_id, engagement_id, device_id, conversion_time_us, receive_time_us, conversion_id
        FROM unnest($1::smallint[], $2::text[]) AS asked (lane, engagement_id)
        JOIN newest_decisions USING (lane, engagement_id)
        """,
        *columns(engagements, 2),
    )
    return [StoredWin(row[0], row[1], row[2], Win(*row[3:])) for row in rows]


async def insert_decisions(connection: Connection, rows: Sequence[DecisionRow]) -> None:
    """Appends decisions; there must be partitions for them."""
    await connection.execute(
        """
        INSERT INTO decisions (
            lane, sequence, app_id, conversion_id, version, device_id, outcome, conversion_time_us, receive_time_us,
            retention_days, tracker_id, engagement_id, decision, record, engagement, known_ids, claims,
            reattribution_id, is_relayed, address_key, missing_click
        )
        SELECT * FROM unnest(
            $1::smallint[], $2::bigint[], $3::text[], $4::text[], $5::integer[], $6::uuid[], $7::smallint[],
            $8::bigint[], $9::bigint[], $10::smallint[], $11::text[], $12::text[], $13::bytea[], $14::bytea[],
            $15::bytea[], $16::jsonb[], $17::bytea[], $18::text[], $19::boolean[], $20::bytea[], $21::text[]
        )
        """,
        *columns(rows, len(DecisionRow._fields)),
    )


async def read_outbox(
    pool: Pool, lanes: Mapping[int, range], limit: int, *, max_bytes: int = PART_BYTES
) -> tuple[list[OutboxRow], dict[int, int]]:
    """Returns the first decisions of these sequences, by lane, and by lane the sequence to go on at.

    Up to `limit` a lane, and about `max_bytes` in all: of every lane the first ones, in their order.
    """
    found = await pool.fetch(
        """
        SELECT lane, sequence, app_id, conversion_id, decision, record, engagement, is_relayed, retention_days
        FROM (
            SELECT d.*, sum(d.size) OVER (ORDER BY d.sequence - wanted.start, d.lane) AS bytes
            FROM unnest($1::smallint[], $2::bigint[], $3::bigint[]) AS wanted (lane, start, stop)
            CROSS JOIN LATERAL (
                SELECT lane, sequence, app_id, conversion_id, decision, record, engagement, is_relayed, retention_days,
                    octet_length(decision) + octet_length(record) + COALESCE(octet_length(engagement), 0) AS size
                FROM decisions
                WHERE decisions.lane = wanted.lane AND sequence >= wanted.start AND sequence < wanted.stop
                ORDER BY sequence LIMIT $4
            ) AS d
        ) AS part
        WHERE bytes - size < $5
        ORDER BY lane, sequence
        """,
        list(lanes.keys()),
        [wanted.start for wanted in lanes.values()],
        [wanted.stop for wanted in lanes.values()],
        limit,
        max_bytes,
    )
    rows = [OutboxRow(*row) for row in found]
    counts = Counter(row.lane for row in rows)
    after = {row.lane: row.sequence + 1 for row in rows}
    if sum(row.size for row in rows) >= max_bytes:
        return rows, after
    # Where fewer were found than asked for, there are no more: the rest was erased.
    return rows, {lane: after[lane] if counts[lane] == limit else some.stop for lane, some in lanes.items()}


async def newest_decision(pool: Pool, lane: int, app_id: str, conversion_id: str) -> bytes | None:
    """Returns the newest version of the decision on a conversion, if there is one."""
    found = await pool.fetchval(
        """
        SELECT decision FROM decisions
        WHERE lane = $1 AND conversion_id = $2 AND app_id = $3
        ORDER BY version DESC LIMIT 1
        """,
        lane,
        conversion_id,
        app_id,
    )
    return bytes(found) if found is not None else None


async def list_decisions(
    pool: Pool,
    lane: int,
    app_id: str,
    *,
    tracker_id: str | None,
    outcomes: Sequence[int],
    start_us: int | None,
    end_us: int | None,
    before: int | None,
    size: int,
) -> tuple[list[tuple[int, bytes]], bool]:
    """Returns decisions of an app as (sequence, decision), newest first, and whether there are more.

    Up to `size` of those that all filters given fit, and of at most PART_BYTES.
    """
    rows = await pool.fetch(
        """
        SELECT sequence, decision
        FROM (
            SELECT sequence, decision, sum(octet_length(decision)) OVER (ORDER BY sequence DESC) AS bytes
            FROM decisions
            WHERE lane = $1 AND app_id = $2
              AND ($3::text IS NULL OR tracker_id = $3)
              AND (cardinality($4::smallint[]) = 0 OR outcome = ANY($4))
              AND ($5::bigint IS NULL OR conversion_time_us >= $5)
              AND ($6::bigint IS NULL OR conversion_time_us < $6)
              AND ($7::bigint IS NULL OR sequence < $7)
            ORDER BY sequence DESC LIMIT $8
        ) AS page
        WHERE bytes - octet_length(decision) <= $9
        ORDER BY sequence DESC
        """,
        lane,
        app_id,
        tracker_id,
        list(outcomes),
        start_us,
        end_us,
        before,
        size + 1,
        PART_BYTES,
    )
    found = [(row["sequence"], bytes(row["decision"])) for row in rows]
    return page_of(found, size, lambda row: len(row[1]))
