"""Group commit: every caller gets its outcomes or its error, whatever fails."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import pytest

from libs.errors import ResourceExhausted, Unavailable
from libs.parts import PART_BYTES
from libs.worker import keep_running
from services.ingest.model import Entry, Outcome
from services.ingest.writer import Writer


def entries(*names: str) -> list[Entry]:
    return [Entry(name.encode(), name, True, 0, 0, 0, 0, False, b"") for name in names]


async def store(written: Sequence[Entry]) -> list[Outcome]:
    return [Outcome(False, entry.record_id) for entry in written]


@asynccontextmanager
async def running(writer: Writer) -> AsyncIterator[None]:
    """Runs it as `libs.server` does: what ends it with an error begins it anew."""
    task = asyncio.create_task(keep_running("writer", writer.run))
    yield
    task.cancel()


def fail_once(*, at: str) -> tuple[Callable[[Sequence[Entry]], Awaitable[list[Outcome]]], Callable[[], None]]:
    """Returns the two functions of a writer, one of which raises the first time."""
    left = 1

    def fail(place: str) -> None:
        nonlocal left
        if place == at and left:
            left -= 1
            raise Unavailable("LOG_UNAVAILABLE", "away")

    async def write(written: Sequence[Entry]) -> list[Outcome]:
        fail("write")
        return await store(written)

    return write, lambda: fail("wrote")


@pytest.mark.parametrize("at", ["write", "wrote"])
async def test_the_callers_of_a_failed_group_get_its_error_and_the_next_group_is_written(at: str) -> None:
    writer = Writer(*fail_once(at=at), group_size=2)
    failed = [writer.submit(entries("a")), writer.submit(entries("b"))]
    next_group = writer.submit(entries("c", "d"))
    async with running(writer), asyncio.timeout(10):
        errors = await asyncio.gather(*failed, return_exceptions=True)
        assert [type(error) for error in errors] == [Unavailable, Unavailable]
        assert [outcome.record_id for outcome in await next_group] == ["c", "d"]
        assert [outcome.record_id for outcome in await writer.submit(entries("e"))] == ["e"]


async def test_begun_anew_it_goes_on_with_what_waits() -> None:
    began = asyncio.Event()

    async def write(written: Sequence[Entry]) -> list[Outcome]:
        if not began.is_set():
            began.set()
            await asyncio.Event().wait()
        return await store(written)

    writer = Writer(write, lambda: None, group_size=1)
    _ = writer.submit(entries("a"))
    waiting = writer.submit(entries("b"))
    first = asyncio.create_task(writer.run())
    await began.wait()
    first.cancel()
    async with running(writer), asyncio.timeout(10):
        assert [outcome.record_id for outcome in await waiting] == ["b"]


async def test_a_caller_that_has_gone_away_harms_no_other() -> None:
    writer = Writer(store, lambda: None)
    gone, other = writer.submit(entries("a")), writer.submit(entries("b"))
    gone.cancel()
    async with running(writer), asyncio.timeout(10):
        assert [outcome.record_id for outcome in await other] == ["b"]


async def test_room_comes_back_after_a_failed_group() -> None:
    writer = Writer(*fail_once(at="write"), max_waiting=2)
    failed = writer.submit(entries("a", "b"))
    async with running(writer), asyncio.timeout(10):
        with pytest.raises(Unavailable):
            await failed
        await writer.room(2)
        assert len(await writer.submit(entries("c", "d"))) == 2


async def test_what_waits_is_bounded_by_bytes_too() -> None:
    groups: list[int] = []

    async def write(written: Sequence[Entry]) -> list[Outcome]:
        groups.append(len(written))
        return await store(written)

    large = [entries(name)[0]._replace(record=bytes(PART_BYTES // 2)) for name in "abcd"]
    writer = Writer(write, lambda: None, max_waiting_bytes=2 * PART_BYTES)
    waiting = [writer.submit([entry]) for entry in large]
    with pytest.raises(ResourceExhausted):
        _ = writer.submit(entries("e"))
    room = asyncio.create_task(writer.room(1))
    async with running(writer), asyncio.timeout(10):
        await asyncio.gather(*waiting)
        await room
        await writer.submit(entries("e"))
    assert groups == [2, 2, 1]
