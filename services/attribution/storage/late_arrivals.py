"""The table of late arrivals, and the queries that find the conversions which a late record may change (D12)."""

import uuid
from collections.abc import Collection, Sequence
from typing import NamedTuple

from libs.db import Connection, Pool, columns, in_statements


class LateArrival(NamedTuple):
    """A record that arrived late, as the table's columns. `because` is the number of Because in the API.

    It concerns one device, or those with conversions that an engagement, given as its record, may win.
    """

    lane: int
    app_id: str
    record_id: str
    receive_time_us: int
    because: int
    device_id: uuid.UUID | None = None
    engagement_id: str | None = None
    engagement: bytes | None = None


class Placed(NamedTuple):
    """A late arrival and the number of its row."""

    number: int
    arrival: LateArrival


class AppWaiting(NamedTuple):
    """An app with late arrivals, and when the first of them was received."""

    lane: int
    app_id: str
    receive_time_us: int


class AskedDevice(NamedTuple):
    """A device whose latest conversion is asked for."""

    lane: int
    app_id: str
    device_id: uuid.UUID


class AskedEngagement(NamedTuple):
    """An engagement that may change later conversions; `place` is a number that the caller gives it."""

    place: int
    lane: int
    app_id: str
    engagement_id: str
    address_keys: Sequence[bytes]
    time_us: int


class AskedPing(NamedTuple):
    """A server ping that may have come too late for conversions later than a time.

    They are those of devices, or from addresses. `place` is a number that the caller gives it.
    """

    place: int
    lane: int
    app_id: str
    device_ids: Collection[uuid.UUID]
    address_keys: Collection[bytes]
    time_us: int


class LaterDecision(NamedTuple):
    """A version of a decision on a conversion that is later than the time of a ping; the place is the ping's."""

    place: int
    conversion_id: str
    receive_time_us: int
    decision: bytes
    record: bytes


async def insert(connection: Connection, arrivals: Collection[LateArrival]) -> None:
    """Adds late arrivals."""
    await connection.execute(
        """
        INSERT INTO late_arrivals (
            lane, app_id, record_id, receive_time_us, because, device_id, engagement_id, engagement
        )
        SELECT * FROM unnest(
            $1::smallint[], $2::text[], $3::text[], $4::bigint[], $5::smallint[], $6::uuid[], $7::text[], $8::bytea[]
        )
        """,
        *columns(arrivals, len(LateArrival._fields)),
    )


async def find_apps(pool: Pool, lanes: Collection[int]) -> list[AppWaiting]:
    """Returns the apps of these home lanes that have late arrivals.

    An app waits while its hashed ids are indexed (A3): else what its late arrivals concern would not be found.
    """
    rows = await pool.fetch(
        """
        SELECT lane, app_id, min(receive_time_us)
        FROM late_arrivals
        WHERE lane = ANY($1)
          AND NOT EXISTS (SELECT FROM hashed_kinds WHERE app_id = late_arrivals.app_id AND NOT is_indexed)
        GROUP BY lane, app_id ORDER BY lane, app_id
        """,
        list(lanes),
    )
    return [AppWaiting(*row) for row in rows]


async def oldest(pool: Pool, lane: int, app_id: str, limit: int, max_bytes: int) -> list[Placed]:
    """Returns the late arrivals of an app that were received first: at least one, and no more bytes of engagements."""
    rows = await pool.fetch(
        """
        SELECT number, lane, app_id, record_id, receive_time_us, because, device_id, engagement_id, engagement
        FROM (
            SELECT *, sum(octet_length(engagement)) OVER (ORDER BY receive_time_us, number) AS byte_count
            FROM late_arrivals
            WHERE lane = $1 AND app_id = $2
            ORDER BY receive_time_us, number LIMIT $3
        ) AS next
        WHERE COALESCE(byte_count, 0) <= $4 OR byte_count = octet_length(engagement)
        ORDER BY receive_time_us, number
        """,
        lane,
        app_id,
        limit,
        max_bytes,
    )
    return [Placed(row[0], LateArrival(*row[1:])) for row in rows]


async def delete(connection: Connection, placed: Collection[Placed]) -> None:
    """Removes late arrivals: what they change is decided again."""
    await connection.execute(
        """
        DELETE FROM late_arrivals AS arrival USING unnest($1::smallint[], $2::bigint[]) AS done (lane, number)
        WHERE arrival.lane = done.lane AND arrival.number = done.number
        """,
        *columns(((each.arrival.lane, each.number) for each in placed), 2),
    )


