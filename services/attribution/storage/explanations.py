"""Reads from the tables what an explanation says: versions, what an engagement won, and who waits for whom."""

import uuid
from collections.abc import Sequence
from typing import NamedTuple

from libs.db import Pool
from reengage.attribution.v1 import decision_pb2
from reengage.ingest.v1 import log_pb2
from services.attribution.decision.matching import own_key
from services.attribution.storage.devices import NO_DEVICE
from services.attribution.wire.decisions import ATTRIBUTING_OUTCOMES

MAX_WON = 1_000
"""Conversions of one engagement that an explanation names."""


class Version(NamedTuple):
    """A version of a decision: the message, the re-attribution that made it, and what it was made of.

    `known_ids` has by kind the values that its device was known by and its record does not name.
    """

    sequence: int
    decision: bytes
    reattribution_id: str | None
    claims: bytes | None
    record: bytes
    known_ids: dict[str, list[str]] | None


class StoredEngagement(NamedTuple):
    """The record of a click or an impression, and when it was received."""

    record: bytes
    receive_time_us: int


class PendingConversion(NamedTuple):
    """A conversion that waits for claims, its own or those of `first_id`: an earlier conversion of its device.

    `is_early`: it waits for the hashes of ids to be indexed (A3).
    """

    record: bytes
    receive_time_us: int
    first_id: str | None
    network_ids: list[str]
    deadline_us: int
    is_early: bool


class LatestAttribution(NamedTuple):
    """An attribution of a device by the newest version of its decision."""

    conversion_id: str
    decision: bytes
    conversion_time_us: int


async def newest_versions(pool: Pool, lane: int, app_id: str, conversion_id: str) -> list[Version]:
    """Returns the newest version of a decision and, if there is one, the version before it."""
    rows = await pool.fetch(
        """
        SELECT sequence, decision, reattribution_id, claims, record, known_ids FROM decisions
        WHERE lane = $1 AND conversion_id = $2 AND app_id = $3
        ORDER BY version DESC LIMIT 2
        """,
        lane,
        conversion_id,
        app_id,
    )
    return [Version(*row) for row in rows]


async def pending_conversion(pool: Pool, lane: int, app_id: str, conversion_id: str) -> PendingConversion | None:
    """Returns a conversion that is not decided yet, None if there is none with this id."""
    row = await pool.fetchrow(
        """
        SELECT mine.record, mine.receive_time_us, first.conversion_id AS first_id,
               COALESCE(first.network_ids, mine.network_ids) AS network_ids,
               COALESCE(first.deadline_us, mine.deadline_us) AS deadline_us,
               mine.device_id = $4 AS is_early
        FROM pending_conversions AS mine
        LEFT JOIN LATERAL (
            SELECT conversion_id, network_ids, deadline_us FROM pending_conversions
            WHERE lane = mine.lane AND device_id = mine.device_id AND receive_time_us < mine.receive_time_us
              AND cardinality(network_ids) > 0
            ORDER BY receive_time_us LIMIT 1
        ) AS first ON cardinality(mine.network_ids) = 0 -- it waits for no network itself
        WHERE mine.lane = $1 AND mine.conversion_id = $2 AND mine.app_id = $3
        """,
        lane,
        conversion_id,
        app_id,
        NO_DEVICE,
    )
    return None if row is None else PendingConversion(*row)


async def stored_engagements(pool: Pool, app_id: str, engagement_ids: Sequence[str]) -> dict[str, StoredEngagement]:
    """Returns clicks and impressions by their ids, as far as they are stored."""
    rows = await pool.fetch(
        """
        SELECT engagement_id, record, receive_time_us FROM engagements
        WHERE match_key = ANY($1) AND record IS NOT NULL
        """,
        [own_key(app_id, engagement_id) for engagement_id in engagement_ids],
    )
    return {row["engagement_id"]: StoredEngagement(row["record"], row["receive_time_us"]) for row in rows}


async def won_conversions(pool: Pool, lane: int, app_id: str, engagement_id: str) -> list[str]:
    """Returns the conversions that an engagement won by the newest versions, at most MAX_WON, in order of sequence."""
    rows = await pool.fetch(
        """
        SELECT conversion_id FROM newest_decisions
        WHERE lane = $1 AND engagement_id = $2 AND app_id = $3
        ORDER BY sequence LIMIT $4
        """,
        lane,
        engagement_id,
        app_id,
        MAX_WON,
    )
    return [row["conversion_id"] for row in rows]


