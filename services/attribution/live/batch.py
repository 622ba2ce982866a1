"""Decides a batch of conversions: all is loaded, then decided in order of receipt; the changes are a value."""

import asyncio
import uuid
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from libs.db import Connection
from libs.domain.event_names import INSTALL
from reengage.attribution.v1 import decision_pb2
from services.attribution.decision.decide import decide, eligibility
from services.attribution.decision.history import DeviceHistory, merge
from services.attribution.decision.matching import address_key
from services.attribution.decision.model import Conversion, ConversionKind, Reason, Verdict, Win
from services.attribution.decision.rules import AppRules
from services.attribution.live import cases
from services.attribution.live.candidates import Candidates
from services.attribution.live.cases import Case, Inputs
from services.attribution.live.changes import Changes, Won
from services.attribution.live.pending import NOBODY, Asking, row_of
from services.attribution.storage.decisions import DecisionRow, StoredWin
from services.attribution.storage.devices import NO_DEVICE, Device
from services.attribution.storage.hashed_ids import HashedKind
from services.attribution.storage.late_arrivals import LateArrival
from services.attribution.storage.pending import Key, PendingRow
from services.attribution.wire.decisions import (
    continued_message,
    decision_message,
    describe,
    linked_message,
    refused_message,
)
from services.attribution.wire.records import Logged, claims_of

_TURN = 50
"""Cases between two turns for others: with many candidates a batch takes seconds, and leases are to be renewed."""


async def decide_batch(
    connection: Connection,
    logged: Sequence[Logged],
    *,
    apps: Mapping[str, AppRules],
    next_sequences: Mapping[int, int],
    new_id: Callable[[], uuid.UUID],
    now_us: int,
    asking: Asking = NOBODY,
    resumed: Mapping[Key, PendingRow] = MappingProxyType({}),
    hashed: Mapping[str, Mapping[str, bool]] = MappingProxyType({}),
) -> Changes:
    """Decides what of the log was not decided before, or has it wait for claims (E1); the arguments are `cases.load`'s.

    `next_sequences` has for each home lane the sequence of its next decision.
    """
    inputs = await cases.load(
        connection, logged, apps=apps, new_id=new_id, asking=asking, resumed=resumed, hashed=hashed
    )
    batch = _Batch(inputs, next_sequences, now_us, asking)
    for place, case in enumerate(inputs.cases):
        if place % _TURN == 0:
            await asyncio.sleep(0)
        batch.take(place, case)
    return batch.changes()


