"""Starts the gateway."""

import gc
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path

from libs.channels import open_channel
from libs.domain.snapshots import follow_tracker
from libs.rates import Rates
from libs.server import Service, run
from reengage.attribution.v1.service_pb2_grpc import AttributionServiceStub
from reengage.ingest.v1.service_pb2_grpc import IngestServiceStub
from services.gateway.addresses import ClientAddresses
from services.gateway.app import Gateway, Operators
from services.gateway.association import AssociationRoutes
from services.gateway.attribution_route import AttributionRoute
from services.gateway.batches import Batches
from services.gateway.connections import Limits
from services.gateway.ingest_log import EngagementLog, IngestLog
from services.gateway.link_routes import LinkRoutes
from services.gateway.record_routes import RecordRoutes
from services.gateway.server import HttpServer
from services.gateway.settings import GatewaySettings
from services.gateway.spool import Spool

_MAX_WAITING_REFUSED = 1_000
"""Engagements over the rates of their apps that wait to be listed; more are only counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The configuration of the gateway, read from the environment."""

    listen: str = "127.0.0.1:8080"
    """`host:port` to serve HTTP on."""
    metrics_port: int = 7205
    """The port of `/metrics`, `/healthz` and `/readyz`, on the same host, apart from the rest; 0 serves none."""
    log_level: str = "info"
    """The lowest level that is logged: debug, info, warning or error."""
    tracker_target: str = "127.0.0.1:7101"
    """`host:port` of tracker, or `dns:///name:port`."""
    service_key: str = field(default="", repr=False)
    """The API key that tracker and ingest know the other services by."""
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
    public_url: str = ""
    """The URL that the world knows the gateway by, as `https://track.shop.example`. SDKs that ask how to start are told
    to send everything there; without it they go on as they were set up."""
    trusted_proxies: str = ""
    """Addresses or networks, comma-separated, whose X-Forwarded-For is believed, and which may open any number of
    connections."""
    max_connections: int = 4_000
    """The most connections at once; fewer where the process may not open so many files. One more ends the one that has
    waited longest for its client, an idle one if there is any."""
    max_connections_per_peer: int = 1_000
    """The most connections at once from one IPv4 address or one /64 network of IPv6, trusted proxies excepted."""
    max_request_bytes: int = 32 * 1024 * 1024
    """The most bytes that all requests without a response may hold at once; then the largest that is not whole ends."""
    max_head_bytes: int = 64 * 1024
    """The most bytes of a request before its body."""
    max_headers: int = 100
    """The most headers of a request."""
    first_byte_s: float = 10.0
    """Seconds until the first byte of a connection's first request."""
    head_s: float = 10.0
    """Seconds from the first byte of a request to the end of its headers."""
    body_s: float = 30.0
    """Seconds from there to the end of its body."""
    answer_s: float = 30.0
    """Seconds until a client has taken a response."""
    idle_s: float = 75.0
    """Seconds that a connection may wait for its next request; longer than that of a balancer in front."""
    linger_s: float = 5.0
    """Seconds that what a refused client still sends is read and thrown away, so that it can see why."""
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
        open_channel(config.ingest_target, timeout_s=config.sender_patience_s, key=config.service_key) as to_ingest,
        open_channel(config.attribution_target, timeout_s=config.sender_patience_s) as to_attribution,
        Spool(Path(config.spool_directory), max_bytes=config.spool_max_bytes) as spool,
        AsyncExitStack() as closing,
    ):
        follower = follow_tracker(to_tracker, GatewaySettings, with_secrets=True)
        ingest = IngestLog(to_ingest)
        engagement_log = EngagementLog(ingest, spool, patience_s=config.click_patience_s)
        records, engagements = Batches(ingest.try_to_store), Batches(engagement_log.keep)
        refused = Batches(ingest.try_to_list, calls=1, max_waiting=_MAX_WAITING_REFUSED)
        for batches in (records, engagements, refused):
            closing.push_async_callback(batches.close)

        def settings() -> GatewaySettings:
            return follower.current

        rates = Rates(time.monotonic)
        attribution = AttributionRoute(
            settings=settings,
            attribution=AttributionServiceStub(to_attribution),
            ingest=IngestServiceStub(to_ingest),
            rates=rates,
        )
        record_routes = RecordRoutes(
            settings=settings,
            records=records,
            rates=rates,
            attribution=attribution,
            addresses=addresses,
            public_url=config.public_url,
        )
        link_routes = LinkRoutes(
            settings=settings, engagements=engagements, refused=refused, rates=rates, addresses=addresses
        )
        host = config.listen.rpartition(":")[0]
        associations = AssociationRoutes(settings)
        gateway = Gateway(
            {**record_routes.routes, **link_routes.routes, **attribution.routes, **associations.routes},
            settings=settings,
        )
        # Requests leave no cycles behind; looking for some all the time costs a tenth of the throughput.
        gc.set_threshold(100_000, 50, 100)
        yield Service(
            server=HttpServer(
                gateway,
                config.listen,
                Limits(**{limit.name: getattr(config, limit.name) for limit in fields(Limits)}),
                drain_s=config.drain_s,
                grace_s=config.grace_s,
                operators=Operators(gateway),
                operators_listen=f"{host}:{config.metrics_port}" if config.metrics_port else "",
                is_exempt=addresses.is_proxy,
            ),
            loops={"settings": follower.run, "resending": engagement_log.resend},
        )


if __name__ == "__main__":
    run("gateway", Config, wire)
