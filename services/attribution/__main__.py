"""Starts the attribution service: the API and one worker."""

import socket
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from libs.channels import open_channel
from libs.config import ConfigError
from libs.db import open_pool
from libs.domain.snapshots import follow_tracker, past_snapshots
from libs.periods import Periods
from libs.server import GrpcServer, ServerConfig, Service, run
from reengage.ingest.v1.service_pb2_grpc import IngestServiceStub
from reengage.postback.v1.service_pb2_grpc import PostbackServiceStub
from services.attribution.live.claim_triggers import ClaimTriggers
from services.attribution.live.worker import WorkerConfig
from services.attribution.pace import Pace
from services.attribution.queries.following import Following
from services.attribution.storage import PLANNER
from services.attribution.wire.rulebook import RulebookBuilder
from services.attribution.wiring import Ground, slow_jobs, wire_face, wire_worker


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The configuration of attribution, read from the environment."""

    dsn: str = field(repr=False)
    """The PostgreSQL database that holds the schema `attribution`."""
    listen: str = "127.0.0.1:7103"
    """`host:port` to serve gRPC on."""
    metrics_port: int = 7203
    """The port of `/metrics`, on the same host; 0 serves none."""
    log_level: str = "info"
    """The lowest level that is logged: debug, info, warning or error."""
    tracker_target: str = "127.0.0.1:7101"
    """`host:port` of tracker, or `dns:///name:port`."""
    service_key: str = field(default="", repr=False)
    """The API key that tracker knows the other services by."""
    ingest_target: str = "127.0.0.1:7102"
    """`host:port` of ingest, or `dns:///name:port`."""
    postback_target: str = "127.0.0.1:7104"
    """`host:port` of postback, or `dns:///name:port`."""
    worker_lease_s: float = 5.0
    """Seconds after which the lanes of a worker that died are another's."""
    claim_wait_s: float = 15.0
    """Seconds, 1 to 600, for which a conversion waits for the claims of self-attributing networks (E4)."""

    def __post_init__(self) -> None:
        if not 1 <= self.claim_wait_s <= 600:
            raise ConfigError("REENGAGE_CLAIM_WAIT_S must be 1 to 600")


@asynccontextmanager
async def wire(config: Config) -> AsyncIterator[Service]:
    """Opens what attribution needs."""
    async with (
        open_pool(config.dsn, schema="attribution", application_name="attribution", settings=PLANNER) as pool,
        open_channel(config.tracker_target, key=config.service_key) as to_tracker,
        open_channel(config.ingest_target) as to_ingest,
        open_channel(config.postback_target) as to_postback,
    ):
        ground = Ground(
            pool=pool,
            rulebooks=follow_tracker(to_tracker, RulebookBuilder()),
            read_snapshot=past_snapshots(to_tracker),
            ingest=IngestServiceStub(to_ingest),
            postback=PostbackServiceStub(to_postback),
            pace=Pace(),
        )
        triggers = ClaimTriggers(pool, ground.postback, wait_s=config.claim_wait_s)
        worker_id = f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}"
        worker = wire_worker(
            ground,
            triggers,
            WorkerConfig(worker_id=worker_id, lease_s=config.worker_lease_s),
            jobs=slow_jobs(ground),
        )
        following = Following(pool, ground.pace)
        face = wire_face(ground, following)
        yield Service(
            server=GrpcServer(ServerConfig(listen=config.listen, metrics_port=config.metrics_port), [face]),
            loops={
                "settings": ground.rulebooks.run,
                "claim_triggers": triggers.run,
                "ownership": worker.run,
                "following": following.run,
                "retention": Periods(pool).run,
            },
            ready=ground.rulebooks.ready,
        )


if __name__ == "__main__":
    run("attribution", Config, wire)
