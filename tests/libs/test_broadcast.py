"""Broadcast: nothing that happens after a waiter took its event is missed."""

import asyncio

from libs.broadcast import Broadcast, within


async def test_every_waiter_wakes() -> None:
    broadcast = Broadcast()
    waiting = [asyncio.create_task(within(broadcast.next(), 30)) for _ in range(3)]
    await asyncio.sleep(0)
    broadcast.notify()
    assert await asyncio.gather(*waiting) == [True, True, True]


async def test_a_happening_between_look_and_wait_is_not_missed() -> None:
    broadcast = Broadcast()
    happened = broadcast.next()
    broadcast.notify()
    assert await within(happened, 30)


async def test_an_old_happening_wakes_nobody() -> None:
    broadcast = Broadcast()
    broadcast.notify()
    assert not await within(broadcast.next(), 0.01)
