"""Who owns, runs and calls: catalogue, SAN accounts, events and keys; and the trail of what was changed."""

from typing import Any

import asyncpg
import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from libs.messages import message_class
from libs.pages import encode_token
from libs.time import SECOND_US
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
from reengage.tracker.v1.app_pb2 import PLATFORM_ANDROID, PLATFORM_IOS, Platform
from reengage.tracker.v1.change_pb2 import Change
from reengage.tracker.v1.event_definition_pb2 import EventDefinition
from reengage.tracker.v1.network_pb2 import Network
from reengage.tracker.v1.resource_kind_pb2 import (
    RESOURCE_KIND_APP,
    RESOURCE_KIND_CAMPAIGN,
    RESOURCE_KIND_NETWORK,
    RESOURCE_KIND_SEGMENT,
    RESOURCE_KIND_TRACKER,
)
from reengage.tracker.v1.san_account_pb2 import SanAccount
from reengage.tracker.v1.status_pb2 import STATUS_ARCHIVED
from reengage.tracker.v1.tracker_pb2 import Tracker
from services.tracker import catalogue
from tests.conftest import Database
from tests.tracker import samples
from tests.tracker.conftest import ADMIN_KEY, Served, serving
from tests.tracker.samples import DAY, Stub, create_parents, create_tracker, failure, refusal, seconds, wrong_fields
from tests.tracker.test_roles import calling


async def newest(stub: Stub) -> int:
    return max([part.revision async for part in stub.GetSnapshot(snapshot_pb2.GetSnapshotRequest())])


async def stored(stub: Stub, revision: int = 0) -> dict[str, Any]:
    """Every resource of a snapshot, by kind and id."""
    found = {}
    async for part in stub.GetSnapshot(snapshot_pb2.GetSnapshotRequest(revision=revision)):
        for resource in part.resources:
            kind = resource.WhichOneof("resource") or ""
            message = getattr(resource, kind)
            found[f"{kind} {getattr(message, f'{kind}_id', '') or message.event_name}"] = message
    return found


# Networks


def test_the_catalogue_has_what_was_asked_for() -> None:
    networks = [network for (network_id,), network in catalogue.NETWORKS.items() if network_id == network.network_id]
    assert {"x-ios", "x-android", "pinterest-ios", "pinterest-android"} <= {one.network_id for one in networks}
    assert len({one.name for one in networks}) == len(networks)


@pytest.mark.parametrize("platform", [PLATFORM_IOS, PLATFORM_ANDROID], ids=["iOS", "Android"])
def test_the_catalogue_has_link_based_networks(platform: Platform.ValueType) -> None:
    networks = [one for one in catalogue.NETWORKS.values() if one.platform == platform and not one.self_attributing]
    assert len(networks) >= 20
    assert all(one.postback_needs for one in networks)


async def test_a_built_in_network_is_there_and_kept_from_its_first_use(tracker: Stub) -> None:
    await tracker.CreateApp(app_pb2.CreateAppRequest(app=samples.app()))
    asked = network_pb2.GetNetworkRequest(network_id="moloco-ios")
    network = (await tracker.GetNetwork(asked)).network
    assert (network.built_in, network.revision, network.name) == (True, 0, "Moloco iOS")
    await tracker.CreateCampaign(campaign_pb2.CreateCampaignRequest(campaign=samples.campaign()))
    await tracker.CreateSegment(segment_pb2.CreateSegmentRequest(segment=samples.segment()))
    assert "network moloco-ios" not in await stored(tracker)
    made = await create_tracker(tracker, samples.acquisition(network_id="moloco-ios"))
    kept = (await tracker.GetNetwork(asked)).network
    assert kept.revision == made.revision
    assert (await stored(tracker))["network moloco-ios"] == kept


async def test_networks_are_listed_with_those_of_the_catalogue(tracker: Stub) -> None:
    await tracker.CreateNetwork(network_pb2.CreateNetworkRequest(network=samples.network(network_id="moloco-web")))
    ids, token = [], ""
    while True:
        request = network_pb2.ListNetworksRequest(page_size=7, page_token=token)
        page = await tracker.ListNetworks(request)
        ids += [network.network_id for network in page.networks]
        token = page.next_page_token
        if not token:
            break
    assert ids == sorted([*(key[0] for key in catalogue.NETWORKS), "moloco-web"])


async def test_creating_a_built_in_network_needs_its_id_only(tracker: Stub) -> None:
    wanted = Network(network_id="pinterest-ios", supports_impressions=False)
    made = (await tracker.CreateNetwork(network_pb2.CreateNetworkRequest(network=wanted))).network
    assert (made.name, made.handles_redirects, made.platform) == ("Pinterest iOS", True, PLATFORM_IOS)
    assert not made.supports_impressions, "what is given goes before the catalogue's"


