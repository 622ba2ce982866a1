"""The standard methods of every kind: create, get, list, update, archive, and what repeating them does."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from libs.errors import from_rpc_error
from libs.messages import message_class
from reengage.tracker.v1 import app_pb2, network_settings_pb2, snapshot_pb2
from reengage.tracker.v1.network_settings_pb2 import NetworkSettings
from reengage.tracker.v1.status_pb2 import STATUS_ARCHIVED, STATUS_LIVE
from reengage.tracker.v1.tracker_pb2 import Tracker
from tests.tracker import samples
from tests.tracker.samples import Stub, create_parents, create_tracker, failure, lasting, refusal, wrong_fields


@dataclass(frozen=True, slots=True, kw_only=True)
class Calls:
    """The RPCs of one kind. `again` makes another resource of it, with `name` where it has one."""

    kind: str
    sample: Callable[..., Message]
    key: tuple[str, ...]
    another: dict[str, Any]
    change: dict[str, Any]
    listed_by_app: bool = True

    @property
    def field(self) -> str:
        return "".join(f"_{c.lower()}" if c.isupper() else c for c in self.kind).lstrip("_")

    async def create(self, stub: Stub, resource: Message, request_id: str = "") -> Any:
        return await self._call(stub, f"Create{self.kind}", **{self.field: resource, "request_id": request_id})

    async def get(self, stub: Stub, resource: Message) -> Any:
        return await self._call(stub, f"Get{self.kind}", **self.named(resource))

    async def update(self, stub: Stub, resource: Message, paths: Sequence[str]) -> Any:
        mask = FieldMask(paths=paths)
        return await self._call(stub, f"Update{self.kind}", **{self.field: resource, "update_mask": mask})

    async def archive(self, stub: Stub, resource: Message, etag: str = "") -> Any:
        return await self._call(stub, f"Archive{self.kind}", **self.named(resource), etag=etag)

    async def page(self, stub: Stub, **fields: Any) -> tuple[list[Any], str]:
        narrowed: dict[str, Any] = {"app_id": "kodemo1"} if self.listed_by_app else {}
        if self.kind == "Network":
            narrowed = {"hide_unused": True}
        plural, listed = (
            f"{name.removesuffix('y')}{'ies' if name[-1] == 'y' else 's'}" for name in (self.kind, self.field)
        )
        if self.kind == "ApiKey":
            plural, listed = "ApiKeys", "api_keys"
        request = message_class(f"reengage.tracker.v1.List{plural}Request")(**narrowed | fields)
        response = await getattr(stub, f"List{plural}")(request)
        return list(getattr(response, listed)), response.next_page_token

    def named(self, resource: Message) -> dict[str, str]:
        return {name: getattr(resource, name) for name in self.key}

    async def _call(self, stub: Stub, method: str, **fields: Any) -> Any:
        response = await getattr(stub, method)(message_class(f"reengage.tracker.v1.{method}Request")(**fields))
        return getattr(response, self.field)


APPS = Calls(
    kind="App",
    sample=samples.app,
    key=("app_id",),
    another={"app_id": "zzz", "name": "Another"},
    change={"bundle_id": "com.example.demo"},
    listed_by_app=False,
)
NETWORKS = Calls(
    kind="Network",
    sample=samples.network,
    key=("network_id",),
    another={"network_id": "zzz", "name": "Another"},
    change={"supports_impressions": False},
    listed_by_app=False,
)
CAMPAIGNS = Calls(
    kind="Campaign",
    sample=samples.campaign,
    key=("campaign_id",),
    another={"campaign_id": "zzz", "name": "Another"},
    change={"name": "Summer"},
)
SEGMENTS = Calls(
    kind="Segment",
    sample=samples.segment,
    key=("segment_id",),
    another={"segment_id": "zzz", "name": "Another"},
    change={"name": "B"},
)
TRACKERS = Calls(
    kind="Tracker",
    sample=samples.acquisition,
    key=("tracker_id",),
    another={"tracker_id": "zzz", "name": "Another"},
    change={"install_url": "http://apps.example/other"},
)
EVENTS = Calls(
    kind="EventDefinition",
    sample=samples.event,
    key=("app_id", "event_name"),
    another={"event_name": "Zzz"},
    change={"min_time_to_reengagement": samples.seconds(0)},
)
ACCOUNTS = Calls(
    kind="Account",
    sample=samples.account,
    key=("account_id",),
    another={"account_id": "zzz", "name": "Another"},
    change={"name": "Renamed"},
    listed_by_app=False,
)
AGENCIES = Calls(
    kind="Agency",
    sample=samples.agency,
    key=("agency_id",),
    another={"agency_id": "zzz", "name": "Another"},
    change={"name": "Renamed"},
    listed_by_app=False,
)
SAN_ACCOUNTS = Calls(
    kind="SanAccount",
    sample=samples.san_account,
    key=("san_account_id",),
    another={"san_account_id": "zzz", "name": "Another"},
    change={"external_id": "18ce54"},
)
API_KEYS = Calls(
    kind="ApiKey",
    sample=samples.api_key,
    key=("api_key_id",),
    another={"api_key_id": "zzz", "name": "Another"},
    change={"name": "Renamed"},
    listed_by_app=False,
)
UNIQUE_NAMES = [APPS, NETWORKS, CAMPAIGNS, SEGMENTS, TRACKERS, ACCOUNTS, AGENCIES, SAN_ACCOUNTS]
KINDS = [*UNIQUE_NAMES, API_KEYS, EVENTS]

every_kind = pytest.mark.parametrize("calls", KINDS, ids=[calls.kind for calls in KINDS])
unique_kinds = pytest.mark.parametrize("calls", UNIQUE_NAMES, ids=[calls.kind for calls in UNIQUE_NAMES])
named_kinds = pytest.mark.parametrize("calls", KINDS[:-1], ids=[calls.kind for calls in KINDS[:-1]])

OF_APPS = [CAMPAIGNS, SEGMENTS, TRACKERS, SAN_ACCOUNTS, EVENTS]


async def create_parents_of(calls: Calls, stub: Stub) -> None:
    """Creates only what the kind's sample hangs on, so that the kind itself is empty."""
    if calls in (APPS, NETWORKS, ACCOUNTS, AGENCIES, API_KEYS):
        return
    await APPS.create(stub, samples.app())
    await NETWORKS.create(stub, samples.network())
    if calls is SAN_ACCOUNTS:
        await NETWORKS.create(stub, samples.san())
    if calls in (SEGMENTS, TRACKERS):
        await CAMPAIGNS.create(stub, samples.campaign())
    if calls is TRACKERS:
        await SEGMENTS.create(stub, samples.segment())


