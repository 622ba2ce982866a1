"""Following decisions from any point on: what one watcher is sent, and one poll for all of them.

A lane's decisions are numbered densely and commit in that order, so a position in each lane says exactly what was sent.
"""

import asyncio
import time
import zlib
from collections import Counter
from collections.abc import AsyncGenerator, Collection, Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client import Gauge

from libs.db import Pool
from libs.domain.lanes import LANES, lane_of
from libs.errors import InvalidArgument, ResourceExhausted, Violation, Violations
from libs.pages import decode_token, encode_token
from libs.worker import keep_running
from reengage.attribution.v1 import decision_pb2
from services.attribution.jobs.pace import Pace
from services.attribution.storage.following import Followed, find_sequences, read_decisions, read_ends

Response = decision_pb2.WatchDecisionsResponse

_watchers = Gauge("attribution_watchers", "Calls that follow decisions.")

MOST_WATCHERS = 64
RETRY_AFTER_S = 10.0
PAGE = 500
"""Decisions of one look, over all lanes: what a watcher who reads slowly keeps waiting here."""
LEAST = 8
"""Decisions of a lane in one look, however many lanes there are more of."""
RESPONSE_BYTES = 1_000_000
LOOKS = 2
"""Watchers that look at the same time: the worker needs the connections more."""
POLL_S = 0.2
QUIET_S = 5.0
"""How long a watcher hears nothing when all is filtered out, or nothing comes."""
CLOCKS_APART_US = 10_000_000
"""How far the clocks of workers may be apart: where a time begins, that much more is looked through."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which decisions a watcher wants: of an app, credited to a network, credited to a tracker; "" is any."""

    app_id: str = ""
    network_id: str = ""
    tracker_id: str = ""

    @property
    def lanes(self) -> Collection[int]:
        """Where they lie."""
        return (lane_of(self.app_id),) if self.app_id else range(LANES)

    @property
    def checksum(self) -> int:
        """By which a token tells that it comes with other filters than it was made for."""
        return zlib.crc32(f"{self.app_id}\0{self.network_id}\0{self.tracker_id}".encode())

    def fits(self, decision: decision_pb2.Decision) -> bool:
        """Whether all filters hold."""
        return (
            self.app_id in ("", decision.app_id)
            and self.network_id in ("", decision.network_id)
            and self.tracker_id in ("", decision.tracker_id)
        )


@dataclass(slots=True, kw_only=True)
class Place:
    """How far a watcher is: by lane, the first sequence not sent. What was decided before `since_us` is left out."""

    positions: dict[int, int]
    since_us: int = 0

    def token(self, wanted: Wanted) -> str:
        """Opaque to callers; `read_token` takes it back."""
        return encode_token(wanted.checksum, self.since_us, *(self.positions[lane] for lane in wanted.lanes))


def read_token(token: str, wanted: Wanted, violations: Violations) -> Place | None:
    """The place that a token stands for; None when it is none, which is noted."""
    kinds = (int,) * (2 + len(wanted.lanes))
    key = decode_token(token, kinds, violations, field="resume_token")
    if key is None:
        return None
    checksum, since_us, *positions = map(int, key)
    if checksum != wanted.checksum:
        violations.add("resume_token", "INVALID_TOKEN", "must come with the filters it was answered to")
    return Place(positions=dict(zip(wanted.lanes, positions, strict=True)), since_us=since_us)


