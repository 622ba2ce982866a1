"""The edge of a background loop: a failure is logged, counted and tried again, ever more slowly.

A loop that fails again and again is stuck: a metric, an error in the log and the health of the service say so. Nothing
else is done about it, as a restart does not help and the other loops go on.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import structlog
from prometheus_client import Counter, Gauge

from libs.db import DATABASE_AWAY
from libs.errors import ResourceExhausted, Unavailable

_failures = Counter("worker_failures_total", "Times a background loop failed and began anew.", ["worker"])
_stuck = Gauge("worker_stuck", "1: a background loop fails again and again, and does nothing.", ["worker"])
_log = structlog.get_logger()

_FIRST_PAUSE_S = 0.05
_MAX_PAUSE_S = 5.0
MAX_FAILURES = 5
"""A loop that failed so often in a row is stuck."""
WELL_AFTER_S = 10.0
"""A loop that has gone on for so long, and for three times as long as before it failed last, is stuck no more."""


@dataclass(slots=True, kw_only=True)
class _Failing:
    """A loop that has failed: how often in a row, since when, and by what. The newest of several of one name counts."""

    since: float
    count: int = 0
    error: str = ""
    ran_s: float = 0.0

    @property
    def is_stuck(self) -> bool:
        return self.count >= MAX_FAILURES


_failing: dict[str, _Failing] = {}


def stuck_workers() -> list[dict[str, Any]]:
    """Returns the loops of this process that are stuck: which, since when, how often they failed, and by what."""
    return [
        {"worker": name, "since_s": round(each.since), "failures": each.count, "error": each.error}
        for name, each in sorted(_failing.items())
        if each.is_stuck
    ]


async def keep_running(name: str, body: Callable[[], Awaitable[None]]) -> None:
    """Runs `body` again and again until cancelled. Pauses 50 ms to 5 s (doubling, jittered) after a failure.

    `body` holds nothing that its own next run cannot rebuild from the database; returning normally begins it anew
    at once.
    """
    pause_s = _FIRST_PAUSE_S
    try:
        while True:
            began = time.monotonic()
            try:
                with _becoming_well(name):
                    await body()
                _be_well(name)
                pause_s = _FIRST_PAUSE_S
                continue
            except Exception as error:
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    # What failed on the way out has taken the place of the cancellation: a stop is a stop all the same.
                    raise asyncio.CancelledError from error
                if name not in _failing:
                    pause_s = _FIRST_PAUSE_S
                _note(name, error, time.monotonic() - began, is_first=pause_s == _FIRST_PAUSE_S)
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(pause_s * 2, _MAX_PAUSE_S)
    finally:
        _be_well(name)  # who is stopped is not stuck


@contextlib.contextmanager
def _becoming_well(name: str) -> Iterator[None]:
    """Takes a loop for well once its block has gone on for long enough."""
    failing = _failing.get(name)
    if failing is None:
        yield
        return
    after_s = max(WELL_AFTER_S, 3 * failing.ran_s)
    timer = asyncio.get_running_loop().call_later(after_s, _be_well, name)
    try:
        yield
    finally:
        timer.cancel()


def _note(name: str, error: Exception, ran_s: float, *, is_first: bool) -> None:
    """Notes that a loop has failed."""
    _failures.labels(name).inc()
    away = _away(error)
    failing = _failing.setdefault(name, _Failing(since=time.time()))
    failing.count += 1
    failing.error, failing.ran_s = away or type(error).__name__, ran_s
    if away:
        # A neighbour or the database is away: that needs a line, not a traceback, and once is no trouble.
        getattr(_log, "info" if is_first else "warning")("worker.waiting", worker=name, error=away)
    else:
        _log.warning("worker.failed", worker=name, exc_info=error)
    if failing.count == MAX_FAILURES:
        _stuck.labels(name).set(1)
        _log.error("worker.stuck", worker=name, failures=failing.count, error=failing.error)


def _be_well(name: str) -> None:
    failing = _failing.pop(name, None)
    if failing is not None and failing.is_stuck:
        _stuck.labels(name).set(0)
        _log.info("worker.well", worker=name, failures=failing.count)


def _away(error: Exception) -> str:
    """Returns what is away just now, as a word; "" when something else failed."""
    if isinstance(error, grpc.aio.AioRpcError):
        return error.code().name
    if isinstance(error, Unavailable | ResourceExhausted):
        return error.reason
    return type(error).__name__ if isinstance(error, DATABASE_AWAY) else ""
