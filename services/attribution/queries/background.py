"""Reads what is told beside a decision: pings that came too late for it, and the facts that verdicts stand on.

A decision names a verdict; the rest is found again from what is stored, by the settings that it was made with.
"""

import asyncio
import uuid
from collections.abc import Collection, Sequence
from typing import NamedTuple

import grpc

from libs.call_context import remaining_s
from libs.db import Pool
from libs.domain.lanes import lane_of
from libs.domain.record_sizes import MAX_STORED_RECORD_BYTES
from libs.domain.setting_ranges import DURATIONS
from libs.domain.snapshots import Follower
from libs.errors import Unavailable
from libs.parts import in_parts
from libs.time import SECOND_US, timestamp_us
from reengage.attribution.v1 import decision_pb2
from reengage.ingest.v1 import record_pb2
from services.attribution.decision.decide import second_of
from services.attribution.decision.history import DeviceHistory
from services.attribution.decision.matching import Id, device_key
from services.attribution.decision.model import Conversion
from services.attribution.decision.rules import AppRules
from services.attribution.live.candidates import CandidateQuery, find_late_pings
from services.attribution.live.late_pings import has_candidates, reported_late
from services.attribution.queries.sentences import Known
from services.attribution.storage.activity import AskedInactivity, find_latest_activity
from services.attribution.storage.devices import device_of, find_members
from services.attribution.storage.explanations import Version, stored_engagements
from services.attribution.wire.decisions import candidate_message
from services.attribution.wire.past_rules import PastRules
from services.attribution.wire.records import conversion_of
from services.attribution.wire.rulebook import Rulebook

Candidate = decision_pb2.Candidate

SETTINGS_TIMEOUT_S = 10.0
"""The time that tracker has to respond, unless the caller has less."""
_MAX_LATE_WINDOW_US = DURATIONS["late_window"].max_s * SECOND_US

_TOLD_BY_RECORD = frozenset(
    {
        decision_pb2.VERDICT_BOT,
        decision_pb2.VERDICT_BLOCKLISTED,
        decision_pb2.VERDICT_TRAFFIC_RULE,
        decision_pb2.VERDICT_REPORTED_LATE,
    }
)
_TOLD_BY_RULES = frozenset({decision_pb2.VERDICT_REPORTED_LATE, decision_pb2.VERDICT_DEVICE_ACTIVE})


class Decided(NamedTuple):
    """A decision, the conversion that it is about, and the ids that its device was known by."""

    decision: decision_pb2.Decision
    conversion: Conversion
    ids: Sequence[Id]

    @classmethod
    def of(cls, version: Version) -> "Decided":
        """Returns what a version holds."""
        decision = decision_pb2.Decision.FromString(version.decision)
        record = record_pb2.Record.FromString(version.record)
        shared = {each.kind for each in decision.shared_ids}
        named = [each for each in record.device_ids.items() if each[0] not in shared]
        known = [(kind, value) for kind, values in (version.known_ids or {}).items() for value in values]
        receive_time_us = timestamp_us(decision.receive_time)
        return cls(decision, conversion_of(record, decision.event_name, receive_time_us), [*named, *known])


