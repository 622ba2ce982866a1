"""The tables of devices, and of the ids that they are known by."""

import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from libs.db import Connection, Pool, columns, in_statements
from services.attribution.decision.grouping import Sighting
from services.attribution.decision.history import DeviceHistory

NO_DEVICE = uuid.UUID(int=0)
"""The device of an identity link of which nothing was known (F3), and of a conversion that waits to be taken."""


class IdKey(NamedTuple):
    """A device id: its match key (`device_key`) and its kind. OURS: equal ids of different kinds are different ids."""

    key: bytes
    kind: str


class Identifier(NamedTuple):
    """The device that an id leads to, None for an id that is shared, and what it has met (`decision.shared_ids`)."""

    device_id: uuid.UUID | None
    met: bytes = b""


@dataclass(slots=True, kw_only=True)
class Device:
    """A device as it is held while a batch of its conversions is decided: only that batch changes it."""

    device_id: uuid.UUID
    app_id: str
    ids: dict[str, list[str]]
    history: DeviceHistory
    identities: dict[str, str]
    create_time_us: int
    sightings: list[Sighting]
    merged_into: uuid.UUID | None = None
    merge_sequence: int | None = None
    changed: bool = False
    is_new: bool = False

    @classmethod
    def new(cls, device_id: uuid.UUID, app_id: str, create_time_us: int) -> "Device":
        """Returns a device that nothing is known of yet."""
        return cls(
            device_id=device_id,
            app_id=app_id,
            ids={},
            history=DeviceHistory(),
            identities={},
            create_time_us=create_time_us,
            sightings=[],
            changed=True,
            is_new=True,
        )


async def find_identifiers(connection: Connection, id_keys: Collection[bytes]) -> dict[IdKey, Identifier]:
    """Returns what is known of ids with these match keys, of every kind."""
    found: dict[IdKey, Identifier] = {}
    for some in in_statements(id_keys):
        rows = await connection.fetch(
            "SELECT id_key, kind, device_id, met FROM identifiers WHERE id_key = ANY($1)", some
        )
        found |= {IdKey(row[0], row[1]): Identifier(row[2], row[3] or b"") for row in rows}
    return found


def is_nobodys(id_key: bytes, identifiers: Mapping[IdKey, Identifier]) -> bool:
    """Returns whether an id with this match key is shared (A8), and leads to no device under another kind."""
    found = [each for key, each in identifiers.items() if key.key == id_key]
    return bool(found) and all(each.device_id is None for each in found)


async def find_devices_of_keys(connection: Connection, id_keys: Collection[bytes]) -> dict[bytes, set[uuid.UUID]]:
    """Returns, for each match key of an id (`device_key`) that is known, the devices that it leads to.

    Ids of every kind that have this value: who sends an engagement mixes the kinds up, so these are the devices that
    the engagement's `device_keys` name. A hash leads to the device of its raw id (A3), once its kind is indexed. For a
    device that is known only by a hash of an engagement's raw id, ask for the `hash_key`s of `IndexRows.hashed_ids`.
    In place of merged devices stand those that they became.
    """
    known = await find_identifiers(connection, id_keys)
    became = await _survivors(connection, {each.device_id for each in known.values() if each.device_id is not None})
    found: dict[bytes, set[uuid.UUID]] = {}
    for key, each in known.items():
        if each.device_id is not None:
            found.setdefault(key.key, set()).add(became[each.device_id])
    return found


async def _survivors(connection: Connection, device_ids: Collection[uuid.UUID]) -> dict[uuid.UUID, uuid.UUID]:
    """Returns what devices became by merges; those that were not merged stay themselves."""
    rows = await connection.fetch(
        """
        WITH RECURSIVE found AS (
            SELECT device_id AS asked_id, device_id, merged_into FROM devices WHERE device_id = ANY($1)
            UNION ALL
            SELECT asked_id, devices.device_id, devices.merged_into
            FROM found JOIN devices ON devices.device_id = found.merged_into
        )
        SELECT asked_id, device_id FROM found WHERE merged_into IS NULL
        """,
        list(device_ids),
    )
    return {row["asked_id"]: row["device_id"] for row in rows}


