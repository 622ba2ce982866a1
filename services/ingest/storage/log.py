"""The tables `log` and `lanes`: the record log, and the end of each of its lanes."""

from collections.abc import Collection, Mapping, Sequence

from libs.db import Connection, Pool, rows_affected, transactions
from libs.domain.record_sizes import MAX_STORED_RECORD_BYTES
from services.ingest.model import Entry, LogPage, LogRow, Outcome
from services.ingest.storage import dedupe
from services.ingest.storage.failures import log_unavailable

PAGE_BYTES = 8_000_000
"""The bytes of records that one read takes from the database."""
_LOG_COLUMNS = ("lane", "position", "app_lane", "is_engagement", "receive_time_us", "record")


class LogStore:
    """The record log, with the keys that repeats are known by.

    While the database is away, callers get `Unavailable` `LOG_UNAVAILABLE`. A lost connection is tried again for
    `retry_s` seconds. One read takes about `page_bytes` of records from the database, give or take a record.
    """

    def __init__(self, pool: Pool, *, retry_s: float = 3.0, page_bytes: int = PAGE_BYTES) -> None:
        self._pool, self._retry_s, self._page_bytes = pool, retry_s, page_bytes

    async def append(self, entries: Sequence[Entry]) -> list[Outcome]:
        """Appends entries durably to their lanes in the order given, without repeats; returns one outcome an entry.

        It may be tried again: what an earlier try committed is a repeat to the next.
        """
        outcomes: list[Outcome] = []
        with log_unavailable():
            async for attempt in transactions(self._pool, retry_s=self._retry_s):
                async with attempt as connection:
                    outcomes = await _append(connection, entries)
        return outcomes

    async def read_page(
        self,
        positions: Mapping[int, int],
        *,
        span: int,
        engagements: bool | None = None,
        app_lanes: Sequence[int] | None = None,
    ) -> LogPage:
        """Reads the log once, from these positions (by lane) on: `span` positions a lane, `page_bytes` in all.

        `engagements` None means all kinds, `app_lanes` None all apps. A lane that is cut short holds back what others
        received later. So page by page all comes in the order of receipt, except that what was being written during a
        page may come on a later one with an earlier time. A record that is too large for readers is left in the
        database; its row comes all the same.
        """
        with log_unavailable():
            # One statement, so one snapshot: what lies below an entry of the page lies below the heads, too. The first
            # row holds the heads and where to go on; the others are the entries.
            summary, *found = await self._pool.fetch(
                """
                WITH head AS (
                    SELECT lane, next_position FROM lanes
                ), span AS (
                    SELECT lane, wanted.position AS start, LEAST(wanted.position + $3, next_position) AS stop,
                        next_position
                    FROM unnest($1::smallint[], $2::bigint[]) AS wanted (lane, position) JOIN head USING (lane)
                    WHERE wanted.position < next_position
                ), horizon AS MATERIALIZED (
                    -- The earliest entry that lanes with more to come leave for later (erased ones leave gaps). What
                    -- other lanes received after it has to wait.
                    SELECT min((
                        SELECT receive_time_us FROM log WHERE log.lane = span.lane AND log.position >= span.stop
                        ORDER BY position LIMIT 1
                    )) AS time_us
                    FROM span WHERE stop < next_position
                ), part AS MATERIALIZED (
                    SELECT lane, start, CASE WHEN horizon.time_us IS NULL THEN stop ELSE COALESCE((
                        SELECT position FROM log
                        WHERE log.lane = span.lane AND position >= start AND position < stop
                            AND receive_time_us > horizon.time_us
                        ORDER BY position LIMIT 1
                    ), stop) END AS stop
                    FROM span CROSS JOIN horizon
                ), entry AS (
                    SELECT found.*,
                        sum(CASE WHEN size <= $7 THEN size ELSE 0 END)
                            OVER (ORDER BY receive_time_us, found.lane, position) AS bytes
                    FROM part CROSS JOIN LATERAL (
                        SELECT lane, position, app_lane, receive_time_us, record, octet_length(record) AS size
                        FROM log
                        WHERE log.lane = part.lane AND position >= part.start AND position < part.stop
                            AND COALESCE(is_engagement = $4::boolean, true) -- asked for all, or the entry is both
                            AND ($5::smallint[] IS NULL OR app_lane = ANY($5))
                        ORDER BY position LIMIT $3 -- changes nothing: keeps the planner to the primary key
                    ) AS found
                )
                SELECT lane, position, app_lane, receive_time_us,
                    CASE WHEN size <= $7 THEN record ELSE '' END AS record,
                    CASE WHEN size <= $7 THEN 0 ELSE size END AS too_large_bytes,
                    NULL AS heads, NULL AS lanes, NULL AS stops
                FROM entry WHERE bytes - CASE WHEN size <= $7 THEN size ELSE 0 END < $6
                UNION ALL
                SELECT NULL, NULL, NULL, NULL, NULL, NULL, (SELECT array_agg(next_position ORDER BY lane) FROM head),
                    (SELECT array_agg(lane ORDER BY lane) FROM part), (SELECT array_agg(stop ORDER BY lane) FROM part)
                ORDER BY receive_time_us NULLS FIRST, lane, position
                """,
                list(positions),
                list(positions.values()),
                span,
                engagements,
                app_lanes,
                self._page_bytes,
                MAX_STORED_RECORD_BYTES,
            )
        rows = [LogRow(row[0], row[1], row[2], row[3], row[4], row[5]) for row in found]
        next_positions = dict(positions)
        if sum(len(row.record) for row in rows) < self._page_bytes:
            next_positions.update(zip(summary["lanes"] or (), summary["stops"] or (), strict=True))
        else:
            # Cut by its size: what was left out comes next, whichever its lane.
            next_positions.update((row.lane, row.position + 1) for row in rows)
        return LogPage(rows=rows, next_positions=next_positions, heads=summary["heads"])

    async def first_kept(self, positions: Mapping[int, int]) -> dict[int, int]:
        """Returns the same places in the log (position by lane), but past what has been purged."""
        with log_unavailable():
            rows = await self._pool.fetch(
                """
                SELECT wanted.lane, COALESCE((
                    SELECT position FROM log
                    WHERE log.lane = wanted.lane AND log.position >= wanted.position
                    ORDER BY position LIMIT 1
                ), GREATEST(wanted.position, next_position)) AS position
                FROM unnest($1::smallint[], $2::bigint[]) AS wanted (lane, position) JOIN lanes USING (lane)
                """,
                list(positions),
                list(positions.values()),
            )
        return {row["lane"]: row["position"] for row in rows}

    async def accept_time_us(self, key: bytes) -> int | None:
        """Returns when the record with this key was accepted first, in the last 7 days."""
        with log_unavailable():
            return await dedupe.accept_time_us(self._pool, key)

    async def find_records(
        self, app_lane: int, part: bytes, *, since_us: int, until_us: int, max_entries: int
    ) -> list[LogRow]:
        """Returns entries that hold these bytes, of apps with this lane, earliest first.

        Looks into those received from `since_us` on and before `until_us`, up to `max_entries` a lane. Returns about
        `page_bytes` of them, and none that is too large for readers.
        """
        with log_unavailable():
            # Receipt never falls within a lane, so halving finds where a time begins, whatever holes there are. From
            # there on, entries are looked into: the bytes of an id are a hint, as another record may hold them too.
            rows = await self._pool.fetch(
                """
                WITH RECURSIVE search AS (
                    SELECT lane, 0::bigint AS low, next_position AS high FROM lanes
                    UNION ALL
                    SELECT lane, CASE WHEN is_earlier THEN middle + 1 ELSE low END,
                        CASE WHEN is_earlier THEN high ELSE middle END
                    FROM (
                        SELECT lane, low, high, (low + high) / 2 AS middle, COALESCE((
                            SELECT receive_time_us < $1 FROM log
                            WHERE log.lane = search.lane AND log.position >= (low + high) / 2
                            ORDER BY log.position LIMIT 1
                        ), false) AS is_earlier
                        FROM search WHERE low < high
                    ) AS step
                )
                SELECT lane, position, app_lane, receive_time_us, record
                FROM (
                    SELECT found.*,
                        sum(octet_length(record)) OVER (ORDER BY receive_time_us, found.lane, position) AS bytes
                    FROM search CROSS JOIN LATERAL (
                        SELECT lane, position, app_lane, receive_time_us, record FROM log
                        WHERE log.lane = search.lane AND log.position >= low AND log.position < low + $5
                            AND receive_time_us < $2 AND app_lane = $3
                            AND octet_length(record) <= $7 AND position($4::bytea IN record) > 0
                        ORDER BY log.position LIMIT $5
                    ) AS found
                    WHERE low >= high
                ) AS entry
                WHERE bytes - octet_length(record) < $6
                ORDER BY receive_time_us, lane
                """,
                since_us,
                until_us,
                app_lane,
                part,
                max_entries,
                self._page_bytes,
                MAX_STORED_RECORD_BYTES,
            )
        return [LogRow(*row) for row in rows]

    async def kept(self, lanes: Collection[int]) -> dict[int, range]:
        """Returns by lane the positions from that of the first entry which is kept to the end."""
        with log_unavailable():
            rows = await self._pool.fetch(
                """
                SELECT lane, next_position, COALESCE((
                    SELECT position FROM log WHERE log.lane = lanes.lane ORDER BY position LIMIT 1
                ), next_position) AS start
                FROM lanes WHERE lane = ANY($1::smallint[])
                """,
                list(lanes),
            )
        return {row["lane"]: range(row["start"], row["next_position"]) for row in rows}

    async def read_lane(self, lane: int, positions: range, *, app_lane: int) -> tuple[list[LogRow], int]:
        """Returns the entries at these positions of a lane, of apps with this app lane, and the position to go on at.

        About `page_bytes` of them, records that are too large for readers among them.
        """
        with log_unavailable():
            rows = await self._pool.fetch(
                """
                SELECT lane, position, app_lane, receive_time_us, record
                FROM (
                    SELECT lane, position, app_lane, receive_time_us, record,
                        sum(octet_length(record)) OVER (ORDER BY position) AS bytes
                    FROM log WHERE lane = $1 AND position >= $2 AND position < $3 AND app_lane = $4
                ) AS entry
                WHERE bytes - octet_length(record) < $5
                ORDER BY position
                """,
                lane,
                positions.start,
                positions.stop,
                app_lane,
                self._page_bytes,
            )
        found = [LogRow(*row) for row in rows]
        is_cut = sum(len(row.record) for row in found) >= self._page_bytes
        return found, found[-1].position + 1 if is_cut else positions.stop

    async def erase(
        self, lane: int, positions: Sequence[int], keys: Sequence[tuple[bytes, bytes, int]]
    ) -> tuple[int, int]:
        """Deletes entries of a lane, and the keys that their repeats are known by; returns how many of each.

        `keys` are ranges: the first and the last key, and when the record was received, in microseconds.
        """
        erased = forgotten = 0
        with log_unavailable():
            async for attempt in transactions(self._pool, retry_s=self._retry_s):
                async with attempt as connection:
                    forgotten = await dedupe.forget_keys(connection, keys)
                    erased = await _delete_entries(connection, lane, positions)
        return erased, forgotten

    async def purge(self, lane: int, *, before_us: int, size: int) -> int:
        """Deletes up to `size` entries of a lane that were received before then, and returns how many."""
        tag = await self._pool.execute(
            """
            DELETE FROM log WHERE lane = $1 AND position IN (
                -- Receipt never falls within a lane: the lowest positions are the oldest, and need no index on time.
                SELECT position FROM (
                    SELECT position, receive_time_us FROM log WHERE lane = $1 ORDER BY position LIMIT $3
                ) AS lowest
                WHERE receive_time_us < $2
            )
            """,
            lane,
            before_us,
            size,
        )
        return rows_affected(tag)

    async def purge_keys(self, *, before_us: int, size: int) -> int:
        """Deletes up to `size` keys of records that were accepted before then, and returns how many."""
        return await dedupe.purge(self._pool, before_us=before_us, size=size)


