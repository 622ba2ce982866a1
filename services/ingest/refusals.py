"""Refused records, kept for whoever wonders, never at the cost of accepted ones."""

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from itertools import islice

from prometheus_client import Counter

from libs.domain.record_sizes import MAX_ID
from libs.errors import ResourceExhausted
from libs.rates import Rates
from libs.time import to_timestamp
from reengage.ingest.v1 import record_batch_pb2, record_pb2, rejected_record_pb2
from services.ingest.model import Refusal

MAX_DELAY_S = 0.2
"""The time that a refusal waits to be written, as long as few come."""
_MAX_WAITING = 5_000
_MAX_WAITING_BYTES = 32 * 1024 * 1024
MAX_REFUSAL_BYTES = 65_536
_GROUP_SIZE = 1_000
MAX_OVER_RATE_PER_SECOND = 10
"""Of the records of an app that are over its rate so many are kept: a flood that is refused may not write as much as
one that is taken."""

_dropped = Counter("ingest_refusals_dropped_total", "Refused records that are not listed, because too many came.")


class Refusals:
    """A queue that takes refused records at once, and writes up to 1,000 of them every `MAX_DELAY_S`.

    When 5,000 wait, or 32 MB of them, more are only counted. `keep` stores refusals; to store one twice changes
    nothing.
    """

    def __init__(self, keep: Callable[[Sequence[Refusal]], Awaitable[None]]) -> None:
        self._keep = keep
        self._waiting: deque[Refusal] = deque()
        self._waiting_bytes = 0
        self._over_rate = Rates(time.monotonic)

    def add(
        self, record: record_pb2.Record, violations: Sequence[record_batch_pb2.FieldViolation], now_us: int
    ) -> None:
        """Notes a refused record."""
        if len(self._waiting) >= _MAX_WAITING or self._waiting_bytes >= _MAX_WAITING_BYTES:
            _dropped.inc()
            return
        refusal = rejected_record_pb2.RejectedRecord(
            record=record, violations=violations, reject_time=to_timestamp(now_us)
        )
        if refusal.ByteSize() > MAX_REFUSAL_BYTES:
            # Too large to keep: enough of it to find it again.
            refusal.record.Clear()
            refusal.record.app_id, refusal.record.record_id = record.app_id[:MAX_ID], record.record_id[:MAX_ID]
        app_id, record_id = _text(record.app_id), _text(record.record_id)
        content = refusal.SerializeToString()
        self._waiting.append(Refusal(app_id, now_us, random.getrandbits(63), record_id or None, content))
        self._waiting_bytes += len(content)

    def add_over_rate(
        self, record: record_pb2.Record, violations: Sequence[record_batch_pb2.FieldViolation], now_us: int
    ) -> None:
        """Notes a record of a known app that is over its rate, if not too many were noted just now."""
        try:
            self._over_rate.take(record.app_id, MAX_OVER_RATE_PER_SECOND)
        except ResourceExhausted:
            _dropped.inc()
        else:
            record.DiscardUnknownFields()
            self.add(record, violations, now_us)

    async def run(self) -> None:
        """Writes until cancelled. Raises what keeps it from writing; begun anew, it goes on where it was."""
        while True:
            await asyncio.sleep(MAX_DELAY_S)
            if self._waiting:
                group = list(islice(self._waiting, _GROUP_SIZE))
                await self._keep(group)
                for _ in group:
                    self._waiting_bytes -= len(self._waiting.popleft().refusal)


def _text(id_: str) -> str:
    """Returns as much of an id as is kept; PostgreSQL's text holds no NUL."""
    return id_.replace("\0", "")[:MAX_ID]
