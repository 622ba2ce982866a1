"""The kinds of hashed ids that came from apps (A3), as the owner of their home lanes knows them.

Nothing is done for apps without any, and nothing is asked of the database: only the owner adds kinds, in transactions
of its own.
"""

import asyncio
from collections.abc import Collection, Iterable, Mapping

from reengage.ingest.v1 import record_pb2
from services.attribution.decision.matching import is_hash
from services.attribution.storage.hashed_ids import HashedKind, Indexed


class HashedKinds:
    """The kinds of hashed ids by app, and of each whether it is ready: all that conversions need for it is indexed.

    `changed` is set when the first conversions with a kind begin to wait.
    """

    def __init__(self, kinds: Iterable[Indexed] = ()) -> None:
        self.changed = asyncio.Event()
        self._by_app: dict[str, dict[str, bool]] = {}
        for kind, is_ready in kinds:
            self._put([kind], is_ready=is_ready)

    @property
    def by_app(self) -> Mapping[str, Mapping[str, bool]]:
        """Returns the kinds of each app, and whether they are ready."""
        return self._by_app

    def begin(self, kinds: Collection[HashedKind]) -> None:
        """Notes that these came on conversions, which wait."""
        if kinds:
            self._put(kinds, is_ready=False)
            self.changed.set()

    def learn(self, kinds: Collection[HashedKind]) -> None:
        """Notes that these came; what is ready stays so."""
        self._put([kind for kind in kinds if kind.kind not in self._by_app.get(kind.app_id, ())], is_ready=False)

    def finish(self, kinds: Collection[HashedKind]) -> None:
        """Notes that these are ready."""
        self._put(kinds, is_ready=True)

    def _put(self, kinds: Collection[HashedKind], *, is_ready: bool) -> None:
        for kind in kinds:
            self._by_app.setdefault(kind.app_id, {})[kind.kind] = is_ready


def kinds_to_wait_for(record: record_pb2.Record, hashed: Mapping[str, Mapping[str, bool]]) -> list[str]:
    """Returns the kinds of a record's hashed ids that are not ready; usually there are none."""
    found = [kind for kind, value in record.device_ids.items() if is_hash(kind, value)]
    if not found:
        return found
    known = hashed.get(record.app_id, {})
    return [kind for kind in found if not known.get(kind, False)]
