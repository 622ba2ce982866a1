"""The queries on claim requests: deliveries that were made before their conversion was decided."""

from collections.abc import Collection, Sequence
from uuid import UUID

from libs.db import Pool, columns, transactions
from services.postback.model import NetworkAnswer, NewDelivery, State


class ClaimStore:
    """The queries on claim requests, each in a transaction of its own."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def decide(self, deliveries: Sequence[NewDelivery]) -> set[UUID]:
        """Gives deliveries that were made before their conversion was decided the decided one.

        Returns which of them hold a claim by now.
        """
        if not deliveries:
            return set()
        with_claim: set[UUID] = set()
        async for attempt in transactions(self._pool):
            async with attempt as connection:
                rows = await connection.fetch(
                    """
                    WITH awaiting AS (
                        SELECT
                            delivery.delivery_id, delivery.configuration_id, conversion_us, retention_days,
                            decided.conversion, decided.version
                        FROM unnest($1::uuid[], $2::text[], $3::bigint[], $4::bytea[], $5::int[])
                            AS decided (delivery_id, configuration_id, conversion_us, conversion, version)
                        INNER JOIN deliveries AS delivery USING (delivery_id, configuration_id, conversion_us)
                        WHERE delivery.awaits_decision
                        -- In the order that settling takes them in.
                        ORDER BY delivery.delivery_id
                        FOR UPDATE OF delivery
                    )
                    UPDATE deliveries AS delivery
                    SET conversion = awaiting.conversion, version = awaiting.version, awaits_decision = false
                    FROM awaiting
                    WHERE delivery.delivery_id = awaiting.delivery_id
                        AND delivery.configuration_id = awaiting.configuration_id
                        AND delivery.conversion_us = awaiting.conversion_us
                        AND delivery.retention_days = awaiting.retention_days
                    RETURNING delivery.delivery_id, delivery.network_claim IS NOT NULL AS has_claim
                    """,
                    [one.delivery_id for one in deliveries],
                    [one.configuration_id for one in deliveries],
                    [one.conversion_us for one in deliveries],
                    [one.conversion for one in deliveries],
                    [one.version for one in deliveries],
                )
                with_claim = {row["delivery_id"] for row in rows if row["has_claim"]}
        return with_claim

    async def answers(self, requests: Collection[tuple[str, UUID]]) -> dict[UUID, NetworkAnswer]:
        """Returns what is known of the answers to claim requests, named by configuration and delivery id."""
        rows = await self._pool.fetch(
            """
            SELECT
                delivery.delivery_id, state, network_claim, lease_id IS NOT NULL AS is_under_way,
                last.verdict AS last_verdict, last.attempt AS last_attempt
            FROM deliveries AS delivery
            LEFT JOIN LATERAL (
                SELECT verdict, attempt
                FROM attempts
                -- Most succeed at once: of these no attempt is looked for.
                WHERE delivery.attempt_count > 0 AND delivery.state <> 2 -- DELIVERED
                    AND delivery_id = delivery.delivery_id AND configuration_id = delivery.configuration_id
                    AND conversion_us = delivery.conversion_us AND retention_days = delivery.retention_days
                    AND redelivery_count = delivery.redelivery_count
                ORDER BY number DESC
                LIMIT 1
            ) AS last ON true
            WHERE (delivery.configuration_id, delivery.delivery_id) IN (SELECT * FROM unnest($1::text[], $2::uuid[]))
            """,
            *columns(list(requests), 2),
        )
        return {row["delivery_id"]: NetworkAnswer(**{**row, "state": State(row["state"])}) for row in rows}
