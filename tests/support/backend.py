"""Tracker and ingest as processes, and gateways before them: what tests and benchmark of the gateway stand on."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from libs.channels import open_channel
from reengage.tracker.v1 import app_pb2, campaign_pb2, network_pb2, segment_pb2, service_pb2_grpc, tracker_pb2
from tests.support.ports import HOST, free_port
from tests.support.processes import ServiceProcess, gateway_process, ingest_process, tracker_process


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """The services behind a gateway: tracker, with its settings, and ingest."""

    tracker: ServiceProcess
    ingest: ServiceProcess
    settings: service_pb2_grpc.TrackerConfigServiceStub

    def gateway(self, directory: Path, **settings: str) -> ServiceProcess:
        """Returns a gateway before it, not started yet, with its spool and log in `directory`.

        `settings` are fields of its configuration. Nobody serves attribution unless `attribution_target` is among them.
        """
        targets = {
            "tracker_target": self.tracker.target,
            "ingest_target": self.ingest.target,
            "attribution_target": f"{HOST}:{free_port()}",
        }
        return gateway_process(directory, **(targets | settings))


@asynccontextmanager
async def backend(dsns: Mapping[str, str], directory: Path) -> AsyncIterator[Backend]:
    """Yields both, started on the databases of these DSNs, by service; their logs go to `directory`."""
    tracker = tracker_process(directory / "tracker.log", dsn=dsns["tracker"])
    ingest = ingest_process(directory / "ingest.log", dsn=dsns["ingest"], tracker_target=tracker.target)
    async with AsyncExitStack() as stack:
        await tracker.start()
        stack.push_async_callback(tracker.stop)
        await ingest.start()
        stack.push_async_callback(ingest.stop)
        channel = await stack.enter_async_context(open_channel(tracker.target, key="admin"))
        settings = service_pb2_grpc.TrackerConfigServiceStub(channel)
        yield Backend(tracker=tracker, ingest=ingest, settings=settings)


async def create_tracker(
    settings: service_pb2_grpc.TrackerConfigServiceStub, app: app_pb2.App, **tracker: object
) -> tracker_pb2.Tracker:
    """Returns a tracker with these fields, and makes what it belongs to: app, network, campaign and segment."""
    app_id, platform = app.app_id, app.platform
    name = app_pb2.Platform.Name(platform).removeprefix("PLATFORM_").lower()
    network = network_pb2.Network(network_id=f"net-{name}", name=f"Net {name}", platform=platform)
    campaign = campaign_pb2.Campaign(campaign_id=f"ca-{app_id}", app_id=app_id, name=f"Campaign of {app_id}")
    segment = segment_pb2.Segment(segment_id=f"se-{app_id}", campaign_id=campaign.campaign_id, name="Segment")
    try:
        await settings.CreateApp(app_pb2.CreateAppRequest(app=app))
        await settings.CreateNetwork(network_pb2.CreateNetworkRequest(network=network))
        await settings.CreateCampaign(campaign_pb2.CreateCampaignRequest(campaign=campaign))
        await settings.CreateSegment(segment_pb2.CreateSegmentRequest(segment=segment))
    except grpc.aio.AioRpcError as error:
        raise AssertionError(error.details()) from error
    made = tracker_pb2.Tracker(segment_id=segment.segment_id, network_id=network.network_id, **tracker)  # type: ignore[arg-type]
    return (await settings.CreateTracker(tracker_pb2.CreateTrackerRequest(tracker=made))).tracker
