"""Reads what a replay decides again: the newest versions of decisions, and what they were made from."""

import uuid
from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from libs.db import Connection
from libs.domain.lanes import lane_of
from reengage.attribution.v1 import decision_pb2
from services.attribution.wire.decisions import ATTRIBUTING_OUTCOMES

FIRST_DEVICE = uuid.UUID(int=0)
"""The id before that of every device. Decisions without a device are stored under it, and never decided again."""

_COUNTED = 10_000
"""Decisions of a period that are counted one by one. An estimate from so many is right within 1 %."""
_NOT_DECIDED = (decision_pb2.OUTCOME_LINKED, decision_pb2.OUTCOME_REFUSED)

Win: TypeAlias = tuple[str, int]
"""A conversion that an engagement won, and the sequence it was first decided at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """The conversions of an app that happened from one time on and before another."""

    app_id: str
    start_us: int
    end_us: int

    @property
    def lane(self) -> int:
        """The app's home lane."""
        return lane_of(self.app_id)


class Stored(NamedTuple):
    """A conversion as it is stored: its newest version, at the sequence where it was first decided.

    Outside of the period it stays as it is (no `record`). `known_ids` are those beside the record's own.
    """

    device_id: uuid.UUID
    conversion_id: str
    sequence: int
    version: int
    round_id: uuid.UUID
    decision: decision_pb2.Decision
    record: bytes | None
    known_ids: dict[str, list[str]] | None
    claims: bytes | None
    retention_days: int


class Merge(NamedTuple):
    """A device whose history went over to another's at a sequence; None: not yet."""

    device_id: uuid.UUID
    into: uuid.UUID
    sequence: int | None


async def estimate(connection: Connection, period: Period) -> int:
    """Returns about how many conversions a period has: exact while they have fewer than 10,000 versions together."""
    row = await connection.fetchrow(
        """
        SELECT count(*) AS count, max(device_id::text) AS last,
               count(*) FILTER (WHERE version = 1 AND outcome <> ALL($7)) AS conversions
        FROM (
            SELECT device_id, version, outcome FROM decisions
            WHERE lane = $1 AND app_id = $2 AND device_id > $3
              AND conversion_time_us >= $4 AND conversion_time_us < $5
            ORDER BY device_id LIMIT $6
        ) AS next
        """,
        period.lane,
        period.app_id,
        FIRST_DEVICE,
        period.start_us,
        period.end_us,
        _COUNTED,
        _NOT_DECIDED,
    )
    assert row is not None
    conversions: int = row["conversions"]
    if row["count"] < _COUNTED:
        return conversions
    # Device ids are random, so those counted lie as densely as all others.
    return conversions * (1 << 128) // (uuid.UUID(row["last"]).int + 1)


async def find_devices(
    connection: Connection, period: Period, after: uuid.UUID, size: int
) -> tuple[list[uuid.UUID], bool]:
    """Returns the next devices, with about `size` conversions in the period together, and whether they are the last."""
    rows = await connection.fetch(
        """
        SELECT device_id, count(*) AS count FROM (
            SELECT device_id FROM decisions
            WHERE lane = $1 AND app_id = $2 AND device_id > $3
              AND conversion_time_us >= $4 AND conversion_time_us < $5
            ORDER BY device_id LIMIT $6
        ) AS next
        GROUP BY device_id ORDER BY device_id
        """,
        period.lane,
        period.app_id,
        after,
        period.start_us,
        period.end_us,
        size,
    )
    return [row["device_id"] for row in rows], sum(row["count"] for row in rows) < size


async def find_merges(connection: Connection, device_ids: Collection[uuid.UUID]) -> list[Merge]:
    """Returns all merges of the families that these devices belong to."""
    rows = await connection.fetch(
        """
        WITH RECURSIVE up AS (
            SELECT device_id, merged_into FROM devices WHERE device_id = ANY($1)
            UNION
            SELECT devices.device_id, devices.merged_into
            FROM up JOIN devices ON devices.device_id = up.merged_into
        ),
        family AS (
            SELECT device_id, NULL::uuid AS merged_into, NULL::bigint AS merge_sequence
            FROM up WHERE merged_into IS NULL
            UNION ALL
            SELECT devices.device_id, devices.merged_into, devices.merge_sequence
            FROM family JOIN devices ON devices.merged_into = family.device_id
        )
        SELECT device_id, merged_into, merge_sequence FROM family WHERE merged_into IS NOT NULL
        """,
        list(device_ids),
    )
    return [Merge(*row) for row in rows]


