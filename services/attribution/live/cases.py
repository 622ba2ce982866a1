"""Loads all that deciding a batch of records reads; after this nothing is read any more."""

import uuid
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import NamedTuple

from libs.db import Connection
from reengage.ingest.v1 import log_pb2, record_pb2
from services.attribution.decision.decide import asked_activity_us, eligibility
from services.attribution.decision.history import SESSION_GAP_US
from services.attribution.decision.model import Conversion, ConversionKind
from services.attribution.decision.rules import AppRules
from services.attribution.live import identities
from services.attribution.live.candidates import CandidateQuery, Candidates, find_candidates
from services.attribution.live.hashed_kinds import kinds_to_wait_for
from services.attribution.live.identities import Identities
from services.attribution.live.pending import Asking
from services.attribution.storage import pending
from services.attribution.storage.activity import AskedInactivity, find_latest_activity
from services.attribution.storage.decisions import (
    AskedActivity,
    StoredWin,
    already_decided,
    find_activity,
    find_wins,
)
from services.attribution.storage.devices import Device, find_members
from services.attribution.storage.late_arrivals import AskedDevice, find_latest
from services.attribution.storage.pending import Key, PendingRow
from services.attribution.wire.records import Logged, claims_of, conversion_of, event_name_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One record that is to be decided. Without an event name, as the end of a session, it only makes its device known.

    `merged` are the devices that it shows to be the same as its own, `ids` all that its device is known by, `shared`
    the kinds of those ids of its own that are nobody's, with how many advertising ids share them (A8).
    `network_ids` are those that claims are to be requested from (E1); `waited` is its row once they have answered.
    `active_us`: of a session start, the time of the latest event that it may go on with (D4), if there is one.
    `is_late`: its device has decided conversions that happened later (D12).
    """

    entry: log_pb2.LogEntry
    record: record_pb2.Record
    event_name: str | None
    is_link: bool
    rules: AppRules
    device: Device | None
    merged: tuple[Device, ...]
    ids: tuple[tuple[str, str], ...]
    shared: Mapping[str, int]
    conversion: Conversion
    network_ids: tuple[str, ...]
    waited: PendingRow | None
    active_us: tuple[int, ...] = ()
    is_late: bool = False

    @property
    def is_session_start(self) -> bool:
        """Returns whether it is the event SessionBegin, unless the session goes on (D4)."""
        return self.event_name is not None and self.record.HasField("session")

    @property
    def is_conversion(self) -> bool:
        """Returns whether there is more to it than a device or identities to note."""
        return self.event_name is not None and not self.is_link


class Early(NamedTuple):
    """A record with hashed ids, and those kinds of them that are not ready."""

    logged: Logged
    kinds: Sequence[str]


class Inputs(NamedTuple):
    """The inputs of a batch: its cases in order of receipt, and its devices, which no other batch has.

    `candidates` by the place of the case, of those that may be won. `held` are the devices with a pending install.
    `early` are records with hashed ids of kinds that are not ready (A3), which they wait for. `wins` are the
    conversions won so far by engagements on limited trackers (D5), by app and engagement.
    `active_us` has by the place of the case when its device was active before its candidates, where that matters (D13).
    """

    cases: Sequence[Case]
    identities: Identities
    candidates: Mapping[int, Candidates]
    held: set[uuid.UUID]
    early: Sequence[Early]
    wins: Mapping[str, dict[str, list[StoredWin]]]
    active_us: Mapping[int, Collection[int]]


async def load(
    connection: Connection,
    logged: Sequence[Logged],
    *,
    apps: Mapping[str, AppRules],
    new_id: Callable[[], uuid.UUID],
    asking: Asking,
    resumed: Mapping[Key, PendingRow],
    hashed: Mapping[str, Mapping[str, bool]],
) -> Inputs:
    """Returns the inputs of those of the records, given in order of receipt, that were not decided before.

    `apps` must hold the rules of every app named. `resumed`: the rows of conversions that have waited, if it is those
    that are decided; they are not in the table any more. `hashed` are the kinds of hashed ids by app, and whether they
    are ready.
    """
    fresh: list[Logged] = []
    early: list[Early] = []
    for each in await _fresh(connection, logged, asking):
        if kinds := kinds_to_wait_for(each.record, hashed):
            early.append(Early(each, kinds))
        else:
            fresh.append(each)
    devices = await identities.load(connection, [each.record for each in fresh], new_id, hashed)
    cases = [_case(each, devices, apps, asking, resumed) for each in fresh]
    known_as = await _known_as(connection, cases)
    cases = await _with_activity(connection, cases, known_as)
    cases = await _with_lateness(connection, cases, known_as)
    found = await _candidates(connection, cases)
    return Inputs(
        cases=cases,
        identities=devices,
        candidates=found,
        early=early,
        held=set() if resumed else await _held(connection, cases, asking),
        wins=await _wins(connection, cases, found),
        active_us=await _activity(connection, cases, known_as, found),
    )


async def _fresh(connection: Connection, logged: Sequence[Logged], asking: Asking) -> list[Logged]:
    """Returns those whose record id was not decided before, and is not pending.

    Ingest recognises repeats for 7 days. A sender's own record id that comes back after that is the same conversion all
    the same: nothing is decided twice.
    """
    if not logged:
        return []
    conversions = [(entry.app_lane, record.record_id) for entry, record in logged]
    known = await already_decided(connection, conversions)
    if any(record.app_id in asking.app_ids for _, record in logged):
        known |= await pending.already_pending(connection, conversions)
    fresh = []
    for each in logged:
        key = (each.record.app_id, each.record.record_id)
        if key not in known:
            known.add(key)
            fresh.append(each)
    return fresh


def _case(
    logged: Logged,
    devices: Identities,
    apps: Mapping[str, AppRules],
    asking: Asking,
    resumed: Mapping[Key, PendingRow],
) -> Case:
    entry, record = logged
    event_name = event_name_of(record)
    is_link = record.HasField("identity_link")
    device, merged, ids, shared = devices.take(entry, record, may_create=not is_link)  # a link makes no device (F3)
    row = resumed.get((record.app_id, record.record_id))
    waited = row if row is not None and row.claims is not None else None
    return Case(
        entry=entry,
        record=record,
        event_name=event_name,
        is_link=is_link,
        rules=apps[record.app_id],
        device=device,
        merged=merged,
        ids=ids,
        shared=shared,
        conversion=conversion_of(record, event_name, entry.receive_time_us),
        network_ids=asking.networks.get((record.app_id, event_name or ""), ()) if waited is None else (),
        waited=waited,
    )


async def _known_as(connection: Connection, cases: Sequence[Case]) -> list[Set[uuid.UUID]]:
    """Returns by place the ids under which a case's device has decisions: its own, and of what was merged with it."""
    stored = {
        device.device_id
        for case in cases
        for device in (case.device, *case.merged)
        if device is not None and not device.is_new
    }
    members = await find_members(connection, stored) if stored else {}
    known_as: list[Set[uuid.UUID]] = []
    for case in cases:
        mine = set[uuid.UUID]()
        for device in (case.device, *case.merged):  # what this batch merges is not stored yet
            if device is not None:
                mine |= {device.device_id} | members.get(device.device_id, set())
        if case.merged and case.device is not None:
            members[case.device.device_id] = mine
        known_as.append(mine)
    return known_as


