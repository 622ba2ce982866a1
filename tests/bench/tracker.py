"""Tracker with 100,000 trackers: lists, resolved settings, a snapshot's way into a follower, and a change's."""

import asyncio
import gc
import statistics
import time
from collections.abc import AsyncIterable, Awaitable, Callable

import asyncpg
import psutil
from google.protobuf.field_mask_pb2 import FieldMask

from libs.channels import open_channel
from libs.domain.snapshots import Follower, Resources
from reengage.tracker.v1 import (
    app_pb2,
    campaign_pb2,
    network_pb2,
    resolve_pb2,
    segment_pb2,
    service_pb2_grpc,
    snapshot_pb2,
    tracker_pb2,
)
from reengage.tracker.v1.app_pb2 import PLATFORM_IOS
from reengage.tracker.v1.resource_kind_pb2 import RESOURCE_KIND_TRACKER
from reengage.tracker.v1.status_pb2 import STATUS_LIVE
from reengage.tracker.v1.tracker_pb2 import Tracker
from services.attribution.wire.rulebook import RulebookBuilder
from services.gateway.settings import GatewaySettings
from services.ingest.settings import build_settings as build_ingest
from tests.bench.row import Row
from tests.support.databases import migrated_postgres
from tests.support.processes import tracker_process

TRACKERS = 100_000
APPS = 100
ADMIN_KEY, SERVICE_KEY = "bench-admin", "bench-service"
Stub = service_pb2_grpc.TrackerConfigServiceStub
BUILDS: dict[str, Callable[[Resources, int], object]] = {
    "ingest": build_ingest,
    "gateway": GatewaySettings,
    "attribution": RulebookBuilder(),
}


async def bench(*, trackers: int = TRACKERS) -> list[Row]:
    """Returns rows for `trackers` in 100 apps."""
    async with migrated_postgres("tracker") as (postgres, directory):
        process = tracker_process(
            directory / "log", dsn=postgres.dsn("tracker"), admin_key=ADMIN_KEY, service_key=SERVICE_KEY
        )
        await process.start()
        try:
            async with (
                open_channel(process.target, key=ADMIN_KEY) as admin,
                open_channel(process.target, key=SERVICE_KEY) as service,
            ):
                await _create_apps(Stub(admin))
                await _create_trackers(postgres.dsn("tracker"), trackers)
                rows = [await _list(Stub(admin), trackers), await _resolve(Stub(admin))]
                return rows + await _follow(Stub(admin), Stub(service), trackers)
        finally:
            await process.stop()


async def _create_apps(stub: Stub) -> None:
    network = network_pb2.Network(network_id="net", name="Net", platform=PLATFORM_IOS)
    await stub.CreateNetwork(network_pb2.CreateNetworkRequest(network=network))
    for number in range(APPS):
        app = app_pb2.App(app_id=f"app{number}", name=f"App {number}", platform=PLATFORM_IOS)
        campaign = campaign_pb2.Campaign(campaign_id=f"c{number}", app_id=app.app_id, name="Campaign")
        segment = segment_pb2.Segment(segment_id=f"s{number}", campaign_id=f"c{number}", name="Segment")
        await stub.CreateApp(app_pb2.CreateAppRequest(app=app))
        await stub.CreateCampaign(campaign_pb2.CreateCampaignRequest(campaign=campaign))
        await stub.CreateSegment(segment_pb2.CreateSegmentRequest(segment=segment))


async def _create_trackers(dsn: str, number: int) -> None:
    """Creates trackers as a bulk change would leave them, in one revision."""
    connection = await asyncpg.connect(dsn, server_settings={"search_path": "tracker"})
    try:
        revision = await connection.fetchval("UPDATE revision SET revision = revision + 1 RETURNING revision")
        rows = [_tracker(index, revision) for index in range(number)]
        await connection.copy_records_to_table(
            "trackers",
            columns=[
                "tracker_id", "segment_id", "campaign_id", "app_id", "network_id", "name", "type", "events",
                "default_tracker", "san_account_ids", "share_with_publisher", "status", "resource",
            ],
            records=[
                (
                    row.tracker_id, row.segment_id, row.campaign_id, row.app_id, row.network_id, row.name,
                    row.type, list(row.events), False, [], False, row.status, row.SerializeToString(),
                )
                for row in rows
            ],
        )  # fmt: skip
        await connection.execute(
            """
            INSERT INTO changes (revision, kind, resource_key, change_us, resource, actor, app_id)
            SELECT $1, $2, ARRAY[tracker_id], $3, resource, 'bench', app_id FROM trackers
            """,
            revision,
            RESOURCE_KIND_TRACKER,
            time.time_ns() // 1000,
        )
        await connection.execute("ANALYZE")
    finally:
        await connection.close()


