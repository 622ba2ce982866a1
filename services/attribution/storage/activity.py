"""Reads when devices were active before engagements: what an app with an inactivity window asks for (D13)."""

import uuid
from collections.abc import Collection
from typing import NamedTuple

from libs.db import Connection, columns
from services.attribution.storage.decisions import EVENT_OUTCOMES


class AskedInactivity(NamedTuple):
    """A device that must not have been active for so long before the time of an engagement.

    `place` is a number that the caller gives it. What was received after `until_us` does not count.
    """

    place: int
    lane: int
    app_id: str
    device_id: uuid.UUID
    time_us: int
    within_us: int
    until_us: int


async def find_latest_activity(connection: Connection, asked: Collection[AskedInactivity]) -> dict[int, set[int]]:
    """Returns by place the times of the latest event of each device asked, if it has one.

    That is before the time, and less than `within_us` before it.
    """
    rows = await connection.fetch(
        """
        SELECT asked.place, latest.conversion_time_us
        FROM unnest($1::integer[], $2::smallint[], $3::text[], $4::uuid[], $5::bigint[], $6::bigint[], $7::bigint[])
            AS asked (place, lane, app_id, device_id, time_us, within_us, until_us)
        CROSS JOIN LATERAL (
            SELECT conversion_time_us FROM decisions
            WHERE lane = asked.lane AND app_id = asked.app_id AND device_id = asked.device_id
              AND conversion_time_us > asked.time_us - asked.within_us AND conversion_time_us < asked.time_us
              AND receive_time_us <= asked.until_us
              AND outcome = ANY($8::smallint[]) -- installs are in the device's history
            ORDER BY conversion_time_us DESC, sequence DESC LIMIT 1 -- as the device's index has them
        ) AS latest
        """,
        *columns(asked, len(AskedInactivity._fields)),
        EVENT_OUTCOMES,
    )
    found: dict[int, set[int]] = {}
    for place, time_us in rows:
        found.setdefault(place, set()).add(time_us)
    return found
