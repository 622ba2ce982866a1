"""Reads lanes of the record log, and the rulebook that records were accepted under."""

import asyncio
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence

from libs.domain.snapshots import Follower
from libs.errors import Unavailable
from reengage.ingest.v1 import log_pb2
from reengage.ingest.v1.service_pb2_grpc import IngestServiceStub
from services.attribution.wire.records import Logged
from services.attribution.wire.rulebook import Rulebook

_RULEBOOK_WAIT_S = 10.0
_END_OF_LOG = 2**62
"""A position beyond all entries."""


class LogShorterError(Exception):
    """The log is shorter than our position: a lagging standby (temporary) or a restored backup (permanent)."""


class LogReader:
    """A reader of lanes of the log, `max_entries` records at a time."""

    def __init__(self, ingest: IngestServiceStub, *, max_entries: int = 1000) -> None:
        self._ingest, self._max_entries = ingest, max_entries

    async def read(
        self,
        positions: Mapping[int, int],
        selection: log_pb2.ReadLogRequest.Selection.ValueType,
        app_lanes: Sequence[int] = (),
        max_entries: int | None = None,
    ) -> AsyncGenerator[log_pb2.ReadLogResponse, None]:
        """Yields what the lanes hold from these positions on, and what they come to hold, until cancelled.

        With `app_lanes` only records of apps that are homed there. `max_entries` at a time, else those of this reader.
        """
        call = self._ingest.ReadLog(
            log_pb2.ReadLogRequest(
                **{"from": [log_pb2.LanePosition(lane=lane, position=at) for lane, at in positions.items()]},
                selection=selection,
                app_lanes=app_lanes,
                max_entries=max_entries or self._max_entries,
            )
        )
        try:
            async for response in call:
                yield response
        finally:
            call.cancel()


async def log_heads(ingest: IngestServiceStub) -> list[int]:
    """Returns the ends of the lanes of the log as they are now."""
    request = log_pb2.ReadLogRequest()
    getattr(request, "from").add(lane=0, position=_END_OF_LOG)
    call = ingest.ReadLog(request)
    try:
        async for response in call:
            return list(response.heads)
    finally:
        call.cancel()
    raise AssertionError("ReadLog does not end")


def moved(positions: Mapping[int, int], response: log_pb2.ReadLogResponse) -> dict[int, int]:
    """Returns the lanes that a response moves on, each with its new position.

    Raises LogShorterError when the log ends before these positions: what is written there from now on would be skipped.
    """
    if any(response.heads[lane] < position for lane, position in positions.items()):
        raise LogShorterError
    if response.caught_up:
        ends = {lane: response.heads[lane] for lane in positions}
    else:
        ends = positions_after(response.entries)
    return {lane: end for lane, end in ends.items() if end > positions[lane]}


def positions_after(entries: Iterable[log_pb2.LogEntry]) -> dict[int, int]:
    """Returns the lanes that entries, in the order of their positions, move on, each with its new position."""
    return {entry.lane: entry.position + 1 for entry in entries}


async def rulebook_for(rulebooks: Follower[Rulebook], logged: Sequence[Logged]) -> Rulebook:
    """Returns a rulebook at least as new as the one the records were accepted under: it knows all that they name.

    Raises Unavailable when tracker does not send it in time.
    """
    if logged:
        try:
            async with asyncio.timeout(_RULEBOOK_WAIT_S):
                await rulebooks.reached(max(record.settings_revision for _, record in logged))
        except TimeoutError:
            raise Unavailable("SETTINGS_UNAVAILABLE", "tracker does not send the settings of these records") from None
    return rulebooks.current
