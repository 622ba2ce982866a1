"""Ingest away, slow or wrong, and gateways that are killed: links lead on, and no click is lost or counted twice."""

import asyncio
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import parse_qs, urlsplit

import grpc
import pytest

from libs.channels import open_channel
from libs.errors import ResourceExhausted, ServiceError
from libs.server import Face, ServerConfig, build_server
from reengage.attribution.v1 import decision_pb2, device_pb2
from reengage.attribution.v1 import service_pb2_grpc as attribution_grpc
from reengage.ingest.v1 import record_batch_pb2, record_pb2
from reengage.ingest.v1.service_pb2_grpc import IngestServiceServicer, add_IngestServiceServicer_to_server
from tests.gateway.conftest import World
from tests.support.disks import small_disk
from tests.support.eventually import eventually
from tests.support.ports import free_port
from tests.support.processes import ServiceProcess, running

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.crash]

BODY = {"action": "event", "kochava_app_id": "shop"}
one_or_many = pytest.mark.parametrize("value", [BODY, [BODY]], ids=["one", "an array"])
Answering: TypeAlias = Callable[[record_batch_pb2.RecordBatchRequest], Awaitable[None]]


class Ingest(IngestServiceServicer):
    """An ingest that does what a test wants before it accepts."""

    def __init__(self, before_accepting: Answering) -> None:
        self._before_accepting = before_accepting
        self.records: list[record_pb2.Record] = []

    async def RecordBatch(
        self, request: record_batch_pb2.RecordBatchRequest, context: Any
    ) -> record_batch_pb2.RecordBatchResponse:
        await self._before_accepting(request)
        self.records.extend(request.records)
        accepted = record_batch_pb2.RecordResult(status=record_batch_pb2.RecordResult.STATUS_ACCEPTED)
        return record_batch_pb2.RecordBatchResponse(results=[accepted] * len(request.records))


@asynccontextmanager
async def serving_ingest(ingest: Ingest) -> AsyncIterator[str]:
    """Gives its target."""
    target = f"127.0.0.1:{free_port()}"
    async with serving(lambda server: add_IngestServiceServicer_to_server(ingest, server), target):
        yield target


@asynccontextmanager
async def serving(add: Callable[[grpc.aio.Server], None], target: str) -> AsyncIterator[None]:
    """Runs a gRPC server of a test's own, with the interceptors of the real ones."""
    server, _ = build_server(ServerConfig(listen=target), [Face(name="reengage.test", add=add)])
    server.add_insecure_port(target)
    await server.start()
    try:
        yield
    finally:
        await server.stop(0)


async def click(world: World, gateway: ServiceProcess, device: str) -> str:
    """Clicks, and returns the click id that the redirect hands on."""
    response = await world.ask("GET", f"/c/plain?adid={device}", at=gateway)
    assert (response.status, response.headers.get("x-engagement")) == (302, None)
    return response.headers["location"].rpartition("ko_click_id=")[2]


async def spooled_bytes(world: World, gateway: ServiceProcess) -> float:
    metrics = await world.metrics(gateway)
    [line] = [line for line in metrics.splitlines() if line.startswith("gateway_spool_bytes ")]
    return float(line.split()[1])


async def test_while_ingest_is_away_links_lead_on_and_each_click_arrives_once(world: World, tmp_path: Path) -> None:
    device, ingest = world.new_id(), world.backend.ingest
    async with running(world.backend.gateway(tmp_path)) as gateway:
        before = [await click(world, gateway, device) for _ in range(5)]
        await ingest.stop(signal.SIGKILL)
        try:
            away = list(await asyncio.gather(*(click(world, gateway, device) for _ in range(50))))
            refused = await world.track({"action": "event", "kochava_app_id": "shop"}, at=gateway)
            assert (refused.status, refused.json["error"]["code"]) == (503, "LOG_UNAVAILABLE")
            assert int(refused.headers["retry-after"]) >= 1
            assert await spooled_bytes(world, gateway) > 0
        finally:
            await ingest.start()
        after = [await click(world, gateway, device) for _ in range(5)]
        await eventually(lambda: _empty(world, gateway))
    records = await world.log_of(device)
    assert Counter(record.record_id for record in records) == Counter([*before, *away, *after])