async def find_conversions(connection: Connection, period: Period, device_ids: Collection[uuid.UUID]) -> list[Stored]:
    """Returns conversions of these devices: those of the period, all that made a source, all with several versions."""
    rows = await connection.fetch(
        """
        SELECT found.*
        FROM unnest($3::uuid[]) AS asked (device_id)
        CROSS JOIN LATERAL (
            SELECT device_id, conversion_id,
                   CASE WHEN version = 1 THEN sequence ELSE (
                       SELECT first.sequence FROM decisions AS first
                       WHERE first.lane = $1 AND first.conversion_id = decisions.conversion_id AND first.app_id = $2
                         AND first.conversion_time_us = decisions.conversion_time_us
                       ORDER BY first.version LIMIT 1
                   ) END,
                   version, round_id, decision,
                   CASE WHEN conversion_time_us >= $4 AND conversion_time_us < $5 THEN record END,
                   known_ids, claims, retention_days
            FROM decisions
            WHERE lane = $1 AND app_id = $2 AND device_id = asked.device_id AND outcome <> ALL($7)
              AND ((conversion_time_us >= $4 AND conversion_time_us < $5) OR outcome = ANY($6) OR version > 1)
            ORDER BY conversion_time_us, sequence -- as the index by device has them, so that it is taken
        ) AS found
        """,
        period.lane,
        period.app_id,
        list(device_ids),
        period.start_us,
        period.end_us,
        list(ATTRIBUTING_OUTCOMES),
        _NOT_DECIDED,
    )
    parse = decision_pb2.Decision.FromString
    return [
        Stored(row[0], row[1], row[2], row[3], row[4], parse(row[5]), row[6], row[7], row[8], row[9]) for row in rows
    ]


async def find_histories(
    connection: Connection, device_ids: Collection[uuid.UUID]
) -> dict[uuid.UUID, list[list[object]]]:
    """Returns the attributions that devices remember, as DeviceHistory has them in JSON."""
    rows = await connection.fetch(
        "SELECT device_id, history -> 'attributions' FROM devices WHERE device_id = ANY($1)", list(device_ids)
    )
    return {row[0]: row[1] for row in rows}


async def find_heads(connection: Connection, round_ids: Collection[uuid.UUID]) -> dict[uuid.UUID, str]:
    """Returns the heads that rounds were decided at, as `heads_text` gives them."""
    rows = await connection.fetch("SELECT round_id, heads::text FROM rounds WHERE round_id = ANY($1)", list(round_ids))
    return {row[0]: row[1] for row in rows}


async def find_wins(connection: Connection, period: Period, engagement_ids: Collection[str]) -> dict[str, list[Win]]:
    """Returns the conversions that engagements have won by the newest versions."""
    rows = await connection.fetch(
        """
        SELECT engagement_id, conversion_id, (
                   SELECT first.sequence FROM decisions AS first
                   WHERE first.lane = $1 AND first.conversion_id = won.conversion_id AND first.app_id = $2
                   ORDER BY first.version LIMIT 1
               )
        FROM unnest($3::text[]) AS asked (id)
        CROSS JOIN LATERAL (
            SELECT engagement_id, conversion_id, app_id FROM newest_decisions
            WHERE lane = $1 AND engagement_id = asked.id
            OFFSET 0 -- keeps app_id out of here: with it the planner would read all decisions of the app
        ) AS won
        WHERE app_id = $2
        """,
        period.lane,
        period.app_id,
        list(engagement_ids),
    )
    wins: dict[str, list[Win]] = {engagement_id: [] for engagement_id in engagement_ids}
    for engagement_id, conversion_id, sequence in rows:
        wins[engagement_id].append((conversion_id, sequence))
    return wins
