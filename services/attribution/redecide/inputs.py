"""Reads what decisions are made from beside histories: the candidates of conversions, and the wins of engagements."""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field

from libs.db import Connection
from libs.domain.event_names import INSTALL
from reengage.attribution.v1 import decision_pb2
from reengage.ingest.v1 import record_pb2
from services.attribution.decision.history import DeviceHistory
from services.attribution.decision.matching import own_key
from services.attribution.decision.rules import AppRules
from services.attribution.live.candidates import CandidateQuery, Candidates, find_candidates
from services.attribution.redecide.families import Family
from services.attribution.redecide.stored_conversions import history_after
from services.attribution.storage.engagements import find_records
from services.attribution.storage.replay import Period, Stored, Win, find_heads, find_wins
from services.attribution.wire.records import conversion_of


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
    """Reads the inputs of the conversions of one period under one set of rules.

    `limited` are the trackers with engagements that can win only so many conversions.
    """

    def __init__(
        self, period: Period, rules: AppRules, limited: frozenset[str], turn: Callable[[], Awaitable[None]]
    ) -> None:
        self._period, self._rules, self._limited, self._turn = period, rules, limited, turn

    async def read(
        self, connection: Connection, families: Iterable[Family], inputs: Inputs, wants: Callable[[Stored], bool]
    ) -> None:
        """Adds the inputs of the wanted conversions in the period that have none yet."""
        wanted = _without_inputs(families, inputs, wants)
        if not wanted:
            return
        stored = [each for each, _ in wanted]
        heads = await find_heads(connection, {each.round_id for each in stored})
        places = {round_id: place for place, round_id in enumerate(heads)}
        queries = {}
        for each, installed in wanted:
            await self._turn()
            queries[each.conversion_id] = self._query(each, installed, places[each.round_id])
        found = await find_candidates(connection, list(queries.values()), list(heads.values()))
        candidates = dict(zip(queries, found, strict=True))
        inputs.candidates |= candidates
        inputs.incomplete |= await self._incomplete(connection, stored, candidates)
        if more := self._limited_engagements(found) - inputs.wins.keys():
            inputs.wins |= await find_wins(connection, self._period, more)

    def _query(self, stored: Stored, installed: DeviceHistory, heads: int) -> CandidateQuery:
        record = record_pb2.Record.FromString(stored.record or b"")
        shared = {each.kind for each in stored.decision.shared_ids}
        ids = [(kind, value) for kind, value in record.device_ids.items() if kind not in shared]
        if stored.known_ids:
            ids += [(kind, value) for kind, values in stored.known_ids.items() for value in values]
        return CandidateQuery(
            rules=self._rules,
            conversion=conversion_of(record, stored.decision.event_name),
            ids=ids,
            history=installed,
            heads=heads,
        )

    def _limited_engagements(self, found: Iterable[Candidates]) -> set[str]:
        return {
            engagement_id
            for candidates in found
            for engagement_id, engagement in candidates.engagements.items()
            if engagement.tracker_id in self._limited
        }

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
        there = await find_records(connection, keys, span_us=0)
        return {conversion_id for conversion_id, key, _ in missed if key not in there}


def _without_inputs(
    families: Iterable[Family], inputs: Inputs, wants: Callable[[Stored], bool]
) -> list[tuple[Stored, DeviceHistory]]:
    """Returns the wanted conversions without inputs, each with a history that knows its device's install."""
    wanted = []
    for family in families:
        installed = DeviceHistory()
        for stored in family.conversions:
            if stored.record is not None and stored.conversion_id not in inputs.candidates and wants(stored):
                wanted.append((stored, installed))
            if stored.decision.event_name == INSTALL and not installed.attributions:
                installed = history_after(installed, stored)
    return wanted