def _tracker(index: int, revision: int) -> Tracker:
    at = index % APPS
    return Tracker(
        tracker_id=f"t{index:06}", name=f"Tracker {index}", app_id=f"app{at}", campaign_id=f"c{at}",
        segment_id=f"s{at}", network_id="net", type=Tracker.TYPE_REENGAGEMENT, events=["Purchase"],
        install_url="https://apps.example/app", status=STATUS_LIVE, revision=revision, etag=str(revision),
    )  # fmt: skip


async def _list(stub: Stub, trackers: int) -> Row:
    began, read = time.perf_counter(), 0
    for number in range(0, APPS, 10):
        request = tracker_pb2.ListTrackersRequest(app_id=f"app{number}", page_size=1000)
        read += len((await stub.ListTrackers(request)).trackers)
    rate = read / (time.perf_counter() - began)
    return Row(name=f"tracker: list, of {trackers:,}", value=rate, unit="trackers/s")


async def _resolve(stub: Stub) -> Row:
    async def call(number: int) -> None:
        await stub.ResolveSettings(resolve_pb2.ResolveSettingsRequest(tracker_id=f"t{number:06}"))

    return Row(name="tracker: resolve settings", value=await _rate(call, calls=600), unit="calls/s")


async def _rate(call: Callable[[int], Awaitable[None]], *, calls: int, at_once: int = 8) -> float:
    numbers = iter(range(calls))

    async def caller() -> None:
        for number in numbers:
            await call(number)

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(at_once)))
    return calls / (time.perf_counter() - began)


async def _follow(admin: Stub, service: Stub, trackers: int) -> list[Row]:
    def watch(revision: int) -> AsyncIterable[snapshot_pb2.WatchSnapshotResponse]:
        return service.WatchSnapshot(snapshot_pb2.WatchSnapshotRequest(revision=revision))

    held: list[Resources] = []

    def build(resources: Resources, revision: int) -> int:
        held[:] = [resources]
        return revision

    gc.collect()
    before, began = psutil.Process().memory_info().rss, time.perf_counter()
    follower = Follower(watch, build)
    running = asyncio.ensure_future(follower.run())
    try:
        await follower.ready()
        loaded_s = time.perf_counter() - began
        grown = (psutil.Process().memory_info().rss - before) / 1e6
        rows = [
            Row(
                name=f"tracker: snapshot of {trackers:,} loads in", value=loaded_s * 1000, unit="ms",
                limit_name="ms it may take", limit=10_000, at_most=1.0,
            ),
            Row(
                name="  and takes, at the follower", value=grown, unit="MB",
                limit_name="MB it may take", limit=300, at_most=1.0,
            ),
        ]  # fmt: skip
        for name, build_of in BUILDS.items():
            began = time.perf_counter()
            built = build_of(held[0], 1)
            rows.append(Row(name=f"  {name} builds from it in", value=(time.perf_counter() - began) * 1000, unit="ms"))
            del built
        return rows + await _latency(admin, follower)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def _latency(admin: Stub, follower: Follower[int]) -> list[Row]:
    """Measures from the call that changes a setting to its use at a follower, while lists and resolves go on."""
    stop = asyncio.Event()

    async def load(number: int) -> None:
        while not stop.is_set():
            await admin.ResolveSettings(resolve_pb2.ResolveSettingsRequest(tracker_id=f"t{number:06}"))
            await admin.ListTrackers(tracker_pb2.ListTrackersRequest(app_id=f"app{number}", page_size=100))

    loads = [asyncio.ensure_future(load(number)) for number in range(4)]
    taken = []
    for number in range(100):
        request = tracker_pb2.UpdateTrackerRequest(
            tracker=Tracker(tracker_id=f"t{number:06}", name=f"Renamed {number}"), update_mask=FieldMask(paths=["name"])
        )
        began = time.perf_counter()
        revision = (await admin.UpdateTracker(request)).tracker.revision
        await follower.reached(revision)
        taken.append((time.perf_counter() - began) * 1000)
    stop.set()
    await asyncio.gather(*loads)
    return [
        Row(name="tracker: change to follower, under load, p50", value=statistics.median(taken), unit="ms"),
        Row(
            name="  p99", value=statistics.quantiles(taken, n=100)[98], unit="ms",
            limit_name="ms it may take", limit=1000, at_most=1.0,
        ),
    ]  # fmt: skip
