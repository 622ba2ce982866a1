"""Following the log on behalf of one ReadLog call."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence

from libs.broadcast import Broadcast, within
from libs.domain.lanes import LANES
from services.ingest.model import LogPage
from services.ingest.storage.log import LogStore

_PAUSE_S = 0.02
"""The time between two looks of a reader: what comes meanwhile fills its next page."""
_BUSY_PAUSE_S = 0.1
_BUSY_ROWS = 50
"""After a page this full the pause is the longer one: the fuller a page, the less each of its records costs."""
_POLL_INTERVAL_S = 0.1
"""The time that records of another process may go unseen."""
_SILENCE_S = 1.0
"""The time that a reader hears nothing when nothing comes."""


async def follow(
    log: LogStore,
    grown: Broadcast,
    start: Mapping[int, int],
    *,
    max_entries: int,
    engagements: bool | None,
    app_lanes: Sequence[int] | None,
) -> AsyncIterator[LogPage]:
    """Yields pages of the log from these positions (by lane) on, for ever; one at least every second, if need be empty.

    `grown` tells of writes in this process. A page has at most the larger of `max_entries` rows and LANES rows a lane,
    so callers cut it up.
    """
    positions = await log.first_kept(start)
    span = max(max_entries // len(positions), LANES)
    sent = -_SILENCE_S
    while True:
        growth = grown.next()
        looked = time.monotonic()
        page = await log.read_page(positions, span=span, engagements=engagements, app_lanes=app_lanes)
        moved, positions = page.next_positions != positions, page.next_positions
        if page.rows or moved or looked - sent >= _SILENCE_S:
            sent = looked
            yield page
        if not page.caught_up:
            continue
        pause_s = _BUSY_PAUSE_S if len(page.rows) >= _BUSY_ROWS else _PAUSE_S
        await asyncio.sleep(looked + pause_s - time.monotonic())
        await within(growth, looked + _POLL_INTERVAL_S - time.monotonic())
