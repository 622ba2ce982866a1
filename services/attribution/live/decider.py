"""Decides a batch of conversions: loads what the decisions read, decides in order of receipt, answers what to write.

What an app's decisions read and write is owned by one worker at a time, so no device is decided on stale state.
"""

import asyncio
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from libs.db import Connection
from libs.domain.event_names import INSTALL
from reengage.attribution.v1 import decision_pb2
from reengage.ingest.v1 import log_pb2, record_pb2
from services.attribution.decision.decide import CONSIDERED_US, decide, eligibility
from services.attribution.decision.history import DeviceHistory, merge
from services.attribution.decision.matching import own_key
from services.attribution.decision.model import Conversion, Engagement, Reason
from services.attribution.decision.rules import AppRules
from services.attribution.live.candidates import Question, find_candidates
from services.attribution.storage import pending as waiting
from services.attribution.storage.pending import NOBODY, Asking, Key, WaitingRow
from services.attribution.storage.store import DecisionRow, Device, Store, heads_text
from services.attribution.wire.decisions import decision_message, linked_message, refused_message
from services.attribution.wire.records import (
    Logged,
    claims_of,
    conversion_of,
    event_name_of,
    identity_key,
)

MOST_IDS = 20
"""OURS: of each kind a device keeps its latest ids; older ones still lead to it, but find no engagements any more.

Else an id that many devices share, a `custom` of "guest" say, makes one device of them that grows with every record."""

_TURN = 50
"""Cases between two turns for others: with many candidates a batch takes seconds, and leases are to be renewed."""

_NO_DEVICE = uuid.UUID(int=0)


@dataclass(slots=True, kw_only=True)
class Case:
    """One record on its way to a decision. No event name: the end of a session, which only makes its device known.

    `network_ids` are those that claims are to be requested from (E1); `waited` is its row once they have answered.
    """

    entry: log_pb2.LogEntry
    record: record_pb2.Record
    event_name: str | None
    is_link: bool
    rules: AppRules
    device: Device | None
    merged: tuple[Device, ...]
    ids: tuple[tuple[str, str], ...]
    conversion: Conversion
    network_ids: tuple[str, ...]
    waited: WaitingRow | None
    candidates: dict[str, Engagement] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Batch:
    """What deciding a batch changed; nothing is written yet.

    `heads`: up to where the log was considered. `waiting` are those not decided yet (E1), `merged` says of devices
    (lane, device id) that may have some what they turned out to be.
    """

    round_id: uuid.UUID
    heads: Sequence[int]
    decisions: list[DecisionRow] = field(default_factory=list)
    devices: list[Device] = field(default_factory=list)
    identifiers: dict[bytes, uuid.UUID] = field(default_factory=dict)
    next_sequences: dict[int, int] = field(default_factory=dict)
    waiting: list[WaitingRow] = field(default_factory=list)
    merged: dict[tuple[int, uuid.UUID], uuid.UUID] = field(default_factory=dict)


