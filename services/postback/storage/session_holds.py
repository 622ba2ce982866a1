"""The queries on session holds: at most one session of a device is told to a NETWORK_ONLY postback in 24 hours."""

from collections.abc import Sequence

from libs.db import Connection
from libs.time import DAY_US
from services.postback.model import NewDelivery


async def let_go(deliveries: Sequence[NewDelivery], connection: Connection) -> list[NewDelivery]:
    """Returns those that come 24 hours or more after the last told of their device, oldest first.

    Notes each as the last told.
    """
    let_go: list[NewDelivery] = []
    left = sorted(deliveries, key=lambda new: (new.configuration_id, new.device_id, new.conversion_us))
    while left:
        # One of a device at a time: a statement may write a row once only.
        first = {(new.configuration_id, new.device_id): new for new in reversed(left)}
        rows = await connection.fetch(
            """
            INSERT INTO session_holds AS held (configuration_id, device_id, told_us)
            SELECT configuration_id, device_id, told_us
            FROM unnest($1::text[], $2::text[], $3::bigint[]) AS told (configuration_id, device_id, told_us)
            ON CONFLICT (configuration_id, device_id) DO UPDATE SET told_us = excluded.told_us
            WHERE excluded.told_us >= held.told_us + $4 -- a day
            RETURNING configuration_id, device_id
            """,
            [configuration_id for configuration_id, _ in sorted(first)],
            [device_id for _, device_id in sorted(first)],
            [first[key].conversion_us for key in sorted(first)],
            DAY_US,
        )
        let_go += [first[row["configuration_id"], row["device_id"]] for row in rows]
        taken = set(map(id, first.values()))
        left = [new for new in left if id(new) not in taken]
    return let_go


async def release(deliveries: Sequence[NewDelivery], connection: Connection) -> None:
    """Undoes the holds of sessions that are not told after all."""
    await connection.execute(
        """
        UPDATE session_holds AS held
        SET told_us = held.told_us - $4 -- a day: whatever was told before was told by then
        FROM unnest($1::text[], $2::text[], $3::bigint[]) AS untold (configuration_id, device_id, told_us)
        WHERE held.configuration_id = untold.configuration_id AND held.device_id = untold.device_id
            AND held.told_us = untold.told_us
        """,
        [new.configuration_id for new in deliveries],
        [new.device_id for new in deliveries],
        [new.conversion_us for new in deliveries],
        DAY_US,
    )
