"""The table of erasures, and what of the other tables is a device's (ForgetDevice)."""

import uuid
from collections import Counter
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from libs.db import Connection, Pool
from libs.domain.lanes import LANES, lane_of
from reengage.attribution.v1 import erasure_pb2
from services.attribution.decision.matching import possible_keys
from services.attribution.wire.records import network_click_key

NOT_KNOWN = uuid.UUID(int=0)
"""The device of decisions on identity links that were refused: nothing was known of it (F3)."""


@dataclass(slots=True, kw_only=True)
class Work:
    """What is left of an erasure: all that still names the device, and only while it is under way.

    `device_ids`: as the caller gave it, later as they were received, raw and hashed. The rest is empty until what
    attribution has of it is erased: `below` says up to where it knew the log then, `lanes` which of the log's are to be
    searched, `record_ids` are clicks known by their id alone, `our_ids` attribution's ids of the device,
    `stripped_conversion_ids` conversions of others whose winner is erased. `sequence` is where the app's decisions
    ended, `claims_end_us` when no request for claims can be under way any more.
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
    """An erasure as it stands. `work` is None when it is done."""

    app_id: str
    erasure_id: uuid.UUID
    request_time: datetime
    finish_time: datetime | None
    erased_counts: dict[str, int]
    work: Work | None

    @property
    def lane(self) -> int:
        """The app's."""
        return lane_of(self.app_id)

    def count(self, schema: str, rows: Mapping[str, int]) -> None:
        """Add rows erased (by table)."""
        more = {f"{schema}.{table}": number for table, number in rows.items() if number}
        self.erased_counts = dict(Counter(self.erased_counts) + Counter(more))

    def message(self) -> erasure_pb2.Erasure:
        """As the API shows it."""
        message = erasure_pb2.Erasure(
            erasure_id=str(self.erasure_id),
            app_id=self.app_id,
            state=erasure_pb2.Erasure.STATE_DONE if self.work is None else erasure_pb2.Erasure.STATE_RUNNING,
            erased_counts=self.erased_counts,
        )
        message.request_time.FromDatetime(self.request_time)
        if self.finish_time is not None:
            message.finish_time.FromDatetime(self.finish_time)
        return message


class Received(NamedTuple):
    """A conversion that was received of a device; its record, and other ids its device was known by then."""

    conversion_id: str
    record: bytes
    known_ids: dict[str, list[str]] | None


class StoredEngagement(NamedTuple):
    """An engagement, as much of it as finds all its rows."""

    engagement_id: str
    time_us: int
    tracker_id: str
    device_keys: bytes
    ip: str
    click_id: str


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


class Erasures:
    """The proofs, and the work that is left."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def begin(self, app_id: str, device_id: str) -> Erasure:
        """Note that a device is to be forgotten."""
        row = await self._pool.fetchrow(
            """
            INSERT INTO erasures (lane, app_id, erasure_id, work) VALUES ($1, $2, $3, $4)
            RETURNING app_id, erasure_id, request_time, finish_time, erased_counts, work
            """,
            lane_of(app_id),
            app_id,
            uuid.uuid4(),
            asdict(Work(device_ids=[device_id])),
        )
        assert row is not None
        return _erasure(row)

    async def find(self, app_id: str, erasure_id: uuid.UUID) -> Erasure | None:
        """An erasure of an app, as it stands."""
        row = await self._pool.fetchrow(
            """
            SELECT app_id, erasure_id, request_time, finish_time, erased_counts, work FROM erasures
            WHERE lane = $1 AND app_id = $2 AND erasure_id = $3
            """,
            lane_of(app_id),
            app_id,
            erasure_id,
        )
        return None if row is None else _erasure(row)

    async def under_way(self, lanes: Collection[int]) -> list[Erasure]:
        """Those of the apps of these lanes that are not done, longest asked for first, some at a time."""
        rows = await self._pool.fetch(
            """
            SELECT app_id, erasure_id, request_time, finish_time, erased_counts, work FROM erasures
            WHERE lane = ANY($1) AND work IS NOT NULL ORDER BY request_time LIMIT 100
            """,
            list(lanes),
        )
        return [_erasure(row) for row in rows]

    async def refused_links(self, erasure: Erasure, *, after: tuple[int, int], below: int) -> list[RefusedLink]:
        """Some of the app's refused identity links, in order of (time, sequence) after such a place; [] at the end.

        Only decisions with a sequence under `below`.
        """
        rows = await self._pool.fetch(
            """
            SELECT conversion_time_us, sequence, record FROM decisions
            WHERE lane = $1 AND app_id = $2 AND device_id = $3 AND (conversion_time_us, sequence) > ($4, $5)
              AND sequence < $6
            ORDER BY conversion_time_us, sequence LIMIT 1000
            """,
            erasure.lane,
            erasure.app_id,
            NOT_KNOWN,
            *after,
            below,
        )
        return [RefusedLink(*row) for row in rows]

    async def relayed(self, lane: int, sequence: int) -> bool:
        """Whether all decisions of a lane with a sequence under this one were handed to postback."""
        return bool(await self._pool.fetchval("SELECT relayed >= $2 FROM lanes WHERE lane = $1", lane, sequence))


async def save(connection: Connection, erasure: Erasure) -> None:
    """Store what is left of an erasure, and what was erased; without work it is finished."""
    await connection.execute(
        """
        UPDATE erasures SET work = $4, erased_counts = $5, finish_time = CASE WHEN $4::jsonb IS NULL THEN now() END
        WHERE lane = $1 AND app_id = $2 AND erasure_id = $3
        """,
        erasure.lane,
        erasure.app_id,
        erasure.erasure_id,
        None if erasure.work is None else asdict(erasure.work),
        erasure.erased_counts,
    )


# What is a device's.


async def known_below(connection: Connection, lane: int, taken: Sequence[int]) -> list[int]:
    """Per lane of the log, the position below which all engagements are stored, and all conversions homed in `lane`
    taken; `taken` is what the lane's owner knows of the latter."""
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
    """Those of the devices that are the app's, with all that turned out to be the same as one of them."""
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
    """The ids of devices, by kind."""
    rows = await connection.fetch("SELECT ids FROM devices WHERE device_id = ANY($1)", list(device_ids))
    return [row["ids"] for row in rows]


