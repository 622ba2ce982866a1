"""Starts the attribution service: the API and one worker."""

import asyncio
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
from libs.server import Face, GrpcServer, ServerConfig, Service, run
from libs.time import now_us
from reengage.attribution.v1 import service_pb2
from reengage.attribution.v1 import service_pb2_grpc as attribution_grpc
from reengage.ingest.v1.service_pb2_grpc import IngestServiceStub
from reengage.postback.v1 import service_pb2_grpc as postback_grpc
from services.attribution.jobs.claims import Claims
from services.attribution.jobs.erasure import Eraser
from services.attribution.jobs.hash_index import HashIndexer
from services.attribution.jobs.late_arrivals import LateArrivals
from services.attribution.jobs.reattribution import Reattributions, Reattributor
from services.attribution.live.claim_triggers import ClaimTriggers
from services.attribution.live.loops import live_loops
from services.attribution.live.worker import Worker, WorkerConfig
from services.attribution.pace import Pace
from services.attribution.queries.background import Background
from services.attribution.queries.explanations import Explanations
from services.attribution.queries.following import Following
from services.attribution.queries.offers import Offers
from services.attribution.redecide.what_if import WhatIfs
from services.attribution.service import Attribution
from services.attribution.storage import PLANNER
from services.attribution.wire.past_rules import PastRules
from services.attribution.wire.rulebook import RulebookBuilder


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
        rulebooks = follow_tracker(to_tracker, RulebookBuilder())
        ingest = IngestServiceStub(to_ingest)
        postback = postback_grpc.PostbackServiceStub(to_postback)
        triggers = ClaimTriggers(pool, postback, wait_s=config.claim_wait_s)
        pace = Pace()
        claims = Claims(pool=pool, settings=rulebooks, triggers=triggers, postback=postback, pace=pace, now_us=now_us)
        eraser = Eraser(pool=pool, ingest=ingest, postback=postback, now_us=now_us)
        reattributor = Reattributor(pool, rulebooks, pace, now_us)
        hash_indexer = HashIndexer(
            pool=pool, settings=rulebooks, ingest=ingest, triggers=triggers, pace=pace, now_us=now_us
        )
        late_arrivals = LateArrivals(
            pool=pool, settings=rulebooks, past_rules=PastRules(rulebooks, past_snapshots(to_tracker)), pace=pace
        )
        live = live_loops(
            pool, rulebooks, ingest=ingest, postback=postback, triggers=triggers, pace=pace, now_us=now_us
        )
        worker = Worker(
            WorkerConfig(worker_id=f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}", lease_s=config.worker_lease_s),
            pool,
            {
                **live,
                "claims": claims.run,
                "eraser": eraser.run,
                "reattributor": reattributor.run,
                "hash_indexer": hash_indexer.run,
                "late_arrivals": late_arrivals.run,
            },
            ready=lambda: asyncio.gather(rulebooks.ready(), triggers.ready()),
        )
        background = Background(pool, rulebooks, PastRules(rulebooks, past_snapshots(to_tracker)))
        following = Following(pool, pace)
        service = Attribution(
            pool,
            rulebooks,
            explanations=Explanations(pool, ingest, background),
            following=following,
            what_ifs=WhatIfs(pool, rulebooks, pace, now_us),
            reattributions=Reattributions(pool, rulebooks),
            offers=Offers(pool, rulebooks, postback),
            now_us=now_us,
        )
        face = Face.of(
            service_pb2.DESCRIPTOR.services_by_name["AttributionService"],
            attribution_grpc.add_AttributionServiceServicer_to_server,
            service,
        )
        yield Service(
            server=GrpcServer(ServerConfig(listen=config.listen, metrics_port=config.metrics_port), [face]),
            loops={
                "settings": rulebooks.run,
                "claim_triggers": triggers.run,
                "ownership": worker.run,
                "following": following.run,
                "retention": Periods(pool).run,
            },
            ready=rulebooks.ready,
        )


if __name__ == "__main__":
    run("attribution", Config, wire)
