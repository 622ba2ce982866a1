"""Claim requests in memory: the conversions that networks are asked about, until they are decided.

Those about the same networks stand in one line, so that a slow network holds up no other.
"""

import collections
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from libs.parts import PART_BYTES, first_part
from libs.time import SECOND_US, is_plausible
from reengage.postback.v1 import claim_pb2
from services.attribution.storage.pending import Key, PendingRow, Unanswered

_ANSWER = claim_pb2.ClaimAnswer


@dataclass(slots=True, kw_only=True)
class ClaimRequest:
    """A conversion that networks are asked about, and what they have answered so far."""

    lane: int
    app_id: str
    conversion_id: str
    network_ids: tuple[str, ...]
    deadline_s: float
    """By a clock that is never set."""
    record_bytes: int
    was_sent: bool = False
    answered: claim_pb2.ConversionClaims | None = None

    @property
    def key(self) -> Key:
        """Returns the app id and the conversion id."""
        return self.app_id, self.conversion_id

    @property
    def place(self) -> tuple[int, str, str]:
        """Returns the home lane, the app id and the conversion id."""
        return self.lane, self.app_id, self.conversion_id

    @property
    def is_answered(self) -> bool:
        """Returns whether every network has answered, or will not."""
        return self.answered is not None and all(
            answer.state != _ANSWER.STATE_PENDING for answer in self.answered.answers
        )

    def claims(self) -> claim_pb2.ConversionClaims:
        """Returns the claims to decide with: a network that has not answered is UNAVAILABLE (E4)."""
        if self.answered is None:
            reason = _ANSWER.REASON_POSTBACK_UNAVAILABLE
            answers = [
                _ANSWER(network_id=network_id, state=_ANSWER.STATE_UNAVAILABLE, reason=reason)
                for network_id in self.network_ids
            ]
        else:
            answers = [_final(answer) for answer in self.answered.answers]
        return claim_pb2.ConversionClaims(app_id=self.app_id, conversion_id=self.conversion_id, answers=answers)


def _final(answer: claim_pb2.ClaimAnswer) -> claim_pb2.ClaimAnswer:
    """Returns an answer as it is once nobody waits any more.

    PENDING is UNAVAILABLE, for the reason it has so far; and so is a claim of a time at which nobody engaged (E4).
    """
    final = _ANSWER()
    final.CopyFrom(answer)
    if answer.state == _ANSWER.STATE_PENDING:
        final.state = _ANSWER.STATE_UNAVAILABLE
    elif answer.state == _ANSWER.STATE_CLAIMED and not is_plausible(answer.claim.engagement_time):
        final.ClearField("claim")
        final.state, final.reason = _ANSWER.STATE_UNAVAILABLE, _ANSWER.REASON_BODY_MISMATCH
        final.detail = "its claim names a time at which nobody engaged"
    return final


@dataclass(slots=True, kw_only=True)
class _Queue:
    """Requests in their turn, and the number of calls under way for requests that were in it."""

    requests: collections.deque[ClaimRequest] = field(default_factory=collections.deque)
    calls: int = 0


@dataclass(slots=True, kw_only=True)
class _Line:
    """Requests to the same networks.

    A call has either new requests or repeated ones, never both: those that are answered at once do not wait with those
    that were not.
    """

    new: _Queue = field(default_factory=_Queue)
    again: _Queue = field(default_factory=_Queue)


class ClaimRequests:
    """Every claim request until it is removed: in a line, in a call, or finished.

    A call has at most `max_per_call` conversions, and PART_BYTES of their records. A line has at most `max_calls` calls
    under way for new requests, and as many for repeated ones. No more than `max_held` requests are in memory; the
    others stay in the table. A wait takes at most `max_wait_s`, whatever a clock that was set says of its deadline.
    """

    def __init__(self, *, max_per_call: int, max_calls: int, max_held: int, max_wait_s: float) -> None:
        self._max_wait_s = max_wait_s
        self._max_per_call, self._max_calls, self._max_held = max_per_call, max_calls, max_held
        self._held: dict[Key, ClaimRequest] = {}
        self._lines: dict[tuple[str, ...], _Line] = {}
        self._finished: list[ClaimRequest] = []

    def __len__(self) -> int:
        return len(self._held)

    @property
    def are_finished(self) -> bool:
        """Returns whether there are finished requests."""
        return bool(self._finished)

    def add(self, rows: Iterable[PendingRow | Unanswered], *, now_us: int, now_s: float) -> None:
        """Adds those that are not held yet, while there is room; `now_s` is by the clock that is never set."""
        for row in rows:
            key = row.app_id, row.conversion_id
            if not row.network_ids or key in self._held or len(self._held) >= self._max_held:
                continue
            request = ClaimRequest(
                lane=row.lane,
                app_id=row.app_id,
                conversion_id=row.conversion_id,
                network_ids=tuple(row.network_ids),
                deadline_s=now_s + min(max(0.0, (row.deadline_us - now_us) / SECOND_US), self._max_wait_s),
                record_bytes=row.record_bytes,
            )
            self._held[key] = request
            self._lines.setdefault(request.network_ids, _Line()).new.requests.append(request)

    def begin_calls(self, now_s: float) -> list[list[ClaimRequest]]:
        """Returns the requests of each call to make now. One sent in vain until its deadline is finished (E4)."""
        calls = []
        for line in self._lines.values():
            for queue in (line.new, line.again):
                while queue.requests and queue.calls < self._max_calls:
                    if some := self._next_call(queue, now_s):
                        queue.calls += 1
                        calls.append(some)
        return calls

    def _next_call(self, queue: _Queue, now_s: float) -> list[ClaimRequest]:
        some: list[ClaimRequest] = []
        size = 0
        while queue.requests and len(some) < self._max_per_call:
            request = queue.requests[0]
            if request.was_sent and request.deadline_s <= now_s:
                self._finished.append(request)
            elif some and size + request.record_bytes > PART_BYTES:
                break
            else:
                some.append(request)
                size += request.record_bytes
            queue.requests.popleft()
        return some

    def end_call(self, requests: Sequence[ClaimRequest], present: Collection[Key]) -> None:
        """Puts the requests of a call where they belong now.

        Those not `present` are no longer pending: they were erased, or decided by another worker.
        """
        line = self._lines[requests[0].network_ids]
        (line.again if requests[0].was_sent else line.new).calls -= 1
        for request in requests:
            request.was_sent = True
            if request.key not in present:
                del self._held[request.key]
            elif request.is_answered:
                self._finished.append(request)
            else:
                line.again.requests.append(request)

    def take_finished(self, limit: int) -> list[ClaimRequest]:
        """Takes finished requests, the earliest first, up to a part of records; they stay held until `remove`."""
        taken = first_part(self._finished[:limit], lambda request: request.record_bytes)
        self._finished = self._finished[len(taken) :]
        return taken

    def remove(self, requests: Iterable[ClaimRequest]) -> None:
        """Forgets requests: their conversions are decided, or their answers stored."""
        for request in requests:
            del self._held[request.key]