async def find_latest(connection: Connection, asked: Collection[AskedDevice], *, after_us: int) -> dict[uuid.UUID, int]:
    """Returns the time of the latest decided conversion of each device asked, if that is later than a time."""
    latest: dict[uuid.UUID, int] = {}
    for some in in_statements(asked):
        rows = await connection.fetch(
            """
            SELECT asked.device_id, found.conversion_time_us
            FROM unnest($1::smallint[], $2::text[], $3::uuid[]) AS asked (lane, app_id, device_id)
            CROSS JOIN LATERAL (
                SELECT conversion_time_us FROM decisions
                WHERE lane = asked.lane AND app_id = asked.app_id AND device_id = asked.device_id
                  AND conversion_time_us > $4
                ORDER BY conversion_time_us DESC, sequence DESC LIMIT 1 -- as the device's index has them
            ) AS found
            """,
            *columns(some, 3),
            after_us,
        )
        latest.update((row["device_id"], row["conversion_time_us"]) for row in rows)
    return latest


async def devices_by_engagement(
    connection: Connection, asked: Sequence[AskedEngagement], *, slack_us: int, span_us: int, limit: int
) -> list[tuple[int, uuid.UUID]]:
    """Returns (place, device) of the conversions that name an engagement's own id, or come from its address.

    Only those from the address that are later than it, by up to `span_us`, the nearest `limit` of each key; `slack_us`
    earlier they may be as well. Those that name it were decided without it.
    """
    rows = await connection.fetch(
        """
        SELECT asked.place, found.device_id
        FROM unnest($1::integer[], $2::smallint[], $3::text[], $4::text[])
            AS asked (place, lane, app_id, engagement_id)
        CROSS JOIN LATERAL (
            SELECT device_id FROM decisions
            WHERE lane = asked.lane AND missing_click = asked.engagement_id AND app_id = asked.app_id
        ) AS found
        UNION
        SELECT asked.place, found.device_id
        FROM unnest($5::integer[], $6::bytea[], $7::bigint[]) AS asked (place, address_key, time_us)
        CROSS JOIN LATERAL (
            SELECT device_id FROM decisions
            WHERE address_key = asked.address_key
              AND conversion_time_us > asked.time_us - $8 AND conversion_time_us <= asked.time_us + $9
            ORDER BY conversion_time_us LIMIT $10
        ) AS found
        """,
        *columns(((each.place, each.lane, each.app_id, each.engagement_id) for each in asked), 4),
        *columns(((each.place, key, each.time_us) for each in asked for key in each.address_keys), 3),
        slack_us,
        span_us,
        limit,
    )
    return [(row["place"], row["device_id"]) for row in rows]


async def find_later_decisions(
    connection: Connection, asked: Collection[AskedPing], *, limit: int
) -> list[LaterDecision]:
    """Returns the decisions on conversions later than pings, in the order of their versions.

    That is of each device and each address the latest `limit`.
    """
    rows = await connection.fetch(
        """
        SELECT asked.place, conversion_id, receive_time_us, decision, record, version
        FROM unnest($1::integer[], $2::smallint[], $3::text[], $4::uuid[], $5::bigint[])
            AS asked (place, lane, app_id, device_id, time_us)
        CROSS JOIN LATERAL (
            SELECT conversion_id, receive_time_us, decision, record, version FROM decisions
            WHERE lane = asked.lane AND app_id = asked.app_id AND device_id = asked.device_id
              AND conversion_time_us > asked.time_us
            ORDER BY conversion_time_us DESC, sequence DESC LIMIT $9 -- as the device's index has them
        ) AS found
        UNION ALL
        SELECT asked.place, conversion_id, receive_time_us, decision, record, version
        FROM unnest($6::integer[], $7::bytea[], $8::bigint[]) AS asked (place, address_key, time_us)
        CROSS JOIN LATERAL (
            SELECT conversion_id, receive_time_us, decision, record, version FROM decisions
            WHERE address_key = asked.address_key AND conversion_time_us > asked.time_us
            ORDER BY conversion_time_us DESC LIMIT $9
        ) AS found
        ORDER BY version
        """,
        *columns(
            ((each.place, each.lane, each.app_id, id_, each.time_us) for each in asked for id_ in each.device_ids), 5
        ),
        *columns(((each.place, key, each.time_us) for each in asked for key in each.address_keys), 3),
        limit,
    )
    return [LaterDecision(*row[:5]) for row in rows]
