"""Accounts and what else stands above apps: not archived while it is in use."""

from typing import Any

import pytest

from libs.messages import message_class
from reengage.tracker.v1 import (
    app_pb2,
    tracker_pb2,
)
from reengage.tracker.v1.status_pb2 import STATUS_ARCHIVED
from tests.tracker import samples
from tests.tracker.samples import Stub, create_parents, create_tracker, failure


@pytest.mark.parametrize(
    ("kind", "field", "sample", "used"),
    [
        ("Account", "account_id", samples.account(), {}),
        ("Agency", "agency_id", samples.agency(), {"agency_id": "runners"}),
        ("SanAccount", "san_account_id", samples.san_account(verified=True), {"san_account_ids": ["x1"]}),
    ],
    ids=["account", "agency", "san account"],
)
async def test_what_is_in_use_is_not_archived(
    tracker: Stub, kind: str, field: str, sample: Any, used: dict[str, Any]
) -> None:
    create, archive = getattr(tracker, f"Create{kind}"), getattr(tracker, f"Archive{kind}")
    name = {"Account": "account", "Agency": "agency", "SanAccount": "san_account"}[kind]
    if kind == "Account":
        await create(message_class(f"reengage.tracker.v1.Create{kind}Request")(**{name: sample}))
        await tracker.CreateApp(app_pb2.CreateAppRequest(app=samples.app(account_id="owner")))
    else:
        await create_parents(tracker)
        await create(message_class(f"reengage.tracker.v1.Create{kind}Request")(**{name: sample}))
        await create_tracker(tracker, samples.san_reengagement(**used))
    request = message_class(f"reengage.tracker.v1.Archive{kind}Request")(**{field: getattr(sample, field)})
    details = await failure(archive(request))
    assert details.reason == "IN_USE"
    assert ("kodemo1" if kind == "Account" else "xre1") in details.message
    if used:
        await tracker.ArchiveTracker(tracker_pb2.ArchiveTrackerRequest(tracker_id="xre1"))
    await tracker.ArchiveApp(app_pb2.ArchiveAppRequest(app_id="kodemo1"))
    assert getattr(await archive(request), name).status == STATUS_ARCHIVED