async def _append(connection: Connection, entries: Sequence[Entry]) -> list[Outcome]:
    first = {entry.key: entry for entry in reversed(entries)}
    known = await dedupe.take_keys(connection, first)
    if not known and len(first) == len(entries):
        await _write(connection, entries)
        return [Outcome(False, entry.record_id) for entry in entries]
    accepted = [entry for entry in entries if first[entry.key] is entry and entry.key not in known]
    if accepted:
        await _write(connection, accepted)
    outcomes = []
    for entry in entries:
        original = first[entry.key]
        first_time_us, meaning = known.get(entry.key, (original.accept_time_us, original.meaning))
        is_repeat = entry.key in known or original is not entry
        outcomes.append(Outcome(is_repeat, entry.first_record_id(first_time_us), reused=meaning != entry.meaning))
    return outcomes


async def _write(connection: Connection, entries: Sequence[Entry]) -> None:
    lanes = [entry.lane for entry in entries]
    locked = await _lock_lanes(connection, sorted(set(lanes)))
    # The last clock was read when all lanes were locked. A microsecond each, up to now, keeps the order of the entries
    # across lanes, too; a clock that was set back waits for the lanes' last time.
    latest_us = max(last_time_us for _, _, last_time_us, _ in locked)
    first_us = max(locked[-1][3] - len(entries), latest_us) + 1
    ends = {lane: next_position for lane, next_position, _, _ in locked}
    positions = []
    for lane in lanes:
        positions.append(ends[lane])
        ends[lane] += 1
    rows = [
        (entry.lane, position, entry.app_lane, entry.is_engagement, time_us, entry.record)
        for time_us, (position, entry) in enumerate(zip(positions, entries, strict=True), first_us)
    ]
    # COPY: half the time of INSERT .. SELECT unnest.
    await connection.copy_records_to_table("log", columns=_LOG_COLUMNS, records=rows)
    await _advance_lanes(connection, ends, first_us + len(entries) - 1)


