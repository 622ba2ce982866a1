"""Many requests in few calls: what arrives while calls are under way goes out together with the next."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

from libs.errors import ResourceExhausted, ServiceError
from reengage.ingest.v1 import record_batch_pb2

Outcome: TypeAlias = record_batch_pb2.RecordResult | ServiceError
"""The outcome of a record: the result from ingest, or why there is none."""
Send: TypeAlias = Callable[[Sequence[bytes], str], Awaitable[Sequence[Outcome]]]
"""Sends serialised records under a request id; returns one outcome a record and never raises."""
_Waiting: TypeAlias = "tuple[bytes, str, asyncio.Future[Outcome]]"


class Batches:
    """A collector of records into calls of `send`: at most `max_records` and about `max_bytes` each, `calls` at once.

    A call costs as much as a hundred records, so while one is under way the next begins only once `worth_a_call`
    records wait. At most `max_waiting` records, and about `max_waiting_bytes` of them, wait for their call; one more
    raises ResourceExhausted `OVERLOADED`.
    """

    def __init__(
        self,
        send: Send,
        *,
        max_records: int = 500,
        max_bytes: int = 4 * 1024 * 1024,
        calls: int = 2,
        worth_a_call: int = 100,
        max_waiting: int = 10_000,
        max_waiting_bytes: int = 64 * 1024 * 1024,
    ) -> None:
        self._send = send
        self._max_records, self._max_bytes = max_records, max_bytes
        self._max_waiting, self._max_waiting_bytes = max_waiting, max_waiting_bytes
        self._waiting_bytes = 0
        self._free = self._calls = calls
        self._worth_a_call = worth_a_call
        self._waiting: deque[_Waiting] = deque()
        self._running: set[asyncio.Task[None]] = set()
        self._start_is_due = False

    def add(self, record: bytes, request_id: str) -> asyncio.Future[Outcome]:
        """Queues a record; the future tells what became of it. A call goes under the request id of its first record."""
        if len(self._waiting) >= self._max_waiting or self._waiting_bytes >= self._max_waiting_bytes:
            raise ResourceExhausted("OVERLOADED", "too many records are waiting to be stored", retry_after_s=1.0)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Outcome] = loop.create_future()
        self._waiting.append((record, request_id, future))
        self._waiting_bytes += len(record)
        if not self._start_is_due and self._may_start():
            # Not at once: requests that were read in this turn of the loop come along.
            self._start_is_due = True
            loop.call_soon(self._start)
        return future

    async def close(self) -> None:
        """Waits until everything queued has its outcome. Add nothing any more."""
        while self._running or self._waiting:
            if self._running:
                await asyncio.wait(self._running)
            else:
                await asyncio.sleep(0)

    def _start(self) -> None:
        self._start_is_due = False
        while self._may_start():
            self._free -= 1
            task = asyncio.get_running_loop().create_task(self._call(self._take()))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    def _may_start(self) -> bool:
        if self._free == self._calls:
            return bool(self._waiting)
        return self._free > 0 and len(self._waiting) >= self._worth_a_call

    def _take(self) -> list[_Waiting]:
        taken: list[_Waiting] = []
        size = 0
        while self._waiting and len(taken) < self._max_records and size < self._max_bytes:
            taken.append(self._waiting.popleft())
            size += len(taken[-1][0])
        self._waiting_bytes -= size
        return taken

    async def _call(self, batch: list[_Waiting]) -> None:
        outcomes = await self._send([record for record, _, _ in batch], batch[0][1])
        for (_, _, future), outcome in zip(batch, outcomes, strict=True):
            if not future.done():  # its request was given up
                future.set_result(outcome)
        self._free += 1
        self._start()
