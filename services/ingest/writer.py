"""Group commit: calls hand in their entries, one loop writes everything that waits in one transaction."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

import structlog
from prometheus_client import Counter, Gauge, Histogram

from libs.errors import ResourceExhausted
from services.ingest.model import Entry, Outcome

_waiting = Gauge("ingest_waiting_records", "Records that wait to be written.")
_group_records = Histogram("ingest_group_records", "Records of one commit.", buckets=(1, 10, 50, 100, 500, 1000))
_group_seconds = Histogram("ingest_group_seconds", "Time to write and commit a group.")
_failures = Counter("ingest_group_failures_total", "Groups that could not be written.")
_log = structlog.get_logger()

Answer = asyncio.Future[list[Outcome]]


class Writer:
    """Takes entries in the order they are handed in and writes them in that order.

    `write` makes entries durable and answers an outcome each; what it raises, the callers of that group get. `wrote` is
    called after each group. At most `most_waiting` records wait. Up to `group_size` go into one transaction; while
    it is written, the calls of the next are checked.
    """

    def __init__(
        self,
        write: Callable[[Sequence[Entry]], Awaitable[list[Outcome]]],
        wrote: Callable[[], None],
        *,
        group_size: int = 1_000,
        most_waiting: int = 20_000,
    ) -> None:
        self._write, self._wrote = write, wrote
        self._group_size, self._most_waiting = group_size, most_waiting
        self._calls: deque[tuple[Sequence[Entry], Answer]] = deque()
        self._waiting_records = 0
        self._changed = asyncio.Event()
        self._room = asyncio.Event()

    def submit(self, entries: Sequence[Entry]) -> Answer:
        """Hand in entries; the answer comes when they are durable. Raises ResourceExhausted `OVERLOADED` when full."""
        if not self._has_room(len(entries)):
            raise ResourceExhausted("OVERLOADED", "too many records wait to be written", retry_after_s=1.0)
        answer: Answer = asyncio.get_running_loop().create_future()
        self._calls.append((entries, answer))
        self._count(len(entries))
        self._changed.set()
        return answer

    async def room(self, records: int) -> None:
        """Wait until so many records can be handed in; do so before the next await."""
        while not self._has_room(records):
            self._room.clear()
            await self._room.wait()

    async def run(self) -> None:
        """Write until cancelled. What has no answer by then is not promised to anyone."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            while self._calls:
                await self._write_group(self._take())

    def _has_room(self, records: int) -> bool:
        return self._waiting_records == 0 or self._waiting_records + records <= self._most_waiting

    def _count(self, records: int) -> None:
        self._waiting_records += records
        _waiting.set(self._waiting_records)

    def _take(self) -> list[tuple[Sequence[Entry], Answer]]:
        group = [self._calls.popleft()]
        size = len(group[0][0])
        while self._calls and size + len(self._calls[0][0]) <= self._group_size:
            group.append(self._calls.popleft())
            size += len(group[-1][0])
        return group

    async def _write_group(self, group: list[tuple[Sequence[Entry], Answer]]) -> None:
        entries = [entry for call, _ in group for entry in call]
        try:
            with _group_seconds.time():
                outcomes = await self._write(entries)
        except Exception as error:
            # The edge of a worker: the callers are told, the loop goes on.
            _failures.inc()
            _log.warning("group.failed", records=len(entries), exc_info=error)
            for _, answer in group:
                if not answer.cancelled():
                    answer.set_exception(error)
        else:
            self._wrote()
            _group_records.observe(len(entries))
            start = 0
            for call, answer in group:
                if not answer.cancelled():
                    answer.set_result(outcomes[start : start + len(call)])
                start += len(call)
        finally:
            self._count(-len(entries))
            self._room.set()
