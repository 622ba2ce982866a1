"""The table of claim triggers: the conversions that claims are requested for, as postback said last."""

from collections.abc import Collection
from typing import TypeAlias

from libs.db import Connection, Pool, columns

Trigger: TypeAlias = tuple[str, str, str]
"""App id, event name (`_install` for an install) and network id."""


async def read(pool: Pool) -> list[Trigger]:
    """Returns all triggers."""
    rows = await pool.fetch("SELECT app_id, event_name, network_id FROM claim_triggers")
    return [(row["app_id"], row["event_name"], row["network_id"]) for row in rows]


async def replace(connection: Connection, triggers: Collection[Trigger]) -> None:
    """Stores these triggers and no others. Every replica stores the list it hears; they may do so at once."""
    arrays = columns(sorted(triggers), 3)
    await connection.execute(
        """
        DELETE FROM claim_triggers WHERE (app_id, event_name, network_id) NOT IN (
            SELECT app_id, event_name, network_id
            FROM unnest($1::text[], $2::text[], $3::text[]) AS new (app_id, event_name, network_id)
        )
        """,
        *arrays,
    )
    await connection.execute(
        """
        INSERT INTO claim_triggers (app_id, event_name, network_id)
        SELECT app_id, event_name, network_id
        FROM unnest($1::text[], $2::text[], $3::text[]) AS new (app_id, event_name, network_id)
        ON CONFLICT DO NOTHING
        """,
        *arrays,
    )
