"""The whole way: from a stream of records to committed decisions, created deliveries and delivered postbacks."""

import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg
import psutil
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct

from deploy.local.suite import HOST, Ports, Suite, running_suite
from libs.channels import open_channel
from reengage.postback.v1 import service_pb2_grpc as postback_grpc
from reengage.postback.v1.configuration_pb2 import Configuration, CreateConfigurationRequest
from reengage.tracker.v1 import (
    app_pb2,
    campaign_pb2,
    event_definition_pb2,
    network_pb2,
    segment_pb2,
    service_pb2_grpc,
    tracker_pb2,
)
from tests.bench.load import APP, CLICKED, INSTALLED
from tests.bench.row import Row
from tests.support.ports import suite_ports

TARGET_RATE = 5_000
"""Records a second that the suite must sustain on two cores, load included."""
GIVE_UP_S = 60
OFFERED_RATE = 5_500
"""A little more than that: what comes out is counted until the last record is through, which takes a moment longer."""


async def bench(
    *, rate: int = OFFERED_RATE, seconds: int = 60, latency_s: int = 30, announce: Callable[[str], None] = print
) -> list[Row]:
    """Offers `rate` for `seconds`, then half of it for `latency_s`."""
    with tempfile.TemporaryDirectory(prefix="reengage-bench-", ignore_cleanup_errors=True) as directory:
        ports = suite_ports()
        async with running_suite(Path(directory), ports, announce=announce) as suite:
            await create_settings(suite)
            database = await asyncpg.connect(suite.postgres.admin_dsn())
            try:
                announce(f"{rate:,} records/s for {seconds} s")
                rows = await _sustained(suite, database, rate, seconds)
                announce(f"{TARGET_RATE // 2:,} records/s for {latency_s} s")
                rows += await _latency(ports, TARGET_RATE // 2, latency_s)
            finally:
                await database.close()
    return rows


async def _sustained(suite: Suite, database: Any, rate: int, seconds: int) -> list[Row]:
    server = psutil.Process(await database.fetchval("SELECT pg_backend_pid()")).parent()
    assert server is not None
    busy, began = _cpu_s(suite, server), time.monotonic()
    running = asyncio.ensure_future(_load(suite.ports, rate, seconds, seed=1))
    await asyncio.sleep(seconds / 3)
    early = _memory(suite)
    loaded = await running
    finished = began + loaded["seconds"]
    while True:
        decided = await database.fetchval("SELECT count(*) FROM attribution.decisions")
        created = await database.fetchval("SELECT count(*) FROM postback.deliveries")
        if decided >= loaded["conversions"] and created >= loaded["reengaging"]:
            finished = max(finished, time.monotonic())
            break
        if time.monotonic() > began + 3 * seconds + GIVE_UP_S:
            raise RuntimeError(f"{decided} of {loaded['conversions']} decided, {created} deliveries")
        await asyncio.sleep(0.1)
    late = _memory(suite)
    spent = {name: seconds - busy.get(name, 0.0) for name, seconds in _cpu_s(suite, server).items()} | {
        "the load": loaded["cpu_s"]
    }
    return [
        Row(
            name="stream to decision and delivery",
            value=loaded["records"] / (finished - began),
            unit="records/s",
            limit_name="records/s that must be sustained",
            limit=TARGET_RATE,
            at_least=1.0,
        ),
        Row(name="  taken by ingest meanwhile", value=loaded["records"] / loaded["seconds"], unit="records/s"),
        Row(
            name="  memory of the services at the end",
            value=late,
            unit="MB",
            limit_name="MB after a third of the time",
            limit=early,
            at_most=1.1,
        ),
        *(
            Row(name=f"  CPU time of {name}", value=seconds / loaded["records"] * 1e6, unit="us/record")
            for name, seconds in spent.items()
        ),
    ]


async def _latency(ports: Ports, rate: int, seconds: int) -> list[Row]:
    loaded = await _load(ports, rate, seconds, seed=2)
    latencies = loaded["latencies_s"]
    if len(latencies) < loaded["reengaging"]:
        raise RuntimeError(f"only {len(latencies)} of {loaded['reengaging']} postbacks came")
    cuts = statistics.quantiles(latencies, n=100)
    return [
        Row(
            name=f"receipt to delivered postback, p{percent}",
            value=cuts[percent - 1] * 1000,
            unit="ms",
            limit_name="ms that p95 must stay below" if percent == 95 else "",
            limit=1000.0 if percent == 95 else 0.0,
            at_most=1.0 if percent == 95 else 0.0,
        )
        for percent in (50, 95, 99)
    ]


async def _load(ports: Ports, rate: int, seconds: int, *, seed: int) -> dict[str, Any]:
    arguments = [ports.address("ingest"), ports.network, rate, seconds, seed]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.bench.load", *map(str, arguments), stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError("the load failed")
    loaded: dict[str, Any] = json.loads(output)
    return loaded


def _memory(suite: Suite) -> float:
    """Returns the MB that the services hold."""
    pids = [service.pid for service in suite.services.values() if service.pid is not None]
    return sum(psutil.Process(pid).memory_info().rss for pid in pids) / 1e6


def _cpu_s(suite: Suite, server: psutil.Process) -> dict[str, float]:
    """Returns seconds of CPU that each service, and each service's connections to PostgreSQL, have used so far."""
    spent = {}
    for name, service in suite.services.items():
        times = psutil.Process(service.pid).cpu_times()
        spent[name] = times.user + times.system
    for backend in server.children():
        # A backend's title: "postgres: <role> <database> …".
        title = " ".join(backend.cmdline())
        owner = next((name for name in suite.services if f" {name}_app " in title), None)
        key = f"PostgreSQL for {owner}" if owner else "PostgreSQL besides"
        times = backend.cpu_times()
        spent[key] = spent.get(key, 0.0) + times.user + times.system
    return spent


async def create_settings(suite: Suite) -> None:
    """Creates an app, a reengagement tracker for Purchase (MTR off), and a postback of it to this machine."""
    kinds = tracker_pb2.Tracker
    async with open_channel(suite.ports.address("tracker"), key=suite.admin_key) as channel:
        stub = service_pb2_grpc.TrackerConfigServiceStub(channel)
        android = app_pb2.PLATFORM_ANDROID
        app = app_pb2.App(app_id=APP, name="Bench", platform=android)
        app.settings.records_per_second = 0  # no limit
        await stub.CreateApp(app_pb2.CreateAppRequest(app=app))
        network = network_pb2.Network(network_id="bench-net", name="Bench network", platform=android)
        await stub.CreateNetwork(network_pb2.CreateNetworkRequest(network=network))
        campaign = campaign_pb2.Campaign(campaign_id="bench-c", app_id=APP, name="Campaign")
        await stub.CreateCampaign(campaign_pb2.CreateCampaignRequest(campaign=campaign))
        segment = segment_pb2.Segment(segment_id="bench-s", campaign_id="bench-c", name="Segment")
        await stub.CreateSegment(segment_pb2.CreateSegmentRequest(segment=segment))
        event = event_definition_pb2.EventDefinition(app_id=APP, event_name="Purchase")
        event.min_time_to_reengagement.FromSeconds(0)
        await stub.CreateEventDefinition(event_definition_pb2.CreateEventDefinitionRequest(event_definition=event))
        for tracker_id, tracker_type, events in (
            (CLICKED, kinds.TYPE_REENGAGEMENT, ["Purchase"]),
            (INSTALLED, kinds.TYPE_ACQUISITION, []),
        ):
            tracker = kinds(
                tracker_id=tracker_id,
                segment_id="bench-s",
                network_id="bench-net",
                type=tracker_type,
                events=events,
                install_url="https://example.com/app",
            )
            await stub.CreateTracker(tracker_pb2.CreateTrackerRequest(tracker=tracker))
    query = "event={event_name}&click={click_id}&sent={sent}"
    await create_postback(suite, "bench-postback", query, Configuration.DELIVERY_METHOD_NETWORK_ONLY)


async def create_postback(
    suite: Suite, configuration_id: str, query: str, method: Configuration.DeliveryMethod.ValueType
) -> None:
    """Creates a postback of purchases to the network of this machine."""
    url = f"http://{HOST}:{suite.ports.network}/postback?{query}"
    configuration = Configuration(
        configuration_id=configuration_id,
        app_id=APP,
        network_id="bench-net",
        trigger="Purchase",
        delivery_method=method,
        adapter="template",
        adapter_fields=ParseDict({"url": url}, Struct()),
    )
    async with open_channel(suite.ports.address("postback")) as channel:
        config = postback_grpc.PostbackConfigServiceStub(channel)
        await config.CreateConfiguration(CreateConfigurationRequest(configuration=configuration))
