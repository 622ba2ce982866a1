"""The queries that give deliveries newer versions of their decisions (D12)."""

from collections.abc import Collection, Sequence
from typing import TypeAlias

import asyncpg

from libs.db import Connection
from services.postback.delivery import renewed
from services.postback.model import Handed, NewDelivery, State, Superseded
from services.postback.storage.session_holds import let_go, release

Lost: TypeAlias = tuple[NewDelivery, Superseded]
"""A newer version of a delivery, and why it is not to be sent (any more)."""


async def renew(handed: Collection[Handed], connection: Connection) -> tuple[int, list[Lost]]:
    """Gives deliveries that an older version made a newer one, which also says whether they are still to be sent.

    Returns how many are taken up again, and those that are superseded from now on. `handed` is of one version.
    """
    newer = {one.delivery.delivery_id: one for one in handed}
    stored = {row["delivery_id"]: row for row in await _older(list(newer.values()), connection)}
    states = {
        identity: renewed(State(row["state"]), newer[identity], is_under_way=row["is_under_way"])
        for identity, row in stored.items()
    }
    taken_up = [
        newer[identity].delivery
        for identity, state in states.items()
        if state is State.PENDING and stored[identity]["state"] == State.SUPERSEDED
    ]
    held = [one for one in taken_up if one.once_a_day]
    free = await let_go(held, connection) if held else []
    for one in held:
        if one not in free:
            states[one.delivery_id] = State.SUPERSEDED
    # What stays superseded though nothing supersedes it (its configuration is paused, another session was told) stays
    # as it is.
    changed = {
        identity: state
        for identity, state in states.items()
        if state is not State.SUPERSEDED or newer[identity].superseded is not None
    }
    if changed:
        await _write([(newer[identity], stored[identity], state) for identity, state in changed.items()], connection)
    lost = [
        (newer[identity].delivery, why)
        for identity in changed
        if (why := newer[identity].superseded) is not None and stored[identity]["superseded"] is None
    ]
    unsent = [one for one, _ in lost if one.once_a_day and changed[one.delivery_id] is State.SUPERSEDED]
    if unsent:
        await release(unsent, connection)
    return len(taken_up) - len(held) + len(free), lost


async def _older(handed: Sequence[Handed], connection: Connection) -> Sequence[asyncpg.Record]:
    """Returns the deliveries that hold an older version, and keeps them from others until the transaction ends."""
    return await connection.fetch(
        """
        SELECT
            delivery.delivery_id, delivery.state, delivery.superseded, delivery.retention_days,
            delivery.lease_id IS NOT NULL AS is_under_way
        FROM unnest($1::uuid[], $2::text[], $3::bigint[], $4::int[])
            AS newer (delivery_id, configuration_id, conversion_us, version)
        INNER JOIN deliveries AS delivery USING (delivery_id, configuration_id, conversion_us)
        WHERE delivery.version < newer.version
        -- In the order that settling takes them in.
        ORDER BY delivery.delivery_id
        FOR UPDATE OF delivery
        """,
        [one.delivery.delivery_id for one in handed],
        [one.delivery.configuration_id for one in handed],
        [one.delivery.conversion_us for one in handed],
        [one.delivery.version for one in handed],
    )


async def _write(changes: Sequence[tuple[Handed, asyncpg.Record, State]], connection: Connection) -> None:
    await connection.execute(
        """
        UPDATE deliveries AS delivery
        SET conversion = newer.conversion, version = newer.version, superseded = newer.superseded,
            awaits_decision = false, state = newer.state, -- one that is taken up again is due when it was
            end_us = CASE WHEN newer.state <> 1 THEN coalesce(delivery.end_us, now_us()) END -- PENDING
        FROM unnest(
            $1::uuid[], $2::text[], $3::bigint[], $4::smallint[], $5::bytea[], $6::int[], $7::smallint[], $8::smallint[]
        ) AS newer (
            delivery_id, configuration_id, conversion_us, retention_days, conversion, version, superseded, state
        )
        WHERE delivery.delivery_id = newer.delivery_id AND delivery.configuration_id = newer.configuration_id
            AND delivery.conversion_us = newer.conversion_us AND delivery.retention_days = newer.retention_days
        """,
        [one.delivery.delivery_id for one, _, _ in changes],
        [one.delivery.configuration_id for one, _, _ in changes],
        [one.delivery.conversion_us for one, _, _ in changes],
        [stored["retention_days"] for _, stored, _ in changes],
        [one.delivery.conversion for one, _, _ in changes],
        [one.delivery.version for one, _, _ in changes],
        [one.superseded for one, _, _ in changes],
        [state for _, _, state in changes],
    )
