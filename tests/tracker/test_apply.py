"""PlanSettings and ApplySettings: an app and what belongs to it come to a wanted state, or nothing changes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from reengage.tracker.v1 import (
    account_pb2,
    agency_pb2,
    api_key_pb2,
    app_pb2,
    campaign_pb2,
    change_pb2,
    event_definition_pb2,
    network_pb2,
    san_account_pb2,
    segment_pb2,
    snapshot_pb2,
    tracker_pb2,
)
from reengage.tracker.v1.api_key_pb2 import ApiKey
from reengage.tracker.v1.app_pb2 import AppSettings
from reengage.tracker.v1.campaign_pb2 import Campaign
from reengage.tracker.v1.change_pb2 import Change
from reengage.tracker.v1.event_definition_pb2 import EventDefinition
from reengage.tracker.v1.network_settings_pb2 import NetworkSettings
from reengage.tracker.v1.resource_kind_pb2 import (
    RESOURCE_KIND_CAMPAIGN,
    RESOURCE_KIND_EVENT_DEFINITION,
    RESOURCE_KIND_NETWORK,
    RESOURCE_KIND_NETWORK_SETTINGS,
    RESOURCE_KIND_SAN_ACCOUNT,
    RESOURCE_KIND_SEGMENT,
    RESOURCE_KIND_TRACKER,
    ResourceKind,
)
from reengage.tracker.v1.san_account_pb2 import SanAccount
from reengage.tracker.v1.segment_pb2 import Segment
from reengage.tracker.v1.settings_file_pb2 import (
    ApplySettingsRequest,
    ApplySettingsResponse,
    PlannedChange,
    PlanSettingsRequest,
    WantedSettings,
)
from reengage.tracker.v1.snapshot_pb2 import Resource
from reengage.tracker.v1.status_pb2 import STATUS_ARCHIVED
from reengage.tracker.v1.tracker_pb2 import Tracker, TrafficRules
from services.tracker.storage.store import MAX_PART_RESOURCES
from tests.conftest import Database
from tests.tracker import samples
from tests.tracker.conftest import ADMIN_KEY, serving
from tests.tracker.samples import DAY, HOUR, Stub, lasting, refusal, seconds, wrong_fields
from tests.tracker.test_roles import calling, holding

CREATED, UPDATED, ARCHIVED = Change.ACTION_CREATED, Change.ACTION_UPDATED, Change.ACTION_ARCHIVED
COMPLETE = (
    RESOURCE_KIND_NETWORK_SETTINGS, RESOURCE_KIND_SAN_ACCOUNT, RESOURCE_KIND_EVENT_DEFINITION,
    RESOURCE_KIND_CAMPAIGN, RESOURCE_KIND_SEGMENT, RESOURCE_KIND_TRACKER,
)  # fmt: skip
URL = "https://apps.example/demo"


@dataclass
class File:
    """The settings of the app `demo` as somebody wants them, by names that the tests use."""

    resources: dict[str, Any] = field(
        default_factory=lambda: {
            "app": samples.app(app_id="demo", settings=AppSettings(windows=samples.windows(click_ip=lasting(DAY)))),
            "x": NetworkSettings(
                app_id="demo",
                network_id="x-ios",
                granular_data_policy=NetworkSettings.GRANULAR_DATA_POLICY_REDACT,
            ),
            "main": SanAccount(san_account_id="main", app_id="demo", network_id="x-ios", name="Main"),
            "Purchase": EventDefinition(
                app_id="demo", event_name="Purchase", min_time_to_reengagement=seconds(12 * HOUR), revenue=True
            ),
            "Login": EventDefinition(app_id="demo", event_name="Login"),
            "spring": Campaign(campaign_id="spring", app_id="demo", name="Spring"),
            "a": Segment(segment_id="a", campaign_id="spring", name="A"),
            "acq": Tracker(tracker_id="acq", segment_id="a", network_id="acme-ios", install_url=URL),
            "re": Tracker(
                tracker_id="re",
                segment_id="a",
                network_id="acme-ios",
                type=Tracker.TYPE_REENGAGEMENT,
                install_url=URL,
                deep_link="demo://product/{sku}",
                custom_parameters={"sku": "home"},
                events=["Purchase", "Login"],
                windows=samples.windows(click_device=lasting(2 * HOUR), click_modeled=samples.lasting(HOUR)),
                traffic_rules=TrafficRules(start_time=Timestamp(seconds=1772323200), allowed_countries=["DE", "FR"]),
            ),
            "default": Tracker(
                tracker_id="default",
                segment_id="a",
                network_id="x-ios",
                type=Tracker.TYPE_REENGAGEMENT,
                events=["Purchase"],
                default_tracker=True,
            ),
        }
    )
    complete: tuple[ResourceKind.ValueType, ...] = COMPLETE

    @property
    def wanted(self) -> WantedSettings:
        """Returns the file as a message."""
        return WantedSettings(
            app_id="demo", resources=map(resource_of, self.resources.values()), complete_kinds=self.complete
        )

    def at(self, name: str) -> str:
        """Returns the path of a resource."""
        index = list(self.resources).index(name)
        return f"resources[{index}].{self.wanted.resources[index].WhichOneof('resource')}"

    def edit(self, name: str, /, **fields: Any) -> None:
        """Sets fields of a resource, or clears those that are None."""
        changed = type(self.resources[name])(**{key: value for key, value in fields.items() if value is not None})
        for key in fields:
            self.resources[name].ClearField(key)
        self.resources[name].MergeFrom(changed)


def resource_of(message: Any) -> Resource:
    name = next(one.name for one in Resource.DESCRIPTOR.fields if one.message_type is message.DESCRIPTOR)
    return Resource(**{name: message})


async def plan(stub: Stub, file: File) -> list[PlannedChange]:
    response = await stub.PlanSettings(PlanSettingsRequest(wanted=file.wanted), timeout=60)
    return list(response.changes)


async def apply(stub: Stub, file: File) -> list[PlannedChange]:
    """Plans, applies, and returns what was done, which must be what was planned."""
    planned = await stub.PlanSettings(PlanSettingsRequest(wanted=file.wanted), timeout=60)
    done = await stub.ApplySettings(ApplySettingsRequest(wanted=file.wanted, etag=planned.etag), timeout=60)
    assert done.changes == planned.changes
    assert bool(done.revision) == bool(done.changes)
    return list(done.changes)


def names(changes: list[PlannedChange]) -> list[tuple[Any, str]]:
    return [(change.action, change.resource_id) for change in changes]


def fields(change: PlannedChange) -> dict[str, tuple[str, str]]:
    return {one.path: (one.before, one.after) for one in change.fields}


async def problems(stub: Stub, file: File) -> set[tuple[str, str]]:
    """Returns path and reason of everything that is wrong with a file, which must change nothing."""
    before = await newest(stub)
    wrong = await wrong_fields(stub.PlanSettings(PlanSettingsRequest(wanted=file.wanted)))
    assert await wrong_fields(stub.ApplySettings(ApplySettingsRequest(wanted=file.wanted, etag="x"))) == wrong
    assert await newest(stub) == before
    return wrong


async def newest(stub: Stub) -> int:
    call = stub.GetSnapshot(snapshot_pb2.GetSnapshotRequest())
    part = await call.read()
    assert isinstance(part, snapshot_pb2.GetSnapshotResponse)
    call.cancel()
    return part.revision


async def tracker_of(stub: Stub, tracker_id: str) -> Tracker:
    found: Tracker = (await stub.GetTracker(tracker_pb2.GetTrackerRequest(tracker_id=tracker_id))).tracker
    return found


@pytest.fixture
async def stub(tracker: Stub) -> Stub:
    """Returns a tracker with the network that the file names; that of X is built in."""
    await tracker.CreateNetwork(network_pb2.CreateNetworkRequest(network=samples.network()))
    return tracker


@pytest.fixture
def file() -> File:
    return File()


@pytest.fixture
async def applied(stub: Stub, file: File) -> Stub:
    """Returns a tracker to which the file is applied."""
    await apply(stub, file)
    return stub


async def test_everything_is_created_in_one_revision_and_then_there_is_nothing_to_do(stub: Stub, file: File) -> None:
    before = await newest(stub)
    planned = await plan(stub, file)
    assert await newest(stub) == before, "a plan changes nothing"
    assert names(planned) == [
        (CREATED, "demo"),
        (UPDATED, "demo/x-ios"),
        (CREATED, "main"),
        (CREATED, "demo/Purchase"),
        (CREATED, "demo/Login"),
        (CREATED, "spring"),
        (CREATED, "a"),
        (CREATED, "acq"),
        (CREATED, "re"),
        (CREATED, "default"),
    ]
    assert [change.resource_index for change in planned] == list(range(10))
    assert fields(planned[3]) == {
        "display_name": ("", '"Purchase"'),
        "min_time_to_reengagement": ("", '"43200s"'),
        "revenue": ("", "true"),
    }
    assert await apply(stub, file) == planned
    assert await newest(stub) == before + 1
    made = await tracker_of(stub, "re")
    assert (made.app_id, made.campaign_id, made.revision, list(made.events)) == (
        "demo", "spring", before + 1, ["Purchase", "Login"],
    )  # fmt: skip
    again = await stub.ApplySettings(ApplySettingsRequest(wanted=file.wanted, etag="any"))
    assert again == ApplySettingsResponse()


async def test_the_order_of_the_request_does_not_matter(stub: Stub, file: File) -> None:
    file.resources = dict(reversed(file.resources.items()))
    await apply(stub, file)
    assert await plan(stub, File()) == []


async def test_the_audit_trail_has_every_change_by_its_caller(applied: Stub) -> None:
    trail = await applied.ListChanges(change_pb2.ListChangesRequest(app_id="demo"))
    assert {(change.action, change.actor) for change in trail.changes} == {(CREATED, "admin")}
    assert len(trail.changes) == 10


async def test_fields_come_to_what_is_wanted_and_left_out_ones_to_their_defaults(applied: Stub, file: File) -> None:
    file.edit("re", windows=samples.windows(click_device=lasting(HOUR)), custom_parameters=None)
    file.edit("Purchase", min_time_to_reengagement=None)
    del file.resources["x"]
    purchase, tracker, network = await apply(applied, file)
    assert (purchase.kind, fields(purchase)) == (
        RESOURCE_KIND_EVENT_DEFINITION, {"min_time_to_reengagement": ('"43200s"', "")},
    )  # fmt: skip
    assert fields(tracker) == {
        "windows.click_device": ('{"duration": "7200s"}', '{"duration": "3600s"}'),
        "windows.click_modeled": ('{"duration": "3600s"}', ""),
        "custom_parameters": ('{"sku": "home"}', ""),
    }
    assert (network.action, fields(network)) == (
        UPDATED, {"granular_data_policy": ('"GRANULAR_DATA_POLICY_REDACT"', "")},
    )  # fmt: skip
    assert not network.HasField("resource_index")
    assert await plan(applied, file) == []


async def test_what_a_complete_kind_does_not_list_is_archived(applied: Stub, file: File) -> None:
    for gone in ("Login", "main", "spring", "a", "acq", "re", "default"):
        del file.resources[gone]
    done = await apply(applied, file)
    assert names(done) == [(ARCHIVED, gone) for gone in ("acq", "default", "re", "a", "spring", "demo/Login", "main")]
    assert all(not change.fields and not change.HasField("resource_index") for change in done)
    assert (await tracker_of(applied, "re")).status == STATUS_ARCHIVED
    assert await plan(applied, file) == []


async def test_a_kind_that_is_not_complete_stays_as_it_is(applied: Stub, file: File) -> None:
    file.resources = {"app": file.resources["app"]}
    file.complete = ()
    assert await plan(applied, file) == []


async def test_a_few_resources_can_be_applied_without_their_app(applied: Stub, file: File) -> None:
    file.resources, file.complete = {"acq": file.resources["acq"]}, ()
    file.edit("acq", max_conversions_per_engagement=3)
    assert names(await apply(applied, file)) == [(UPDATED, "acq")]


async def test_what_goes_gives_its_name_to_what_comes(applied: Stub, file: File) -> None:
    file.edit("acq", tracker_id="acq2", name="acq")
    assert names(await apply(applied, file)) == [(ARCHIVED, "acq"), (CREATED, "acq2")]


async def test_names_go_from_one_to_the_next(applied: Stub, file: File) -> None:
    """Each is free only once the one before has given it up."""
    file.resources["new"] = Tracker(
        tracker_id="new", segment_id="a", network_id="acme-ios", install_url=URL, name="acq"
    )
    file.edit("acq", name="re")
    file.edit("re", name="Retired")
    assert names(await apply(applied, file)) == [(UPDATED, "re"), (UPDATED, "acq"), (CREATED, "new")]


async def test_names_do_not_go_round_in_a_circle(applied: Stub, file: File) -> None:
    file.edit("acq", name="re")
    file.edit("re", name="acq")
    assert await problems(applied, file) == {
        (f"{file.at('acq')}.name", "NAME_TAKEN"), (f"{file.at('re')}.name", "NAME_TAKEN"),
    }  # fmt: skip


async def test_the_name_of_something_that_is_not_listed_is_taken(applied: Stub, file: File) -> None:
    file.resources = {"new": file.resources["acq"]}
    file.edit("new", tracker_id="new", name="re")
    file.complete = ()
    assert await problems(applied, file) == {(f"{file.at('new')}.name", "NAME_TAKEN")}


async def test_the_name_of_another_app_is_taken(stub: Stub, file: File) -> None:
    await stub.CreateApp(app_pb2.CreateAppRequest(app=samples.app(name="Demo")))
    assert await problems(stub, file) == {(f"{file.at('app')}.name", "NAME_TAKEN")}


async def test_an_event_is_archived_once_no_tracker_selects_it_and_can_come_back(applied: Stub, file: File) -> None:
    login = file.resources.pop("Login")
    file.edit("re", events=["Purchase"])
    assert names(await apply(applied, file)) == [(UPDATED, "re"), (ARCHIVED, "demo/Login")]
    file.resources["Login"] = login
    file.edit("Login", reengagement_period=seconds(30 * DAY))
    [back] = await apply(applied, file)
    assert (back.action, fields(back)) == (
        CREATED, {"display_name": ("", '"Login"'), "reengagement_period": ("", '"2592000s"')},
    )  # fmt: skip


async def test_the_default_tracker_moves(applied: Stub, file: File) -> None:
    file.resources["next"] = Tracker()
    file.resources["next"].CopyFrom(file.resources["default"])
    file.edit("next", tracker_id="next")
    file.edit("default", default_tracker=None)
    assert names(await apply(applied, file)) == [(UPDATED, "default"), (CREATED, "next")]
    assert (await tracker_of(applied, "next")).default_tracker
    assert await plan(applied, file) == []


async def test_a_default_tracker_that_is_not_listed_is_turned_off_in_sight(applied: Stub, file: File) -> None:
    file.resources = {"next": file.resources["default"]}
    file.complete = ()
    file.edit("next", tracker_id="next")
    off, created = await apply(applied, file)
    assert (off.resource_id, fields(off), off.HasField("resource_index")) == (
        "default", {"default_tracker": ("true", "")}, False,
    )  # fmt: skip
    assert created.resource_id == "next"


async def test_what_is_left_out_and_kept_stays(applied: Stub, file: File) -> None:
    """Secrets, the owner, and that the network has taken the credentials."""
    key = Tracker(tracker_id="re", click_validation_key="0123456789abcdef")
    await applied.UpdateTracker(
        tracker_pb2.UpdateTrackerRequest(tracker=key, update_mask=FieldMask(paths=["click_validation_key"]))
    )
    account = SanAccount(san_account_id="main", credentials={"token": "t"}, verified=True)
    await applied.UpdateSanAccount(
        san_account_pb2.UpdateSanAccountRequest(
            san_account=account, update_mask=FieldMask(paths=["credentials", "verified"])
        )
    )
    assert await plan(applied, file) == []
    file.edit("re", click_validation_key="fedcba9876543210")
    file.edit("main", name="Renamed")
    account_change, tracker_change = await apply(applied, file)
    assert fields(account_change) == {"name": ('"Main"', '"Renamed"')}
    assert fields(tracker_change) == {"click_validation_key": ('"…"', '"…"')}
    assert await samples.click_key_of(applied, "re") == "fedcba9876543210"
    renamed = (await applied.GetSanAccount(san_account_pb2.GetSanAccountRequest(san_account_id="main"))).san_account
    assert (list(renamed.credential_names), renamed.verified) == (["token"], True)
    file.edit("main", credentials={"token": "u"})
    [changed] = await apply(applied, file)
    assert fields(changed) == {"credentials": ('"…"', '"…"'), "verified": ("true", "")}


async def test_events_that_nobody_created_stay_until_they_hold_something(applied: Stub, file: File) -> None:
    await applied.RegisterEvents(
        event_definition_pb2.RegisterEventsRequest(app_id="demo", event_names=["Seen", "Tuned"])
    )
    assert await plan(applied, file) == []
    tuned = EventDefinition(app_id="demo", event_name="Tuned", revenue=True)
    await applied.UpdateEventDefinition(
        event_definition_pb2.UpdateEventDefinitionRequest(
            event_definition=tuned, update_mask=FieldMask(paths=["revenue"])
        )
    )
    assert names(await apply(applied, file)) == [(ARCHIVED, "demo/Tuned")]


Edit = Callable[[File], None]


@pytest.mark.parametrize(
    ("edit", "wrong"),
    [
        (
            lambda file: file.edit("app", settings=AppSettings(windows=samples.windows(click_ip=lasting(31 * DAY)))),
            {("app", "settings.windows.click_ip.duration", "OUT_OF_RANGE")},
        ),
        (lambda file: file.edit("re", events=None), {("re", "events", "REQUIRED")}),
        (
            lambda file: file.edit("re", traffic_rules=TrafficRules(allowed_countries=["DE", "France"])),
            {("re", "traffic_rules.allowed_countries[1]", "UNKNOWN_VALUE")},
        ),
        (lambda file: file.edit("acq", agency_id="nobody"), {("acq", "agency_id", "NOT_FOUND")}),
        (lambda file: file.edit("acq", network_id="nothing"), {("acq", "network_id", "NOT_FOUND")}),
        (lambda file: file.edit("acq", network_id=""), {("acq", "network_id", "REQUIRED")}),
        (lambda file: file.edit("acq", segment_id="b"), {("acq", "segment_id", "NOT_FOUND")}),
        (lambda file: file.edit("x", network_id="nothing"), {("x", "network_id", "NOT_FOUND")}),
        (lambda file: file.edit("Login", disabled=True), {("re", "events[1]", "DISABLED")}),
        (
            lambda file: file.edit("default", san_account_ids=["main"]),
            {("default", "san_account_ids[0]", "NOT_VERIFIED")},
        ),
        (
            lambda file: file.edit("acq", name="re"),
            {("re", "name", "DUPLICATE")},
        ),
        (lambda file: file.edit("spring", name=""), {("spring", "name", "REQUIRED")}),
        (lambda file: file.edit("spring", app_id="other"), {("spring", "app_id", "OTHER_APP")}),
        (lambda file: file.edit("spring", campaign_id=""), {("spring", "campaign_id", "REQUIRED")}),
        (lambda file: file.edit("acq", tracker_id="re"), {("re", "", "DUPLICATE")}),
    ],
    ids=[
        "app", "events", "list", "agency", "network", "no network", "segment", "settings of no network", "disabled",
        "not verified", "name twice", "no name", "another app", "no id", "id twice",
    ],
)  # fmt: skip
async def test_what_is_wrong_is_named_by_its_path(
    stub: Stub, file: File, edit: Edit, wrong: set[tuple[str, str, str]]
) -> None:
    edit(file)
    found = await problems(stub, file)
    assert found >= {(f"{file.at(name)}.{path}".rstrip("."), reason) for name, path, reason in wrong}
    named = {name for name, _, _ in wrong}
    allowed = {file.at(name) for name in named} | {file.at(name) for name in ("a", "acq", "re", "default")}
    assert all(any(path.startswith(prefix) for prefix in allowed) for path, _ in found), found


async def test_everything_wrong_is_named_at_once(stub: Stub, file: File) -> None:
    file.edit("acq", install_url="ftp://apps.example")
    file.edit("re", max_conversions_per_engagement=-1)
    file.edit("Purchase", min_time_to_reengagement=seconds(366 * DAY))
    assert await problems(stub, file) == {
        (f"{file.at('acq')}.install_url", "INVALID_SCHEME"),
        (f"{file.at('re')}.max_conversions_per_engagement", "OUT_OF_RANGE"),
        (f"{file.at('Purchase')}.min_time_to_reengagement", "OUT_OF_RANGE"),
    }


async def test_what_a_tracker_names_is_not_archived_under_it(applied: Stub, file: File) -> None:
    del file.resources["Login"]
    assert await problems(applied, file) == {(f"{file.at('re')}.events[1]", "ARCHIVED")}


async def test_what_something_not_listed_needs_is_in_use(applied: Stub, file: File) -> None:
    file.resources, file.complete = {"app": file.resources["app"]}, (RESOURCE_KIND_EVENT_DEFINITION,)
    call = applied.PlanSettings(PlanSettingsRequest(wanted=file.wanted))
    assert await refusal(call) == ("FAILED_PRECONDITION", "IN_USE")


async def test_what_never_changes_is_refused(applied: Stub, file: File) -> None:
    file.edit("re", type=None, events=None)
    file.resources["c"] = Segment(segment_id="c", campaign_id="spring", name="C")
    file.edit("default", segment_id="c")
    assert await problems(applied, file) == {
        (f"{file.at('re')}.type", "IMMUTABLE"), (f"{file.at('default')}.segment_id", "IMMUTABLE"),
    }  # fmt: skip


async def test_what_is_archived_stays_archived(applied: Stub, file: File) -> None:
    await applied.ArchiveTracker(tracker_pb2.ArchiveTrackerRequest(tracker_id="acq"))
    assert await problems(applied, file) == {(file.at("acq"), "ARCHIVED")}


async def test_an_id_of_another_app_is_refused(stub: Stub, file: File) -> None:
    await stub.CreateApp(app_pb2.CreateAppRequest(app=samples.app(app_id="other", name="Other")))
    theirs = samples.campaign(campaign_id="spring", app_id="other", name="Theirs")
    await stub.CreateCampaign(campaign_pb2.CreateCampaignRequest(campaign=theirs))
    assert (file.at("spring"), "OTHER_APP") in await problems(stub, file)


async def test_a_segment_of_another_app_is_refused(stub: Stub, file: File) -> None:
    await stub.CreateApp(app_pb2.CreateAppRequest(app=samples.app(app_id="other", name="Other")))
    theirs = samples.campaign(campaign_id="theirs", app_id="other", name="Theirs")
    await stub.CreateCampaign(campaign_pb2.CreateCampaignRequest(campaign=theirs))
    segment = samples.segment(segment_id="theirs-a", campaign_id="theirs")
    await stub.CreateSegment(segment_pb2.CreateSegmentRequest(segment=segment))
    file.edit("acq", segment_id="theirs-a")
    assert await problems(stub, file) == {(file.at("acq"), "OTHER_APP")}


@pytest.mark.parametrize(
    ("wanted", "wrong"),
    [
        (WantedSettings(), {("app_id", "REQUIRED"), ("resources", "OUT_OF_RANGE")}),
        (WantedSettings(app_id="demo", resources=[Resource()]), {("resources[0]", "REQUIRED")}),
        (
            WantedSettings(app_id="demo", resources=[Resource(network=samples.network())]),
            {("resources[0]", "NOT_ALLOWED")},
        ),
        (
            WantedSettings(
                app_id="demo",
                resources=[Resource(app=samples.app(app_id="demo"))],
                complete_kinds=[RESOURCE_KIND_NETWORK],
            ),
            {("complete_kinds[0]", "NOT_ALLOWED")},
        ),
        (
            WantedSettings(app_id="demo", resources=[Resource(app=samples.app(app_id="other"))]),
            {("resources[0].app.app_id", "OTHER_APP")},
        ),
    ],
    ids=["empty", "no resource", "network", "complete networks", "another app"],
)
async def test_requests_that_make_no_sense(stub: Stub, wanted: WantedSettings, wrong: set[tuple[str, str]]) -> None:
    assert await wrong_fields(stub.PlanSettings(PlanSettingsRequest(wanted=wanted))) == wrong


async def test_an_app_that_is_not_there_must_be_listed(stub: Stub, file: File) -> None:
    del file.resources["app"]
    call = stub.PlanSettings(PlanSettingsRequest(wanted=file.wanted))
    assert await refusal(call) == ("NOT_FOUND", "APP_NOT_FOUND")


async def test_a_change_that_somebody_made_meanwhile_is_not_overwritten(applied: Stub, file: File) -> None:
    file.edit("re", windows=samples.windows(click_device=lasting(3 * HOUR)))
    planned = await applied.PlanSettings(PlanSettingsRequest(wanted=file.wanted))
    meanwhile = Tracker(tracker_id="re", max_conversions_per_engagement=7)
    await applied.UpdateTracker(
        tracker_pb2.UpdateTrackerRequest(
            tracker=meanwhile, update_mask=FieldMask(paths=["max_conversions_per_engagement"])
        )
    )
    late = applied.ApplySettings(ApplySettingsRequest(wanted=file.wanted, etag=planned.etag))
    assert await refusal(late) == ("ABORTED", "ETAG_MISMATCH")
    held = await tracker_of(applied, "re")
    assert (held.windows.click_device, held.max_conversions_per_engagement) == (lasting(2 * HOUR), 7)
    without = applied.ApplySettings(ApplySettingsRequest(wanted=file.wanted))
    assert await wrong_fields(without) == {("etag", "REQUIRED")}


async def test_an_editor_of_the_app_may_apply_and_a_stranger_sees_nothing(database: Database, file: File) -> None:
    async with serving(database) as served, calling(served, ADMIN_KEY) as admin:
        await admin.CreateNetwork(network_pb2.CreateNetworkRequest(network=samples.network()))
        await admin.CreateAgency(agency_pb2.CreateAgencyRequest(agency=samples.agency()))
        await admin.CreateAccount(account_pb2.CreateAccountRequest(account=samples.account()))
        await apply(admin, file)
        file.edit("acq", agency_id="runners")
        async with holding(served, role=ApiKey.ROLE_VIEWER, app_id="demo") as viewer:
            assert names(await plan(viewer, file)) == [(UPDATED, "acq")]
        async with holding(served, role=ApiKey.ROLE_EDITOR, app_id="demo") as editor:
            assert names(await apply(editor, file)) == [(UPDATED, "acq")]
        async with holding(served, role=ApiKey.ROLE_EDITOR, account_id="owner") as stranger:
            call = stranger.PlanSettings(PlanSettingsRequest(wanted=file.wanted))
            assert await refusal(call) == ("NOT_FOUND", "APP_NOT_FOUND")
            new = WantedSettings(
                app_id="new", resources=[Resource(app=samples.app(app_id="new", name="New", account_id="owner"))]
            )
            planned = await stranger.PlanSettings(PlanSettingsRequest(wanted=new))
            assert names(list(planned.changes)) == [(CREATED, "new")]
            new.resources[0].app.account_id = ""
            orphan = stranger.PlanSettings(PlanSettingsRequest(wanted=new))
            assert await refusal(orphan) == ("PERMISSION_DENIED", "SCOPE_NOT_ALLOWED")


@pytest.mark.slow
async def test_more_changes_than_one_part_of_a_snapshot(stub: Stub, file: File) -> None:
    """All or nothing holds for many trackers, too."""
    for number in range(MAX_PART_RESOURCES + 100):
        file.resources[f"t{number}"] = Tracker(
            tracker_id=f"t{number}", segment_id="a", network_id="acme-ios", install_url=URL
        )
    assert len(await apply(stub, file)) == MAX_PART_RESOURCES + 110
    assert await plan(stub, file) == []


@pytest.mark.parametrize(
    "call",
    [
        lambda stub: stub.CreateApp(
            app_pb2.CreateAppRequest(app=samples.app(app_id="new", name="New"), validate_only=True)
        ),
        lambda stub: stub.UpdateTracker(
            tracker_pb2.UpdateTrackerRequest(
                tracker=Tracker(tracker_id="acq", name="New"),
                update_mask=FieldMask(paths=["name"]),
                validate_only=True,
            )
        ),
        lambda stub: stub.ArchiveTracker(tracker_pb2.ArchiveTrackerRequest(tracker_id="acq", validate_only=True)),
        lambda stub: stub.CreateTracker(
            tracker_pb2.CreateTrackerRequest(
                tracker=Tracker(network_id="acme-ios", install_url=URL),
                segment=Segment(campaign_id="spring", name="B"),
                validate_only=True,
            )
        ),
        lambda stub: stub.CreateApiKey(
            api_key_pb2.CreateApiKeyRequest(api_key=samples.api_key(), request_id="once", validate_only=True)
        ),
    ],
    ids=["create", "update", "archive", "with parents", "key"],
)
async def test_what_is_validated_only_is_not_stored(applied: Stub, call: Callable[[Stub], Any]) -> None:
    before = await newest(applied)
    response: Message = await call(applied)
    made = getattr(response, response.DESCRIPTOR.fields[0].name)
    assert made.revision == before + 1, "as it would be stored"
    assert getattr(response, "key", "") == ""
    assert await newest(applied) == before
    await call(applied)  # and can be asked again


async def test_validation_refuses_what_the_call_itself_would(applied: Stub) -> None:
    taken = Campaign(campaign_id="next", app_id="demo", name="Spring")
    call = applied.CreateCampaign(campaign_pb2.CreateCampaignRequest(campaign=taken, validate_only=True))
    assert await refusal(call) == ("ALREADY_EXISTS", "NAME_TAKEN")
    used = applied.ArchiveSegment(segment_pb2.ArchiveSegmentRequest(segment_id="a", validate_only=True))
    assert await refusal(used) == ("FAILED_PRECONDITION", "IN_USE")