async def decide_batch(
    store: Store,
    connection: Connection,
    logged: Sequence[Logged],
    *,
    heads: Sequence[int],
    apps: Mapping[str, AppRules],
    next_sequences: Mapping[int, int],
    new_id: Callable[[], uuid.UUID],
    now_us: int,
    asking: Asking = NOBODY,
    resumed: Mapping[Key, WaitingRow] = MappingProxyType({}),
) -> Batch:
    """Decides what of the log, given in order of receipt, was not decided before, or has it wait for claims (E1).

    Only engagements below `heads` are considered (G5). `apps` must hold the rules of every app named. `resumed`: the
    rows of conversions that have waited, if it is those that are decided; they are not in the table any more.
    """
    batch = Batch(round_id=new_id(), heads=heads, next_sequences=dict(next_sequences))
    new = await _new(store, connection, logged, asking)
    cases = await _Identities(store, connection, batch, new_id).resolve(new, apps, asking, resumed)
    held = set() if resumed else await _held(connection, cases, asking)
    await _fetch_candidates(store, connection, cases, heads)
    wins = await _wins(store, connection, cases)
    sources: dict[int, tuple[str, int]] = {}  # place in batch.decisions: engagement id to show beside it, when it won
    for number, case in enumerate(cases):
        if number % _TURN == 0:
            await asyncio.sleep(0)
        _join_histories(case, batch.next_sequences[case.entry.app_lane], held)
        if (row := _must_wait(case, held, asking.deadline_us)) is not None:
            batch.waiting.append(row)
            continue
        message = _decide_case(case, wins[case.record.app_id])
        if message is None:
            continue
        message.app_id = case.record.app_id
        message.version = 1
        message.event_name = case.event_name or ""
        message.receive_time.FromMicroseconds(case.entry.receive_time_us)
        message.decide_time.FromMicroseconds(now_us)
        if case.device is not None:
            message.device_id = str(case.device.device_id)
        engagement_id, won_us = _engagement_behind(case, message)
        if engagement_id and not engagement_id.startswith("claim:"):
            sources[len(batch.decisions)] = engagement_id, won_us
        lane = case.entry.app_lane
        batch.decisions.append(_row(case, message, lane, batch))
        batch.next_sequences[lane] += 1
    batch.merged = _merged(cases, batch.devices, asking)
    batch.devices = [device for device in batch.devices if device.changed]
    await _attach_engagements(store, connection, batch, sources)
    return batch


async def write_batch(store: Store, connection: Connection, batch: Batch) -> None:
    """Write what deciding changed, except the worker's own positions."""
    if batch.devices:
        await store.upsert_devices(connection, batch.devices)
    if batch.identifiers:
        await store.upsert_identifiers(connection, batch.identifiers)
    if batch.decisions:
        await store.insert_round(connection, batch.round_id, batch.heads, batch.decisions)
        await store.insert_decisions(connection, batch.decisions)
    if batch.waiting:
        await waiting.insert(connection, batch.waiting)
    if batch.merged:
        await waiting.move(connection, batch.merged)


async def _new(store: Store, connection: Connection, logged: Sequence[Logged], asking: Asking) -> list[Logged]:
    """Those whose record id was not decided before, and does not wait.

    Ingest recognises repeats for 7 days. A sender's own record id that comes back after that is the same conversion all
    the same: nothing is decided twice.
    """
    if not logged:
        return []
    conversions = [(entry.app_lane, record.record_id) for entry, record in logged]
    decided = await store.already_decided(connection, conversions)
    if any(record.app_id in asking.app_ids for _, record in logged):
        decided |= await waiting.already_waiting(connection, conversions)
    fresh = []
    for each in logged:
        key = (each.record.app_id, each.record.record_id)
        if key not in decided:
            decided.add(key)
            fresh.append(each)
    return fresh


