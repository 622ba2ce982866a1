"""Roles and scopes: every RPC with every role, and what a key's scope hides."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from google.protobuf import message_factory
from google.protobuf.field_mask_pb2 import FieldMask

from libs.channels import open_channel
from libs.errors import from_rpc_error
from reengage.tracker.v1 import (
    account_pb2,
    agency_pb2,
    api_key_pb2,
    app_pb2,
    campaign_pb2,
    change_pb2,
    network_pb2,
    san_account_pb2,
    segment_pb2,
    service_pb2,
    service_pb2_grpc,
    tracker_edit_pb2,
    tracker_pb2,
)
from reengage.tracker.v1.api_key_pb2 import ApiKey
from reengage.tracker.v1.tracker_pb2 import Tracker, TrackerFilter
from tests.conftest import Database
from tests.tracker import samples
from tests.tracker.conftest import ADMIN_KEY, POSTBACK_KEY, SERVICE_KEY, Served, serving
from tests.tracker.samples import Stub, create_parents, create_tracker, failure, refusal, wrong_fields

# A admin, E editor, V viewer, N network (publisher), G agency, S service, P postback; in the order of the proto.
MAY = """
CreateAccount            A
GetAccount               A
ListAccounts             A
UpdateAccount            A
ArchiveAccount           A
CreateApp                A E
GetApp                   A E V
ListApps                 A E V
UpdateApp                A E
ArchiveApp               A E
CreateNetwork            A E
GetNetwork               A E V N
ListNetworks             A E V N
UpdateNetwork            A E
ArchiveNetwork           A E
GetNetworkSettings       A E V
UpdateNetworkSettings    A E
CreateAgency             A E
GetAgency                A E V
ListAgencies             A E V
UpdateAgency             A E
ArchiveAgency            A E
CreateSanAccount         A E
GetSanAccount            A E V
ListSanAccounts          A E V
UpdateSanAccount         A E
ArchiveSanAccount        A E
GetSanAccountCredentials P
CreateCampaign           A E
GetCampaign              A E V
ListCampaigns            A E V
UpdateCampaign           A E
ArchiveCampaign          A E
CreateSegment            A E
GetSegment               A E V
ListSegments             A E V
UpdateSegment            A E
ArchiveSegment           A E
CreateTracker            A E
GetTracker               A E V N G
ListTrackers             A E V N G
UpdateTracker            A E G
ArchiveTracker           A E G
CopyTracker              A E
BulkEditTrackers         A E G
ExportTrackers           A E V N G
ImportTrackers           A E
DraftPostbacks           A E V
ResolveSettings          A E V
CreateEventDefinition    A E
GetEventDefinition       A E V
ListEventDefinitions     A E V
UpdateEventDefinition    A E
ArchiveEventDefinition   A E
RegisterEvents           A E S
CreateApiKey             A
GetApiKey                A
ListApiKeys              A
UpdateApiKey             A
ArchiveApiKey            A
RotateApiKey             A
PlanSettings             A E V
ApplySettings            A E
ListChanges              A E V
GetSnapshot              A S
WatchSnapshot            A S
"""
ROLES: dict[str, dict[str, Any]] = {
    "A": {"role": ApiKey.ROLE_ADMIN},
    "E": {"role": ApiKey.ROLE_EDITOR},
    "V": {"role": ApiKey.ROLE_VIEWER},
    "N": {"role": ApiKey.ROLE_NETWORK, "network_id": "acme-ios"},
    "G": {"role": ApiKey.ROLE_AGENCY, "agency_id": "runners"},
    "S": {"role": ApiKey.ROLE_SERVICE},
    "R": {"role": ApiKey.ROLE_SENDER},
}


@pytest.fixture
async def served(database: Database) -> AsyncIterator[Served]:
    """Yields a tracker with an app of the account `owner`, its trackers, and an app of nobody's."""
    async with serving(database) as served, calling(served, ADMIN_KEY) as admin:
        await admin.CreateAccount(account_pb2.CreateAccountRequest(account=samples.account()))
        await admin.CreateApp(app_pb2.CreateAppRequest(app=samples.app(account_id="owner")))
        await admin.CreateAgency(agency_pb2.CreateAgencyRequest(agency=samples.agency()))
        await create_parents(admin, with_app=False)
        await create_tracker(admin, samples.acquisition(agency_id="runners", click_validation_key="0123456789abcdef"))
        await create_tracker(admin, samples.acquisition(tracker_id="acq2", share_with_publisher=False))
        await create_tracker(admin, samples.san_reengagement(agency_id="runners"))
        other = samples.app(app_id="other", name="Other")
        await admin.CreateApp(app_pb2.CreateAppRequest(app=other))
        campaign = samples.campaign(campaign_id="theirs", app_id="other")
        await admin.CreateCampaign(campaign_pb2.CreateCampaignRequest(campaign=campaign))
        segment = samples.segment(segment_id="theirs-a", campaign_id="theirs")
        await admin.CreateSegment(segment_pb2.CreateSegmentRequest(segment=segment))
        await create_tracker(admin, samples.acquisition(tracker_id="t", segment_id="theirs-a", agency_id="runners"))
        yield served


