"""The audit trail, and the snapshots of past revisions that it gives."""

from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from libs.pages import encode_token
from reengage.tracker.v1 import (
    change_pb2,
    event_definition_pb2,
    snapshot_pb2,
    tracker_pb2,
)
from reengage.tracker.v1.change_pb2 import Change
from reengage.tracker.v1.resource_kind_pb2 import (
    RESOURCE_KIND_APP,
    RESOURCE_KIND_CAMPAIGN,
    RESOURCE_KIND_NETWORK,
    RESOURCE_KIND_SEGMENT,
    RESOURCE_KIND_TRACKER,
)
from reengage.tracker.v1.tracker_pb2 import Tracker
from tests.conftest import Database
from tests.tracker import samples
from tests.tracker.conftest import ADMIN_KEY, serving
from tests.tracker.samples import Stub, create_parents, create_tracker, refusal, wrong_fields
from tests.tracker.test_keys import create_key
from tests.tracker.test_roles import calling


async def stored(stub: Stub, revision: int = 0) -> dict[str, Any]:
    """Returns every resource of a snapshot, by kind and id."""
    found = {}
    async for part in stub.GetSnapshot(snapshot_pb2.GetSnapshotRequest(revision=revision)):
        for resource in part.resources:
            kind = resource.WhichOneof("resource") or ""
            message = getattr(resource, kind)
            found[f"{kind} {getattr(message, f'{kind}_id', '') or message.event_name}"] = message
    return found


async def test_the_trail_says_who_changed_what_from_what_to_what(database: Database) -> None:
    async with serving(database) as served, calling(served, ADMIN_KEY) as admin:
        _, key = await create_key(admin)
        async with calling(served, key) as editor:
            await create_parents(editor)
            made = await create_tracker(editor, samples.acquisition(click_validation_key="0123456789abcdef"))
        update = tracker_pb2.UpdateTrackerRequest(
            tracker=Tracker(
                tracker_id="acq1", click_validation_key="x" * 16, windows=samples.windows(click_ip=samples.lasting(60))
            ),
            update_mask=FieldMask(paths=["click_validation_key", "windows.click_ip"]),
        )
        changed = (await admin.UpdateTracker(update)).tracker
        archived = await admin.ArchiveTracker(tracker_pb2.ArchiveTrackerRequest(tracker_id="acq1"))
        request = change_pb2.ListChangesRequest(app_id="kodemo1", kind=RESOURCE_KIND_TRACKER, resource_id="acq1")
        [third, second, first] = (await admin.ListChanges(request)).changes
        assert [one.revision for one in (first, second, third)] == [
            made.revision, changed.revision, archived.tracker.revision,
        ]  # fmt: skip
        assert [one.action for one in (first, second, third)] == [
            Change.ACTION_CREATED, Change.ACTION_UPDATED, Change.ACTION_ARCHIVED,
        ]  # fmt: skip
        assert [one.actor for one in (first, second, third)] == ["key:ops", "admin", "admin"]
        assert [(field.path, field.before, field.after) for field in second.fields] == [
            ("click_validation_key", '"…"', '"…"'),
            ("windows.click_ip", "", '{"duration": "60s"}'),
        ]
        assert {field.path: field.after for field in first.fields}["install_url"] == '"https://apps.example/demo"'
        assert first.change_time == made.create_time
        by_editor = await admin.ListChanges(change_pb2.ListChangesRequest(actor="key:ops"))
        assert [one.kind for one in by_editor.changes] == [
            RESOURCE_KIND_TRACKER, RESOURCE_KIND_SEGMENT, RESOURCE_KIND_CAMPAIGN,
            RESOURCE_KIND_NETWORK, RESOURCE_KIND_NETWORK, RESOURCE_KIND_APP,
        ]  # fmt: skip
        wrong = change_pb2.ListChangesRequest(kind=99, page_size=-1)  # type: ignore[arg-type]
        assert await wrong_fields(admin.ListChanges(wrong)) == {
            ("kind", "UNKNOWN_VALUE"), ("page_size", "OUT_OF_RANGE"),
        }  # fmt: skip


async def test_the_trail_pages_through_everything_newest_first(tracker: Stub) -> None:
    await create_parents(tracker)
    names = [f"e{number}" for number in range(5)]
    await tracker.RegisterEvents(event_definition_pb2.RegisterEventsRequest(app_id="kodemo1", event_names=names))
    whole = [
        (one.revision, one.resource_id) for one in (await tracker.ListChanges(change_pb2.ListChangesRequest())).changes
    ]
    paged, token = [], ""
    while True:
        page = await tracker.ListChanges(change_pb2.ListChangesRequest(page_size=3, page_token=token))
        paged += [(one.revision, one.resource_id) for one in page.changes]
        token = page.next_page_token
        if not token:
            break
    assert paged == whole
    assert [revision for revision, _ in whole] == [6] * 5 + [5, 4, 3, 2, 1]


@pytest.mark.parametrize(
    "token",
    ["%", encode_token(2**63, 1, "x"), encode_token(1, 99, "x"), encode_token(1, 1, "null\x00")],
    ids=["no token", "revision", "kind", "key"],
)
async def test_page_tokens_of_the_trail_that_nobody_was_given(tracker: Stub, token: str) -> None:
    request = change_pb2.ListChangesRequest(page_token=token)
    assert await wrong_fields(tracker.ListChanges(request)) == {("page_token", "INVALID_TOKEN")}


async def test_a_snapshot_of_any_revision(tracker: Stub) -> None:
    await create_parents(tracker)
    seen = [await stored(tracker)]
    await create_tracker(tracker, samples.acquisition())
    seen.append(await stored(tracker))
    await tracker.ArchiveTracker(tracker_pb2.ArchiveTrackerRequest(tracker_id="acq1"))
    seen.append(await stored(tracker))
    assert [await stored(tracker, revision) for revision in (5, 6, 7)] == seen
    assert list(await stored(tracker, 1)) == ["app kodemo1"]
    assert await refusal(stored(tracker, 8)) == ("NOT_FOUND", "REVISION_NOT_FOUND")
    assert await wrong_fields(stored(tracker, -1)) == {("revision", "OUT_OF_RANGE")}
