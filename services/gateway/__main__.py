"""Starts the gateway."""

import asyncio
import gc
import time
from dataclasses import dataclass, field
from pathlib import Path

import uvloop

from libs.channels import open_channel
from libs.config import load
from libs.domain.snapshots import Follower
from libs.logs import configure_logging
from reengage.attribution.v1 import attribution_pb2_grpc
from reengage.tracker.v1 import service_pb2_grpc, snapshot_pb2
from services.gateway.addresses import ClientAddresses
from services.gateway.app import Gateway
from services.gateway.batches import Batches
from services.gateway.ingest_log import EngagementLog, IngestLog
from services.gateway.rates import Rates
from services.gateway.server import serve_http
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


async def main() -> None:
    """Serve until told to stop."""
    config = load(Config)
    configure_logging("gateway", config.log_level)
    addresses = ClientAddresses(filter(None, (proxy.strip() for proxy in config.trusted_proxies.split(","))))
    async with (
        open_channel(config.tracker_target, key=config.service_key) as tracker_channel,
        open_channel(config.ingest_target, timeout_s=config.sender_patience_s) as ingest_channel,
        open_channel(config.attribution_target, timeout_s=config.sender_patience_s) as attribution_channel,
        Spool(Path(config.spool_directory), max_bytes=config.spool_max_bytes) as spool,
    ):
        tracker = service_pb2_grpc.TrackerConfigServiceStub(tracker_channel)
        settings = Follower(lambda at: tracker.WatchSnapshot(snapshot_pb2.WatchSnapshotRequest(revision=at)), Settings)
        ingest = IngestLog(ingest_channel)
        engagement_log = EngagementLog(ingest, spool, patience_s=config.click_patience_s)
        records, engagements = Batches(ingest.try_to_store), Batches(engagement_log.keep)
        gateway = Gateway(
            settings=lambda: settings.current,
            records=records,
            engagements=engagements,
            attribution=attribution_pb2_grpc.AttributionServiceStub(attribution_channel),
            addresses=addresses,
            rates=Rates(time.monotonic),
        )
        # Requests leave no cycles behind; looking for some all the time costs a tenth of the throughput.
        gc.freeze()
        gc.set_threshold(100_000, 50, 100)
        following = [asyncio.ensure_future(settings.run()), asyncio.ensure_future(engagement_log.replay())]
        try:
            await serve_http(gateway, config.listen, drain_s=config.drain_s, grace_s=config.grace_s)
        finally:
            await records.close()
            await engagements.close()
            for task in following:
                task.cancel()
            await asyncio.gather(*following, return_exceptions=True)


if __name__ == "__main__":
    uvloop.run(main())
