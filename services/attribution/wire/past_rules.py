"""The rules of the past: what was decided under settings that have changed since is decided again under those (B6)."""

from collections.abc import AsyncIterable, Callable, Collection
from dataclasses import replace

from libs.domain.snapshots import Follower, resources_of
from reengage.tracker.v1 import snapshot_pb2
from services.attribution.decision.rules import AppRules
from services.attribution.wire.rulebook import Rulebook, build_rulebook

MAX_HELD = 64
"""Rules of apps at past revisions that are kept in memory."""

ReadSnapshot = Callable[[int], AsyncIterable[snapshot_pb2.GetSnapshotResponse]]


class PastRules:
    """The rules of apps at the revisions that conversions were decided under.

    `read_snapshot` streams all settings at a past revision. It is asked only for what has changed since.
    """

    def __init__(self, rulebooks: Follower[Rulebook], read_snapshot: ReadSnapshot) -> None:
        self._rulebooks, self._read_snapshot = rulebooks, read_snapshot
        self._held: dict[tuple[str, int], AppRules] = {}

    async def learn(self, app_id: str, revisions: Collection[int]) -> None:
        """Reads what `at` needs for these revisions."""
        now = self._rulebooks.current.apps[app_id]
        for revision in sorted(revisions):
            if revision < now.since_revision and (app_id, revision) not in self._held:
                resources = await resources_of(self._read_snapshot(revision))
                if len(self._held) >= MAX_HELD:
                    del self._held[next(iter(self._held))]
                self._held[app_id, revision] = build_rulebook(resources, revision).apps[app_id]

    def at(self, app_id: str, revision: int) -> AppRules:
        """Returns the rules of an app at a revision. Raises KeyError for one that `learn` did not read."""
        now = self._rulebooks.current.apps[app_id]
        if revision >= now.since_revision:
            return now if revision == now.revision else replace(now, revision=revision)
        return self._held[app_id, revision]