class _Identities:
    """Finds, makes, extends and merges the devices of a batch's records, in their order."""

    def __init__(self, store: Store, connection: Connection, batch: Batch, new_id: Callable[[], uuid.UUID]) -> None:
        self._store, self._connection, self._batch, self._new_id = store, connection, batch, new_id
        self._by_key: dict[bytes, Device] = {}

    async def resolve(
        self,
        logged: Sequence[Logged],
        apps: Mapping[str, AppRules],
        asking: Asking,
        resumed: Mapping[Key, WaitingRow],
    ) -> list[Case]:
        await self._load([record for _, record in logged])
        cases = []
        for entry, record in logged:
            event_name = event_name_of(record)
            is_link = record.HasField("identity_link")
            device, merged = self._device_of(entry, record, may_create=not is_link)
            row = resumed.get((record.app_id, record.record_id))
            waited = row if row is not None and row.claims is not None else None
            networks = asking.networks.get((record.app_id, event_name or ""), ()) if waited is None else ()
            cases.append(
                Case(
                    entry=entry,
                    record=record,
                    event_name=event_name,
                    is_link=is_link,
                    rules=apps[record.app_id],
                    device=device,
                    merged=merged,
                    ids=() if device is None else _ids(device, record),
                    conversion=conversion_of(record, event_name),
                    network_ids=networks,
                    waited=waited,
                )
            )
        return cases

    async def _load(self, records: Iterable[record_pb2.Record]) -> None:
        keys = {key for record in records for key in _identity_keys(record)}
        owners = await self._store.find_identifiers(self._connection, keys)
        devices = await self._store.find_devices(self._connection, set(owners.values()))
        while signposts := {into for each in devices.values() if (into := each.merged_into)} - devices.keys():
            devices |= await self._store.find_devices(self._connection, signposts)
        for key, device_id in owners.items():
            device = devices[device_id]
            while device.merged_into is not None:
                device = devices[device.merged_into]
            self._by_key[key] = device
        self._batch.devices.extend(devices.values())

    def _device_of(
        self, entry: log_pb2.LogEntry, record: record_pb2.Record, *, may_create: bool
    ) -> tuple[Device | None, tuple[Device, ...]]:
        """The record's device, and those that turn out to be the same one: they become the one known longest."""
        keys = _identity_keys(record)
        found = {device.device_id: device for key in keys if (device := self._by_key.get(key)) is not None}
        known = sorted(found.values(), key=lambda device: (device.create_time_us, device.device_id))
        if not known:
            if not may_create:
                return None, ()
            known = [self._make(entry, record)]
        device, *others = known
        for other in others:
            self._merge(other, into=device)
        for key, (kind, value) in keys.items():
            if self._by_key.get(key) is not device:
                self._by_key[key] = device
                self._batch.identifiers[key] = device.device_id
                _learn(device, kind, [value])
                device.changed = True
        return device, tuple(others)

    def _make(self, entry: log_pb2.LogEntry, record: record_pb2.Record) -> Device:
        device = Device.new(self._new_id(), record.app_id, entry.receive_time_us)
        self._batch.devices.append(device)
        return device

    def _merge(self, other: Device, *, into: Device) -> None:
        """Move the ids; the histories are merged when the record's turn to be decided comes."""
        self._by_key = {key: into if device is other else device for key, device in self._by_key.items()}
        for kind, values in other.ids.items():
            _learn(into, kind, values)
            for value in values:
                key = identity_key(other.app_id, kind, value)
                self._by_key[key] = into
                self._batch.identifiers[key] = into.device_id
        other.merged_into = into.device_id
        other.changed = into.changed = True


def _learn(device: Device, kind: str, values: Sequence[str]) -> None:
    device.ids[kind] = [*device.ids.get(kind, ()), *values][-MOST_IDS:]


def _ids(device: Device, record: record_pb2.Record) -> tuple[tuple[str, str], ...]:
    """The ids by which a record's engagements are found: its own, and those of its device."""
    known = ((kind, value) for kind, values in device.ids.items() for value in values)
    return tuple(dict.fromkeys((*record.device_ids.items(), *known)))


def _identity_keys(record: record_pb2.Record) -> dict[bytes, tuple[str, str]]:
    return {identity_key(record.app_id, kind, value): (kind, value) for kind, value in record.device_ids.items()}


async def _fetch_candidates(store: Store, connection: Connection, cases: Sequence[Case], heads: Sequence[int]) -> None:
    """Give every case that can still be won its candidates."""
    # Inside a batch only a merge can make a case winnable that was not: those are always given candidates.
    merging = {case.device.device_id for case in cases if case.merged and case.device is not None}
    wanted = {
        number: Question(rules=case.rules, conversion=case.conversion, ids=case.ids, history=case.device.history)
        for number, case in enumerate(cases)
        if case.device is not None
        and case.event_name is not None
        and not case.is_link
        and not case.network_ids  # it waits, unless there is nothing to decide or nobody can win
        and (
            case.device.device_id in merging
            or case.device.merged_into is not None
            or eligibility(case.conversion, case.device.history, case.rules) is None
        )
    }
    await find_candidates(store, connection, list(wanted.values()), [heads_text(heads)])
    for number, question in wanted.items():
        cases[number].conversion, cases[number].candidates = question.conversion, question.candidates


