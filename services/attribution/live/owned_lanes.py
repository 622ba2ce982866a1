"""The lanes that one worker owns, and the one way in which its loops write to them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence

from prometheus_client import Counter

from libs.broadcast import Broadcast
from libs.db import Connection, Pool, transaction
from libs.domain.lanes import LANES
from libs.periods import Periods
from reengage.attribution.v1 import decision_pb2
from services.attribution.live import late_pings
from services.attribution.live.changes import NO_CHANGES, Changes, write
from services.attribution.live.hashed_kinds import HashedKinds
from services.attribution.live.pending import Pending
from services.attribution.live.quarantine import count_set_aside
from services.attribution.storage.hashed_ids import Indexed
from services.attribution.storage.lanes import OwnedLane, advance_decided

_decided = Counter("attribution_conversions_decided_total", "Conversions decided, by outcome.", ["outcome"])
_shared = Counter("attribution_shared_ids_total", "Ids that turned out to be nobody's (A8), by kind.", ["kind"])
_OUTCOMES: dict[int, str] = {number: name.removeprefix("OUTCOME_") for name, number in decision_pb2.Outcome.items()}


class IndexedPositions:
    """The positions that the lanes of the log are indexed up to, as far as this worker knows; never more than that.

    `moved` tells of every step.
    """

    def __init__(self, positions: Sequence[int]) -> None:
        self.moved = Broadcast()
        self._positions = list(positions)

    def behind(self, heads: Sequence[int]) -> list[int]:
        """Returns the lanes that are not indexed up to their heads."""
        return [lane for lane, head in enumerate(heads) if self._positions[lane] < head]

    @property
    def positions(self) -> Sequence[int]:
        """Returns the positions that all lanes are indexed up to, at least."""
        return self._positions

    def missing(self, heads: Sequence[int]) -> int:
        """Returns how many entries of the log lie between what is indexed and these heads."""
        return sum(max(0, head - at) for head, at in zip(heads, self._positions, strict=True))

    def advance(self, positions: Mapping[int, int]) -> None:
        """Notes that lanes are indexed up to these positions."""
        for lane, position in positions.items():
            self._positions[lane] = max(self._positions[lane], position)
        self.moved.notify()


class OwnedLanes:
    """The lanes of one worker, for as long as it owns them; its loops share this.

    `indexed`: how far all lanes of the log are indexed.
    `heads`: per lane of the log, the position below which all engagements were indexed at the last decisions.
    `positions`: per lane of the log, the position below which every conversion homed in these lanes was taken; of home
    lanes that are read apart in `apart`.
    `pending`: the conversions that wait for claims (E1).
    `hashed`: the kinds of hashed ids that came from the apps of these lanes (A3).
    """

    def __init__(
        self,
        pool: Pool,
        worker_id: str,
        lanes: Mapping[int, OwnedLane],
        *,
        indexed: Sequence[int] = (0,) * LANES,
        pending_app_ids: Collection[str] = (),
        hashed: Iterable[Indexed] = (),
    ) -> None:
        self.worker_id, self.lanes = worker_id, frozenset(lanes)
        self.indexed = IndexedPositions(indexed)
        self.pending = Pending(pending_app_ids)
        self.hashed = HashedKinds(hashed)
        self.heads: list[int] = [0] * LANES
        self.positions: list[int] = [min(lane.decided[at] for lane in lanes.values()) for at in range(LANES)]
        self.apart: Mapping[int, Sequence[int]] = {}
        self._pool, self._periods = pool, Periods(pool)
        self._next_sequences = {number: lane.next_sequence for number, lane in lanes.items()}
        self._writing, self._grown = asyncio.Lock(), Broadcast()
        self._appended: Changes | None = None

    @property
    def next_sequences(self) -> Mapping[int, int]:
        """Returns for each lane the sequence of its next decision; it holds still inside of `fenced`."""
        return self._next_sequences

    def taken(self, home: int) -> Sequence[int]:
        """Returns per lane of the log the position below which every conversion homed in one lane was taken."""
        return self.apart.get(home, self.positions)

    @contextlib.asynccontextmanager
    async def fenced(self) -> AsyncIterator[Connection]:
        """Yields a transaction that only the owner of the lanes can commit; one at a time.

            async with lanes.fenced() as connection:
                changes = ...
                await lanes.append(connection, changes, lanes=...)

        `append` comes last: it holds the fence. Raises LanesLostError. A transaction that fails is not tried again
        here: its loop begins anew from the database, which knows whether it was committed.
        """
        async with self._writing:
            self._appended = None
            try:
                async with transaction(self._pool) as connection:
                    yield connection
                    assert self._appended is not None, "a fenced transaction ends with append"
            finally:
                if self._appended is not None:
                    # Also when nobody knows whether it committed: those that do not wait are not found in the table.
                    self.pending.begin(self._appended.pending)
                    self.hashed.begin(self._appended.begun_kinds)
            self.hashed.finish(self._appended.finished_kinds)
            decisions = self._appended.decisions
            self._next_sequences |= {row.lane: row.sequence + 1 for row in decisions}
        self._grown.notify()
        for shared in self._appended.shared_ids:
            _shared.labels(shared.kind).inc()
        late_pings.count(self._appended.reported_late)
        count_set_aside(self._appended.set_aside)
        for row in decisions:
            if row.version == 1:
                _decided.labels(_OUTCOMES[row.outcome]).inc()

    async def append(
        self,
        connection: Connection,
        changes: Changes = NO_CHANGES,
        *,
        lanes: Collection[int] = (),
        decided: Mapping[int, list[int]] | None = None,
    ) -> None:
        """Writes changes in a fenced transaction, and moves on the lanes that they are of.

        `lanes` are those; with `decided` those, each with its new decide positions. Raises LanesLostError.
        """
        await write(connection, self._periods, changes)
        next_sequences = {**self._next_sequences, **{row.lane: row.sequence + 1 for row in changes.decisions}}
        await advance_decided(
            connection, self.worker_id, decided or dict.fromkeys(lanes), self._next_sequences, next_sequences
        )
        self._appended = changes

    async def beyond(self, positions: Mapping[int, int]) -> dict[int, range]:
        """Returns the sequences from these positions on, of the lanes that have some; waits until there is one.

        All decisions among them are committed. Sequences are dense, but erased decisions leave gaps.
        """
        while True:
            grown = self._grown.next()
            ends = {lane: range(at, self._next_sequences[lane]) for lane, at in positions.items()}
            if found := {lane: sequences for lane, sequences in ends.items() if sequences}:
                return found
            await grown.wait()
