"""Group commit: calls hand in their entries, and one loop writes all that wait in one transaction."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

import structlog
from prometheus_client import Counter, Gauge, Histogram

from libs.errors import ResourceExhausted
from libs.parts import PART_BYTES
from services.ingest.model import Entry, Outcome

MAX_WAITING = 20_000
_MAX_WAITING_BYTES = 64 * 1024 * 1024

_waiting = Gauge("ingest_waiting_records", "Records that wait to be written.")
_group_records = Histogram("ingest_group_records", "Records of one commit.", buckets=(1, 10, 50, 100, 500, 1000))
_group_seconds = Histogram("ingest_group_seconds", "Time to write and commit a group.")
_failures = Counter("ingest_group_failures_total", "Groups that could not be written.")
_log = structlog.get_logger()

Outcomes = asyncio.Future[list[Outcome]]


class _Call(NamedTuple):
    """The entries of one call, the bytes of their records, and what becomes of them."""

    entries: Sequence[Entry]
    size: int
    outcomes: Outcomes


class Writer:
    """The writer of entries, in the order in which they are handed in.

    `write` makes entries durable and returns an outcome each. `wrote` is called after each group. What either raises,
    the callers of that group get. At most `max_waiting` records wait, and no more once they have `max_waiting_bytes`.
    Up to `group_size`, and about PART_BYTES, go into one transaction; while it is written, the calls of the next are
    checked.
    """

    def __init__(
        self,
        write: Callable[[Sequence[Entry]], Awaitable[list[Outcome]]],
        wrote: Callable[[], None],
        *,
        group_size: int = 1_000,
        max_waiting: int = MAX_WAITING,
        max_waiting_bytes: int = _MAX_WAITING_BYTES,
    ) -> None:
        self._write, self._wrote = write, wrote
        self._group_size, self._max_waiting, self._max_waiting_bytes = group_size, max_waiting, max_waiting_bytes
        self._calls: deque[_Call] = deque()
        self._waiting_records = self._waiting_bytes = 0
        self._handed_in = asyncio.Event()
        self._room = asyncio.Event()

    def submit(self, entries: Sequence[Entry]) -> Outcomes:
        """Hands in entries, and returns their outcomes to come. Raises ResourceExhausted `OVERLOADED` when full."""
        if not self._has_room(len(entries)):
            raise ResourceExhausted("OVERLOADED", "too many records wait to be written", retry_after_s=1.0)
        call = _Call(entries, sum(len(entry.record) for entry in entries), asyncio.get_running_loop().create_future())
        self._calls.append(call)
        self._count(len(entries), call.size)
        self._handed_in.set()
        return call.outcomes

    async def room(self, records: int) -> None:
        """Waits until so many records can be handed in; do so before the next await."""
        while not self._has_room(records):
            self._room.clear()
            await self._room.wait()

    async def run(self) -> None:
        """Writes until cancelled; begun anew, it goes on with what waits. No outcome by then, no promise."""
        while True:
            while self._calls:
                await self._write_group(self._take())
            self._handed_in.clear()
            await self._handed_in.wait()

    def _has_room(self, records: int) -> bool:
        return self._waiting_records == 0 or (
            self._waiting_records + records <= self._max_waiting and self._waiting_bytes < self._max_waiting_bytes
        )

    def _count(self, records: int, size: int) -> None:
        self._waiting_records += records
        self._waiting_bytes += size
        _waiting.set(self._waiting_records)

    def _take(self) -> list["_Call"]:
        group = [self._calls.popleft()]
        records, size = len(group[0].entries), group[0].size
        while self._calls:
            records, size = records + len(self._calls[0].entries), size + self._calls[0].size
            if records > self._group_size or size > PART_BYTES:
                break
            group.append(self._calls.popleft())
        return group

    async def _write_group(self, group: list["_Call"]) -> None:
        entries = [entry for call in group for entry in call.entries]
        try:
            with _group_seconds.time():
                written = await self._write(entries)
            self._wrote()
        except Exception as error:
            # The edge of a worker: the callers are told, the loop goes on.
            _failures.inc()
            _log.warning("group.failed", records=len(entries), exc_info=error)
            for call in group:
                if not call.outcomes.cancelled():
                    call.outcomes.set_exception(error)
        else:
            _group_records.observe(len(entries))
            start = 0
            for call in group:
                end = start + len(call.entries)
                if not call.outcomes.cancelled():
                    call.outcomes.set_result(written[start:end])
                start = end
        finally:
            self._count(-len(entries), -sum(call.size for call in group))
            self._room.set()