async def newest(stub: Stub) -> int:
    """Returns the newest revision."""
    parts: list[int] = [part.revision async for part in stub.GetSnapshot(snapshot_pb2.GetSnapshotRequest())]
    return max(parts)


@every_kind
async def test_create_returns_what_get_returns(tracker: Stub, calls: Calls) -> None:
    await create_parents_of(calls, tracker)
    before = await newest(tracker)
    created = await calls.create(tracker, calls.sample())
    assert created.status == STATUS_LIVE
    assert created.revision == before + 1
    assert created.create_time.seconds > 0
    assert await calls.get(tracker, created) == created


@every_kind
async def test_create_again_returns_what_is_there(tracker: Stub, calls: Calls) -> None:
    await create_parents_of(calls, tracker)
    created = await calls.create(tracker, calls.sample())
    assert await calls.create(tracker, calls.sample()) == created
    again = type(created)()
    again.CopyFrom(created)
    if calls is SAN_ACCOUNTS:
        again.credentials["access_token"] = "hush"  # never returned, so it is not in what was created
    assert await calls.create(tracker, again) == created, "output-only fields are ignored"
    assert await newest(tracker) == created.revision


@every_kind
async def test_create_with_other_content_is_refused(tracker: Stub, calls: Calls) -> None:
    await create_parents_of(calls, tracker)
    created = await calls.create(tracker, calls.sample())
    other = calls.create(tracker, calls.sample(**calls.change))
    assert await refusal(other) == ("ALREADY_EXISTS", f"{calls.field.upper()}_EXISTS")
    assert await calls.get(tracker, created) == created


@named_kinds
async def test_an_id_left_out_is_made(tracker: Stub, calls: Calls) -> None:
    await create_parents_of(calls, tracker)
    created = await calls.create(tracker, calls.sample(**{calls.key[0]: ""}))
    assert getattr(created, calls.key[0]).startswith("made-")


