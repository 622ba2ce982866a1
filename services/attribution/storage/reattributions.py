"""The table of re-attributions: jobs, how far each is, and the versions that they made."""

import enum
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from libs.db import Connection, Pool
from libs.domain.lanes import lane_of
from libs.parts import PART_BYTES, page_of
from reengage.attribution.v1 import reattribution_pb2
from services.attribution.storage.decisions import OutboxRow
from services.attribution.storage.replay import Period


class State(enum.IntEnum):
    """The state of a re-attribution, by its number in the API."""

    RUNNING = reattribution_pb2.Reattribution.STATE_RUNNING
    DONE = reattribution_pb2.Reattribution.STATE_DONE
    CANCELLED = reattribution_pb2.Reattribution.STATE_CANCELLED


@dataclass(frozen=True, slots=True, kw_only=True)
class Reattribution:
    """A re-attribution. `after_device` is the last device that is done, None before the first and after the end."""

    app_id: str
    reattribution_id: str
    start_us: int
    end_us: int
    send_postbacks: bool
    state: State
    after_device: uuid.UUID | None
    conversion_count: int
    changed_count: int
    estimated_total_count: int
    totals: list[Any]
    create_time_us: int
    finish_time_us: int | None

    @property
    def period(self) -> Period:
        """Returns the conversions that are decided again."""
        return Period(app_id=self.app_id, start_us=self.start_us, end_us=self.end_us)

    @property
    def place(self) -> tuple[int, str]:
        """Returns the place in a list: the time of creation in microseconds, and the id."""
        return self.create_time_us, self.reattribution_id


async def insert(pool: Pool, period: Period, reattribution_id: str, send_postbacks: bool, total: int) -> None:
    """Adds a re-attribution, unless its id is taken or another one of the app runs."""
    await pool.execute(
        """
        INSERT INTO reattributions (
            lane, app_id, reattribution_id, start_us, end_us, send_postbacks, estimated_total_count
        )
        VALUES ($1, $2, $3, $4, $5, $6, $7)
        ON CONFLICT DO NOTHING
        """,
        period.lane,
        period.app_id,
        reattribution_id,
        period.start_us,
        period.end_us,
        send_postbacks,
        total,
    )


async def find(pool: Pool, app_id: str, reattribution_id: str) -> Reattribution | None:
    """Returns a re-attribution of an app, None if there is none with this id."""
    row = await pool.fetchrow(
        """
        SELECT app_id, reattribution_id, start_us, end_us, send_postbacks, state, after_device, conversion_count,
               changed_count, estimated_total_count, totals, create_time_us, finish_time_us
        FROM reattributions WHERE lane = $1 AND app_id = $2 AND reattribution_id = $3
        """,
        lane_of(app_id),
        app_id,
        reattribution_id,
    )
    return None if row is None else _reattribution(row)


async def list_page(pool: Pool, app_id: str, before: tuple[int, str] | None, limit: int) -> list[Reattribution]:
    """Returns re-attributions of an app, newest first: those after a place in that order, or the first."""
    rows = await pool.fetch(
        """
        SELECT app_id, reattribution_id, start_us, end_us, send_postbacks, state, after_device, conversion_count,
               changed_count, estimated_total_count, totals, create_time_us, finish_time_us
        FROM reattributions
        WHERE lane = $1 AND app_id = $2
          AND ($3::bigint IS NULL OR (create_time_us, reattribution_id) < ($3::bigint, $4::text))
        ORDER BY create_time_us DESC, reattribution_id DESC LIMIT $5
        """,
        lane_of(app_id),
        app_id,
        None if before is None else before[0],
        None if before is None else before[1],
        limit,
    )
    return [_reattribution(row) for row in rows]


async def oldest_running(pool: Pool, lanes: Iterable[int]) -> Reattribution | None:
    """Returns the running re-attribution of these home lanes that was created first, None if none runs."""
    row = await pool.fetchrow(
        """
        SELECT app_id, reattribution_id, start_us, end_us, send_postbacks, state, after_device, conversion_count,
               changed_count, estimated_total_count, totals, create_time_us, finish_time_us
        FROM reattributions
        WHERE lane = ANY($1) AND state = 1 -- RUNNING
        ORDER BY create_time_us, app_id LIMIT 1
        """,
        list(lanes),
    )
    return None if row is None else _reattribution(row)


async def advance(connection: "Connection | Pool", now: Reattribution, then: Reattribution) -> bool:
    """Notes how far a re-attribution is. Returns False when it is not where it was, or does not run any more."""
    return bool(
        await connection.fetchval(
            """
            UPDATE reattributions
            SET after_device = $5, conversion_count = $6, changed_count = $7, totals = $8
            WHERE lane = $1 AND app_id = $2 AND reattribution_id = $3 AND state = 1 -- RUNNING
              AND after_device IS NOT DISTINCT FROM $4
            RETURNING true
            """,
            now.period.lane,
            now.app_id,
            now.reattribution_id,
            now.after_device,
            then.after_device,
            then.conversion_count,
            then.changed_count,
            then.totals,
        )
    )


async def end(pool: Pool, job: Reattribution, state: State) -> None:
    """Ends a re-attribution if it still runs; one that is DONE only if no other worker has gone on with it."""
    await pool.execute(
        """
        UPDATE reattributions SET state = $4, finish_time_us = now_us(),
            after_device = NULL -- of no use any more, and the device may be forgotten one day
        WHERE lane = $1 AND app_id = $2 AND reattribution_id = $3 AND state = 1 -- RUNNING
          AND ($5::uuid IS NULL OR after_device = $5)
        """,
        job.period.lane,
        job.app_id,
        job.reattribution_id,
        state,
        job.after_device if state is State.DONE else None,
    )


async def versions_of(pool: Pool, job: Reattribution, after: int, size: int) -> tuple[list[OutboxRow], bool]:
    """Returns the versions that a re-attribution made and that are the newest still, and whether there are more.

    Up to `size` after a sequence, in order, and of at most PART_BYTES.
    """
    rows = await pool.fetch(
        """
        SELECT lane, sequence, app_id, conversion_id, decision, record, engagement, is_relayed, retention_days
        FROM (
            SELECT *, sum(size) OVER (ORDER BY sequence) AS bytes
            FROM (
                SELECT lane, sequence, app_id, conversion_id, decision, record, engagement, is_relayed, retention_days,
                    octet_length(decision) + octet_length(record) + COALESCE(octet_length(engagement), 0) AS size
                FROM newest_decisions
                WHERE lane = $1 AND app_id = $2 AND reattribution_id = $3 AND sequence > $4
                ORDER BY sequence LIMIT $5
            ) AS sized
        ) AS page
        WHERE bytes - size <= $6
        ORDER BY sequence
        """,
        job.period.lane,
        job.app_id,
        job.reattribution_id,
        after,
        size + 1,
        PART_BYTES,
    )
    return page_of([OutboxRow(*row) for row in rows], size, lambda row: row.size)


def _reattribution(row: Any) -> Reattribution:
    return Reattribution(**{**row, "state": State(row["state"])})
