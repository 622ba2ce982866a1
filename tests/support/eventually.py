"""Waiting for facts: a test never sleeps and hopes."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

PATIENCE_S = 60.0
"""Facts come within a second or two; on a machine that is busy with other things, later."""


async def eventually(fact: Callable[[], Awaitable[T]], *, within_s: float = PATIENCE_S, every_s: float = 0.02) -> T:
    """Returns what `fact` gives once that is true. Raises AssertionError, naming the last value, after `within_s`."""
    give_up = time.monotonic() + within_s
    while not (value := await fact()):
        _check(fact, value, give_up, within_s)
        await asyncio.sleep(every_s)  # whatever a test waits for here sets no event
    return value


async def until(fact: Callable[[], T], *, within_s: float = PATIENCE_S, every_s: float = 0.02) -> T:
    """Returns what `fact` gives once that is true, while this event loop goes on. Raises as `eventually` does."""

    async def ask() -> T:
        return fact()

    return await eventually(ask, within_s=within_s, every_s=every_s)


def eventually_blocking(fact: Callable[[], T], *, within_s: float = PATIENCE_S, every_s: float = 0.05) -> T:
    """Returns what `fact` gives once that is true, for tests without an event loop. Raises as `eventually` does."""
    give_up = time.monotonic() + within_s
    while not (value := fact()):
        _check(fact, value, give_up, within_s)
        time.sleep(every_s)
    return value


def _check(fact: Callable[[], object], value: object, give_up: float, within_s: float) -> None:
    if time.monotonic() > give_up:
        raise AssertionError(f"{fact.__qualname__} did not come true within {within_s:g} s; it is {value!r}")
