"""What the loops of one worker share: the lanes it owns, and the one way in which decisions are appended to them."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping

from prometheus_client import Counter

from libs.db import Connection, in_transaction
from libs.domain.lanes import LANES
from reengage.attribution.v1 import decision_pb2
from services.attribution.live.decider import Batch, write_batch
from services.attribution.storage.pending import Waiting, WaitingRow
from services.attribution.storage.store import OwnedLane, Store

_decided = Counter("attribution_conversions_decided_total", "Conversions decided, by outcome.", ["outcome"])
_OUTCOMES: dict[int, str] = {number: name.removeprefix("OUTCOME_") for name, number in decision_pb2.Outcome.items()}


class OwnedLanes:
    """The lanes a worker owns, for as long as it owns them.

    `heads`: per lane of the log, the position below which all engagements were indexed when it last decided.
    `positions`: per lane of the log, the position below which every conversion homed in these lanes was taken.
    `waiting`: which of them wait for claims (E1); `waiting_app_ids` are the apps that have some from before.
    """

    def __init__(
        self, store: Store, worker_id: str, lanes: Mapping[int, OwnedLane], *, waiting_app_ids: Collection[str] = ()
    ) -> None:
        self.lanes = frozenset(lanes)
        self.waiting = Waiting(waiting_app_ids)
        self.heads: list[int] = [0] * LANES
        self.positions: list[int] = [min(lane.decided[at] for lane in lanes.values()) for at in range(LANES)]
        self._store, self._worker_id = store, worker_id
        self._sequences = {number: lane.next_sequence for number, lane in lanes.items()}
        self._writing = asyncio.Lock()
        self._grown = asyncio.Event()

    async def append(
        self,
        decide: Callable[[Connection, Mapping[int, int]], Awaitable[Batch]],
        *,
        lanes: Collection[int] = (),
        decided: Mapping[int, list[int]] | None = None,
    ) -> Batch:
        """Decide and write, one at a time and in one transaction that only the owner of the lanes can commit.

        `decide(connection, next_sequences)` may write to the same transaction whatever else belongs to it. `lanes` are
        those it touches; with `decided` those, each with the new decide positions. Raises LanesLostError.
        """
        begun: list[WaitingRow] = []
        async with self._writing:

            async def work(connection: Connection) -> Batch:
                batch = await decide(connection, self._sequences)
                await write_batch(self._store, connection, batch)
                await self._store.advance_lanes(
                    connection, self._worker_id, decided or dict.fromkeys(lanes), self._sequences, batch.next_sequences
                )
                begun.extend(batch.waiting)
                return batch

            try:
                batch = await in_transaction(self._store.pool, work)
            finally:
                # Also when nobody knows whether it committed: those that do not wait are not found in the table.
                self.waiting.begin(begun)
            self._sequences.update(batch.next_sequences)
        self._grown.set()
        for row in batch.decisions:
            if row.version == 1:
                _decided.labels(_OUTCOMES[row.outcome]).inc()
        return batch

    async def beyond(self, positions: Mapping[int, int]) -> dict[int, range]:
        """The sequences from these positions on, of the lanes that have some; waits until there is one.

        All decisions among them are committed. Sequences are dense, but erased decisions leave gaps.
        """
        while True:
            ends = {lane: range(at, self._sequences[lane]) for lane, at in positions.items()}
            if found := {lane: sequences for lane, sequences in ends.items() if sequences}:
                return found
            self._grown.clear()
            await self._grown.wait()
