"""The tables of engagements: under their match keys, under their networks' click ids, and what to look for."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

from libs.db import Connection, Pool, columns, in_statements
from libs.parts import PART_BYTES
from libs.periods import Periods
from services.attribution.decision.model import Engagement, EngagementKind, UserAgent, Visitor
from services.attribution.storage import late_arrivals
from services.attribution.storage.hashed_ids import HashedId, HashedKind, insert_hashed_ids, note_hashed_kinds
from services.attribution.storage.late_arrivals import LateArrival


class EngagementRow(NamedTuple):
    """An engagement under one of its match keys, as the table's columns. `record` only under its own key."""

    match_key: bytes
    time_us: int
    engagement_id: str
    lane: int
    position: int
    receive_time_us: int
    is_click: bool
    is_ping: bool
    tracker_id: str
    device_keys: bytes
    ip: str
    user_agent: str | None
    click_id: str
    completed_view: bool
    is_valid: bool
    visitor: int
    country: str
    record: bytes | None
    retention_days: int


class NetworkClick(NamedTuple):
    """A person's click under its network's own id."""

    click_key: bytes
    time_us: int
    engagement_id: str
    receive_time_us: int
    retention_days: int


class IndexRows(NamedTuple):
    """The rows that a batch of engagements adds to the tables."""

    engagements: list[EngagementRow]
    network_clicks: list[NetworkClick]
    hashed_ids: list[HashedId]
    hashed_kinds: set[HashedKind]
    retentions: set[tuple[str, int]]
    late: list[LateArrival]


class AskedKey(NamedTuple):
    """A match key under which a conversion looks for engagements, at most so far away from its time.

    `conversion` is a number the caller gives it. Engagements received after `until_us` do not count.
    """

    match_key: bytes
    time_us: int
    app_id: str
    conversion: int
    until_us: int


class FoundEngagement(NamedTuple):
    """An engagement, and the number of the conversion that it was found for."""

    conversion: int
    engagement: Engagement


class Found(NamedTuple):
    """The engagements, each once a conversion; and by the place of a key that holds more how far it reaches."""

    engagements: list[FoundEngagement]
    reached_us: dict[int, int]


class EngagementIndex:
    """The index of engagements, each stored where it is looked for."""

    def __init__(self, pool: Pool) -> None:
        self._pool, self._periods = pool, Periods(pool)
        self._noted: set[tuple[str, int]] = set()

    async def insert(self, connection: Connection, rows: IndexRows) -> None:
        """Stores engagements. One that is there already stays as it is: its id was used before."""
        # Both over a connection of their own: who looks for an engagement knows where before it can be seen.
        if not self._noted.issuperset(rows.retentions):
            await note_retentions(self._pool, rows.retentions)
            self._noted.update(rows.retentions)
        await self._periods.ensure((row.time_us, row.retention_days) for row in rows.engagements)
        await insert_engagements(connection, rows.engagements)
        await insert_network_clicks(connection, rows.network_clicks)
        await insert_hashed_ids(connection, rows.hashed_ids)
        await note_hashed_kinds(connection, rows.hashed_kinds, is_on_conversions=False)
        if rows.late:
            await late_arrivals.insert(connection, rows.late)


async def note_retentions(pool: Pool, retentions: Collection[tuple[str, int]]) -> None:
    """Notes for how long engagements of apps are kept (app id, days)."""
    await pool.execute(
        """
        INSERT INTO retentions AS kept (app_id, least_days, most_days)
        SELECT app_id, min(days), max(days) FROM unnest($1::text[], $2::smallint[]) AS new (app_id, days)
        GROUP BY app_id
        ORDER BY app_id -- locked in this order by all
        ON CONFLICT (app_id) DO UPDATE SET
            least_days = LEAST(kept.least_days, excluded.least_days),
            most_days = GREATEST(kept.most_days, excluded.most_days)
        """,
        *columns(retentions, 2),
    )


async def insert_engagements(connection: Connection, rows: Collection[EngagementRow]) -> None:
    """Stores engagements under their match keys; there must be partitions for them."""
    for some in in_statements(rows):
        await connection.execute(
            """
            INSERT INTO engagements (
                match_key, time_us, engagement_id, lane, position, receive_time_us, is_click, is_ping, tracker_id,
                device_keys, ip, user_agent, click_id, completed_view, is_valid, visitor, country, record,
                retention_days
            )
            SELECT * FROM unnest(
                $1::bytea[], $2::bigint[], $3::text[], $4::smallint[], $5::bigint[], $6::bigint[], $7::boolean[],
                $8::boolean[], $9::text[], $10::bytea[], $11::text[], $12::text[], $13::text[], $14::boolean[],
                $15::boolean[], $16::smallint[], $17::text[], $18::bytea[], $19::smallint[]
            )
            ON CONFLICT DO NOTHING
            """,
            *columns(some, len(EngagementRow._fields)),
        )


