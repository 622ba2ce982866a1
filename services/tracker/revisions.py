"""The newest revision that this process knows, and waiting for a newer one."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from libs.broadcast import Broadcast
from libs.worker import keep_running


class Revisions:
    """The newest revision, for those who wait: told at once in this process, by one shared poll from others.

    `read` returns the newest committed revision.
    """

    def __init__(self, read: Callable[[], Awaitable[int]], *, poll_s: float = 0.25) -> None:
        self._read, self._poll_s = read, poll_s
        self._newest = 0
        self._moved = Broadcast()

    def reached(self, revision: int) -> None:
        """Notes that this revision is committed, and wakes those who wait for it."""
        if revision > self._newest:
            self._newest = revision
            self._moved.notify()

    async def beyond(self, revision: int, *, within_s: float) -> None:
        """Returns once a later revision is committed, or `within_s` later."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while self._newest <= revision:
                    await self._moved.next().wait()

    async def run(self) -> None:
        """Polls until cancelled."""
        await keep_running("revisions", self._poll)

    async def _poll(self) -> None:
        self.reached(await self._read())
        await asyncio.sleep(self._poll_s)