@asynccontextmanager
async def calling(served: Served, key: str) -> AsyncIterator[Stub]:
    async with open_channel(served.target, key=key) as channel:
        yield service_pb2_grpc.TrackerConfigServiceStub(channel)


@asynccontextmanager
async def holding(served: Served, **fields: Any) -> AsyncIterator[Stub]:
    """Yields the caller who holds a new key of this role and scope."""
    async with calling(served, ADMIN_KEY) as admin:
        made = await admin.CreateApiKey(api_key_pb2.CreateApiKeyRequest(api_key=ApiKey(name="Test", **fields)))
    async with calling(served, made.key) as stub:
        yield stub


async def reason_of(stub: Stub, method: str) -> str:
    """Returns what an empty call of the method fails with; empty when it does not."""
    described = service_pb2.DESCRIPTOR.services_by_name["TrackerConfigService"].methods_by_name[method]
    request = message_factory.GetMessageClass(described.input_type)()
    call = getattr(stub, method)(request, timeout=10)
    try:
        if described.server_streaming:
            await call.read()
            call.cancel()
        else:
            await call
    except grpc.aio.AioRpcError as error:
        return from_rpc_error(error).reason
    return ""


async def test_every_rpc_with_every_role(served: Served) -> None:
    methods = [method.name for method in service_pb2.DESCRIPTOR.services_by_name["TrackerConfigService"].methods]
    may = {line.split()[0]: set(line.split()[1:]) for line in MAY.strip().splitlines()}
    assert list(may) == methods, "the table has every RPC, in the order of the proto"
    found: dict[str, set[str]] = {method: set() for method in methods}
    holders = {letter: holding(served, **fields) for letter, fields in ROLES.items()}
    holders["P"] = calling(served, POSTBACK_KEY)
    for letter, holder in holders.items():
        async with holder as stub:
            for method in methods:
                reason = await reason_of(stub, method)
                assert not reason.startswith(("API_KEY_", "UN", "INTERNAL")), (letter, method, reason)
                if reason != "ROLE_NOT_ALLOWED":
                    found[method].add(letter)
    assert found == may


async def test_without_a_key_nothing_is_served(served: Served) -> None:
    methods = [method.name for method in service_pb2.DESCRIPTOR.services_by_name["TrackerConfigService"].methods]
    async with calling(served, "") as nobody, calling(served, "guessed") as guesser:
        assert {await reason_of(nobody, method) for method in methods} == {"API_KEY_REQUIRED"}
        assert {await reason_of(guesser, method) for method in methods} == {"API_KEY_INVALID"}
        assert (await failure(guesser.ListApps(app_pb2.ListAppsRequest()))).code is (grpc.StatusCode.UNAUTHENTICATED)


async def test_the_services_own_key_is_one_of_a_service(served: Served) -> None:
    async with calling(served, SERVICE_KEY) as service:
        assert await reason_of(service, "GetSnapshot") == ""
        assert await reason_of(service, "ListApps") == "ROLE_NOT_ALLOWED"


async def listed(stub: Stub, app_id: str = "kodemo1") -> list[str]:
    response = await stub.ListTrackers(tracker_pb2.ListTrackersRequest(app_id=app_id))
    return [tracker.tracker_id for tracker in response.trackers]


async def tracker_of(stub: Stub, tracker_id: str) -> Tracker:
    found: Tracker = (await stub.GetTracker(tracker_pb2.GetTrackerRequest(tracker_id=tracker_id))).tracker
    return found


