"""The table of erasures, and the rows of other tables that are of one device (ForgetDevice)."""

import uuid
from collections import Counter
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from libs.db import Connection, Pool, columns, rows_affected
from libs.domain.lanes import LANES, lane_of
from reengage.attribution.v1 import quarantine_pb2
from services.attribution.decision.matching import possible_keys
from services.attribution.decision.shared_ids import forgetting
from services.attribution.storage.devices import NO_DEVICE, find_identifiers
from services.attribution.wire.records import network_click_key


@dataclass(slots=True, kw_only=True)
class Work:
    """The rest of an erasure that is under way: only here the device is still named.

    `device_ids` are as the caller gave them, later as they were received, raw and hashed. The other fields are empty
    until attribution's own rows are erased (the cut):

    - `below`: the position in each lane of the log that attribution had reached;
    - `lanes`: the lanes of the log that are still to be searched;
    - `record_ids`: records that are known by their id alone;
    - `conversion_ids`, `our_ids`: the conversions, and attribution's ids of the device;
    - `stripped_conversion_ids`: conversions of other devices, whose winner is erased;
    - `sequence`: the end of the app's decisions;
    - `claims_end_us`: the time after which no request for claims is under way any more.
    """

    device_ids: list[str]
    below: list[int] = field(default_factory=list)
    lanes: list[int] = field(default_factory=list)
    record_ids: list[str] = field(default_factory=list)
    conversion_ids: list[str] = field(default_factory=list)
    stripped_conversion_ids: list[str] = field(default_factory=list)
    our_ids: list[str] = field(default_factory=list)
    sequence: int = 0
    claims_end_us: int = 0


@dataclass(slots=True, kw_only=True)
class Erasure:
    """An erasure. `work` is None when it is done."""

    app_id: str
    erasure_id: uuid.UUID
    request_time_us: int
    finish_time_us: int | None
    erased_counts: dict[str, int]
    work: Work | None

    @property
    def lane(self) -> int:
        """Returns the home lane of the app."""
        return lane_of(self.app_id)

    def count(self, schema: str, rows: Mapping[str, int]) -> None:
        """Adds numbers of erased rows, by table."""
        more = {f"{schema}.{table}": number for table, number in rows.items() if number}
        self.erased_counts = dict(Counter(self.erased_counts) + Counter(more))


class Received(NamedTuple):
    """A conversion of a device: its record, and other ids that its device was known by."""

    conversion_id: str
    record: bytes
    known_ids: dict[str, list[str]] | None


class StoredEngagement(NamedTuple):
    """The part of an engagement that finds all its rows."""

    engagement_id: str
    time_us: int
    tracker_id: str
    device_keys: bytes
    ip: str
    click_id: str
    counted_us: int

    @property
    def keys(self) -> list[bytes]:
        """Returns the match keys of the ids that it carries."""
        return [self.device_keys[at : at + 16] for at in range(0, len(self.device_keys), 16)]


class StoredWinner(NamedTuple):
    """A decision that holds the record of an engagement."""

    sequence: int
    conversion_id: str
    engagement: bytes


class RefusedLink(NamedTuple):
    """The decision on an identity link of a device that was not known (F3): no device is named but in its record."""

    time_us: int
    sequence: int
    record: bytes


async def begin(pool: Pool, app_id: str, device_id: str) -> Erasure:
    """Adds the erasure of a device."""
    row = await pool.fetchrow(
        """
        INSERT INTO erasures (lane, app_id, erasure_id, work) VALUES ($1, $2, $3, $4)
        RETURNING app_id, erasure_id, request_time_us, finish_time_us, erased_counts, work
        """,
        lane_of(app_id),
        app_id,
        uuid.uuid4(),
        asdict(Work(device_ids=[device_id])),
    )
    assert row is not None
    return _erasure(row)


async def find(pool: Pool, app_id: str, erasure_id: uuid.UUID) -> Erasure | None:
    """Returns an erasure of an app, None if there is none with this id."""
    row = await pool.fetchrow(
        """
        SELECT app_id, erasure_id, request_time_us, finish_time_us, erased_counts, work FROM erasures
        WHERE lane = $1 AND app_id = $2 AND erasure_id = $3
        """,
        lane_of(app_id),
        app_id,
        erasure_id,
    )
    return None if row is None else _erasure(row)