async def _wins(store: Store, connection: Connection, cases: Sequence[Case]) -> dict[str, dict[str, int]]:
    """How many conversions the candidates on limited trackers have won so far (D5), by app and engagement."""
    limited = {
        (case.entry.app_lane, engagement.engagement_id)
        for case in cases
        for engagement in case.candidates.values()
        if (tracker := case.rules.trackers.get(engagement.tracker_id)) is not None
        and tracker.tracker.max_conversions_per_engagement
    }
    wins: dict[str, dict[str, int]] = {case.record.app_id: {} for case in cases}
    for app_id, engagement_id, count in await store.count_wins(connection, limited) if limited else ():
        wins.setdefault(app_id, {})[engagement_id] = count
    return wins


async def _held(connection: Connection, cases: Sequence[Case], asking: Asking) -> set[uuid.UUID]:
    """The devices of which an install waits: it holds back what they sent later."""
    return await waiting.held_devices(
        connection,
        {
            (case.entry.app_lane, device.device_id)
            for case in cases
            if case.record.app_id in asking.app_ids
            for device in (case.device, *case.merged)
            if device is not None
        },
    )


def _join_histories(case: Case, sequence: int, held: set[uuid.UUID]) -> None:
    """Merge the histories of devices that a record showed to be one; decisions from `sequence` on know both."""
    if (device := case.device) is None:
        return
    for other in case.merged:
        device.history = merge(device.history, other.history)
        device.identities = {**other.identities, **device.identities}
        other.history, other.identities, other.merge_sequence = DeviceHistory(), {}, sequence
        if other.device_id in held:
            held.add(device.device_id)


def _must_wait(case: Case, held: set[uuid.UUID], deadline_us: int) -> WaitingRow | None:
    """The row to wait in, for claims or behind an install of its device that does; None if its turn is now."""
    device, entry, is_install = case.device, case.entry, case.event_name == INSTALL
    if device is None or case.event_name is None or case.is_link:
        return None
    is_held = device.device_id in held
    if case.waited is not None:
        return case.waited if is_held else None
    network_ids = _asked_now(case, device, is_held) if case.network_ids else ()
    if not network_ids and not is_held:
        return None
    if is_install:
        held.add(device.device_id)
    return WaitingRow(
        lane=entry.app_lane,
        app_id=case.record.app_id,
        conversion_id=case.record.record_id,
        device_id=device.device_id,
        is_install=is_install,
        log_lane=entry.lane,
        position=entry.position,
        receive_time_us=entry.receive_time_us,
        settings_revision=case.record.settings_revision,
        record=entry.record,
        network_ids=list(network_ids),
        deadline_us=deadline_us,
    )


def _asked_now(case: Case, device: Device, is_held: bool) -> tuple[str, ...]:
    """The networks to ask about a case now: none about a duplicate install, or a session that fires no SessionBegin.

    Whether it is such a one is known once the install is decided that holds it back.
    """
    is_session = case.record.HasField("session")
    if case.event_name == INSTALL:
        may_ask = not is_held and eligibility(case.conversion, device.history, case.rules) is None
    elif is_session:
        may_ask = not is_held and device.history.begins_session(case.conversion.time_us)
    else:
        may_ask = True
    if may_ask and is_session:  # a second one that comes meanwhile fires nothing
        device.history = device.history.after_session(case.conversion.time_us)
        device.changed = True
    return case.network_ids if may_ask else ()


def _merged(cases: Sequence[Case], devices: Sequence[Device], asking: Asking) -> dict[tuple[int, uuid.UUID], uuid.UUID]:
    """What devices that were merged, of apps that may have conversions waiting, have become in the end."""
    merging = [case for case in cases if case.merged and case.record.app_id in asking.app_ids]
    by_id = {device.device_id: device for device in devices} if merging else {}
    merged = {}
    for case in merging:
        for other in case.merged:
            device = other
            while device.merged_into is not None:
                device = by_id[device.merged_into]
            merged[case.entry.app_lane, other.device_id] = device.device_id
    return merged


