"""The loop that hands decisions over to postback, in their sequence."""

from collections.abc import Sequence

import grpc
from prometheus_client import Counter

from libs.db import Pool, transaction
from libs.domain.snapshots import Follower
from libs.parts import in_parts
from reengage.attribution.v1 import quarantine_pb2
from reengage.postback.v1 import conversion_pb2
from reengage.postback.v1 import service_pb2_grpc as postback_grpc
from services.attribution.live.owned_lanes import OwnedLanes
from services.attribution.live.quarantine import (
    REFUSING,
    count_set_aside,
    in_halves,
    is_circumstance,
    reason_of,
    text_of,
)
from services.attribution.storage import quarantine
from services.attribution.storage.decisions import OutboxRow, read_outbox
from services.attribution.storage.lanes import advance_relayed, read_owned_lanes
from services.attribution.storage.quarantine import SetAside
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
            refused = await self._hand_over([row for row in rows if row.is_relayed])
            async with transaction(self._pool) as connection:
                if refused:
                    await quarantine.insert(connection, refused)
                await advance_relayed(connection, lanes.worker_id, moved)
            count_set_aside(refused)
            positions.update(moved)

    async def _hand_over(self, rows: Sequence[OutboxRow]) -> list[SetAside]:
        """Hands decisions over; returns those that are set aside, because postback refuses each alone."""
        refused: list[SetAside] = []

        async def hand_over(some: range) -> None:
            await hand_to_postback(self._postback, rows[some.start : some.stop], self._rulebooks.current)

        async def set_aside(place: int, error: Exception) -> None:
            if isinstance(error, grpc.RpcError):
                await self._check_it_works()
                try:  # it may work since just now: then it takes the decision, too
                    await hand_over(range(place, place + 1))
                except grpc.aio.AioRpcError as again:
                    if is_circumstance_of_relaying(again):
                        raise
                    error = again
                else:
                    return
            refused.append(_set_aside(rows[place], error))

        await in_halves(len(rows), hand_over, set_aside, is_circumstance_of_relaying)
        return refused

    async def _check_it_works(self) -> None:
        """Asks postback with nothing, which it finds wrong. Whoever fails at that says nothing against a decision."""
        try:
            await self._postback.EnqueueConversions(conversion_pb2.EnqueueConversionsRequest())
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.INVALID_ARGUMENT:
                raise


async def hand_to_postback(
    postback: postback_grpc.PostbackServiceStub, rows: Sequence[OutboxRow], rulebook: Rulebook
) -> None:
    """Hands decisions over to postback, which makes each delivery once."""
    conversions = conversions_for_postback(rows, rulebook)
    for some in in_parts(conversions, conversion_pb2.Conversion.ByteSize):
        await postback.EnqueueConversions(conversion_pb2.EnqueueConversionsRequest(conversions=some))
    _relayed.inc(len(conversions))


def is_circumstance_of_relaying(error: Exception) -> bool:
    """Returns whether decisions could not be handed over for another reason than what they are."""
    if isinstance(error, grpc.aio.AioRpcError):
        return error.code() not in REFUSING
    return is_circumstance(error)


def _set_aside(row: OutboxRow, error: Exception) -> SetAside:
    return SetAside(
        lane=row.lane,
        work=quarantine_pb2.QUARANTINE_WORK_RELAY,
        app_id=row.app_id,
        place=str(row.sequence),
        record_id=row.conversion_id,
        reason=reason_of(error),
        error=text_of(error),
        position=row.sequence,
    )
