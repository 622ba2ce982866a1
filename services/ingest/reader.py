"""Following the log on behalf of one ReadLog call."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence

from libs.domain.lanes import LANES
from services.ingest.model import LogPage
from services.ingest.storage.log import Store

PAUSE_S = 0.02
"""Between two looks of a reader: what comes meanwhile fills its next page."""
BUSY_PAUSE_S = 0.1
BUSY_ROWS = 50
"""After a page this full the pause is the longer one: the fuller a page, the less each of its records costs."""
POLL_S = 0.1
"""How long what another process wrote may go unseen."""
SILENCE_S = 1.0
"""How long a reader hears nothing when nothing comes."""


class Growth:
    """Tells readers in this process that the log has grown."""

    def __init__(self) -> None:
        self._next = asyncio.Event()

    def announce(self) -> None:
        """The log has grown."""
        self._next.set()
        self._next = asyncio.Event()

    def next(self) -> asyncio.Event:
        """Set when the log grows after this call."""
        return self._next


async def follow(
    store: Store,
    growth: Growth,
    start: Mapping[int, int],
    *,
    max_entries: int,
    engagements: bool | None,
    app_lanes: Sequence[int] | None,
) -> AsyncIterator[LogPage]:
    """Pages of the log from these positions (by lane) on, for ever; one at least every `SILENCE_S`, an empty one if
    need be. A page has no more than `max_entries` or 64 rows a lane, whichever is more, so callers cut it up.
    """
    positions = await store.first_kept(start)
    span = max(max_entries // len(positions), LANES)
    sent = -SILENCE_S
    while True:
        grown = growth.next()
        looked = time.monotonic()
        page = await store.read_page(positions, span=span, engagements=engagements, app_lanes=app_lanes)
        moved, positions = page.next_positions != positions, page.next_positions
        if page.rows or moved or looked - sent >= SILENCE_S:
            sent = looked
            yield page
        if not page.caught_up:
            continue
        pause_s = BUSY_PAUSE_S if len(page.rows) >= BUSY_ROWS else PAUSE_S
        await asyncio.sleep(looked + pause_s - time.monotonic())
        await _set_within(grown, looked + POLL_S - time.monotonic())


async def _set_within(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
