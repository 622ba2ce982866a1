"""Starts tracker."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from libs.db import open_pool
from libs.server import GrpcServer, ServerConfig, Service, run
from services.tracker.wiring import wire_parts


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The configuration of tracker, read from the environment."""

    dsn: str = field(repr=False)
    """The PostgreSQL database that holds the schema `tracker`."""
    admin_key: str = field(repr=False)
    """The API key of ops, which may do everything; the keys of people are made through the API."""
    service_key: str = field(repr=False)
    """The API key of the other services, which may read all settings and nothing else."""
    postback_key: str = field(default="", repr=False)
    """The API key of postback, which may read the credentials of accounts with self-attributing networks and nothing
    else. Without it postback has only the credentials that its configurations hold."""
    secrets_keys: str = field(repr=False)
    """The keys, comma-separated, that stored secrets are encrypted under: by the first, and read by all."""
    listen: str = "127.0.0.1:7101"
    """`host:port` to serve gRPC on."""
    metrics_port: int = 7201
    """The port of `/metrics`, on the same host; 0 serves none."""
    log_level: str = "info"
    """The lowest level that is logged: debug, info, warning or error."""


@asynccontextmanager
async def wire(config: Config) -> AsyncIterator[Service]:
    """Opens what tracker needs."""
    async with open_pool(config.dsn, schema="tracker", application_name="tracker") as pool:
        parts = wire_parts(
            pool,
            admin_key=config.admin_key,
            service_key=config.service_key,
            postback_key=config.postback_key,
            secrets_keys=config.secrets_keys,
        )
        server = GrpcServer(ServerConfig(listen=config.listen, metrics_port=config.metrics_port), [parts.face])
        yield Service(server=server, loops=parts.loops)


if __name__ == "__main__":
    run("tracker", Config, wire)
