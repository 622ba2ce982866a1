"""Following decisions from any point on: what one follower is sent, and one poll for all of them.

A lane's decisions are numbered densely and commit in that order, so a position in each lane says exactly what was sent.
"""

import asyncio
import time
import zlib
from collections import Counter
from collections.abc import AsyncGenerator, Collection, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field

from prometheus_client import Gauge

from libs.broadcast import Broadcast
from libs.db import Pool
from libs.domain.lanes import LANES, lane_of
from libs.errors import InvalidArgument, ResourceExhausted, Violation, Violations
from libs.pages import decode_token, encode_token
from libs.time import SECOND_US, timestamp_us
from libs.worker import keep_running
from reengage.attribution.v1 import decision_pb2
from services.attribution.pace import Pace
from services.attribution.storage.following import Followed, find_sequences, read_decisions, read_ends

Response = decision_pb2.WatchDecisionsResponse

_followers = Gauge("attribution_followers", "Calls that follow decisions.")

_RETRY_AFTER_S = 10.0
_CLOCKS_APART_US = 10 * SECOND_US
"""The time that the clocks of workers may be apart: so much earlier than a time the search for its decisions begins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowingConfig:
    """The limits and intervals of following."""

    max_followers: int = 64
    """Calls at the same time."""
    max_looks: int = 2
    """Looks into the database at the same time: the worker needs the connections more."""
    max_decisions: int = 500
    """Decisions of one look, over all lanes: those held here for a follower who reads slowly."""
    min_decisions_per_lane: int = 8
    """Decisions of a lane in one look, however many lanes there are more of."""
    max_response_bytes: int = 1_000_000
    """About the size at which a response is sent."""
    poll_interval_s: float = 0.2
    """The time between two looks at the ends of the lanes."""
    quiet_s: float = 5.0
    """The time after which a follower gets a response without facts, when all is filtered out or nothing comes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """The decisions a follower wants: of an app, credited to a network, credited to a tracker; "" is any."""

    app_id: str = ""
    network_id: str = ""
    tracker_id: str = ""

    @property
    def lanes(self) -> Collection[int]:
        """Returns the lanes that such decisions lie in."""
        return (lane_of(self.app_id),) if self.app_id else range(LANES)

    @property
    def checksum(self) -> int:
        """Returns the number by which a token is known to come with the filters that it was made for."""
        return zlib.crc32(f"{self.app_id}\0{self.network_id}\0{self.tracker_id}".encode())

    def fit(self, decision: decision_pb2.Decision) -> bool:
        """Returns whether all filters hold."""
        return (
            self.app_id in ("", decision.app_id)
            and self.network_id in ("", decision.network_id)
            and self.tracker_id in ("", decision.tracker_id)
        )


@dataclass(slots=True, kw_only=True)
class Place:
    """A place in the stream: by lane, the first sequence not sent. Decisions made before `since_us` are left out."""

    positions: dict[int, int]
    since_us: int = 0

    def token(self, filters: Filters) -> str:
        """Returns the place as a token, opaque to callers; `read_token` reads it."""
        return encode_token(filters.checksum, self.since_us, *(self.positions[lane] for lane in filters.lanes))


def read_token(token: str, filters: Filters, violations: Violations) -> Place | None:
    """Returns the place that a token stands for; notes a violation and returns None when it stands for none."""
    kinds = (int,) * (2 + len(filters.lanes))
    key = decode_token(token, kinds, violations, field="resume_token")
    if key is None:
        return None
    checksum, since_us, *positions = map(int, key)
    if checksum != filters.checksum:
        violations.add("resume_token", "INVALID_TOKEN", "must come with the filters that it was returned for")
    return Place(positions=dict(zip(filters.lanes, positions, strict=True)), since_us=since_us)


