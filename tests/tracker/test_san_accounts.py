"""Accounts with self-attributing networks: their credentials and their verification."""

from typing import Any

import asyncpg
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from reengage.tracker.v1 import (
    app_pb2,
    network_pb2,
    san_account_pb2,
    tracker_pb2,
)
from reengage.tracker.v1.san_account_pb2 import SanAccount
from reengage.tracker.v1.tracker_pb2 import Tracker
from tests.conftest import Database
from tests.tracker import samples
from tests.tracker.samples import Stub, create_parents, create_tracker, refusal, wrong_fields
from tests.tracker.test_audit_trail import stored


async def test_credentials_are_kept_encrypted_and_never_returned(tracker: Stub, database: Database) -> None:
    await create_parents(tracker)
    secret = "a very secret token"
    account = samples.san_account(credentials={"token": secret, "other": "second"})
    made = (await tracker.CreateSanAccount(san_account_pb2.CreateSanAccountRequest(san_account=account))).san_account
    assert (list(made.credential_names), dict(made.credentials), made.verified) == (["other", "token"], {}, False)
    repeated = await tracker.CreateSanAccount(san_account_pb2.CreateSanAccountRequest(san_account=account))
    assert repeated.san_account == made
    other = samples.san_account(credentials={"token": "another", "other": "second"})
    again = tracker.CreateSanAccount(san_account_pb2.CreateSanAccountRequest(san_account=other))
    assert await refusal(again) == ("ALREADY_EXISTS", "SAN_ACCOUNT_EXISTS")
    listed = await tracker.ListSanAccounts(san_account_pb2.ListSanAccountsRequest(app_id="kodemo1"))
    assert list(listed.san_accounts) == [made]
    assert (await stored(tracker))["san_account x1"] == made
    connection = await asyncpg.connect(database.dsn("tracker"), server_settings={"search_path": "tracker"})
    try:
        for table in ("san_accounts", "changes", "sealed"):
            held = await connection.fetch(f"SELECT * FROM {table}")
            assert held
            assert not any(secret.encode() in value for row in held for value in row.values() if type(value) is bytes)
    finally:
        await connection.close()


@pytest.mark.parametrize(
    "fields", [{"app_id": "kodemo3"}, {"network_id": "y-ios"}], ids=["another app", "another network"]
)
async def test_an_account_is_of_its_app_and_network(tracker: Stub, fields: dict[str, str]) -> None:
    await create_parents(tracker)
    await tracker.CreateApp(app_pb2.CreateAppRequest(app=samples.app(app_id="kodemo3", name="Third")))
    y = samples.san(network_id="y-ios", name="Y iOS")
    await tracker.CreateNetwork(network_pb2.CreateNetworkRequest(network=y))
    theirs = samples.san_account(verified=True, **fields)
    await tracker.CreateSanAccount(san_account_pb2.CreateSanAccountRequest(san_account=theirs))
    wanted = samples.san_reengagement(san_account_ids=["x1"])
    assert await wrong_fields(create_tracker(tracker, wanted)) == {("tracker.san_account_ids[0]", "NOT_FOUND")}


async def test_new_credentials_must_be_verified_anew(tracker: Stub) -> None:
    """S1: accounts may be selected as long as they have been authenticated."""
    await create_parents(tracker)
    await tracker.CreateSanAccount(san_account_pb2.CreateSanAccountRequest(san_account=samples.san_account()))
    wanted = samples.san_reengagement(san_account_ids=["x1", "nothing"])
    assert await wrong_fields(create_tracker(tracker, wanted)) == {
        ("tracker.san_account_ids[0]", "NOT_VERIFIED"),
        ("tracker.san_account_ids[1]", "NOT_FOUND"),
    }

    async def update(*paths: str, **fields: Any) -> SanAccount:
        request = san_account_pb2.UpdateSanAccountRequest(
            san_account=SanAccount(san_account_id="x1", **fields), update_mask=FieldMask(paths=paths)
        )
        changed: SanAccount = (await tracker.UpdateSanAccount(request)).san_account
        return changed

    assert (await update("verified", verified=True)).verified
    assert (await update("external_id", external_id="18ce")).verified
    made = await create_tracker(tracker, samples.san_reengagement(san_account_ids=["x1"]))
    changed = await update("credentials", credentials={"new": "one"})
    assert (list(changed.credential_names), changed.verified) == (["new"], False)
    renamed = tracker_pb2.UpdateTrackerRequest(
        tracker=Tracker(tracker_id=made.tracker_id, name="Still"), update_mask=FieldMask(paths=["name"])
    )
    assert list((await tracker.UpdateTracker(renamed)).tracker.san_account_ids) == ["x1"], "what it has it keeps"
    assert list((await update("credentials")).credential_names) == []
