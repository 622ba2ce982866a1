"""Senders of a strict app's records over gRPC."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from libs.auth import bearer
from libs.time import SECOND_US, now_us, to_timestamp
from reengage.ingest.v1 import record_batch_pb2, rejected_record_pb2
from reengage.tracker.v1 import app_pb2, snapshot_pb2, status_pb2
from reengage.tracker.v1.api_key_pb2 import ApiKey
from services.ingest.senders import UNAUTHENTICATED
from tests.conftest import Database
from tests.ingest.conftest import Ingest, StartIngest, event

SERVICE_KEY = "the suite's"
PAST, FUTURE = (to_timestamp(now_us() + seconds * 60 * SECOND_US) for seconds in (-60, 60))
KEYS: dict[str, dict[str, Any]] = {
    "of all": {},
    "of the app": {"app_id": "strict"},
    "of another app": {"app_id": "other"},
    "of the account": {"account_id": "owner"},
    "of another account": {"account_id": "stranger"},
    "not over": {"expire_time": FUTURE},
    "over": {"expire_time": PAST},
    "revoked": {"status": status_pb2.STATUS_ARCHIVED},
    "of an editor": {"role": ApiKey.ROLE_EDITOR},
}


async def watch(_revision: int) -> AsyncIterator[snapshot_pb2.WatchSnapshotResponse]:
    """Yields a strict app, another, and a key of each kind, whose name is the key itself; then silence."""
    strict = app_pb2.AppSettings(strict_authentication=True)
    apps = [
        app_pb2.App(app_id="strict", account_id="owner", settings=strict),
        app_pb2.App(app_id="other", settings=strict),
        app_pb2.App(app_id="shop"),
    ]
    keys = [
        ApiKey(
            **{"role": ApiKey.ROLE_SENDER, **fields},
            api_key_id=str(number),
            key_hash=hashlib.sha256(key.encode()).digest(),
        )
        for number, (key, fields) in enumerate(KEYS.items())
    ]
    resources = [snapshot_pb2.Resource(app=app) for app in apps]
    resources += [snapshot_pb2.Resource(api_key=key) for key in keys]
    yield snapshot_pb2.WatchSnapshotResponse(revision=1, reset=True, resources=resources)
    await asyncio.Event().wait()


async def send(ingest: Ingest, key: str, *app_ids: str) -> list[str]:
    """Returns the reason for which each record is refused; empty for one that is stored."""
    request = record_batch_pb2.RecordBatchRequest(records=[event(app_id=app_id) for app_id in app_ids])
    response = await ingest.stub.RecordBatch(request, metadata=bearer(key))
    return [result.violations[0].reason if result.violations else "" for result in response.results]


@pytest.mark.parametrize(
    ("key", "may"),
    [
        ("", False), ("guessed", False), (SERVICE_KEY, True), ("of all", True), ("of the app", True),
        ("of another app", False), ("of the account", True), ("of another account", False), ("not over", True),
        ("over", False), ("revoked", False), ("of an editor", False),
    ],
    ids=lambda value: value or "none" if isinstance(value, str) else None,
)  # fmt: skip
async def test_who_may_send(start_ingest: StartIngest, database: Database, key: str, *, may: bool) -> None:
    async with start_ingest(database, watch=watch, service_key=SERVICE_KEY) as ingest:
        assert await send(ingest, key, "strict", "shop", "nobody") == [
            "" if may else UNAUTHENTICATED.reason, "", "UNKNOWN_APP",
        ]  # fmt: skip
        kept = await ingest.stub.ListRejected(rejected_record_pb2.ListRejectedRequest(app_id="strict"))
        assert list(kept.rejected) == []


@pytest.mark.parametrize("key", ["", "of all"], ids=["no key", "a key"])
async def test_a_stream_too(start_ingest: StartIngest, database: Database, key: str) -> None:
    async with start_ingest(database, watch=watch) as ingest:
        requests = [record_batch_pb2.RecordStreamRequest(records=[event(app_id="strict")])]
        call = ingest.stub.RecordStream(iter(requests), metadata=bearer(key))
        (response,) = [each async for each in call]
        reasons = [violation.reason for result in response.results for violation in result.violations]
        assert reasons == ([] if key else [UNAUTHENTICATED.reason])


async def test_no_service_key_is_nobodys(start_ingest: StartIngest, database: Database) -> None:
    async with start_ingest(database, watch=watch, service_key="") as ingest:
        assert await send(ingest, "", "strict") == [UNAUTHENTICATED.reason]
