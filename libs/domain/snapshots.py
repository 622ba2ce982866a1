"""Snapshots of the settings, followed: the client half of tracker's WatchSnapshot.

A `Follower` keeps the newest settings in memory and hands out what the service built from them. While tracker is away
it goes on with the last; a gap or a reset heals by a fresh snapshot.
"""

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from typing import Generic, TypeVar

import grpc
import structlog
from google.protobuf.message import Message
from prometheus_client import Gauge

from libs.errors import Unavailable
from libs.worker import keep_running
from reengage.tracker.v1 import service_pb2_grpc, snapshot_pb2

S = TypeVar("S")
Resources = dict[str, dict[tuple[str, ...], Message]]
"""Resources by kind (`app`, `tracker`, …; the field of `Resource`) and id, archived ones too."""

_PAUSE_PER_BUILD = 4.0
_MAX_PAUSE_S = 5.0

_age = Gauge("settings_age_seconds", "Seconds since tracker was last heard from.")
_revision = Gauge("settings_revision", "Revision of the settings in use.")
_log = structlog.get_logger()

_KEYS = {
    "app": ("app_id",),
    "network": ("network_id",),
    "network_settings": ("app_id", "network_id"),
    "campaign": ("campaign_id",),
    "segment": ("segment_id",),
    "tracker": ("tracker_id",),
    "event_definition": ("app_id", "event_name"),
    "account": ("account_id",),
    "agency": ("agency_id",),
    "san_account": ("san_account_id",),
    "api_key": ("api_key_id",),
}


class Follower(Generic[S]):
    """Holder of the newest settings, built by `build(resources, revision)` into what the service reads them from.

    `watch(revision)` opens a WatchSnapshot stream after that revision. `build` must not keep `resources` itself: it
    changes with the next revision. Building takes at most a fifth of the time: while changes come faster, one build
    puts several to use, at the latest 5 s after the build before.
    """

    def __init__(
        self,
        watch: Callable[[int], AsyncIterable[snapshot_pb2.WatchSnapshotResponse]],
        build: Callable[[Resources, int], S],
    ) -> None:
        self._watch, self._build = watch, build
        self._resources: Resources = {kind: {} for kind in _KEYS}
        self._received = 0
        self._at_revision = 0
        self._built: S | None = None
        self._is_stale = False
        self._built_at = self._build_s = 0.0
        self._first = asyncio.Event()
        self._changed = asyncio.Condition()
        self._heard = time.monotonic()
        _age.set_function(lambda: time.monotonic() - self._heard)

    @property
    def current(self) -> S:
        """Returns the newest settings. Raises `Unavailable` `SETTINGS_UNAVAILABLE` before the first snapshot."""
        if self._built is None:
            raise Unavailable("SETTINGS_UNAVAILABLE", "no settings received from tracker yet", retry_after_s=1.0)
        return self._built

    async def ready(self) -> None:
        """Waits for the first snapshot."""
        await self._first.wait()

    async def reached(self, revision: int) -> None:
        """Waits until settings of at least this revision are in use."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._built is not None and self._at_revision >= revision)

    async def run(self) -> None:
        """Follows tracker until cancelled."""
        await keep_running("settings", self._follow)

    async def _follow(self) -> None:
        responses = aiter(self._watch(self._received))
        coming: asyncio.Task[snapshot_pb2.WatchSnapshotResponse] | None = None
        complete = self._received > 0  # else what is held, if anything, is half a snapshot
        try:
            while True:
                # A task, so that waiting for what comes can be left and taken up again.
                coming = coming or asyncio.ensure_future(_next(responses))
                await asyncio.wait({coming}, timeout=self._until_due() if complete else None)
                if not coming.done():
                    await self._rebuild()
                    continue
                response, coming = await coming, None
                self._heard = time.monotonic()
                complete = not response.partial
                self._apply(response)
                self._is_stale = self._is_stale or bool(response.resources) or response.reset or self._built is None
                if complete:
                    self._received = response.revision
                    if self._until_due() in (None, 0.0):
                        await self._rebuild()
        except StopAsyncIteration:
            return
        finally:
            if coming is not None:
                coming.cancel()
            if not complete:
                self._received = 0  # half a snapshot was applied: begin with a whole one

    def _until_due(self) -> float | None:
        """Returns the seconds until what was received is to be built; None when it is."""
        if not self._is_stale:
            return None
        pause_s = 0.0 if self._built is None else min(self._build_s * _PAUSE_PER_BUILD, _MAX_PAUSE_S)
        return max(0.0, self._built_at + pause_s - time.monotonic())

    async def _rebuild(self) -> None:
        """Builds the settings from what was received, unless that is done."""
        if self._is_stale:
            began = time.monotonic()
            self._built = self._build(self._resources, self._received)
            self._built_at = time.monotonic()
            self._build_s = self._built_at - began
            self._is_stale = False
        self._at_revision = self._received
        _revision.set(self._at_revision)
        self._first.set()
        async with self._changed:
            self._changed.notify_all()

    def _apply(self, response: snapshot_pb2.WatchSnapshotResponse) -> None:
        if response.reset:
            for held in self._resources.values():
                held.clear()
        _put(self._resources, response.resources)


async def resources_of(responses: AsyncIterable[snapshot_pb2.GetSnapshotResponse]) -> Resources:
    """Returns the resources of a whole snapshot."""
    resources: Resources = {kind: {} for kind in _KEYS}
    async for response in responses:
        _put(resources, response.resources)
    return resources


def _put(resources: Resources, new: Iterable[snapshot_pb2.Resource]) -> None:
    for resource in new:
        kind = resource.WhichOneof("resource")
        if kind not in resources:
            continue  # of no use to followers, or newer than this build
        message = getattr(resource, kind)
        resources[kind][tuple(getattr(message, name) for name in _KEYS[kind])] = message


def follow_tracker(
    channel: grpc.aio.Channel, build: Callable[[Resources, int], S], *, with_secrets: bool = False
) -> Follower[S]:
    """Returns a follower of the tracker behind a channel; `with_secrets` for who checks clicks."""
    tracker = service_pb2_grpc.TrackerConfigServiceStub(channel)
    request = snapshot_pb2.WatchSnapshotRequest

    return Follower(lambda at: tracker.WatchSnapshot(request(revision=at, with_secrets=with_secrets)), build)


def past_snapshots(
    channel: grpc.aio.Channel,
) -> Callable[[int], AsyncIterable[snapshot_pb2.GetSnapshotResponse]]:
    """Returns what streams all settings at a past revision, from the tracker behind a channel."""
    tracker = service_pb2_grpc.TrackerConfigServiceStub(channel)
    return lambda revision: tracker.GetSnapshot(snapshot_pb2.GetSnapshotRequest(revision=revision))


async def _next(responses: AsyncIterator[snapshot_pb2.WatchSnapshotResponse]) -> snapshot_pb2.WatchSnapshotResponse:
    return await anext(responses)
