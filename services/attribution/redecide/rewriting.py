"""The changes of replays, as rows: new versions of decisions, and the histories of their devices."""

import uuid
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from libs.db import Connection
from reengage.attribution.v1 import decision_pb2
from services.attribution.decision.history import DeviceHistory, merge
from services.attribution.live.changes import Won
from services.attribution.redecide.replayed import Changed, Replayed
from services.attribution.storage.decisions import DecisionRow
from services.attribution.storage.devices import Device, find_devices
from services.attribution.storage.late_arrivals import LateArrival
from services.attribution.storage.replay import Period


def new_versions(
    changed: Sequence[Changed],
    period: Period,
    *,
    sequence: int,
    now_us: int,
    reattribution_id: str | None = None,
    is_relayed: bool = True,
    because: Mapping[str, LateArrival] = MappingProxyType({}),
) -> list[DecisionRow]:
    """Returns the new versions, numbered from a sequence on. `because` has by conversion what arrived late (D12)."""
    rows = []
    for number, each in enumerate(changed):
        message, stored = each.message(now_us), each.stored
        if (late := because.get(stored.conversion_id)) is not None:
            message.because = decision_pb2.Because.ValueType(late.because)
            message.late_record_id = late.record_id
        rows.append(
            DecisionRow(
                lane=period.lane,
                sequence=sequence + number,
                app_id=period.app_id,
                conversion_id=message.conversion_id,
                version=message.version,
                device_id=stored.device_id,
                outcome=message.outcome,
                conversion_time_us=each.conversion.time_us,
                receive_time_us=stored.receive_time_us,
                retention_days=stored.retention_days,
                tracker_id=message.tracker_id or None,
                engagement_id=message.engagement_id or None,
                decision=message.SerializeToString(),
                record=stored.record,
                engagement=None,
                known_ids=stored.known_ids,
                claims=stored.claims,
                reattribution_id=reattribution_id,
                is_relayed=is_relayed,
            )
        )
    return rows


def winners(versions: Sequence[DecisionRow]) -> dict[int, Won]:
    """Returns the engagements to store beside new versions, by their place."""
    messages = (decision_pb2.Decision.FromString(each.decision) for each in versions)
    return {place: won for place, message in enumerate(messages) if (won := Won.of(message)) is not None}


async def changed_devices(connection: Connection, replayed: Iterable[Replayed], now_us: int) -> list[Device]:
    """Returns the devices whose history changes; it keeps attributions whose decisions retention has dropped."""
    by_id: dict[uuid.UUID, Replayed] = {each.device_id: each for each in replayed}
    changed = []
    for device_id, device in (await find_devices(connection, by_id)).items():
        each = by_id[device_id]
        rest = tuple(a for a in device.history.attributions if a.conversion_id not in each.conversion_ids)
        live = DeviceHistory(attributions=rest, session_us=device.history.session_us)
        history = merge(live, DeviceHistory.made_of(each.attributions)).compacted(now_us)
        if history != device.history:
            device.history = history
            changed.append(device)
    return changed
