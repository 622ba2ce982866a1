"""Reads what decisions are made from beside histories: the candidates of conversions, and the wins of engagements."""

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter

from libs.db import Connection
from libs.domain.event_names import INSTALL
from reengage.attribution.v1 import decision_pb2
from reengage.ingest.v1 import record_pb2
from services.attribution.decision.decide import asked_activity_us
from services.attribution.decision.grouping import hashed_kinds_of
from services.attribution.decision.history import SESSION_GAP_US, DeviceHistory
from services.attribution.decision.matching import (
    MAX_SOUGHT_IDS,
    Id,
    device_key,
    hash_keys,
    hashed_as,
    own_key,
    sought_ids,
)
from services.attribution.decision.model import ConversionKind, Win
from services.attribution.decision.rules import AppRules
from services.attribution.live.candidates import CandidateQuery, Candidates, find_candidates
from services.attribution.redecide.families import Family
from services.attribution.redecide.stored_conversions import attribution_as_stored, ids_of, is_session_start
from services.attribution.storage.decisions import find_wins
from services.attribution.storage.engagements import find_stored
from services.attribution.storage.replay import AskedBefore, Period, Stored, find_events_before
from services.attribution.storage.shared_ids import shared_since
from services.attribution.wire.records import claims_of, conversion_of


@dataclass(slots=True, kw_only=True)
class Inputs:
    """The candidates by conversion, and by engagement the conversions that it has won.

    `incomplete` are conversions of which a candidate is no longer stored, because of retention or an erasure. Deciding
    them again would say nothing, so they stay as they are.
    """

    candidates: dict[str, Candidates] = field(default_factory=dict)
    wins: dict[str, list[Win]] = field(default_factory=dict)
    incomplete: set[str] = field(default_factory=set)


