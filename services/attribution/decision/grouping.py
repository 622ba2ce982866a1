"""Groups records into devices: those that share an id belong to one.

Live, records are taken in the order of receipt. Conversions that are decided again are taken in the order of times
(D12): `Timeline` says what each of them knows.
"""

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple, TypeAlias

from libs.domain.device_ids import HASHED_KINDS, normalise
from services.attribution.decision.history import Attribution, DeviceHistory, merge
from services.attribution.decision.matching import hashes_of, is_hash

Id: TypeAlias = tuple[str, str]
"""The kind of a device id, and its value."""

MAX_IDS = 20
"""OURS: a device keeps its latest ids of each kind; older ones still lead to it, but find no engagements any more.

Else an id that many devices share and that comes with no advertising id (A8) makes one device of them that grows with
every record."""


@dataclass(slots=True, eq=False)
class Group:
    """A device as the records taken so far made it known: its latest ids, as they were sent first, and its history.

    `active_us` are the times of its events, among them its session starts (D4), in their order.
    """

    ids: dict[Id, Id] = field(default_factory=dict)
    history: DeviceHistory = field(default_factory=DeviceHistory)
    active_us: list[int] = field(default_factory=list)

    def join(self, other: "Group") -> None:
        """Takes over all that is known of another device, which turned out to be this one."""
        self.learn(other.ids)
        self.history = merge(self.history, other.history)
        self.active_us = sorted((*self.active_us, *other.active_us))

    def learn(self, ids: Mapping[Id, Id]) -> None:
        """Adds ids by which its engagements are found, and drops the oldest of those that are too many."""
        self.ids |= ids
        for kind in {kind for kind, _ in ids}:
            for key in [each for each in self.ids if each[0] == kind][:-MAX_IDS]:
                del self.ids[key]

    def note_activity(self, time_us: int) -> None:
        """Notes the time of an event."""
        insort(self.active_us, time_us)

    def active_since(self, time_us: int) -> Sequence[int]:
        """Returns the times of its events from a time on."""
        return self.active_us[bisect_left(self.active_us, time_us) :]


class Groups:
    """The devices of the records taken so far.

    A hashed id and the raw id that gives that hash are of one device, whichever came first (A3); `hashed_kinds` are the
    kinds of hashed ids that may come.
    """

    def __init__(self, hashed_kinds: Collection[str] = ()) -> None:
        self._by_id: dict[Id, Group] = {}
        self._hashed_kinds = hashed_kinds

    def take(self, ids: Iterable[Id]) -> tuple[Group, list[Group]]:
        """Returns the device of a record with these ids, and those that this record has joined to it.

        Its own ids find a record's engagements, too, whether or not they are among the latest of the device.
        """
        sent = {(kind, normalise(value)): (kind, value) for kind, value in ids}
        leading = list(sent)
        if self._hashed_kinds:
            leading += [each for kind, value in sent.values() for each in self._hashes(kind, value)]
        known = list({id(group): group for key in leading if (group := self._by_id.get(key))}.values())
        group = known[0] if known else Group()
        for other in known[1:]:
            group.join(other)
            self._by_id.update({key: group for key, each in self._by_id.items() if each is other})
        group.learn({key: value for key, value in sent.items() if self._by_id.get(key) is not group})
        self._by_id.update(dict.fromkeys(leading, group))
        return group, known[1:]

    def _hashes(self, kind: str, value: str) -> Iterator[Id]:
        """Yields the hashes of a raw id, as far as such may come."""
        for hashed_kind in self._hashed_kinds:
            raw_kind, length = HASHED_KINDS[hashed_kind]
            if raw_kind == kind:
                yield from ((hashed_kind, each) for each in hashes_of(value, length))


def hashed_kinds_of(ids: Iterable[Id]) -> frozenset[str]:
    """Returns the kinds of those of these ids that are hashes."""
    return frozenset(kind for kind, value in ids if is_hash(kind, value))


class Sighting(NamedTuple):
    """Ids that records have named together, first at a time: from then on they are known to be of one device."""

    time_us: int
    receive_time_us: int
    ids: dict[str, str]