@every_kind
async def test_the_same_request_id_makes_one(tracker: Stub, calls: Calls) -> None:
    await create_parents_of(calls, tracker)
    nameless = {} if calls is EVENTS else {calls.key[0]: ""}
    created = await calls.create(tracker, calls.sample(**nameless), request_id="once")
    assert await calls.create(tracker, calls.sample(**nameless), request_id="once") == created
    updated = await calls.update(tracker, calls.sample(**calls.named(created), **calls.change), list(calls.change))
    assert await calls.create(tracker, calls.sample(**nameless), request_id="once") == updated
    assert await newest(tracker) == updated.revision


@pytest.mark.parametrize("request_id", ["x" * 65, "null\x00"], ids=["too long", "not printable"])
async def test_wrong_request_ids(tracker: Stub, request_id: str) -> None:
    refused = NETWORKS.create(tracker, samples.san(), request_id=request_id)
    assert await wrong_fields(refused) == {("request_id", "INVALID_TEXT")}


async def test_a_request_id_is_per_kind_and_bounded(tracker: Stub) -> None:
    await APPS.create(tracker, samples.app(), request_id="one")
    assert (await NETWORKS.create(tracker, samples.network(), request_id="one")).name == "Acme iOS"
    assert (await NETWORKS.create(tracker, samples.san(), request_id="x" * 64)).network_id == "x-ios"


@every_kind
async def test_update_changes_what_the_mask_names(tracker: Stub, calls: Calls) -> None:
    await create_parents_of(calls, tracker)
    created = await calls.create(tracker, calls.sample())
    changed = await calls.update(tracker, calls.sample(**calls.change), list(calls.change))
    assert changed.revision == created.revision + 1
    expected = type(created)()
    expected.CopyFrom(created)
    expected.MergeFrom(type(created)(**calls.change, revision=changed.revision, etag=str(changed.revision)))
    assert changed == expected
    assert await calls.get(tracker, created) == changed


@every_kind
async def test_update_to_the_same_takes_no_revision(tracker: Stub, calls: Calls) -> None:
    await create_parents_of(calls, tracker)
    await calls.create(tracker, calls.sample())
    changed = await calls.update(tracker, calls.sample(**calls.change), list(calls.change))
    assert await calls.update(tracker, calls.sample(**calls.change), list(calls.change)) == changed
    assert await newest(tracker) == changed.revision


@every_kind
async def test_a_lost_race_changes_nothing(tracker: Stub, calls: Calls) -> None:
    await create_parents_of(calls, tracker)
    created = await calls.create(tracker, calls.sample())
    assert created.etag
    changed = await calls.update(tracker, calls.sample(**calls.change, etag=created.etag), list(calls.change))
    assert changed.etag != created.etag
    again = calls.sample(**calls.change, etag=created.etag)
    assert await calls.update(tracker, again, list(calls.change)) == changed, "nothing is left to change"
    late = calls.update(tracker, calls.sample(etag=created.etag), list(calls.change))
    assert await refusal(late) == ("ABORTED", "ETAG_MISMATCH")
    assert await refusal(calls.archive(tracker, created, etag=created.etag)) == ("ABORTED", "ETAG_MISMATCH")
    assert await calls.get(tracker, created) == changed
    assert (await calls.archive(tracker, created, etag=changed.etag)).status == STATUS_ARCHIVED


async def test_of_updates_at_once_with_one_etag_one_wins(tracker: Stub) -> None:
    created = await APPS.create(tracker, samples.app())
    updates = (APPS.update(tracker, samples.app(name=f"Name {n}", etag=created.etag), ["name"]) for n in range(8))
    outcomes = await asyncio.gather(*updates, return_exceptions=True)
    refused = [one for one in outcomes if isinstance(one, grpc.aio.AioRpcError)]
    assert [from_rpc_error(one).reason for one in refused] == ["ETAG_MISMATCH"] * 7
    [winner] = [one for one in outcomes if not isinstance(one, BaseException)]
    assert await APPS.get(tracker, created) == winner


@every_kind
async def test_archive_twice_changes_once(tracker: Stub, calls: Calls) -> None:
    await create_parents_of(calls, tracker)
    created = await calls.create(tracker, calls.sample())
    archived = await calls.archive(tracker, created)
    assert (archived.status, archived.revision) == (STATUS_ARCHIVED, created.revision + 1)
    assert await calls.archive(tracker, created) == archived
    assert await calls.get(tracker, created) == archived
    assert await newest(tracker) == archived.revision


