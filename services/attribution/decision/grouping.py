"""Groups records into devices: those that share an id belong to one.

Live, records are taken in the order of receipt. Conversions that are decided again are taken in the order of times
(D12): `Timeline` says what each of them knows.
"""

from bisect import bisect_left, insort
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from operator import itemgetter
from typing import Any, NamedTuple

from libs.domain.device_ids import normalise
from services.attribution.decision.history import Attribution, DeviceHistory, merge
from services.attribution.decision.matching import Id, hashed_as, hashes_of, is_hash

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
        if len(self.ids) <= MAX_IDS:
            return
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
        for hashed_kind, length in hashed_as(kind, self._hashed_kinds):
            yield from ((hashed_kind, each) for each in hashes_of(value, length))


class OneDevice:
    """The device of records that all name one id in common: in whatever order they are taken, they are of one."""

    def __init__(self) -> None:
        self._group = Group()
        self._taken: set[tuple[Id, ...]] = set()
        self._known: set[Id] = set()

    def take(self, ids: tuple[Id, ...]) -> tuple[Group, list[Group]]:
        """Returns the device, and nothing that was joined to it."""
        if ids not in self._taken:  # most name what those before did
            self._taken.add(ids)
            sent = {(kind, normalise(value)): (kind, value) for kind, value in ids}
            self._group.learn({key: value for key, value in sent.items() if key not in self._known})
            self._known.update(sent)
        return self._group, []


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

    `place` orders records that were received at one time. `is_activity`: a session may go on with it (D4). `record` is
    what its caller knows it by.
    """

    time_us: int
    receive_time_us: int
    place: int
    ids: tuple[Id, ...]
    is_activity: bool = False
    attribution: Attribution | None = None
    record: Any = None


_BY_TIME = itemgetter(0, 1, 2)
_BY_RECEIPT = itemgetter(1, 2)


class Timeline:
    """The records of a device, and of those that became one with it, in the order of times (D12).

    Each knows the earlier ones, as far as they were received before it was decided for good; and of the later ones
    those that were decided for good before it was received. Without a late window the order is that of receipt.
    """

    def __init__(self, steps: Iterable[Step], late_window_us: int) -> None:
        by_receipt = not late_window_us
        self.steps = sorted(steps, key=_BY_RECEIPT if by_receipt else _BY_TIME)
        self._late_window_us = late_window_us
        named = {step.ids for step in self.steps}
        self._has_common_id = any(named) and (len(named) == 1 or bool(set[Id].intersection(*map(set, named))))
        """One id, spelled alike, is named by all these records."""
        self._groups = self._no_groups()
        self._settled_count = 0
        receipts = [step.receive_time_us for step in self.steps]
        self.is_plain = by_receipt or not receipts or max(receipts) - min(receipts) <= late_window_us
        """All were received within a late window, or there is none: each knows just the earlier."""
        self._only_group = None
        if self.is_plain and self._has_common_id and len(named) == 1:  # nearly always
            self._only_group = self._groups.take(self.steps[0].ids)[0]
        if not self.is_plain:
            self._latest_us = list(accumulate(receipts, max))  # the latest receipt up to each place
            self._earliest_us = [*accumulate(reversed(receipts), min)][::-1]  # the earliest from each place on

    def _no_groups(self) -> Groups | OneDevice:
        if self._has_common_id:
            return OneDevice()
        return Groups(hashed_kinds_of(each for step in self.steps for each in step.ids))

    def places(self) -> Iterator[int]:
        """Yields the places in the order of deciding: one that knows of later ones waits for these.

        Who knows a waiting one waits for it in turn, unless that waits for him: he was decided for good without it.
        """
        if self.is_plain:
            yield from range(len(self.steps))
            return
        waiting: dict[int, set[int]] = {}
        awaited = set[int]()
        for place in range(len(self.steps)):
            blocked_by = self._later_known(place)
            if place not in awaited:
                blocked_by |= {other for other in waiting if self._knows_earlier(place, other)}
            if blocked_by:
                waiting[place] = blocked_by
                awaited |= blocked_by
                continue
            ready = [place]
            while ready:
                yield from ready
                for others in waiting.values():
                    others.difference_update(ready)
                ready = [each for each, others in waiting.items() if not others]
                for each in ready:
                    del waiting[each]
        yield from waiting

    def known_to(self, place: int) -> Group:
        """Returns the device as a record knows it. Call it in the order of `places`, when those before are settled."""
        if self._only_group is not None:
            return self._only_group
        step = self.steps[place]
        if self.is_plain or (
            self._settled_count == place
            and self._latest_us[place] <= step.receive_time_us + self._late_window_us
            and not self._may_know_later(place)
        ):
            return self._groups.take(step.ids)[0]
        groups = self._no_groups()
        for other, each in enumerate(self.steps):
            if self._knows_earlier(place, other) if other < place else self._knows_later(place, other):
                _add(each, each.attribution, groups.take(each.ids)[0])
        return groups.take(step.ids)[0]

    def assume(self, place: int, attribution: Attribution | None) -> None:
        """Notes what a record was to its device before: who knows of it before it is decided again knows that."""
        self.steps[place] = self.steps[place]._replace(attribution=attribution)

    def settle(self, place: int, attribution: Attribution | None) -> None:
        """Notes what a record is to its device, now that it is decided."""
        self._settled_count += 1
        step = self.steps[place]
        if not self.is_plain and step.attribution != attribution:
            self.steps[place] = step._replace(attribution=attribution)
        _add(step, attribution, self._only_group or self._groups.take(step.ids)[0])

    def _may_know_later(self, place: int) -> bool:
        return self._earliest_us[place] + self._late_window_us < self.steps[place].receive_time_us

    def _later_known(self, place: int) -> set[int]:
        if not self._may_know_later(place):
            return set()
        return {each for each in range(place + 1, len(self.steps)) if self._knows_later(place, each)}

    def _knows_earlier(self, place: int, earlier: int) -> bool:
        return self.steps[earlier].receive_time_us <= self.steps[place].receive_time_us + self._late_window_us

    def _knows_later(self, place: int, later: int) -> bool:
        """Returns whether a later record was decided for good when one was received; none is later than itself."""
        return self.steps[later].receive_time_us + self._late_window_us < self.steps[place].receive_time_us


def _add(step: Step, attribution: Attribution | None, group: Group) -> None:
    if attribution is not None:
        group.history = group.history.including(attribution)
    if step.is_activity:
        group.note_activity(step.time_us)
