"""A key of one account tells nothing of the others: what is theirs is answered as what is not there."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from libs.channels import open_channel
from libs.errors import from_rpc_error
from reengage.tracker.v1 import (
    account_pb2,
    agency_pb2,
    api_key_pb2,
    app_pb2,
    campaign_pb2,
    event_definition_pb2,
    network_pb2,
    san_account_pb2,
    segment_pb2,
    service_pb2,
    service_pb2_grpc,
    settings_file_pb2,
    snapshot_pb2,
    tracker_edit_pb2,
    tracker_pb2,
)
from reengage.tracker.v1.api_key_pb2 import ApiKey
from tests.conftest import Database
from tests.support.hostile_fields import Field, filled
from tests.tracker import samples
from tests.tracker.conftest import ADMIN_KEY, Served, serving
from tests.tracker.samples import Stub

SERVICE = service_pb2.DESCRIPTOR.services_by_name["TrackerConfigService"]
ABSENT, THEIRS = "nobodys", "theirs"
NEVER_ASKED = ("GetSanAccountCredentials", "RegisterEvents")
"""Of roles that see all accounts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """A tracker with two accounts that have everything under ids that begin alike, and a caller of the first."""

    served: Served
    mine: Stub


async def make_account(admin: Stub, mark: str) -> str:
    """Makes an account with one of everything; returns an admin's key of it."""
    account = {"account_id": mark}
    app, network, sanet = f"{mark}-app", f"{mark}-net", f"{mark}-san"
    await admin.CreateAccount(account_pb2.CreateAccountRequest(account=samples.account(name=mark, **account)))
    await admin.CreateApp(app_pb2.CreateAppRequest(app=samples.app(app_id=app, name=f"{mark} app", **account)))
    for one in (samples.network(network_id=network, **account), samples.san(network_id=sanet, **account)):
        await admin.CreateNetwork(network_pb2.CreateNetworkRequest(network=one))
    agency = samples.agency(agency_id=f"{mark}-agency", **account)
    await admin.CreateAgency(agency_pb2.CreateAgencyRequest(agency=agency))
    san = samples.san_account(san_account_id=f"{mark}-x", app_id=app, network_id=sanet, verified=True)
    await admin.CreateSanAccount(san_account_pb2.CreateSanAccountRequest(san_account=san))
    definition = samples.event(app_id=app, event_name=f"{mark}-event")
    await admin.CreateEventDefinition(event_definition_pb2.CreateEventDefinitionRequest(event_definition=definition))
    campaign = samples.campaign(campaign_id=f"{mark}-campaign", app_id=app)
    await admin.CreateCampaign(campaign_pb2.CreateCampaignRequest(campaign=campaign))
    segment = samples.segment(segment_id=f"{mark}-segment", campaign_id=campaign.campaign_id)
    await admin.CreateSegment(segment_pb2.CreateSegmentRequest(segment=segment))
    tracker = samples.acquisition(
        tracker_id=f"{mark}-tracker", segment_id=segment.segment_id, network_id=network, agency_id=agency.agency_id
    )
    await samples.create_tracker(admin, tracker)
    key = ApiKey(api_key_id=f"{mark}-key", name=mark, role=ApiKey.ROLE_ADMIN, account_id=mark)
    return (await admin.CreateApiKey(api_key_pb2.CreateApiKeyRequest(api_key=key))).key


@asynccontextmanager
async def worlds(database: Database) -> AsyncIterator[World]:
    async with serving(database) as served:
        async with open_channel(served.target, key=ADMIN_KEY) as channel:
            admin = service_pb2_grpc.TrackerConfigServiceStub(channel)
            key = await make_account(admin, "mine")
            await make_account(admin, THEIRS)
        async with open_channel(served.target, key=key) as channel:
            yield World(served=served, mine=service_pb2_grpc.TrackerConfigServiceStub(channel))


def own(field: Field) -> Any:
    """Returns the id of what the caller has."""
    ids = {
        "account_id": "mine", "app_id": "mine-app", "network_id": "mine-net", "agency_id": "mine-agency",
        "campaign_id": "mine-campaign", "segment_id": "mine-segment", "tracker_id": "mine-tracker",
        "tracker_ids": "mine-tracker", "san_account_id": "mine-x", "event_name": "mine-event",
        "api_key_id": "mine-key", "name": "New", "paths": "name", "etag": "", "request_id": "",
        "validate_only": True, "resource_id": "mine-tracker", "page_token": "", "page_size": 10,
    }  # fmt: skip
    return ids.get(field.name)