@every_kind
async def test_the_archived_stays_as_it_is(tracker: Stub, calls: Calls) -> None:
    await create_parents_of(calls, tracker)
    created = await calls.create(tracker, calls.sample())
    await calls.archive(tracker, created)
    update = calls.update(tracker, calls.sample(**calls.change), list(calls.change))
    assert await refusal(update) == ("FAILED_PRECONDITION", "ARCHIVED")


@every_kind
async def test_what_is_not_there_is_not_found(tracker: Stub, calls: Calls) -> None:
    await create_parents_of(calls, tracker)
    expected = ("NOT_FOUND", f"{calls.field.upper()}_NOT_FOUND")
    assert await refusal(calls.get(tracker, calls.sample())) == expected
    assert await refusal(calls.archive(tracker, calls.sample())) == expected
    assert await refusal(calls.update(tracker, calls.sample(**calls.change), list(calls.change))) == expected


@every_kind
async def test_a_name_that_cannot_be_is_a_wrong_field(tracker: Stub, calls: Calls) -> None:
    wrong = calls.sample(**dict.fromkeys(calls.key, "null\x00"))
    named = {(name, "INVALID_TEXT" if name == "event_name" else "INVALID_ID") for name in calls.key}
    assert await wrong_fields(calls.get(tracker, wrong)) == named
    assert await wrong_fields(calls.archive(tracker, wrong)) == named
    prefixed = {(f"{calls.field}.{name}", reason) for name, reason in named}
    assert await wrong_fields(calls.update(tracker, wrong, list(calls.change))) == prefixed
    assert prefixed <= await wrong_fields(calls.create(tracker, wrong))
    empty = {(name, "REQUIRED") for name in calls.key}
    assert await wrong_fields(calls.get(tracker, type(wrong)())) == empty


@every_kind
async def test_list_pages_in_order_without_the_archived(tracker: Stub, calls: Calls) -> None:
    await create_parents_of(calls, tracker)
    names = ["B", "Z", "a", "c", "é" if calls is EVENTS else "z"]
    field = calls.key[-1]
    extra: dict[str, Any] = {}
    for name in reversed(names):
        if calls is not EVENTS:
            extra = {"name": f"name of {name}"}
        await calls.create(tracker, calls.sample(**{field: name}, **extra))
    await calls.archive(tracker, calls.sample(**{field: "a"}))
    first, token = await calls.page(tracker, page_size=2)
    second, end = await calls.page(tracker, page_size=2, page_token=token)
    assert [[getattr(resource, field) for resource in page] for page in (first, second)] == [
        names[:2],
        names[3:],
    ]
    assert end == ""
    everything, end = await calls.page(tracker, show_archived=True)
    assert [getattr(resource, field) for resource in everything] == names
    assert end == ""


@every_kind
async def test_list_refuses_wrong_pages(tracker: Stub, calls: Calls) -> None:
    wrong = calls.page(tracker, page_size=1001, page_token="%")
    assert await wrong_fields(wrong) == {("page_size", "OUT_OF_RANGE"), ("page_token", "INVALID_TOKEN")}


@pytest.mark.parametrize("calls", OF_APPS, ids=[calls.kind for calls in OF_APPS])
async def test_list_is_of_one_app_that_exists(tracker: Stub, calls: Calls) -> None:
    await create_parents_of(calls, tracker)
    await calls.create(tracker, calls.sample())
    await APPS.create(tracker, samples.android_app())
    assert await calls.page(tracker, app_id="kodemo2") == ([], "")
    assert await refusal(calls.page(tracker, app_id="nobody")) == ("NOT_FOUND", "APP_NOT_FOUND")
    assert await wrong_fields(calls.page(tracker, app_id="")) == {("app_id", "REQUIRED")}


# Names


@unique_kinds
async def test_a_live_name_is_taken_until_it_is_archived(tracker: Stub, calls: Calls) -> None:
    await create_parents_of(calls, tracker)
    first = await calls.create(tracker, calls.sample(name="The name"))
    twin = calls.sample(**calls.another | {"name": "The name"})
    assert await refusal(calls.create(tracker, twin)) == ("ALREADY_EXISTS", "NAME_TAKEN")
    other = await calls.create(tracker, calls.sample(**calls.another))
    assert await refusal(calls.update(tracker, twin, ["name"])) == ("ALREADY_EXISTS", "NAME_TAKEN")
    assert await newest(tracker) == other.revision, "what was refused took no revision"
    await calls.archive(tracker, first)
    assert (await calls.update(tracker, twin, ["name"])).name == "The name"


