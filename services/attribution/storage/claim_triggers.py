"""The table of claim triggers: which networks are asked about which conversions, as postback said last."""

from collections.abc import Collection
from typing import TypeAlias

from libs.db import Pool, transactions

Trigger: TypeAlias = tuple[str, str, str]
"""App id, event name (`_install` for an install) and network id."""


async def read(pool: Pool) -> list[Trigger]:
    """Returns all triggers."""
    rows = await pool.fetch("SELECT app_id, event_name, network_id FROM claim_triggers")
    return [(row["app_id"], row["event_name"], row["network_id"]) for row in rows]


async def replace(pool: Pool, triggers: Collection[Trigger]) -> None:
    """Stores triggers in the place of all others. Every replica stores what it hears; they may do so at once."""
    # In one order, so that replicas do not deadlock.
    columns = [list(column) for column in zip(*sorted(triggers), strict=True)] or [[], [], []]
    async for attempt in transactions(pool):
        async with attempt as connection:
            await connection.execute(
                """
                DELETE FROM claim_triggers WHERE (app_id, event_name, network_id) NOT IN (
                    SELECT * FROM unnest($1::text[], $2::text[], $3::text[])
                )
                """,
                *columns,
            )
            await connection.execute(
                """
                INSERT INTO claim_triggers (app_id, event_name, network_id)
                SELECT * FROM unnest($1::text[], $2::text[], $3::text[])
                ON CONFLICT DO NOTHING
                """,
                *columns,
            )
