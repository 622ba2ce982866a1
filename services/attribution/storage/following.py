"""Reads the decisions of lanes in the order of their sequences, for callers that follow them."""

from collections.abc import Mapping
from typing import NamedTuple

from libs.db import Pool
from libs.parts import PART_BYTES
from reengage.attribution.v1 import decision_pb2


class Followed(NamedTuple):
    """A decision and, if it is not the first version, the one it replaces; None when SQL has filtered it out."""

    lane: int
    sequence: int
    decision: bytes | None
    replaced: bytes | None


async def read_ends(pool: Pool) -> list[int]:
    """Returns for each lane the sequence that its next decision gets."""
    rows = await pool.fetch("SELECT next_sequence FROM lanes ORDER BY lane")
    return [row["next_sequence"] for row in rows]


def _read_decisions(of_app: str) -> str:
    return f"""
        SELECT lane, sequence, decision, replaced
        FROM (
            -- Of every lane the first ones, whatever the others hold.
            SELECT part.*, sum(size) OVER (ORDER BY part.sequence - behind.start, part.lane) AS bytes
            FROM unnest($1::smallint[], $2::bigint[], $3::bigint[]) AS behind (lane, start, stop)
            CROSS JOIN LATERAL (
                SELECT *, COALESCE(octet_length(decision), 0) + COALESCE(octet_length(replaced), 0) AS size
                FROM (
                    SELECT lane, sequence,
                        -- Whoever wanted the version that is replaced must hear of the newer one.
                        CASE WHEN $5::text IS NULL OR tracker_id = $5 OR version > 1 THEN decision END AS decision,
                        CASE WHEN version > 1 THEN (
                            SELECT decision FROM decisions AS before
                            WHERE before.lane = decisions.lane AND before.conversion_id = decisions.conversion_id
                              AND before.app_id = decisions.app_id AND before.version = decisions.version - 1
                        ) END AS replaced
                    FROM decisions
                    WHERE lane = behind.lane AND sequence >= behind.start AND sequence < behind.stop {of_app}
                    ORDER BY sequence LIMIT $4
                ) AS found
            ) AS part
        ) AS sized
        WHERE bytes - size < $6
        ORDER BY lane, sequence
    """


READ_ALL = _read_decisions("")
READ_APP = _read_decisions("AND app_id = $7")
"""Two queries, because one plan for both (`$6 IS NULL OR …`) would read all apps of a lane to find those of one."""


async def read_decisions(
    pool: Pool, spans: Mapping[int, tuple[int, int]], max_per_lane: int, *, app_id: str = "", tracker_id: str = ""
) -> tuple[list[Followed], bool]:
    """Returns the first decisions of spans (by lane: first sequence, end), in order of lane and sequence.

    Of one app, if it is given. Decisions on other trackers than the one given are without their message. Also returns
    whether the bytes of a part cut them off before `max_per_lane` did.
    """
    found = await pool.fetch(
        READ_APP if app_id else READ_ALL,
        list(spans),
        [start for start, _ in spans.values()],
        [stop for _, stop in spans.values()],
        max_per_lane,
        tracker_id or None,
        PART_BYTES,
        *([app_id] if app_id else []),
    )
    rows = [Followed(*row) for row in found]
    return rows, sum(len(row.decision or b"") + len(row.replaced or b"") for row in rows) >= PART_BYTES


async def find_sequences(pool: Pool, ends: Mapping[int, int], time_us: int) -> dict[int, int]:
    """Returns by lane, with its end, the first sequence that was decided at a time or later.

    By halving: the times of a lane's decisions rise, except where clocks of workers are apart.
    """
    lows, highs = dict.fromkeys(ends, 0), dict(ends)
    while middles := {lane: (low + highs[lane]) // 2 for lane, low in lows.items() if low < highs[lane]}:
        decided = await _decide_times(pool, middles)
        for lane, middle in middles.items():
            if decided.get(lane, time_us) < time_us:
                lows[lane] = middle + 1
            else:
                highs[lane] = middle
    return lows


async def _decide_times(pool: Pool, sequences: Mapping[int, int]) -> dict[int, int]:
    """Returns by lane when its first decision from a sequence on was decided; there is none of lanes without one."""
    rows = await pool.fetch(
        """
        SELECT middle.lane, found.decision
        FROM unnest($1::smallint[], $2::bigint[]) AS middle (lane, sequence)
        CROSS JOIN LATERAL (
            SELECT decision FROM decisions
            WHERE lane = middle.lane AND sequence >= middle.sequence ORDER BY sequence LIMIT 1
        ) AS found
        """,
        list(sequences.keys()),
        list(sequences.values()),
    )
    decide_times = {row["lane"]: decision_pb2.Decision.FromString(row["decision"]).decide_time for row in rows}
    return {lane: time.ToMicroseconds() for lane, time in decide_times.items()}