class Background:
    """The background of decisions: `settings` are those of now, `past_rules` those that a decision was made with."""

    def __init__(self, pool: Pool, settings: Follower[Rulebook], past_rules: PastRules) -> None:
        self._pool, self._settings, self._past_rules = pool, settings, past_rules

    async def late_pings(self, decided: Decided) -> list[Candidate]:
        """Returns the server pings that came too late for a conversion and that its decision does not list (D12).

        Raises Unavailable `SETTINGS_UNAVAILABLE`.
        """
        decision, conversion, ids = decided
        if not has_candidates(decision):
            return []
        query = CandidateQuery(
            rules=self._settings.current.apps[decision.app_id],
            conversion=conversion,
            ids=ids,
            history=DeviceHistory(),
            until_us=conversion.receive_time_us + _MAX_LATE_WINDOW_US,  # the late window of then is judged by
        )
        async with self._pool.acquire() as connection:
            conversion, pings = await find_late_pings(connection, query)
        if not pings:
            return []
        rules = await self._rules_of(decision)
        return [candidate_message(each) for each in reported_late(decision, conversion, pings.values(), rules)]

    async def known(self, decided: Decided, candidates: Collection[Candidate]) -> dict[str, Known]:
        """Returns what is known of those candidates, by engagement id, whose verdicts say less than that.

        Raises Unavailable `SETTINGS_UNAVAILABLE`.
        """
        decision, conversion, _ = decided
        verdicts = {each.engagement_id: each.verdict for each in candidates}
        by_record = [engagement_id for engagement_id, verdict in verdicts.items() if verdict in _TOLD_BY_RECORD]
        known = dict[str, Known]()
        for some in in_parts(by_record, lambda _: MAX_STORED_RECORD_BYTES):
            for engagement_id, stored in (await stored_engagements(self._pool, decision.app_id, some)).items():
                record = record_pb2.Record.FromString(stored.record)
                known[engagement_id] = Known(
                    record=_told(record),
                    reported_us=stored.receive_time_us - conversion.receive_time_us,
                )
        if _TOLD_BY_RULES.isdisjoint(verdicts.values()):
            return known
        rules = await self._rules_of(decision)
        for each in candidates:
            if each.verdict == decision_pb2.VERDICT_REPORTED_LATE and (of_it := rules.trackers.get(each.tracker_id)):
                before = known.get(each.engagement_id, Known())
                known[each.engagement_id] = before._replace(late_pings_us=of_it.network.late_pings_us)
        return known | await self._activity(decided, candidates, rules)

    async def _activity(self, decided: Decided, candidates: Collection[Candidate], rules: AppRules) -> dict[str, Known]:
        """Returns when a device had last been active before the candidates that were refused for that (D13)."""
        decision, conversion, _ = decided
        app, app_id, device_id = rules.app, decision.app_id, decision.device_id
        refused = [each for each in candidates if each.verdict == decision_pb2.VERDICT_DEVICE_ACTIVE]
        device = await device_of(self._pool, device_key(app_id, device_id), uuid.UUID(device_id)) if refused else None
        if device is None:
            return {}
        before_us = {
            each.engagement_id: min(timestamp_us(each.engagement_time), conversion.time_us) for each in refused
        }
        async with self._pool.acquire() as connection:
            members = await find_members(connection, {device.device_id})
            asked = [
                AskedInactivity(
                    place=place,
                    lane=lane_of(app_id),
                    app_id=app_id,
                    device_id=member_id,
                    time_us=second_of(time_us),
                    within_us=app.inactivity_window_us,
                    until_us=conversion.receive_time_us + app.late_window_us,
                )
                for place, time_us in enumerate(before_us.values())
                for member_id in {device.device_id} | members.get(device.device_id, set())
            ]
            found = await find_latest_activity(connection, asked)
        remembered = tuple(device.history.known_to(conversion, app.late_window_us).active_us)
        known = {}
        for place, (engagement_id, time_us) in enumerate(before_us.items()):
            before = (each for each in (*found.get(place, ()), *remembered) if each < second_of(time_us))
            latest_us = max(before, default=None)
            if latest_us is not None and time_us - latest_us < app.inactivity_window_us:
                known[engagement_id] = Known(
                    active_us=latest_us,
                    idle_us=time_us - latest_us,
                    inactivity_window_us=app.inactivity_window_us,
                )
        return known

    async def _rules_of(self, decision: decision_pb2.Decision) -> AppRules:
        """Returns the rules that a decision was made with; tracker is asked only if they have changed since."""
        try:
            async with asyncio.timeout(remaining_s(SETTINGS_TIMEOUT_S)):
                await self._past_rules.learn(decision.app_id, {decision.settings_revision})
        except (grpc.aio.AioRpcError, TimeoutError) as error:
            raise Unavailable(
                "SETTINGS_UNAVAILABLE", "tracker does not answer; try again", retry_after_s=1.0
            ) from error
        return self._past_rules.at(decision.app_id, decision.settings_revision)


def _told(record: record_pb2.Record) -> record_pb2.Record:
    """Returns what is told of an engagement: the rest may be large."""
    told = record_pb2.Record(user_agent=record.user_agent, country=record.country)
    kind = "impression" if record.WhichOneof("kind") == "impression" else "click"
    said, into = getattr(record, kind), getattr(told, kind)
    into.invalidity, into.block_reason = said.invalidity, said.block_reason
    return told
