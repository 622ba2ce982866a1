"""The postbacks that a re-attribution offers: what its versions would change, and handing them over when asked to."""

import contextlib
import time
from collections.abc import AsyncIterator, Iterable, Iterator

import grpc
from google.protobuf.message import DecodeError

from libs.call_context import remaining_s
from libs.db import Pool
from libs.domain.snapshots import Follower
from libs.errors import FailedPrecondition, Unavailable
from libs.parts import in_parts
from reengage.attribution.v1 import offer_pb2
from reengage.postback.v1 import conversion_pb2
from reengage.postback.v1 import service_pb2_grpc as postback_grpc
from services.attribution.storage.decisions import OutboxRow
from services.attribution.storage.reattributions import Reattribution, State, versions_of
from services.attribution.wire.conversions import conversions_for_postback
from services.attribution.wire.records import RecordTooLargeError
from services.attribution.wire.rulebook import Rulebook

_BATCH = 500
HAND_OVER_S = 8.0
"""The time in which versions that were read are handed over or given up. An erasure waits longer than that
(EraserConfig.calls_end_s)."""


class Offers:
    """The offers of re-attributions: their versions, unless a later one has replaced them."""

    def __init__(
        self,
        pool: Pool,
        settings: Follower[Rulebook],
        postback: postback_grpc.PostbackServiceStub,
        *,
        hand_over_s: float = HAND_OVER_S,
    ) -> None:
        self._pool, self._settings, self._postback, self._hand_over_s = pool, settings, postback, hand_over_s

    async def page(
        self, job: Reattribution, *, after: int, limit: int
    ) -> tuple[list[offer_pb2.OfferedPostback], int | None]:
        """Returns the offers of versions after a sequence, and the last of these sequences if there may be more."""
        rows, is_more = await versions_of(self._pool, job, after, limit)
        offered = [each async for answer in self._enqueue(rows, validate_only=True) for each in answer.offered]
        return offered, rows[-1].sequence if is_more else None

    async def send(self, job: Reattribution) -> int:
        """Hands all versions over; returns the number of deliveries. Raises FailedPrecondition while the job runs."""
        if job.state is State.RUNNING:
            raise FailedPrecondition(
                "REATTRIBUTION_RUNNING", "the re-attribution is still running; wait for it or cancel it"
            )
        created, after, is_more = 0, -1, True
        while is_more:
            rows, is_more = await versions_of(self._pool, job, after, _BATCH)
            async for answer in self._enqueue(rows, validate_only=False):
                created += answer.created_count
            after = rows[-1].sequence if rows else after
        return created

    async def _enqueue(
        self, rows: list[OutboxRow], *, validate_only: bool
    ) -> AsyncIterator[conversion_pb2.EnqueueConversionsResponse]:
        until = time.monotonic() + self._hand_over_s
        conversions = _conversions(rows, self._settings.current)
        for some in in_parts(conversions, conversion_pb2.Conversion.ByteSize):
            request = conversion_pb2.EnqueueConversionsRequest(conversions=some, validate_only=validate_only)
            left_s = max(0.0, until - time.monotonic())
            try:
                yield await self._postback.EnqueueConversions(request, timeout=remaining_s(left_s))
            except grpc.aio.AioRpcError as error:
                raise Unavailable("POSTBACK_UNAVAILABLE", "postback does not answer", retry_after_s=1.0) from error


def _conversions(rows: Iterable[OutboxRow], rulebook: Rulebook) -> Iterator[conversion_pb2.Conversion]:
    """Yields what can be handed over; what cannot, the relay has set aside."""
    for row in rows:
        with contextlib.suppress(DecodeError, RecordTooLargeError):
            yield from conversions_for_postback([row], rulebook)
