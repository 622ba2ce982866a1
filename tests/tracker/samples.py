"""Resources that are right as they are, for tests to change one thing in, and what a failed call said."""

from collections.abc import Awaitable
from typing import Any, TypeAlias

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from libs.errors import ErrorDetails, from_rpc_error
from reengage.tracker.v1 import (
    app_pb2,
    campaign_pb2,
    network_pb2,
    segment_pb2,
    service_pb2_grpc,
    snapshot_pb2,
    tracker_pb2,
)
from reengage.tracker.v1.account_pb2 import Account
from reengage.tracker.v1.agency_pb2 import Agency
from reengage.tracker.v1.api_key_pb2 import ApiKey
from reengage.tracker.v1.app_pb2 import PLATFORM_ANDROID, PLATFORM_IOS, App
from reengage.tracker.v1.campaign_pb2 import Campaign
from reengage.tracker.v1.event_definition_pb2 import EventDefinition
from reengage.tracker.v1.network_pb2 import Network
from reengage.tracker.v1.san_account_pb2 import SanAccount
from reengage.tracker.v1.segment_pb2 import Segment
from reengage.tracker.v1.tracker_pb2 import Tracker
from reengage.tracker.v1.windows_pb2 import Window, Windows

Stub: TypeAlias = "service_pb2_grpc.TrackerConfigServiceStub"
MINUTE, HOUR, DAY = 60, 3600, 86400


def app(**changes: Any) -> App:
    fields: dict[str, Any] = {"app_id": "kodemo1", "name": "Demo", "platform": PLATFORM_IOS, "url_schemes": ["demo"]}
    return App(**fields | changes)


def android_app(**changes: Any) -> App:
    fields: dict[str, Any] = {"app_id": "kodemo2", "name": "Demo Android", "platform": PLATFORM_ANDROID}
    return app(**fields | changes)


def network(**changes: Any) -> Network:
    fields: dict[str, Any] = {"network_id": "acme-ios", "name": "Acme iOS", "platform": PLATFORM_IOS}
    return Network(**fields | changes)


def san(**changes: Any) -> Network:
    fields: dict[str, Any] = {"network_id": "x-ios", "name": "X iOS", "self_attributing": True}
    return network(**fields | changes)


def account(**changes: Any) -> Account:
    fields: dict[str, Any] = {"account_id": "owner", "name": "Owner"}
    return Account(**fields | changes)


def agency(**changes: Any) -> Agency:
    fields: dict[str, Any] = {"agency_id": "runners", "name": "Runners"}
    return Agency(**fields | changes)


def san_account(**changes: Any) -> SanAccount:
    fields: dict[str, Any] = {"san_account_id": "x1", "app_id": "kodemo1", "network_id": "x-ios", "name": "Our X"}
    return SanAccount(**fields | {"credentials": {"access_token": "hush"}} | changes)


def api_key(**changes: Any) -> ApiKey:
    fields: dict[str, Any] = {"api_key_id": "ops", "name": "Operations", "role": ApiKey.ROLE_EDITOR}
    return ApiKey(**fields | changes)


def campaign(**changes: Any) -> Campaign:
    fields: dict[str, Any] = {"campaign_id": "spring", "app_id": "kodemo1", "name": "Spring"}
    return Campaign(**fields | changes)


def segment(**changes: Any) -> Segment:
    fields: dict[str, Any] = {"segment_id": "spring-a", "campaign_id": "spring", "name": "A"}
    return Segment(**fields | changes)


def event(**changes: Any) -> EventDefinition:
    fields: dict[str, Any] = {"app_id": "kodemo1", "event_name": "Purchase"}
    return EventDefinition(**fields | changes)


def acquisition(**changes: Any) -> Tracker:
    """Returns a tracker of a link-based network."""
    fields: dict[str, Any] = {"tracker_id": "acq1", "segment_id": "spring-a", "network_id": "acme-ios"}
    return Tracker(**fields | {"install_url": "https://apps.example/demo"} | changes)


def reengagement(**changes: Any) -> Tracker:
    """Returns a reengagement tracker of a link-based network."""
    return acquisition(
        **{"tracker_id": "re1", "type": Tracker.TYPE_REENGAGEMENT, "events": ["Purchase", "Login"]} | changes
    )


def san_reengagement(**changes: Any) -> Tracker:
    """Returns a reengagement tracker of a self-attributing network."""
    fields: dict[str, Any] = {"tracker_id": "xre1", "segment_id": "spring-a", "network_id": "x-ios"}
    return Tracker(**fields | {"type": Tracker.TYPE_REENGAGEMENT, "events": ["Purchase"]} | changes)


def seconds(number: int, nanos: int = 0) -> Duration:
    return Duration(seconds=number, nanos=nanos)


def lasting(number: int, nanos: int = 0) -> Window:
    return Window(duration=seconds(number, nanos))


def windows(**named: Window) -> Windows:
    return Windows(**named)


async def create_parents(tracker: Stub, *, with_app: bool = True) -> None:
    """Creates what trackers hang on: the iOS app, both networks, a campaign and its segment. Revisions 1 to 5."""
    if with_app:
        await tracker.CreateApp(app_pb2.CreateAppRequest(app=app()))
    await tracker.CreateNetwork(network_pb2.CreateNetworkRequest(network=network()))
    await tracker.CreateNetwork(network_pb2.CreateNetworkRequest(network=san()))
    await tracker.CreateCampaign(campaign_pb2.CreateCampaignRequest(campaign=campaign()))
    await tracker.CreateSegment(segment_pb2.CreateSegmentRequest(segment=segment()))


async def create_tracker(tracker: Stub, wanted: Tracker) -> Tracker:
    made: Tracker = (await tracker.CreateTracker(tracker_pb2.CreateTrackerRequest(tracker=wanted))).tracker
    return made


async def click_key_of(service: Stub, tracker_id: str) -> str:
    """Returns the key of a tracker's click signatures, as the gateway is told it."""
    call = service.WatchSnapshot(snapshot_pb2.WatchSnapshotRequest(with_secrets=True))
    response: Any = await call.read()
    call.cancel()
    keys = [one.tracker.click_validation_key for one in response.resources if one.tracker.tracker_id == tracker_id]
    return str(keys[0])


async def failure(call: Awaitable[Any]) -> ErrorDetails:
    """Returns what a call that must fail said."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


async def refusal(call: Awaitable[Any]) -> tuple[str, str]:
    """Returns status and reason of a call that must fail."""
    details = await failure(call)
    return details.code.name, details.reason


async def wrong_fields(call: Awaitable[Any]) -> set[tuple[str, str]]:
    """Returns path and reason of every wrong field of a call that must fail for these."""
    details = await failure(call)
    assert details.code is grpc.StatusCode.INVALID_ARGUMENT
    return {(violation.field, violation.reason) for violation in details.violations}