def right_requests() -> dict[str, Message]:
    """Returns requests of methods that want more than their ids."""
    tracker = samples.acquisition(tracker_id="new", segment_id="mine-segment", network_id="mine-net")
    app = samples.app(app_id="mine-app", name="mine app", account_id="mine")
    wanted = settings_file_pb2.WantedSettings(
        app_id="mine-app", resources=[snapshot_pb2.Resource(app=app), snapshot_pb2.Resource(tracker=tracker)]
    )
    san = samples.san_account(san_account_id="new", app_id="mine-app", network_id="mine-san", name="New")
    update = tracker_pb2.UpdateTrackerRequest(tracker=tracker_pb2.Tracker(tracker_id="mine-tracker"))
    update.update_mask.paths.append("agency_id")
    return {
        "CreateApp": app_pb2.CreateAppRequest(app=samples.app(app_id="new", account_id="mine"), validate_only=True),
        "CreateNetwork": network_pb2.CreateNetworkRequest(
            network=samples.network(network_id="new", account_id="mine"), validate_only=True
        ),
        "CreateTracker": tracker_pb2.CreateTrackerRequest(tracker=tracker, validate_only=True),
        "CreateSanAccount": san_account_pb2.CreateSanAccountRequest(san_account=san, validate_only=True),
        "CreateApiKey": api_key_pb2.CreateApiKeyRequest(
            api_key=ApiKey(name="New", role=ApiKey.ROLE_VIEWER, account_id="mine"), validate_only=True
        ),
        "UpdateTracker": update,
        "BulkEditTrackers": tracker_edit_pb2.BulkEditTrackersRequest(
            app_id="mine-app",
            tracker_ids=["mine-tracker"],
            update_mask=FieldMask(paths=["agency_id"]),
            validate_only=True,
        ),
        "PlanSettings": settings_file_pb2.PlanSettingsRequest(wanted=wanted),
        "ApplySettings": settings_file_pb2.ApplySettingsRequest(wanted=wanted, etag="x"),
    }


def probes(method: MethodDescriptor) -> Iterator[tuple[str, Message, Message]]:
    """Yields a place in a request, one with an id of theirs there, and one with an id that is nobody's."""
    kind = message_factory.GetMessageClass(method.input_type)
    base = right_requests().get(method.name) or filled(kind(), own)
    for place, field in _ids(base):
        if field.name == "event_name" or _is_its_own_id(method, place, field):
            continue
        requests = []
        for mark in (THEIRS, ABSENT):
            request = kind()
            request.CopyFrom(base)
            value = {"account_id": mark}.get(field.name, f"{mark}-{_SUFFIXES.get(field.name, 'x')}")
            _put(request, place, field, value)
            requests.append(request)
        yield ".".join([*place, field.name]), requests[0], requests[1]


_SUFFIXES = {
    "app_id": "app", "network_id": "net", "agency_id": "agency", "campaign_id": "campaign", "segment_id": "segment",
    "tracker_id": "tracker", "tracker_ids": "tracker", "san_account_id": "x", "san_account_ids": "x",
    "api_key_id": "key", "source_tracker_id": "tracker",
}  # fmt: skip


def _ids(message: Message, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Field]]:
    for field in message.DESCRIPTOR.fields:
        if field.message_type is None and field.name in ("account_id", *_SUFFIXES):
            yield place, field
        elif field.message_type is not None and not field.message_type.GetOptions().map_entry:
            given = getattr(message, field.name)
            if field.is_repeated:
                for number, one in enumerate(given):
                    yield from _ids(one, (*place, field.name, str(number)))
            elif message.HasField(field.name):
                yield from _ids(given, (*place, field.name))


def _is_its_own_id(method: MethodDescriptor, place: tuple[str, ...], field: Field) -> bool:
    """Returns whether it is the id of what is to be made: ids are one for all, so that one is taken is told."""
    if not method.name.startswith(("Create", "Copy", "Plan", "Apply")) or not place:
        return method.name == "CopyTracker" and field.name == "tracker_id"
    return bool(field.containing_type.name.lower() == field.name.removesuffix("_id").replace("_", ""))


