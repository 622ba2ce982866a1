"""The table of pending conversions: those that wait for claims of self-attributing networks (E1), or behind one.

And those that are taken only once the hashes of ids are indexed (A3).

Only the worker that owns an app's lane writes its rows, in the transactions that also write decisions.
"""

import uuid
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, TypeAlias

from libs.db import Connection, Pool, columns
from services.attribution.decision.history import DeviceHistory
from services.attribution.storage.devices import NO_DEVICE

Key: TypeAlias = tuple[str, str]
"""App id and conversion id."""
Place: TypeAlias = tuple[int, int, int]
"""A place in the order of receipt: time, lane and position of a record."""
FIRST_PLACE: Place = (-(2**63), 0, 0)
"""The place before all records."""


class PendingRow(NamedTuple):
    """A conversion that waits, in the columns of the table.

    Without `network_ids` it only waits for an earlier one of its device, or, without a device, for the hashes of ids
    (A3). `claims` are set once nothing more is to come.
    """

    lane: int
    app_id: str
    conversion_id: str
    device_id: uuid.UUID
    is_install: bool
    log_lane: int
    position: int
    receive_time_us: int
    settings_revision: int
    record: bytes
    network_ids: list[str]
    deadline_us: int
    claims: bytes | None = None

    @property
    def key(self) -> Key:
        return self.app_id, self.conversion_id

    @property
    def record_bytes(self) -> int:
        return len(self.record)

    @property
    def is_asked_about(self) -> bool:
        return bool(self.network_ids)

    @property
    def is_answered(self) -> bool:
        return self.claims is not None

    @property
    def place(self) -> Place:
        return self.receive_time_us, self.log_lane, self.position


class Waiting(NamedTuple):
    """A conversion that waits, without its record: a device may have very many."""

    lane: int
    app_id: str
    conversion_id: str
    device_id: uuid.UUID
    is_install: bool
    log_lane: int
    position: int
    receive_time_us: int
    size: int
    """The bytes of its record, and of the claims."""
    is_asked_about: bool
    is_answered: bool

    @property
    def place(self) -> Place:
        """Returns its place in the order of receipt."""
        return self.receive_time_us, self.log_lane, self.position


class Unanswered(NamedTuple):
    """A conversion that networks are to be asked about."""

    lane: int
    app_id: str
    conversion_id: str
    network_ids: list[str]
    deadline_us: int
    record_bytes: int


class Asked(NamedTuple):
    """A conversion as networks are told of it, and the history of its device as it is now."""

    record: bytes
    device_id: uuid.UUID
    receive_time_us: int
    history: DeviceHistory


class Mark(NamedTuple):
    """The state that a worker must have reached before it decides what was pending when it took the lanes over."""

    positions: Mapping[int, int]
    settings_revision: int

    def is_reached(self, heads: Sequence[int], settings_revision: int) -> bool:
        """Returns whether engagements are indexed up to these conversions, and settings as new as theirs are in use."""
        return settings_revision >= self.settings_revision and all(
            position < heads[lane] for lane, position in self.positions.items()
        )


class Overview(NamedTuple):
    """The number of pending conversions, of those that lack answers, and the earliest deadline."""

    pending: int
    unanswered: int
    earliest_deadline_us: int | None


async def insert(connection: Connection, rows: Collection[PendingRow]) -> None:
    """Has conversions wait."""
    await connection.execute(
        """
        INSERT INTO pending_conversions (
            lane, app_id, conversion_id, device_id, is_install, log_lane, position, receive_time_us, settings_revision,
            record, network_ids, deadline_us, claims
        )
        SELECT
            lane, app_id, conversion_id, device_id, is_install, log_lane, position, receive_time_us, settings_revision,
            record, string_to_array(network_ids, ' '), deadline_us, claims
        FROM unnest(
            $1::smallint[], $2::text[], $3::text[], $4::uuid[], $5::boolean[], $6::smallint[], $7::bigint[],
            $8::bigint[], $9::bigint[], $10::bytea[], $11::text[], $12::bigint[], $13::bytea[]
        ) AS row (
            lane, app_id, conversion_id, device_id, is_install, log_lane, position, receive_time_us, settings_revision,
            record, network_ids, deadline_us, claims
        )
        """,
        # Joined, because unnest would take an array of arrays apart.
        *columns(((*row[:10], " ".join(row.network_ids), *row[11:]) for row in rows), len(PendingRow._fields)),
    )