async def test_a_killed_gateway_loses_no_click_that_it_redirected(world: World, tmp_path: Path) -> None:
    device, ingest = world.new_id(), world.backend.ingest
    gateway, redirected = world.backend.gateway(tmp_path), []
    await ingest.stop(signal.SIGKILL)
    try:
        for _ in range(3):
            await gateway.start()
            clicks = [asyncio.ensure_future(click(world, gateway, device)) for _ in range(40)]
            await asyncio.wait(clicks, return_when=asyncio.FIRST_COMPLETED)
            assert await gateway.stop(signal.SIGKILL) == -signal.SIGKILL
            ended = await asyncio.gather(*clicks, return_exceptions=True)
            redirected += [click_id for click_id in ended if isinstance(click_id, str)]
    finally:
        await ingest.start()
    async with running(gateway):
        await eventually(lambda: _empty(world, gateway))
    counts = Counter(record.record_id for record in await world.log_of(device))
    assert redirected
    assert set(redirected) <= counts.keys()
    assert set(counts.values()) == {1}


async def test_a_stop_waits_for_what_is_under_way(world: World, tmp_path: Path) -> None:
    called, go = asyncio.Event(), asyncio.Event()

    async def slowly(_: record_batch_pb2.RecordBatchRequest) -> None:
        called.set()
        await go.wait()

    ingest = Ingest(slowly)  # type: ignore[abstract]
    body = {"action": "event", "kochava_app_id": "shop"}
    async with serving_ingest(ingest) as target:
        gateway = world.backend.gateway(tmp_path, ingest_target=target)
        await gateway.start()
        asking = asyncio.ensure_future(world.track(body, at=gateway))
        await called.wait()
        stopping = asyncio.ensure_future(gateway.stop())
        go.set()
        assert (await asking).status == 200
        assert await stopping == 0


async def test_while_ingest_is_slow_clicks_wait_no_longer_than_they_must(world: World, tmp_path: Path) -> None:
    go = asyncio.Event()

    async def slowly(_: record_batch_pb2.RecordBatchRequest) -> None:
        await go.wait()

    ingest = Ingest(slowly)  # type: ignore[abstract]
    async with (
        serving_ingest(ingest) as target,
        running(world.backend.gateway(tmp_path, ingest_target=target, click_patience_s="0.05")) as gateway,
    ):
        async with asyncio.timeout(5):  # far below the 10 s that a call may take
            clicked = {await click(world, gateway, world.new_id()) for _ in range(20)}
        go.set()
        await eventually(lambda: _empty(world, gateway))
    assert {record.record_id for record in ingest.records} >= clicked


@one_or_many
async def test_while_ingest_is_frozen_senders_soon_know(world: World, tmp_path: Path, value: Any) -> None:
    async def never(_: record_batch_pb2.RecordBatchRequest) -> None:
        await asyncio.Event().wait()

    ingest = Ingest(never)  # type: ignore[abstract]
    async with (
        serving_ingest(ingest) as target,
        running(world.backend.gateway(tmp_path, ingest_target=target, sender_patience_s="0.2")) as gateway,
    ):
        async with asyncio.timeout(2):
            response = await world.track(value, at=gateway)
        assert (response.status, response.json["error"]["code"]) == (503, "LOG_UNAVAILABLE")
        assert response.headers["retry-after"] == "1"


FULL = {"by its bound": "400", "by its disk": str(1 << 20)}


@pytest.mark.parametrize("max_bytes", FULL.values(), ids=FULL.keys())
async def test_a_full_spool_is_never_silent(world: World, tmp_path: Path, max_bytes: str) -> None:
    """Persons are led on, and servers told to ask again. When ingest is back, clicks are kept again."""
    device, ingest = world.new_id(), world.backend.ingest
    with small_disk(tmp_path / "disk", 4 * 4096) if max_bytes != "400" else nullcontext(tmp_path / "disk") as disk:
        settings = {"spool_directory": str(disk / "spool"), "spool_max_bytes": max_bytes}
        async with running(world.backend.gateway(tmp_path, **settings)) as gateway:
            await ingest.stop(signal.SIGKILL)
            try:
                path = f"/c/plain?adid={device}&cp_filler={'x' * 1_000}"
                clicks = [await world.ask("GET", path, at=gateway) for _ in range(20)]
                pings = [await world.ask("GET", f"{path}&click_time=1", at=gateway) for _ in range(3)]
                view = await world.ask("GET", f"/track/impression?campaign_id=plain&{path[9:]}", at=gateway)
                metrics = await world.metrics(gateway)
            finally:
                await ingest.start()
            assert {response.status for response in clicks} == {302}
            lost = sum(response.headers.get("x-engagement") == "lost" for response in clicks)
            assert 0 < lost <= 20
            refused = [*pings, view]
            assert {(response.status, response.json["error"]["code"]) for response in refused} == {
                (503, "ENGAGEMENT_LOST")
            }
            assert {response.headers["retry-after"] for response in refused} == {"5"}
            assert f"gateway_engagements_lost_total {lost + len(refused)}.0" in metrics
            because = "SpoolFull" if max_bytes == "400" else "ENOSPC"
            assert f'gateway_spool_refused_total{{because="{because}"}}' in metrics
            await eventually(lambda: _empty(world, gateway))

            async def is_kept() -> bool:
                response = await world.ask("GET", path, at=gateway)
                return response.status == 302 and "x-engagement" not in response.headers

            await eventually(is_kept)
    assert (tmp_path / "gateway.log").read_text().count(f'"because": "{because}"') >= 1


