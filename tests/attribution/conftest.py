"""Attribution as it runs: a real ingest before it, a real database, workers, and a postback that remembers.

Settings arrive as tracker would send them.
"""

import asyncio
import contextlib
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import grpc
import pytest

from libs.channels import open_channel
from libs.db import Pool, open_pool
from libs.domain.snapshots import Follower
from libs.server import Face, ServerConfig, build_server
from reengage.attribution.v1 import decision_pb2, offer_pb2
from reengage.attribution.v1 import service_pb2_grpc as attribution_grpc
from reengage.ingest.v1 import record_batch_pb2, record_pb2
from reengage.ingest.v1.service_pb2_grpc import IngestServiceStub
from reengage.postback.v1 import claim_pb2, conversion_pb2
from reengage.postback.v1 import service_pb2_grpc as postback_grpc
from reengage.tracker.v1 import (
    app_pb2,
    campaign_pb2,
    event_definition_pb2,
    network_pb2,
    snapshot_pb2,
    status_pb2,
    tracker_pb2,
)
from services.attribution.jobs.claims import ClaimsConfig
from services.attribution.jobs.late_arrivals import LateArrivalsConfig
from services.attribution.live.claim_triggers import ClaimTriggers
from services.attribution.live.worker import Loop, Worker, WorkerConfig
from services.attribution.pace import Pace
from services.attribution.queries.following import Following, FollowingConfig
from services.attribution.queries.offers import HAND_OVER_S
from services.attribution.redecide.what_if import WhatIfConfig
from services.attribution.storage import PLANNER
from services.attribution.wire import rulebook
from services.attribution.wiring import Ground, wire_face, wire_worker
from services.ingest import settings as ingest_settings
from services.ingest.wiring import wire_parts
from tests.conftest import Database

APP = "shop"
_DAY_AGO_S = int(time.time()) - 86_400
UA_TRACKER, RE_TRACKER, OTHER_RE_TRACKER = "ua", "re", "re-other"
COUNTRIES = {"198.51.100.49": "DE", "198.51.100.33": "FR"}
"""Of addresses, as far as the ingest of the tests knows them."""


class Feed:
    """Settings, published as tracker's WatchSnapshot sends them."""

    def __init__(self) -> None:
        self._revision = 0
        self._resources: list[snapshot_pb2.Resource] = []
        self._lengths = [0]
        self._changed = asyncio.Condition()

    async def publish(self, *resources: snapshot_pb2.Resource) -> int:
        """Adds or replaces resources, as one revision."""
        async with self._changed:
            self._revision += 1
            self._resources.extend(resources)
            self._lengths.append(len(self._resources))
            self._changed.notify_all()
        return self._revision

    async def watch(self, revision: int) -> AsyncIterator[snapshot_pb2.WatchSnapshotResponse]:
        """Yields all settings with every revision: later entries of a resource replace earlier ones."""
        sent = -1
        while True:
            async with self._changed:
                while self._revision == sent:
                    await self._changed.wait()
            sent = self._revision
            yield snapshot_pb2.WatchSnapshotResponse(revision=sent, reset=True, resources=self._resources)

    async def at(self, revision: int) -> AsyncIterator[snapshot_pb2.GetSnapshotResponse]:
        """Yields all settings as they were at a revision."""
        yield snapshot_pb2.GetSnapshotResponse(revision=revision, resources=self._resources[: self._lengths[revision]])


