"""Every query on the schema `ingest`."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import asyncpg

from libs.db import ASKED_TO_RETRY, CONNECTION_LOST, Connection, Pool, in_transaction
from libs.errors import Unavailable
from services.ingest.model import DAY_S, REPEAT_WINDOW_S, Entry, LogPage, LogRow, Outcome, Refusal

_AWAY = (
    *CONNECTION_LOST,
    *ASKED_TO_RETRY,
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,  # a connection or pool that is closed already
    asyncpg.InsufficientResourcesError,
    asyncpg.OperatorInterventionError,
    asyncpg.ReadOnlySQLTransactionError,  # of a standby that is not yet promoted
)

PAGE_BYTES = 8_000_000
"""Of records read from the database at once, give or take one."""

# An array each way, so that a statement costs the same to send whatever the number of rows.
_CLAIM = """
INSERT INTO dedupe AS known (key, first_time_s)
SELECT * FROM unnest($1::bytea[], $2::integer[])
ON CONFLICT (key) DO UPDATE SET first_time_s = EXCLUDED.first_time_s
    WHERE known.first_time_s <= EXCLUDED.first_time_s - $3::integer -- not a repeat any more
RETURNING key
"""
_FIRST_TIMES = "SELECT key, first_time_s FROM dedupe WHERE key = ANY($1::bytea[])"

_LOCK_LANES = """
SELECT locked.lane, locked.next_position, locked.last_receive_time_us,
    (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS clock_us
-- In the order of lanes, or writers would deadlock.
FROM (SELECT * FROM lanes WHERE lane = ANY($1::smallint[]) ORDER BY lane FOR UPDATE) AS locked
"""
_LOG_COLUMNS = ("lane", "position", "app_lane", "is_engagement", "receive_time_us", "record")
_ADVANCE_LANES = """
UPDATE lanes SET next_position = ends.next_position, last_receive_time_us = $3
FROM unnest($1::smallint[], $2::bigint[]) AS ends (lane, next_position)
WHERE lanes.lane = ends.lane
"""

# One statement, so one snapshot: nothing is below an entry of the page that is not below the heads, too. The first row
# holds the heads and where to go on; the others are the entries.
_PAGE = """
WITH head AS (
    SELECT lane, next_position FROM lanes
), span AS (
    SELECT lane, wanted.position AS start, LEAST(wanted.position + $3, next_position) AS stop, next_position
    FROM unnest($1::smallint[], $2::bigint[]) AS wanted (lane, position) JOIN head USING (lane)
    WHERE wanted.position < next_position
), horizon AS MATERIALIZED (
    -- Of lanes with more to come, the earliest entry of that (erased ones leave gaps): what other lanes received later
    -- has to wait.
    SELECT min((
        SELECT receive_time_us FROM log WHERE log.lane = span.lane AND log.position >= span.stop
        ORDER BY position LIMIT 1
    )) AS time_us
    FROM span WHERE stop < next_position
), part AS MATERIALIZED (
    SELECT lane, start, CASE WHEN horizon.time_us IS NULL THEN stop ELSE COALESCE((
        SELECT position FROM log
        WHERE log.lane = span.lane AND position >= start AND position < stop AND receive_time_us > horizon.time_us
        ORDER BY position LIMIT 1
    ), stop) END AS stop
    FROM span CROSS JOIN horizon
), entry AS (
    SELECT found.*, sum(octet_length(record)) OVER (ORDER BY receive_time_us, found.lane, position) AS bytes
    FROM part CROSS JOIN LATERAL (
        SELECT * FROM log
        WHERE log.lane = part.lane AND position >= part.start AND position < part.stop
            AND COALESCE(is_engagement = $4::boolean, true) -- asked for all, or the entry is both
            AND ($5::smallint[] IS NULL OR app_lane = ANY($5))
        ORDER BY position LIMIT $3 -- changes nothing, but keeps the planner from any other way than the primary key
    ) AS found
)
SELECT lane, position, app_lane, receive_time_us, record, NULL AS heads, NULL AS lanes, NULL AS stops
FROM entry WHERE bytes - octet_length(record) < $6
UNION ALL
SELECT NULL, NULL, NULL, NULL, NULL, (SELECT array_agg(next_position ORDER BY lane) FROM head),
    (SELECT array_agg(lane ORDER BY lane) FROM part), (SELECT array_agg(stop ORDER BY lane) FROM part)
ORDER BY receive_time_us NULLS FIRST, lane, position
"""

_FIRST_KEPT = """
SELECT wanted.lane, COALESCE((
    SELECT position FROM log WHERE log.lane = wanted.lane AND log.position >= wanted.position ORDER BY position LIMIT 1
), GREATEST(wanted.position, next_position)) AS position
FROM unnest($1::smallint[], $2::bigint[]) AS wanted (lane, position) JOIN lanes USING (lane)
"""

_REJECT = """
INSERT INTO rejected (app_id, reject_time_us, rejected_id, record_id, refusal)
SELECT * FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::text[], $5::bytea[])
ON CONFLICT DO NOTHING
"""
_LIST_REJECTED = """
SELECT app_id, reject_time_us, rejected_id, record_id, refusal FROM rejected
WHERE app_id = $1 AND (reject_time_us, rejected_id) < ($2, $3)
ORDER BY reject_time_us DESC, rejected_id DESC LIMIT $4
"""

_REFUSALS_OF = """
SELECT refusal FROM rejected WHERE app_id = $1 AND record_id = $2 ORDER BY reject_time_us DESC LIMIT $3
"""

# Receipt never falls within a lane, so halving finds where a time begins, whatever holes there are. From there on
# entries are looked into: the id as the record would hold it is a hint, as its bytes may stand elsewhere in another.
_FIND_RECORDS = """
WITH RECURSIVE search AS (
    SELECT lane, 0::bigint AS low, next_position AS high FROM lanes
    UNION ALL
    SELECT lane, CASE WHEN is_earlier THEN middle + 1 ELSE low END, CASE WHEN is_earlier THEN high ELSE middle END
    FROM (
        SELECT lane, low, high, (low + high) / 2 AS middle, COALESCE((
            SELECT receive_time_us < $1 FROM log
            WHERE log.lane = search.lane AND log.position >= (low + high) / 2 ORDER BY log.position LIMIT 1
        ), false) AS is_earlier
        FROM search WHERE low < high
    ) AS step
)
SELECT found.lane, found.position, found.app_lane, found.receive_time_us, found.record
FROM search CROSS JOIN LATERAL (
    SELECT * FROM log
    WHERE log.lane = search.lane AND log.position >= low AND log.position < low + $5
        AND receive_time_us < $2 AND app_lane = $3 AND position($4::bytea IN record) > 0
    ORDER BY log.position LIMIT $5
) AS found
WHERE low >= high
ORDER BY found.receive_time_us, found.lane
"""

_READ_LANE = """
SELECT lane, position, app_lane, receive_time_us, record FROM log
WHERE lane = $1 AND position >= $2 AND position < $3 AND app_lane = $4
ORDER BY position
"""
_ERASE_KEYS = """
WITH found AS MATERIALIZED (
    SELECT key FROM unnest($1::bytea[], $2::bytea[], $3::integer[]) AS erased (first_key, last_key, accept_time_s)
    CROSS JOIN LATERAL (
        SELECT key FROM dedupe
        WHERE key BETWEEN first_key AND last_key
            AND first_time_s < accept_time_s + $4::integer -- else a later record's, accepted when this was forgotten
        ORDER BY key LIMIT 10 -- more than there ever are: keeps the planner to the primary key
    ) AS one
), locked AS MATERIALIZED (
    -- In the order in which writers do, or they deadlock.
    SELECT key FROM dedupe WHERE key IN (SELECT key FROM found) ORDER BY key FOR UPDATE
)
DELETE FROM dedupe WHERE key IN (SELECT key FROM locked)
"""
_ERASE_REJECTED = """
DELETE FROM rejected WHERE app_id = $1 AND (reject_time_us, rejected_id) IN (
    SELECT * FROM unnest($2::bigint[], $3::bigint[])
)
"""

_PURGE_LOG = """
DELETE FROM log WHERE lane = $1 AND position IN (
    -- Receipt never falls within a lane: the lowest positions are the oldest, no index on the time is needed.
    SELECT position FROM (
        SELECT position, receive_time_us FROM log WHERE lane = $1 ORDER BY position LIMIT $3
    ) AS lowest
    WHERE receive_time_us < $2
)
"""
_PURGE_DEDUPE = """
DELETE FROM dedupe WHERE key IN (SELECT key FROM dedupe WHERE first_time_s < $1 LIMIT $2)
"""
_PURGE_REJECTED = """
DELETE FROM rejected WHERE (app_id, reject_time_us, rejected_id) IN (
    SELECT app_id, reject_time_us, rejected_id FROM rejected
    WHERE reject_time_us < $1 ORDER BY reject_time_us LIMIT $2
)
"""


class Store:
    """The record log, what recognises repeats, and refused records.

    Whatever keeps the database from answering, callers get `Unavailable` `LOG_UNAVAILABLE`.
    """

    def __init__(self, pool: Pool, *, retry_s: float = 3.0) -> None:
        self._pool, self._retry_s = pool, retry_s

    async def append(self, entries: Sequence[Entry]) -> list[Outcome]:
        """Durably put entries at the ends of their lanes in the order given, repeats left out; one outcome an entry.

        A lost connection is tried again for `retry_s` seconds: what an earlier try committed is a repeat to the next.
        """
        with _unavailable():
            return await in_transaction(
                self._pool, lambda connection: _append(connection, entries), retry_seconds=self._retry_s
            )

    async def read_page(
        self,
        positions: Mapping[int, int],
        *,
        span: int,
        engagements: bool | None = None,
        app_lanes: Sequence[int] | None = None,
    ) -> LogPage:
        """One look at the log, from these positions (by lane) on: `span` positions a lane, about `PAGE_BYTES` in all.

        `engagements` None means all kinds, `app_lanes` None all apps. Lanes cut short hold back what others received
        later, so page by page all comes in the order of receipt; only what was being written during a page may come
        on a later one with an earlier time.
        """
        with _unavailable():
            summary, *found = await self._pool.fetch(
                _PAGE, list(positions), list(positions.values()), span, engagements, app_lanes, PAGE_BYTES
            )
        rows = [LogRow(row[0], row[1], row[2], row[3], row[4]) for row in found]
        next_positions = dict(positions)
        if sum(len(row.record) for row in rows) < PAGE_BYTES:
            next_positions.update(zip(summary["lanes"] or (), summary["stops"] or (), strict=True))
        else:
            # Cut by its size: what was left out comes next, whichever its lane.
            next_positions.update((row.lane, row.position + 1) for row in rows)
        return LogPage(rows=rows, next_positions=next_positions, heads=summary["heads"])

    async def first_kept(self, positions: Mapping[int, int]) -> dict[int, int]:
        """The same places in the log (position by lane), but past what has been purged."""
        with _unavailable():
            rows = await self._pool.fetch(_FIRST_KEPT, list(positions), list(positions.values()))
        return {row["lane"]: row["position"] for row in rows}

    async def reject(self, refusals: Sequence[Refusal]) -> None:
        """Keep refusals."""
        with _unavailable():
            await self._pool.execute(_REJECT, *(list(column) for column in zip(*refusals, strict=True)))

    async def list_rejected(self, app_id: str, *, before: tuple[int, int], size: int) -> list[Refusal]:
        """Up to `size` refusals of an app that sort before (reject_time_us, rejected_id), newest first."""
        with _unavailable():
            rows = await self._pool.fetch(_LIST_REJECTED, app_id, *before, size)
        return [Refusal(*row) for row in rows]

    async def refusals_of(self, app_id: str, record_id: str, *, size: int) -> list[bytes]:
        """The newest refusals of a record, each a serialised RejectedRecord, newest first."""
        with _unavailable():
            rows = await self._pool.fetch(_REFUSALS_OF, app_id, record_id, size)
        return [row["refusal"] for row in rows]

    async def accept_time_s(self, key: bytes) -> int | None:
        """When the record with this key was accepted first, in the last 7 days."""
        with _unavailable():
            found: int | None = await self._pool.fetchval("SELECT first_time_s FROM dedupe WHERE key = $1", key)
        return found

    async def find_records(
        self, app_lane: int, part: bytes, *, since_us: int, until_us: int, most: int
    ) -> list[LogRow]:
        """Entries that hold these bytes, of apps with this lane, earliest first.

        Looked into are those received from `since_us` on and before `until_us`, `most` positions a lane.
        """
        with _unavailable():
            rows = await self._pool.fetch(_FIND_RECORDS, since_us, until_us, app_lane, part, most)
        return [LogRow(row[0], row[1], row[2], row[3], row[4]) for row in rows]

    async def read_lane(self, lane: int, *, start: int, stop: int, app_lane: int) -> list[LogRow]:
        """The entries of a lane from one position up to another, of apps with this app lane."""
        with _unavailable():
            rows = await self._pool.fetch(_READ_LANE, lane, start, stop, app_lane)
        return [LogRow(*row) for row in rows]

    async def erase_entries(
        self, lane: int, positions: Sequence[int], keys: Sequence[tuple[bytes, bytes, int]]
    ) -> tuple[int, int]:
        """Delete entries of a lane, at least one, and what their repeats are recognised by; returns how many of each.

        `keys`: ranges of keys, each with the second its record was received in.
        """

        async def work(connection: Connection) -> tuple[int, int]:
            first, last, times = (list(column) for column in zip(*keys, strict=True))
            forgotten = await connection.execute(_ERASE_KEYS, first, last, times, DAY_S)
            erased = await connection.execute("DELETE FROM log WHERE lane = $1 AND position = ANY($2)", lane, positions)
            return _count(erased), _count(forgotten)

        with _unavailable():
            return await in_transaction(self._pool, work, retry_seconds=self._retry_s)

    async def erase_rejected(self, app_id: str, refusals: Sequence[Refusal]) -> int:
        """Delete refusals of an app; returns how many."""
        times, ids = [each.reject_time_us for each in refusals], [each.rejected_id for each in refusals]
        with _unavailable():
            return _count(await self._pool.execute(_ERASE_REJECTED, app_id, times, ids))

    async def purge_log(self, lane: int, *, before_us: int, size: int) -> int:
        """Delete up to `size` entries of a lane that were received before then; returns how many."""
        return _count(await self._pool.execute(_PURGE_LOG, lane, before_us, size))

    async def purge_dedupe(self, *, before_s: int, size: int) -> int:
        """Forget up to `size` keys of records accepted before then; returns how many."""
        return _count(await self._pool.execute(_PURGE_DEDUPE, before_s, size))

    async def purge_rejected(self, *, before_us: int, size: int) -> int:
        """Delete up to `size` refusals older than that; returns how many."""
        return _count(await self._pool.execute(_PURGE_REJECTED, before_us, size))


async def _append(connection: Connection, entries: Sequence[Entry]) -> list[Outcome]:
    first = {entry.key: entry for entry in reversed(entries)}
    known = await _claim(connection, first)
    if not known and len(first) == len(entries):
        await _write(connection, entries)
        return [Outcome(False, entry.record_id) for entry in entries]
    accepted = [entry for entry in entries if first[entry.key] is entry and entry.key not in known]
    if accepted:
        await _write(connection, accepted)
    outcomes = []
    for entry in entries:
        original = first[entry.key]
        first_time_s = known.get(entry.key, original.accept_time_s)
        is_repeat = entry.key in known or original is not entry
        outcomes.append(Outcome(is_repeat, entry.first_record_id(first_time_s)))
    return outcomes


async def _claim(connection: Connection, entries: Mapping[bytes, Entry]) -> dict[bytes, int]:
    """Of the entries that are repeats, when they were accepted first. Keeps other writers from the keys of the rest."""
    keys = sorted(entries)  # in one order everywhere, or writers would deadlock
    times = [entries[key].accept_time_s for key in keys]
    new = await connection.fetch(_CLAIM, keys, times, REPEAT_WINDOW_S)
    if len(new) == len(keys):
        return {}
    claimed = {row[0] for row in new}
    # A statement of its own: it must see what was committed while the insert waited.
    known = await connection.fetch(_FIRST_TIMES, [key for key in keys if key not in claimed])
    return {row[0]: row[1] for row in known}


async def _write(connection: Connection, entries: Sequence[Entry]) -> None:
    lanes = [entry.lane for entry in entries]
    locked = await connection.fetch(_LOCK_LANES, sorted(set(lanes)))
    # The last clock was read when all lanes were locked. A microsecond each, up to now, keeps the order of the entries
    # across lanes, too; a clock that was set back waits for the lanes' last time.
    latest_us = max(row["last_receive_time_us"] for row in locked)
    first_us = max(locked[-1]["clock_us"] - len(entries), latest_us) + 1
    ends = {row["lane"]: row["next_position"] for row in locked}
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
    await connection.execute(_ADVANCE_LANES, list(ends), list(ends.values()), first_us + len(entries) - 1)


@contextlib.contextmanager
def _unavailable() -> Iterator[None]:
    try:
        yield
    except _AWAY as error:
        raise Unavailable("LOG_UNAVAILABLE", "the log cannot be reached, try again", retry_after_s=1.0) from error


def _count(tag: str) -> int:
    return int(tag.rpartition(" ")[2])