async def is_decided_up_to(pool: Pool, home_lane: int, place: log_pb2.LanePosition) -> bool:
    """Returns whether the owner of a home lane has decided beyond a place in the log."""
    return bool(
        await pool.fetchval(
            """
            SELECT decided[$2 + 1] > $3 -- arrays count from 1
            FROM lanes WHERE lane = $1
            """,
            home_lane,
            place.lane,
            place.position,
        )
    )


async def merged_devices(pool: Pool, device_id: uuid.UUID, sequence: int | None) -> list[uuid.UUID]:
    """Returns a device and all that were merged into it, up to a sequence if there is one."""
    rows = await pool.fetch(
        """
        WITH RECURSIVE same AS (
            SELECT $1::uuid AS device_id
            UNION
            SELECT devices.device_id FROM devices JOIN same ON devices.merged_into = same.device_id
            WHERE $2::bigint IS NULL OR devices.merge_sequence <= $2
        )
        SELECT device_id FROM same
        """,
        device_id,
        sequence,
    )
    return [row["device_id"] for row in rows]


async def nearest_conversion(
    pool: Pool, lane: int, app_id: str, device_ids: Sequence[uuid.UUID], time_us: int
) -> str | None:
    """Returns the conversion of these devices nearest to a time, of two the earlier; None if they have none."""
    found: str | None = await pool.fetchval(
        """
        SELECT found.conversion_id
        FROM unnest($3::uuid[]) AS same (device_id)
        CROSS JOIN LATERAL (
            (
                SELECT conversion_id, conversion_time_us, sequence FROM decisions
                WHERE lane = $1 AND app_id = $2 AND device_id = same.device_id
                  AND conversion_time_us <= $4 AND outcome <> $5
                ORDER BY conversion_time_us DESC, sequence DESC LIMIT 1
            )
            UNION ALL
            (
                SELECT conversion_id, conversion_time_us, sequence FROM decisions
                WHERE lane = $1 AND app_id = $2 AND device_id = same.device_id
                  AND conversion_time_us > $4 AND outcome <> $5
                ORDER BY conversion_time_us, sequence LIMIT 1
            )
        ) AS found
        ORDER BY abs(found.conversion_time_us - $4), found.conversion_time_us, found.sequence LIMIT 1
        """,
        lane,
        app_id,
        list(device_ids),
        time_us,
        decision_pb2.OUTCOME_LINKED,  # no conversion, although its decision is stored
    )
    return found


async def latest_attribution(
    pool: Pool,
    lane: int,
    app_id: str,
    device_ids: Sequence[uuid.UUID],
    *,
    since_us: int,
    time_us: int,
    receive_time_us: int,
    sequence: int,
) -> LatestAttribution | None:
    """Returns the latest attribution of these devices in the order of times, of those first decided before a sequence.

    That is the latest one that came before a conversion of this time and receipt, but after `since_us`. When there is
    none, the latest of those that happened later and had been received before it.
    """
    row = await pool.fetchrow(
        """
        SELECT conversion_id, decision, conversion_time_us FROM newest_decisions AS made
        WHERE lane = $1 AND app_id = $2 AND device_id = ANY($3) AND outcome = ANY($4)
          AND conversion_time_us > $5
          AND ((conversion_time_us, receive_time_us) <= ($6, $7) OR receive_time_us <= $7)
          AND (
              SELECT min(sequence) FROM decisions AS version
              WHERE version.lane = made.lane AND version.conversion_id = made.conversion_id
                AND version.app_id = made.app_id
          ) < $8
        ORDER BY (conversion_time_us, receive_time_us) <= ($6, $7) DESC,
                 -- the order of a device's history
                 conversion_time_us DESC, receive_time_us DESC, conversion_id COLLATE "C" DESC
        LIMIT 1
        """,
        lane,
        app_id,
        list(device_ids),
        list(ATTRIBUTING_OUTCOMES),
        since_us,
        time_us,
        receive_time_us,
        sequence,
    )
    return None if row is None else LatestAttribution(*row)
