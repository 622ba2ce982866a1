"""The edge of a background loop."""

import asyncio

import pytest

from libs.worker import keep_running


async def test_a_failure_begins_anew() -> None:
    runs = 0
    done = asyncio.Event()

    async def body() -> None:
        nonlocal runs
        runs += 1
        if runs < 3:
            raise ConnectionRefusedError
        done.set()
        await asyncio.Event().wait()

    task = asyncio.ensure_future(keep_running("test", body))
    await done.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert runs == 3


async def test_a_stop_is_a_stop_whatever_fails_on_the_way_out() -> None:
    started = asyncio.Event()

    async def body() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            raise ConnectionResetError  # as a connection that is closed while the work is cancelled

    task = asyncio.ensure_future(keep_running("test", body))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
