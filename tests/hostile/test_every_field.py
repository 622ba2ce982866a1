"""Every field of every RPC with what nobody means: refused with a reason or served, never a fault of the service."""

from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from libs.channels import open_channel
from reengage.attribution.v1 import reattribution_pb2, what_if_pb2
from reengage.attribution.v1 import service_pb2 as attribution_service
from reengage.ingest.v1 import service_pb2 as ingest_service
from reengage.postback.v1 import claim_pb2, configuration_pb2, conversion_pb2, delivery_pb2
from reengage.postback.v1 import service_pb2 as postback_service
from reengage.tracker.v1 import (
    account_pb2,
    agency_pb2,
    api_key_pb2,
    app_pb2,
    campaign_pb2,
    event_definition_pb2,
    network_pb2,
    network_settings_pb2,
    san_account_pb2,
    segment_pb2,
    service_pb2_grpc,
    settings_file_pb2,
    snapshot_pb2,
    tracker_edit_pb2,
    tracker_pb2,
)
from reengage.tracker.v1 import service_pb2 as tracker_service
from tests.attribution.conftest import (  # noqa: F401  # fixtures
    APP,
    StartWorld,
    event,
    following_config,
    hand_over_s,
    start_world,
    what_if_config,
)
from tests.conftest import Database
from tests.postback.conftest import configuration, purchase, running, serving, until_ended
from tests.support.eventually import eventually
from tests.support.hostile_fields import Field, Filler, faults
from tests.tracker import samples
from tests.tracker.conftest import ADMIN_KEY, POSTBACK_KEY
from tests.tracker.conftest import serving as serving_tracker

NOW_S = 1_767_270_896


def known(**names: Any) -> Filler:
    """Returns a filler that knows what there is by the names of fields, and times and lengths."""

    def fill(field: Field) -> Any:
        match field.containing_type.full_name, field.name:
            case "google.protobuf.Timestamp", "seconds":
                return NOW_S
            case "google.protobuf.Duration", "seconds":
                return 86_400
            case _, name:
                return names.get(name)

    return fill


def of_tracker() -> dict[str, Message]:
    """Returns requests for what there is, and for what may be made besides."""
    app, tracker = samples.app(app_id="app2", name="Second"), samples.acquisition(tracker_id="acq2", name="Second")
    wanted = settings_file_pb2.WantedSettings(
        app_id="kodemo1",
        resources=[snapshot_pb2.Resource(app=samples.app(account_id="owner")), snapshot_pb2.Resource(tracker=tracker)],
    )
    ids = network_settings_pb2.NetworkSettings(app_id="kodemo1", network_id="acme-ios")
    return {
        "CreateApp": app_pb2.CreateAppRequest(app=app, validate_only=True),
        "CreateNetwork": network_pb2.CreateNetworkRequest(network=samples.network(network_id="n2", name="Second")),
        "CreateSanAccount": san_account_pb2.CreateSanAccountRequest(
            san_account=samples.san_account(san_account_id="x2", name="Second")
        ),
        "CreateTracker": tracker_pb2.CreateTrackerRequest(tracker=tracker, validate_only=True),
        "CreateApiKey": api_key_pb2.CreateApiKeyRequest(api_key=samples.api_key()),
        "UpdateAccount": account_pb2.UpdateAccountRequest(account=account_pb2.Account(account_id="owner")),
        "UpdateApp": app_pb2.UpdateAppRequest(app=app_pb2.App(app_id="kodemo1"), validate_only=True),
        "UpdateNetwork": network_pb2.UpdateNetworkRequest(network=network_pb2.Network(network_id="acme-ios")),
        "UpdateNetworkSettings": network_settings_pb2.UpdateNetworkSettingsRequest(network_settings=ids),
        "UpdateAgency": agency_pb2.UpdateAgencyRequest(agency=agency_pb2.Agency(agency_id="runners")),
        "UpdateSanAccount": san_account_pb2.UpdateSanAccountRequest(
            san_account=san_account_pb2.SanAccount(san_account_id="x1")
        ),
        "UpdateCampaign": campaign_pb2.UpdateCampaignRequest(campaign=campaign_pb2.Campaign(campaign_id="spring")),
        "UpdateSegment": segment_pb2.UpdateSegmentRequest(segment=segment_pb2.Segment(segment_id="spring-a")),
        "UpdateTracker": tracker_pb2.UpdateTrackerRequest(tracker=tracker_pb2.Tracker(tracker_id="acq1")),
        "UpdateEventDefinition": event_definition_pb2.UpdateEventDefinitionRequest(
            event_definition=samples.event(), validate_only=True
        ),
        "BulkEditTrackers": tracker_edit_pb2.BulkEditTrackersRequest(
            app_id="kodemo1", tracker_ids=["acq1"], tracker=tracker_pb2.Tracker(), validate_only=True
        ),
        "PlanSettings": settings_file_pb2.PlanSettingsRequest(wanted=wanted),
        "ApplySettings": settings_file_pb2.ApplySettingsRequest(wanted=wanted, etag="x"),
    }


def of_postback(configuration: configuration_pb2.Configuration) -> dict[str, Message]:
    conversion = purchase("before")
    return {
        "CreateConfiguration": configuration_pb2.CreateConfigurationRequest(configuration=configuration),
        "UpdateConfiguration": configuration_pb2.UpdateConfigurationRequest(configuration=configuration),
        "EnqueueConversions": conversion_pb2.EnqueueConversionsRequest(conversions=[conversion]),
        "RequestClaims": claim_pb2.RequestClaimsRequest(conversions=[conversion], wait=Duration()),
        "Preview": configuration_pb2.PreviewRequest(configuration_id="k", conversion=conversion),
        "Redeliver": delivery_pb2.RedeliverRequest(app_id="app", request_id="r"),
    }


