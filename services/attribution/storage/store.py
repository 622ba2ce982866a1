"""Every query on the attribution schema."""

import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from libs.db import Connection, Pool
from libs.domain.lanes import LANES
from libs.periods import Periods
from services.attribution.decision.history import DeviceHistory
from services.attribution.decision.model import Engagement, EngagementKind, UserAgent

PLANNER = MappingProxyType({"enable_seqscan": "off"})
"""For the connections: all is read by an index. Else, of a month that is young, the planner reads the little there is,
and then has to sort: so it would read all that lies behind an address, of the old months too."""

_IN_ORDER = "lanes.lane IN (SELECT lane FROM lanes WHERE lane = ANY($2) ORDER BY lane FOR UPDATE)"
"""Indexing, deciding, relaying and renewing write the same rows at once: who locks them in any order deadlocks."""


class LanesLostError(Exception):
    """Another worker owns lanes that this one believed to own: nothing was written, begin anew."""


class EngagementRow(NamedTuple):
    """An engagement under one of its match keys, as the table's columns. `record` only under its own key."""

    match_key: bytes
    time_us: int
    engagement_id: str
    lane: int
    position: int
    is_click: bool
    tracker_id: str
    device_keys: bytes
    ip: str
    user_agent: str | None
    click_id: str
    completed_view: bool
    is_valid: bool
    record: bytes | None
    retention_days: int


class NetworkClick(NamedTuple):
    """A click under its network's own id, and its place in the log."""

    click_key: bytes
    time_us: int
    engagement_id: str
    lane: int
    position: int
    retention_days: int


class IndexRows(NamedTuple):
    """What a batch of engagements adds to the tables."""

    engagements: list[EngagementRow]
    network_clicks: list[NetworkClick]
    hash_lengths: set[tuple[str, int]]
    retentions: set[tuple[str, int]]


class DecisionRow(NamedTuple):
    """A decision, as the table's columns."""

    lane: int
    sequence: int
    app_id: str
    conversion_id: str
    version: int
    round_id: uuid.UUID
    device_id: uuid.UUID
    outcome: int
    conversion_time_us: int
    retention_days: int
    """Of a later version that of the first: so both are told of, and go, together."""
    tracker_id: str | None
    engagement_id: str | None
    decision: bytes
    record: bytes
    engagement: bytes | None
    known_ids: dict[str, list[str]] | None = None
    claims: bytes | None = None
    reattribution_id: str | None = None
    is_relayed: bool = True


class OutboxRow(NamedTuple):
    """A decision on its way to postback."""

    lane: int
    sequence: int
    decision: bytes
    record: bytes
    engagement: bytes | None
    is_relayed: bool
    retention_days: int


@dataclass(slots=True, kw_only=True)
class Device:
    """A device as it is held while a batch of its conversions is decided."""

    device_id: uuid.UUID
    app_id: str
    ids: dict[str, list[str]]
    history: DeviceHistory
    identities: dict[str, str]
    create_time_us: int
    merged_into: uuid.UUID | None = None
    merge_sequence: int | None = None
    changed: bool = False

    @classmethod
    def new(cls, device_id: uuid.UUID, app_id: str, create_time_us: int) -> "Device":
        """A device nothing is known of yet."""
        return cls(
            device_id=device_id,
            app_id=app_id,
            ids={},
            history=DeviceHistory(),
            identities={},
            create_time_us=create_time_us,
            changed=True,
        )


class AskedKey(NamedTuple):
    """A match key under which a conversion looks for engagements, at most so far away from its time.

    `conversion` is a number the caller gives it, `heads` says which of several heads it is decided at.
    """

    match_key: bytes
    time_us: int
    app_id: str
    conversion: int
    heads: int = 0


class FoundEngagement(NamedTuple):
    """An engagement, and the number of the conversion that it was found for."""

    conversion: int
    engagement: Engagement


