"""Telling every task of this process that waits for something that it happened."""

import asyncio


class Broadcast:
    """A happening that any number of tasks wait for, again and again.

    A waiter takes `next()` before it looks at what it waits for, so that nothing that happens in between is missed:

        while True:
            happened = broadcast.next()
            ...look...
            await within(happened, 0.5)
    """

    def __init__(self) -> None:
        self._next = asyncio.Event()

    def notify(self) -> None:
        """Wakes all who wait now."""
        self._next.set()
        self._next = asyncio.Event()

    def next(self) -> asyncio.Event:
        """Returns an event that the next `notify` sets."""
        return self._next


async def within(event: asyncio.Event, seconds: float) -> bool:
    """Waits for an event for at most so long; returns whether it is set."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return event.is_set()
    return True
