"""Starts the ingest service."""

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from libs.channels import open_channel
from libs.db import open_pool
from libs.domain.snapshots import follow_tracker
from libs.server import GrpcServer, ServerConfig, Service, run
from reengage.tracker.v1.event_definition_pb2 import RegisterEventsRequest
from reengage.tracker.v1.service_pb2_grpc import TrackerConfigServiceStub
from services.ingest.countries import Countries
from services.ingest.retention import keep_purged
from services.ingest.settings import build_settings
from services.ingest.wiring import wire_parts


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The configuration of ingest, read from the environment."""

    dsn: str = field(repr=False)
    """The PostgreSQL database that holds the schema `ingest`."""
    listen: str = "127.0.0.1:7102"
    """`host:port` to serve gRPC on."""
    metrics_port: int = 7202
    """The port of `/metrics`, on the same host; 0 serves none."""
    log_level: str = "info"
    """The lowest level that is logged: debug, info, warning or error."""
    tracker_target: str = "127.0.0.1:7101"
    """`host:port` of tracker, or `dns:///name:port`."""
    service_key: str = field(default="", repr=False)
    """The API key that tracker knows the other services by, and by which ingest knows the gateway."""
    log_retention_days: int = 35
    """Days for which the log keeps a record."""
    geoip_database: str = ""
    """The file, in MaxMind's format, that tells the countries of addresses; read again when it changes. Without it no
    country is known."""


@asynccontextmanager
async def wire(config: Config) -> AsyncIterator[Service]:
    """Opens what ingest needs."""
    async with (
        open_pool(config.dsn, schema="ingest", application_name="ingest", command_timeout_s=10) as pool,
        open_channel(config.tracker_target, key=config.service_key) as to_tracker,
    ):
        settings, tracker = follow_tracker(to_tracker, build_settings), TrackerConfigServiceStub(to_tracker)

        async def register(app_id: str, event_names: Collection[str]) -> None:
            await tracker.RegisterEvents(RegisterEventsRequest(app_id=app_id, event_names=event_names))

        countries = Countries(config.geoip_database)
        countries.read()
        parts = wire_parts(pool, settings, register=register, country_of=countries.of, service_key=config.service_key)
        yield Service(
            server=GrpcServer(ServerConfig(listen=config.listen, metrics_port=config.metrics_port), [parts.face]),
            loops={
                **parts.loops,
                "retention": lambda: keep_purged(
                    parts.log, parts.rejected, parts.warned, log_days=config.log_retention_days
                ),
                "countries": countries.follow,
            },
            ready=settings.ready,
        )


if __name__ == "__main__":
    run("ingest", Config, wire)