async def exported(stub: Stub, app_id: str = "kodemo1") -> str:
    call = stub.ExportTrackers(tracker_edit_pb2.ExportTrackersRequest(app_id=app_id))
    return b"".join([piece.content async for piece in call]).decode()


async def test_a_publisher_reads_what_is_shared_with_it(served: Served) -> None:
    """S0: without Share With Publisher it cannot view the tracker's settings."""
    async with holding(served, **ROLES["N"], app_id="kodemo1") as publisher:
        assert await listed(publisher) == ["acq1"]
        assert (await tracker_of(publisher, "acq1")).click_validation_key == ""
        text = await exported(publisher)
        assert "acq1" in text
        assert "acq2" not in text
        assert "0123456789abcdef" not in text
        for hidden in ("acq2", "xre1", "t", "nothing"):
            assert await refusal(tracker_of(publisher, hidden)) == ("NOT_FOUND", "TRACKER_NOT_FOUND")
        assert await refusal(listed(publisher, "other")) == ("NOT_FOUND", "APP_NOT_FOUND")
        networks = await publisher.ListNetworks(network_pb2.ListNetworksRequest())
        assert [network.network_id for network in networks.networks] == ["acme-ios"]
        other = publisher.GetNetwork(network_pb2.GetNetworkRequest(network_id="x-ios"))
        assert await refusal(other) == ("NOT_FOUND", "NETWORK_NOT_FOUND")


async def rename(stub: Stub, tracker_id: str, name: str = "New") -> Tracker:
    request = tracker_pb2.UpdateTrackerRequest(
        tracker=Tracker(tracker_id=tracker_id, name=name), update_mask=FieldMask(paths=["name"])
    )
    changed: Tracker = (await stub.UpdateTracker(request)).tracker
    return changed


async def test_an_agency_edits_what_it_runs(served: Served) -> None:
    async with holding(served, **ROLES["G"], account_id="owner") as agency:
        assert await listed(agency) == ["acq1", "xre1"]
        changed = await rename(agency, "acq1")
        assert (changed.name, changed.click_validation_key) == ("New", "")
        assert await refusal(rename(agency, "acq2")) == ("NOT_FOUND", "TRACKER_NOT_FOUND")
        assert await refusal(rename(agency, "t")) == ("NOT_FOUND", "TRACKER_NOT_FOUND")
        everything = tracker_edit_pb2.BulkEditTrackersRequest(
            app_id="kodemo1",
            filter=TrackerFilter(),
            tracker=Tracker(max_conversions_per_engagement=3),
            update_mask=FieldMask(paths=["max_conversions_per_engagement"]),
        )
        response = await agency.BulkEditTrackers(everything)
        assert [change.tracker_id for change in response.changes] == ["acq1", "xre1"]
    async with calling(served, ADMIN_KEY) as admin:
        kept = await samples.click_key_of(admin, "acq1")
        assert kept == "0123456789abcdef", "what it does not see it does not lose"
        assert (await tracker_of(admin, "acq2")).max_conversions_per_engagement == 0


@pytest.mark.parametrize("path", ["agency_id", "share_with_publisher", "click_validation_key"])
async def test_an_agency_does_not_change_what_is_the_owners(served: Served, path: str) -> None:
    async with holding(served, **ROLES["G"], account_id="owner") as agency:
        request = tracker_pb2.UpdateTrackerRequest(
            tracker=Tracker(tracker_id="acq1"), update_mask=FieldMask(paths=[path])
        )
        assert await refusal(agency.UpdateTracker(request)) == ("PERMISSION_DENIED", "FIELD_NOT_ALLOWED")


