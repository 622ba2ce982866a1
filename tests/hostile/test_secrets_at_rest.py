"""Secrets that were planted wherever one can be given: in no table, answer, audit trail, export or log."""

import re
from pathlib import Path

import asyncpg
import grpc
import pytest
from google.protobuf.descriptor import Descriptor
from google.protobuf.field_mask_pb2 import FieldMask

from libs.channels import open_channel
from reengage.postback.v1 import configuration_pb2, conversion_pb2, delivery_pb2
from reengage.postback.v1 import service_pb2 as postback_service
from reengage.postback.v1.service_pb2_grpc import PostbackConfigServiceStub, PostbackServiceStub
from reengage.tracker.v1 import (
    app_pb2,
    change_pb2,
    network_pb2,
    resolve_pb2,
    san_account_pb2,
    settings_file_pb2,
    snapshot_pb2,
    tracker_edit_pb2,
    tracker_pb2,
)
from reengage.tracker.v1 import service_pb2 as tracker_service
from reengage.tracker.v1.service_pb2_grpc import TrackerConfigServiceStub
from tests.conftest import Database
from tests.postback.conftest import configuration, purchase, running, serving
from tests.support import processes
from tests.support.eventually import eventually
from tests.support.processes import postback_process, tracker_process
from tests.tracker import samples
from tests.tracker.conftest import ADMIN_KEY
from tests.tracker.conftest import serving as serving_tracker
from tests.tracker.samples import Stub

KEY, NEW_KEY, CREDENTIAL, TOKEN = (f"planted-{name}-0123456789" for name in ("key", "new", "credential", "token"))
PLANTED = "planted-"

SECRET_FIELDS = {
    "reengage.tracker.v1.App.auth_keys",
    "reengage.tracker.v1.Tracker.click_validation_key",
    "reengage.tracker.v1.SanAccount.credentials",
    "reengage.tracker.v1.GetSanAccountCredentialsResponse.credentials",
    "reengage.tracker.v1.CreateApiKeyResponse.key",
    "reengage.tracker.v1.RotateApiKeyResponse.key",
    "reengage.postback.v1.Configuration.secrets",
}
"""Fields that hold a secret. What is made of each is tested here, or where it is kept as a hash (tracker/test_keys)."""
NO_SECRETS = {"page_token", "next_page_token", "resume_token", "api_key", "api_keys", "api_key_id", "resource_key"}
_SOUNDS_SECRET = re.compile(r"(^|_)(key|keys|token|secret|secrets|password|credential|credentials|signature)$")


def secret_fields(kind: Descriptor, seen: set[str]) -> set[str]:
    """Returns the fields in and below a message whose names sound as if they held a secret."""
    if kind.full_name in seen or kind.GetOptions().map_entry:
        return set()
    seen.add(kind.full_name)
    found = set[str]()
    for field in kind.fields:
        is_text = field.cpp_type == field.CPPTYPE_STRING or field.message_type is not None
        if is_text and _SOUNDS_SECRET.search(field.name) and field.name not in NO_SECRETS:
            found.add(field.full_name)
        if field.message_type is not None:
            found |= secret_fields(field.message_type, seen)
    return found


def test_every_field_that_may_hold_a_secret_is_known() -> None:
    seen, found = set[str](), set[str]()
    for module in (tracker_service, postback_service):
        for service in module.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                found |= secret_fields(method.input_type, seen) | secret_fields(method.output_type, seen)
    assert found == SECRET_FIELDS


async def dump(database: Database) -> str:
    """Returns everything in every schema, as text, bytes as they are."""
    connection = await asyncpg.connect(database.admin_dsn)
    try:
        tables = await connection.fetch(
            """
            SELECT schemaname || '.' || tablename AS name FROM pg_tables
            WHERE schemaname NOT IN ('pg_catalog', 'information_schema')
            """
        )
        assert len(tables) > 30
        rows = [row for table in tables for row in await connection.fetch(f"SELECT * FROM {table['name']}")]
        values = [value for row in rows for value in row.values()]
        return "\n".join(v.decode("latin-1") if isinstance(v, bytes) else str(v) for v in values)
    finally:
        await connection.close()


