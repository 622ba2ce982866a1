"""Decides an app's stored conversions again (G4), with the code and from the inputs of the first time.

Device by device, in the order of their ids: each conversion at the place where it was first decided, with the history
that the earlier ones, decided again, make; with the engagements below the heads it was decided at, and the ids its
device was known by. It reads the database and writes nothing.
"""

import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from libs.db import Connection, Pool
from libs.domain.event_names import INSTALL
from reengage.attribution.v1 import decision_pb2
from reengage.ingest.v1 import record_pb2
from services.attribution.decision.decide import decide, eligibility
from services.attribution.decision.history import Attribution, DeviceHistory, merge
from services.attribution.decision.matching import own_key
from services.attribution.decision.model import Conversion, ConversionKind, Decision, Engagement, Outcome, Reason
from services.attribution.decision.rules import AppRules
from services.attribution.live.candidates import CandidateQuery, Candidates, find_candidates
from services.attribution.storage.engagements import find_records
from services.attribution.storage.replay import (
    FIRST_DEVICE,
    Merge,
    Period,
    Stored,
    Win,
    find_conversions,
    find_devices,
    find_heads,
    find_histories,
    find_merges,
    find_wins,
)
from services.attribution.wire.decisions import attribution_of, decision_message, says
from services.attribution.wire.records import claims_of, conversion_of

_MAY_BE_ELIGIBLE = frozenset(
    {
        decision_pb2.REASON_UNSPECIFIED,
        decision_pb2.REASON_NO_CANDIDATE,
        decision_pb2.REASON_NO_WINNER,
        decision_pb2.REASON_EVENT_NOT_SELECTED,
    }
)
_ELIGIBLE = frozenset({Reason.NO_CANDIDATE, Reason.NO_WINNER})
"""Of conversions that could have been won; those that were have no reason."""
_COLUMNS: Mapping[int, str] = {
    decision_pb2.OUTCOME_ATTRIBUTED: "installs",
    decision_pb2.OUTCOME_ORGANIC: "installs",
    decision_pb2.OUTCOME_REPROCESSED: "installs",
    decision_pb2.OUTCOME_REPROCESSED_ORGANIC: "installs",
    decision_pb2.OUTCOME_REENGAGED: "reengagements",
    decision_pb2.OUTCOME_CREDITED: "credited_events",
    decision_pb2.OUTCOME_UNATTRIBUTED: "credited_events",
}

Credit: TypeAlias = tuple[str, str, str]
"""Network, tracker and the column of CreditCounts that a conversion counts in; no column: in none."""


class Changed(NamedTuple):
    """A decision that comes out differently. `source`: that an event is credited to."""

    stored: Stored
    conversion: Conversion
    decision: Decision
    source: Attribution | None

    @property
    def engagement_id(self) -> str:
        """The engagement that won it, or its source; "" if there is none."""
        return self.decision.engagement_id or (self.source and self.source.engagement_id) or ""

    @property
    def won_us(self) -> int:
        """The time of what that engagement won."""
        return self.source.time_us if self.source else self.conversion.time_us

    def message(self, decide_time_us: int) -> decision_pb2.Decision:
        """The new decision as the next version."""
        before = self.stored.decision
        message = decision_message(self.conversion, self.decision)
        message.app_id, message.event_name, message.device_id = before.app_id, before.event_name, before.device_id
        message.version = self.stored.version + 1
        message.receive_time.CopyFrom(before.receive_time)
        message.decide_time.FromMicroseconds(decide_time_us)
        return message


@dataclass(slots=True, kw_only=True)
class Replayed:
    """A device, with those that were merged with it, decided again.

    `last_device_id` is the last of them that has conversions in the period. `conversion_ids` are all that were read,
    `histories` what they make of each device. `credits` has for each conversion decided what it counted as and counts.
    """

    last_device_id: uuid.UUID
    conversion_ids: frozenset[str]
    histories: dict[uuid.UUID, DeviceHistory]
    credits: list[tuple[Credit, Credit]] = field(default_factory=list)
    changed: list[Changed] = field(default_factory=list)

    def add(self, stored: Stored, changed: Changed | None) -> None:
        """Take a conversion of the period as decided."""
        was = is_now = _credit(stored.decision)
        if changed is not None:
            self.changed.append(changed)
            is_now = _credit_of(changed.decision)
        self.credits.append((was, is_now))
        self.last_device_id = max(self.last_device_id, stored.device_id)

    @property
    def device_ids(self) -> Collection[uuid.UUID]:
        """The device and those merged with it, as far as they have a history."""
        return self.histories.keys()