async def conversions_of(
    connection: Connection, app_id: str, device_ids: Collection[uuid.UUID]
) -> AsyncIterator[Received]:
    """All that was received of devices: decided in whatever version, or waiting."""
    async for row in connection.cursor(
        """
        SELECT conversion_id, record, known_ids FROM decisions
        WHERE lane = $1 AND app_id = $2 AND device_id = ANY($3)
        UNION ALL
        SELECT conversion_id, record, NULL FROM waiting WHERE lane = $1 AND app_id = $2 AND device_id = ANY($3)
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
    """Engagements under these keys, of those below these positions of the log."""
    rows = await connection.fetch(
        """
        SELECT engagement_id, time_us, tracker_id, device_keys, ip, click_id FROM engagements
        WHERE match_key = ANY($1) AND position < ($2::bigint[])[lane + 1]
        """,
        list(match_keys),
        list(below),
    )
    return {StoredEngagement(*row) for row in rows}


async def decided_again(connection: Connection, app_id: str, conversion_ids: Collection[str]) -> bool:
    """Whether a re-attribution has made a version of one of these conversions."""
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
    """Decisions that hold the record of an engagement and may hold one of these: they are of devices that one has won.

    Not only what it won: what is credited to such a source holds the record, too.
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


# Erasing.


async def erase_devices(connection: Connection, app_id: str, device_ids: Collection[uuid.UUID]) -> dict[str, int]:
    """Delete devices and all that names them; answers rows by table."""
    lane, wanted = lane_of(app_id), list(device_ids)
    of_app = "WHERE lane = $1 AND app_id = $2 AND device_id = ANY($3)"
    return {
        "decisions": _count(await connection.execute(f"DELETE FROM decisions {of_app}", lane, app_id, wanted)),
        "waiting": _count(await connection.execute(f"DELETE FROM waiting {of_app}", lane, app_id, wanted)),
        "identifiers": _count(await connection.execute("DELETE FROM identifiers WHERE device_id = ANY($1)", wanted)),
        "devices": _count(await connection.execute("DELETE FROM devices WHERE device_id = ANY($1)", wanted)),
    }


async def erase_engagements(
    connection: Connection, app_id: str, engagements: Collection[StoredEngagement]
) -> dict[str, int]:
    """Delete engagements, at least one, under all their keys; answers rows by table."""
    rows = [
        (key, each.time_us, each.engagement_id)
        for each in engagements
        for key in possible_keys(app_id, each.engagement_id, _split(each.device_keys), each.ip)
    ]
    clicks = [
        (network_click_key(each.tracker_id, each.click_id), each.time_us, each.engagement_id)
        for each in engagements
        if each.click_id
    ]
    return {
        "engagements": _count(
            await connection.execute(
                """
                DELETE FROM engagements AS stored USING unnest($1::bytea[], $2::bigint[], $3::text[])
                    AS erased (match_key, time_us, engagement_id)
                WHERE (stored.match_key, stored.time_us, stored.engagement_id)
                    = (erased.match_key, erased.time_us, erased.engagement_id)
                """,
                *_columns(rows),
            )
        ),
        "network_clicks": _count(
            await connection.execute(
                """
                DELETE FROM network_clicks AS click USING unnest($1::bytea[], $2::bigint[], $3::text[])
                    AS erased (click_key, time_us, engagement_id)
                WHERE (click.click_key, click.time_us, click.engagement_id)
                    = (erased.click_key, erased.time_us, erased.engagement_id)
                """,
                *_columns(clicks),
            )
        )
        if clicks
        else 0,
    }


async def strip_decisions(connection: Connection, lane: int, sequences: Collection[int]) -> None:
    """Take the record of their engagement from decisions."""
    await connection.execute(
        "UPDATE decisions SET engagement = NULL WHERE lane = $1 AND sequence = ANY($2)", lane, list(sequences)
    )


async def erase_decisions(connection: Connection, lane: int, sequences: Collection[int]) -> int:
    """Delete decisions of a lane; answers how many."""
    return _count(
        await connection.execute("DELETE FROM decisions WHERE lane = $1 AND sequence = ANY($2)", lane, list(sequences))
    )


def _erasure(row: Any) -> Erasure:
    work = row["work"]
    return Erasure(
        app_id=row["app_id"],
        erasure_id=row["erasure_id"],
        request_time=row["request_time"],
        finish_time=row["finish_time"],
        erased_counts=row["erased_counts"],
        work=None if work is None else Work(**work),
    )


def _split(device_keys: bytes) -> list[bytes]:
    return [device_keys[at : at + 16] for at in range(0, len(device_keys), 16)]


def _columns(rows: Sequence[Sequence[Any]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]


def _count(tag: str) -> int:
    return int(tag.rpartition(" ")[2])
