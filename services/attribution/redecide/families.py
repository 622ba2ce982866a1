"""Reads devices for a replay, each together with those that were merged with it: they have one history in the end."""

import uuid
from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass, field

from libs.db import Connection
from services.attribution.decision.history import DeviceHistory
from services.attribution.storage.replay import (
    Merge,
    Period,
    Stored,
    find_conversions,
    find_histories,
    find_merges,
)


@dataclass(slots=True, kw_only=True)
class Family:
    """A device and those merged with it: their conversions and merges in the order of their sequences.

    `histories` are the attributions that only the devices themselves remember, because retention has dropped their
    decisions.
    """

    conversions: list[Stored] = field(default_factory=list)
    merges: list[Merge] = field(default_factory=list)
    histories: dict[uuid.UUID, DeviceHistory] = field(default_factory=dict)


async def read_families(
    connection: Connection, period: Period, device_ids: Collection[uuid.UUID], turn: Callable[[], Awaitable[None]]
) -> list[Family]:
    """Returns the families of these devices that have conversions in the period."""
    merges = await find_merges(connection, device_ids)
    into = {merge.device_id: merge.into for merge in merges}
    everybody = {*device_ids, *into, *into.values()}
    families = {device_id: Family() for device_id in everybody if device_id not in into}
    for merge in merges:
        families[_survivor(into, merge.device_id)].merges.append(merge)
    for stored in await find_conversions(connection, period, everybody):
        families[_survivor(into, stored.device_id)].conversions.append(stored)
    await turn()
    remembered = await find_histories(connection, everybody)
    for device_id, family in families.items():
        family.conversions = _newest(family.conversions)
        family.merges.sort(key=lambda merge: merge.sequence or 0)
        _remember(family, device_id, remembered)
    return [family for family in families.values() if any(c.record is not None for c in family.conversions)]


def _survivor(into: dict[uuid.UUID, uuid.UUID], device_id: uuid.UUID) -> uuid.UUID:
    while device_id in into:
        device_id = into[device_id]
    return device_id


def _newest(conversions: Iterable[Stored]) -> list[Stored]:
    """Returns the newest version of each conversion, in the order in which they were first decided."""
    by_id: dict[str, Stored] = {}
    for stored in conversions:
        other = by_id.get(stored.conversion_id)
        if other is None or other.version < stored.version:
            by_id[stored.conversion_id] = stored
    return sorted(by_id.values(), key=lambda stored: stored.sequence)


def _remember(family: Family, device_id: uuid.UUID, remembered: dict[uuid.UUID, list[list[object]]]) -> None:
    known = {stored.conversion_id for stored in family.conversions}
    for member in (device_id, *(merge.device_id for merge in family.merges)):
        dropped = [attribution for attribution in remembered.get(member, ()) if attribution[1] not in known]
        if dropped:
            family.histories[member] = DeviceHistory.from_json({"attributions": dropped, "session_us": []})