async def insert_network_clicks(connection: Connection, rows: Collection[NetworkClick]) -> None:
    """Stores clicks under their networks' own ids; there must be partitions for them."""
    if not rows:
        return
    await connection.execute(
        """
        INSERT INTO network_clicks (click_key, time_us, engagement_id, receive_time_us, retention_days)
        SELECT * FROM unnest($1::bytea[], $2::bigint[], $3::text[], $4::bigint[], $5::smallint[])
        ON CONFLICT DO NOTHING
        """,
        *columns(rows, len(NetworkClick._fields)),
    )


async def find_engagements(connection: Connection, asked: Sequence[AskedKey], *, span_us: int, limit: int) -> Found:
    """Returns engagements under each key asked, at least one.

    At most `limit` on either side of the time, those nearest to it, none further away than `span_us`.
    """
    rows = await connection.fetch(
        """
        SELECT asked.place - 1, found.*
        FROM unnest($1::bytea[], $2::bigint[], $3::bigint[], $4::text[])
            WITH ORDINALITY AS asked (match_key, time_us, until_us, app_id, place)
        JOIN retentions USING (app_id)
        CROSS JOIN LATERAL (
            (
                SELECT engagement_id, is_click, tracker_id, time_us, receive_time_us, is_ping, device_keys, ip,
                       user_agent, click_id, completed_view, is_valid, visitor, country
                FROM engagements
                WHERE match_key = asked.match_key
                  AND time_us >= asked.time_us - $5 AND time_us < asked.time_us
                  AND retention_days BETWEEN least_days AND most_days
                  AND receive_time_us <= asked.until_us
                ORDER BY time_us DESC, engagement_id DESC LIMIT $6
            )
            UNION ALL
            (
                SELECT engagement_id, is_click, tracker_id, time_us, receive_time_us, is_ping, device_keys, ip,
                       user_agent, click_id, completed_view, is_valid, visitor, country
                FROM engagements
                WHERE match_key = asked.match_key
                  AND time_us >= asked.time_us AND time_us <= asked.time_us + $5
                  AND retention_days BETWEEN least_days AND most_days
                  AND receive_time_us <= asked.until_us
                ORDER BY time_us, engagement_id LIMIT $6
            )
        ) AS found
        """,
        [key.match_key for key in asked],
        [key.time_us for key in asked],
        [key.until_us for key in asked],
        [key.app_id for key in asked],
        span_us,
        limit,
    )
    earlier: dict[int, list[int]] = {}
    for row in rows:
        if row[4] < asked[row[0]].time_us:
            earlier.setdefault(row[0], []).append(row[4])
    return Found(
        _once_a_conversion(rows, asked),
        {place: min(times) for place, times in earlier.items() if len(times) == limit},
    )


async def find_used_keys(connection: Connection, asked: Iterable[AskedKey], *, span_us: int) -> set[bytes]:
    """Returns those of the keys asked that hold an engagement at all, no further than `span_us` from what asks."""
    spans: dict[tuple[bytes, str], tuple[int, int]] = {}
    for key in asked:
        first_us, last_us = spans.get(each := (key.match_key, key.app_id), (key.time_us, key.time_us))
        spans[each] = min(first_us, key.time_us), max(last_us, key.time_us)
    used: set[bytes] = set()
    for some in in_statements((*each, *span) for each, span in spans.items()):
        rows = await connection.fetch(
            """
            SELECT asked.match_key
            FROM unnest($1::bytea[], $2::text[], $3::bigint[], $4::bigint[])
                AS asked (match_key, app_id, first_us, last_us)
            JOIN retentions USING (app_id)
            CROSS JOIN LATERAL (
                SELECT FROM engagements
                WHERE match_key = asked.match_key
                  AND time_us >= asked.first_us - $5 AND time_us <= asked.last_us + $5
                  AND retention_days BETWEEN least_days AND most_days
                LIMIT 1
            ) AS found
            """,
            *columns(some, 4),
            span_us,
        )
        used.update(row["match_key"] for row in rows)
    return used


