"""Refused records are kept for whoever wonders, never at the cost of accepted ones."""

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from prometheus_client import Counter

from reengage.ingest.v1 import record_batch_pb2, record_pb2, rejected_record_pb2
from services.ingest.model import Refusal
from services.ingest.validation import MAX_ID

MOST_WAITING = 5_000
LARGEST_BYTES = 65_536
PAUSE_S = 0.2

_dropped = Counter("ingest_refusals_dropped_total", "Refused records that are not listed, because too many came.")


class Rejections:
    """Takes refused records at once and writes them by and by: a thousand in `PAUSE_S` at most, the rest is counted."""

    def __init__(self, keep: Callable[[Sequence[Refusal]], Awaitable[None]]) -> None:
        self._keep = keep
        self._waiting: deque[Refusal] = deque()

    def add(
        self, record: record_pb2.Record, violations: Sequence[record_batch_pb2.FieldViolation], now_us: int
    ) -> None:
        """Note a refused record."""
        if len(self._waiting) >= MOST_WAITING:
            _dropped.inc()
            return
        refusal = rejected_record_pb2.RejectedRecord(record=record, violations=violations)
        refusal.reject_time.FromMicroseconds(now_us)
        if refusal.ByteSize() > LARGEST_BYTES:
            # Too large to keep: enough of it to find it again.
            refusal.record.Clear()
            refusal.record.app_id, refusal.record.record_id = record.app_id[:MAX_ID], record.record_id[:MAX_ID]
        app_id, record_id = _text(record.app_id), _text(record.record_id)
        self._waiting.append(
            Refusal(app_id, now_us, random.getrandbits(63), record_id or None, refusal.SerializeToString())
        )

    async def run(self) -> None:
        """Write until cancelled; raises what keeps it from writing, and then goes on where it was."""
        while True:
            await asyncio.sleep(PAUSE_S)
            if self._waiting:
                some = [self._waiting[index] for index in range(min(1_000, len(self._waiting)))]
                await self._keep(some)
                for _ in some:
                    self._waiting.popleft()


def _text(id_: str) -> str:
    """As much of an id as is kept; PostgreSQL's text holds no NUL."""
    return id_.replace("\0", "")[:MAX_ID]