class _Batch:
    """A batch while it is decided, case by case: what is read is all in its inputs."""

    def __init__(self, inputs: Inputs, next_sequences: Mapping[int, int], now_us: int, asking: Asking) -> None:
        self._inputs, self._now_us, self._asking = inputs, now_us, asking
        self._next_sequences = dict(next_sequences)
        self._decisions: list[DecisionRow] = []
        self._won: dict[int, Won] = {}
        self._pending: list[PendingRow] = []
        self._late: set[LateArrival] = set()
        self._reported_late: list[str] = []
        self._latest_us: dict[uuid.UUID, int] = {}
        self._active: dict[uuid.UUID, list[int]] = {}

    def take(self, place: int, case: Case) -> None:
        """Decides a case, or has it wait."""
        self._join_histories(case)
        is_held = case.device is not None and case.device.device_id in self._inputs.held
        goes_on = case.device is not None and case.is_session_start and self._goes_on(case, case.device)
        network_ids = _networks_to_ask(case, is_held=is_held, goes_on=goes_on)
        if network_ids or (is_held and case.is_conversion):
            self._begin_to_wait(case, network_ids)
            return
        if goes_on and case.device is not None:
            self._go_on(case, case.device)
            return
        self._decide(place, case)

    def changes(self) -> Changes:
        """Returns what the cases taken have changed."""
        devices = self._inputs.identities.devices
        return Changes(
            decisions=self._decisions,
            won=self._won,
            devices=[device for device in devices if device.changed],
            identifiers=self._inputs.identities.identifiers,
            shared_ids=self._inputs.identities.shared,
            pending=[*self._pending, *(row_of(early.logged, NO_DEVICE) for early in self._inputs.early)],
            begun_kinds=[
                HashedKind(early.logged.record.app_id, kind, early.logged.entry.app_lane)
                for early in self._inputs.early
                for kind in early.kinds
            ],
            merged=_merged(self._inputs.cases, devices, self._asking),
            late=sorted(self._late, key=lambda late: (late.lane, late.receive_time_us, late.record_id)),
            reported_late=self._reported_late,
        )

    def _join_histories(self, case: Case) -> None:
        """Merges the histories of devices that a record showed to be one; decisions from it on know both."""
        if (device := case.device) is None:
            return
        held = self._inputs.held
        for other in case.merged:
            device.history = merge(device.history, other.history)
            device.identities = {**other.identities, **device.identities}
            other.history, other.identities = DeviceHistory(), {}
            other.merge_sequence = self._next_sequences[case.entry.app_lane]
            self._active.setdefault(device.device_id, []).extend(self._active.pop(other.device_id, ()))
            self._note_time(device, self._latest_us.pop(other.device_id, 0))
            if other.device_id in held:
                held.add(device.device_id)

    def _begin_to_wait(self, case: Case, network_ids: Sequence[str]) -> None:
        """Has a case wait for claims, or behind an install of its device that does."""
        if case.waited is not None:  # behind another install; what networks said of it stays
            self._pending.append(case.waited)
            return
        assert case.device is not None
        if network_ids and case.is_session_start:
            _note_session(case, case.device)  # one that starts meanwhile goes on with it
        is_install = case.event_name == INSTALL
        if is_install:
            self._inputs.held.add(case.device.device_id)
        self._pending.append(
            row_of(
                Logged(case.entry, case.record),
                case.device.device_id,
                is_install=is_install,
                network_ids=network_ids,
                deadline_us=self._asking.deadline_us,
            )
        )

    def _decide(self, place: int, case: Case) -> None:
        """Decides one case and takes its effect on its device, if there is anything to decide."""
        device, revision = case.device, case.rules.revision
        if device is None:  # only an identity link makes no device (F3)
            self._append(case, refused_message(case.conversion, revision, Reason.DEVICE_NOT_KNOWN))
        elif case.is_link:
            device.identities = {**device.identities, **case.record.identity_link.identities}
            device.changed = True
            self._append(case, linked_message(case.conversion, revision))
        elif case.event_name is not None:
            self._decide_conversion(place, case, device)

    def _go_on(self, case: Case, device: Device) -> None:
        """Notes a session that goes on (D4). In the order of times a late one may not: that is decided again (D12)."""
        _note_session(case, device)
        if case.rules.app.late_window_us and self._happened_before_others(case, device):
            self._append(case, continued_message(case.conversion, case.rules.revision))
            self._note_lateness(case, device, "")

    def _decide_conversion(self, place: int, case: Case, device: Device) -> None:
        found = self._inputs.candidates.get(place)
        conversion = case.conversion if found is None else found.conversion
        claims, claims_unavailable = claims_of(None if case.waited is None else case.waited.claims)
        active_us = self._active.setdefault(device.device_id, [])
        decision = decide(
            conversion,
            device.history,
            case.rules,
            candidates=() if found is None else found.engagements.values(),
            wins=self._wins_before(case, found),
            active_us=(*active_us, *self._inputs.active_us.get(place, ())),
            claims=claims,
            claims_unavailable=claims_unavailable,
        )
        self._reported_late += [c.network_id for c in decision.candidates if c.verdict is Verdict.REPORTED_LATE]
        if conversion.kind is ConversionKind.EVENT:
            active_us.append(conversion.time_us)
        if case.rules.app.late_window_us:
            self._note_lateness(case, device, decision.engagement_id or "")
        if decision.engagement_id is not None and decision.tracker_id in case.rules.limited_trackers:
            won = StoredWin(case.record.app_id, decision.engagement_id, device.device_id, _win(conversion))
            self._inputs.wins[won.app_id].setdefault(won.engagement_id, []).append(won)
        history = device.history.after(conversion, decision)
        if history is not device.history:
            device.history = history.compacted(case.entry.receive_time_us)
            device.changed = True
        self._append(case, decision_message(conversion, decision), found)

    def _wins_before(self, case: Case, found: Candidates | None) -> dict[str, int]:
        """Returns how many conversions the candidates on limited trackers have won before a case (D5)."""
        limited, late_window_us = case.rules.limited_trackers, case.rules.app.late_window_us
        if found is None or not limited:
            return {}
        won = self._inputs.wins[case.record.app_id]
        return {
            each.engagement_id: sum(one.win.counts_for(found.conversion, late_window_us) for one in won_by)
            for each in found.engagements.values()
            if each.tracker_id in limited and (won_by := won.get(each.engagement_id))
        }

    def _note_lateness(self, case: Case, device: Device, engagement_id: str) -> None:
        """Notes the devices that are to be decided again, because this conversion happened before others (D12).

        `engagement_id` is of the engagement that has won it.
        """
        before = self._inputs.wins[case.record.app_id].get(engagement_id, ())
        late_window_us = case.rules.app.late_window_us
        concerned = {won.device_id for won in before if not won.win.counts_for(case.conversion, late_window_us)}
        if self._happened_before_others(case, device):
            concerned.add(device.device_id)
        self._note_time(device, case.conversion.time_us)
        if not concerned:
            return
        is_install = case.event_name == INSTALL
        self._late.update(
            LateArrival(
                lane=case.entry.app_lane,
                app_id=case.record.app_id,
                record_id=case.record.record_id,
                receive_time_us=case.entry.receive_time_us,
                because=decision_pb2.BECAUSE_LATE_INSTALL if is_install else decision_pb2.BECAUSE_LATE_EVENT,
                device_id=device_id,
            )
            for device_id in concerned
        )

    def _happened_before_others(self, case: Case, device: Device) -> bool:
        time_us = case.conversion.time_us
        return case.is_late or time_us < self._latest_us.get(device.device_id, time_us)

    def _note_time(self, device: Device, time_us: int) -> None:
        self._latest_us[device.device_id] = max(time_us, self._latest_us.get(device.device_id, 0))

    def _goes_on(self, case: Case, device: Device) -> bool:
        """Returns whether a session start goes on with what its device did before, in this batch or earlier (D4)."""
        history = device.history
        if case.waited is not None:  # it was noted when it began to wait, and does not go on with itself
            history = history.without_session(case.conversion.time_us)
        return history.goes_on(case.conversion.time_us, (*case.active_us, *self._active.get(device.device_id, ())))

    def _append(self, case: Case, message: decision_pb2.Decision, found: Candidates | None = None) -> None:
        """Adds a decision as the next of its lane."""
        message.app_id = case.record.app_id
        message.version = 1
        message.event_name = case.event_name or ""
        message.receive_time.FromMicroseconds(case.entry.receive_time_us)
        describe(message, case.record, case.conversion, case.rules.app)
        message.decide_time.FromMicroseconds(self._now_us)
        if case.device is not None:
            message.device_id = str(case.device.device_id)
        for kind, count in sorted(case.shared.items()):
            message.shared_ids.add(kind=kind, advertising_id_count=count)
        if (won := Won.of(message)) is not None:
            self._won[len(self._decisions)] = won
        lane = case.entry.app_lane
        self._decisions.append(_row(case, message, self._next_sequences[lane], found))
        self._next_sequences[lane] += 1