async def take(connection: Connection, rows: Collection[PendingRow | Waiting]) -> list[PendingRow]:
    """Has these wait no longer; returns those that still did, in the order given."""
    taken = await connection.fetch(
        """
        DELETE FROM pending_conversions AS pending
        USING unnest($1::smallint[], $2::text[], $3::text[]) AS row (lane, app_id, conversion_id)
        WHERE pending.lane = row.lane AND pending.conversion_id = row.conversion_id AND pending.app_id = row.app_id
        RETURNING pending.lane, pending.app_id, pending.conversion_id, device_id, is_install, log_lane, position,
            receive_time_us, settings_revision, record, network_ids, deadline_us, claims
        """,
        *columns(((row.lane, row.app_id, row.conversion_id) for row in rows), 3),
    )
    found = {row.key: row for row in (PendingRow(*row) for row in taken)}
    return [found[key] for row in rows if (key := (row.app_id, row.conversion_id)) in found]


async def move(connection: Connection, merged: Mapping[tuple[int, uuid.UUID], uuid.UUID]) -> None:
    """Gives what waits of devices (lane, device id) to those that they turned out to be."""
    await connection.execute(
        """
        UPDATE pending_conversions AS pending SET device_id = moved.into_id
        FROM unnest($1::smallint[], $2::uuid[], $3::uuid[]) AS moved (lane, device_id, into_id)
        WHERE pending.lane = moved.lane AND pending.device_id = moved.device_id
        """,
        *columns(((lane, device_id, into_id) for (lane, device_id), into_id in merged.items()), 3),
    )


async def already_pending(connection: Connection, conversions: Collection[tuple[int, str]]) -> set[Key]:
    """Returns those of the conversions (lane, conversion id) that wait."""
    rows = await connection.fetch(
        """
        SELECT app_id, conversion_id FROM unnest($1::smallint[], $2::text[]) AS asked (lane, conversion_id)
        JOIN pending_conversions USING (lane, conversion_id)
        """,
        *columns(conversions, 2),
    )
    return {(row["app_id"], row["conversion_id"]) for row in rows}


async def held_devices(connection: Connection, devices: Collection[tuple[int, uuid.UUID]]) -> set[uuid.UUID]:
    """Returns those of the devices (lane, device id) that have a pending install."""
    if not devices:
        return set()
    rows = await connection.fetch(
        """
        SELECT DISTINCT device_id FROM unnest($1::smallint[], $2::uuid[]) AS asked (lane, device_id)
        JOIN pending_conversions USING (lane, device_id) WHERE is_install
        """,
        *columns(devices, 2),
    )
    return {row["device_id"] for row in rows}


async def answer(connection: Connection, answers: Mapping[tuple[int, str, str], bytes]) -> set[tuple[int, uuid.UUID]]:
    """Stores the answers about conversions (lane, app id, conversion id), and returns (lane, device id) of each."""
    rows = await connection.fetch(
        """
        UPDATE pending_conversions AS pending SET claims = answer.claims
        FROM unnest($1::smallint[], $2::text[], $3::text[], $4::bytea[]) AS answer (lane, app_id, conversion_id, claims)
        WHERE pending.lane = answer.lane AND pending.conversion_id = answer.conversion_id
          AND pending.app_id = answer.app_id
        RETURNING pending.lane, pending.device_id
        """,
        *columns(((*key, claims) for key, claims in answers.items()), 4),
    )
    return {(row["lane"], row["device_id"]) for row in rows}


async def of_devices(connection: Connection, devices: Collection[tuple[int, uuid.UUID]]) -> list[Waiting]:
    """Returns all that waits of the devices (lane, device id), in order of device and receipt, without the records."""
    if not devices:
        return []
    rows = await connection.fetch(
        """
        SELECT lane, app_id, conversion_id, device_id, is_install, log_lane, position, receive_time_us,
            octet_length(record) + coalesce(octet_length(claims), 0) AS size,
            cardinality(network_ids) > 0 AS is_asked_about, claims IS NOT NULL AS is_answered
        FROM unnest($1::smallint[], $2::uuid[]) AS asked (lane, device_id)
        JOIN pending_conversions USING (lane, device_id)
        ORDER BY device_id, receive_time_us, log_lane, position
        """,
        *columns(devices, 2),
    )
    return [Waiting(*row) for row in rows]


