"""The newest revision as far as this process knows, and waiting for a newer one."""

import asyncio
from collections.abc import Awaitable, Callable

from libs.worker import keep_running


class Revisions:
    """Wakes those who wait for a change: at once for changes of this process, by one shared poll for those of others.

    `read` answers the newest committed revision.
    """

    def __init__(self, read: Callable[[], Awaitable[int]], *, poll_s: float = 0.25) -> None:
        self._read, self._poll_s = read, poll_s
        self._newest = 0
        self._moved = asyncio.Event()

    def reached(self, revision: int) -> None:
        """Note that this revision is committed."""
        if revision > self._newest:
            self._newest = revision
            moved, self._moved = self._moved, asyncio.Event()
            moved.set()

    async def beyond(self, revision: int, *, within_s: float) -> None:
        """Return once a later revision is committed, or `within_s` later."""
        try:
            async with asyncio.timeout(within_s):
                while self._newest <= revision:
                    await self._moved.wait()
        except TimeoutError:
            return

    async def run(self) -> None:
        """Poll until cancelled."""
        await keep_running("revisions", self._poll)

    async def _poll(self) -> None:
        self.reached(await self._read())
        await asyncio.sleep(self._poll_s)
