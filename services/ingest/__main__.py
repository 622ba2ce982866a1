"""Starts the ingest service."""

from collections.abc import Collection
from dataclasses import dataclass, field
from functools import partial

import uvloop

from libs.channels import open_channel
from libs.config import load
from libs.db import open_pool
from libs.domain.snapshots import Follower
from libs.logs import configure_logging
from libs.server import Face, ServerConfig, serve
from libs.worker import keep_running
from reengage.ingest.v1 import ingest_pb2, ingest_pb2_grpc
from reengage.tracker.v1 import event_definition_pb2, service_pb2_grpc, snapshot_pb2
from services.ingest.reader import Growth
from services.ingest.rejections import Rejections
from services.ingest.retention import keep_purged
from services.ingest.service import IngestService
from services.ingest.settings import build_settings
from services.ingest.sightings import Sightings
from services.ingest.store import Store
from services.ingest.writer import Writer

SERVICE_NAME = ingest_pb2.DESCRIPTOR.services_by_name["IngestService"].full_name


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """REENGAGE_*."""

    dsn: str
    listen: str = "127.0.0.1:7102"
    metrics_port: int = 7202
    log_level: str = "info"
    tracker_target: str = "127.0.0.1:7101"
    service_key: str = field(default="", repr=False)
    log_retention_days: int = 35


async def main() -> None:
    """Serve until told to stop."""
    config = load(Config)
    configure_logging("ingest", config.log_level)
    async with (
        open_pool(config.dsn, schema="ingest", application_name="ingest", command_timeout_seconds=10) as pool,
        open_channel(config.tracker_target, key=config.service_key) as channel,
    ):
        tracker = service_pb2_grpc.TrackerConfigServiceStub(channel)
        settings = Follower(
            lambda at: tracker.WatchSnapshot(snapshot_pb2.WatchSnapshotRequest(revision=at)), build_settings
        )

        async def register(app_id: str, event_names: Collection[str]) -> None:
            await tracker.RegisterEvents(
                event_definition_pb2.RegisterEventsRequest(app_id=app_id, event_names=event_names)
            )

        store, growth = Store(pool), Growth()
        writer, rejections = Writer(store.append, growth.announce), Rejections(store.reject)
        sightings = Sightings(register)
        service = IngestService(
            settings=settings, writer=writer, rejections=rejections, sightings=sightings, store=store, growth=growth
        )
        await serve(
            ServerConfig(listen=config.listen, metrics_port=config.metrics_port),
            [Face(name=SERVICE_NAME, add=partial(ingest_pb2_grpc.add_IngestServiceServicer_to_server, service))],
            tasks=[
                settings.run,
                writer.run,
                lambda: keep_running("rejections", rejections.run),
                lambda: keep_running("sightings", sightings.run),
                lambda: keep_running("retention", lambda: keep_purged(store, log_days=config.log_retention_days)),
            ],
            ready=settings.ready,
        )


if __name__ == "__main__":
    uvloop.run(main())