async def find_devices(connection: Connection, device_ids: Collection[uuid.UUID]) -> dict[uuid.UUID, Device]:
    """Returns devices by their ids."""
    rows = await connection.fetch(
        """
        SELECT device_id, app_id, ids, history, identities, create_time_us, sightings, merged_into, merge_sequence
        FROM devices WHERE device_id = ANY($1)
        """,
        list(device_ids),
    )
    return {
        row["device_id"]: Device(
            device_id=row["device_id"],
            app_id=row["app_id"],
            ids=row["ids"],
            history=DeviceHistory.from_json(row["history"]),
            identities=row["identities"],
            create_time_us=row["create_time_us"],
            sightings=[Sighting(*each) for each in row["sightings"]],
            merged_into=row["merged_into"],
            merge_sequence=row["merge_sequence"],
        )
        for row in rows
    }


async def find_members(connection: Connection, device_ids: Collection[uuid.UUID]) -> dict[uuid.UUID, set[uuid.UUID]]:
    """Returns for those of these devices that others were merged with, at once or by way of others, these others."""
    rows = await connection.fetch(
        """
        WITH RECURSIVE members AS (
            SELECT merged_into AS survivor_id, device_id FROM devices WHERE merged_into = ANY($1)
            UNION
            SELECT survivor_id, devices.device_id FROM members JOIN devices ON merged_into = members.device_id
        )
        SELECT survivor_id, device_id FROM members
        """,
        list(device_ids),
    )
    members: dict[uuid.UUID, set[uuid.UUID]] = {}
    for survivor_id, device_id in rows:
        members.setdefault(survivor_id, set()).add(device_id)
    return members


async def upsert_devices(connection: Connection, devices: Sequence[Device]) -> None:
    """Stores devices as they are now."""
    await connection.execute(
        """
        INSERT INTO devices (
            device_id, app_id, ids, history, identities, create_time_us, sightings, merged_into, merge_sequence
        )
        SELECT
            device_id, app_id, ids, history, identities, create_time_us, sightings -> 'all', merged_into, merge_sequence
        FROM unnest(
            $1::uuid[], $2::text[], $3::jsonb[], $4::jsonb[], $5::jsonb[], $6::bigint[], $7::jsonb[], $8::uuid[],
            $9::bigint[]
        ) AS row (
            device_id, app_id, ids, history, identities, create_time_us, sightings, merged_into, merge_sequence
        )
        ON CONFLICT (device_id) DO UPDATE SET
            ids = excluded.ids, history = excluded.history, identities = excluded.identities,
            sightings = excluded.sightings, merged_into = excluded.merged_into, merge_sequence = excluded.merge_sequence
        """,
        [device.device_id for device in devices],
        [device.app_id for device in devices],
        [device.ids for device in devices],
        [device.history.to_json() for device in devices],
        [device.identities for device in devices],
        [device.create_time_us for device in devices],
        # In an object, because unnest would take an array of arrays apart.
        [{"all": device.sightings} for device in devices],
        [device.merged_into for device in devices],
        [device.merge_sequence for device in devices],
    )


async def upsert_identifiers(connection: Connection, identifiers: Mapping[IdKey, Identifier]) -> None:
    """Stores which devices ids lead to, and what they have met, of those that have met something."""
    for some in in_statements((*key, each.device_id, each.met or None) for key, each in identifiers.items()):
        await connection.execute(
            """
            INSERT INTO identifiers AS known (id_key, kind, device_id, met)
            SELECT * FROM unnest($1::bytea[], $2::text[], $3::uuid[], $4::bytea[])
            ON CONFLICT (id_key, kind) DO UPDATE SET
                device_id = excluded.device_id, met = COALESCE(excluded.met, known.met)
            """,
            *columns(some, 4),
        )


async def device_of(pool: Pool, id_key: bytes, device_id: uuid.UUID | None) -> Device | None:
    """Returns the device that has an id of whatever kind with this match key, or this id of ours.

    In place of a merged one what it became.
    """
    async with pool.acquire() as connection:
        known = await find_identifiers(connection, [id_key])
        wanted = {each for each in (device_id, *(each.device_id for each in known.values())) if each is not None}
        while wanted:
            found = list((await find_devices(connection, wanted)).values())
            if not found:
                return None
            oldest = min(found, key=lambda device: (device.create_time_us, device.device_id))
            if oldest.merged_into is None:
                return oldest
            wanted = {oldest.merged_into}
    return None
