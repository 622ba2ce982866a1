"""Lets live work go first: other work takes the free time, and a twentieth of all time while live work is busy."""

import asyncio
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SLICE_S = 0.01
"""The work at one stretch, before others get a turn."""
_SHARE = 0.05
"""The share of the time for all guests together, while live work is busy. The database works for both, so it costs live
work about twice that."""
_IDLE = 0.1
"""Live work that takes less of the time than this is not busy."""
_REMEMBERED_S = 1.0
_MAX_WORKED_S = 0.25
"""A longer stretch was not all work: a part of it was waiting."""


class Pace:
    """The pace of a process: `live` goes around live work, `guest` around work that can wait."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._under_way = 0
        self._guests = 0
        self._busy_s, self._at = 0.0, clock()

    @contextmanager
    def live(self) -> Iterator[None]:
        """Measures the work in its block as live work."""
        began = self._clock()
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1
            now = self._clock()
            self._busy_s = self._recently_s(now) + now - began
            self._at = now

    @contextmanager
    def guest(self) -> Iterator["Guest"]:
        """Yields a guest for work that can wait; the work calls its `turn` often."""
        self._guests += 1
        try:
            yield Guest(self, self._clock)
        finally:
            self._guests -= 1

    def pause_s(self, worked_s: float) -> float:
        """Returns how long a guest rests after it worked so long: 0 while live work is idle."""
        if not self._under_way and self._recently_s(self._clock()) < _IDLE * _REMEMBERED_S:
            return 0.0
        return worked_s * (self._guests / _SHARE - 1)

    def _recently_s(self, now: float) -> float:
        """Returns the seconds of live work, older ones counted less: for steady work its share of a second."""
        return self._busy_s * math.exp((self._at - now) / _REMEMBERED_S)


class Guest:
    """Work that can wait."""

    def __init__(self, pace: Pace, clock: Callable[[], float]) -> None:
        self._pace, self._clock = pace, clock
        self._began = clock()

    async def turn(self) -> None:
        """Lets others go first, after a slice of work."""
        worked_s = self._clock() - self._began
        if worked_s >= SLICE_S:
            await asyncio.sleep(self._pace.pause_s(min(worked_s, _MAX_WORKED_S)))
            self._began = self._clock()
