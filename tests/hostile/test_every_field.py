"""Every field of every RPC with what nobody means: refused with a reason or served, never a fault of the service."""

from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor

from libs.channels import open_channel
from reengage.attribution.v1 import service_pb2 as attribution_service
from reengage.ingest.v1 import service_pb2 as ingest_service
from reengage.postback.v1 import delivery_pb2
from reengage.postback.v1 import service_pb2 as postback_service
from reengage.tracker.v1 import (
    account_pb2,
    agency_pb2,
    app_pb2,
    event_definition_pb2,
    san_account_pb2,
    service_pb2_grpc,
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
from tests.postback.conftest import purchase, running, serving, until_ended
from tests.support.eventually import eventually
from tests.support.hostile_fields import Filler, faults
from tests.tracker import samples
from tests.tracker.conftest import ADMIN_KEY, POSTBACK_KEY
from tests.tracker.conftest import serving as serving_tracker

LAST = ("Archive", "Erase", "Forget", "Reattribute")
NOW_S = 1_767_270_896


def known(**names: Any) -> Filler:
    """Returns a filler that knows what there is by the names of fields, and times and lengths."""

    def fill(field: FieldDescriptor) -> Any:
        match field.containing_type.full_name, field.name:
            case "google.protobuf.Timestamp", "seconds":
                return NOW_S
            case "google.protobuf.Duration", "seconds":
                return 86_400
            case _, name:
                return names.get(name)

    return fill


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_tracker(database: Database) -> None:
    fill = known(
        account_id="owner", app_id="kodemo1", network_id="acme-ios", agency_id="runners", campaign_id="spring",
        segment_id="spring-a", tracker_id="acq1", san_account_id="x1", event_name="Purchase", name="New",
        paths="name", url_schemes="demo", resource_id="acq1", page_size=10,
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
            found = await faults(service, admin, fill, last=LAST, left_out=("GetSanAccountCredentials",))
        async with open_channel(served.target, key=POSTBACK_KEY) as channel:
            stub = service_pb2_grpc.TrackerConfigServiceStub(channel)
            others = [method.name for method in service.methods if method.name != "GetSanAccountCredentials"]
            found += await faults(service, stub, fill, last=LAST, left_out=tuple(others))
        async with open_channel(served.target, key=ADMIN_KEY) as channel:
            after = service_pb2_grpc.TrackerConfigServiceStub(channel)
            assert (await after.GetApp(app_pb2.GetAppRequest(app_id="kodemo1"))).app.app_id == "kodemo1"
    assert found == [], "\n".join(found)


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_postback(database: Database, tmp_path: Path) -> None:
    async with serving() as endpoint, running(database, tmp_path / "s", allowed=endpoint.host) as service:
        await service.configure(configuration_id="k", template={"url": endpoint.url("/?x={x}&t={install_time}")})
        await service.enqueue(purchase("before"))
        (delivery,) = await until_ended(service)
        fill = known(
            app_id="app", configuration_id="k", network_id="network", delivery_id=delivery.delivery_id,
            event_name="Purchase", trigger="Purchase", conversion_id="before", adapter="template", version=1,
            paths="clicks_only", page_size=10,
        )  # fmt: skip
        found: list[str] = []
        for name, stub in (("PostbackConfigService", service.configs), ("PostbackService", service.deliveries)):
            found += await faults(postback_service.DESCRIPTOR.services_by_name[name], stub, fill, last=LAST)
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
        found = await faults(service, world.attribution, fill, last=LAST)
        service = ingest_service.DESCRIPTOR.services_by_name["IngestService"]
        found += await faults(service, world.ingest, fill, last=LAST)
        assert await world.send(event(1, device, record_id="after")) == ["after"]
    assert found == [], "\n".join(found)
