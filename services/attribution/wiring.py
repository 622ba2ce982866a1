"""The parts of the service, put together: for its main, and for tests that replace the world around it."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from libs.db import Pool
from libs.domain.snapshots import Follower
from libs.server import Face
from libs.time import now_us
from reengage.attribution.v1 import service_pb2
from reengage.attribution.v1 import service_pb2_grpc as attribution_grpc
from reengage.ingest.v1.service_pb2_grpc import IngestServiceStub
from reengage.postback.v1 import service_pb2_grpc as postback_grpc
from services.attribution.jobs.claims import Claims, ClaimsConfig
from services.attribution.jobs.erasure import Eraser
from services.attribution.jobs.hash_index import HashIndexer
from services.attribution.jobs.late_arrivals import LateArrivals, LateArrivalsConfig
from services.attribution.jobs.quarantine import QuarantineRetrier
from services.attribution.jobs.reattribution import Reattributions, Reattributor
from services.attribution.live.claim_triggers import ClaimTriggers
from services.attribution.live.decider import FLUSH_INTERVAL_S
from services.attribution.live.loops import live_loops
from services.attribution.live.worker import Loop, Worker, WorkerConfig
from services.attribution.pace import Pace
from services.attribution.queries.background import Background
from services.attribution.queries.explanations import Explanations
from services.attribution.queries.following import Following
from services.attribution.queries.offers import HAND_OVER_S, Offers
from services.attribution.redecide.what_if import WhatIfConfig, WhatIfs
from services.attribution.service import Attribution
from services.attribution.wire.past_rules import PastRules, ReadSnapshot
from services.attribution.wire.rulebook import Rulebook


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """The ground that every part stands on: the database, the settings, the other services, the clock."""

    pool: Pool
    rulebooks: Follower[Rulebook]
    read_snapshot: ReadSnapshot
    ingest: IngestServiceStub
    postback: postback_grpc.PostbackServiceStub
    pace: Pace
    now_us: Callable[[], int] = now_us

    def past_rules(self) -> PastRules:
        """Returns rules of past revisions, held by themselves."""
        return PastRules(self.rulebooks, self.read_snapshot)


def slow_jobs(ground: Ground) -> dict[str, Loop]:
    """Returns the jobs that people ask for: erasures and re-attributions."""
    eraser = Eraser(pool=ground.pool, ingest=ground.ingest, postback=ground.postback, now_us=ground.now_us)
    return {"eraser": eraser.run, "reattributor": _reattributor(ground).run}


def _reattributor(ground: Ground) -> Reattributor:
    return Reattributor(ground.pool, ground.rulebooks, ground.pace, ground.now_us)


def wire_worker(
    ground: Ground,
    triggers: ClaimTriggers,
    config: WorkerConfig,
    *,
    jobs: Mapping[str, Loop] = MappingProxyType({}),
    claims_config: ClaimsConfig = ClaimsConfig(),
    late_arrivals_config: LateArrivalsConfig = LateArrivalsConfig(),
    flush_interval_s: float = FLUSH_INTERVAL_S,
) -> Worker:
    """Returns a worker that indexes, decides and relays, asks for claims, decides late ones again, and does `jobs`."""
    claims = Claims(
        pool=ground.pool,
        settings=ground.rulebooks,
        triggers=triggers,
        postback=ground.postback,
        pace=ground.pace,
        config=claims_config,
        now_us=ground.now_us,
    )
    hash_indexer = HashIndexer(
        pool=ground.pool,
        settings=ground.rulebooks,
        ingest=ground.ingest,
        triggers=triggers,
        pace=ground.pace,
        now_us=ground.now_us,
    )
    late_arrivals = LateArrivals(
        pool=ground.pool,
        settings=ground.rulebooks,
        past_rules=ground.past_rules(),
        pace=ground.pace,
        config=late_arrivals_config,
        now_us=ground.now_us,
    )
    live = live_loops(
        ground.pool,
        ground.rulebooks,
        ingest=ground.ingest,
        postback=ground.postback,
        triggers=triggers,
        pace=ground.pace,
        flush_interval_s=flush_interval_s,
        now_us=ground.now_us,
    )
    retrier = QuarantineRetrier(
        pool=ground.pool,
        settings=ground.rulebooks,
        triggers=triggers,
        postback=ground.postback,
        late_arrivals=late_arrivals,
        reattributor=_reattributor(ground),
        now_us=ground.now_us,
    )
    loops = {
        **live,
        "claims": claims.run,
        "hash_indexer": hash_indexer.run,
        "late_arrivals": late_arrivals.run,
        "quarantine": retrier.run,
        **jobs,
    }
    return Worker(config, ground.pool, loops, ready=lambda: asyncio.gather(ground.rulebooks.ready(), triggers.ready()))


def wire_face(
    ground: Ground,
    following: Following,
    *,
    what_if_config: WhatIfConfig = WhatIfConfig(),
    hand_over_s: float = HAND_OVER_S,
) -> Face:
    """Returns the gRPC face; `hand_over_s` is the time in which offers are handed over."""
    background = Background(ground.pool, ground.rulebooks, ground.past_rules())
    service = Attribution(
        ground.pool,
        ground.rulebooks,
        explanations=Explanations(ground.pool, ground.ingest, background),
        following=following,
        what_ifs=WhatIfs(ground.pool, ground.rulebooks, ground.pace, ground.now_us, what_if_config),
        reattributions=Reattributions(ground.pool, ground.rulebooks),
        offers=Offers(ground.pool, ground.rulebooks, ground.postback, hand_over_s=hand_over_s),
        now_us=ground.now_us,
    )
    return Face.of(
        service_pb2.DESCRIPTOR.services_by_name["AttributionService"],
        attribution_grpc.add_AttributionServiceServicer_to_server,
        service,
    )
