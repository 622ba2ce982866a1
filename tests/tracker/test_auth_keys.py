"""The keys of strict authentication: never returned, told to the gateway, and one follows on another."""

from collections.abc import Mapping

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from reengage.tracker.v1 import app_pb2, change_pb2, snapshot_pb2
from tests.conftest import Database
from tests.tracker import samples
from tests.tracker.conftest import running


async def update(tracker: samples.Stub, keys: Mapping[str, str]) -> app_pb2.App:
    request = app_pb2.UpdateAppRequest(app=samples.app(auth_keys=keys), update_mask=FieldMask(paths=["auth_keys"]))
    return (await tracker.UpdateApp(request)).app


async def told(tracker: samples.Stub, *, with_secrets: bool) -> dict[str, str]:
    """Returns the keys as followers of tracker see them."""
    watch = tracker.WatchSnapshot(snapshot_pb2.WatchSnapshotRequest(with_secrets=with_secrets))
    first = await anext(aiter(watch))
    watch.cancel()
    return next(dict(each.app.auth_keys) for each in first.resources if each.app.app_id == "kodemo1")


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        pytest.param({"old": "", "new": "new-secret"}, {"old": "old-secret", "new": "new-secret"}, id="one more"),
        pytest.param({"new": "new-secret"}, {"new": "new-secret"}, id="another"),
        pytest.param({"old": "other-secret"}, {"old": "other-secret"}, id="another secret"),
        pytest.param({}, {}, id="none"),
    ],
)
async def test_an_update_names_all_that_shall_be_valid(
    database: Database, given: dict[str, str], kept: dict[str, str]
) -> None:
    async with running(database) as tracker:
        made = await tracker.CreateApp(app_pb2.CreateAppRequest(app=samples.app(auth_keys={"old": "old-secret"})))
        assert (dict(made.app.auth_keys), list(made.app.auth_key_names)) == ({}, ["old"])
        app = await update(tracker, given)
        assert (dict(app.auth_keys), list(app.auth_key_names)) == ({}, sorted(kept))
        assert await told(tracker, with_secrets=True) == kept
        assert await told(tracker, with_secrets=False) == {}


async def test_a_new_key_needs_a_secret(database: Database) -> None:
    async with running(database) as tracker:
        await tracker.CreateApp(app_pb2.CreateAppRequest(app=samples.app(auth_keys={"old": "old-secret"})))
        found = await samples.wrong_fields(update(tracker, {"old": "", "new": ""}))
        assert found == {("app.auth_keys[new]", "OUT_OF_RANGE")}


async def test_the_last_key_stays_while_the_app_is_strict(database: Database) -> None:
    async with running(database) as tracker:
        app = samples.app(auth_keys={"old": "old-secret"}, settings={"strict_authentication": True})
        await tracker.CreateApp(app_pb2.CreateAppRequest(app=app))
        found = await samples.wrong_fields(update(tracker, {}))
        assert found == {("app.settings.strict_authentication", "NOT_ALLOWED")}


async def test_the_audit_trail_tells_of_names_alone(database: Database) -> None:
    async with running(database) as tracker:
        await tracker.CreateApp(app_pb2.CreateAppRequest(app=samples.app(auth_keys={"old": "old-secret"})))
        await update(tracker, {"old": "other-secret"})
        newest = (await tracker.ListChanges(change_pb2.ListChangesRequest())).changes[0]
        assert [(each.path, each.before, each.after) for each in newest.fields] == [("auth_keys", '"…"', '"…"')]