async def plant_in_tracker(tracker: Stub) -> list[object]:
    """Plants secrets in tracker by every way there is; returns all that it answered."""
    await samples.create_parents(tracker)
    update = tracker_pb2.UpdateTrackerRequest(
        tracker=tracker_pb2.Tracker(tracker_id="acq1", click_validation_key=NEW_KEY),
        update_mask=FieldMask(paths=["click_validation_key"]),
    )
    tracked = samples.acquisition(click_validation_key=KEY)
    wanted = settings_file_pb2.WantedSettings(
        app_id="kodemo1",
        resources=[
            snapshot_pb2.Resource(app=samples.app(auth_keys={"K": KEY})),
            snapshot_pb2.Resource(tracker=samples.acquisition(click_validation_key=KEY)),
            snapshot_pb2.Resource(san_account=samples.san_account(credentials={"a": f"{CREDENTIAL}-2"})),
        ],
    )
    account = samples.san_account(credentials={"access_token": CREDENTIAL})
    app = app_pb2.UpdateAppRequest(
        app=samples.app(auth_keys={"K": KEY, "L": NEW_KEY}), update_mask=FieldMask(paths=["auth_keys"])
    )
    answers: list[object] = [
        await tracker.UpdateApp(app),
        await tracker.CreateApp(app_pb2.CreateAppRequest(app=samples.android_app(auth_keys={"K": KEY}))),
        await tracker.CreateTracker(tracker_pb2.CreateTrackerRequest(tracker=tracked)),
        await tracker.CreateTracker(tracker_pb2.CreateTrackerRequest(tracker=tracked)),
        await tracker.UpdateTracker(update),
        await tracker.CopyTracker(
            tracker_pb2.CopyTrackerRequest(source_tracker_id="acq1", tracker=tracker_pb2.Tracker(tracker_id="copy"))
        ),
        await tracker.BulkEditTrackers(
            tracker_edit_pb2.BulkEditTrackersRequest(
                app_id="kodemo1", tracker_ids=["acq1"], tracker=tracked, update_mask=update.update_mask
            )
        ),
        await tracker.CreateSanAccount(san_account_pb2.CreateSanAccountRequest(san_account=account)),
        (planned := await tracker.PlanSettings(settings_file_pb2.PlanSettingsRequest(wanted=wanted))),
        await tracker.ApplySettings(settings_file_pb2.ApplySettingsRequest(wanted=wanted, etag=planned.etag)),
    ]
    return answers


async def shown_by_tracker(tracker: Stub) -> list[object]:
    """Returns all that tracker shows."""
    snapshots = tracker.WatchSnapshot(snapshot_pb2.WatchSnapshotRequest())
    answers: list[object] = [
        await tracker.GetTracker(tracker_pb2.GetTrackerRequest(tracker_id="acq1")),
        await tracker.ListTrackers(tracker_pb2.ListTrackersRequest(app_id="kodemo1")),
        await tracker.GetSanAccount(san_account_pb2.GetSanAccountRequest(san_account_id="x1")),
        await tracker.ListSanAccounts(san_account_pb2.ListSanAccountsRequest(app_id="kodemo1")),
        await tracker.ListChanges(change_pb2.ListChangesRequest(page_size=1000)),
        await tracker.ResolveSettings(resolve_pb2.ResolveSettingsRequest(tracker_id="acq1")),
        await tracker.ListApps(app_pb2.ListAppsRequest()),
        await tracker.GetApp(app_pb2.GetAppRequest(app_id="kodemo1")),
        await tracker.ListNetworks(network_pb2.ListNetworksRequest()),
        await snapshots.read(),
        [one async for one in tracker.GetSnapshot(snapshot_pb2.GetSnapshotRequest())],
        [one async for one in tracker.GetSnapshot(snapshot_pb2.GetSnapshotRequest(revision=7))],
    ]
    snapshots.cancel()
    for form in (tracker_edit_pb2.FILE_FORMAT_CSV, tracker_edit_pb2.FILE_FORMAT_NDJSON):
        export = tracker_edit_pb2.ExportTrackersRequest(app_id="kodemo1", format=form)
        answers.append([piece.content async for piece in tracker.ExportTrackers(export)])
    return answers


