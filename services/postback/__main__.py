"""Starts the postback service: `python -m services.postback`."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from libs.channels import open_channel
from libs.server import GrpcServer, ServerConfig, Service, run
from reengage.tracker.v1.service_pb2_grpc import TrackerConfigServiceStub
from services.postback.wiring import wire_parts


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The configuration of postback, read from the environment."""

    dsn: str = field(repr=False)
    """The database: a PostgreSQL DSN."""
    secrets_keys: str = field(repr=False)
    """The keys, comma-separated, that secrets of configurations are encrypted under: by the first, and read by all.
    `python -c "import base64, os; print(base64.urlsafe_b64encode(os.urandom(32)).decode())"` makes one."""
    allowed_hosts: str = ""
    """Hosts that deliveries may go to though private or on unusual ports, and the only ones for those of sandbox apps:
    `host` (any port) or `host:port`, comma-separated; IPv6 in brackets."""
    tracker_target: str = "127.0.0.1:7101"
    """`host:port` of tracker, or `dns:///name:port`: it has the credentials of accounts with self-attributing networks.
    Nothing else is asked of it."""
    postback_key: str = field(default="", repr=False)
    """The API key that tracker knows postback by. Without it only credentials that configurations hold are used."""
    listen: str = "127.0.0.1:7104"
    """The address that gRPC is served on."""
    metrics_port: int = 0
    """The port of /metrics, on the same host; 0: none."""
    log_level: str = "info"
    """The lowest level that is logged: debug, info, warning or error."""


@asynccontextmanager
async def wire(config: Config) -> AsyncIterator[Service]:
    """Yields the service, wired."""
    # Names are looked up in threads: a name server that hangs takes one for as long as it does.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(64, "names"))
    async with (
        open_channel(config.tracker_target, key=config.postback_key) as to_tracker,
        wire_parts(
            dsn=config.dsn,
            secrets_keys=config.secrets_keys,
            allowed_hosts=config.allowed_hosts,
            tracker=TrackerConfigServiceStub(to_tracker),
        ) as parts,
    ):
        yield Service(
            server=GrpcServer(ServerConfig(listen=config.listen, metrics_port=config.metrics_port), parts.faces),
            loops=parts.loops,
        )


if __name__ == "__main__":
    run("postback", Config, wire)
