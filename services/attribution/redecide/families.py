"""Reads devices for a replay, each together with those that were merged with it: they are one device in the end."""

import uuid
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field

from libs.db import Connection
from services.attribution.decision.grouping import Sighting, Step, Timeline
from services.attribution.decision.history import Attribution, DeviceHistory
from services.attribution.decision.matching import Id
from services.attribution.redecide.stored_conversions import attribution_as_stored, ids_of, is_event
from services.attribution.storage.replay import (
    Period,
    Remembered,
    Stored,
    find_conversions,
    find_merges,
    find_remembered,
)


@dataclass(slots=True, kw_only=True)
class Family:
    """A device and those merged with it: the newest versions of their conversions, by id.

    `device_id` is the one that they became, `device_ids` are all. `dropped` are the attributions that only the devices
    themselves remember, because retention has dropped their decisions; `session_us` the times of their sessions that
    went on (D4).
    """

    device_id: uuid.UUID
    device_ids: set[uuid.UUID] = field(default_factory=set)
    conversions: dict[str, Stored] = field(default_factory=dict)
    dropped: tuple[Attribution, ...] = ()
    session_us: tuple[int, ...] = ()
    sightings: list[Sighting] = field(default_factory=list)

    _steps: list[Step] = field(default_factory=list)

    def add(self, stored: Stored) -> None:
        """Adds a version of a conversion, unless a newer one is there."""
        other = self.conversions.get(stored.conversion_id)
        if other is None or other.version < stored.version:
            self.conversions[stored.conversion_id] = stored
            self._steps.clear()

    def timeline(self, late_window_us: int) -> Timeline:
        """Returns the timeline of the conversions, and of what else is known; that has no record."""
        if not self._steps:
            self._steps += self._as_steps(by_receipt=not late_window_us)
        timeline = Timeline(self._steps, late_window_us)
        if not timeline.is_plain:
            for place, step in enumerate(timeline.steps):
                if step.record is not None:
                    timeline.assume(place, attribution_as_stored(step.record))
        return timeline

    def _as_steps(self, *, by_receipt: bool) -> Iterator[Step]:
        decided_us, only_ids = 0, self._only_ids()
        conversions: Iterable[Stored] = self.conversions.values()
        if by_receipt:
            conversions = sorted(conversions, key=lambda stored: stored.sequence)
        for stored in conversions:
            # Without a late window the order is that of deciding: what waited for claims comes after what did not.
            decided_us = max(decided_us, stored.receive_time_us) if by_receipt else stored.receive_time_us
            ids = ids_of(stored) if only_ids is None else only_ids
            yield Step(stored.time_us, decided_us, stored.sequence, ids, is_event(stored), None, stored)
        for each in self.sightings if only_ids is None else ():
            yield Step(each.time_us, each.receive_time_us, -1, tuple(each.ids.items()))
        some_ids = tuple(self.sightings[0].ids.items()) if self.sightings else ()
        for dropped in self.dropped:
            yield Step(dropped.time_us, dropped.receive_time_us, -1, some_ids, attribution=dropped)
        if self.session_us:
            # A session start is noted while it waits for claims, too, and does not go on with itself.
            began_us = {each.time_us for each in self.conversions.values()}
            for each_us in self.session_us:
                if each_us not in began_us:
                    yield Step(each_us, each_us, -1, some_ids, is_activity=True)

    def known_ids(self, late_window_us: int) -> dict[str, tuple[Id, ...]]:
        """Returns the ids that the device was known by at each conversion."""
        if (only_ids := self._only_ids()) is not None:
            return dict.fromkeys(self.conversions, only_ids)
        timeline = self.timeline(late_window_us)
        known = {}
        for place in timeline.places():
            group, step = timeline.known_to(place), timeline.steps[place]
            if step.record is not None:
                known[step.record.conversion_id] = tuple(dict.fromkeys((*step.ids, *group.ids.values())))
            timeline.settle(place, None)
        return known

    def _only_ids(self) -> tuple[Id, ...] | None:
        """Returns the ids that every record named, None where they differ. Mostly they are the same."""
        if not self.sightings:
            return None
        first, *others = self.sightings
        return None if any(each.ids != first.ids for each in others) else tuple(first.ids.items())


async def read_families(
    connection: Connection, period: Period, device_ids: Collection[uuid.UUID], turn: Callable[[], Awaitable[None]]
) -> list[Family]:
    """Returns the families of these devices that have conversions in the period."""
    merges = await find_merges(connection, device_ids)
    into = {merge.device_id: merge.into for merge in merges}
    everybody = {*device_ids, *into, *into.values()}
    families = {device_id: Family(device_id=device_id) for device_id in everybody if device_id not in into}
    for stored in await find_conversions(connection, period, everybody):
        families[_survivor(into, stored.device_id)].add(stored)
    await turn()
    remembered = await find_remembered(connection, everybody)
    for device_id in everybody:
        family = families[_survivor(into, device_id)]
        family.device_ids.add(device_id)
        if device_id in remembered:
            _remember(family, remembered[device_id])
    return [family for family in families.values() if any(c.in_period for c in family.conversions.values())]


def _survivor(into: dict[uuid.UUID, uuid.UUID], device_id: uuid.UUID) -> uuid.UUID:
    while device_id in into:
        device_id = into[device_id]
    return device_id


def _remember(family: Family, remembered: Remembered) -> None:
    history = DeviceHistory.from_json({"attributions": remembered.attributions, "session_us": remembered.session_us})
    family.dropped += tuple(a for a in history.attributions if a.conversion_id not in family.conversions)
    family.session_us += history.session_us
    family.sightings += remembered.sightings