class Page(NamedTuple):
    """Some devices decided again, in the order of `last_device_id`; None in `last_device_id`: there are no more."""

    replayed: list[Replayed]
    last_device_id: uuid.UUID | None


@dataclass(slots=True, kw_only=True)
class _Family:
    """A device and those merged with it, as they are read: conversions in the order they were decided in."""

    conversions: list[Stored]
    merges: list[Merge]
    histories: dict[uuid.UUID, DeviceHistory]


@dataclass(slots=True, kw_only=True)
class _Inputs:
    """What decisions are made of beside histories: candidates by conversion, and what engagements have won.

    `incomplete` are conversions of which a candidate is no longer stored: retention or an erasure has taken it. What
    they would come out as says nothing, so they stay as they are.
    """

    candidates: dict[str, Candidates] = field(default_factory=dict)
    wins: dict[str, list[Win]] = field(default_factory=dict)
    incomplete: set[str] = field(default_factory=set)


class Replay:
    """Decides the conversions of one period again under one set of rules.

    `turn` is awaited every few milliseconds of work.
    """

    def __init__(self, pool: Pool, period: Period, rules: AppRules, turn: Callable[[], Awaitable[None]]) -> None:
        self._pool, self._period, self._rules, self._turn = pool, period, rules, turn
        self._limited = frozenset(
            tracker_id for tracker_id, each in rules.trackers.items() if each.tracker.max_conversions_per_engagement
        )

    async def page(self, after: uuid.UUID, size: int) -> Page:
        """The devices after one that has been, with about `size` conversions in the period, as of one moment."""
        async with (
            self._pool.acquire() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            device_ids, is_last = await find_devices(connection, self._period, after, size)
            if not device_ids:
                return Page([], None)
            replayed = await self.devices(connection, device_ids)
        # A device merged with one of a later page comes with that.
        here = sorted(
            (each for each in replayed if each.last_device_id <= device_ids[-1]), key=lambda each: each.last_device_id
        )
        return Page(here, None if is_last else device_ids[-1])

    async def devices(self, connection: Connection, device_ids: Collection[uuid.UUID]) -> list[Replayed]:
        """These devices, each with all that were merged with it, as the transaction sees them."""
        families = await self._read(connection, device_ids)
        inputs = _Inputs()
        await self._ask(connection, families, inputs, is_wanted=self._may_be_eligible)
        done, again = [], []
        for family in families:
            await self._turn()
            replayed = await self._decide(family, inputs)
            if replayed is None:
                again.append(family)
            else:
                done.append(replayed)
        if again:  # decisions that changed have made others winnable: now all of these devices have their candidates
            await self._ask(connection, again, inputs, is_wanted=self._can_be_eligible)
            for family in again:
                await self._turn()
                replayed = await self._decide(family, inputs)
                assert replayed is not None, "every conversion that any history leaves winnable has its candidates"
                done.append(replayed)
        return done

    async def _read(self, connection: Connection, device_ids: Collection[uuid.UUID]) -> list[_Family]:
        merges = await find_merges(connection, device_ids)
        into = {merge_.device_id: merge_.into for merge_ in merges}

        def survivor(device_id: uuid.UUID) -> uuid.UUID:
            while device_id in into:
                device_id = into[device_id]
            return device_id

        everybody = {*device_ids, *into, *into.values()}
        families = {
            device_id: _Family(conversions=[], merges=[], histories={})
            for device_id in everybody
            if device_id not in into
        }
        for merge_ in merges:
            families[survivor(merge_.device_id)].merges.append(merge_)
        for stored in await find_conversions(connection, self._period, everybody):
            families[survivor(stored.device_id)].conversions.append(stored)
        await self._turn()
        remembered = await find_histories(connection, everybody)
        for device_id, family in families.items():
            family.conversions = _newest(family.conversions)
            family.merges.sort(key=lambda merge_: merge_.sequence or 0)
            known = {stored.conversion_id for stored in family.conversions}
            for member in (device_id, *(merge_.device_id for merge_ in family.merges)):
                # What retention has dropped is known from here only.
                forgotten = [a for a in remembered.get(member, ()) if a[1] not in known]
                if forgotten:
                    family.histories[member] = DeviceHistory.from_json({"attributions": forgotten, "sessions": []})
        return [family for family in families.values() if any(c.record is not None for c in family.conversions)]

    # Candidates.

    async def _ask(
        self,
        connection: Connection,
        families: Iterable[_Family],
        inputs: _Inputs,
        *,
        is_wanted: Callable[[Stored], bool],
    ) -> None:
        """Add the candidates of the conversions that are wanted and have none yet."""
        asked: dict[str, tuple[Stored, DeviceHistory]] = {}
        for family in families:
            installed = DeviceHistory()
            for stored in family.conversions:
                if stored.record is not None and stored.conversion_id not in inputs.candidates and is_wanted(stored):
                    asked[stored.conversion_id] = (stored, installed)
                if stored.decision.event_name == INSTALL and not installed.attributions:
                    installed = _after(installed, stored)
        if not asked:
            return
        heads = await find_heads(connection, {stored.round_id for stored, _ in asked.values()})
        places = {round_id: place for place, round_id in enumerate(heads)}
        queries = {}
        for conversion_id, (stored, installed) in asked.items():
            await self._turn()
            queries[conversion_id] = self._query(stored, installed, places[stored.round_id])
        found = await find_candidates(connection, list(queries.values()), list(heads.values()))
        fresh = dict(zip(queries, found, strict=True))
        inputs.candidates |= fresh
        inputs.incomplete |= await self._incomplete(connection, [stored for stored, _ in asked.values()], fresh)
        limited = {
            engagement_id
            for candidates in fresh.values()
            for engagement_id, engagement in candidates.engagements.items()
            if engagement.tracker_id in self._limited
        }
        if more := limited - inputs.wins.keys():
            inputs.wins |= await find_wins(connection, self._period, more)

    async def _incomplete(
        self, connection: Connection, asked: Iterable[Stored], found: Mapping[str, Candidates]
    ) -> set[str]:
        """Those of which a candidate was found then and is stored no longer; other settings may not look for one."""
        missed = {
            (
                stored.conversion_id,
                own_key(self._period.app_id, candidate.engagement_id),
                candidate.engagement_time.ToMicroseconds(),
            )
            for stored in asked
            for candidate in stored.decision.candidates
            if candidate.engagement_id not in found[stored.conversion_id].engagements
            and candidate.matched_by != decision_pb2.MATCH_KIND_CLAIM
        }
        if not missed:
            return set()
        keys = {(key, time_us, self._period.app_id) for _, key, time_us in missed}
        there = await find_records(connection, keys, span_us=0)
        return {conversion_id for conversion_id, key, _ in missed if key not in there}

    def _query(self, stored: Stored, installed: DeviceHistory, heads: int) -> CandidateQuery:
        record = record_pb2.Record.FromString(stored.record or b"")
        ids = list(record.device_ids.items())
        if stored.known_ids:
            ids += [(kind, value) for kind, values in stored.known_ids.items() for value in values]
        return CandidateQuery(
            rules=self._rules,
            conversion=conversion_of(record, stored.decision.event_name),
            ids=ids,
            history=installed,
            heads=heads,
        )

    def _may_be_eligible(self, stored: Stored) -> bool:
        """A guess that holds while settings change little: as it was, but for events selected since."""
        decision = stored.decision
        if decision.event_name != INSTALL and decision.event_name not in self._rules.reengaging_events:
            return False
        return decision.reason in _MAY_BE_ELIGIBLE

    def _can_be_eligible(self, stored: Stored) -> bool:
        """Whether any history leaves it winnable: one without attributions leaves most."""
        return eligibility(_outline(stored), DeviceHistory(), self._rules) is None

    # Deciding.

    async def _decide(self, family: _Family, inputs: _Inputs) -> Replayed | None:
        """Decides a family's conversions in order; None when one turns out to be winnable that has no candidates."""
        histories, wins = dict(family.histories), Counter[str]()
        own_ids = frozenset(stored.conversion_id for stored in family.conversions)
        replayed = Replayed(last_device_id=FIRST_DEVICE, conversion_ids=own_ids, histories=histories)
        merges = [merge_ for merge_ in family.merges if merge_.sequence is not None]
        for stored in family.conversions:
            await self._turn()  # a device may have 100,000: a worker that gives no turns for seconds loses its lanes
            while merges and (merges[0].sequence or 0) <= stored.sequence:
                _join(histories, merges.pop(0))
            before = histories.get(stored.device_id, _NOTHING)
            changed = None
            if stored.record is None or stored.conversion_id in inputs.incomplete:
                histories[stored.device_id] = _after(before, stored)
                engagement_id: str | None = stored.decision.engagement_id
            else:
                decided = self._decide_one(stored, before, inputs, wins, own_ids)
                if decided is None:
                    return None
                conversion, decision = decided
                histories[stored.device_id] = before.after(conversion, decision)
                engagement_id = decision.engagement_id
                if not says(stored.decision, decision):
                    source = before.source_at(conversion.time_us) if decision.outcome is Outcome.CREDITED else None
                    changed = Changed(stored, conversion, decision, source)
            if engagement_id:
                wins[engagement_id] += 1
            if stored.record is not None:
                replayed.add(stored, changed)
        for merge_ in merges:
            _join(histories, merge_)
        return replayed

    def _decide_one(
        self,
        stored: Stored,
        history: DeviceHistory,
        inputs: _Inputs,
        own_wins: Mapping[str, int],
        own_ids: frozenset[str],
    ) -> tuple[Conversion, Decision] | None:
        found = inputs.candidates.get(stored.conversion_id)
        conversion = _outline(stored) if found is None else found.conversion
        candidates: Mapping[str, Engagement] = {} if found is None else found.engagements
        claims, unavailable = claims_of(stored.claims)
        decision = decide(
            conversion,
            history,
            self._rules,
            candidates=candidates.values(),
            wins=self._wins(candidates, stored.sequence, inputs.wins, own_wins, own_ids) if self._limited else {},
            claims=claims,
            claims_unavailable=unavailable,
        )
        if found is None and (decision.reason is None or decision.reason in _ELIGIBLE):
            return None
        return conversion, decision

    def _wins(
        self,
        candidates: Mapping[str, Engagement],
        sequence: int,
        wins: Mapping[str, list[Win]],
        own_wins: Mapping[str, int],
        own_ids: frozenset[str],
    ) -> dict[str, int]:
        """What the candidates on limited trackers had won before (D5): other devices' as stored, its own as decided."""
        return {
            engagement_id: own_wins.get(engagement_id, 0)
            + sum(won_at < sequence and by not in own_ids for by, won_at in wins.get(engagement_id, ()))
            for engagement_id, engagement in candidates.items()
            if engagement.tracker_id in self._limited
        }


_NOTHING = DeviceHistory()


def _credit(message: decision_pb2.Decision) -> Credit:
    return message.network_id, message.tracker_id, _COLUMNS.get(message.outcome, "")


def _credit_of(decision: Decision) -> Credit:
    outcome = decision_pb2.Outcome.Value(f"OUTCOME_{decision.outcome}")
    return decision.network_id or "", decision.tracker_id or "", _COLUMNS.get(outcome, "")


def _newest(conversions: Iterable[Stored]) -> list[Stored]:
    """Of each conversion the newest version, in the order they were first decided in."""
    by_id: dict[str, Stored] = {}
    for stored in conversions:
        other = by_id.get(stored.conversion_id)
        if other is None or other.version < stored.version:
            by_id[stored.conversion_id] = stored
    return sorted(by_id.values(), key=lambda stored: stored.sequence)


def _outline(stored: Stored) -> Conversion:
    """The conversion without what only its candidates are found by."""
    decision = stored.decision
    is_install = decision.event_name == INSTALL
    return Conversion(
        conversion_id=stored.conversion_id,
        kind=ConversionKind.INSTALL if is_install else ConversionKind.EVENT,
        time_us=decision.conversion_time.seconds * 1_000_000 + decision.conversion_time.nanos // 1000,
        event_name="" if is_install else decision.event_name,
    )


def _after(history: DeviceHistory, stored: Stored) -> DeviceHistory:
    """The history after a conversion that stays as it is stored."""
    attribution = attribution_of(stored.decision, redacted=_is_redacted(stored))
    return history if attribution is None else history.including(attribution)


def _is_redacted(stored: Stored) -> bool:
    claims, _ = claims_of(stored.claims)
    return any(
        claim.candidate_id == stored.decision.engagement_id and not claim.granular_data_allowed for claim in claims
    )


def _join(histories: dict[uuid.UUID, DeviceHistory], merge_: Merge) -> None:
    other = histories.get(merge_.device_id, _NOTHING)
    histories[merge_.into] = merge(histories.get(merge_.into, _NOTHING), other)
    histories[merge_.device_id] = _NOTHING
