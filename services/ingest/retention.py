"""What is old goes, in small deletes that nobody has to wait for."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial

from libs.domain.lanes import LANES
from services.ingest.model import DAY_S, REPEAT_WINDOW_S
from services.ingest.storage.log import Store

REJECTED_S = 7 * DAY_S
ROWS = 2_000
"""Of one delete."""
BETWEEN_DELETES_S = 0.02
BETWEEN_ROUNDS_S = 600.0


async def purge(store: Store, *, log_days: int, now_s: Callable[[], float] = time.time) -> None:
    """Delete what is past its time, once: log entries after `log_days`, refusals and keys of repeats after a week."""
    now = int(now_s())
    log_before_us = (now - log_days * DAY_S) * 1_000_000
    for lane in range(LANES):
        await _until_done(partial(store.purge_log, lane, before_us=log_before_us, size=ROWS))
    await _until_done(partial(store.purge_dedupe, before_s=now - REPEAT_WINDOW_S, size=ROWS))
    await _until_done(partial(store.purge_rejected, before_us=(now - REJECTED_S) * 1_000_000, size=ROWS))


async def keep_purged(store: Store, *, log_days: int) -> None:
    """Purge every ten minutes, until cancelled."""
    while True:
        await purge(store, log_days=log_days)
        await asyncio.sleep(BETWEEN_ROUNDS_S)


async def _until_done(delete: Callable[[], Awaitable[int]]) -> None:
    deleted = ROWS
    while deleted == ROWS:
        deleted = await delete()
        await asyncio.sleep(BETWEEN_DELETES_S)