async def _with_activity(
    connection: Connection, cases: Sequence[Case], known_as: Sequence[Set[uuid.UUID]]
) -> list[Case]:
    """Returns the cases, session starts with the time of the latest event that they may go on with (D4)."""
    asked = [
        AskedActivity(place, case.entry.app_lane, case.record.app_id, device_id, case.conversion.time_us)
        for place, case in enumerate(cases)
        if case.is_session_start
        for device_id in known_as[place]
    ]
    if not asked:
        return list(cases)
    active = await find_activity(connection, asked, within_us=SESSION_GAP_US)
    return [replace(case, active_us=tuple(active.get(place, ()))) for place, case in enumerate(cases)]


async def _with_lateness(
    connection: Connection, cases: Sequence[Case], known_as: Sequence[Set[uuid.UUID]]
) -> list[Case]:
    """Returns the cases, those with the mark whose devices have decided conversions that happened later (D12)."""
    new = {case.device.device_id for case in cases if case.device is not None and case.device.is_new}
    asked: dict[uuid.UUID, AskedDevice] = {}  # each once: many may have become one
    may_be_late = {place for place, case in enumerate(cases) if case.is_conversion and case.rules.app.late_window_us}
    for place in may_be_late:
        case = cases[place]
        for device_id in known_as[place] - new:
            asked[device_id] = AskedDevice(case.entry.app_lane, case.record.app_id, device_id)
    if not asked:
        return list(cases)
    latest = await find_latest(
        connection, asked.values(), after_us=min(cases[place].conversion.time_us for place in may_be_late)
    )
    if not latest:
        return list(cases)
    return [
        replace(case, is_late=True)
        if place in may_be_late
        and any(latest.get(device_id, 0) > case.conversion.time_us for device_id in known_as[place])
        else case
        for place, case in enumerate(cases)
    ]