async def find_further(
    connection: Connection,
    asked: Sequence[AskedKey],
    user_agents: Sequence[str],
    tracker_ids: Sequence[Collection[str]],
    *,
    span_us: int,
    limit: int,
    through: int,
) -> list[FoundEngagement]:
    """Returns, of the `through` nearest earlier engagements under each key asked, the `limit` likeliest to win.

    That is clicks, then those whose user agent begins as the one asked with its key, then the nearest. Only valid
    ones that a person made, on the trackers asked with its key.
    """
    lists: dict[frozenset[str], int] = {}
    places = [lists.setdefault(frozenset(ids), len(lists) + 1) for ids in tracker_ids]
    rows = await connection.fetch(
        """
        SELECT asked.place - 1, found.*
        FROM unnest($1::bytea[], $2::bigint[], $3::bigint[], $4::text[], $5::integer[])
            WITH ORDINALITY AS asked (match_key, time_us, until_us, user_agent, trackers, place)
        CROSS JOIN LATERAL (
            SELECT string_to_array(($6::text[])[asked.trackers], E'\n') AS ids OFFSET 0 -- taken apart once a key
        ) AS trackers
        CROSS JOIN LATERAL (
            SELECT engagement_id, is_click, tracker_id, time_us, receive_time_us, is_ping, device_keys, ip, user_agent,
                   click_id, completed_view, is_valid, visitor, country
            FROM (
                SELECT * FROM engagements
                WHERE match_key = asked.match_key
                  AND time_us >= asked.time_us - $7 AND time_us < asked.time_us
                  AND receive_time_us <= asked.until_us
                ORDER BY time_us DESC, engagement_id DESC LIMIT $8 -- whatever lies behind a key, this is the cost
            ) AS nearest
            WHERE is_valid AND visitor = 0 AND tracker_id = ANY(trackers.ids)
            ORDER BY is_click DESC, starts_with(COALESCE(user_agent, ''), asked.user_agent) DESC, time_us DESC
            LIMIT $9
        ) AS found
        """,
        [key.match_key for key in asked],
        [key.time_us for key in asked],
        [key.until_us for key in asked],
        list(user_agents),
        places,
        ["\n".join(ids) for ids in lists],
        span_us,
        through,
        limit,
    )
    return _once_a_conversion(rows, asked)


async def find_pings(
    connection: Connection,
    match_keys: Collection[bytes],
    app_id: str,
    *,
    time_us: int,
    receive_time_us: int,
    until_us: int,
    span_us: int,
    through: int,
    limit: int,
) -> list[Engagement]:
    """Returns the server pings under these keys that are dated before a time and were received after another.

    That is of each key the nearest `limit`, among the `through` engagements nearest before the time, none further away
    than `span_us`. Those received after `until_us` do not count. One under several keys is returned several times.
    """
    rows = await connection.fetch(
        """
        SELECT found.*
        FROM unnest($1::bytea[]) AS asked (match_key)
        JOIN retentions ON retentions.app_id = $2
        CROSS JOIN LATERAL (
            SELECT engagement_id, is_click, tracker_id, time_us, receive_time_us, is_ping, device_keys, ip, user_agent,
                   click_id, completed_view, is_valid, visitor, country
            FROM (
                SELECT * FROM engagements
                WHERE match_key = asked.match_key
                  AND time_us >= $3::bigint - $6 AND time_us < $3
                  AND retention_days BETWEEN least_days AND most_days
                ORDER BY time_us DESC, engagement_id DESC LIMIT $7 -- whatever lies behind a key, this is the cost
            ) AS nearest
            WHERE is_ping AND receive_time_us > $4 AND receive_time_us <= $5
            ORDER BY time_us DESC LIMIT $8
        ) AS found
        """,
        list(match_keys),
        app_id,
        time_us,
        receive_time_us,
        until_us,
        span_us,
        through,
        limit,
    )
    return [_engagement(*row) for row in rows]


async def find_repeats(
    connection: Connection, clicks: Collection[tuple[bytes, int, str, int]], *, within_us: int
) -> set[tuple[str, int]]:
    """Returns those of these clicks (click key, time, engagement id, until when) that repeat another: as (id, until).

    They follow it in less than `within_us`. Only clicks received until then count; of two at the same time the one
    with the higher id follows.
    """
    rows = await connection.fetch(
        """
        SELECT click.engagement_id, click.until_us
        FROM unnest($1::bytea[], $2::bigint[], $3::text[], $4::bigint[])
            AS click (click_key, time_us, engagement_id, until_us)
        CROSS JOIN LATERAL (
            SELECT FROM network_clicks AS earlier
            WHERE earlier.click_key = click.click_key
              AND earlier.time_us > click.time_us - $5
              AND earlier.time_us <= click.time_us -- said for the choice of partitions, too
              AND (earlier.time_us, earlier.engagement_id) < (click.time_us, click.engagement_id)
              AND earlier.receive_time_us <= click.until_us
            LIMIT 1
        ) AS found
        """,
        *columns(clicks, 4),
        within_us,
    )
    return {(row["engagement_id"], row["until_us"]) for row in rows}


