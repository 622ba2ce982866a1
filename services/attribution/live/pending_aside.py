"""Sets conversions aside that waited and cannot be decided."""

from collections.abc import Sequence

from reengage.attribution.v1 import quarantine_pb2
from services.attribution.live.changes import Changes
from services.attribution.live.owned_lanes import OwnedLanes
from services.attribution.live.pending import entry_of
from services.attribution.live.quarantine import entry_set_aside
from services.attribution.storage import pending
from services.attribution.storage.pending import PendingRow, Waiting


async def set_pending_aside(
    lanes: OwnedLanes, rows: Sequence[PendingRow | Waiting], place: int, error: Exception
) -> None:
    """Has a conversion wait no longer, because it cannot be decided; what networks have said of it is kept."""
    async with lanes.fenced() as connection:
        aside = [
            entry_set_aside(entry_of(row), quarantine_pb2.QUARANTINE_WORK_DECIDE, error)._replace(claims=row.claims)
            for row in await pending.take(connection, [rows[place]])
        ]
        await lanes.append(connection, Changes(set_aside=aside), lanes=[rows[place].lane])
