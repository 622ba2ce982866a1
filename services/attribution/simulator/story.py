"""A story while it is told: the records received so far, and what was decided of them.

It stands for the database of the live path, and decides nothing itself.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import NamedTuple

from libs.domain.device_ids import HASHED_KINDS, usable_ids
from libs.domain.visitors import find_bot
from services.attribution.decision.decide import decide, is_same
from services.attribution.decision.grouping import Group, Groups, Step, Timeline
from services.attribution.decision.history import Attribution, DeviceHistory
from services.attribution.decision.matching import (
    Id,
    conversion_keys,
    device_key,
    duplicates,
    engagement_keys,
    hash_length,
    is_hash,
    match_kind,
    own_key,
    raw_id_keys,
    sought_ids,
)
from services.attribution.decision.model import (
    SECOND_US,
    Because,
    Conversion,
    ConversionKind,
    Decision,
    Engagement,
    Visitor,
)
from services.attribution.decision.rules import AppRules
from services.attribution.decision.user_agents import user_agent_of
from services.attribution.simulator.device_ids import RawIds, SharedIds
from services.attribution.simulator.scenario import ConversionRecord, EngagementRecord


class Order(NamedTuple):
    """The place of a conversion in the order of times; at equal times that of receipt."""

    time_us: int
    receive_time_us: int
    place: int


@dataclass(slots=True, eq=False)
class Told:
    """A conversion and the newest version of its decision, which is None while it is a session that goes on (D4).

    `conversion` has no keys of its device's ids: these change with the time that it is decided at. `ids` are those of
    its record that are not `shared` (A8), `group` is its device. `attribution` is what the decision made of that.
    """

    record: ConversionRecord
    conversion: Conversion
    ids: tuple[Id, ...]
    order: Order
    shared: Mapping[str, int]
    group: Group
    decision: Decision | None = None
    version: int = 0
    because: Because | None = None
    attribution: Attribution | None = None


class Story:
    """The records received so far. `hashed_kinds` are the kinds of hashed ids that its conversions may carry.

    OURS: the ids of installs and events make a device known; a click that names two ids joins no devices, since anyone
    can make a click.
    """

    def __init__(self, rules: AppRules, hashed_kinds: Collection[str] = ()) -> None:
        self._rules = rules
        self._late_window_us = rules.app.late_window_us
        self._limited_trackers = rules.limited_trackers
        self._engagements: dict[str, Engagement] = {}
        self._ids_by_key: defaultdict[bytes, list[str]] = defaultdict(list)
        self._ids_by_click_id: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
        self._hash_lengths: set[int] = set()
        self._groups = Groups(hashed_kinds)
        self._told: list[Told] = []
        self._of_group: dict[Group, list[Told]] = {}
        self._by_time: list[Told] = []
        self._times_us: list[int] = []
        self._wins: defaultdict[str, dict[str, Order]] = defaultdict(dict)
        self._given_back: defaultdict[str, list[Told]] = defaultdict(list)
        self._shared_ids, self._engaged_ids = SharedIds(), RawIds()

    @property
    def told(self) -> Sequence[Told]:
        """Returns the conversions in the order of receipt."""
        return self._told

    def receive_engagement(self, record: EngagementRecord) -> None:
        """Takes a click or an impression; one that is late decides again what it changes (D12)."""
        app = self._rules.app
        device_ids = usable_ids(record.device)
        for kind, value in device_ids.items():
            self._engaged_ids.add(kind, value)
            if length := hash_length(value):
                self._hash_lengths.add(length)
        engagement = Engagement(
            engagement_id=record.id,
            kind=record.kind,
            tracker_id=record.tracker,
            time_us=record.time_us,
            receive_time_us=record.receive_time_us,
            is_ping=record.is_ping,
            device_keys=tuple(device_key(app.app_id, value) for value in device_ids.values()),
            ip=record.ip,
            user_agent=user_agent_of(record.ua, record.client_hints),
            click_id=record.click_id,
            completed_view=record.completed_view,
            visitor=_visitor(record),
            country=record.country,
        )
        self._engagements[record.id] = engagement
        for key in (own_key(app.app_id, record.id), *engagement_keys(app, engagement)):
            self._ids_by_key[key].append(record.id)
        concerned = self._concerned(engagement)
        for repeated in self._mark_duplicates(engagement) if record.click_id else ():
            concerned |= self._concerned(repeated)
        self._converge(concerned, Because.LATE_ENGAGEMENT, record.receive_time_us)

    def receive_conversion(self, record: ConversionRecord) -> None:
        """Takes and decides an install or event; one that is late decides again what it changes (D12)."""
        told, joined = self._read(record)
        group = told.group
        of_group = self._of_group.setdefault(group, [])
        for other in joined:
            of_group += self._of_group.pop(other, ())
        for each in of_group if joined else ():
            each.group = group
        is_late = any(each.order > told.order for each in of_group)
        self._told.append(told)
        of_group.append(told)
        at = bisect_right(self._times_us, record.time_us)
        self._times_us.insert(at, record.time_us)
        self._by_time.insert(at, told)
        if record.click:
            self._given_back[record.click].append(told)
        because = Because.LATE_EVENT if record.name else Because.LATE_INSTALL
        if is_late and self._late_window_us:
            self._converge({group}, because, record.receive_time_us)
            return
        changed = self._decide(told, group)
        told.version = 1
        if told.attribution is not None:
            group.history = group.history.including(told.attribution)
        if record.name:
            group.note_activity(record.time_us)
        concerned = {each for engagement_id in changed for each in self._concerned(self._engagements[engagement_id])}
        self._converge(concerned, because, record.receive_time_us)

    def _read(self, record: ConversionRecord) -> tuple[Told, list[Group]]:
        """Returns a conversion that is not decided yet, and the devices that it has joined to its own."""
        device_ids = usable_ids(record.device)
        conversion = Conversion(
            conversion_id=record.id,
            kind=ConversionKind.EVENT if record.name else ConversionKind.INSTALL,
            time_us=record.time_us,
            receive_time_us=record.receive_time_us,
            event_name=record.name,
            click_id=record.click,
            ip=record.ip,
            user_agent=user_agent_of(record.ua, record.client_hints),
            limit_ad_tracking=record.limit_ad_tracking,
            has_idfa="idfa" in device_ids,
            is_refund=record.is_refund,
            is_session_start=record.is_session_start,
            country=record.country,
        )
        order = Order(record.time_us, record.receive_time_us, len(self._told))
        shared = self._shared_ids.meet(device_ids, order.place)
        ids = tuple((kind, value) for kind, value in device_ids.items() if kind not in shared)
        group, joined = self._groups.take(ids)
        return Told(record, conversion, ids, order, shared, group), joined

    def _decide(self, told: Told, group: Group) -> set[str]:
        """Decides a conversion of a device; returns the engagements on limited trackers whose wins that changed."""
        conversion = told.conversion
        if conversion.is_session_start and group.history.goes_on(conversion.time_us, group.active_us):
            return self._settle(told, None)
        conversion = replace(conversion, device_keys=self._device_keys(group, told))
        app = self._rules.app
        found = {each for key in conversion_keys(app, conversion) for each in self._ids_by_key.get(key, ())}
        candidates = [self._engagements[engagement_id] for engagement_id in found]
        decision = decide(
            conversion,
            group.history,
            self._rules,
            candidates=candidates,
            wins={
                each.engagement_id: self._wins_before(each, told)
                for each in candidates
                if each.tracker_id in self._limited_trackers
            },
            active_us=group.active_us,
            claims=told.record.claims,
        )
        return self._settle(told, decision)

    def _settle(self, told: Told, decision: Decision | None) -> set[str]:
        """Notes a decision; returns the engagements on limited trackers whose wins it changed."""
        conversion_id = told.conversion.conversion_id
        before = told.decision and told.decision.engagement_id
        now = decision and decision.engagement_id
        told.decision = decision
        told.attribution = decision and Attribution.of(told.conversion, decision)
        if before == now:
            return set()
        if before:
            self._wins[before].pop(conversion_id)
        if now:
            self._wins[now][conversion_id] = told.order
        if not self._limited_trackers:
            return set()
        found = (self._engagements.get(each or "") for each in (before, now))
        return {each.engagement_id for each in found if each is not None and each.tracker_id in self._limited_trackers}

    def _converge(self, groups: set[Group], because: Because, now_us: int) -> None:
        """Decides devices again, and those that this concerns, until nothing changes any more (D12)."""
        if not groups or not self._late_window_us:
            return
        before = {told: told.decision for group in groups for told in self._of_group[group]}
        waiting = list(groups)
        while waiting:
            for engagement_id in sorted(self._decide_again(waiting.pop(), now_us)):
                for group in self._concerned(self._engagements[engagement_id]):
                    before = {told: told.decision for told in self._of_group[group]} | before
                    if group not in waiting:
                        waiting.append(group)
        for told, decision in before.items():
            if told.version == 0:
                told.version = 1
            elif is_same(decision, told.decision):
                told.decision = decision  # with the candidates that were known when it was decided
            else:
                told.version, told.because = told.version + 1, because

    def _decide_again(self, group: Group, now_us: int) -> set[str]:
        """Decides a device's conversions in the order of times; returns the engagements whose wins that changed."""
        changed = set[str]()
        in_order = sorted(self._of_group[group], key=lambda told: told.order)
        timeline = Timeline(map(_step, in_order), self._late_window_us)
        for place in timeline.places():
            known, told = timeline.known_to(place), in_order[place]
            if not told.version or not self._is_closed(told, now_us):
                changed |= self._decide(told, known)
            timeline.settle(place, told.attribution)
        group.history = DeviceHistory.made_of(told.attribution for told in in_order if told.attribution)
        group.active_us = [told.order.time_us for told in in_order if told.record.name]
        return changed

    def _is_closed(self, told: Told, now_us: int) -> bool:
        """Returns whether a conversion was decided for good before a time."""
        return told.order.receive_time_us + self._late_window_us < now_us

    def _concerned(self, engagement: Engagement) -> set[Group]:
        """Returns the devices with conversions that an engagement may change: later ones that it matches."""
        since_us = engagement.time_us - SECOND_US  # B1: whole seconds
        if not self._times_us or (self._times_us[-1] <= since_us and engagement.engagement_id not in self._given_back):
            return set()
        later = self._by_time[bisect_right(self._times_us, since_us) :]
        found = set[Group]()
        for told in (*later, *self._given_back.get(engagement.engagement_id, ())):
            if told.group not in found and self._matches(engagement, told):
                found.add(told.group)
        return found

    def _matches(self, engagement: Engagement, told: Told) -> bool:
        conversion = replace(told.conversion, device_keys=self._device_keys(told.group, told))
        return match_kind(engagement, conversion, self._rules.app) is not None

    def _device_keys(self, group: Group, told: Told) -> frozenset[bytes]:
        """Returns the keys of a device's ids, without those that were shared when a conversion was received (A8)."""
        known = [
            each
            for known_as, each in group.ids.items()
            if not self._shared_ids.is_shared_at(known_as, told.order.place)
        ]
        return frozenset[bytes]().union(*(self._keys_of(kind, value) for kind, value in sought_ids(told.ids, known)))

    def _keys_of(self, kind: str, value: str) -> Set[bytes]:
        """Returns the keys under which an engagement may carry an id: of a hash itself, and its raw id (A3)."""
        app_id = self._rules.app.app_id
        if kind not in HASHED_KINDS:
            return raw_id_keys(app_id, value, self._hash_lengths)
        same = self._engaged_ids.of(value, HASHED_KINDS[kind][1]) if is_hash(kind, value) else ()
        return {device_key(app_id, value), *(device_key(app_id, raw_id) for _, raw_id in same)}

    def _wins_before(self, engagement: Engagement, told: Told) -> int:
        """Returns how many conversions an engagement has won before one (D5), in the order of times (D12)."""
        return sum(
            order < told.order
            or not self._late_window_us
            or order.receive_time_us + self._late_window_us < told.order.receive_time_us
            for conversion_id, order in self._wins[engagement.engagement_id].items()
            if conversion_id != told.conversion.conversion_id
        )

    def _mark_duplicates(self, engagement: Engagement) -> list[Engagement]:
        """Marks repeated clicks (A6); returns the others that are, or are no longer, such."""
        ids = self._ids_by_click_id[engagement.tracker_id, engagement.click_id]
        ids.append(engagement.engagement_id)
        group = [self._engagements[engagement_id] for engagement_id in ids]
        repeated = duplicates(group)
        changed = []
        for member in group:
            is_duplicate = member.engagement_id in repeated
            if is_duplicate != member.duplicate:
                marked = self._engagements[member.engagement_id] = replace(member, duplicate=is_duplicate)
                if member is not engagement:
                    changed.append(marked)
        return changed


def _visitor(record: EngagementRecord) -> Visitor:
    """Returns who or what made an engagement (A9): ingest recognises a bot, the gateway a prefetch."""
    if find_bot(record.ua) is not None:
        return Visitor.BOT
    return Visitor.PREFETCH if record.is_prefetch else Visitor.PERSON


def _step(told: Told) -> Step:
    return Step(*told.order, told.ids, is_activity=bool(told.record.name), attribution=told.attribution)