async def list_page(pool: Pool, app_id: str, before: tuple[int, uuid.UUID] | None, limit: int) -> list[Erasure]:
    """Returns erasures of an app, newest first: those after a place in that order, or the first."""
    rows = await pool.fetch(
        """
        SELECT app_id, erasure_id, request_time_us, finish_time_us, erased_counts, work FROM erasures
        WHERE lane = $1 AND app_id = $2
          AND ($3::bigint IS NULL OR (request_time_us, erasure_id) < ($3::bigint, $4::uuid))
        ORDER BY request_time_us DESC, erasure_id DESC LIMIT $5
        """,
        lane_of(app_id),
        app_id,
        None if before is None else before[0],
        None if before is None else before[1],
        limit,
    )
    return [_erasure(row) for row in rows]


async def under_way(pool: Pool, lanes: Collection[int]) -> list[Erasure]:
    """Returns at most 100 erasures of these home lanes that are not done, the oldest first; none that is set aside."""
    rows = await pool.fetch(
        """
        SELECT app_id, erasure_id, request_time_us, finish_time_us, erased_counts, work FROM erasures
        WHERE lane = ANY($1) AND work IS NOT NULL
          AND NOT EXISTS (
              SELECT FROM quarantined
              WHERE lane = erasures.lane AND work = $2 AND app_id = erasures.app_id
                AND place = erasures.erasure_id::text AND NOT is_retry_asked
          )
        ORDER BY request_time_us LIMIT 100
        """,
        list(lanes),
        quarantine_pb2.QUARANTINE_WORK_ERASE,
    )
    return [_erasure(row) for row in rows]


async def refused_links(pool: Pool, erasure: Erasure, *, after: tuple[int, int], below: int) -> list[RefusedLink]:
    """Returns up to 1,000 refused identity links of the app, in order of (time, sequence), after a place in that order.

    Only decisions with a sequence under `below`.
    """
    rows = await pool.fetch(
        """
        SELECT conversion_time_us, sequence, record FROM decisions
        WHERE lane = $1 AND app_id = $2 AND device_id = $3 AND (conversion_time_us, sequence) > ($4, $5)
          AND sequence < $6
        ORDER BY conversion_time_us, sequence LIMIT 1000
        """,
        erasure.lane,
        erasure.app_id,
        NO_DEVICE,
        *after,
        below,
    )
    return [RefusedLink(*row) for row in rows]


async def relayed(pool: Pool, lane: int, sequence: int) -> bool:
    """Returns whether all decisions of a lane with a sequence under this one were handed to postback."""
    return bool(await pool.fetchval("SELECT relayed >= $2 FROM lanes WHERE lane = $1", lane, sequence))


async def save(connection: Connection, erasure: Erasure) -> None:
    """Stores an erasure; one without work is finished."""
    await connection.execute(
        """
        UPDATE erasures
        SET work = $4, erased_counts = $5, finish_time_us = CASE WHEN $4::jsonb IS NULL THEN now_us() END
        WHERE lane = $1 AND app_id = $2 AND erasure_id = $3
        """,
        erasure.lane,
        erasure.app_id,
        erasure.erasure_id,
        None if erasure.work is None else asdict(erasure.work),
        erasure.erased_counts,
    )


# The rows of a device.


async def known_below(connection: Connection, lane: int, taken: Sequence[int]) -> list[int]:
    """Returns for each lane of the log the position below which all engagements are stored and all conversions homed in
    `lane` are decided or pending. `taken` are the positions that the lane's owner knows of the latter."""
    return [
        row["position"]
        for row in await connection.fetch(
            """
            SELECT LEAST(at.indexed, GREATEST(log.taken, home.decided[log.lane + 1])) AS position
            FROM unnest($2::smallint[], $3::bigint[]) AS log (lane, taken)
            JOIN lanes AS at ON at.lane = log.lane JOIN lanes AS home ON home.lane = $1
            ORDER BY log.lane
            """,
            lane,
            list(range(LANES)),
            list(taken),
        )
    ]


