"""The postbacks that a re-attribution offers: what its versions would change, and handing them over when asked to."""

import time
from collections.abc import AsyncIterator

import grpc

from libs.call_context import remaining_s
from libs.db import Pool
from libs.domain.snapshots import Follower
from libs.errors import FailedPrecondition, Unavailable
from reengage.attribution.v1 import offer_pb2
from reengage.postback.v1 import conversion_pb2
from reengage.postback.v1 import service_pb2_grpc as postback_grpc
from services.attribution.storage.decisions import OutboxRow
from services.attribution.storage.reattributions import Reattribution, State, versions_of
from services.attribution.wire.conversions import conversions_for_postback, in_calls
from services.attribution.wire.rulebook import Rulebook

_BATCH = 500
_HAND_OVER_S = 8.0
"""What was read is with postback by then, or given up: an erasure waits for that (erasure.py: CLAIMS_END_S)."""


class Offers:
    """Asks postback about the versions of a re-attribution, unless a later one has replaced them."""

    def __init__(self, pool: Pool, settings: Follower[Rulebook], postback: postback_grpc.PostbackServiceStub) -> None:
        self._pool, self._settings, self._postback = pool, settings, postback

    async def page(
        self, job: Reattribution, *, after: int, limit: int
    ) -> tuple[list[offer_pb2.OfferedPostback], int | None]:
        """What the versions after a sequence, at most so many, would change; and the last of them if there are more."""
        rows = await versions_of(self._pool, job, after, limit)
        offered = [each async for answer in self._enqueue(rows, validate_only=True) for each in answer.offered]
        return offered, rows[-1].sequence if len(rows) == limit else None

    async def send(self, job: Reattribution) -> int:
        """Hand all versions over; answers the deliveries made. Raises FailedPrecondition while the job runs."""
        if job.state is State.RUNNING:
            raise FailedPrecondition("REATTRIBUTION_RUNNING", "it has not ended; wait for it or cancel it")
        created, after = 0, -1
        while rows := await versions_of(self._pool, job, after, _BATCH):
            async for answer in self._enqueue(rows, validate_only=False):
                created += answer.created_count
            after = rows[-1].sequence
        return created

    async def _enqueue(
        self, rows: list[OutboxRow], *, validate_only: bool
    ) -> AsyncIterator[conversion_pb2.EnqueueConversionsResponse]:
        until = time.monotonic() + _HAND_OVER_S
        for some in in_calls(conversions_for_postback(rows, self._settings.current)):
            request = conversion_pb2.EnqueueConversionsRequest(conversions=some, validate_only=validate_only)
            left_s = max(0.0, until - time.monotonic())
            try:
                yield await self._postback.EnqueueConversions(request, timeout=remaining_s(left_s))
            except grpc.aio.AioRpcError as error:
                raise Unavailable("POSTBACK_UNAVAILABLE", "postback does not answer", retry_after_s=1.0) from error