async def test_names_are_unique_within_their_parent_only(tracker: Stub) -> None:
    await create_parents(tracker)
    await APPS.create(tracker, samples.android_app())
    same = samples.campaign(campaign_id="other", app_id="kodemo2")
    assert (await CAMPAIGNS.create(tracker, same)).name == "Spring"
    same_segment = samples.segment(segment_id="other-a", campaign_id="other")
    assert (await SEGMENTS.create(tracker, same_segment)).app_id == "kodemo2"


async def test_a_tracker_without_a_name_is_called_by_its_id(tracker: Stub) -> None:
    await create_parents(tracker)
    assert (await create_tracker(tracker, samples.acquisition())).name == "acq1"
    named = await TRACKERS.update(tracker, Tracker(tracker_id="acq1", name="Good"), ["name"])
    assert named.name == "Good"
    assert (await TRACKERS.update(tracker, Tracker(tracker_id="acq1"), ["name"])).name == "acq1"


# Parents


async def test_children_carry_the_ids_of_what_they_hang_on(tracker: Stub) -> None:
    await create_parents(tracker)
    made = await create_tracker(tracker, samples.acquisition(campaign_id="ignored", app_id="ignored"))
    assert (made.segment_id, made.campaign_id, made.app_id) == ("spring-a", "spring", "kodemo1")


@pytest.mark.parametrize(
    ("calls", "change", "reason"),
    [
        (CAMPAIGNS, {"app_id": "nobody"}, "APP_NOT_FOUND"),
        (SEGMENTS, {"campaign_id": "nobody"}, "CAMPAIGN_NOT_FOUND"),
        (TRACKERS, {"segment_id": "nobody"}, "SEGMENT_NOT_FOUND"),
        (TRACKERS, {"network_id": "nobody"}, "NETWORK_NOT_FOUND"),
        (EVENTS, {"app_id": "nobody"}, "APP_NOT_FOUND"),
    ],
    ids=["campaign", "segment", "tracker by segment", "tracker by network", "event definition"],
)
async def test_parents_must_exist(tracker: Stub, calls: Calls, change: dict[str, str], reason: str) -> None:
    await create_parents(tracker)
    orphan = calls.sample(**calls.another | change)
    assert await refusal(calls.create(tracker, orphan)) == ("NOT_FOUND", reason)


@pytest.mark.parametrize(
    ("parent", "child"),
    [
        (APPS, CAMPAIGNS),
        (APPS, SEGMENTS),
        (APPS, TRACKERS),
        (APPS, EVENTS),
        (CAMPAIGNS, SEGMENTS),
        (CAMPAIGNS, TRACKERS),
        (SEGMENTS, TRACKERS),
        (NETWORKS, TRACKERS),
    ],
    ids=lambda calls: calls.kind,
)
async def test_nothing_new_hangs_on_the_archived(tracker: Stub, parent: Calls, child: Calls) -> None:
    await create_parents(tracker)
    await parent.archive(tracker, parent.sample())
    made = child.create(tracker, child.sample(**child.another))
    assert await refusal(made) == ("FAILED_PRECONDITION", "PARENT_ARCHIVED")


async def test_what_hangs_on_the_archived_can_still_be_changed_and_archived(tracker: Stub) -> None:
    await create_parents(tracker)
    await create_tracker(tracker, samples.acquisition())
    await APPS.archive(tracker, samples.app())
    changed = await TRACKERS.update(tracker, samples.acquisition(install_url="https://b.example"), ["install_url"])
    assert changed.install_url == "https://b.example"
    assert (await TRACKERS.archive(tracker, changed)).status == STATUS_ARCHIVED


# Use


