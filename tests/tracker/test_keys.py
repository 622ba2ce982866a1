"""API keys: shown once, kept as hashes, ended and replaced."""

import hashlib
from typing import Any

import asyncpg
import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from libs.time import SECOND_US, to_timestamp
from reengage.tracker.v1 import (
    api_key_pb2,
    app_pb2,
    snapshot_pb2,
)
from reengage.tracker.v1.api_key_pb2 import ApiKey
from tests.conftest import Database
from tests.tracker import samples
from tests.tracker.conftest import ADMIN_KEY, Served, serving
from tests.tracker.samples import DAY, Stub, refusal, seconds, wrong_fields
from tests.tracker.test_roles import calling


async def newest(stub: Stub) -> int:
    return max([part.revision async for part in stub.GetSnapshot(snapshot_pb2.GetSnapshotRequest())])


async def create_key(admin: Stub, **fields: Any) -> tuple[ApiKey, str]:
    made = await admin.CreateApiKey(api_key_pb2.CreateApiKeyRequest(api_key=samples.api_key(**fields)))
    return made.api_key, made.key


async def refused_for(served: Served, key: str) -> str:
    """Returns why the key does not open; empty if it does."""
    async with calling(served, key) as stub:
        try:
            await stub.ListApps(app_pb2.ListAppsRequest())
        except grpc.aio.AioRpcError as error:
            return str(error.details()).split(":", maxsplit=1)[0]
    return ""


async def last_use(admin: Stub) -> Timestamp | None:
    key = (await admin.GetApiKey(api_key_pb2.GetApiKeyRequest(api_key_id="ops"))).api_key
    return key.last_use_time if key.HasField("last_use_time") else None


async def test_a_key_is_shown_once_and_kept_as_a_hash(database: Database) -> None:
    async with serving(database) as served, calling(served, ADMIN_KEY) as admin:
        made, key = await create_key(admin)
        assert await create_key(admin) == (made, ""), "a repeat shows no key"
        assert await refused_for(served, key) == ""
        connection = await asyncpg.connect(database.dsn("tracker"), server_settings={"search_path": "tracker"})
        try:
            for table in ("api_keys", "api_key_hashes", "changes"):
                rows = await connection.fetch(f"SELECT * FROM {table}")
                assert rows
                assert key not in str(rows)
        finally:
            await connection.close()
        await admin.ArchiveApiKey(api_key_pb2.ArchiveApiKeyRequest(api_key_id="ops"))
        assert await refused_for(served, key) == "API_KEY_INVALID"


async def test_a_key_ends_when_it_says(database: Database) -> None:
    async with serving(database) as served, calling(served, ADMIN_KEY) as admin:
        _, key = await create_key(admin, expire_time=to_timestamp(served.clock.now_us + SECOND_US))
        assert await refused_for(served, key) == ""
        served.clock.now_us += SECOND_US
        assert await refused_for(served, key) == "API_KEY_INVALID"


async def test_the_last_use_is_noted_once_a_minute(database: Database) -> None:
    async with serving(database) as served, calling(served, ADMIN_KEY) as admin:
        _, key = await create_key(admin)
        before = await newest(admin)
        assert await last_use(admin) is None
        await refused_for(served, key)
        first = await last_use(admin)
        assert first is not None
        served.clock.now_us += 59 * SECOND_US
        await refused_for(served, key)
        assert await last_use(admin) == first
        served.clock.now_us += 1 * SECOND_US
        await refused_for(served, key)
        later = await last_use(admin)
        assert later is not None
        assert later.ToNanoseconds() == first.ToNanoseconds() + 60_000_000_000
        assert await newest(admin) == before, "use is no change of settings"


async def test_rotation_overlaps(database: Database) -> None:
    async with serving(database) as served, calling(served, ADMIN_KEY) as admin:
        await admin.CreateApp(app_pb2.CreateAppRequest(app=samples.app()))
        made, old = await create_key(admin, app_id="kodemo1")
        request = api_key_pb2.RotateApiKeyRequest(api_key_id="ops", overlap=seconds(3600), request_id="once")
        rotated = await admin.RotateApiKey(request)
        assert (rotated.api_key.role, rotated.api_key.app_id) == (made.role, "kodemo1")
        assert rotated.api_key.api_key_id != "ops"
        assert not rotated.api_key.HasField("expire_time")
        repeated = await admin.RotateApiKey(request)
        assert (repeated.api_key.api_key_id, repeated.key) == (rotated.api_key.api_key_id, "")
        assert [await refused_for(served, key) for key in (old, rotated.key)] == ["", ""]
        served.clock.now_us += 3599 * SECOND_US
        assert await refused_for(served, old) == ""
        served.clock.now_us += 1 * SECOND_US
        assert await refused_for(served, old) == "API_KEY_INVALID"
        assert await refused_for(served, rotated.key) == ""
        over = admin.RotateApiKey(api_key_pb2.RotateApiKeyRequest(api_key_id="ops"))
        assert await refusal(over) == ("FAILED_PRECONDITION", "ARCHIVED")
        long = api_key_pb2.RotateApiKeyRequest(api_key_id=rotated.api_key.api_key_id, overlap=seconds(30 * DAY + 1))
        assert await wrong_fields(admin.RotateApiKey(long)) == {("overlap", "OUT_OF_RANGE")}


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"role": ApiKey.ROLE_UNSPECIFIED}, {("api_key.role", "REQUIRED")}),
        ({"role": ApiKey.ROLE_NETWORK}, {("api_key.network_id", "REQUIRED")}),
        ({"role": ApiKey.ROLE_AGENCY}, {("api_key.agency_id", "REQUIRED")}),
        ({"role": ApiKey.ROLE_VIEWER, "network_id": "x-ios"}, {("api_key.network_id", "NOT_ALLOWED")}),
        ({"account_id": "a", "app_id": "b"}, {("api_key.app_id", "NOT_ALLOWED")}),
        ({"role": ApiKey.ROLE_SERVICE, "app_id": "b"}, {("api_key.role", "NOT_ALLOWED")}),
        ({"name": ""}, {("api_key.name", "REQUIRED")}),
    ],
    ids=["no role", "network", "agency", "viewer of a network", "two scopes", "narrow service", "no name"],
)
async def test_wrong_keys(tracker: Stub, fields: dict[str, Any], wrong: set[tuple[str, str]]) -> None:
    assert await wrong_fields(create_key(tracker, **fields)) == wrong


async def test_the_hash_of_a_senders_key_is_told_in_snapshots_alone(database: Database) -> None:
    async with serving(database) as served, calling(served, ADMIN_KEY) as admin:
        made, key = await create_key(admin, role=ApiKey.ROLE_SENDER)
        other, _ = await create_key(admin, api_key_id="other", role=ApiKey.ROLE_VIEWER)
        listed = await admin.ListApiKeys(api_key_pb2.ListApiKeysRequest())
        assert {one.key_hash for one in (made, other, *listed.api_keys)} == {b""}
        rotated = await admin.RotateApiKey(api_key_pb2.RotateApiKeyRequest(api_key_id=made.api_key_id))
        parts = [part async for part in admin.GetSnapshot(snapshot_pb2.GetSnapshotRequest())]
        keys = [each.api_key for part in parts for each in part.resources if each.HasField("api_key")]
        assert {one.api_key_id: one.key_hash for one in keys} == {
            made.api_key_id: hashlib.sha256(key.encode()).digest(),
            rotated.api_key.api_key_id: hashlib.sha256(rotated.key.encode()).digest(),
            "other": b"",
        }
