"""Tracker, ingest and gateway as processes: what tests and benchmark of the gateway stand on."""

import asyncio
import os
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import grpc
from cryptography.fernet import Fernet

from libs.channels import open_channel
from reengage.tracker.v1 import app_pb2, campaign_pb2, network_pb2, segment_pb2, service_pb2_grpc, tracker_pb2
from tests.ingest.process import IngestProcess


class ServiceProcess:
    """`python -m services.<name>`, on a port that it keeps from start to start."""

    def __init__(self, name: str, **environment: str) -> None:
        self.target = f"127.0.0.1:{free_port()}"
        self._name = name
        self._environment = {"REENGAGE_LISTEN": self.target, "REENGAGE_LOG_LEVEL": "warning"} | {
            f"REENGAGE_{key.upper()}": value for key, value in environment.items()
        }
        self._process: Process | None = None

    async def start(self) -> None:
        """Returns at once."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", f"services.{self._name}", env=os.environ | self._environment, stdout=DEVNULL
        )

    @property
    def pid(self) -> int:
        """Of the process started last."""
        assert self._process is not None
        return self._process.pid

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Signals it; returns its exit code."""
        assert self._process is not None
        if self._process.returncode is None:
            self._process.send_signal(number)
        return await self._process.wait()


class GatewayProcess(ServiceProcess):
    """The gateway."""

    def __init__(self, *, tracker: str, ingest: str, attribution: str, spool: Path, **environment: str) -> None:
        super().__init__(
            "gateway",
            tracker_target=tracker,
            service_key="service",
            ingest_target=ingest,
            attribution_target=attribution,
            spool_directory=str(spool),
            **environment,
        )
        self.url = f"http://{self.target}"

    async def start(self) -> None:
        """Returns when it is ready."""
        await super().start()
        async with aiohttp.ClientSession() as session, asyncio.timeout(30):
            while not await self._is_ready(session):
                await asyncio.sleep(0.02)

    async def _is_ready(self, session: aiohttp.ClientSession) -> bool:
        try:
            async with session.get(f"{self.url}/readyz") as answer:
                return answer.status == 200
        except aiohttp.ClientConnectionError:
            return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """What stands behind a gateway: tracker, with its settings, and ingest."""

    tracker: ServiceProcess
    ingest: IngestProcess
    settings: service_pb2_grpc.TrackerConfigServiceStub

    def gateway(self, spool: Path, **environment: str) -> GatewayProcess:
        """A gateway before it, not started yet; of the attribution service there is none unless it is given."""
        targets = {"attribution": f"127.0.0.1:{free_port()}", "ingest": self.ingest.target} | environment
        return GatewayProcess(tracker=self.tracker.target, spool=spool, **targets)


@asynccontextmanager
async def backend(dsns: Mapping[str, str]) -> AsyncIterator[Backend]:
    """Starts both on the databases of these DSNs, by service."""
    tracker = ServiceProcess(
        "tracker",
        dsn=dsns["tracker"],
        metrics_port=str(free_port()),
        admin_key="admin",
        service_key="service",
        secrets_keys=Fernet.generate_key().decode(),
    )
    ingest = IngestProcess(dsn=dsns["ingest"], tracker_target=tracker.target)
    async with AsyncExitStack() as stack:
        await tracker.start()
        stack.push_async_callback(tracker.stop)
        await ingest.start()
        stack.push_async_callback(ingest.stop)
        channel = await stack.enter_async_context(open_channel(tracker.target, key="admin"))
        stub = service_pb2_grpc.TrackerConfigServiceStub(channel)
        await stub.ListApps(app_pb2.ListAppsRequest(), wait_for_ready=True)
        yield Backend(tracker=tracker, ingest=ingest, settings=stub)


async def create_tracker(
    settings: service_pb2_grpc.TrackerConfigServiceStub, app: app_pb2.App, **tracker: object
) -> tracker_pb2.Tracker:
    """A tracker with these fields, and what it belongs to: app, network, campaign and segment, made when missing."""
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


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