class InputReader:
    """Reader of the inputs of the conversions of one period: of engagements only those received until a time.

    `rules_of` gives the rules that a conversion is decided by, `late_window_us` is the app's.
    """

    def __init__(
        self,
        period: Period,
        rules_of: Callable[[Stored], AppRules],
        late_window_us: int,
        until_us: int,
        turn: Callable[[], Awaitable[None]],
    ) -> None:
        self._period, self._rules_of, self._late_window_us, self._turn = period, rules_of, late_window_us, turn
        self._until_us = until_us

    async def read(
        self, connection: Connection, families: Iterable[Family], inputs: Inputs, wants: Callable[[Stored], bool]
    ) -> None:
        """Adds the inputs of the wanted conversions in the period that have none yet."""
        wanted: list[Stored] = []
        family_of: dict[str, Family] = {}
        asked: list[tuple[Stored, tuple[Id, ...], DeviceHistory]] = []
        for family in families:
            without = list(_without_inputs(family, inputs, wants))
            known = family.known_ids(self._late_window_us) if without else {}
            for stored, installed in without:
                await self._turn()
                asked.append((stored, known[stored.conversion_id], installed))
                wanted.append(stored)
                family_of[stored.conversion_id] = family
        if not wanted:
            return
        shared = await self._shared_since(connection, hashed_kinds_of(each for _, ids, _ in asked for each in ids))
        queries = {
            stored.conversion_id: self._query(
                stored, _sought([each for each in ids if not self._is_shared(each, stored, shared)], stored), installed
            )
            for stored, ids, installed in asked
        }
        found = await find_candidates(connection, list(queries.values()))
        candidates = dict(zip(queries, found, strict=True))
        inputs.candidates |= candidates
        inputs.incomplete |= await self._incomplete(connection, wanted, candidates)
        await self._read_events(connection, self._candidate_times(wanted, family_of, candidates))
        more = {
            engagement_id
            for stored in wanted
            for engagement_id, engagement in candidates[stored.conversion_id].engagements.items()
            if engagement.tracker_id in self._rules_of(stored).limited_trackers
        } - inputs.wins.keys()
        if more:
            inputs.wins |= {engagement_id: [] for engagement_id in more}
            for won in await find_wins(connection, {(self._period.lane, engagement_id) for engagement_id in more}):
                if won.app_id == self._period.app_id:
                    inputs.wins[won.engagement_id].append(won.win)

    async def read_sessions(self, connection: Connection, families: Iterable[Family]) -> None:
        """Adds to the families what the starts of sessions in the period may have gone on with (D4)."""
        await self._read_events(
            connection,
            (
                (family, stored, stored.time_us, stored.receive_time_us, SESSION_GAP_US)
                for family in families
                for stored in family.conversions.values()
                if stored.in_period and is_session_start(stored)
            ),
        )

    async def _read_events(
        self, connection: Connection, before: Iterable[tuple[Family, Stored, int, int, int]]
    ) -> None:
        """Adds to families their events before a moment, given as time and receipt, of a conversion's inputs."""
        asked: dict[AskedBefore, Family] = {}
        for family, stored, time_us, receive_time_us, within_us in before:
            until_us = self._known_until_us(stored)
            for device_id in family.device_ids:
                asked[AskedBefore(device_id, time_us, receive_time_us, within_us, until_us)] = family
        if not asked:
            return
        family_of = {each.device_id: family for each, family in asked.items()}
        for stored in await find_events_before(connection, self._period, asked):
            family_of[stored.device_id].add(stored)

    async def _shared_since(
        self, connection: Connection, hashed_kinds: Collection[str]
    ) -> Mapping[tuple[bytes, str], int]:
        """Returns since when ids are nobody's (A8), by match key and kind: the shared ones, and hashes of these."""
        app_id = self._period.app_id
        since_us: dict[tuple[bytes, str], int] = {}
        for kind, value, share_time_us in await shared_since(connection, app_id):
            since_us[device_key(app_id, value), kind] = share_time_us
            for hashed_kind, length in hashed_as(kind, hashed_kinds):
                since_us |= {(key, hashed_kind): share_time_us for key in hash_keys(app_id, value, length)}
        return since_us

    def _is_shared(self, each: Id, stored: Stored, shared: Mapping[tuple[bytes, str], int]) -> bool:
        """Returns whether an id was nobody's when a conversion was received (A8)."""
        kind, value = each
        since_us = shared.get((device_key(self._period.app_id, value), kind)) if shared else None
        return since_us is not None and since_us <= stored.receive_time_us

    def _candidate_times(
        self, wanted: Iterable[Stored], family_of: Mapping[str, Family], found: Mapping[str, Candidates]
    ) -> Iterable[tuple[Family, Stored, int, int, int]]:
        """Yields the times of candidates of apps that ask whether a device was active before these (D13)."""
        for stored in wanted:
            conversion, engagements = found[stored.conversion_id]
            within_us = self._rules_of(stored).app.inactivity_window_us
            if not within_us or conversion.kind is ConversionKind.INSTALL:
                continue
            claims, _ = claims_of(stored.claims)
            for time_us in asked_activity_us(conversion, engagements.values(), claims):
                yield family_of[stored.conversion_id], stored, time_us, 0, within_us

    def _query(self, stored: Stored, ids: Sequence[Id], installed: DeviceHistory) -> CandidateQuery:
        record = record_pb2.Record.FromString(stored.record)
        return CandidateQuery(
            rules=self._rules_of(stored),
            conversion=conversion_of(record, stored.decision.event_name, stored.receive_time_us),
            ids=ids,
            history=installed,
            until_us=self._known_until_us(stored),
        )

    def _known_until_us(self, stored: Stored) -> int:
        """Returns up to which receipt a conversion knows of others (D12): its own at least, were clocks set back."""
        return max(stored.receive_time_us, min(stored.receive_time_us + self._late_window_us, self._until_us))

    async def _incomplete(
        self, connection: Connection, wanted: Iterable[Stored], found: Mapping[str, Candidates]
    ) -> set[str]:
        """Returns the conversions of which a candidate was found at first and is no longer stored.

        A candidate that is stored and was not found now is none under the other settings.
        """
        missed = {
            (
                stored.conversion_id,
                own_key(self._period.app_id, candidate.engagement_id),
                candidate.engagement_time.ToMicroseconds(),
            )
            for stored in wanted
            for candidate in stored.decision.candidates
            if candidate.engagement_id not in found[stored.conversion_id].engagements
            and candidate.matched_by != decision_pb2.MATCH_KIND_CLAIM
        }
        if not missed:
            return set()
        keys = {(key, time_us, self._period.app_id) for _, key, time_us in missed}
        there = await find_stored(connection, keys)
        return {conversion_id for conversion_id, key, _ in missed if key not in there}


def _sought(ids: Sequence[Id], stored: Stored) -> Sequence[Id]:
    """Returns those of the ids, its own and of its device, by which a conversion looks for engagements."""
    if len(ids) <= MAX_SOUGHT_IDS:
        return ids
    own = [each for each in ids_of(stored) if each in ids]
    return sought_ids(own, ids)


def _without_inputs(
    family: Family, inputs: Inputs, wants: Callable[[Stored], bool]
) -> Iterable[tuple[Stored, DeviceHistory]]:
    """Yields the wanted conversions without inputs, each with a history that knows its device's install."""
    installed = DeviceHistory()
    for stored in sorted(family.conversions.values(), key=attrgetter("sequence")):
        if stored.in_period and stored.conversion_id not in inputs.candidates and wants(stored):
            yield stored, installed
        if stored.decision.event_name == INSTALL and not installed.attributions:
            attribution = attribution_as_stored(stored)
            installed = installed if attribution is None else installed.including(attribution)