async def test_pinterest_needs_no_destination(tracker: Stub) -> None:
    """S4: the destination URL is not required, Pinterest handles the redirect."""
    await create_parents(tracker)
    made = await create_tracker(tracker, samples.acquisition(network_id="pinterest-ios", install_url=""))
    assert made.type == Tracker.TYPE_ACQUISITION, "the default"


async def test_an_accounts_own_network_serves_its_apps_only(tracker: Stub) -> None:
    await tracker.CreateAccount(account_pb2.CreateAccountRequest(account=samples.account()))
    await create_parents(tracker)
    theirs = samples.network(network_id="own", name="Own", account_id="owner")
    await tracker.CreateNetwork(network_pb2.CreateNetworkRequest(network=theirs))
    agency = samples.agency(account_id="owner")
    await tracker.CreateAgency(agency_pb2.CreateAgencyRequest(agency=agency))
    made = create_tracker(tracker, samples.acquisition(network_id="own", agency_id="runners"))
    assert await wrong_fields(made) == {("tracker.network_id", "OTHER_ACCOUNT"), ("tracker.agency_id", "OTHER_ACCOUNT")}


async def test_windows_are_those_the_network_allows(tracker: Stub) -> None:
    await create_parents(tracker)
    strict = samples.san(
        network_id="strict", name="Strict", post_engagement_windows=[seconds(7 * DAY), seconds(28 * DAY)],
        post_view_windows=[seconds(0), seconds(DAY)],
    )  # fmt: skip
    await tracker.CreateNetwork(network_pb2.CreateNetworkRequest(network=strict))
    for engagement, view in ((7, 0), (28, 1)):
        wanted = samples.san_reengagement(
            tracker_id=f"ok{engagement}", network_id="strict",
            post_engagement_window=seconds(engagement * DAY), post_view_window=seconds(view * DAY),
        )  # fmt: skip
        await create_tracker(tracker, wanted)
    wrong = samples.san_reengagement(
        network_id="strict", post_engagement_window=seconds(14 * DAY), post_view_window=seconds(7 * DAY)
    )
    details = await failure(create_tracker(tracker, wrong))
    assert {(one.field, one.description) for one in details.violations} == {
        ("tracker.post_engagement_window", "must be 7 or 28 days"),
        ("tracker.post_view_window", "must be 0 or 1 days"),
    }


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


# Accounts with self-attributing networks


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


# Events


async def test_events_are_registered_on_first_sight(tracker: Stub) -> None:
    await tracker.CreateApp(app_pb2.CreateAppRequest(app=samples.app()))
    await tracker.CreateEventDefinition(
        event_definition_pb2.CreateEventDefinitionRequest(event_definition=samples.event())
    )
    seen = event_definition_pb2.RegisterEventsRequest(
        app_id="kodemo1", event_names=["Purchase", "Login", "Login", "Level 2"]
    )
    assert (await tracker.RegisterEvents(seen)).created_count == 2
    before = await newest(tracker)
    assert (await tracker.RegisterEvents(seen)).created_count == 0
    assert await newest(tracker) == before
    listed = await tracker.ListEventDefinitions(event_definition_pb2.ListEventDefinitionsRequest(app_id="kodemo1"))
    assert {one.event_name: one.registered for one in listed.event_definitions} == {
        "Level 2": True, "Login": True, "Purchase": False,
    }  # fmt: skip
    wanted = samples.event(event_name="Login", display_name="Signed in", revenue=True)
    made = await tracker.CreateEventDefinition(
        event_definition_pb2.CreateEventDefinitionRequest(event_definition=wanted)
    )
    assert (made.event_definition.registered, made.event_definition.display_name) == (False, "Signed in")
    assert await wrong_fields(tracker.RegisterEvents(event_definition_pb2.RegisterEventsRequest(app_id="kodemo1"))) == {
        ("event_names", "OUT_OF_RANGE")
    }
    many = event_definition_pb2.RegisterEventsRequest(
        app_id="kodemo1", event_names=[f"e{number}" for number in range(1001)]
    )
    assert await wrong_fields(tracker.RegisterEvents(many)) == {("event_names", "OUT_OF_RANGE")}
    del many.event_names[1000:]
    assert (await tracker.RegisterEvents(many)).created_count == 1000


async def test_a_disabled_event_is_no_longer_selected(tracker: Stub) -> None:
    await create_parents(tracker)
    await create_tracker(tracker, samples.reengagement())
    disabled = EventDefinition(app_id="kodemo1", event_name="Login", disabled=True)
    await tracker.CreateEventDefinition(event_definition_pb2.CreateEventDefinitionRequest(event_definition=disabled))
    assert await wrong_fields(create_tracker(tracker, samples.reengagement(tracker_id="re2"))) == {
        ("tracker.events[1]", "DISABLED")
    }
    renamed = tracker_pb2.UpdateTrackerRequest(
        tracker=Tracker(tracker_id="re1", name="Still"), update_mask=FieldMask(paths=["name"])
    )
    assert list((await tracker.UpdateTracker(renamed)).tracker.events) == ["Purchase", "Login"]


# Keys


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


# The audit trail


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
