"""The loop that hands decisions over to postback, in their sequence."""

from prometheus_client import Counter

from libs.db import Pool
from libs.domain.snapshots import Follower
from libs.parts import in_parts
from reengage.postback.v1 import conversion_pb2
from reengage.postback.v1 import service_pb2_grpc as postback_grpc
from services.attribution.live.owned_lanes import OwnedLanes
from services.attribution.storage.decisions import read_outbox
from services.attribution.storage.lanes import advance_relayed, read_owned_lanes
from services.attribution.wire.conversions import conversions_for_postback
from services.attribution.wire.rulebook import Rulebook

_relayed = Counter("attribution_decisions_relayed_total", "Decisions handed to postback.")

_BATCH = 500


class Relay:
    """The loop of a worker that reads the outbox: the decisions themselves, in the sequence of their lane."""

    def __init__(self, pool: Pool, rulebooks: Follower[Rulebook], postback: postback_grpc.PostbackServiceStub) -> None:
        self._pool, self._rulebooks, self._postback = pool, rulebooks, postback

    async def run(self, lanes: OwnedLanes) -> None:
        """Hands over until cancelled, at least once; postback makes each delivery once. Raises LanesLostError."""
        stored = await read_owned_lanes(self._pool, lanes.worker_id, lanes.lanes)
        positions = {lane: each.relayed for lane, each in stored.items()}
        while True:
            wanted = await lanes.beyond(positions)
            limit = -(-_BATCH // len(wanted))
            rows, moved = await read_outbox(self._pool, wanted, limit)
            relayed = (row for row in rows if row.is_relayed)
            conversions = conversions_for_postback(relayed, self._rulebooks.current)
            for some in in_parts(conversions, conversion_pb2.Conversion.ByteSize):
                await self._postback.EnqueueConversions(conversion_pb2.EnqueueConversionsRequest(conversions=some))
            await advance_relayed(self._pool, lanes.worker_id, moved)
            positions.update(moved)
            _relayed.inc(len(conversions))
