"""Starts the gateway."""

import gc
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from libs.channels import open_channel
from libs.domain.snapshots import follow_tracker
from libs.server import Service, run
from reengage.attribution.v1.service_pb2_grpc import AttributionServiceStub
from services.gateway.addresses import ClientAddresses
from services.gateway.app import Gateway
from services.gateway.attribution_route import AttributionRoute
from services.gateway.batches import Batches
from services.gateway.ingest_log import EngagementLog, IngestLog
from services.gateway.link_routes import LinkRoutes
from services.gateway.rates import Rates
from services.gateway.record_routes import RecordRoutes
from services.gateway.server import HttpServer
from services.gateway.settings import GatewaySettings
from services.gateway.spool import Spool


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The configuration of the gateway, read from the environment."""

    listen: str = "127.0.0.1:8080"
    """`host:port` to serve HTTP on."""
    log_level: str = "info"
    """The lowest level that is logged: debug, info, warning or error."""
    tracker_target: str = "127.0.0.1:7101"
    """`host:port` of tracker, or `dns:///name:port`."""
    service_key: str = field(default="", repr=False)
    """The API key that tracker knows the other services by."""
    ingest_target: str = "127.0.0.1:7102"
    """`host:port` of ingest, or `dns:///name:port`."""
    attribution_target: str = "127.0.0.1:7103"
    """`host:port` of attribution, or `dns:///name:port`."""
    spool_directory: str = ".data/spool"
    """The directory that keeps clicks and impressions while ingest is away; of this process alone."""
    spool_max_bytes: int = 1024 * 1024 * 1024
    """The most bytes that the spool may hold."""
    click_patience_s: float = 0.1
    """Seconds that a click may wait for ingest before it goes to the spool."""
    sender_patience_s: float = 3.0
    """Seconds that a sender of records, or of `get_attribution`, may wait for a service."""
    trusted_proxies: str = ""
    """Addresses or networks, comma-separated, whose X-Forwarded-For is believed."""
    drain_s: float = 0.0
    """Seconds between the first unready `/readyz` and the last new connection, when stopping."""
    grace_s: float = 20.0
    """Seconds that requests under way may still take, when stopping."""


@asynccontextmanager
async def wire(config: Config) -> AsyncIterator[Service]:
    """Opens what the gateway needs."""
    addresses = ClientAddresses(filter(None, (proxy.strip() for proxy in config.trusted_proxies.split(","))))
    async with (
        open_channel(config.tracker_target, key=config.service_key) as to_tracker,
        open_channel(config.ingest_target, timeout_s=config.sender_patience_s) as to_ingest,
        open_channel(config.attribution_target, timeout_s=config.sender_patience_s) as to_attribution,
        Spool(Path(config.spool_directory), max_bytes=config.spool_max_bytes) as spool,
        AsyncExitStack() as closing,
    ):
        follower = follow_tracker(to_tracker, GatewaySettings, with_secrets=True)
        ingest = IngestLog(to_ingest)
        engagement_log = EngagementLog(ingest, spool, patience_s=config.click_patience_s)
        records, engagements = Batches(ingest.try_to_store), Batches(engagement_log.keep)
        closing.push_async_callback(records.close)
        closing.push_async_callback(engagements.close)

        def settings() -> GatewaySettings:
            return follower.current

        rates = Rates(time.monotonic)
        attribution = AttributionRoute(
            settings=settings, attribution=AttributionServiceStub(to_attribution), rates=rates
        )
        record_routes = RecordRoutes(settings=settings, records=records, rates=rates, attribution=attribution)
        link_routes = LinkRoutes(settings=settings, engagements=engagements, addresses=addresses)
        gateway = Gateway({**record_routes.routes, **link_routes.routes, **attribution.routes}, settings=settings)
        # Requests leave no cycles behind; looking for some all the time costs a tenth of the throughput.
        gc.set_threshold(100_000, 50, 100)
        yield Service(
            server=HttpServer(gateway, config.listen, drain_s=config.drain_s, grace_s=config.grace_s),
            loops={"settings": follower.run, "resending": engagement_log.resend},
        )


if __name__ == "__main__":
    run("gateway", Config, wire)