async def test_a_gateway_killed_with_a_full_spool_loses_and_doubles_nothing(world: World, tmp_path: Path) -> None:
    """Ingest is frozen: so the gateway is killed in the middle of resending, and ingest takes that batch afterwards."""
    device, ingest = world.new_id(), world.backend.ingest
    settings = {"spool_max_bytes": "60000", "click_patience_s": "0.05"}
    gateway, kept = world.backend.gateway(tmp_path, **settings), list[str]()
    path = f"/c/plain?adid={device}&cp_filler={'x' * 1_000}"

    async def is_kept() -> bool:
        response = await world.ask("GET", path, at=gateway)
        assert response.status == 302
        if response.headers.get("x-engagement") == "lost":
            return False
        kept.append(response.headers["location"].rpartition("ko_click_id=")[2])
        return True

    await gateway.start()
    ingest.send(signal.SIGSTOP)
    try:
        for _ in range(3):
            while await is_kept():
                assert len(kept) < 200
            more = [asyncio.ensure_future(is_kept()) for _ in range(20)]
            await asyncio.wait(more, return_when=asyncio.FIRST_COMPLETED)
            assert await gateway.stop(signal.SIGKILL) == -signal.SIGKILL
            await asyncio.gather(*more, return_exceptions=True)
            await gateway.start()
        assert await spooled_bytes(world, gateway) > 50_000
        ingest.send(signal.SIGCONT)
        await gateway.stop(signal.SIGKILL)  # in the middle of resending, this time with an ingest that answers
    finally:
        ingest.send(signal.SIGCONT)
    async with running(gateway):
        await eventually(lambda: _empty(world, gateway))
        assert await eventually(is_kept), "it keeps clicks again"
        await eventually(lambda: _empty(world, gateway))
    counts = Counter(record.record_id for record in await world.log_of(device))
    assert len(kept) > 30
    assert set(kept) <= counts.keys()
    assert set(counts.values()) == {1}


@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (ResourceExhausted("OVERLOADED", "busy", retry_after_s=7.0), 503, "7"),
        (ServiceError("INTERNAL", "no"), 503, "1"),
    ],
    ids=["too busy", "an error"],
)
@one_or_many
async def test_what_ingest_cannot_take_is_to_be_sent_again(
    world: World, tmp_path: Path, value: Any, error: ServiceError, status: int, retry_after: str
) -> None:
    async def failing(_: record_batch_pb2.RecordBatchRequest) -> None:
        raise error

    ingest = Ingest(failing)  # type: ignore[abstract]
    async with (
        serving_ingest(ingest) as target,
        running(world.backend.gateway(tmp_path, ingest_target=target)) as gateway,
    ):
        response = await world.track(value, at=gateway)
        assert (response.status, response.headers["retry-after"]) == (status, retry_after)


async def test_a_taken_port_is_said(world: World, tmp_path: Path) -> None:
    environment = {"REENGAGE_LISTEN": world.gateway.target, "REENGAGE_SPOOL_DIRECTORY": str(tmp_path)}
    command = (sys.executable, "-m", "services.gateway")
    process = await asyncio.create_subprocess_exec(
        *command, env=os.environ | environment, stderr=asyncio.subprocess.PIPE
    )
    _, said = await process.communicate()
    assert process.returncode == 1
    assert b"is the port taken?" in said