class Watching:
    """Streams decisions to watchers, `most` at a time. `run` beside them."""

    def __init__(self, pool: Pool, pace: Pace, *, most: int = MOST_WATCHERS, quiet_s: float = QUIET_S) -> None:
        self._pool, self._pace, self._room, self._quiet_s = pool, pace, most, quiet_s
        self._ends = _Ends(pool)
        self._looks = asyncio.Semaphore(LOOKS)

    async def run(self) -> None:
        """Learn where the lanes end, while anybody watches; until cancelled."""
        await keep_running("watching", self._ends.poll)

    def first(self, wanted: Wanted) -> Place:
        """Before the first decision kept."""
        return Place(positions=dict.fromkeys(wanted.lanes, 0))

    async def now(self, wanted: Wanted) -> Place:
        """After all that is decided."""
        ends = await self._ends.read()
        return Place(positions={lane: ends[lane] for lane in wanted.lanes})

    async def at(self, wanted: Wanted, time_us: int) -> Place:
        """Before what was decided at a time or later."""
        place = await self.now(wanted)
        place.positions = await find_sequences(self._pool, place.positions, time_us - CLOCKS_APART_US)
        place.since_us = time_us
        return place

    async def follow(self, wanted: Wanted, place: Place) -> AsyncGenerator[Response, None]:
        """All that is wanted from a place on, without end; the first response comes at once, with the token alone.

        Raises ResourceExhausted `TOO_MANY_WATCHERS`, InvalidArgument for a place that lies beyond all decisions.
        """
        if self._room <= 0:
            raise ResourceExhausted("TOO_MANY_WATCHERS", "too many follow already", retry_after_s=RETRY_AFTER_S)
        self._room -= 1
        _watchers.inc()
        try:
            ends = await self._ends.read()
            if any(position > ends[lane] for lane, position in place.positions.items()):
                beyond = Violation(
                    field="resume_token", reason="INVALID_TOKEN", description="lies beyond all decisions"
                )
                raise InvalidArgument([beyond])
            yield Response(resume_token=place.token(wanted))
            sent = time.monotonic()
            while True:
                began = time.monotonic()
                page = await self._look(wanted, place.positions, ends)
                responses = list(page.responses(wanted, place))
                worked_s = time.monotonic() - began
                for response in responses:
                    # One without facts is worth sending only when there was none for long.
                    if response.facts or time.monotonic() - sent >= self._quiet_s:
                        yield response
                        sent = time.monotonic()
                if page.is_full:
                    with self._pace.guest():  # what is past can wait
                        await asyncio.sleep(self._pace.pause_s(worked_s))
                else:
                    ends = await self._ends.beyond(place.positions, within_s=self._quiet_s)
        finally:
            self._room += 1
            _watchers.dec()

    async def _look(self, wanted: Wanted, positions: Mapping[int, int], ends: list[int]) -> "_Page":
        behind = {lane: ends[lane] for lane, position in positions.items() if position < ends[lane]}
        if not behind:
            return _Page()
        most = max(LEAST, PAGE // len(behind))
        async with self._looks:
            rows = await read_decisions(
                self._pool,
                {lane: (positions[lane], end) for lane, end in behind.items()},
                most,
                app_id=wanted.app_id,
                tracker_id=wanted.tracker_id,
            )
        return _Page(rows=rows, most=most, ends=behind)


class _Ends:
    """Where the decisions of every lane end."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._known = [0] * LANES
        self._moved = asyncio.Event()
        self._waiting = 0
        self._asked = asyncio.Event()

    async def read(self) -> list[int]:
        """As it is now."""
        return await read_ends(self._pool)

    async def beyond(self, positions: Mapping[int, int], *, within_s: float) -> list[int]:
        """The ends, once one of them is beyond its position; or as they are known, `within_s` later."""
        self._waiting += 1
        self._asked.set()
        try:
            async with asyncio.timeout(within_s):
                while all(self._known[lane] <= position for lane, position in positions.items()):
                    await self._moved.wait()
        except TimeoutError:
            pass
        finally:
            self._waiting -= 1
        return self._known

    async def poll(self) -> None:
        """Look once, as soon as anybody waits."""
        if not self._waiting:
            self._asked.clear()
            await self._asked.wait()
        ends = await self.read()
        if ends != self._known:
            self._known = ends
            moved, self._moved = self._moved, asyncio.Event()
            moved.set()
        await asyncio.sleep(POLL_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Page:
    """What one look found: rows by lane and sequence, at most `most` a lane, of lanes with these ends."""

    rows: list[Followed] = field(default_factory=list)
    most: int = 0
    ends: Mapping[int, int] = field(default_factory=dict)

    @property
    def is_full(self) -> bool:
        """Whether there is more before the ends."""
        return any(count == self.most for count in Counter(row.lane for row in self.rows).values())

    def responses(self, wanted: Wanted, place: Place) -> Iterator[Response]:
        """The page as responses of bounded size, at least one; `place` moves along."""
        response, size = Response(), 0
        for row in self.rows:
            place.positions[row.lane] = row.sequence + 1
            for sign, decision in _facts(row, wanted, place.since_us):
                response.facts.add(sign=sign, decision=decision)
                size += decision.ByteSize()
            if size >= RESPONSE_BYTES:
                response.resume_token = place.token(wanted)
                yield response
                response, size = Response(), 0
        counts = Counter(row.lane for row in self.rows)
        # Other apps, retention and erasures leave holes, at the end of a lane, too.
        place.positions.update({lane: end for lane, end in self.ends.items() if counts[lane] < self.most})
        response.resume_token = place.token(wanted)
        yield response


def _facts(row: Followed, wanted: Wanted, since_us: int) -> Iterator[tuple[int, decision_pb2.Decision]]:
    """What a row says to who wants it: a sign, and the decision that is added or taken back."""
    if row.decision is None:
        return
    decision = decision_pb2.Decision.FromString(row.decision)
    if decision.decide_time.ToMicroseconds() < since_us:
        return
    if row.replaced is not None:
        replaced = decision_pb2.Decision.FromString(row.replaced)
        if wanted.fits(replaced):
            yield -1, replaced
    if wanted.fits(decision):
        yield 1, decision
