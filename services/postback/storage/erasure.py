"""The queries that erase what is kept of conversions and devices."""

from collections.abc import Collection, Sequence

import asyncpg

from libs.db import Connection, Pool, rows_affected, transactions
from reengage.postback.v1.conversion_pb2 import Conversion


class ErasureStore:
    """The queries that erase, each in a transaction of its own."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def erase(
        self, *, app_id: str, conversion_ids: Collection[str], device_ids: Collection[str]
    ) -> dict[str, int]:
        """Deletes all that is kept of an app's conversions and devices; returns the number of rows by table."""
        counts: dict[str, int] = {}
        async for attempt in transactions(self._pool):
            async with attempt as connection:
                deliveries = await _delete_deliveries(app_id, conversion_ids, connection)
                # A statement later: whoever noted an attempt held its delivery until that was to be seen.
                counts = {
                    "deliveries": len(deliveries),
                    "attempts": await _delete_attempts(deliveries, connection),
                    "session_holds": await _delete_session_holds(app_id, device_ids, connection),
                }
        return counts

    async def strip(self, *, app_id: str, conversion_ids: Collection[str]) -> None:
        """Takes the engagement from the deliveries of these conversions."""
        if not conversion_ids:
            return
        async for attempt in transactions(self._pool):
            async with attempt as connection:
                rows = await connection.fetch(
                    """
                    SELECT delivery_id, configuration_id, conversion
                    FROM deliveries
                    WHERE (app_id, conversion_id) IN (SELECT * FROM unnest($1::text[], $2::text[]))
                    ORDER BY delivery_id
                    FOR UPDATE
                    """,
                    [app_id] * len(conversion_ids),
                    list(conversion_ids),
                )
                await connection.execute(
                    """
                    UPDATE deliveries AS delivery
                    SET conversion = stripped.conversion
                    FROM unnest($1::uuid[], $2::text[], $3::bytea[])
                        AS stripped (delivery_id, configuration_id, conversion)
                    WHERE delivery.delivery_id = stripped.delivery_id
                        AND delivery.configuration_id = stripped.configuration_id
                    """,
                    [row["delivery_id"] for row in rows],
                    [row["configuration_id"] for row in rows],
                    [_without_engagement(row["conversion"]) for row in rows],
                )


def _without_engagement(serialised: bytes) -> bytes:
    conversion = Conversion.FromString(serialised)
    conversion.ClearField("engagement")
    return conversion.SerializeToString()


async def _delete_deliveries(
    app_id: str, conversion_ids: Collection[str], connection: Connection
) -> Sequence[asyncpg.Record]:
    return await connection.fetch(
        """
        DELETE FROM deliveries
        WHERE (delivery_id, configuration_id) IN (
            SELECT delivery_id, configuration_id
            FROM deliveries
            -- In pairs: were it told that the app is one, the planner would walk through all of it.
            WHERE (app_id, conversion_id) IN (SELECT * FROM unnest($1::text[], $2::text[]))
            -- In the order that settling takes them in.
            ORDER BY delivery_id
            FOR UPDATE
        )
        RETURNING delivery_id, configuration_id
        """,
        [app_id] * len(conversion_ids),
        list(conversion_ids),
    )


async def _delete_attempts(deliveries: Sequence[asyncpg.Record], connection: Connection) -> int:
    tag = await connection.execute(
        """
        DELETE FROM attempts
        WHERE (delivery_id, configuration_id) IN (SELECT * FROM unnest($1::uuid[], $2::text[]))
        """,
        [row["delivery_id"] for row in deliveries],
        [row["configuration_id"] for row in deliveries],
    )
    return rows_affected(tag)


async def _delete_session_holds(app_id: str, device_ids: Collection[str], connection: Connection) -> int:
    tag = await connection.execute(
        """
        DELETE FROM session_holds
        WHERE configuration_id IN (SELECT configuration_id FROM configurations WHERE app_id = $1)
            AND device_id = ANY($2)
        """,
        app_id,
        list(device_ids),
    )
    return rows_affected(tag)