async def find_repeating(
    connection: Connection, clicks: Collection[tuple[bytes, int, str]], *, within_us: int
) -> list[tuple[bytes, str]]:
    """Returns (click key, id) of the clicks that one of these (click key, time, id) makes repeats."""
    rows = await connection.fetch(
        """
        SELECT DISTINCT later.click_key, later.engagement_id
        FROM unnest($1::bytea[], $2::bigint[], $3::text[]) AS click (click_key, time_us, engagement_id)
        JOIN network_clicks AS later ON later.click_key = click.click_key
          AND later.time_us < click.time_us + $4
          AND later.time_us >= click.time_us -- said for the choice of partitions, too
          AND (later.time_us, later.engagement_id) > (click.time_us, click.engagement_id)
        """,
        *columns(clicks, 3),
        within_us,
    )
    return [(row["click_key"], row["engagement_id"]) for row in rows]


AskedRecord: TypeAlias = tuple[bytes, int, str]
"""The own key of an engagement, the time of what it won, and the app id."""


async def find_records(
    connection: Connection, asked: Collection[AskedRecord], *, span_us: int
) -> tuple[dict[bytes, bytes], set[AskedRecord]]:
    """Returns the records of engagements by own key, and those asked for that are to be asked for again.

    The records have about PART_BYTES together. What an engagement won came at most `span_us` after it, or before it by
    the clocks (B1).
    """
    rows = await connection.fetch(
        """
        SELECT match_key, CASE WHEN bytes - octet_length(record) < $5 THEN record END AS record
        FROM (
            SELECT asked.match_key, found.record,
                sum(octet_length(found.record)) OVER (ORDER BY asked.match_key, asked.time_us) AS bytes
            FROM unnest($1::bytea[], $2::bigint[], $3::text[]) AS asked (match_key, time_us, app_id)
            JOIN retentions USING (app_id)
            CROSS JOIN LATERAL (
                SELECT record FROM engagements
                WHERE match_key = asked.match_key AND record IS NOT NULL
                  AND time_us >= asked.time_us - $4 AND time_us <= asked.time_us + $4
                  AND retention_days BETWEEN least_days AND most_days
                LIMIT 1
            ) AS found
        ) AS sized
        """,
        *columns(asked, 3),
        span_us,
        PART_BYTES,
    )
    records = {row["match_key"]: row["record"] for row in rows if row["record"] is not None}
    left = {row["match_key"] for row in rows} - records.keys()
    return records, {each for each in asked if each[0] in left}


async def find_stored(connection: Connection, asked: Collection[AskedRecord]) -> set[bytes]:
    """Returns the own keys of those engagements that are stored; the times given are their own."""
    rows = await connection.fetch(
        """
        SELECT match_key
        FROM unnest($1::bytea[], $2::bigint[], $3::text[]) AS asked (match_key, time_us, app_id)
        JOIN retentions USING (app_id)
        WHERE EXISTS (
            SELECT FROM engagements
            WHERE match_key = asked.match_key AND record IS NOT NULL AND time_us = asked.time_us
              AND retention_days BETWEEN least_days AND most_days
            OFFSET 0 -- each is looked for by itself, in its own month
        )
        """,
        *columns(asked, 3),
    )
    return {row["match_key"] for row in rows}


def _once_a_conversion(rows: Iterable[Any], asked: Sequence[AskedKey]) -> list[FoundEngagement]:
    """Returns the engagements of rows that begin with the place of their key, each once a conversion."""
    first = {(asked[row[0]].conversion, row[1]): row for row in rows}
    return [FoundEngagement(conversion, _engagement(*row[1:])) for (conversion, _), row in first.items()]


def _engagement(
    engagement_id: str,
    is_click: bool,
    tracker_id: str,
    time_us: int,
    receive_time_us: int,
    is_ping: bool,
    device_keys: bytes,
    ip: str,
    user_agent: str | None,
    click_id: str,
    completed_view: bool,
    is_valid: bool,
    visitor: int,
    country: str,
) -> Engagement:
    return Engagement(
        engagement_id=engagement_id,
        kind=EngagementKind.CLICK if is_click else EngagementKind.IMPRESSION,
        tracker_id=tracker_id,
        time_us=time_us,
        receive_time_us=receive_time_us,
        is_ping=is_ping,
        device_keys=tuple(device_keys[at : at + 16] for at in range(0, len(device_keys), 16)),
        ip=ip,
        user_agent=None if user_agent is None else UserAgent(*user_agent.split("\t")),
        click_id=click_id,
        completed_view=completed_view,
        valid=is_valid,
        visitor=Visitor(visitor),
        country=country,
    )