class Received(postback_grpc.PostbackServiceServicer):
    """A postback service that keeps what it is handed, once each and the latest, and can be told to fail.

    Networks answer about a conversion what they were told to, and no claim otherwise; who is told nothing but `pending`
    does not answer until told more. `asked` counts how often claims of a conversion were requested.
    """

    def __init__(self) -> None:
        self.conversions: dict[str, conversion_pb2.Conversion] = {}
        self.latest: dict[str, conversion_pb2.Conversion] = {}
        self.calls = 0
        self.failing = False
        self.hanging = False
        self.refused: dict[str, grpc.StatusCode] = {}
        """Conversions that every call which names them is refused for, with the code."""
        self.erased: list[str] = []
        self.stripped: set[str] = set()
        self.asked: Counter[str] = Counter()
        self.asked_about: dict[str, conversion_pb2.Conversion] = {}
        self._triggers: list[claim_pb2.ClaimTrigger] = []
        self._answers: dict[str, list[claim_pb2.ClaimAnswer]] = {}
        self._changed = asyncio.Condition()

    async def trigger(self, *triggers: tuple[str, str], app_id: str = APP) -> None:
        """Has claims requested for these events (event name, network), and no others."""
        async with self._changed:
            self._triggers = [
                claim_pb2.ClaimTrigger(app_id=app_id, event_name=event_name, network_id=network_id)
                for event_name, network_id in triggers
            ]
            self._changed.notify_all()

    async def answer(self, conversion_id: str, *answers: claim_pb2.ClaimAnswer) -> None:
        """Has networks answer this about a conversion from now on."""
        async with self._changed:
            self._answers[conversion_id] = list(answers)
            self._changed.notify_all()

    async def WatchClaimTriggers(
        self, request: claim_pb2.WatchClaimTriggersRequest, context: Any
    ) -> AsyncIterator[claim_pb2.WatchClaimTriggersResponse]:
        if self.failing:
            await context.abort(grpc.StatusCode.INTERNAL, "told to fail")
        while True:
            sent = self._triggers
            yield claim_pb2.WatchClaimTriggersResponse(triggers=sent)
            async with self._changed:
                while self._triggers is sent:
                    await self._changed.wait()

    async def RequestClaims(
        self, request: claim_pb2.RequestClaimsRequest, context: Any
    ) -> claim_pb2.RequestClaimsResponse:
        if self.failing:
            await context.abort(grpc.StatusCode.INTERNAL, "told to fail")
        await self._refuse(request.conversions, context)
        if self.hanging:
            await asyncio.Event().wait()
        decisions = [conversion.decision for conversion in request.conversions]
        async with self._changed:
            for conversion in request.conversions:
                self.asked[conversion.decision.conversion_id] += 1
                self.asked_about[conversion.decision.conversion_id] = conversion
            self._changed.notify_all()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(request.wait.ToMilliseconds() / 1000):
                    await self._changed.wait_for(lambda: not any(map(self._is_pending, decisions)))
        return claim_pb2.RequestClaimsResponse(
            conversions=[
                claim_pb2.ConversionClaims(
                    app_id=each.app_id, conversion_id=each.conversion_id, answers=self._said(each)
                )
                for each in decisions
            ]
        )

    def _said(self, decision: decision_pb2.Decision) -> list[claim_pb2.ClaimAnswer]:
        return self._answers.get(
            decision.conversion_id,
            [
                not_claimed(trigger.network_id)
                for trigger in self._triggers
                if (trigger.app_id, trigger.event_name) == (decision.app_id, decision.event_name)
            ],
        )

    def _is_pending(self, decision: decision_pb2.Decision) -> bool:
        return any(answer.state == claim_pb2.ClaimAnswer.STATE_PENDING for answer in self._said(decision))

    async def EnqueueConversions(
        self, request: conversion_pb2.EnqueueConversionsRequest, context: Any
    ) -> conversion_pb2.EnqueueConversionsResponse:
        self.calls += 1
        if self.failing:
            await context.abort(grpc.StatusCode.INTERNAL, "told to fail")
        await self._refuse(request.conversions, context)
        if request.validate_only:
            return conversion_pb2.EnqueueConversionsResponse(offered=map(self._offered, request.conversions))
        before = len(self.conversions)
        for conversion in request.conversions:
            self.conversions.setdefault(conversion.decision.conversion_id, conversion)
            self.latest[conversion.decision.conversion_id] = conversion
        return conversion_pb2.EnqueueConversionsResponse(created_count=len(self.conversions) - before)

    async def _refuse(self, conversions: Iterable[conversion_pb2.Conversion], context: Any) -> None:
        for each in conversions:
            if (code := self.refused.get(each.decision.conversion_id)) is not None:
                await context.abort(code, "told to refuse this")

    def _offered(self, conversion: conversion_pb2.Conversion) -> offer_pb2.OfferedPostback:
        effects = offer_pb2.OfferedPostback
        was_sent = conversion.decision.conversion_id in self.conversions
        return offer_pb2.OfferedPostback(
            conversion_id=conversion.decision.conversion_id,
            effect=effects.EFFECT_WAS_SENT if was_sent else effects.EFFECT_WOULD_BE_SENT,
        )

    async def EraseConversions(
        self, request: conversion_pb2.EraseConversionsRequest, context: Any
    ) -> conversion_pb2.EraseConversionsResponse:
        if self.failing:
            await context.abort(grpc.StatusCode.INTERNAL, "told to fail")
        self.erased += request.conversion_ids
        self.stripped.update(request.stripped_conversion_ids)
        count = sum(self.conversions.pop(each, None) is not None for each in request.conversion_ids)
        return conversion_pb2.EraseConversionsResponse(erased_counts={"deliveries": count})


