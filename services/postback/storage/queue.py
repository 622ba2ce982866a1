"""The queue of deliveries: those that are due are leased, and settled when their attempts have ended."""

from collections.abc import Collection, Sequence
from uuid import UUID, uuid4

from libs.db import Connection, Pool, columns, transactions
from libs.parts import PART_BYTES
from services.postback.model import Leased, LeaseRequest, Settled
from services.postback.storage.configurations import next_revision

_LEASE_FIRST_TRIES = """
    WITH found AS (
        SELECT due.*
        FROM unnest($1::text[], $2::int[], $3::bigint[]) AS wanted (configuration_id, room, length_us)
        CROSS JOIN LATERAL (
            SELECT
                delivery_id, configuration_id, conversion_us, retention_days, redelivery_count, attempt_count, lease_id,
                leased_us, due_us, wanted.length_us, octet_length(conversion) AS bytes
            FROM deliveries
            -- As the partial index says; one configuration's backlog is not read for another.
            WHERE configuration_id = wanted.configuration_id AND state = 1 AND attempt_count = 0 -- PENDING
                AND due_us <= now_us()
                -- A lease ends before its attempt only where the clock was set: it is not told twice for that.
                AND (lease_id IS NULL OR lease_id <> ALL ($6::uuid []))
            ORDER BY due_us
            LIMIT wanted.room
            FOR UPDATE SKIP LOCKED
        ) AS due
        LIMIT $4
    ), picked AS (
        SELECT *
        FROM (SELECT *, sum(bytes) OVER (ORDER BY due_us, delivery_id) - bytes AS bytes_before FROM found) AS summed
        WHERE bytes_before < $7
    ), interrupted AS (
        -- A lease that ended without a word.
        INSERT INTO attempts (
            delivery_id, configuration_id, conversion_us, retention_days, redelivery_count, number, start_us, verdict,
            attempt
        )
        SELECT
            delivery_id, configuration_id, conversion_us, retention_days, redelivery_count, attempt_count, leased_us,
            10, '' -- INTERRUPTED
        FROM picked
        WHERE lease_id IS NOT NULL
        ON CONFLICT DO NOTHING
    )
    UPDATE deliveries AS delivery
    SET attempt_count = delivery.attempt_count + 1, lease_id = $5, leased_us = now_us(),
        due_us = now_us() + picked.length_us
    FROM picked
    WHERE delivery.delivery_id = picked.delivery_id AND delivery.configuration_id = picked.configuration_id
        AND delivery.conversion_us = picked.conversion_us AND delivery.retention_days = picked.retention_days
    RETURNING
        delivery.delivery_id, delivery.configuration_id, delivery.conversion_us, delivery.retention_days,
        delivery.conversion, delivery.attempt_count, delivery.failure_count, delivery.redelivery_count,
        delivery.superseded IS NOT NULL AS is_superseded, delivery.leased_us,
        delivery.leased_us - picked.due_us AS waited_us
"""
# Each kind has its own partial index, which a parameter could not choose.
_LEASE_RETRIES = _LEASE_FIRST_TRIES.replace("attempt_count = 0", "attempt_count > 0")


