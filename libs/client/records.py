"""Sending records so that each is stored once, whatever happens on the way."""

import asyncio
import random
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from types import TracebackType
from typing import Any, Self

import grpc

from libs.broadcast import Broadcast
from libs.domain.record_sizes import MAX_RECORD_BYTES
from libs.errors import ServiceError
from reengage.ingest.v1 import record_batch_pb2, record_pb2
from reengage.ingest.v1.service_pb2_grpc import IngestServiceStub

MAX_BATCH_BYTES = 4 * 1024 * 1024
"""After which a batch takes no further record: with a last one of the largest size it still fits into a message."""
FIRST_PAUSE_S = 0.1
MAX_PAUSE_S = 5.0
_ATTEMPT_TIMEOUT_S = 30.0
_RATE_LIMITED = record_batch_pb2.RecordResult.STATUS_RATE_LIMITED
_FINAL = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)
"""Refusals that repeat themselves. After any other error the records may have been stored or not."""

OnResult = Callable[[record_pb2.Record, record_batch_pb2.RecordResult], None]


class UnsentRecordsError(Exception):
    """Closing took too long; `records` are those that were not acknowledged, with their ids, to be sent again."""

    def __init__(self, records: Sequence[record_pb2.Record]) -> None:
        super().__init__(f"{len(records):,} records were not acknowledged in time")
        self.records = tuple(records)


class RecordSender:
    """A sender of records in batches, in the order given, each again and again until ingest acknowledges it.

        async with connect("localhost:7102") as channel, RecordSender(channel, on_result=note) as sender:
            for record in records:
                await sender.send(record)

    `on_result` is called with each record and its result once the record is durable, or refused: look at the
    status, nothing else tells of a refusal. What is over the rate of its app is sent again when ingest says that it
    may. A record without an id gets one, so that sending it again changes nothing. At most `max_buffered` records
    are held, those under way among them; then `send` waits. Leaving the block waits for all that was sent,
    `close_timeout_s` at most, and raises UnsentRecordsError with the rest.

    A call that will never succeed (no access, not understood) ends the sender: `send`, `flush` and the end of the block
    raise its ServiceError, as they raise what `on_result` raised.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        *,
        on_result: OnResult,
        max_batch_size: int = 500,
        max_buffered: int = 10_000,
        close_timeout_s: float = 30.0,
    ) -> None:
        self._stub: Any = IngestServiceStub(channel)
        self._on_result = on_result
        self._max_batch_size = max_batch_size
        self._max_buffered = max_buffered
        self._close_timeout_s = close_timeout_s
        self._held = deque[record_pb2.Record]()
        self._sent_count = self._acknowledged_count = 0
        self._changed = Broadcast()
        self._sending: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._sending = asyncio.create_task(self._send_all(), name="send records")
        self._sending.add_done_callback(lambda _: self._changed.notify())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._sending is not None
        try:
            async with asyncio.timeout(self._close_timeout_s):
                await self.flush()
        except TimeoutError:
            if error is None:
                raise UnsentRecordsError(self.unacknowledged) from None
        except Exception:
            if error is None:
                raise
        finally:
            self._sending.cancel()
            await asyncio.wait({self._sending})

    @property
    def unacknowledged(self) -> tuple[record_pb2.Record, ...]:
        """Returns the records of which nobody knows yet whether they are stored, oldest first."""
        return tuple(self._held)

    async def send(self, record: record_pb2.Record) -> None:
        """Takes a copy of a record, and waits for room to hold it. Raises ValueError for one of over 512 KB."""
        held = record_pb2.Record()
        held.CopyFrom(record)
        held.record_id = held.record_id or str(uuid.uuid4())
        if held.ByteSize() > MAX_RECORD_BYTES:
            raise ValueError(f"a record of {held.ByteSize():,} bytes; at most {MAX_RECORD_BYTES:,} are allowed")
        self._check()
        while len(self._held) >= self._max_buffered:
            await self._changed.next().wait()
            self._check()
        self._held.append(held)
        self._sent_count += 1
        if len(self._held) == 1:
            self._changed.notify()

    async def flush(self) -> None:
        """Waits until everything that was sent before is acknowledged."""
        self._check()
        sent_count = self._sent_count
        while self._acknowledged_count < sent_count:
            await self._changed.next().wait()
            self._check()

    def _check(self) -> None:
        """Raises what ended the sending, if anything did."""
        if self._sending is None:
            raise RuntimeError("enter the sender with `async with` first")
        if self._sending.done():
            self._sending.result()

    async def _send_all(self) -> None:
        while True:
            while not self._held:
                await self._changed.next().wait()
            batch = self._next_batch()
            results = await self._store(batch)
            for record, result in zip(batch, results, strict=True):
                self._on_result(record, result)
                self._held.popleft()
                self._acknowledged_count += 1
            self._changed.notify()

    def _next_batch(self) -> list[record_pb2.Record]:
        """Returns the oldest records that are held: while a batch is under way the next one fills."""
        batch, size = [], 0
        for record in islice(self._held, self._max_batch_size):
            batch.append(record)
            size += record.ByteSize()
            if size >= MAX_BATCH_BYTES:
                break
        return batch

    async def _store(self, batch: Sequence[record_pb2.Record]) -> Sequence[record_batch_pb2.RecordResult]:
        """Returns one result a record, of records over the rate of their app the one that they get in the end.

        Raises ServiceError when trying again is of no use.
        """
        results: list[record_batch_pb2.RecordResult] = [*await self._send_once(batch)]
        while limited := [place for place, result in enumerate(results) if result.status == _RATE_LIMITED]:
            waits_s = (results[place].retry_delay.ToNanoseconds() / 1e9 for place in limited)
            await asyncio.sleep(max(FIRST_PAUSE_S, *waits_s))
            for place, result in zip(limited, await self._send_once([batch[at] for at in limited]), strict=True):
                results[place] = result
        return results

    async def _send_once(self, batch: Sequence[record_pb2.Record]) -> Sequence[record_batch_pb2.RecordResult]:
        """Returns one result a record, from the first call that succeeds."""
        request = record_batch_pb2.RecordBatchRequest(records=batch)
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                response = await self._stub.RecordBatch(request, timeout=_ATTEMPT_TIMEOUT_S)
            except ServiceError as error:
                if error.code in _FINAL:
                    raise
                await asyncio.sleep(max(error.retry_after_s or 0.0, pause_s * random.uniform(0.5, 1.0)))
                pause_s = min(pause_s * 2, MAX_PAUSE_S)
            else:
                results: Sequence[record_batch_pb2.RecordResult] = response.results
                return results