@dataclass(kw_only=True)
class World:
    """The world of a test: everything it touches."""

    feed: Feed
    ground: Ground
    ingest: IngestServiceStub
    attribution: attribution_grpc.AttributionServiceStub
    received: Received
    pool: Pool
    log_pool: Pool
    settings: Follower[rulebook.Rulebook]
    postback: postback_grpc.PostbackServiceStub
    pace: Pace
    targets: Mapping[str, str]
    """Where ingest and postback are, for a process of its own."""
    numbers: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))

    async def send(self, *records: record_pb2.Record) -> list[str]:
        """Sends records, all of which must be taken; returns their ids."""
        response = await self.ingest.RecordBatch(record_batch_pb2.RecordBatchRequest(records=records))
        assert not [v for result in response.results for v in result.violations]
        return [result.record_id for result in response.results]

    @asynccontextmanager
    async def worker(
        self,
        lease_s: float = 5.0,
        ingest: IngestServiceStub | None = None,
        jobs: Mapping[str, Loop] = MappingProxyType({}),
        claim_wait_s: float = 15.0,
        claims_config: ClaimsConfig | None = None,
        flush_interval_s: float = 5.0,
    ) -> AsyncIterator[Worker]:
        """Runs a worker that asks for claims, too; on leaving it is cancelled, as at a graceful stop."""
        ground = replace(self.ground, ingest=ingest or self.ingest, postback=self.postback)
        triggers = ClaimTriggers(self.pool, self.postback, wait_s=claim_wait_s)
        worker = wire_worker(
            ground,
            triggers,
            WorkerConfig(worker_id=f"worker-{next(self.numbers)}", lease_s=lease_s),
            jobs=jobs,
            claims_config=claims_config or ClaimsConfig(),
            late_arrivals_config=LateArrivalsConfig(look_interval_s=0.02),
            flush_interval_s=flush_interval_s,
        )
        tasks = [asyncio.ensure_future(triggers.run()), asyncio.ensure_future(worker.run())]
        try:
            yield worker
        finally:
            await _cancel(tasks)

    async def decided(self, *conversion_ids: str) -> list[decision_pb2.Decision]:
        """Returns the decisions on these conversions, once all are made."""
        decisions: list[decision_pb2.Decision] = []
        for conversion_id in conversion_ids:
            request = decision_pb2.GetDecisionRequest(app_id=APP, conversion_id=conversion_id)
            while not decisions or decisions[-1].conversion_id != conversion_id:
                try:
                    decisions.append((await self.attribution.GetDecision(request)).decision)
                except grpc.aio.AioRpcError as error:
                    if error.code() is not grpc.StatusCode.NOT_FOUND:
                        raise
                    await asyncio.sleep(0.03)
        return decisions


def die(worker: Worker) -> None:
    """Lets a worker end without giving anything back, as SIGKILL does."""
    worker._config = replace(worker._config, worker_id="nobody")


StartWorld: TypeAlias = Callable[[Database], AbstractAsyncContextManager[World]]


@pytest.fixture
def following_config() -> FollowingConfig:
    """Returns the limits of following; a test that needs others is parametrized with them."""
    return FollowingConfig()


@pytest.fixture
def what_if_config() -> WhatIfConfig:
    """Returns the limits of what-ifs; as above."""
    return WhatIfConfig()


@pytest.fixture
def hand_over_s() -> float:
    """Returns the time in which offers are handed over; as above."""
    return HAND_OVER_S


