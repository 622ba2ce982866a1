"""Random stories through the real store: as ingest would have logged them, decided in batches as a worker does."""

import uuid
import zlib
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from random import Random
from types import SimpleNamespace
from typing import Any, cast

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from libs.db import Pool, transaction
from libs.domain.device_ids import usable_ids
from libs.domain.lanes import LANES, lane_of
from libs.domain.snapshots import Follower
from libs.domain.visitors import find_bot
from reengage.attribution.v1 import decision_pb2
from reengage.ingest.v1 import log_pb2, record_pb2
from reengage.postback.v1 import claim_pb2
from reengage.tracker.v1 import snapshot_pb2
from services.attribution.decision.matching import hash_length
from services.attribution.decision.model import Claim, EngagementKind
from services.attribution.decision.rules import AppRules, compile_rules
from services.attribution.jobs.hash_index import HashIndexer
from services.attribution.jobs.late_arrivals import LateArrivals
from services.attribution.live.batch import decide_batch
from services.attribution.live.hashed_kinds import kinds_to_wait_for
from services.attribution.live.owned_lanes import OwnedLanes
from services.attribution.live.pending import NOBODY
from services.attribution.pace import Pace
from services.attribution.simulator.scenario import ConversionRecord, EngagementRecord, Scenario
from services.attribution.storage.engagements import EngagementIndex
from services.attribution.storage.hashed_ids import HashedKind, find_hash_lengths, note_hashed_kinds
from services.attribution.storage.lanes import forget_worker, read_owned_lanes, take_lanes
from services.attribution.storage.pending import Mark, PendingRow
from services.attribution.wire.past_rules import PastRules
from services.attribution.wire.records import LATE_US, Logged, index_rows
from services.attribution.wire.rulebook import Rulebook
from tests.attribution.strategies import CROWD

ALL_TIME = (0, 1 << 54)
seeds = st.integers(0, (1 << 64) - 1)