async def test_a_key_of_one_app_sees_that_app(served: Served) -> None:
    async with holding(served, role=ApiKey.ROLE_ADMIN, app_id="kodemo1") as owner:
        apps = await owner.ListApps(app_pb2.ListAppsRequest())
        assert [app.app_id for app in apps.apps] == ["kodemo1"]
        assert await refusal(tracker_of(owner, "t")) == ("NOT_FOUND", "TRACKER_NOT_FOUND")
        assert await refusal(listed(owner, "other")) == ("NOT_FOUND", "APP_NOT_FOUND")
        foreign = samples.campaign(campaign_id="mine", app_id="other", name="Mine")
        made = owner.CreateCampaign(campaign_pb2.CreateCampaignRequest(campaign=foreign))
        assert await refusal(made) == ("NOT_FOUND", "APP_NOT_FOUND")
        under = owner.CreateSegment(
            segment_pb2.CreateSegmentRequest(segment=samples.segment(segment_id="mine", campaign_id="theirs"))
        )
        assert await refusal(under) == ("NOT_FOUND", "CAMPAIGN_NOT_FOUND")
        new_app = owner.CreateApp(app_pb2.CreateAppRequest(app=samples.app(app_id="third", name="Third")))
        assert await refusal(new_app) == ("PERMISSION_DENIED", "SCOPE_NOT_ALLOWED")
        shared = network_pb2.UpdateNetworkRequest(
            network=samples.network(name="Mine now"), update_mask=FieldMask(paths=["name"])
        )
        assert await refusal(owner.UpdateNetwork(shared)) == ("PERMISSION_DENIED", "SCOPE_NOT_ALLOWED")
        assert (await reason_of(owner, "GetSnapshot")) == "SCOPE_NOT_ALLOWED"
        assert (await reason_of(owner, "ListChanges")) == "SCOPE_NOT_ALLOWED"
        changes = await owner.ListChanges(change_pb2.ListChangesRequest(app_id="kodemo1"))
        assert changes.changes
        theirs = owner.ListChanges(change_pb2.ListChangesRequest(app_id="other"))
        assert await refusal(theirs) == ("NOT_FOUND", "APP_NOT_FOUND")
        wider = ApiKey(name="Wider", role=ApiKey.ROLE_ADMIN)
        assert await refusal(owner.CreateApiKey(api_key_pb2.CreateApiKeyRequest(api_key=wider))) == (
            "PERMISSION_DENIED",
            "SCOPE_NOT_ALLOWED",
        )


async def test_a_key_of_an_account_sees_its_apps(served: Served) -> None:
    async with holding(served, role=ApiKey.ROLE_ADMIN, account_id="owner") as owner:
        apps = await owner.ListApps(app_pb2.ListAppsRequest())
        assert [app.app_id for app in apps.apps] == ["kodemo1"]
        assert await listed(owner) == ["acq1", "acq2", "xre1"]
        assert await refusal(tracker_of(owner, "t")) == ("NOT_FOUND", "TRACKER_NOT_FOUND")
        second = samples.app(app_id="second", name="Second", account_id="owner")
        assert (await owner.CreateApp(app_pb2.CreateAppRequest(app=second))).app.account_id == "owner"
        orphan = owner.CreateApp(app_pb2.CreateAppRequest(app=samples.app(app_id="third", name="Third")))
        assert await refusal(orphan) == ("PERMISSION_DENIED", "SCOPE_NOT_ALLOWED")
        own = ApiKey(name="Narrow", role=ApiKey.ROLE_VIEWER, app_id="kodemo1")
        made = await owner.CreateApiKey(api_key_pb2.CreateApiKeyRequest(api_key=own))
        keys = await owner.ListApiKeys(api_key_pb2.ListApiKeysRequest())
        assert made.api_key.api_key_id in {key.api_key_id for key in keys.api_keys}
        assert {key.account_id or key.app_id for key in keys.api_keys} == {"owner", "kodemo1"}


async def test_credentials_are_for_postback_alone(served: Served) -> None:
    """An admin, who may do everything, makes no key that reads what he typed in."""
    async with calling(served, ADMIN_KEY) as admin:
        reader = ApiKey(name="Curious", role=ApiKey.ROLE_POSTBACK)
        made = admin.CreateApiKey(api_key_pb2.CreateApiKeyRequest(api_key=reader))
        assert await wrong_fields(made) == {("api_key.role", "NOT_ALLOWED")}
        await admin.CreateSanAccount(san_account_pb2.CreateSanAccountRequest(san_account=samples.san_account()))
    asked = san_account_pb2.GetSanAccountCredentialsRequest(san_account_id="x1", app_id="kodemo1")
    async with calling(served, POSTBACK_KEY) as postback:
        assert dict((await postback.GetSanAccountCredentials(asked)).credentials) == {"access_token": "hush"}
        asked.app_id = "other"
        assert await refusal(postback.GetSanAccountCredentials(asked)) == ("NOT_FOUND", "SAN_ACCOUNT_NOT_FOUND")