@pytest.fixture
def start_world(
    tmp_path: Path, following_config: FollowingConfig, what_if_config: WhatIfConfig, hand_over_s: float
) -> StartWorld:
    """Starts a world without a worker on a database."""
    numbers = itertools.count(1)

    @asynccontextmanager
    async def start(database: Database) -> AsyncIterator[World]:
        async with AsyncExitStack() as stack:
            number = next(numbers)
            targets: dict[str, str] = {}

            async def pool_of(service: str) -> Pool:
                planner = PLANNER if service == "attribution" else {}
                opened = open_pool(database.dsn(service), schema=service, application_name="test", settings=planner)
                return await stack.enter_async_context(opened)

            async def serve(name: str, face: Face) -> grpc.aio.Channel:
                server, _ = build_server(ServerConfig(listen=""), [face])
                address = f"unix:{tmp_path / f'{name}{number}.sock'}"
                server.add_insecure_port(address)
                targets[name] = address
                await server.start()
                stack.push_async_callback(server.stop, 0)
                return await stack.enter_async_context(open_channel(address))

            async def background(*bodies: Callable[[], Any]) -> None:
                tasks = [asyncio.ensure_future(body()) for body in bodies]
                stack.push_async_callback(_cancel, tasks)

            feed, received = Feed(), Received()  # type: ignore[abstract]  # attribution calls one method only
            await feed.publish(*sample_settings())

            log_settings = Follower(feed.watch, ingest_settings.build_settings)
            log_pool = await pool_of("ingest")
            log = wire_parts(
                log_pool,
                log_settings,
                register=lambda app_id, event_names: asyncio.sleep(0),  # there is no tracker to tell
                country_of=lambda ip_address: COUNTRIES.get(ip_address, ""),
                settle_s=0.5,
            )
            pool = await pool_of("attribution")
            settings = Follower(feed.watch, rulebook.RulebookBuilder())
            pace = Pace()
            following = Following(pool, pace, following_config)
            await background(*log.loops.values(), settings.run, following.run)
            await asyncio.gather(log_settings.ready(), settings.ready())
            to_ingest = await serve("ingest", log.face)
            to_postback = await serve(
                "postback",
                Face(
                    name="reengage.postback.v1.PostbackService",
                    add=partial(postback_grpc.add_PostbackServiceServicer_to_server, received),
                ),
            )
            postback = postback_grpc.PostbackServiceStub(to_postback)
            ground = Ground(
                pool=pool,
                rulebooks=settings,
                read_snapshot=feed.at,
                ingest=IngestServiceStub(to_ingest),
                postback=postback,
                pace=pace,
            )
            face = wire_face(
                replace(ground, now_us=lambda: 2**60),  # whatever happened is past
                following,
                what_if_config=what_if_config,
                hand_over_s=hand_over_s,
            )
            to_attribution = await serve("attribution", face)
            yield World(
                feed=feed,
                ground=ground,
                ingest=ground.ingest,
                attribution=attribution_grpc.AttributionServiceStub(to_attribution),
                received=received,
                pool=pool,
                log_pool=log_pool,
                settings=settings,
                postback=postback,
                pace=pace,
                targets=targets,
            )

    return start


@pytest.fixture
async def pool(database: Database) -> AsyncIterator[Pool]:
    """Yields attribution's pool alone, for tests that write to the store themselves."""
    async with open_pool(
        database.dsn("attribution"), schema="attribution", application_name="test", settings=PLANNER
    ) as opened:
        yield opened


@pytest.fixture
async def world(start_world: StartWorld, database: Database) -> AsyncIterator[World]:
    """Yields a world without a worker."""
    async with start_world(database) as started:
        yield started