def _networks_to_ask(case: Case, *, is_held: bool, goes_on: bool) -> tuple[str, ...]:
    """Returns the networks to ask about a case now.

    None about a refund (D11), a duplicate install, or a session that goes on (D4). Whether it is one of these
    two is known only once the install is decided that holds it back: so none about what is held back either.
    """
    if not case.network_ids or case.device is None or not case.is_conversion:
        return ()
    if case.event_name == INSTALL:
        may_ask = not is_held and eligibility(case.conversion, case.device.history, case.rules) is None
    elif case.is_session_start:
        may_ask = not is_held and not goes_on
    else:
        may_ask = not case.conversion.is_refund
    return case.network_ids if may_ask else ()


def _note_session(case: Case, device: Device) -> None:
    device.history = device.history.after_session(case.conversion.time_us)
    device.changed = True


def _merged(
    all_cases: Sequence[Case], devices: Sequence[Device], asking: Asking
) -> dict[tuple[int, uuid.UUID], uuid.UUID]:
    """Returns what merged devices, of apps that may have pending conversions, have become in the end."""
    merging = [case for case in all_cases if case.merged and case.record.app_id in asking.app_ids]
    by_id = {device.device_id: device for device in devices} if merging else {}
    merged = {}
    for case in merging:
        for other in case.merged:
            device = other
            while device.merged_into is not None:
                device = by_id[device.merged_into]
            merged[case.entry.app_lane, other.device_id] = device.device_id
    return merged


def _win(conversion: Conversion) -> Win:
    return Win(conversion.time_us, conversion.receive_time_us, conversion.conversion_id)


def _row(case: Case, message: decision_pb2.Decision, sequence: int, found: Candidates | None) -> DecisionRow:
    return DecisionRow(
        lane=case.entry.app_lane,
        sequence=sequence,
        app_id=message.app_id,
        conversion_id=message.conversion_id,
        version=message.version,
        device_id=NO_DEVICE if case.device is None else case.device.device_id,
        outcome=message.outcome,
        conversion_time_us=case.conversion.time_us,
        receive_time_us=case.entry.receive_time_us,
        retention_days=case.rules.app.retention_days,
        tracker_id=message.tracker_id or None,
        engagement_id=message.engagement_id or None,
        decision=message.SerializeToString(),
        record=case.entry.record,
        engagement=None,
        known_ids=_known_ids(case),
        claims=None if case.waited is None else case.waited.claims,
        address_key=_address_key(case, message, found),
        missing_click=_missing_click(case, found),
    )


def _address_key(case: Case, message: decision_pb2.Decision, found: Candidates | None) -> bytes | None:
    """Returns the key that a late engagement from its address finds a conversion by, None where none could win it."""
    if found is None or not case.rules.app.late_window_us or (message.level == 1 and not case.rules.lifts_clicks):
        return None
    return address_key(case.rules.app, case.conversion.ip)


def _missing_click(case: Case, found: Candidates | None) -> str | None:
    """Returns the click id of ours that a conversion gave back, if that click has not arrived yet."""
    click_id = case.conversion.click_id
    if found is None or not case.rules.app.late_window_us or click_id in found.engagements:
        return None
    return click_id or None


def _known_ids(case: Case) -> dict[str, list[str]] | None:
    """Returns the ids beside the record's own that its device was known by; usually there are none."""
    known: dict[str, list[str]] = {}
    for kind, value in case.ids:
        if case.record.device_ids.get(kind) != value:
            known.setdefault(kind, []).append(value)
    return known or None
