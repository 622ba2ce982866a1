"""Following the settings: what one follower is sent, from the revision it has on."""

import itertools
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing

from reengage.tracker.v1.snapshot_pb2 import Resource, WatchSnapshotResponse
from services.tracker.revisions import Revisions
from services.tracker.storage.store import MAX_PART_RESOURCES, Store

MAX_CHANGES = 5000
"""A follower further behind gets a whole snapshot."""
HEARTBEAT_S = 5.0


async def watch(
    store: Store,
    revisions: Revisions,
    revision: int,
    *,
    heartbeat_s: float,
    max_changes: int,
    with_secrets: bool = False,
) -> AsyncGenerator[WatchSnapshotResponse, None]:
    """Yields all changes after the revision, without end; first a whole snapshot if they do not lead on from it.

    None lead on from 0. A response comes at once, and then at least every `heartbeat_s`.
    """
    at = revision
    changes = await store.changes_after(at, max_count=max_changes, with_secrets=with_secrets) if at else None
    while True:
        if changes is None:
            async with aclosing(whole(store, with_secrets=with_secrets)) as parts:
                async for response in parts:
                    yield response
                    at = response.revision
        elif changes:
            for response in responses(changes):
                yield response
                at = response.revision
        else:
            yield WatchSnapshotResponse(revision=at)
        await revisions.beyond(at, within_s=heartbeat_s)
        # Asked even when only time has passed: should the database have gone back to a backup, this finds out.
        changes = await store.changes_after(at, max_count=max_changes, with_secrets=with_secrets)


async def whole(store: Store, *, with_secrets: bool = False) -> AsyncGenerator[WatchSnapshotResponse, None]:
    """Yields a whole snapshot in parts."""
    first = True
    async with aclosing(store.snapshot(with_secrets=with_secrets)) as parts:
        async for part in parts:
            yield WatchSnapshotResponse(
                revision=part.revision, reset=first, partial=part.more, resources=part.resources
            )
            first = False


def responses(changes: Iterable[tuple[int, Resource]]) -> Iterator[WatchSnapshotResponse]:
    """Yields changes in as few responses as hold them: a revision is split only if it alone is more than one holds."""
    response = WatchSnapshotResponse()
    for revision, group in itertools.groupby(changes, key=lambda change: change[0]):
        resources = [resource for _, resource in group]
        if response.resources and len(response.resources) + len(resources) > MAX_PART_RESOURCES:
            yield response
            response = WatchSnapshotResponse()
        while len(resources) > MAX_PART_RESOURCES:
            yield WatchSnapshotResponse(revision=revision, partial=True, resources=resources[:MAX_PART_RESOURCES])
            resources = resources[MAX_PART_RESOURCES:]
        response.revision = revision
        response.resources.extend(resources)
    if response.resources:
        yield response
