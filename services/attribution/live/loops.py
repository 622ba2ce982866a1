"""The loops on the way of an event: from the log to a decision, and on to postback."""

from collections.abc import Callable

from libs.db import Pool
from libs.domain.snapshots import Follower
from libs.time import now_us
from reengage.ingest.v1.service_pb2_grpc import IngestServiceStub
from reengage.postback.v1 import service_pb2_grpc as postback_grpc
from services.attribution.live.claim_triggers import ClaimTriggers
from services.attribution.live.decider import FLUSH_INTERVAL_S, Decider
from services.attribution.live.indexer import Indexer
from services.attribution.live.log_reader import LogReader
from services.attribution.live.relay import Relay
from services.attribution.live.worker import Loop
from services.attribution.pace import Pace
from services.attribution.wire.rulebook import Rulebook


def live_loops(
    pool: Pool,
    rulebooks: Follower[Rulebook],
    *,
    ingest: IngestServiceStub,
    postback: postback_grpc.PostbackServiceStub,
    triggers: ClaimTriggers,
    pace: Pace,
    flush_interval_s: float = FLUSH_INTERVAL_S,
    now_us: Callable[[], int] = now_us,
) -> dict[str, Loop]:
    """Returns the indexer, the decider and the relay of one worker."""
    log = LogReader(ingest)
    decider = Decider(
        pool,
        rulebooks,
        log,
        triggers=triggers,
        pace=pace,
        flush_interval_s=flush_interval_s,
        now_us=now_us,
    )
    return {
        "indexer": Indexer(pool, rulebooks, log).run,
        "decider": decider.run,
        "relay": Relay(pool, rulebooks, postback).run,
    }
