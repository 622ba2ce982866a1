"""The edge of a background loop."""

import asyncio

import pytest
from prometheus_client import REGISTRY

from libs import worker
from libs.worker import MAX_FAILURES, keep_running, stuck_workers
from tests.support.eventually import eventually


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


def _is_stuck(name: str) -> float | None:
    return REGISTRY.get_sample_value("worker_stuck", {"worker": name})


async def test_a_loop_that_fails_again_and_again_is_stuck_until_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "WELL_AFTER_S", 0.05)
    monkeypatch.setattr(worker, "_MAX_PAUSE_S", 0.01)
    is_healed = False

    async def body() -> None:
        await asyncio.sleep(0)
        if not is_healed:
            raise ValueError("no secret")
        await asyncio.Event().wait()

    async def other() -> None:
        await asyncio.Event().wait()

    tasks = [asyncio.ensure_future(keep_running(*each)) for each in (("ill", body), ("other", other))]
    await eventually(lambda: _of(_is_stuck("ill") == 1.0))
    (stuck,) = stuck_workers()
    assert (stuck["worker"], stuck["error"]) == ("ill", "ValueError")
    assert stuck["failures"] >= MAX_FAILURES
    assert not tasks[1].done()
    is_healed = True
    await eventually(lambda: _of(_is_stuck("ill") == 0.0))
    assert stuck_workers() == []
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _of(fact: bool) -> bool:
    return fact


async def test_a_loop_that_ends_well_now_and_then_is_not_stuck() -> None:
    runs = 0
    done = asyncio.Event()

    async def body() -> None:
        nonlocal runs
        runs += 1
        if runs > 3 * MAX_FAILURES:
            done.set()
            await asyncio.Event().wait()
        if runs % 2:
            raise ValueError

    task = asyncio.ensure_future(keep_running("seldom", body))
    await done.wait()
    assert stuck_workers() == []
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