def of_attribution() -> dict[str, Message]:
    start, end = Timestamp(seconds=NOW_S), Timestamp(seconds=NOW_S + 1)
    change = snapshot_pb2.Resource(tracker=tracker_pb2.Tracker(tracker_id="re", app_id=APP, campaign_id="c1"))
    return {
        "WhatIf": what_if_pb2.WhatIfRequest(app_id=APP, start_time=start, end_time=end, overrides=[change]),
        "Reattribute": reattribution_pb2.ReattributeRequest(
            app_id=APP, start_time=start, end_time=end, reattribution_id="r"
        ),
    }


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_tracker(database: Database) -> None:
    fill = known(
        account_id="owner", app_id="kodemo1", network_id="acme-ios", agency_id="runners", campaign_id="spring",
        segment_id="spring-a", tracker_id="acq1", san_account_id="x1", event_name="Purchase", name="New",
        paths="name", url_schemes="demo", resource_id="acq1", page_size=10, etag="", request_id="",
    )  # fmt: skip
    async with serving_tracker(database) as served:
        async with open_channel(served.target, key=ADMIN_KEY) as channel:
            admin = service_pb2_grpc.TrackerConfigServiceStub(channel)
            await admin.CreateAccount(account_pb2.CreateAccountRequest(account=samples.account()))
            await admin.CreateApp(app_pb2.CreateAppRequest(app=samples.app(account_id="owner")))
            await admin.CreateAgency(agency_pb2.CreateAgencyRequest(agency=samples.agency()))
            await samples.create_parents(admin, with_app=False)
            await samples.create_tracker(admin, samples.acquisition(agency_id="runners"))
            made = san_account_pb2.CreateSanAccountRequest(san_account=samples.san_account())
            await admin.CreateSanAccount(made)
            definition = event_definition_pb2.CreateEventDefinitionRequest(event_definition=samples.event())
            await admin.CreateEventDefinition(definition)
            service = tracker_service.DESCRIPTOR.services_by_name["TrackerConfigService"]
            found = await faults(service, admin, fill, right=of_tracker(), left_out=("GetSanAccountCredentials",))
        async with open_channel(served.target, key=POSTBACK_KEY) as channel:
            stub = service_pb2_grpc.TrackerConfigServiceStub(channel)
            others = [method.name for method in service.methods if method.name != "GetSanAccountCredentials"]
            found += await faults(service, stub, fill, left_out=tuple(others))
        async with open_channel(served.target, key=ADMIN_KEY) as channel:
            after = service_pb2_grpc.TrackerConfigServiceStub(channel)
            assert (await after.GetApp(app_pb2.GetAppRequest(app_id="kodemo1"))).app.app_id == "kodemo1"
    assert found == [], "\n".join(found)


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_postback(database: Database, tmp_path: Path) -> None:
    async with serving() as endpoint, running(database, tmp_path / "s", allowed=endpoint.host) as service:
        template = {"url": endpoint.url("/?x={x}&t={install_time}")}
        await service.configure(configuration_id="k", template=template)
        await service.enqueue(purchase("before"))
        (delivery,) = await until_ended(service)
        fill = known(
            app_id="app", configuration_id="k", network_id="network", delivery_id=delivery.delivery_id,
            event_name="Purchase", trigger="Purchase", conversion_id="before", adapter="template", version=1,
            paths="clicks_only", page_size=10,
        )  # fmt: skip
        found: list[str] = []
        for name, stub in (("PostbackConfigService", service.configs), ("PostbackService", service.deliveries)):
            right = of_postback(configuration(configuration_id="k", template=template))
            found += await faults(postback_service.DESCRIPTOR.services_by_name[name], stub, fill, right=right)
        assert found == [], "\n".join(found)
        await service.configure(
            configuration_id="after", app_id="other", template={"url": endpoint.url("/after")}, retry_attempts=0
        )
        await service.enqueue(purchase("after", app_id="other"))

        async def delivered() -> bool:
            shown = await service.list(app_id="other", configuration_id="after")
            return [one.state for one in shown] == [delivery_pb2.Delivery.STATE_DELIVERED]

        await eventually(delivered)


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_ingest_and_attribution(database: Database, start_world: StartWorld) -> None:  # noqa: F811
    async with start_world(database) as world:
        async with world.worker():
            device = {"adid": "cdda802e-fb9c-47ad-9866-0794d394c912"}
            await world.send(event(0, device, record_id="before"))
            await world.decided("before")
        fill = known(
            app_id=APP, conversion_id="before", record_id="before", device_id=device["adid"], tracker_id="re",
            event_name="Purchase", network_id="acme", ip_address="192.0.2.7", page_size=10, currency_code="EUR",
        )  # fmt: skip
        service = attribution_service.DESCRIPTOR.services_by_name["AttributionService"]
        found = await faults(service, world.attribution, fill, right=of_attribution())
        service = ingest_service.DESCRIPTOR.services_by_name["IngestService"]
        found += await faults(service, world.ingest, fill)
        assert await world.send(event(1, device, record_id="after")) == ["after"]
    assert found == [], "\n".join(found)
