"""The edge of a background loop: a failure is logged, counted and tried again, ever more slowly."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable

import grpc
import structlog
from prometheus_client import Counter

from libs.db import DATABASE_AWAY
from libs.errors import ResourceExhausted, Unavailable

_failures = Counter("worker_failures_total", "Times a background loop failed and began anew.", ["worker"])
_log = structlog.get_logger()

_FIRST_PAUSE_S = 0.05
_MAX_PAUSE_S = 5.0


async def keep_running(name: str, body: Callable[[], Awaitable[None]]) -> None:
    """Runs `body` again and again until cancelled. Pauses 50 ms to 5 s (doubling, jittered) after a failure.

    `body` holds nothing that its own next run cannot rebuild from the database; returning normally begins it anew
    at once.
    """
    pause_s = _FIRST_PAUSE_S
    while True:
        began = time.monotonic()
        try:
            await body()
            pause_s = _FIRST_PAUSE_S
            continue
        except Exception as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                # What failed on the way out has taken the place of the cancellation: a stop is a stop all the same.
                raise asyncio.CancelledError from error
            _failures.labels(name).inc()
            if away := _away(error):
                # A neighbour or the database is away: that needs a line, not a traceback, and once is no trouble.
                level = "info" if pause_s == _FIRST_PAUSE_S else "warning"
                getattr(_log, level)("worker.waiting", worker=name, error=away)
            else:
                _log.warning("worker.failed", worker=name, exc_info=error)
        if time.monotonic() - began > 2 * _MAX_PAUSE_S:
            pause_s = _FIRST_PAUSE_S
        await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
        pause_s = min(pause_s * 2, _MAX_PAUSE_S)


def _away(error: Exception) -> str:
    """Returns what is away just now, as a word; "" when something else failed."""
    if isinstance(error, grpc.aio.AioRpcError):
        return error.code().name
    if isinstance(error, Unavailable | ResourceExhausted):
        return error.reason
    return type(error).__name__ if isinstance(error, DATABASE_AWAY) else ""
