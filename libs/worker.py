"""The edge of a background loop: what fails is logged, counted and tried again, ever more slowly."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable

import grpc
import structlog
from prometheus_client import Counter

from libs.db import DATABASE_AWAY

_failures = Counter("worker_failures_total", "Times a background loop failed and began anew.", ["worker"])
_log = structlog.get_logger()

_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 5.0


async def keep_running(name: str, body: Callable[[], Awaitable[None]]) -> None:
    """Run `body` again and again until cancelled. Pauses 50 ms to 5 s (doubling, jittered) after a failure.

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
            _failures.labels(name).inc()
            if isinstance(error, (grpc.aio.AioRpcError, *DATABASE_AWAY)):
                # A neighbour or the database is away: that needs a line, not a traceback.
                code = error.code().name if isinstance(error, grpc.aio.AioRpcError) else type(error).__name__
                _log.warning("worker.waiting", worker=name, error=code)
            else:
                _log.warning("worker.failed", worker=name, exc_info=error)
        if time.monotonic() - began > 2 * _LONGEST_PAUSE_S:
            pause_s = _FIRST_PAUSE_S
        await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
        pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