async def merged_devices(connection: Connection, app_id: str, device_ids: Collection[uuid.UUID]) -> set[uuid.UUID]:
    """Returns these devices, if they are of the app, and all that were merged with one of them."""
    found: set[uuid.UUID] = set()
    asked: set[uuid.UUID] = set()
    wanted = set(device_ids)
    while wanted := wanted - asked:
        rows = await connection.fetch(
            """
            SELECT device_id, merged_into FROM devices
            WHERE (device_id = ANY($1) OR merged_into = ANY($1)) AND app_id = $2
            """,
            list(wanted),
            app_id,
        )
        asked |= wanted
        found |= {row["device_id"] for row in rows}
        wanted = found | {into for row in rows if (into := row["merged_into"]) is not None}
    return found


async def ids_of(connection: Connection, device_ids: Collection[uuid.UUID]) -> list[dict[str, list[str]]]:
    """Returns the ids of each device, by kind."""
    rows = await connection.fetch("SELECT ids FROM devices WHERE device_id = ANY($1)", list(device_ids))
    return [row["ids"] for row in rows]


async def conversions_of(
    connection: Connection, app_id: str, device_ids: Collection[uuid.UUID]
) -> AsyncIterator[Received]:
    """Yields all conversions of devices: every version of those decided, and those pending."""
    async for row in connection.cursor(
        """
        SELECT conversion_id, record, known_ids FROM decisions
        WHERE lane = $1 AND app_id = $2 AND device_id = ANY($3)
        UNION ALL
        SELECT conversion_id, record, NULL FROM pending_conversions
        WHERE lane = $1 AND app_id = $2 AND device_id = ANY($3)
        """,
        lane_of(app_id),
        app_id,
        list(device_ids),
        prefetch=1000,
    ):
        yield Received(*row)


async def engagements_under(
    connection: Connection, match_keys: Collection[bytes], below: Sequence[int]
) -> set[StoredEngagement]:
    """Returns the engagements under these keys that lie below these positions of the log."""
    rows = await connection.fetch(
        """
        SELECT engagement_id, time_us, tracker_id, device_keys, ip, click_id,
            CASE WHEN is_ping THEN receive_time_us ELSE time_us END -- under which its click id is stored
        FROM engagements
        WHERE match_key = ANY($1) AND position < ($2::bigint[])[lane + 1]
        """,
        list(match_keys),
        list(below),
    )
    return {StoredEngagement(*row) for row in rows}


async def decided_again(connection: Connection, app_id: str, conversion_ids: Collection[str]) -> bool:
    """Returns whether a re-attribution has made a version of one of these conversions."""
    return bool(
        await connection.fetchval(
            """
            SELECT EXISTS (
                SELECT FROM unnest($1::text[]) AS asked (id)
                JOIN decisions ON lane = $2 AND conversion_id = asked.id AND app_id = $3
                WHERE reattribution_id IS NOT NULL
            )
            """,
            list(conversion_ids),
            lane_of(app_id),
            app_id,
        )
    )


async def decisions_holding(
    connection: Connection, app_id: str, engagement_ids: Collection[str]
) -> AsyncIterator[StoredWinner]:
    """Yields the decisions with the record of an engagement that are of devices which one of these engagements won.

    Not only the conversions that it won: those credited to it as a source hold its record, too.
    """
    won = await connection.fetch(
        "SELECT DISTINCT device_id FROM decisions WHERE lane = $1 AND app_id = $2 AND engagement_id = ANY($3)",
        lane_of(app_id),
        app_id,
        list(engagement_ids),
    )
    device_ids = await merged_devices(connection, app_id, {row["device_id"] for row in won})
    async for row in connection.cursor(
        """
        SELECT sequence, conversion_id, engagement FROM decisions
        WHERE lane = $1 AND app_id = $2 AND device_id = ANY($3) AND engagement IS NOT NULL
        """,
        lane_of(app_id),
        app_id,
        list(device_ids),
        prefetch=1000,
    ):
        yield StoredWinner(*row)


# Erasure.