class Queue:
    """The queries on the queue, each in a transaction of its own."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def lease(
        self,
        wanted: Sequence[LeaseRequest],
        *,
        limit: int,
        retries: bool,
        max_bytes: int = PART_BYTES,
        under_way: Collection[UUID] = (),
    ) -> list[Leased]:
        """Leases up to `limit` deliveries that are due, first tries or retries, oldest first in a configuration.

        No more once their conversions have `max_bytes`.
        `under_way` are the leases that the caller has attempts under: what has one of them is not due.
        An attempt whose lease ended without a word is noted as INTERRUPTED.
        """
        lease_id = uuid4()
        rows = await self._pool.fetch(
            _LEASE_RETRIES if retries else _LEASE_FIRST_TRIES,
            [one.configuration_id for one in wanted],
            [one.room for one in wanted],
            [one.length_us for one in wanted],
            limit,
            lease_id,
            list(under_way),
            max_bytes,
        )
        return [
            Leased(
                lease_id=lease_id,
                delivery_id=row["delivery_id"],
                configuration_id=row["configuration_id"],
                conversion_us=row["conversion_us"],
                retention_days=row["retention_days"],
                conversion=row["conversion"],
                number=row["attempt_count"],
                failure_count=row["failure_count"],
                redelivery_count=row["redelivery_count"],
                is_superseded=row["is_superseded"],
                leased_us=row["leased_us"],
                waited_us=row["waited_us"],
            )
            for row in rows
        ]

    async def settle(self, batch: Sequence[Settled]) -> set[UUID]:
        """Notes attempts and what they make of their deliveries; returns those of decided conversions.

        A delivery that was leased by another meanwhile is left to that one; the attempt is kept all the same. Of one
        that was erased nothing is.
        """
        ordered = sorted(batch, key=lambda settled: settled.leased.delivery_id.int)
        pausing = sorted({one.leased.configuration_id for one in ordered if one.pauses_configuration})
        decided: set[UUID] = set()
        async for attempt in transactions(self._pool):
            async with attempt as connection:
                decided_by_id = await _settle(ordered, connection)
                lost = [one for one in ordered if one.leased.delivery_id not in decided_by_id]
                there = decided_by_id.keys() | (await _locked(lost, connection) if lost else set())
                await _note_attempts([one for one in ordered if one.leased.delivery_id in there], connection)
                if pausing:
                    await _pause(pausing, connection)
                decided = {delivery_id for delivery_id, is_decided in decided_by_id.items() if is_decided}
        return decided


async def _settle(batch: Sequence[Settled], connection: Connection) -> dict[UUID, bool]:
    """Returns the deliveries whose lease still held, each with whether its conversion has been decided."""
    rows = await connection.fetch(
        """
        UPDATE deliveries AS delivery
        SET state = settled.state,
            failure_count = delivery.failure_count + (settled.state NOT IN (2, 5))::int, -- DELIVERED, SUPERSEDED
            -- What was superseded meanwhile waits for nothing: it is only to end.
            due_us = now_us() + CASE WHEN delivery.superseded IS NULL THEN settled.wait_us ELSE 0 END,
            end_us = CASE WHEN settled.state <> 1 THEN now_us() END, -- PENDING
            lease_id = NULL, leased_us = NULL,
            -- The first one stays: a decision may rest on it.
            network_claim = coalesce(delivery.network_claim, settled.network_claim)
        FROM unnest(
            $1::uuid[], $2::text[], $3::uuid[], $4::smallint[], $5::bigint[], $6::bytea[], $7::bigint[], $8::smallint[]
        ) AS settled (
            delivery_id, configuration_id, lease_id, state, wait_us, network_claim, conversion_us, retention_days
        )
        WHERE delivery.delivery_id = settled.delivery_id
            AND delivery.configuration_id = settled.configuration_id
            AND delivery.conversion_us = settled.conversion_us
            AND delivery.retention_days = settled.retention_days
            -- The fence: a lease that ended is another's.
            AND delivery.lease_id = settled.lease_id
            -- By a yet newer version it is to be sent after all: once this lease has ended.
            AND (settled.state <> 5 OR delivery.superseded IS NOT NULL) -- SUPERSEDED
        RETURNING delivery.delivery_id, NOT delivery.awaits_decision AS is_decided
        """,
        [one.leased.delivery_id for one in batch],
        [one.leased.configuration_id for one in batch],
        [one.leased.lease_id for one in batch],
        [one.state for one in batch],
        [one.wait_us for one in batch],
        [one.network_claim for one in batch],
        [one.leased.conversion_us for one in batch],
        [one.leased.retention_days for one in batch],
    )
    return {row["delivery_id"]: row["is_decided"] for row in rows}


async def _locked(batch: Sequence[Settled], connection: Connection) -> set[UUID]:
    """Returns the deliveries that have not been erased, and keeps them from it until the transaction ends."""
    rows = await connection.fetch(
        """
        SELECT delivery_id
        FROM deliveries
        WHERE (delivery_id, configuration_id) IN (SELECT * FROM unnest($1::uuid[], $2::text[]))
        ORDER BY delivery_id
        FOR KEY SHARE
        """,
        *columns([(one.leased.delivery_id, one.leased.configuration_id) for one in batch], 2),
    )
    return {row["delivery_id"] for row in rows}


async def _note_attempts(batch: Sequence[Settled], connection: Connection) -> None:
    await connection.execute(
        """
        INSERT INTO attempts (
            delivery_id, configuration_id, redelivery_count, number, start_us, verdict, attempt, conversion_us,
            retention_days
        )
        SELECT
            delivery_id, configuration_id, redelivery_count, number, start_us, verdict, attempt, conversion_us,
            retention_days
        FROM unnest(
            $1::uuid[], $2::text[], $3::int[], $4::int[], $5::bigint[], $6::smallint[], $7::bytea[], $8::bigint[],
            $9::smallint[]
        ) AS made (
            delivery_id, configuration_id, redelivery_count, number, start_us, verdict, attempt, conversion_us,
            retention_days
        )
        -- Given up for interrupted by another, but here is what really became of it.
        ON CONFLICT (delivery_id, configuration_id, redelivery_count, number, conversion_us, retention_days)
        DO UPDATE SET verdict = excluded.verdict, attempt = excluded.attempt
        """,
        [one.leased.delivery_id for one in batch],
        [one.leased.configuration_id for one in batch],
        [one.leased.redelivery_count for one in batch],
        [one.leased.number for one in batch],
        [one.leased.leased_us for one in batch],
        [one.verdict for one in batch],
        [one.attempt for one in batch],
        [one.leased.conversion_us for one in batch],
        [one.leased.retention_days for one in batch],
    )


async def _pause(configuration_ids: Sequence[str], connection: Connection) -> None:
    await connection.execute(
        """
        UPDATE configurations
        SET status = 2, revision = $2, update_us = now_us() -- PAUSED
        WHERE configuration_id = ANY($1) AND status = 1 -- LIVE
        """,
        configuration_ids,
        await next_revision(connection),
    )