async def _cancel(tasks: Sequence["asyncio.Future[Any]"]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def sample_settings() -> list[snapshot_pb2.Resource]:
    """Returns one app, two networks, an acquisition tracker and two reengagement trackers for Purchase (MTR 1 h)."""
    purchase = event_definition_pb2.EventDefinition(app_id=APP, event_name="Purchase", status=status_pb2.STATUS_LIVE)
    purchase.min_time_to_reengagement.FromSeconds(3600)
    return [
        snapshot_pb2.Resource(
            app=app_pb2.App(
                app_id=APP,
                name="Shop",
                platform=app_pb2.PLATFORM_ANDROID,
                status=status_pb2.STATUS_LIVE,
                settings=app_pb2.AppSettings(records_per_second=0),  # tests send floods
            )
        ),
        *(
            snapshot_pb2.Resource(network=network_pb2.Network(network_id=network_id, name=network_id.title()))
            for network_id in ("acme", "bolt")
        ),
        snapshot_pb2.Resource(campaign=campaign_pb2.Campaign(campaign_id="c1", app_id=APP, name="Spring")),
        snapshot_pb2.Resource(event_definition=purchase),
        tracker_resource(UA_TRACKER, network_id="bolt"),
        tracker_resource(RE_TRACKER, network_id="acme", events=["Purchase"]),
        tracker_resource(OTHER_RE_TRACKER, network_id="bolt", events=["Purchase"]),
    ]


def tracker_resource(tracker_id: str, *, events: Sequence[str] = (), **fields: Any) -> snapshot_pb2.Resource:
    """Returns a live tracker; with events it is of type REENGAGEMENT."""
    kinds = tracker_pb2.Tracker
    return snapshot_pb2.Resource(
        tracker=tracker_pb2.Tracker(
            tracker_id=tracker_id,
            app_id=APP,
            campaign_id="c1",
            name=tracker_id.upper(),
            type=kinds.TYPE_REENGAGEMENT if events else kinds.TYPE_ACQUISITION,
            events=events,
            status=status_pb2.STATUS_LIVE,
            **fields,
        )
    )


def record(at_s: int, device: str | dict[str, str] = "", **fields: Any) -> record_pb2.Record:
    """Returns a record that happened `at_s` seconds after a day ago; a device given as text is an adid."""
    ids = device if isinstance(device, dict) else {"adid": device} if device else {}
    made = record_pb2.Record(app_id=APP, device_ids=ids, **{"ip_address": "192.0.2.7", **fields})
    made.event_time.FromSeconds(_DAY_AGO_S + at_s)
    return made


def click(
    at_s: int, device: str | dict[str, str] = "", tracker_id: str = RE_TRACKER, **fields: Any
) -> record_pb2.Record:
    return record(at_s, device, click=record_pb2.Click(tracker_id=tracker_id, **fields.pop("click", {})), **fields)


def install(at_s: int, device: str | dict[str, str], **fields: Any) -> record_pb2.Record:
    return record(at_s, device, install=record_pb2.Install(**fields.pop("install", {})), **fields)


def event(at_s: int, device: str | dict[str, str], name: str = "Purchase", **fields: Any) -> record_pb2.Record:
    return record(at_s, device, event=record_pb2.Event(event_name=name, **fields.pop("event", {})), **fields)


def claimed(network_id: str, at_s: int, **claim: Any) -> claim_pb2.ClaimAnswer:
    """Returns a network's claim that the user engaged `at_s` seconds after a day ago."""
    answer = claim_pb2.ClaimAnswer(
        network_id=network_id, state=claim_pb2.ClaimAnswer.STATE_CLAIMED, claim=claim_pb2.Claim(**claim)
    )
    answer.claim.engagement_time.FromSeconds(_DAY_AGO_S + at_s)
    return answer


def not_claimed(network_id: str) -> claim_pb2.ClaimAnswer:
    return claim_pb2.ClaimAnswer(network_id=network_id, state=claim_pb2.ClaimAnswer.STATE_NOT_CLAIMED)


def pending(network_id: str, **why: Any) -> claim_pb2.ClaimAnswer:
    return claim_pb2.ClaimAnswer(network_id=network_id, state=claim_pb2.ClaimAnswer.STATE_PENDING, **why)


def unavailable(network_id: str, **why: Any) -> claim_pb2.ClaimAnswer:
    return claim_pb2.ClaimAnswer(network_id=network_id, state=claim_pb2.ClaimAnswer.STATE_UNAVAILABLE, **why)


def device(number: int) -> str:
    """Returns an advertising id."""
    return f"{number:08x}-0000-4000-8000-{number:012x}"