async def erase_devices(connection: Connection, app_id: str, device_ids: Collection[uuid.UUID]) -> dict[str, int]:
    """Deletes devices and all that names them; returns the number of rows by table."""
    lane, wanted = lane_of(app_id), list(device_ids)
    decisions = await connection.execute(
        "DELETE FROM decisions WHERE lane = $1 AND app_id = $2 AND device_id = ANY($3)", lane, app_id, wanted
    )
    pending = await connection.execute(
        "DELETE FROM pending_conversions WHERE lane = $1 AND app_id = $2 AND device_id = ANY($3)", lane, app_id, wanted
    )
    late = await connection.execute(
        "DELETE FROM late_arrivals WHERE lane = $1 AND app_id = $2 AND device_id = ANY($3)", lane, app_id, wanted
    )
    return {
        "decisions": rows_affected(decisions),
        "late_arrivals": rows_affected(late),
        "pending_conversions": rows_affected(pending),
        "identifiers": rows_affected(
            await connection.execute("DELETE FROM identifiers WHERE device_id = ANY($1)", wanted)
        ),
        "devices": rows_affected(await connection.execute("DELETE FROM devices WHERE device_id = ANY($1)", wanted)),
    }


async def erase_engagements(
    connection: Connection, app_id: str, engagements: Collection[StoredEngagement]
) -> dict[str, int]:
    """Deletes engagements, at least one, under all their keys; returns the number of rows by table."""
    rows = [
        (key, each.time_us, each.engagement_id)
        for each in engagements
        for key in possible_keys(app_id, each.engagement_id, each.keys, each.ip)
    ]
    clicks = [
        (network_click_key(each.tracker_id, each.click_id), each.counted_us, each.engagement_id)
        for each in engagements
        if each.click_id
    ]
    return {
        "hashed_ids": rows_affected(
            await connection.execute(
                "DELETE FROM hashed_ids WHERE raw_key = ANY($1)",
                list({key for each in engagements for key in each.keys}),
            )
        ),
        "engagements": rows_affected(
            await connection.execute(
                """
                DELETE FROM engagements AS stored USING unnest($1::bytea[], $2::bigint[], $3::text[])
                    AS erased (match_key, time_us, engagement_id)
                WHERE (stored.match_key, stored.time_us, stored.engagement_id)
                    = (erased.match_key, erased.time_us, erased.engagement_id)
                """,
                *columns(rows, 3),
            )
        ),
        "network_clicks": rows_affected(
            await connection.execute(
                """
                DELETE FROM network_clicks AS click USING unnest($1::bytea[], $2::bigint[], $3::text[])
                    AS erased (click_key, time_us, engagement_id)
                WHERE (click.click_key, click.time_us, click.engagement_id)
                    = (erased.click_key, erased.time_us, erased.engagement_id)
                """,
                *columns(clicks, 3),
            )
        )
        if clicks
        else 0,
        "late_arrivals": rows_affected(
            await connection.execute(
                "DELETE FROM late_arrivals WHERE lane = $1 AND app_id = $2 AND engagement_id = ANY($3)",
                lane_of(app_id),
                app_id,
                [each.engagement_id for each in engagements],
            )
        ),
    }


async def forget_meetings(
    connection: Connection, shared_keys: Collection[bytes], advertising_keys: Collection[bytes]
) -> None:
    """Has shared ids, by match key, forget that they were met with these advertising ids (A8)."""
    for (id_key, kind), each in (await find_identifiers(connection, shared_keys)).items():
        await connection.execute(
            "UPDATE identifiers SET met = $3 WHERE id_key = $1 AND kind = $2 AND device_id IS NULL",
            id_key,
            kind,
            forgetting(each.met, advertising_keys),
        )


async def strip_decisions(connection: Connection, lane: int, sequences: Collection[int]) -> None:
    """Removes the record of their engagement from decisions."""
    await connection.execute(
        "UPDATE decisions SET engagement = NULL WHERE lane = $1 AND sequence = ANY($2)", lane, list(sequences)
    )


async def erase_decisions(connection: Connection, lane: int, sequences: Collection[int]) -> int:
    """Deletes decisions of a lane; returns how many."""
    return rows_affected(
        await connection.execute("DELETE FROM decisions WHERE lane = $1 AND sequence = ANY($2)", lane, list(sequences))
    )


def _erasure(row: Any) -> Erasure:
    work = row["work"]
    return Erasure(
        app_id=row["app_id"],
        erasure_id=row["erasure_id"],
        request_time_us=row["request_time_us"],
        finish_time_us=row["finish_time_us"],
        erased_counts=row["erased_counts"],
        work=None if work is None else Work(**work),
    )
