"""Registrations: event names without a definition are registered with tracker, never at the cost of records."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Set

from prometheus_client import Counter

MAX_NAMES = 1_000
"""Names of one app that are registered, and names of all apps that are remembered at a time."""
FORGET_S = 60.0
_REGISTER_INTERVAL_S = 1.0

_dropped = Counter(
    "ingest_events_unregistered_total", "Events whose name is not registered, because of too many names."
)


class Registrations:
    """The names of accepted events: taken at once, and those of each app registered in one call a second.

    A name is handed over once, whether that goes well or not, and forgotten within `FORGET_S`: what still has no
    definition when it is seen again is new again. So nothing here grows, and nothing must be kept.
    """

    def __init__(
        self, register: Callable[[str, Collection[str]], Awaitable[object]], now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._register, self._now_s = register, now_s
        self._seen: set[tuple[str, str]] = set()
        self._waiting: defaultdict[str, set[str]] = defaultdict(set)
        self._forget_at_s = now_s() + FORGET_S

    def add(self, app_id: str, event_name: str, defined: Set[str]) -> None:
        """Notes an event of an app that has these defined, archived ones too."""
        if event_name in defined or (app_id, event_name) in self._seen:
            return
        # Tracker takes only what people can read, and refuses the whole call for one other name.
        if not event_name.isprintable():
            return
        waiting = self._waiting[app_id]
        if len(self._seen) >= MAX_NAMES or len(defined) + len(waiting) >= MAX_NAMES:
            _dropped.inc()
            return
        self._seen.add((app_id, event_name))
        waiting.add(event_name)

    async def run(self) -> None:
        """Hands over until cancelled. Raises what keeps it from that; begun anew, it goes on with the next app."""
        while True:
            await asyncio.sleep(_REGISTER_INTERVAL_S)
            await self.hand_over()

    async def hand_over(self) -> None:
        """Registers what is waiting, once."""
        if self._now_s() >= self._forget_at_s:
            self._seen = {(app_id, name) for app_id, names in self._waiting.items() for name in names}
            self._forget_at_s = self._now_s() + FORGET_S
        for app_id in list(self._waiting):
            if names := self._waiting.pop(app_id):
                await self._register(app_id, names)