def _put(message: Any, place: tuple[str, ...], field: Field, value: str) -> None:
    for name in place:
        message = message[int(name)] if name.isdigit() else getattr(message, name)
    if field.is_repeated:
        getattr(message, field.name)[:] = [value]
    else:
        setattr(message, field.name, value)


async def said(stub: Stub, method: MethodDescriptor, request: Message) -> str:
    """Returns what is answered to a request, ids of theirs as if they were nobody's."""
    call = getattr(stub, method.name)(request, timeout=30)
    try:
        if method.server_streaming:
            answer = str(await call.read())
            call.cancel()
        else:
            answer = str(await call)
    except grpc.aio.AioRpcError as error:
        answer = str(from_rpc_error(error))
    except asyncio.CancelledError:
        answer = "cancelled"
    return re.sub(r"\w+_time \{[^}]*\}", "", answer.replace(THEIRS, ABSENT))


@pytest.mark.slow
async def test_what_is_theirs_is_answered_as_what_is_not_there(database: Database) -> None:
    told, count = [], 0
    async with worlds(database) as world:
        for method in sorted(SERVICE.methods, key=lambda method: method.name.startswith("Archive")):
            if method.name in NEVER_ASKED:
                continue
            for place, theirs, absent in probes(method):
                answers = [await said(world.mine, method, request) for request in (theirs, absent)]
                count += 1
                if answers[0] != answers[1]:
                    told.append(f"{method.name} {place}:\n  {answers[0][:300]}\n  {answers[1][:300]}")
    assert told == [], "\n".join(told)
    assert count > 100


def creations(mark: str) -> dict[str, tuple[str, Message]]:
    """Returns what a caller of account `mine` may make, by kind: with an id, and a name, that begin with the mark."""
    names = {"account_id": "mine", "name": f"{mark} other"}
    return {
        "app": ("CreateApp", app_pb2.CreateAppRequest(app=samples.app(app_id=f"{mark}-app", **names))),
        "network": (
            "CreateNetwork",
            network_pb2.CreateNetworkRequest(network=samples.network(network_id=f"{mark}-net", **names)),
        ),
        "agency": (
            "CreateAgency",
            agency_pb2.CreateAgencyRequest(agency=samples.agency(agency_id=f"{mark}-agency", **names)),
        ),
        "campaign": (
            "CreateCampaign",
            campaign_pb2.CreateCampaignRequest(
                campaign=samples.campaign(campaign_id=f"{mark}-campaign", app_id="mine-app", name="Other")
            ),
        ),
        "tracker": (
            "CreateTracker",
            tracker_pb2.CreateTrackerRequest(
                tracker=samples.acquisition(
                    tracker_id=f"{mark}-tracker", segment_id="mine-segment", network_id="mine-net", name="Other"
                )
            ),
        ),
    }


@pytest.mark.parametrize("kind", creations(THEIRS))
async def test_of_an_id_that_is_taken_nothing_else_is_told(database: Database, kind: str) -> None:
    async with worlds(database) as world:
        answers = []
        for mark in (THEIRS, "mine"):
            method, request = creations(mark)[kind]
            call = getattr(world.mine, method)
            answers.append((await samples.failure(call(request))).message.replace(mark, "ID"))
    assert answers[0] == answers[1]
    assert "_EXISTS" in answers[0]


@pytest.mark.parametrize("kind", ["app", "network", "agency"])
async def test_a_name_of_theirs_is_free(database: Database, kind: str) -> None:
    names = {"app": f"{THEIRS} app", "network": "Acme iOS", "agency": "Runners"}
    async with worlds(database) as world:
        method, request = creations("new")[kind]
        getattr(request, kind).name = names[kind]
        if kind == "app":
            await getattr(world.mine, method)(request)
        else:  # the caller has one of this name, too
            assert await samples.refusal(getattr(world.mine, method)(request)) == ("ALREADY_EXISTS", "NAME_TAKEN")


async def test_a_request_id_is_its_callers(database: Database) -> None:
    async with worlds(database) as world:
        for key, app_id in ((ADMIN_KEY, "first"), (None, "second")):
            request = app_pb2.CreateAppRequest(
                app=samples.app(app_id=app_id, name=app_id, account_id="mine" if key is None else THEIRS),
                request_id="same",
            )
            if key is None:
                made = await world.mine.CreateApp(request)
            else:
                async with open_channel(world.served.target, key=key) as channel:
                    made = await service_pb2_grpc.TrackerConfigServiceStub(channel).CreateApp(request)
            assert made.app.app_id == app_id
