"""A gateway before a real tracker and a real ingest, shared by the tests, each of which uses device ids of its own."""

import io
import itertools
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest_asyncio

from deploy.local.embedded import EmbeddedPostgres
from libs.channels import open_channel
from libs.domain.lanes import LANES
from reengage.ingest.v1 import log_pb2, record_pb2
from reengage.ingest.v1.service_pb2_grpc import IngestServiceStub
from reengage.tracker.v1 import app_pb2, network_pb2, tracker_pb2
from tests.conftest import TEMPLATE
from tests.support.backend import Backend, backend, create_tracker
from tests.support.processes import ServiceProcess

ANDROID = "Mozilla/5.0 (Linux; Android 14; Pixel 8) AppleWebKit/537.36"
KEY = "k" * 16
AUTH_KEYS = {"APIKEY123": "SECRET456", "NEXTKEY": "next-secret"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """A response of the gateway."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """Returns the body, parsed."""
        return json.loads(self.body)


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """The suite as far as the gateway needs it."""

    backend: Backend
    gateway: ServiceProcess
    session: aiohttp.ClientSession
    _numbers: "itertools.count[int]" = field(default_factory=itertools.count)

    def new_id(self) -> str:
        """Returns a device id that no other test uses."""
        return f"device-{next(self._numbers)}"

    async def ask(self, method: str, path: str, *, at: ServiceProcess | None = None, **options: Any) -> Response:
        """Sends a request; redirects are not followed."""
        url = (at or self.gateway).url + path
        async with self.session.request(method, url, allow_redirects=False, **options) as response:
            return Response(
                status=response.status,
                headers={key.lower(): value for key, value in response.headers.items()},
                body=await response.read(),
            )

    async def metrics(self, at: ServiceProcess | None = None) -> str:
        """Returns a gateway's metrics, as Prometheus sees them."""
        async with self.session.get(f"{(at or self.gateway).metrics_url}/metrics") as response:
            assert response.status == 200
            return await response.text()

    async def track(self, body: Any, **options: Any) -> Response:
        """Posts a value, or bytes as they are, to /track/json."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await self.ask("POST", "/track/json", data=io.BytesIO(data), **options)

    async def log_of(self, device_id: str) -> list[record_pb2.Record]:
        """Returns the records of a device in ingest's log."""
        return [record for record in await self.log() if device_id in record.device_ids.values()]

    async def log(self) -> list[record_pb2.Record]:
        """Returns all of ingest's log."""
        places = [log_pb2.LanePosition(lane=lane) for lane in range(LANES)]
        records: list[record_pb2.Record] = []
        async with open_channel(self.backend.ingest.target) as channel:
            request = log_pb2.ReadLogRequest(**{"from": places})  # type: ignore[arg-type]
            call = IngestServiceStub(channel).ReadLog(request)
            async for response in call:
                records.extend(record_pb2.Record.FromString(entry.record) for entry in response.entries)
                if response.caught_up:
                    break
            call.cancel()
        return records


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def world(postgres: EmbeddedPostgres, process_logs: Path) -> AsyncIterator[World]:
    """Yields apps `shop` (Android), `limited` (5 records a second, 1 hour old) and `gone` (archived), with trackers.

    `kodemo1` is strict, with the keys `APIKEY123` and `NEXTKEY`; `pages` is open to `https://shop.example` and keeps
    push tokens.
    """
    await postgres.create_database("gateway", template=TEMPLATE)
    dsns = {service: postgres.dsn(service, "gateway") for service in ("tracker", "ingest")}
    async with backend(dsns, process_logs) as behind, aiohttp.ClientSession() as session:
        await _configure(behind)
        gateway = behind.gateway(process_logs, trusted_proxies="127.0.0.1", public_url="https://track.example/")
        await gateway.start()
        yield World(backend=behind, gateway=gateway, session=session)
        assert await gateway.stop() == 0


async def _configure(behind: Backend) -> None:
    android = app_pb2.PLATFORM_ANDROID
    shop = app_pb2.App(app_id="shop", name="Shop", platform=android, url_schemes=["shop"])
    limited = app_pb2.App(app_id="limited", name="Limited", platform=android)
    limited.settings.records_per_second = 5
    limited.settings.max_record_age.FromSeconds(3600)
    gone = app_pb2.App(app_id="gone", name="Gone", platform=android)
    play, settings = "https://play.google.com/store/apps/details?id=com.shop", behind.settings
    await create_tracker(settings, shop, tracker_id="plain", name="Plain", install_url=play)
    await create_tracker(settings, shop, tracker_id="deep", install_url=play, deep_link="shop://p/{sku}")
    await create_tracker(settings, shop, tracker_id="checked", install_url=play, click_validation_key=KEY)
    await create_tracker(settings, shop, tracker_id="old", install_url=play)
    await settings.ArchiveTracker(tracker_pb2.ArchiveTrackerRequest(tracker_id="old"))
    handles = network_pb2.Network(network_id="handles", name="Handles", platform=android, handles_redirects=True)
    await settings.CreateNetwork(network_pb2.CreateNetworkRequest(network=handles))
    nowhere = tracker_pb2.Tracker(tracker_id="nowhere", segment_id="se-shop", network_id="handles", name="Nowhere")
    await settings.CreateTracker(tracker_pb2.CreateTrackerRequest(tracker=nowhere))
    await create_tracker(settings, limited, tracker_id="limited-1", install_url=play)
    await create_tracker(settings, gone, tracker_id="gone-1", install_url=play)
    await settings.ArchiveApp(app_pb2.ArchiveAppRequest(app_id="gone"))
    strict = app_pb2.App(app_id="kodemo1", name="Strict", platform=android, auth_keys=AUTH_KEYS)
    strict.settings.strict_authentication = True
    pages = app_pb2.App(app_id="pages", name="Pages", platform=android)
    pages.settings.allowed_origins.append("https://shop.example")
    pages.settings.keep_push_tokens = True
    for app in (strict, pages):
        await settings.CreateApp(app_pb2.CreateAppRequest(app=app))