async def _candidates(connection: Connection, cases: Sequence[Case]) -> dict[int, Candidates]:
    """Returns the candidates of every case that can still be won, by its place."""
    # Inside a batch only a merge can make a case winnable that was not: those are always given candidates.
    merging = {case.device.device_id for case in cases if case.merged and case.device is not None}
    queries = {
        place: CandidateQuery(
            rules=case.rules,
            conversion=case.conversion,
            ids=case.ids,
            history=case.device.history,
            until_us=case.conversion.receive_time_us + case.rules.app.late_window_us,
        )
        for place, case in enumerate(cases)
        if case.device is not None
        and case.is_conversion
        and not case.network_ids  # it waits, unless there is nothing to decide or nobody can win
        and (
            case.device.device_id in merging
            or case.device.merged_into is not None
            or eligibility(case.conversion, case.device.history, case.rules) is None
        )
    }
    found = await find_candidates(connection, list(queries.values()))
    return dict(zip(queries, found, strict=True))


async def _wins(
    connection: Connection, cases: Sequence[Case], found: Mapping[int, Candidates]
) -> dict[str, dict[str, list[StoredWin]]]:
    """Returns the conversions that the candidates on limited trackers have won so far (D5), by app and engagement."""
    limited = {
        (cases[place].entry.app_lane, engagement.engagement_id)
        for place, candidates in found.items()
        for engagement in candidates.engagements.values()
        if engagement.tracker_id in cases[place].rules.limited_trackers
    }
    wins: dict[str, dict[str, list[StoredWin]]] = {case.record.app_id: {} for case in cases}
    for won in await find_wins(connection, limited) if limited else ():
        wins.setdefault(won.app_id, {}).setdefault(won.engagement_id, []).append(won)
    return wins


async def _activity(
    connection: Connection,
    cases: Sequence[Case],
    known_as: Sequence[Set[uuid.UUID]],
    found: Mapping[int, Candidates],
) -> Mapping[int, Collection[int]]:
    """Returns by place when the device of a case was active before its candidates, if its app asks for that (D13)."""
    asked: set[AskedInactivity] = set()
    for place, case in enumerate(cases):
        app = case.rules.app
        if app.inactivity_window_us and case.conversion.kind is ConversionKind.EVENT and place in found:
            claims, _ = claims_of(None if case.waited is None else case.waited.claims)
            asked |= {
                AskedInactivity(
                    place=place,
                    lane=case.entry.app_lane,
                    app_id=app.app_id,
                    device_id=device_id,
                    time_us=time_us,
                    within_us=app.inactivity_window_us,
                    until_us=case.conversion.receive_time_us + app.late_window_us,
                )
                for device_id in known_as[place]
                for time_us in asked_activity_us(case.conversion, found[place].engagements.values(), claims)
            }
    return await find_latest_activity(connection, asked) if asked else {}


async def _held(connection: Connection, cases: Sequence[Case], asking: Asking) -> set[uuid.UUID]:
    """Returns the devices with a pending install: it holds back what they sent later."""
    return await pending.held_devices(
        connection,
        {
            (case.entry.app_lane, device.device_id)
            for case in cases
            if case.record.app_id in asking.app_ids
            for device in (case.device, *case.merged)
            if device is not None
        },
    )