class Attribution(attribution_grpc.AttributionServiceServicer):
    """An attribution that knows two devices, and one for each click on `deep` whose id it is asked with."""

    async def GetDeviceAttribution(
        self, request: device_pb2.GetDeviceAttributionRequest, context: Any
    ) -> device_pb2.GetDeviceAttributionResponse:
        response = device_pb2.GetDeviceAttributionResponse(device_id="d")
        if request.device_id == "organic":
            response.install.conversion_id = "i"
        elif request.device_id == "returned":
            response.install.CopyFrom(
                device_pb2.Source(
                    conversion_id="i", tracker_id="plain", engagement_id="c0",
                    attribution_type=decision_pb2.ATTRIBUTION_TYPE_INSTALL,
                    matched_by=decision_pb2.MATCH_KIND_DEVICE_ID,
                )
            )  # fmt: skip
            response.current.CopyFrom(
                device_pb2.Source(
                    conversion_id="e", tracker_id="unknown", engagement_id="c1",
                    attribution_type=decision_pb2.ATTRIBUTION_TYPE_REENGAGEMENT,
                    matched_by=decision_pb2.MATCH_KIND_CLICK_ID,
                )
            )  # fmt: skip
        elif request.device_id.startswith("installed-by-"):
            response.install.CopyFrom(
                device_pb2.Source(
                    conversion_id="i", tracker_id="deep", engagement_id=request.device_id.removeprefix("installed-by-"),
                    attribution_type=decision_pb2.ATTRIBUTION_TYPE_INSTALL,
                )
            )  # fmt: skip
        else:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such device")
        return response


async def test_get_attribution(world: World, tmp_path: Path) -> None:
    target = f"127.0.0.1:{free_port()}"
    async with running(world.backend.gateway(tmp_path, attribution_target=target)) as gateway:

        async def ask(device_id: str) -> Any:
            body = {"action": "get_attribution", "kochava_app_id": "shop", "kochava_device_id": device_id}
            return await world.track(body, at=gateway)

        away = await ask("organic")
        assert (away.status, away.json["error"]["code"]) == (503, "ATTRIBUTION_UNAVAILABLE")
        attribution = Attribution()  # type: ignore[abstract]
        add = attribution_grpc.add_AttributionServiceServicer_to_server
        async with serving(lambda server: add(attribution, server), target):
            async with open_channel(target) as channel:
                await channel.channel_ready()
            await eventually(lambda: _is_ready(ask))
            organic = (await ask("organic")).json
            assert organic == {
                "success": 1,
                "action": "get_attribution",
                "data": {"kochava_device_id": "organic", "retry": -1, "attribution": False},
            }
            assert (await ask("nobody")).json["data"]["retry"] > 0
            path = "/v1/cpi/get_attribution?kochava_app_id=shop&kochava_device_id=returned"
            found = (await world.ask("GET", path, at=gateway)).json["data"]["attribution"]
            assert found == {
                "network": "", "campaign": "", "tracker": "unknown", "site": "", "creative": "",
                "attribution_action": "reengagement", "matched_by": "click_id", "click": {"ko_click_id": "c1"},
                "install_network": "Net android", "install_campaign": "Campaign of shop", "install_tracker": "Plain",
                "install_site": "", "install_creative": "", "install_attribution_action": "install",
                "install_matched_by": "device_id", "install_click": {"ko_click_id": "c0"},
            }  # fmt: skip
            clicked = await world.ask("GET", "/c/deep?sku=4%2F2", at=gateway)
            [click_id] = parse_qs(urlsplit(clicked.headers["location"]).query)["ko_click_id"]
            installed = (await ask(f"installed-by-{click_id}")).json["data"]["attribution"]
            deferred = {"ko_click_id": click_id, "deep_link": f"shop://p/4%2F2?ko_click_id={click_id}"}
            assert (installed["click"], installed["install_click"]) == (deferred, deferred)
            claimed = (await ask("installed-by-nothing-known")).json["data"]["attribution"]
            assert claimed["install_click"] == {"ko_click_id": "nothing-known"}
        nothing = await world.ask("GET", "/v1/cpi/get_attribution?kochava_app_id=shop", at=gateway)
        assert [wrong["field"] for wrong in nothing.json["error"]["fields"]] == ["kochava_device_id"]
        unknown = await world.ask("GET", path.replace("shop", "nobody"), at=gateway)
        assert (unknown.status, unknown.json["error"]["code"]) == (404, "UNKNOWN_APP")


async def _is_ready(ask: Callable[[str], Awaitable[Any]]) -> bool:
    status: int = (await ask("organic")).status
    return status == 200


async def _empty(world: World, gateway: ServiceProcess) -> bool:
    return await spooled_bytes(world, gateway) == 0
