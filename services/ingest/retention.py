"""Deleting what is old, in small deletes that nobody has to wait for."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

from libs.domain.lanes import LANES
from libs.time import DAY_US, now_us
from services.ingest.model import REPEAT_WINDOW_US
from services.ingest.storage.log import LogStore
from services.ingest.storage.rejected import RejectedStore
from services.ingest.storage.warned import WarnedStore

_REJECTED_US = 7 * DAY_US
_WARNED_KEPT = 1_000
"""Records of an app whose warnings are kept."""
_DELETE_ROWS = 2_000
_DELETE_INTERVAL_S = 0.02
_PURGE_INTERVAL_S = 600.0


async def purge(log: LogStore, rejected: RejectedStore, warned: WarnedStore, *, log_days: int) -> None:
    """Deletes once what is past its time: log entries after `log_days`, all else after a week or sooner."""
    now = now_us()
    for lane in range(LANES):
        await _until_done(partial(log.purge, lane, before_us=now - log_days * DAY_US, size=_DELETE_ROWS))
    await _until_done(partial(log.purge_keys, before_us=now - REPEAT_WINDOW_US, size=_DELETE_ROWS))
    await _until_done(partial(rejected.purge, before_us=now - _REJECTED_US, size=_DELETE_ROWS))
    await _until_done(partial(warned.purge, before_us=now - _REJECTED_US, kept=_WARNED_KEPT, size=_DELETE_ROWS))


async def keep_purged(log: LogStore, rejected: RejectedStore, warned: WarnedStore, *, log_days: int) -> None:
    """Purges every ten minutes, until cancelled."""
    while True:
        await purge(log, rejected, warned, log_days=log_days)
        await asyncio.sleep(_PURGE_INTERVAL_S)


async def _until_done(delete: Callable[[], Awaitable[int]]) -> None:
    deleted = _DELETE_ROWS
    while deleted == _DELETE_ROWS:
        deleted = await delete()
        await asyncio.sleep(_DELETE_INTERVAL_S)