MAX_SIGHTINGS = 60
"""OURS: so many of its latest sightings a device remembers; most have one or two."""


def with_sighting(sightings: Sequence[Sighting], new: Sighting) -> list[Sighting] | None:
    """Returns sightings with a new one; None where it adds nothing: its ids were named before, at an earlier time.

    Of the same ids are kept the sighting that was received first, and the one that happened first.
    """
    same = [each for each in sightings if each.ids == new.ids]
    if any(each.time_us <= new.time_us for each in same):
        return None
    kept = [each for each in sightings if each.ids != new.ids or each is same[0]]
    return [*kept, new][-MAX_SIGHTINGS:]


class Step(NamedTuple):
    """A record on the timeline of its device: its ids, and what has been decided of it so far.

    `place` orders records that were received at one time. `is_activity`: a session may go on with it (D4).
    """

    time_us: int
    receive_time_us: int
    place: int
    ids: Sequence[Id]
    is_activity: bool = False
    attribution: Attribution | None = None


class Timeline:
    """The records of a device, and of those that became one with it, in the order of times (D12).

    Each knows the earlier ones, as far as they were received before it was decided for good; and of the later ones
    those that were decided for good before it was received. Without a late window the order is that of receipt.
    """

    def __init__(self, steps: Iterable[Step], late_window_us: int) -> None:
        by_receipt = not late_window_us
        self.steps = sorted(steps, key=(lambda step: step[1:3]) if by_receipt else (lambda step: step[:3]))
        self._late_window_us = late_window_us
        self._hashed_kinds = hashed_kinds_of(each for step in self.steps for each in step.ids)
        self._groups = Groups(self._hashed_kinds)
        self._settled_count = 0
        # The latest receipt up to each place and the earliest from it on: nearly always each knows just the earlier.
        receipts = [step.receive_time_us for step in self.steps]
        self._latest_us = list(accumulate(receipts, max))
        self._earliest_us = [*accumulate(reversed(receipts), min)][::-1]

    def places(self) -> Iterator[int]:
        """Yields the places in the order of deciding: one that knows of later ones waits for these.

        OURS: of three that wait for each other in a circle, the one that is first in time waits.
        """
        waiting: defaultdict[int, list[int]] = defaultdict(list)
        for place in range(len(self.steps)):
            later = range(len(self.steps) - 1, place, -1) if self._may_know_later(place) else ()
            last = next((each for each in later if self._knows_later(place, each)), None)
            if last is not None:
                waiting[last].append(place)
                continue
            ready = [place]
            while ready:
                yield (done := ready.pop())
                ready += reversed(waiting.pop(done, []))

    def known_to(self, place: int) -> Group:
        """Returns the device as a record knows it. Call it in the order of `places`, when those before are settled."""
        step = self.steps[place]
        if not self._late_window_us or (
            self._settled_count == place
            and self._latest_us[place] <= step.receive_time_us + self._late_window_us
            and not self._may_know_later(place)
        ):
            return self._groups.take(step.ids)[0]
        groups = Groups(self._hashed_kinds)
        for other, each in enumerate(self.steps):
            is_early = other < place and each.receive_time_us <= step.receive_time_us + self._late_window_us
            if is_early or (other > place and self._knows_later(place, other)):
                _add(each, groups.take(each.ids)[0])
        return groups.take(step.ids)[0]

    def settle(self, place: int, attribution: Attribution | None) -> None:
        """Notes what a record is to its device, now that it is decided."""
        self._settled_count += 1
        self.steps[place] = step = self.steps[place]._replace(attribution=attribution)
        _add(step, self._groups.take(step.ids)[0])

    def _may_know_later(self, place: int) -> bool:
        is_in_order = self._earliest_us[place] + self._late_window_us >= self.steps[place].receive_time_us
        return bool(self._late_window_us) and not is_in_order

    def _knows_later(self, place: int, later: int) -> bool:
        return self.steps[later].receive_time_us + self._late_window_us < self.steps[place].receive_time_us


def _add(step: Step, group: Group) -> None:
    if step.attribution is not None:
        group.history = group.history.including(step.attribution)
    if step.is_activity:
        group.note_activity(step.time_us)