class Found(NamedTuple):
    """Each engagement once a conversion; and, by the index of the key, how far keys reach that hold more than asked."""

    engagements: list[FoundEngagement]
    reached_us: dict[int, int]


class OwnedLane(NamedTuple):
    """How far a lane is."""

    lane: int
    indexed: int
    decided: list[int]
    next_sequence: int
    relayed: int


class Store:
    """The attribution schema behind one pool."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self._periods = Periods(pool)
        self._retentions: set[tuple[str, int]] = set()

    # Who owns which lane.

    async def see_worker(self, connection: Connection, worker_id: str, lease_s: float) -> int:
        """Note that a worker is alive, forget those that are not, and answer how many are."""
        await connection.execute(
            """
            INSERT INTO workers (worker_id, seen_time) VALUES ($1, now())
            ON CONFLICT (worker_id) DO UPDATE SET seen_time = excluded.seen_time
            """,
            worker_id,
        )
        await connection.execute("DELETE FROM workers WHERE seen_time < now() - make_interval(secs => $1)", lease_s)
        return int(await connection.fetchval("SELECT count(*) FROM workers"))

    async def forget_worker(self, worker_id: str) -> None:
        """Give back all lanes of a worker that ends."""
        async with self.pool.acquire() as connection, connection.transaction():
            await connection.execute("DELETE FROM workers WHERE worker_id = $1", worker_id)
            await connection.execute(
                """
                UPDATE lanes SET owner = NULL, lease_until = '-infinity'
                WHERE lane IN (SELECT lane FROM lanes WHERE owner = $1 ORDER BY lane FOR UPDATE)
                """,
                worker_id,
            )

    async def renew_lanes(self, connection: Connection, worker_id: str, lease_s: float) -> set[int]:
        """Prolong the leases of a worker's lanes, and answer which they are."""
        rows = await connection.fetch(
            """
            UPDATE lanes SET lease_until = now() + make_interval(secs => $2)
            WHERE lane IN (SELECT lane FROM lanes WHERE owner = $1 ORDER BY lane FOR UPDATE)
            RETURNING lane
            """,
            worker_id,
            lease_s,
        )
        return {row["lane"] for row in rows}

    async def take_lanes(self, connection: Connection, worker_id: str, count: int, lease_s: float) -> set[int]:
        """Take up to `count` lanes that nobody owns, or whose owner's lease has ended."""
        rows = await connection.fetch(
            """
            UPDATE lanes SET owner = $1, lease_until = now() + make_interval(secs => $3)
            WHERE lane IN (
                SELECT lane FROM lanes WHERE owner IS NULL OR lease_until < now()
                ORDER BY lane LIMIT $2
                FOR UPDATE SKIP LOCKED -- several workers take at once
            )
            RETURNING lane
            """,
            worker_id,
            count,
            lease_s,
        )
        return {row["lane"] for row in rows}

    async def release_lanes(self, connection: "Connection | Pool", worker_id: str, lanes: Collection[int]) -> None:
        """Give lanes to whoever takes them."""
        await connection.execute(
            f"UPDATE lanes SET owner = NULL, lease_until = '-infinity' WHERE owner = $1 AND {_IN_ORDER}",
            worker_id,
            list(lanes),
        )

    async def owned_lanes(self, worker_id: str, lanes: Collection[int]) -> dict[int, OwnedLane]:
        """How far the lanes are that a worker owns."""
        rows = await self.pool.fetch(
            """
            SELECT lane, indexed, decided, next_sequence, relayed FROM lanes
            WHERE owner = $1 AND lane = ANY($2)
            """,
            worker_id,
            list(lanes),
        )
        if len(rows) != len(lanes):
            raise LanesLostError
        return {row["lane"]: OwnedLane(*row) for row in rows}

    # Indexing engagements.

    async def indexed(self) -> list[int]:
        """For each lane of the log, the position below which all engagements are stored."""
        return [row["indexed"] for row in await self.pool.fetch("SELECT indexed FROM lanes ORDER BY lane")]

    async def advance_indexed(self, connection: Connection, worker_id: str, positions: dict[int, int]) -> None:
        """Move the index positions of lanes that this worker owns."""
        tag = await connection.execute(
            f"""
            UPDATE lanes SET indexed = moved.position
            FROM unnest($2::smallint[], $3::bigint[]) AS moved (lane, position)
            WHERE lanes.lane = moved.lane AND lanes.owner = $1 AND {_IN_ORDER}
            """,
            worker_id,
            list(positions.keys()),
            list(positions.values()),
        )
        _must_have_changed(tag, len(positions))

    async def insert_index(self, connection: Connection, rows: IndexRows) -> None:
        """Store engagements. One that is there already stays as it is: its id was used before."""
        if rows.engagements:
            await self._note_retentions(rows.retentions)
            await self._periods.ensure((row.time_us, row.retention_days) for row in rows.engagements)
            await connection.execute(
                """
                INSERT INTO engagements (
                    match_key, time_us, engagement_id, lane, position, is_click, tracker_id,
                    device_keys, ip, user_agent, click_id, completed_view, is_valid, record, retention_days
                )
                SELECT * FROM unnest(
                    $1::bytea[], $2::bigint[], $3::text[], $4::smallint[], $5::bigint[], $6::boolean[], $7::text[],
                    $8::bytea[], $9::text[], $10::text[], $11::text[], $12::boolean[], $13::boolean[], $14::bytea[],
                    $15::smallint[]
                )
                ON CONFLICT DO NOTHING
                """,
                *_columns(rows.engagements),
            )
        if rows.network_clicks:
            await connection.execute(
                """
                INSERT INTO network_clicks (click_key, time_us, engagement_id, lane, position, retention_days)
                SELECT * FROM unnest(
                    $1::bytea[], $2::bigint[], $3::text[], $4::smallint[], $5::bigint[], $6::smallint[]
                )
                ON CONFLICT DO NOTHING
                """,
                *_columns(rows.network_clicks),
            )
        if rows.hash_lengths:
            await connection.execute(
                """
                INSERT INTO hash_lengths (app_id, length)
                SELECT * FROM unnest($1::text[], $2::smallint[])
                ON CONFLICT DO NOTHING
                """,
                *_columns(sorted(rows.hash_lengths)),
            )

    async def _note_retentions(self, retentions: Collection[tuple[str, int]]) -> None:
        """Note for how long engagements of apps are kept (app id, days).

        Over a connection of its own: who looks for an engagement knows where before it can be seen.
        """
        if self._retentions.issuperset(retentions):
            return
        await self.pool.execute(
            """
            INSERT INTO retentions AS kept (app_id, least_days, most_days)
            SELECT app_id, min(days), max(days) FROM unnest($1::text[], $2::smallint[]) AS new (app_id, days)
            GROUP BY app_id
            ORDER BY app_id
            ON CONFLICT (app_id) DO UPDATE SET
                least_days = LEAST(kept.least_days, excluded.least_days),
                most_days = GREATEST(kept.most_days, excluded.most_days)
            """,
            *_columns(retentions),
        )
        self._retentions.update(retentions)

    # What a decision reads.

    async def already_decided(
        self, connection: Connection, conversions: Collection[tuple[int, str]]
    ) -> set[tuple[str, str]]:
        """The decided ones, as (app id, conversion id), of the conversions (lane, conversion id), at least one.

        Whatever their time: a sender that gives none repeats a record at another.
        """
        rows = await connection.fetch(
            """
            SELECT app_id, conversion_id
            -- Pair by pair: two lists would be looked up in every combination.
            FROM unnest($1::smallint[], $2::text[]) AS asked (lane, conversion_id)
            JOIN decisions USING (lane, conversion_id)
            """,
            *_columns(conversions),
        )
        return {(row["app_id"], row["conversion_id"]) for row in rows}

    async def find_identifiers(self, connection: Connection, id_keys: Collection[bytes]) -> dict[bytes, uuid.UUID]:
        """The devices that ids belong to, of those that are known."""
        rows = await connection.fetch("SELECT id_key, device_id FROM identifiers WHERE id_key = ANY($1)", list(id_keys))
        return {row["id_key"]: row["device_id"] for row in rows}

    async def find_devices(self, connection: Connection, device_ids: Collection[uuid.UUID]) -> dict[uuid.UUID, Device]:
        """Devices by id."""
        rows = await connection.fetch(
            """
            SELECT device_id, app_id, ids, history, identities, create_time_us, merged_into, merge_sequence
            FROM devices WHERE device_id = ANY($1)
            """,
            list(device_ids),
        )
        return {
            row["device_id"]: Device(
                device_id=row["device_id"],
                app_id=row["app_id"],
                ids=row["ids"],
                history=DeviceHistory.from_json(row["history"]),
                identities=row["identities"],
                create_time_us=row["create_time_us"],
                merged_into=row["merged_into"],
                merge_sequence=row["merge_sequence"],
            )
            for row in rows
        }

    async def hash_lengths(self, connection: Connection, app_ids: Collection[str]) -> dict[str, frozenset[int]]:
        """The lengths of hashes that engagements of these apps ever carried."""
        rows = await connection.fetch(
            "SELECT app_id, array_agg(length) AS lengths FROM hash_lengths WHERE app_id = ANY($1) GROUP BY app_id",
            list(app_ids),
        )
        return {row["app_id"]: frozenset(row["lengths"]) for row in rows}

    async def find_engagements(
        self,
        connection: Connection,
        asked: Sequence[AskedKey],
        heads: Sequence[str],
        *,
        span_us: int,
        limit: int,
    ) -> Found:
        """Returns engagements below their heads under each key asked, at least one.

        At most `limit` on either side of the time, those nearest to it, none further away than `span_us`.
        """
        rows = await connection.fetch(
            """
            SELECT asked.place - 1, found.*
            FROM unnest($1::bytea[], $2::bigint[], $3::integer[], $4::text[])
                WITH ORDINALITY AS asked (match_key, time_us, heads, app_id, place)
            JOIN retentions USING (app_id)
            CROSS JOIN LATERAL (
                (
                    SELECT engagement_id, is_click, tracker_id, time_us, device_keys, ip, user_agent, click_id,
                           completed_view, is_valid
                    FROM engagements
                    WHERE match_key = asked.match_key
                      AND time_us >= asked.time_us - $6 AND time_us < asked.time_us
                      AND retention_days BETWEEN least_days AND most_days
                      AND position < (SELECT $5::text::bigint[])[asked.heads * 64 + lane + 1]
                    ORDER BY time_us DESC, engagement_id DESC LIMIT $7
                )
                UNION ALL
                (
                    SELECT engagement_id, is_click, tracker_id, time_us, device_keys, ip, user_agent, click_id,
                           completed_view, is_valid
                    FROM engagements
                    WHERE match_key = asked.match_key
                      AND time_us >= asked.time_us AND time_us <= asked.time_us + $6
                      AND retention_days BETWEEN least_days AND most_days
                      AND position < (SELECT $5::text::bigint[])[asked.heads * 64 + lane + 1]
                    ORDER BY time_us, engagement_id LIMIT $7
                )
            ) AS found
            """,
            [key.match_key for key in asked],
            [key.time_us for key in asked],
            [key.heads for key in asked],
            [key.app_id for key in asked],
            _one_array(heads),
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

    async def find_further(
        self,
        connection: Connection,
        asked: Sequence[AskedKey],
        heads: Sequence[str],
        user_agents: Sequence[str],
        tracker_ids: Sequence[Collection[str]],
        *,
        span_us: int,
        limit: int,
        through: int,
    ) -> list[FoundEngagement]:
        """Returns, of the `through` nearest earlier engagements under each key asked, the `limit` likeliest to win.

        That is clicks, then those whose user agent begins as the one asked with its key, then the nearest. Only valid
        ones on the trackers asked with its key.
        """
        lists: dict[frozenset[str], int] = {}
        places = [lists.setdefault(frozenset(ids), len(lists) + 1) for ids in tracker_ids]
        rows = await connection.fetch(
            """
            SELECT asked.place - 1, found.*
            FROM unnest($1::bytea[], $2::bigint[], $3::integer[], $4::text[], $10::integer[])
                WITH ORDINALITY AS asked (match_key, time_us, heads, user_agent, trackers, place)
            CROSS JOIN LATERAL (
                SELECT string_to_array(($8::text[])[asked.trackers], E'\n') AS ids OFFSET 0 -- taken apart once a key
            ) AS trackers
            CROSS JOIN LATERAL (
                SELECT engagement_id, is_click, tracker_id, time_us, device_keys, ip, user_agent, click_id,
                       completed_view, is_valid
                FROM (
                    SELECT * FROM engagements
                    WHERE match_key = asked.match_key
                      AND time_us >= asked.time_us - $6 AND time_us < asked.time_us
                      AND position < (SELECT $5::text::bigint[])[asked.heads * 64 + lane + 1]
                    ORDER BY time_us DESC, engagement_id DESC LIMIT $7 -- whatever lies behind a key, this is the cost
                ) AS nearest
                WHERE is_valid AND tracker_id = ANY(trackers.ids)
                ORDER BY is_click DESC, starts_with(COALESCE(user_agent, ''), asked.user_agent) DESC, time_us DESC
                LIMIT $9
            ) AS found
            """,
            [key.match_key for key in asked],
            [key.time_us for key in asked],
            [key.heads for key in asked],
            list(user_agents),
            _one_array(heads),
            span_us,
            through,
            ["\n".join(ids) for ids in lists],
            limit,
            places,
        )
        return _once_a_conversion(rows, asked)

    async def find_repeats(
        self,
        connection: Connection,
        clicks: Collection[tuple[bytes, int, str, int]],
        heads: Sequence[str],
        *,
        within_us: int,
    ) -> set[tuple[bytes, str, int]]:
        """Which of these clicks (click key, time, engagement id, which heads), one or more, repeat another.

        That is, follow it in less than `within_us`. Only clicks below the heads count; of two at the same time the one
        with the higher id follows.
        """
        rows = await connection.fetch(
            """
            SELECT click.click_key, click.engagement_id, click.heads
            FROM unnest($1::bytea[], $2::bigint[], $3::text[], $4::integer[])
                AS click (click_key, time_us, engagement_id, heads)
            CROSS JOIN LATERAL (
                SELECT FROM network_clicks AS earlier
                WHERE earlier.click_key = click.click_key
                  AND earlier.time_us > click.time_us - $6
                  AND earlier.time_us <= click.time_us -- said for the choice of partitions, too
                  AND (earlier.time_us, earlier.engagement_id) < (click.time_us, click.engagement_id)
                  AND earlier.position < (SELECT $5::text::bigint[])[click.heads * 64 + earlier.lane + 1]
                LIMIT 1
            ) AS found
            """,
            *_columns(clicks),
            _one_array(heads),
            within_us,
        )
        return {(row["click_key"], row["engagement_id"], row["heads"]) for row in rows}

    async def find_records(
        self, connection: Connection, asked: Collection[tuple[bytes, int, str]], *, span_us: int
    ) -> dict[bytes, bytes]:
        """The records of engagements (own key, time of what it won, app id), one or more, by own key.

        What it won came at most `span_us` after it; 0: the time given is its own.
        """
        rows = await connection.fetch(
            """
            SELECT asked.match_key, found.record
            FROM unnest($1::bytea[], $2::bigint[], $3::text[]) AS asked (match_key, time_us, app_id)
            JOIN retentions USING (app_id)
            CROSS JOIN LATERAL (
                SELECT record FROM engagements
                WHERE match_key = asked.match_key AND record IS NOT NULL
                  AND time_us >= asked.time_us - $4 AND time_us <= asked.time_us
                  AND retention_days BETWEEN least_days AND most_days
                LIMIT 1
            ) AS found
            """,
            *_columns(asked),
            span_us,
        )
        return {row["match_key"]: row["record"] for row in rows}

    async def count_wins(
        self, connection: Connection, engagements: Collection[tuple[int, str]]
    ) -> list[tuple[str, str, int]]:
        """How many conversions engagements (lane, engagement id), at least one, have won by their newest versions (D5).

        Answers (app id, engagement id, wins), of every app of the lane; those without a win are left out.
        """
        rows = await connection.fetch(
            """
            SELECT app_id, engagement_id, count(*)
            FROM unnest($1::smallint[], $2::text[]) AS asked (lane, engagement_id)
            JOIN decisions USING (lane, engagement_id)
            WHERE version = (
                SELECT max(newest.version) FROM decisions AS newest
                WHERE newest.lane = decisions.lane AND newest.conversion_id = decisions.conversion_id
                  AND newest.app_id = decisions.app_id
            )
            GROUP BY app_id, engagement_id
            """,
            *_columns(engagements),
        )
        return [(row[0], row[1], row[2]) for row in rows]

    # What a decision writes.

    async def upsert_devices(self, connection: Connection, devices: Sequence[Device]) -> None:
        """Store devices as they are now."""
        await connection.execute(
            """
            INSERT INTO devices (
                device_id, app_id, ids, history, identities, create_time_us, merged_into, merge_sequence
            )
            SELECT * FROM unnest(
                $1::uuid[], $2::text[], $3::jsonb[], $4::jsonb[], $5::jsonb[], $6::bigint[], $7::uuid[], $8::bigint[]
            )
            ON CONFLICT (device_id) DO UPDATE SET
                ids = excluded.ids, history = excluded.history, identities = excluded.identities,
                merged_into = excluded.merged_into, merge_sequence = excluded.merge_sequence
            """,
            [device.device_id for device in devices],
            [device.app_id for device in devices],
            [device.ids for device in devices],
            [device.history.to_json() for device in devices],
            [device.identities for device in devices],
            [device.create_time_us for device in devices],
            [device.merged_into for device in devices],
            [device.merge_sequence for device in devices],
        )

    async def upsert_identifiers(self, connection: Connection, owners: Mapping[bytes, uuid.UUID]) -> None:
        """Stores which devices ids belong to."""
        await connection.execute(
            """
            INSERT INTO identifiers (id_key, device_id)
            SELECT * FROM unnest($1::bytea[], $2::uuid[])
            ON CONFLICT (id_key) DO UPDATE SET device_id = excluded.device_id
            """,
            list(owners.keys()),
            list(owners.values()),
        )

    async def insert_round(
        self, connection: Connection, round_id: uuid.UUID, heads: Sequence[int], rows: Sequence[DecisionRow]
    ) -> None:
        """Note where the log ended when a batch was decided, for as long as any of its decisions, `rows`, is there."""
        time_us, days = max(row.conversion_time_us for row in rows), max(row.retention_days for row in rows)
        await self._periods.ensure([(time_us, days)])
        await connection.execute(
            "INSERT INTO rounds (round_id, heads, conversion_time_us, retention_days) VALUES ($1, $2, $3, $4)",
            round_id,
            list(heads),
            time_us,
            days,
        )

    async def insert_decisions(self, connection: Connection, rows: Sequence[DecisionRow]) -> None:
        """Append decisions."""
        await self._periods.ensure((row.conversion_time_us, row.retention_days) for row in rows)
        await connection.execute(
            """
            INSERT INTO decisions (
                lane, sequence, app_id, conversion_id, version, round_id, device_id, outcome, conversion_time_us,
                retention_days, tracker_id, engagement_id, decision, record, engagement, known_ids, claims,
                reattribution_id, is_relayed
            )
            SELECT * FROM unnest(
                $1::smallint[], $2::bigint[], $3::text[], $4::text[], $5::integer[], $6::uuid[], $7::uuid[],
                $8::smallint[], $9::bigint[], $10::smallint[], $11::text[], $12::text[], $13::bytea[], $14::bytea[],
                $15::bytea[], $16::jsonb[], $17::bytea[], $18::text[], $19::boolean[]
            )
            """,
            *_columns(rows),
        )

    async def advance_lanes(
        self,
        connection: Connection,
        worker_id: str,
        decided: Mapping[int, list[int] | None],
        sequences: Mapping[int, int],
        next_sequences: Mapping[int, int],
    ) -> None:
        """Move sequences and decide positions (lane: the new vector, None as it is) of lanes that this worker owns.

        `sequences` are those the worker began with. When they are not what is stored, its last transaction did commit
        although it never heard so: then it knows too little, and must begin anew.
        """
        tag = await connection.execute(
            f"""
            UPDATE lanes
            SET next_sequence = moved.next_sequence,
                -- the vectors come one after the other: unnest would take an array of arrays apart
                decided = CASE WHEN moved.place IS NULL THEN lanes.decided
                    ELSE ($6::bigint[])[moved.place * 64 + 1:moved.place * 64 + 64] END
            FROM unnest($2::smallint[], $3::bigint[], $4::bigint[], $5::integer[])
                AS moved (lane, sequence, next_sequence, place)
            WHERE lanes.lane = moved.lane AND lanes.owner = $1 AND lanes.next_sequence = moved.sequence
              AND {_IN_ORDER}
            """,
            worker_id,
            list(decided.keys()),
            [sequences[lane] for lane in decided],
            [next_sequences[lane] for lane in decided],
            [None if vector is None else place for place, vector in enumerate(decided.values())],
            [position for vector in decided.values() for position in vector or [0] * LANES],
        )
        _must_have_changed(tag, len(decided))

    # The outbox.

    async def read_outbox(self, lanes: Mapping[int, range], limit: int) -> list[OutboxRow]:
        """The first decisions of these sequences, by lane, up to `limit` a lane."""
        rows = await self.pool.fetch(
            """
            SELECT d.lane, d.sequence, d.decision, d.record, d.engagement, d.is_relayed, d.retention_days
            FROM unnest($1::smallint[], $2::bigint[], $3::bigint[]) AS wanted (lane, start, stop)
            CROSS JOIN LATERAL (
                SELECT lane, sequence, decision, record, engagement, is_relayed, retention_days
                FROM decisions
                WHERE decisions.lane = wanted.lane AND sequence >= wanted.start AND sequence < wanted.stop
                ORDER BY sequence LIMIT $4
            ) AS d
            """,
            list(lanes.keys()),
            [wanted.start for wanted in lanes.values()],
            [wanted.stop for wanted in lanes.values()],
            limit,
        )
        return [OutboxRow(*row) for row in rows]

    async def advance_relayed(self, worker_id: str, positions: dict[int, int]) -> None:
        """Move the outbox positions of lanes that this worker owns."""
        tag = await self.pool.execute(
            f"""
            UPDATE lanes SET relayed = moved.sequence
            FROM unnest($2::smallint[], $3::bigint[]) AS moved (lane, sequence)
            WHERE lanes.lane = moved.lane AND lanes.owner = $1 AND {_IN_ORDER}
            """,
            worker_id,
            list(positions.keys()),
            list(positions.values()),
        )
        _must_have_changed(tag, len(positions))

    # What people ask.

    async def newest_decision(self, lane: int, app_id: str, conversion_id: str) -> bytes | None:
        """The newest version of the decision on a conversion."""
        found = await self.pool.fetchval(
            """
            SELECT decision FROM decisions
            WHERE lane = $1 AND conversion_id = $2 AND app_id = $3
            ORDER BY version DESC LIMIT 1
            """,
            lane,
            conversion_id,
            app_id,
        )
        return bytes(found) if found is not None else None

    async def list_decisions(
        self,
        lane: int,
        app_id: str,
        *,
        tracker_id: str | None,
        outcomes: Sequence[int],
        start_us: int | None,
        end_us: int | None,
        before: int | None,
        limit: int,
    ) -> list[tuple[int, bytes]]:
        """Decisions of an app as (sequence, decision), newest first; all filters given must hold."""
        rows = await self.pool.fetch(
            """
            SELECT sequence, decision FROM decisions
            WHERE lane = $1 AND app_id = $2
              AND ($3::text IS NULL OR tracker_id = $3)
              AND (cardinality($4::smallint[]) = 0 OR outcome = ANY($4))
              AND ($5::bigint IS NULL OR conversion_time_us >= $5)
              AND ($6::bigint IS NULL OR conversion_time_us < $6)
              AND ($7::bigint IS NULL OR sequence < $7)
            ORDER BY sequence DESC LIMIT $8
            """,
            lane,
            app_id,
            tracker_id,
            list(outcomes),
            start_us,
            end_us,
            before,
            limit,
        )
        return [(row["sequence"], bytes(row["decision"])) for row in rows]

    async def device_of(self, id_keys: Collection[bytes], device_id: uuid.UUID | None) -> Device | None:
        """The device that has one of these ids, or this id of ours; a merged one answers as what it became."""
        async with self.pool.acquire() as connection:
            wanted = set((await self.find_identifiers(connection, id_keys)).values())
            if device_id is not None:
                wanted.add(device_id)
            while wanted:
                found = list((await self.find_devices(connection, wanted)).values())
                if not found:
                    return None
                oldest = min(found, key=lambda device: (device.create_time_us, device.device_id))
                if oldest.merged_into is None:
                    return oldest
                wanted = {oldest.merged_into}
        return None


def heads_text(heads: Sequence[int]) -> str:
    """Heads as the text of an array: thousands of conversions may have one each, and numbers are slow to send."""
    return "{" + ",".join(map(str, heads)) + "}"


def _one_array(heads: Sequence[str]) -> str:
    """Several heads, one after the other."""
    return "{" + ",".join(each[1:-1] for each in heads) + "}"


def _columns(rows: Iterable[Sequence[Any]]) -> list[list[Any]]:
    """Rows, at least one, turned into the columns that unnest takes."""
    return [list(column) for column in zip(*rows, strict=True)]


def _must_have_changed(tag: str, count: int) -> None:
    """The fence: a transaction of a worker that lost a lane meanwhile writes nothing."""
    if tag != f"UPDATE {count}":
        raise LanesLostError


def _once_a_conversion(rows: Iterable[Any], asked: Sequence[AskedKey]) -> list[FoundEngagement]:
    """The engagements of rows that begin with the index of the key: under several keys of a conversion, but once."""
    first = {(asked[row[0]].conversion, row[1]): row for row in rows}
    return [FoundEngagement(conversion, _engagement(*row[1:])) for (conversion, _), row in first.items()]


def _engagement(
    engagement_id: str,
    is_click: bool,
    tracker_id: str,
    time_us: int,
    device_keys: bytes,
    ip: str,
    user_agent: str | None,
    click_id: str,
    completed_view: bool,
    is_valid: bool,
) -> Engagement:
    return Engagement(
        engagement_id=engagement_id,
        kind=EngagementKind.CLICK if is_click else EngagementKind.IMPRESSION,
        tracker_id=tracker_id,
        time_us=time_us,
        device_keys=tuple(device_keys[at : at + 16] for at in range(0, len(device_keys), 16)),
        ip=ip,
        user_agent=None if user_agent is None else UserAgent(*user_agent.split("\t")),
        click_id=click_id,
        completed_view=completed_view,
        valid=is_valid,
    )