async def _lock_lanes(connection: Connection, lanes: Sequence[int]) -> list[tuple[int, int, int, int]]:
    """Locks lanes; returns of each the lane, its end, its last time of receipt, and the clock when it was locked."""
    rows = await connection.fetch(
        """
        SELECT locked.lane, locked.next_position, locked.last_receive_time_us,
            (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS clock_us
        FROM (
            SELECT lane, next_position, last_receive_time_us FROM lanes
            WHERE lane = ANY($1::smallint[])
            ORDER BY lane FOR UPDATE -- in one order everywhere, or writers would deadlock
        ) AS locked
        """,
        lanes,
    )
    return [(row[0], row[1], row[2], row[3]) for row in rows]


async def _advance_lanes(connection: Connection, ends: Mapping[int, int], last_time_us: int) -> None:
    await connection.execute(
        """
        UPDATE lanes SET next_position = ends.next_position, last_receive_time_us = $3
        FROM unnest($1::smallint[], $2::bigint[]) AS ends (lane, next_position)
        WHERE lanes.lane = ends.lane
        """,
        list(ends),
        list(ends.values()),
        last_time_us,
    )


async def _delete_entries(connection: Connection, lane: int, positions: Sequence[int]) -> int:
    tag = await connection.execute(
        """
        DELETE FROM log WHERE lane = $1 AND position = ANY($2::bigint[])
        """,
        lane,
        positions,
    )
    return rows_affected(tag)