@pytest.mark.parametrize("calls", [NETWORKS, CAMPAIGNS, SEGMENTS, EVENTS], ids=lambda calls: calls.kind)
async def test_what_live_trackers_use_is_not_archived(tracker: Stub, calls: Calls) -> None:
    await create_parents(tracker)
    used = calls.sample()
    if calls is EVENTS:
        await calls.create(tracker, used)
    ids = [f"re{number:02}" for number in range(12)]
    for tracker_id in ids:
        await create_tracker(tracker, samples.reengagement(tracker_id=tracker_id))
    details = await failure(calls.archive(tracker, used))
    assert (details.code.name, details.reason) == ("FAILED_PRECONDITION", "IN_USE")
    assert ", ".join(ids[:10]) in details.message
    assert ids[10] not in details.message
    for tracker_id in ids:
        await TRACKERS.archive(tracker, Tracker(tracker_id=tracker_id))
    assert (await calls.archive(tracker, used)).status == STATUS_ARCHIVED


async def test_an_event_of_another_app_is_not_in_use(tracker: Stub) -> None:
    await create_parents(tracker)
    await create_tracker(tracker, samples.reengagement())
    await APPS.create(tracker, samples.android_app())
    theirs = samples.event(app_id="kodemo2")
    await EVENTS.create(tracker, theirs)
    assert (await EVENTS.archive(tracker, theirs)).status == STATUS_ARCHIVED


async def test_an_archived_event_definition_is_created_anew(tracker: Stub) -> None:
    await create_parents(tracker)
    first = await EVENTS.create(tracker, samples.event())
    await EVENTS.archive(tracker, first)
    fields = {"min_time_to_reengagement": samples.seconds(60)}
    anew = await EVENTS.create(tracker, samples.event(**fields))
    assert (anew.status, anew.revision) == (STATUS_LIVE, first.revision + 2)
    assert anew.min_time_to_reengagement.seconds == 60


async def test_an_archived_id_is_not_given_again(tracker: Stub) -> None:
    archived = await APPS.archive(tracker, await APPS.create(tracker, samples.app()))
    assert await APPS.create(tracker, samples.app()) == archived, "a repeat, however late"
    again = APPS.create(tracker, samples.app(name="Other"))
    assert await refusal(again) == ("ALREADY_EXISTS", "APP_EXISTS")


# Field masks


async def update_app(tracker: Stub, changes: dict[str, Any], *paths: str) -> Any:
    return await APPS.update(tracker, app_pb2.App(app_id="kodemo1", **changes), paths)


async def test_a_nested_path_changes_one_window(tracker: Stub) -> None:
    layer = samples.windows(click_device=lasting(samples.DAY), click_ip=lasting(samples.HOUR))
    await APPS.create(tracker, samples.app(settings={"windows": layer, "omit_os_minor": True}))
    other = samples.windows(click_device=lasting(2 * samples.DAY), click_ip=lasting(2 * samples.DAY))
    changed = await update_app(tracker, {"settings": {"windows": other}}, "settings.windows.click_device")
    assert changed.settings.windows.click_device == lasting(2 * samples.DAY)
    assert changed.settings.windows.click_ip == lasting(samples.HOUR)
    assert changed.settings.omit_os_minor
    longer = {"settings": {"windows": samples.windows(click_device=lasting(3 * samples.DAY))}}
    changed = await update_app(tracker, longer, "settings.windows.click_device.duration")
    assert changed.settings.windows.click_device == lasting(3 * samples.DAY)


async def test_a_field_named_and_not_set_is_cleared(tracker: Stub) -> None:
    layer = samples.windows(click_device=lasting(samples.DAY), click_ip=lasting(samples.HOUR))
    off = {"allow_reengagement_impressions": False}
    await APPS.create(tracker, samples.app(settings={"windows": layer, **off}, time_zone="Europe/Berlin"))
    changed = await update_app(tracker, {}, "settings.windows.click_device", "time_zone", "url_schemes")
    assert not changed.settings.windows.HasField("click_device")
    assert changed.settings.windows.click_ip == lasting(samples.HOUR)
    assert (changed.time_zone, list(changed.url_schemes)) == ("UTC", [])
    assert changed.settings.HasField("allow_reengagement_impressions")
    changed = await update_app(tracker, {}, "settings.allow_reengagement_impressions")
    assert not changed.settings.HasField("allow_reengagement_impressions")
    changed = await update_app(tracker, {}, "settings")
    assert not changed.HasField("settings")


async def test_clearing_what_is_not_set_changes_nothing(tracker: Stub) -> None:
    created = await APPS.create(tracker, samples.app())
    assert await update_app(tracker, {}, "settings.windows.click_device", "bundle_id") == created


