"""Reads what a replay decides again: the newest versions of decisions, and what they were made from."""

import uuid
from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

import asyncpg

from libs.db import Connection, columns
from libs.domain.lanes import lane_of
from libs.parts import PART_BYTES
from reengage.attribution.v1 import decision_pb2
from services.attribution.decision.grouping import Sighting
from services.attribution.storage.decisions import EVENT_OUTCOMES
from services.attribution.wire.decisions import ATTRIBUTING_OUTCOMES

FIRST_DEVICE = uuid.UUID(int=0)
"""The id before that of every device. Decisions without a device are stored under it, and never decided again."""

_COUNTED = 10_000
"""Decisions of a period that are counted one by one. An estimate from so many is right within 1 %."""
_NOT_DECIDED = (decision_pb2.OUTCOME_LINKED, decision_pb2.OUTCOME_REFUSED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """The conversions of an app that happened from one time on and before another, received from a time on."""

    app_id: str
    start_us: int
    end_us: int
    received_since_us: int = 0

    @property
    def lane(self) -> int:
        """Returns the app's home lane."""
        return lane_of(self.app_id)


class Stored(NamedTuple):
    """A conversion as it is stored: its newest version, at the sequence where it was first decided.

    Not `in_period`: it stays as it is. `known_ids` are those beside the record's own.
    """

    device_id: uuid.UUID
    conversion_id: str
    sequence: int
    version: int
    time_us: int
    receive_time_us: int
    decision: decision_pb2.Decision
    record: bytes
    in_period: bool
    known_ids: dict[str, list[str]] | None
    claims: bytes | None
    retention_days: int


class AskedBefore(NamedTuple):
    """A device whose latest event before a moment is asked for, that is, before a time; at it, before a receipt.

    It must lie less than `within_us` before the time, and be received until `until_us`.
    """

    device_id: uuid.UUID
    time_us: int
    receive_time_us: int
    within_us: int
    until_us: int


class Merge(NamedTuple):
    """A device that turned out to be another one."""

    device_id: uuid.UUID
    into: uuid.UUID


class Remembered(NamedTuple):
    """The rest of what a device remembers beside its decisions: attributions, as DeviceHistory has them in JSON, the
    times of sessions that went on (D4), and its sightings."""

    attributions: list[list[object]]
    session_us: list[int]
    sightings: list[Sighting]


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
    """Returns the next devices, and whether they are the last.

    Together they have about `size` conversions in the period, or fewer that have about PART_BYTES.
    """
    rows = await connection.fetch(
        """
        SELECT device_id, count(*) AS count, max(total_count) AS total_count
        FROM (
            SELECT device_id, size, count(*) OVER () AS total_count,
                sum(size) OVER (ORDER BY device_id ROWS UNBOUNDED PRECEDING) AS bytes
            FROM (
                SELECT device_id, octet_length(decision) + octet_length(record) AS size FROM decisions
                WHERE lane = $1 AND app_id = $2 AND device_id > $3
                  AND conversion_time_us >= $4 AND conversion_time_us < $5
                ORDER BY device_id LIMIT $6
            ) AS next
        ) AS sized
        WHERE bytes - size < $7
        GROUP BY device_id ORDER BY device_id
        """,
        period.lane,
        period.app_id,
        after,
        period.start_us,
        period.end_us,
        size,
        PART_BYTES,
    )
    found_count = sum(row["count"] for row in rows)
    return [row["device_id"] for row in rows], not rows or found_count == rows[0]["total_count"] < size


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
            SELECT device_id, NULL::uuid AS merged_into
            FROM up WHERE merged_into IS NULL
            UNION ALL
            SELECT devices.device_id, devices.merged_into
            FROM family JOIN devices ON devices.merged_into = family.device_id
        )
        SELECT device_id, merged_into FROM family WHERE merged_into IS NOT NULL
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
                   version, conversion_time_us, receive_time_us, decision,
                   record, conversion_time_us >= $4 AND conversion_time_us < $5 AND receive_time_us >= $8,
                   known_ids, claims, retention_days
            FROM decisions
            WHERE lane = $1 AND app_id = $2 AND device_id = asked.device_id AND outcome <> ALL($7)
              AND (
                  (conversion_time_us >= $4 AND conversion_time_us < $5 AND receive_time_us >= $8)
                  OR outcome = ANY($6) OR version > 1
              )
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
        period.received_since_us,
    )
    return [_stored(row) for row in rows]


async def find_events_before(connection: Connection, period: Period, asked: Collection[AskedBefore]) -> list[Stored]:
    """Returns the latest event that is asked for of each device, if it has one, as a conversion that stays as it is."""
    rows = await connection.fetch(
        """
        SELECT found.*
        FROM unnest($3::uuid[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[])
            AS asked (device_id, time_us, receive_time_us, within_us, until_us)
        CROSS JOIN LATERAL (
            SELECT device_id, conversion_id, sequence, version, conversion_time_us, receive_time_us, decision,
                   record, false, known_ids, claims, retention_days
            FROM decisions
            WHERE lane = $1 AND app_id = $2 AND device_id = asked.device_id
              AND conversion_time_us > asked.time_us - asked.within_us AND conversion_time_us <= asked.time_us
              AND (conversion_time_us < asked.time_us OR receive_time_us < asked.receive_time_us)
              AND receive_time_us <= asked.until_us
              AND outcome = ANY($8::smallint[])
            ORDER BY conversion_time_us DESC, sequence DESC LIMIT 1 -- as the index by device has them
        ) AS found
        """,
        period.lane,
        period.app_id,
        *columns(asked, len(AskedBefore._fields)),
        EVENT_OUTCOMES,
    )
    return [_stored(row) for row in rows]


async def find_settings_revisions(
    connection: Connection, period: Period, device_ids: Collection[uuid.UUID]
) -> set[int]:
    """Returns the settings revisions that conversions of these devices, in the period, were decided under."""
    rows = await connection.fetch(
        """
        SELECT decision FROM decisions
        WHERE lane = $1 AND app_id = $2 AND device_id = ANY($3) AND receive_time_us >= $4 AND outcome <> ALL($5)
        """,
        period.lane,
        period.app_id,
        list(device_ids),
        period.received_since_us,
        _NOT_DECIDED,
    )
    return {decision_pb2.Decision.FromString(row["decision"]).settings_revision for row in rows}


async def find_remembered(connection: Connection, device_ids: Collection[uuid.UUID]) -> dict[uuid.UUID, Remembered]:
    """Returns what devices remember."""
    rows = await connection.fetch(
        """
        -- In one array, which is read in one go.
        SELECT device_id, jsonb_build_array(history -> 'attributions', history -> 'session_us', sightings)
        FROM devices WHERE device_id = ANY($1)
        """,
        list(device_ids),
    )
    return {
        device_id: Remembered(attributions, session_us, [Sighting(*each) for each in sightings])
        for device_id, (attributions, session_us, sightings) in rows
    }


def _stored(row: asyncpg.Record) -> Stored:
    device_id, conversion_id, sequence, version, time_us, receive_time_us, decision, *rest = row
    message = decision_pb2.Decision.FromString(decision)
    return Stored(device_id, conversion_id, sequence, version, time_us, receive_time_us, message, *rest)
