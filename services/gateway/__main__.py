"""Starts the gateway."""

import gc
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from libs.channels import open_channel
from libs.domain.snapshots import follow_tracker
from libs.server import Service, run
from reengage.attribution.v1 import service_pb2_grpc as attribution_grpc
from services.gateway.addresses import ClientAddresses
from services.gateway.app import Gateway
from services.gateway.batches import Batches
from services.gateway.ingest_log import EngagementLog, IngestLog
from services.gateway.rates import Rates
from services.gateway.server import HttpServer
from services.gateway.settings import Settings
from services.gateway.spool import Spool


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """REENGAGE_*. `trusted_proxies`: addresses or networks, comma-separated, whose X-Forwarded-For is believed.

    A call that someone waits for may take `sender_patience_s`, and `click_patience_s` when a click could be spooled.
    """

    listen: str = "127.0.0.1:8080"
    log_level: str = "info"
    tracker_target: str = "127.0.0.1:7101"
    service_key: str = field(default="", repr=False)
    ingest_target: str = "127.0.0.1:7102"
    attribution_target: str = "127.0.0.1:7103"
    spool_directory: str = ".data/spool"
    spool_max_bytes: int = 1024 * 1024 * 1024
    click_patience_s: float = 0.1
    sender_patience_s: float = 3.0
    trusted_proxies: str = ""
    drain_s: float = 0.0
    grace_s: float = 20.0


@asynccontextmanager
async def wire(config: Config) -> AsyncIterator[Service]:
    """Opens what the gateway needs."""
    addresses = ClientAddresses(filter(None, (proxy.strip() for proxy in config.trusted_proxies.split(","))))
    async with (
        open_channel(config.tracker_target, key=config.service_key) as tracker_channel,
        open_channel(config.ingest_target, timeout_s=config.sender_patience_s) as ingest_channel,
        open_channel(config.attribution_target, timeout_s=config.sender_patience_s) as attribution_channel,
        Spool(Path(config.spool_directory), max_bytes=config.spool_max_bytes) as spool,
    ):
        settings = follow_tracker(tracker_channel, Settings)
        ingest = IngestLog(ingest_channel)
        engagement_log = EngagementLog(ingest, spool, patience_s=config.click_patience_s)
        records, engagements = Batches(ingest.try_to_store), Batches(engagement_log.keep)
        gateway = Gateway(
            settings=lambda: settings.current,
            records=records,
            engagements=engagements,
            attribution=attribution_grpc.AttributionServiceStub(attribution_channel),
            addresses=addresses,
            rates=Rates(time.monotonic),
        )
        # Requests leave no cycles behind; looking for some all the time costs a tenth of the throughput.
        gc.set_threshold(100_000, 50, 100)
        try:
            yield Service(
                server=HttpServer(gateway, config.listen, drain_s=config.drain_s, grace_s=config.grace_s),
                loops={"settings": settings.run, "replay": engagement_log.replay},
            )
        finally:
            await records.close()
            await engagements.close()


if __name__ == "__main__":
    run("gateway", Config, wire)
