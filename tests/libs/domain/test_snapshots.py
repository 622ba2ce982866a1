"""Following settings that are slow to build from."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from libs.domain.snapshots import Follower, Resources
from reengage.tracker.v1.app_pb2 import App
from reengage.tracker.v1.snapshot_pb2 import Resource, WatchSnapshotResponse

BUILD_S = 0.05


class Feed:
    """The stream of tracker, as the test puts it; None breaks it."""

    def __init__(self) -> None:
        self.responses: asyncio.Queue[WatchSnapshotResponse | None] = asyncio.Queue()
        self.asked: list[int] = []
        self.built: list[tuple[int, list[str]]] = []

    async def watch(self, revision: int) -> AsyncIterator[WatchSnapshotResponse]:
        self.asked.append(revision)
        while True:
            response = await self.responses.get()
            if response is None:
                raise ConnectionError("broken")
            yield response

    def send(self, revision: int, name: str, *, reset: bool = False, partial: bool = False) -> None:
        app = Resource(app=App(app_id=name, name=name))
        self.responses.put_nowait(
            WatchSnapshotResponse(revision=revision, reset=reset, partial=partial, resources=[app])
        )

    def build(self, resources: Resources, revision: int) -> int:
        time.sleep(BUILD_S)  # what it costs
        self.built.append((revision, [key[0] for key in resources["app"]]))
        return revision


@asynccontextmanager
async def following(feed: Feed) -> AsyncIterator[Follower[int]]:
    follower = Follower(feed.watch, feed.build)
    running = asyncio.ensure_future(follower.run())
    try:
        yield follower
    finally:
        running.cancel()
        await asyncio.wait([running])


async def test_changes_that_come_fast_are_built_together() -> None:
    feed = Feed()
    async with following(feed) as follower:
        feed.send(1, "first", reset=True)
        await follower.ready()
        assert follower.current == 1, "the first at once"
        for revision in range(2, 42):
            feed.send(revision, f"app{revision}")
            await asyncio.sleep(0)
        began = time.monotonic()
        await follower.reached(41)
        assert follower.current == 41
        assert time.monotonic() - began < 40 * BUILD_S
        assert len(feed.built) < 10
        assert len(feed.built[-1][1]) == 41
        feed.responses.put_nowait(WatchSnapshotResponse(revision=50))
        await follower.reached(50)
        assert feed.built[-1][0] == 41, "nothing changed, nothing is built"


async def test_half_a_snapshot_is_never_used() -> None:
    feed = Feed()
    async with following(feed) as follower:
        feed.send(1, "first", reset=True)
        await follower.ready()
        feed.send(2, "waits for its turn")
        feed.send(9, "half", reset=True, partial=True)
        feed.responses.put_nowait(None)
        feed.send(9, "half", reset=True, partial=True)
        feed.send(9, "other half")
        await follower.reached(9)
    assert feed.asked == [0, 0], "it began anew"
    assert feed.built[0] == (1, ["first"])
    assert feed.built[-1] == (9, ["half", "other half"])
    assert (9, ["half"]) not in feed.built
