"""The tables of devices, and of the ids that they are known by."""

import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from libs.db import Connection, Pool
from services.attribution.decision.history import DeviceHistory


@dataclass(slots=True, kw_only=True)
class Device:
    """A device as it is held while a batch of its conversions is decided: only that batch changes it."""

    device_id: uuid.UUID
    app_id: str
    ids: dict[str, list[str]]
    history: DeviceHistory
    identities: dict[str, str]
    create_time_us: int
    merged_into: uuid.UUID | None = None
    merge_sequence: int | None = None
    changed: bool = False

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
            changed=True,
        )


async def find_identifiers(connection: Connection, id_keys: Collection[bytes]) -> dict[bytes, uuid.UUID]:
    """Returns the devices that ids belong to, of those that are known."""
    rows = await connection.fetch("SELECT id_key, device_id FROM identifiers WHERE id_key = ANY($1)", list(id_keys))
    return {row["id_key"]: row["device_id"] for row in rows}


async def find_devices(connection: Connection, device_ids: Collection[uuid.UUID]) -> dict[uuid.UUID, Device]:
    """Returns devices by their ids."""
    rows = await connection.fetch(
        """
        SELECT device_id, app_id, ids, history, identities, create_time_us, merged_into, merge_sequence
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
            merged_into=row["merged_into"],
            merge_sequence=row["merge_sequence"],
        )
        for row in rows
    }


async def upsert_devices(connection: Connection, devices: Sequence[Device]) -> None:
    """Stores devices as they are now."""
    await connection.execute(
        """
        INSERT INTO devices (
            device_id, app_id, ids, history, identities, create_time_us, merged_into, merge_sequence
        )
        SELECT * FROM unnest(
            $1::uuid[], $2::text[], $3::jsonb[], $4::jsonb[], $5::jsonb[], $6::bigint[], $7::uuid[], $8::bigint[]
        )
        ON CONFLICT (device_id) DO UPDATE SET
            ids = excluded.ids, history = excluded.history, identities = excluded.identities,
            merged_into = excluded.merged_into, merge_sequence = excluded.merge_sequence
        """,
        [device.device_id for device in devices],
        [device.app_id for device in devices],
        [device.ids for device in devices],
        [device.history.to_json() for device in devices],
        [device.identities for device in devices],
        [device.create_time_us for device in devices],
        [device.merged_into for device in devices],
        [device.merge_sequence for device in devices],
    )


async def upsert_identifiers(connection: Connection, owners: Mapping[bytes, uuid.UUID]) -> None:
    """Stores which devices ids belong to."""
    await connection.execute(
        """
        INSERT INTO identifiers (id_key, device_id)
        SELECT * FROM unnest($1::bytea[], $2::uuid[])
        ON CONFLICT (id_key) DO UPDATE SET device_id = excluded.device_id
        """,
        list(owners.keys()),
        list(owners.values()),
    )


async def device_of(pool: Pool, id_keys: Collection[bytes], device_id: uuid.UUID | None) -> Device | None:
    """Returns the device that has one of these ids, or this id of ours; in place of a merged one what it became."""
    async with pool.acquire() as connection:
        wanted = set((await find_identifiers(connection, id_keys)).values())
        if device_id is not None:
            wanted.add(device_id)
        while wanted:
            found = list((await find_devices(connection, wanted)).values())
            if not found:
                return None
            oldest = min(found, key=lambda device: (device.create_time_us, device.device_id))
            if oldest.merged_into is None:
                return oldest
            wanted = {oldest.merged_into}
    return None