class Following:
    """The streams of decisions to followers; `run` polls for all of them."""

    def __init__(self, pool: Pool, pace: Pace, config: FollowingConfig = FollowingConfig()) -> None:
        self._pool, self._pace, self._config = pool, pace, config
        self._room = config.max_followers
        self._ends = _Ends(pool, config.poll_interval_s)
        self._looks = asyncio.Semaphore(config.max_looks)

    async def run(self) -> None:
        """Learns where the lanes end, while anybody follows; until cancelled."""
        await keep_running("following", self._ends.poll)

    def first(self, filters: Filters) -> Place:
        """Returns the place before the first decision that is kept."""
        return Place(positions=dict.fromkeys(filters.lanes, 0))

    async def now(self, filters: Filters) -> Place:
        """Returns the place after the last decision."""
        ends = await self._ends.read()
        return Place(positions={lane: ends[lane] for lane in filters.lanes})

    async def at(self, filters: Filters, time_us: int) -> Place:
        """Returns the place before the first decision made at a time or later."""
        place = await self.now(filters)
        place.positions = await find_sequences(self._pool, place.positions, time_us - _CLOCKS_APART_US)
        place.since_us = time_us
        return place

    async def follow(self, filters: Filters, place: Place) -> AsyncGenerator[Response, None]:
        """Yields what fits from a place on, without end; the first response comes at once, with the token alone.

        Raises ResourceExhausted `TOO_MANY_WATCHERS`, InvalidArgument for a place that lies beyond all decisions.
        """
        if self._room <= 0:
            raise ResourceExhausted(
                "TOO_MANY_WATCHERS", "too many callers follow decisions already", retry_after_s=_RETRY_AFTER_S
            )
        self._room -= 1
        _followers.inc()
        try:
            async with aclosing(self._follow(filters, place)) as responses:
                async for response in responses:
                    yield response
        finally:
            self._room += 1
            _followers.dec()

    async def _follow(self, filters: Filters, place: Place) -> AsyncGenerator[Response, None]:
        ends = await self._ends.read()
        if any(position > ends[lane] for lane, position in place.positions.items()):
            beyond = Violation(field="resume_token", reason="INVALID_TOKEN", description="lies beyond all decisions")
            raise InvalidArgument([beyond])
        yield Response(resume_token=place.token(filters))
        sent = time.monotonic()
        while True:
            began = time.monotonic()
            page = await self._look(filters, place.positions, ends)
            responses = list(page.responses(filters, place, self._config.max_response_bytes))
            worked_s = time.monotonic() - began
            for response in responses:
                # One without facts is worth sending only when there was none for long.
                if response.facts or time.monotonic() - sent >= self._config.quiet_s:
                    yield response
                    sent = time.monotonic()
            if page.is_full:
                with self._pace.guest():  # what is past can wait
                    await asyncio.sleep(self._pace.pause_s(worked_s))
            else:
                ends = await self._ends.beyond(place.positions, within_s=self._config.quiet_s)

    async def _look(self, filters: Filters, positions: Mapping[int, int], ends: list[int]) -> "_Page":
        behind = {lane: ends[lane] for lane, position in positions.items() if position < ends[lane]}
        if not behind:
            return _Page()
        max_per_lane = max(self._config.min_decisions_per_lane, self._config.max_decisions // len(behind))
        async with self._looks:
            rows, is_cut = await read_decisions(
                self._pool,
                {lane: (positions[lane], end) for lane, end in behind.items()},
                max_per_lane,
                app_id=filters.app_id,
                tracker_id=filters.tracker_id,
            )
        return _Page(rows=rows, max_per_lane=max_per_lane, ends=behind, is_cut=is_cut)


class _Ends:
    """The ends of every lane's decisions."""

    def __init__(self, pool: Pool, poll_interval_s: float) -> None:
        self._pool, self._poll_interval_s = pool, poll_interval_s
        self._known = [0] * LANES
        self._moved = Broadcast()
        self._waiters = 0
        self._asked = asyncio.Event()

    async def read(self) -> list[int]:
        """Returns the ends as they are now."""
        return await read_ends(self._pool)

    async def beyond(self, positions: Mapping[int, int], *, within_s: float) -> list[int]:
        """Returns the ends, once one of them is beyond its position; or as they are known, `within_s` later."""
        self._waiters += 1
        self._asked.set()
        try:
            async with asyncio.timeout(within_s):
                while True:
                    moved = self._moved.next()
                    if any(self._known[lane] > position for lane, position in positions.items()):
                        break
                    await moved.wait()
        except TimeoutError:
            pass
        finally:
            self._waiters -= 1
        return self._known

    async def poll(self) -> None:
        """Looks once, as soon as anybody waits."""
        if not self._waiters:
            self._asked.clear()
            await self._asked.wait()
        ends = await self.read()
        if ends != self._known:
            self._known = ends
            self._moved.notify()
        await asyncio.sleep(self._poll_interval_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Page:
    """The rows of one look, by lane and sequence: at most `max_per_lane` of each lane, below its end.

    `is_cut`: there are fewer, as they are large.
    """

    rows: list[Followed] = field(default_factory=list)
    max_per_lane: int = 0
    ends: Mapping[int, int] = field(default_factory=dict)
    is_cut: bool = False

    @property
    def is_full(self) -> bool:
        """Returns whether there is more before the ends."""
        counts = Counter(row.lane for row in self.rows)
        return self.is_cut or any(count == self.max_per_lane for count in counts.values())

    def responses(self, filters: Filters, place: Place, max_bytes: int) -> Iterator[Response]:
        """Yields the page as responses of bounded size, at least one; `place` moves along."""
        response, size = Response(), 0
        for row in self.rows:
            place.positions[row.lane] = row.sequence + 1
            for sign, decision in _facts(row, filters, place.since_us):
                response.facts.add(sign=sign, decision=decision)
                size += decision.ByteSize()
            if size >= max_bytes:
                response.resume_token = place.token(filters)
                yield response
                response, size = Response(), 0
        if not self.is_cut:
            counts = Counter(row.lane for row in self.rows)
            # Other apps, retention and erasures leave holes, at the end of a lane, too.
            place.positions.update({lane: end for lane, end in self.ends.items() if counts[lane] < self.max_per_lane})
        response.resume_token = place.token(filters)
        yield response


def _facts(row: Followed, filters: Filters, since_us: int) -> Iterator[tuple[int, decision_pb2.Decision]]:
    """Yields the facts of a row that fit: a sign, and the decision that counts from now on, or no more."""
    if row.decision is None:
        return
    decision = decision_pb2.Decision.FromString(row.decision)
    if timestamp_us(decision.decide_time) < since_us:
        return
    if row.replaced is not None:
        replaced = decision_pb2.Decision.FromString(row.replaced)
        if filters.fit(replaced):
            yield -1, replaced
    if filters.fit(decision):
        yield 1, decision