async def plant_in_postback(channel: grpc.aio.Channel, url: str) -> list[object]:
    """Has postback send a secret; returns all that it answers."""
    configs, deliveries = PostbackConfigServiceStub(channel), PostbackServiceStub(channel)
    template = {"url": f"{url}?t={{secret.token}}", "headers": {"Authorization": "Bearer {secret.token}"}}
    given = configuration(configuration_id="k", template=template, secrets={"token": TOKEN})
    answers: list[object] = [
        await configs.CreateConfiguration(configuration_pb2.CreateConfigurationRequest(configuration=given)),
        await configs.ListConfigurations(configuration_pb2.ListConfigurationsRequest(app_id="app")),
        await configs.Preview(configuration_pb2.PreviewRequest(configuration_id="k")),
    ]
    await deliveries.EnqueueConversions(conversion_pb2.EnqueueConversionsRequest(conversions=[purchase()]))

    async def ended() -> delivery_pb2.Delivery | None:
        (one,) = (await deliveries.ListDeliveries(delivery_pb2.ListDeliveriesRequest(app_id="app"))).deliveries
        return one if one.state != delivery_pb2.Delivery.STATE_PENDING else None

    delivery = await eventually(ended)
    assert delivery is not None
    shown = await deliveries.GetDelivery(delivery_pb2.GetDeliveryRequest(delivery_id=delivery.delivery_id))
    assert "_masked_" in str(shown)
    return [*answers, shown]


async def test_planted_secrets_are_found_nowhere(database: Database, tmp_path: Path, process_logs: Path) -> None:
    tracker_log, postback_log = process_logs / "tracker.log", process_logs / "postback.log"
    async with (
        serving() as endpoint,
        processes.running(tracker_process(tracker_log, dsn=database.dsn("tracker"), log_level="debug")) as one,
        processes.running(
            postback_process(postback_log, dsn=database.dsn("postback"), allowed_hosts=endpoint.host)
        ) as other,
        open_channel(one.target, key="admin") as channel,
        open_channel(other.target) as to_postback,
    ):
        tracker = TrackerConfigServiceStub(channel)
        answers = await plant_in_tracker(tracker) + await shown_by_tracker(tracker)
        assert await samples.click_key_of(tracker, "acq1") == KEY, "the gateway is told"
        assert await samples.click_key_of(tracker, "copy") == NEW_KEY
        answers += await plant_in_postback(to_postback, endpoint.url("/"))
        rows = await dump(database)
    logs = tracker_log.read_text() + postback_log.read_text()
    assert "rpc.served" in logs
    assert "acq1" in rows
    for name, text in {"an answer": str(answers), "a table": rows, "a log": logs}.items():
        place = text.find(PLANTED)
        assert place < 0, f"{name}: {text[max(0, place - 300) : place + 60]}"


async def test_whether_there_is_a_key_is_told(database: Database) -> None:
    async with serving_tracker(database) as served, open_channel(served.target, key=ADMIN_KEY) as channel:
        tracker = TrackerConfigServiceStub(channel)
        await samples.create_parents(tracker)
        made = await samples.create_tracker(tracker, samples.acquisition(click_validation_key=KEY))
        assert (made.has_click_validation_key, made.click_validation_key) == (True, "")
        mask = FieldMask(paths=["click_validation_key"])
        cleared = tracker_pb2.UpdateTrackerRequest(
            tracker=tracker_pb2.Tracker(tracker_id="acq1", has_click_validation_key=True), update_mask=mask
        )
        assert not (await tracker.UpdateTracker(cleared)).tracker.has_click_validation_key
        assert await samples.click_key_of(tracker, "acq1") == ""


@pytest.mark.parametrize(
    "name", ["Authorization", "proxy-authorization", "Cookie", "X-Api-Key", "api_key", "X-Auth-Token"]
)
async def test_a_header_that_gives_access_takes_a_secret(database: Database, tmp_path: Path, name: str) -> None:
    async with running(database, tmp_path / "s", allowed="a.example") as service:
        template = {"url": "https://a.example/", "headers": {name: TOKEN}}
        found = await samples.wrong_fields(service.configure(template=template))
        assert found == {(f"configuration.adapter_fields.headers[{name}]", "SECRET")}
        template["headers"] = {name: "Bearer {secret.token}", "X-Tokens": "3"}
        await service.configure(template=template, secrets={"token": TOKEN})


@pytest.mark.parametrize("field", ["install_url", "deep_link"])
async def test_no_link_holds_a_password(database: Database, field: str) -> None:
    async with serving_tracker(database) as served, open_channel(served.target, key=ADMIN_KEY) as channel:
        tracker = TrackerConfigServiceStub(channel)
        await samples.create_parents(tracker)
        made = samples.acquisition(**{field: f"https://user:{TOKEN}@a.example/"})
        found = await samples.wrong_fields(samples.create_tracker(tracker, made))
        assert found == {(f"tracker.{field}", "INVALID_URL")}