async def devices(pool: Pool, lanes: Collection[int]) -> list[tuple[int, uuid.UUID]]:
    """Returns the devices (lane, device id) of which something waits; without those that are not known yet (A3)."""
    rows = await pool.fetch(
        """
        SELECT DISTINCT lane, device_id FROM pending_conversions WHERE lane = ANY($1) AND device_id <> $2
        """,
        list(lanes),
        NO_DEVICE,
    )
    return [(row["lane"], row["device_id"]) for row in rows]


async def unanswered(pool: Pool, lanes: Collection[int], limit: int) -> list[Unanswered]:
    """Returns conversions of these lanes that networks are to be asked about, those received first."""
    rows = await pool.fetch(
        """
        SELECT lane, app_id, conversion_id, network_ids, deadline_us, octet_length(record) AS record_bytes
        FROM pending_conversions
        WHERE lane = ANY($1) AND claims IS NULL AND cardinality(network_ids) > 0
        ORDER BY receive_time_us LIMIT $2
        """,
        list(lanes),
        limit,
    )
    return [Unanswered(*row) for row in rows]


async def to_ask(pool: Pool, conversions: Collection[tuple[int, str, str]]) -> dict[Key, Asked]:
    """Returns what networks are told of conversions (lane, app id, conversion id), of those that still wait."""
    rows = await pool.fetch(
        """
        SELECT pending.app_id, conversion_id, record, device_id, receive_time_us, history
        FROM unnest($1::smallint[], $2::text[], $3::text[]) AS asked (lane, app_id, conversion_id)
        JOIN pending_conversions AS pending USING (lane, conversion_id, app_id)
        JOIN devices USING (device_id)
        """,
        *columns(conversions, 3),
    )
    return {
        (row["app_id"], row["conversion_id"]): Asked(
            row["record"], row["device_id"], row["receive_time_us"], DeviceHistory.from_json(row["history"])
        )
        for row in rows
    }


async def mark(pool: Pool, lanes: Collection[int]) -> Mark:
    """Returns the mark of all that waits in these lanes now."""
    rows = await pool.fetch(
        """
        SELECT log_lane, max(position) AS position, max(settings_revision) AS settings_revision
        FROM pending_conversions WHERE lane = ANY($1) GROUP BY log_lane
        """,
        list(lanes),
    )
    return Mark(
        {row["log_lane"]: row["position"] for row in rows}, max((row["settings_revision"] for row in rows), default=0)
    )


async def find_early(pool: Pool, lane: int, app_id: str, after: Place, limit: int) -> list[PendingRow]:
    """Returns conversions of an app that wait for the hashes of ids (A3), in order of receipt.

    Those after a place in that order, up to `limit`.
    """
    rows = await pool.fetch(
        """
        SELECT lane, app_id, conversion_id, device_id, is_install, log_lane, position, receive_time_us,
            settings_revision, record, network_ids, deadline_us, claims
        FROM pending_conversions
        WHERE lane = $1 AND app_id = $2 AND device_id = $3
          AND (receive_time_us, log_lane, position) > ($4, $5, $6)
        ORDER BY receive_time_us, log_lane, position LIMIT $7
        """,
        lane,
        app_id,
        NO_DEVICE,
        *after,
        limit,
    )
    return [PendingRow(*row) for row in rows]


async def count_early(pool: Pool, lanes: Collection[int], app_id: str | None = None) -> int:
    """Returns how many conversions of these lanes, or of one of their apps, wait for the hashes of ids (A3)."""
    count: int = await pool.fetchval(
        """
        SELECT count(*) FROM pending_conversions
        WHERE lane = ANY($1) AND device_id = $2 AND ($3::text IS NULL OR app_id = $3)
        """,
        list(lanes),
        NO_DEVICE,
        app_id,
    )
    return count


async def overview(pool: Pool, lanes: Collection[int]) -> Overview:
    """Returns how it stands with all that waits for claims in these lanes."""
    row = await pool.fetchrow(
        """
        SELECT count(*), count(*) FILTER (WHERE claims IS NULL AND cardinality(network_ids) > 0), min(deadline_us)
        FROM pending_conversions WHERE lane = ANY($1) AND device_id <> $2
        """,
        list(lanes),
        NO_DEVICE,
    )
    assert row is not None
    return Overview(*row)


async def pending_app_ids(pool: Pool, lanes: Collection[int]) -> set[str]:
    """Returns the apps with pending conversions in these lanes."""
    rows = await pool.fetch("SELECT DISTINCT app_id FROM pending_conversions WHERE lane = ANY($1)", list(lanes))
    return {row["app_id"] for row in rows}