async def test_lists_and_maps_are_replaced_whole(tracker: Stub) -> None:
    await create_parents(tracker)
    await create_tracker(tracker, samples.reengagement(custom_parameters={"a": "1", "b": "2"}))
    given = Tracker(tracker_id="re1", events=["SessionBegin"], custom_parameters={"c": "3"})
    changed = await TRACKERS.update(tracker, given, ["events", "custom_parameters"])
    assert list(changed.events) == ["SessionBegin"]
    assert dict(changed.custom_parameters) == {"c": "3"}


@pytest.mark.parametrize(
    ("paths", "reasons"),
    [
        ([], {"REQUIRED"}),
        (["nothing"], {"UNKNOWN_FIELD"}),
        (["windows.nothing"], {"UNKNOWN_FIELD"}),
        (["name.nothing"], {"UNKNOWN_FIELD"}),
        (["custom_parameters.key"], {"UNKNOWN_FIELD"}),
        (["custom_parameters.value"], {"UNKNOWN_FIELD"}),
        (["*"], {"UNKNOWN_FIELD"}),
        ([""], {"UNKNOWN_FIELD"}),
        (["windows."], {"UNKNOWN_FIELD"}),
        (["tracker_id"], {"IMMUTABLE"}),
        (["segment_id"], {"IMMUTABLE"}),
        (["network_id"], {"IMMUTABLE"}),
        (["type"], {"IMMUTABLE"}),
        (["status"], {"OUTPUT_ONLY"}),
        (["revision"], {"OUTPUT_ONLY"}),
        (["etag"], {"OUTPUT_ONLY"}),
        (["create_time.seconds"], {"OUTPUT_ONLY"}),
        (["campaign_id"], {"OUTPUT_ONLY"}),
        (["app_id"], {"OUTPUT_ONLY"}),
        (["name", "nothing", "type", "status"], {"UNKNOWN_FIELD", "IMMUTABLE", "OUTPUT_ONLY"}),
    ],
    ids=lambda value: "+".join(sorted(value)),
)
async def test_wrong_masks(tracker: Stub, paths: list[str], reasons: set[str]) -> None:
    update = TRACKERS.update(tracker, samples.acquisition(), paths)
    assert await wrong_fields(update) == {("update_mask", reason) for reason in reasons}


@pytest.mark.parametrize(
    ("calls", "path"),
    [
        (APPS, "app_id"),
        (APPS, "platform"),
        (NETWORKS, "network_id"),
        (NETWORKS, "platform"),
        (NETWORKS, "self_attributing"),
        (CAMPAIGNS, "campaign_id"),
        (CAMPAIGNS, "app_id"),
        (SEGMENTS, "segment_id"),
        (SEGMENTS, "campaign_id"),
        (EVENTS, "app_id"),
        (EVENTS, "event_name"),
    ],
    ids=lambda value: str(getattr(value, "kind", value)),
)
async def test_immutable_fields(tracker: Stub, calls: Calls, path: str) -> None:
    assert await wrong_fields(calls.update(tracker, calls.sample(), [path])) == {("update_mask", "IMMUTABLE")}


async def test_an_update_is_checked_as_a_whole(tracker: Stub) -> None:
    await create_parents(tracker)
    await create_tracker(tracker, samples.san_reengagement(post_engagement_window=samples.seconds(7 * samples.DAY)))
    wider = Tracker(tracker_id="xre1", post_view_window=samples.seconds(14 * samples.DAY))
    update = TRACKERS.update(tracker, wider, ["post_view_window"])
    assert await wrong_fields(update) == {("tracker.post_view_window", "OUT_OF_RANGE")}
    both = Tracker(
        tracker_id="xre1",
        post_view_window=samples.seconds(14 * samples.DAY),
        post_engagement_window=samples.seconds(30 * samples.DAY),
    )
    changed = await TRACKERS.update(tracker, both, ["post_view_window", "post_engagement_window"])
    assert changed.post_view_window.seconds == 14 * samples.DAY


# A network's settings for an app


async def settings_of(tracker: Stub, app_id: str = "kodemo1", network_id: str = "acme-ios") -> NetworkSettings:
    request = network_settings_pb2.GetNetworkSettingsRequest(app_id=app_id, network_id=network_id)
    settings: NetworkSettings = (await tracker.GetNetworkSettings(request)).network_settings
    return settings


