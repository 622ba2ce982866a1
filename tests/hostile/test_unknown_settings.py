"""Settings with fields that tracker does not know: they are refused, and what a later version has stored stays."""

import asyncpg
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from reengage.tracker.v1 import app_pb2
from tests.conftest import Database
from tests.tracker.conftest import tracker  # noqa: F401, its fixture
from tests.tracker.samples import Stub, app, wrong_fields

UNKNOWN = b"\xf2\xff\x0f\x01x"
UNKNOWN_FIELD = "UNKNOWN_FIELD"


def with_unknown(resource: app_pb2.App, path: str) -> app_pb2.App:
    message = resource
    for name in path.split(".")[1:]:
        message = getattr(message, name)
    message.MergeFromString(UNKNOWN)
    return resource


@pytest.mark.parametrize("path", ["app", "app.settings", "app.settings.max_record_age"])
async def test_an_unknown_setting_is_refused_where_it_is(tracker: Stub, path: str) -> None:  # noqa: F811
    call = tracker.CreateApp(app_pb2.CreateAppRequest(app=with_unknown(app(), path)))
    assert (path, UNKNOWN_FIELD) in await wrong_fields(call)


async def test_an_update_brings_none_in(tracker: Stub) -> None:  # noqa: F811
    await tracker.CreateApp(app_pb2.CreateAppRequest(app=app()))
    request = app_pb2.UpdateAppRequest(
        app=with_unknown(app(), "app.settings"), update_mask=FieldMask(paths=["settings"])
    )
    assert await wrong_fields(tracker.UpdateApp(request)) == {("app.settings", UNKNOWN_FIELD)}


async def test_what_a_later_version_has_stored_is_kept(tracker: Stub, database: Database) -> None:  # noqa: F811
    await tracker.CreateApp(app_pb2.CreateAppRequest(app=app()))
    connection = await asyncpg.connect(database.admin_dsn)
    await connection.execute("UPDATE tracker.apps SET resource = resource || $1", UNKNOWN)
    request = app_pb2.UpdateAppRequest(app=app(name="Other"), update_mask=FieldMask(paths=["name"]))
    response = await tracker.UpdateApp(request)
    stored = await connection.fetchval("SELECT resource FROM tracker.apps")
    await connection.close()
    assert response.app.name == "Other"
    assert UNKNOWN in stored