def _decide_case(case: Case, wins: dict[str, int]) -> decision_pb2.Decision | None:
    """Decide one case and take its effect on its device; None when there is nothing to decide."""
    device = case.device
    if device is None:  # only an identity link makes no device (F3)
        return refused_message(case.conversion, case.rules.revision, Reason.DEVICE_NOT_KNOWN)
    if case.event_name is None:
        return None
    if case.is_link:
        device.identities = {**device.identities, **case.record.identity_link.identities}
        device.changed = True
        return linked_message(case.conversion, case.rules.revision)
    conversion = case.conversion
    if case.record.HasField("session") and case.waited is None:  # else it has begun when it began to wait
        if not device.history.begins_session(conversion.time_us):
            return None
        device.history = device.history.after_session(conversion.time_us)
        device.changed = True
    claims, claims_unavailable = claims_of(case.waited.claims if case.waited is not None else None)
    decision = decide(
        conversion,
        device.history,
        case.rules,
        candidates=case.candidates.values(),
        wins=wins,
        claims=claims,
        claims_unavailable=claims_unavailable,
    )
    if decision.engagement_id is not None:
        wins[decision.engagement_id] = wins.get(decision.engagement_id, 0) + 1
    history = device.history.after(conversion, decision)
    if history is not device.history:
        device.history = history.compacted(case.entry.receive_time_us)
        device.changed = True
    return decision_message(conversion, decision)


def _engagement_behind(case: Case, message: decision_pb2.Decision) -> tuple[str, int]:
    """The engagement that won a conversion, "" if there is none, and the time of what it won.

    Or the one that won the source it is credited to: networks want their click id on it as well.
    """
    time_us = case.conversion.time_us
    if message.outcome != decision_pb2.OUTCOME_CREDITED or case.device is None:
        return message.engagement_id, time_us
    source = case.device.history.source_at(time_us)
    return (source.engagement_id or "", source.time_us) if source is not None else ("", time_us)


def _row(case: Case, message: decision_pb2.Decision, lane: int, batch: Batch) -> DecisionRow:
    return DecisionRow(
        lane=lane,
        sequence=batch.next_sequences[lane],
        app_id=message.app_id,
        conversion_id=message.conversion_id,
        version=message.version,
        round_id=batch.round_id,
        device_id=_NO_DEVICE if case.device is None else case.device.device_id,
        outcome=message.outcome,
        conversion_time_us=case.conversion.time_us,
        retention_days=case.rules.app.retention_days,
        tracker_id=message.tracker_id or None,
        engagement_id=message.engagement_id or None,
        decision=message.SerializeToString(),
        record=case.entry.record,
        engagement=None,
        known_ids=_known_ids(case),
        claims=None if case.waited is None else case.waited.claims,
    )


def _known_ids(case: Case) -> dict[str, list[str]] | None:
    """The ids beside the record's own that its device was known by; usually there are none."""
    known: dict[str, list[str]] = {}
    for kind, value in case.ids:
        if case.record.device_ids.get(kind) != value:
            known.setdefault(kind, []).append(value)
    return known or None


async def _attach_engagements(
    store: Store, connection: Connection, batch: Batch, sources: Mapping[int, tuple[str, int]]
) -> None:
    """Put the record of the engagement beside each decision that has one."""
    if not sources:
        return
    apps = {place: batch.decisions[place].app_id for place in sources}
    keys = {place: (own_key(apps[place], name), won_us, apps[place]) for place, (name, won_us) in sources.items()}
    records = await store.find_records(connection, set(keys.values()), span_us=CONSIDERED_US)
    for place, (key, _, _) in keys.items():
        batch.decisions[place] = batch.decisions[place]._replace(engagement=records.get(key))