def examples(count: int) -> settings:
    """Returns the settings of a test that is given seeds: of two the smaller is not the simpler, so none is shrunk."""
    return settings(
        max_examples=count,
        deadline=None,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


@dataclass(slots=True, kw_only=True)
class Story:
    """A scenario of an app of its own, on its way through a store."""

    pool: Pool
    lanes: OwnedLanes
    app_id: str
    scenario: Scenario
    logged: list[Logged]
    claims: Mapping[str, bytes]
    decided: int = 0
    now_us: int = 0

    @property
    def rules(self) -> AppRules:
        return self.rules_of(self.scenario)

    def rules_of(self, scenario: Scenario) -> AppRules:
        """Returns the settings of a scenario, as those of this app."""
        return compile_rules(
            app=replace(scenario.app, app_id=self.app_id),
            networks=scenario.networks,
            trackers=scenario.trackers,
            events=scenario.events,
        )

    async def live(self, random: Random, *, sees_beyond: bool = True) -> None:
        """Indexes engagements and decides conversions as they are received, in batches; then what late ones change.

        `sees_beyond`: a batch may know of engagements that were received after one of its conversions.
        """
        at = 0
        while at < len(self.logged):
            some = self.logged[at : at + random.randint(1, 6)]
            if not sees_beyond:
                is_engagement = [event_of(each.record) is None for each in some]
                some = some[: 1 + (is_engagement[1:].index(True) if True in is_engagement[1:] else len(some))]
            at += len(some)
            self.now_us = some[-1].entry.receive_time_us
            await self.index(some)
            batch: list[Logged] = []
            for each in some:
                if event_of(each.record) is None:
                    continue
                claims = self.claims.get(each.record.record_id)
                kinds = kinds_to_wait_for(each.record, self.lanes.hashed.by_app)
                if claims is None and not kinds:
                    batch.append(each)
                    continue
                await self.decide(batch)
                batch = []
                if kinds and claims is not None:  # only what has been taken is asked about
                    await self.index_hashes(each, kinds)
                await self.decide([each], claims)
                if kinds:
                    await self.index_hashes(each)
            await self.decide(batch)
            if random.random() < 0.5:
                await self.settle()
        await self.settle()

    async def index(self, logged: Sequence[Logged]) -> None:
        """Indexes those that are engagements."""
        lengths = await find_hash_lengths(self.pool, {self.app_id}, is_on_conversions=True)
        async with transaction(self.pool) as connection:
            rows = index_rows(logged, {self.app_id: self.rules}, lengths)
            await EngagementIndex(self.pool).insert(connection, rows)

    async def settle(self) -> None:
        """Indexes the hashed ids that engagements carry, and decides again what late arrivals have changed (D12)."""
        await self.index_hashes(self.logged[0], ())
        rulebook = Rulebook(
            revision=0, apps={self.app_id: self.rules}, sources={}, tracker_names={}, app_names={}, san_accounts={}
        )
        settings = cast("Follower[Rulebook]", FixedSettings(rulebook))
        job = LateArrivals(
            pool=self.pool,
            settings=settings,
            past_rules=PastRules(settings, no_snapshot),
            pace=Pace(),
            now_us=lambda: self.now_us,
        )
        while await job.work(self.lanes):
            pass

    async def decide(self, logged: Sequence[Logged], claims: bytes | None = None) -> None:
        """Decides records in one transaction; with claims one that has waited for them."""
        if not logged:
            return
        resumed = {}
        if claims is not None:
            resumed[self.app_id, logged[0].record.record_id] = _waited(logged[0], claims)

        async with self.lanes.fenced() as connection:
            changes = await decide_batch(
                connection,
                logged,
                apps={self.app_id: self.rules},
                next_sequences=self.lanes.next_sequences,
                new_id=uuid.uuid4,
                now_us=logged[-1].entry.receive_time_us,
                resumed=resumed,
                hashed=self.lanes.hashed.by_app,
            )
            await self.lanes.append(connection, changes, lanes=[lane_of(self.app_id)])
        self.decided += len(changes.decisions)

    async def index_hashes(self, logged: Logged, kinds: Sequence[str] = ()) -> None:
        """Indexes the kinds of hashed ids that came with a record, or these; decides what waited for it."""
        lane = lane_of(self.app_id)
        if kinds:
            hashed = [HashedKind(self.app_id, kind, lane) for kind in kinds]
            async with transaction(self.pool) as connection:
                await note_hashed_kinds(connection, hashed, is_on_conversions=True)
        before = await self.pool.fetchval(_COUNT, lane, self.app_id)
        parts: Any = {
            "settings": SimpleNamespace(current=SimpleNamespace(apps={self.app_id: self.rules}, revision=0)),
            "triggers": SimpleNamespace(asking=lambda _, __: NOBODY),
            "ingest": _EmptyLog(),
        }
        indexer = HashIndexer(pool=self.pool, pace=Pace(), now_us=lambda: logged.entry.receive_time_us, **parts)
        await indexer.index(self.lanes, Mark({}, 0))
        self.decided += await self.pool.fetchval(_COUNT, lane, self.app_id) - before

    async def newest(self) -> dict[str, decision_pb2.Decision]:
        """Returns the newest version of every decision, by conversion."""
        rows = await self.pool.fetch(
            "SELECT decision FROM decisions WHERE lane = $1 AND app_id = $2 ORDER BY version",
            lane_of(self.app_id),
            self.app_id,
        )
        decisions = [decision_pb2.Decision.FromString(row["decision"]) for row in rows]
        return {decision.conversion_id: decision for decision in decisions}


_COUNT = "SELECT count(*) FROM decisions WHERE lane = $1 AND app_id = $2"


class _EmptyLog:
    """A log that has ended before it began: all that a story tells is indexed."""

    def ReadLog(self, request: log_pb2.ReadLogRequest) -> "_EmptyLog":  # as it is called
        return self

    async def __aiter__(self) -> AsyncIterator[log_pb2.ReadLogResponse]:
        yield log_pb2.ReadLogResponse(heads=[0] * LANES)

    def cancel(self) -> None: ...


@dataclass(frozen=True, slots=True)
class FixedSettings:
    """Settings that stay as they are."""

    current: Rulebook


def no_snapshot(revision: int) -> AsyncIterable[snapshot_pb2.GetSnapshotResponse]:
    raise AssertionError("the settings have not changed")


@asynccontextmanager
async def owning(pool: Pool) -> AsyncIterator[OwnedLanes]:
    """Yields all lanes, owned by the test and given back."""
    lanes = set[int]()
    while len(lanes) < LANES:  # an example that crashed may hold some for a moment
        async with transaction(pool) as connection:
            lanes |= await take_lanes(connection, "test", LANES - len(lanes), 3600)
    try:
        yield OwnedLanes(pool, "test", await read_owned_lanes(pool, "test", lanes))
    finally:
        await forget_worker(pool, "test")


def story_of(scenario: Scenario, lanes: OwnedLanes, pool: Pool) -> Story:
    """Makes a scenario an app of its own."""
    app_id = f"app-{uuid.uuid4()}"
    records = [_record(app_id, record) for record in scenario.timeline]
    claims = {
        record.id: _claims(record.claims)
        for record in scenario.timeline
        if isinstance(record, ConversionRecord) and record.claims
    }
    logged = []
    for number, (told, record) in enumerate(zip(scenario.timeline, records, strict=True)):
        entry = log_pb2.LogEntry(
            lane=number % LANES,
            position=number,
            app_lane=lane_of(app_id),
            receive_time_us=told.receive_time_us,
            record=record.SerializeToString(),
        )
        logged.append(Logged(entry, record))
    return Story(pool=pool, lanes=lanes, app_id=app_id, scenario=scenario, logged=logged, claims=claims)


def findable(told: Scenario) -> Scenario:
    """Returns a scenario in which all that is late is looked for, and a session has no amount.

    Not looked for is an engagement that is late by less than counts (LATE_US); nor by its ids one with a hash, unless
    that is of an id of the same kind, hashed once, or with an id that came to be shared meanwhile (A8), as in a crowd.
    They happen when they are received.
    """
    is_crowd = any(value in CROWD[2:] for record in told.timeline for value in record.device.values())

    def in_time(record: EngagementRecord | ConversionRecord) -> EngagementRecord | ConversionRecord:
        if isinstance(record, ConversionRecord):
            return replace(record, is_refund=record.is_refund and not record.is_session_start)
        is_late = record.receive_time_us - record.time_us > LATE_US
        is_found = not is_crowd and not any(map(hash_length, record.device.values()))
        return record if is_late and is_found else replace(record, time_us=record.receive_time_us)

    return replace(told, timeline=tuple(map(in_time, told.timeline)))


def event_of(record: record_pb2.Record) -> str | None:
    return record.WhichOneof("kind") if record.WhichOneof("kind") in ("install", "event", "session") else None


def _record(app_id: str, record: EngagementRecord | ConversionRecord) -> record_pb2.Record:
    made = record_pb2.Record(
        record_id=record.id,
        app_id=app_id,
        device_ids=usable_ids(record.device),
        ip_address=record.ip,
        user_agent=record.ua,
        client_hints=record_pb2.ClientHints(**record.client_hints._asdict()),
        country=record.country,
    )
    made.event_time.FromMicroseconds(record.time_us)
    if isinstance(record, EngagementRecord):
        visitor = _visitor(record)
        ad = record_pb2.AdDetails(site_id=f"site of {record.id}", creative_id=f"creative of {record.id}")
        if record.kind is EngagementKind.CLICK:
            # Trackers of all stories have the same ids: a click of another one is no repeat of this.
            click_id = f"{record.click_id} of {app_id}" if record.click_id else ""
            made.click.CopyFrom(record_pb2.Click(tracker_id=record.tracker, click_id=click_id, visitor=visitor, ad=ad))
            made.click.is_ping = record.is_ping
        else:
            completed_view = record.completed_view
            made.impression.CopyFrom(
                record_pb2.Impression(tracker_id=record.tracker, completed_view=completed_view, visitor=visitor, ad=ad)
            )
            made.impression.is_ping = record.is_ping
        return made
    made.limit_ad_tracking = record.limit_ad_tracking
    if record.is_session_start:
        made.session.CopyFrom(record_pb2.Session(state=record_pb2.Session.STATE_START, click_record_id=record.click))
    elif record.name:
        made.event.CopyFrom(record_pb2.Event(event_name=record.name, click_record_id=record.click))
        made.event.revenue.CopyFrom(record_pb2.Money(amount_micros=amount_micros(record), currency_code="USD"))
    else:
        made.install.CopyFrom(record_pb2.Install(click_record_id=record.click))
    return made


def _visitor(record: EngagementRecord) -> record_pb2.Visitor.ValueType:
    if find_bot(record.ua):
        return record_pb2.VISITOR_BOT
    return record_pb2.VISITOR_PREFETCH if record.is_prefetch else record_pb2.VISITOR_UNSPECIFIED


def amount_micros(event: ConversionRecord) -> int:
    """Returns the amount of an event, which scenarios leave open: another one for each, and negative for a refund."""
    amount = zlib.crc32(event.id.encode()) + 1
    return -amount if event.is_refund else amount


def _claims(claims: Iterable[Claim]) -> bytes:
    states = claim_pb2.ClaimAnswer
    answers = []
    for claim in claims:
        said = claim_pb2.Claim(
            is_view=claim.kind is EngagementKind.IMPRESSION,
            campaign_name=claim.campaign_name,
            granular_data_forbidden=not claim.granular_data_allowed,
        )
        said.engagement_time.FromMicroseconds(claim.time_us)
        answers.append(states(network_id=claim.network_id, state=states.STATE_CLAIMED, claim=said))
    answers.append(states(network_id="silent", state=states.STATE_UNAVAILABLE))
    return claim_pb2.ConversionClaims(answers=answers).SerializeToString()


def _waited(logged: Logged, claims: bytes) -> PendingRow:
    return PendingRow(
        lane=logged.entry.app_lane,
        app_id=logged.record.app_id,
        conversion_id=logged.record.record_id,
        device_id=uuid.UUID(int=0),
        is_install=logged.record.HasField("install"),
        log_lane=logged.entry.lane,
        position=logged.entry.position,
        receive_time_us=logged.entry.receive_time_us,
        settings_revision=0,
        record=logged.entry.record,
        network_ids=["x"],
        deadline_us=0,
        claims=claims,
    )
