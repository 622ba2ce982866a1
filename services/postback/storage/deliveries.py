"""The queries that make deliveries, show them, and send them again."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from uuid import UUID

import asyncpg

from libs.db import Connection, Pool, columns, rows_affected, transactions
from libs.parts import PART_BYTES
from libs.periods import Periods
from libs.time import DAY_US
from services.postback.model import Handed, NewDelivery, State, Superseded
from services.postback.storage.session_holds import let_go
from services.postback.storage.versions import Lost, renew

MAX_KEY = (2**63 - 1, UUID(int=2**128 - 1))
"""Before it lie the keys of all deliveries: (create_us, delivery_id)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredDelivery:
    """A delivery as it is stored, without its conversion."""

    delivery_id: UUID
    configuration_id: str
    app_id: str
    network_id: str
    conversion_id: str
    event_name: str
    state: State
    create_us: int
    due_us: int | None
    """None while an attempt is under way."""
    end_us: int | None
    attempt_count: int
    redelivery_count: int
    version: int
    superseded: Superseded | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredAttempt:
    """An attempt as it is stored; `attempt` is a serialised message Attempt, empty when it was interrupted."""

    redelivery_count: int
    start_us: int
    verdict: int
    attempt: bytes


class DeliveryStore:
    """The queries on deliveries and on what holds them back, each in a transaction of its own."""

    def __init__(self, pool: Pool) -> None:
        self._pool, self._periods = pool, Periods(pool)

    async def enqueue(self, handed: Sequence[Handed]) -> tuple[int, list[Lost]]:
        """Makes the deliveries that are wanted and do not exist yet, and gives those that do newer versions, durably.

        Returns how many were made or taken up again, and those that are superseded from now on.
        """
        if not handed:
            return 0, []
        wanted = [one.delivery for one in handed if one.is_wanted]
        # Before, as both take a connection: were it inside, all could be held by those who wait for another.
        await self._periods.ensure((new.conversion_us, new.retention_days) for new in wanted)
        count, lost = 0, list[Lost]()
        async for attempt in transactions(self._pool):
            async with attempt as connection:
                count, lost = 0, []
                # Version by version: what a newer one supersedes is made all the same, so that a repeat makes nothing.
                for version in sorted({one.delivery.version for one in handed}):
                    some = [one for one in handed if one.delivery.version == version]
                    count += await _make([one.delivery for one in some if one.is_wanted], connection)
                    if version > 1:
                        taken_up_count, lost_now = await renew(some, connection)
                        count, lost = count + taken_up_count, lost + lost_now
        return count, lost

    async def told(self, conversions: Collection[tuple[str, str]]) -> set[tuple[str, str, str]]:
        """Returns those of (app, conversion) that were told or are to be, each with the configuration."""
        rows = await self._pool.fetch(
            """
            SELECT app_id, conversion_id, configuration_id
            FROM deliveries
            WHERE (app_id, conversion_id) IN (SELECT * FROM unnest($1::text[], $2::text[]))
                AND state <> 5 -- SUPERSEDED
            """,
            *columns(list(conversions), 2),
        )
        return {(row["app_id"], row["conversion_id"], row["configuration_id"]) for row in rows}

    async def held_back(self, deliveries: Sequence[NewDelivery]) -> set[tuple[str, str, str]]:
        """Returns those that would be held back for another of their device, by app, conversion and configuration."""
        if not deliveries:
            return set()
        rows = await self._pool.fetch(
            """
            SELECT configuration_id, device_id, told_us
            FROM session_holds
            WHERE (configuration_id, device_id) IN (SELECT * FROM unnest($1::text[], $2::text[]))
            """,
            [one.configuration_id for one in deliveries],
            [one.device_id for one in deliveries],
        )
        free_from = {(row["configuration_id"], row["device_id"]): row["told_us"] + DAY_US for row in rows}
        return {
            (one.app_id, one.conversion_id, one.configuration_id)
            for one in deliveries
            if one.conversion_us < free_from.get((one.configuration_id, one.device_id), one.conversion_us)
        }

    async def get(self, delivery_id: UUID) -> tuple[StoredDelivery, list[StoredAttempt], int] | None:
        """Returns a delivery with its attempts, oldest first, and the number of earlier ones: they fill a part."""
        async with (
            self._pool.acquire() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            row = await connection.fetchrow(
                """
                SELECT
                    delivery_id, configuration_id, app_id, network_id, conversion_id, event_name, version, superseded,
                    state, create_us, CASE WHEN lease_id IS NULL THEN due_us END AS due_us, end_us, attempt_count,
                    redelivery_count
                FROM deliveries
                WHERE delivery_id = $1
                """,
                delivery_id,
            )
            if row is None:
                return None
            attempts = await connection.fetch(
                """
                SELECT redelivery_count, start_us, verdict, attempt, earlier_count
                FROM (
                    SELECT redelivery_count, number, start_us, verdict, attempt,
                        sum(octet_length(attempt)) OVER (ORDER BY redelivery_count DESC, number DESC) AS bytes,
                        row_number() OVER (ORDER BY redelivery_count, number) - 1 AS earlier_count
                    FROM attempts
                    WHERE delivery_id = $1 AND configuration_id = $2
                ) AS newest
                WHERE bytes - octet_length(attempt) < $3
                ORDER BY redelivery_count, number
                """,
                delivery_id,
                row["configuration_id"],
                PART_BYTES,
            )
        shown = [
            StoredAttempt(
                redelivery_count=each["redelivery_count"],
                start_us=each["start_us"],
                verdict=each["verdict"],
                attempt=each["attempt"],
            )
            for each in attempts
        ]
        return _delivery(row), shown, attempts[0]["earlier_count"] if attempts else 0

    async def page(
        self,
        *,
        app_id: str,
        configuration_id: str,
        states: Collection[State],
        before: tuple[int, UUID],
        limit: int,
    ) -> list[StoredDelivery]:
        """Returns an app's deliveries, newest first, those before `before`. Empty filters let all pass."""
        rows = await self._pool.fetch(
            """
            SELECT
                delivery_id, configuration_id, app_id, network_id, conversion_id, event_name, version, superseded,
                state, create_us, CASE WHEN lease_id IS NULL THEN due_us END AS due_us, end_us, attempt_count,
                redelivery_count
            FROM deliveries
            WHERE app_id = $1
                AND ($2::text = '' OR configuration_id = $2)
                AND (cardinality($3::smallint[]) = 0 OR state = ANY($3))
                AND (create_us, delivery_id) < ($4::bigint, $5::uuid)
            ORDER BY create_us DESC, delivery_id DESC
            LIMIT $6
            """,
            app_id,
            configuration_id,
            list(states),
            *before,
            limit,
        )
        return [_delivery(row) for row in rows]

    async def page_of_conversion(
        self,
        *,
        app_id: str,
        conversion_id: str,
        configuration_id: str,
        states: Collection[State],
        before: tuple[int, UUID],
        limit: int,
    ) -> list[StoredDelivery]:
        """Returns what `page` returns, of one conversion. A query of its own, as its plan is another one."""
        rows = await self._pool.fetch(
            """
            SELECT
                delivery_id, configuration_id, app_id, network_id, conversion_id, event_name, version, superseded,
                state, create_us, CASE WHEN lease_id IS NULL THEN due_us END AS due_us, end_us, attempt_count,
                redelivery_count
            FROM deliveries
            WHERE app_id = $1 AND conversion_id = $2
                AND ($3::text = '' OR configuration_id = $3)
                AND (cardinality($4::smallint[]) = 0 OR state = ANY($4))
                AND (create_us, delivery_id) < ($5::bigint, $6::uuid)
            ORDER BY create_us DESC, delivery_id DESC
            LIMIT $7
            """,
            app_id,
            conversion_id,
            configuration_id,
            list(states),
            *before,
            limit,
        )
        return [_delivery(row) for row in rows]

    async def redeliver(self, *, request_id: str, delivery_id: UUID) -> int:
        """Begins a new run of a delivery that has ended; the same request within a day returns what it did before."""
        count = 0
        async for attempt in transactions(self._pool):
            async with attempt as connection:
                before = await _begin_request(request_id, connection)
                if before is None:
                    rows = await connection.fetch(
                        """
                        SELECT delivery_id, configuration_id, conversion_us, retention_days
                        FROM deliveries
                        WHERE delivery_id = $1 AND state <> 1 AND superseded IS NULL -- PENDING
                        FOR UPDATE
                        """,
                        delivery_id,
                    )
                    before = await _begin_runs(request_id, rows, connection)
                count = before
        return count

    async def redeliver_all(
        self, *, request_id: str, app_id: str, configuration_id: str, states: Collection[State], limit: int
    ) -> int:
        """Begins a new run of up to `limit` of an app's deliveries that ended in these states, the oldest first.

        Of one configuration, unless it is empty. The same request within a day returns what it did before.
        """
        count = 0
        async for attempt in transactions(self._pool):
            async with attempt as connection:
                before = await _begin_request(request_id, connection)
                if before is None:
                    rows = await connection.fetch(
                        """
                        SELECT delivery_id, configuration_id, conversion_us, retention_days
                        FROM deliveries
                        WHERE app_id = $1
                            AND ($2::text = '' OR configuration_id = $2)
                            AND state <> 1 AND superseded IS NULL -- PENDING
                            AND state = ANY($3::smallint[])
                        ORDER BY create_us, delivery_id
                        LIMIT $4
                        FOR UPDATE
                        """,
                        app_id,
                        configuration_id,
                        list(states),
                        limit,
                    )
                    before = await _begin_runs(request_id, rows, connection)
                count = before
        return count


async def _make(deliveries: Sequence[NewDelivery], connection: Connection) -> int:
    """Makes those that do not exist yet and are not held back; returns how many those were."""
    if not deliveries:
        return 0
    wanted = [new for new in deliveries if not new.once_a_day]
    if held := [new for new in deliveries if new.once_a_day]:
        made = await _made(held, connection)
        wanted += await let_go([new for new in held if new.delivery_id not in made], connection)
    return rows_affected(await _insert(wanted, connection))


async def _made(deliveries: Sequence[NewDelivery], connection: Connection) -> set[UUID]:
    """Returns those that exist, which take no hold again."""
    rows = await connection.fetch(
        """
        SELECT delivery_id
        FROM unnest($1::uuid[], $2::text[], $3::bigint[]) AS new (delivery_id, configuration_id, conversion_us)
        WHERE EXISTS (
            SELECT FROM deliveries AS made
            WHERE made.delivery_id = new.delivery_id AND made.configuration_id = new.configuration_id
                AND made.conversion_us = new.conversion_us
            OFFSET 0 -- as in making them
        )
        """,
        [new.delivery_id for new in deliveries],
        [new.configuration_id for new in deliveries],
        [new.conversion_us for new in deliveries],
    )
    return {row["delivery_id"] for row in rows}


async def _insert(deliveries: Sequence[NewDelivery], connection: Connection) -> str:
    """Makes those that do not exist yet; returns the command tag."""
    # In the order of their keys: batches that overlap must not wait for each other in a circle.
    ordered = sorted(deliveries, key=lambda new: new.delivery_id.int)
    return await connection.execute(
        """
        INSERT INTO deliveries (
            delivery_id, configuration_id, app_id, network_id, conversion_id, event_name, device_id, conversion, due_us,
            awaits_decision, conversion_us, retention_days, version
        )
        SELECT
            delivery_id, configuration_id, app_id, network_id, conversion_id, event_name, device_id, conversion,
            now_us() + delay_us, awaits_decision, conversion_us, retention_days, version
        FROM unnest(
            $1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::bytea[],
            $9::bigint[], $10::bool[], $11::bigint[], $12::smallint[], $13::int[]
        ) AS new (
            delivery_id, configuration_id, app_id, network_id, conversion_id, event_name, device_id, conversion,
            delay_us, awaits_decision, conversion_us, retention_days, version
        )
        WHERE NOT EXISTS (
            SELECT FROM deliveries AS made
            WHERE made.delivery_id = new.delivery_id AND made.configuration_id = new.configuration_id
                AND made.conversion_us = new.conversion_us
            -- Made when the app's retention was another one, it lies elsewhere. OFFSET 0 keeps the planner from joining
            -- all months: each row is looked for by itself, in its own.
            OFFSET 0
        ) AND NOT EXISTS (
            -- An older version that comes once more makes nothing: a newer one has said who is told.
            SELECT FROM deliveries AS told
            WHERE told.app_id = new.app_id AND told.conversion_id = new.conversion_id
                AND told.conversion_us = new.conversion_us AND told.version > greatest(new.version, 1)
            OFFSET 0
        )
        ON CONFLICT DO NOTHING
        """,
        [new.delivery_id for new in ordered],
        [new.configuration_id for new in ordered],
        [new.app_id for new in ordered],
        [new.network_id for new in ordered],
        [new.conversion_id for new in ordered],
        [new.event_name for new in ordered],
        [new.device_id for new in ordered],
        [new.conversion for new in ordered],
        [new.delay_us for new in ordered],
        [new.awaits_decision for new in ordered],
        [new.conversion_us for new in ordered],
        [new.retention_days for new in ordered],
        [new.version for new in ordered],
    )


async def _begin_request(request_id: str, connection: Connection) -> int | None:
    """Takes the key of a request to send again; returns what came of it when it was taken before, within a day."""
    await connection.execute("DELETE FROM redeliveries WHERE create_us < now_us() - $1", DAY_US)
    tag = await connection.execute(
        "INSERT INTO redeliveries (request_id) VALUES ($1) ON CONFLICT DO NOTHING", request_id
    )
    if rows_affected(tag) == 1:
        return None
    count: int = await connection.fetchval(
        "SELECT redelivered_count FROM redeliveries WHERE request_id = $1", request_id
    )
    return count


async def _begin_runs(request_id: str, rows: Sequence[asyncpg.Record], connection: Connection) -> int:
    """Begins a new run of deliveries that the transaction holds, and notes and returns how many they are."""
    await connection.execute(
        """
        UPDATE deliveries AS delivery
        SET state = 1, -- PENDING
            due_us = now_us(), end_us = NULL, attempt_count = 0, failure_count = 0,
            redelivery_count = delivery.redelivery_count + 1
        FROM unnest($1::uuid[], $2::text[], $3::bigint[], $4::smallint[])
            AS ended (delivery_id, configuration_id, conversion_us, retention_days)
        WHERE delivery.delivery_id = ended.delivery_id
            AND delivery.configuration_id = ended.configuration_id
            AND delivery.conversion_us = ended.conversion_us
            AND delivery.retention_days = ended.retention_days
        """,
        *columns([tuple(row) for row in rows], 4),
    )
    await connection.execute(
        "UPDATE redeliveries SET redelivered_count = $2 WHERE request_id = $1", request_id, len(rows)
    )
    return len(rows)


def _delivery(row: asyncpg.Record) -> StoredDelivery:
    superseded = None if row["superseded"] is None else Superseded(row["superseded"])
    return StoredDelivery(**{**dict(row), "state": State(row["state"]), "superseded": superseded})