async def update_settings(tracker: Stub, *paths: str, **fields: Any) -> NetworkSettings:
    given = NetworkSettings(**{"app_id": "kodemo1", "network_id": "acme-ios"} | fields)
    request = network_settings_pb2.UpdateNetworkSettingsRequest(
        network_settings=given, update_mask=FieldMask(paths=paths)
    )
    settings: NetworkSettings = (await tracker.UpdateNetworkSettings(request)).network_settings
    return settings


async def test_network_settings_are_empty_until_changed(tracker: Stub) -> None:
    await create_parents(tracker)
    assert await settings_of(tracker) == NetworkSettings(app_id="kodemo1", network_id="acme-ios", etag="0")
    layer = samples.windows(click_device=lasting(samples.DAY))
    changed = await update_settings(tracker, "windows", windows=layer)
    assert (changed.revision, changed.windows) == (6, layer)
    assert await settings_of(tracker) == changed
    redact = NetworkSettings.GRANULAR_DATA_POLICY_REDACT
    changed = await update_settings(tracker, "granular_data_policy", granular_data_policy=redact)
    assert (changed.revision, changed.windows, changed.granular_data_policy) == (7, layer, redact)


async def test_an_empty_change_makes_no_network_settings(tracker: Stub) -> None:
    await create_parents(tracker)
    assert (await update_settings(tracker, "windows")).revision == 0
    assert await newest(tracker) == 5


async def test_network_settings_need_their_parents(tracker: Stub) -> None:
    await create_parents(tracker)
    assert await refusal(settings_of(tracker, "nobody")) == ("NOT_FOUND", "APP_NOT_FOUND")
    assert await refusal(settings_of(tracker, network_id="nobody")) == ("NOT_FOUND", "NETWORK_NOT_FOUND")
    assert await refusal(update_settings(tracker, "windows", network_id="nobody")) == (
        "NOT_FOUND",
        "NETWORK_NOT_FOUND",
    )
    await NETWORKS.archive(tracker, samples.network())
    layer = samples.windows(click_device=lasting(samples.DAY))
    archived = update_settings(tracker, "windows", windows=layer)
    assert await refusal(archived) == ("FAILED_PRECONDITION", "PARENT_ARCHIVED")
    wrong = update_settings(tracker, "app_id", "revision", app_id="")
    assert await wrong_fields(wrong) == {
        ("network_settings.app_id", "REQUIRED"),
        ("update_mask", "IMMUTABLE"),
        ("update_mask", "OUTPUT_ONLY"),
    }


# The default tracker (E3)


async def test_turning_a_default_on_turns_the_other_off(tracker: Stub) -> None:
    await create_parents(tracker)
    first = await create_tracker(tracker, samples.san_reengagement(default_tracker=True))
    fields: dict[str, Any] = {"tracker_id": "xacq", "default_tracker": True, "type": Tracker.TYPE_ACQUISITION}
    other_type = await create_tracker(tracker, samples.san_reengagement(**fields | {"events": []}))
    fields = {"tracker_id": "xother", "default_tracker": True, "events": ["AddToCart"]}
    other_event = await create_tracker(tracker, samples.san_reengagement(**fields))
    second = await create_tracker(tracker, samples.san_reengagement(tracker_id="xre2", default_tracker=True))
    turned_off = await TRACKERS.get(tracker, first)
    assert not turned_off.default_tracker
    assert turned_off.revision == second.revision
    assert await TRACKERS.get(tracker, other_type) == other_type, "one a type"
    assert await TRACKERS.get(tracker, other_event) == other_event, "and one an event"
    on = await TRACKERS.update(tracker, Tracker(tracker_id="xre1", default_tracker=True), ["default_tracker"])
    turned_off = await TRACKERS.get(tracker, second)
    assert (on.default_tracker, turned_off.default_tracker) == (True, False)
    assert on.revision == turned_off.revision == second.revision + 1


async def test_an_archived_default_stays_out_of_the_way(tracker: Stub) -> None:
    await create_parents(tracker)
    await create_tracker(tracker, samples.san_reengagement(default_tracker=True))
    archived = await TRACKERS.archive(tracker, samples.san_reengagement())
    await create_tracker(tracker, samples.san_reengagement(tracker_id="xre2", default_tracker=True))
    assert await TRACKERS.get(tracker, archived) == archived
