"""The server every service stands on, seen through a real channel: errors, ids, bounds, health, graceful stop."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from libs.call_context import request_id
from libs.channels import open_channel
from libs.errors import NotFound, ResourceExhausted, Violations, from_rpc_error
from libs.server import Face, ServerConfig, Service, build_server, supervise
from reengage.attribution.v1 import decision_pb2
from reengage.attribution.v1 import service_pb2_grpc as attribution_grpc

NAME = "reengage.attribution.v1.AttributionService"


AWAY = {
    "away": ConnectionRefusedError,
    "too slow": TimeoutError,
    "out of connections": asyncpg.TooManyConnectionsError,
    "out of disk": asyncpg.DiskFullError,
    "a standby": asyncpg.ReadOnlySQLTransactionError,
}
"""Errors that say that the database cannot, just now."""


class Servicer(attribution_grpc.AttributionServiceServicer):
    """A servicer that does what it is asked for."""

    def __init__(self) -> None:
        self.release = asyncio.Event()
        self.entered = asyncio.Event()

    async def GetDecision(
        self, request: decision_pb2.GetDecisionRequest, context: Any
    ) -> decision_pb2.GetDecisionResponse:
        match request.conversion_id:
            case "wrong":
                violations = Violations()
                violations.add("app_id", "REQUIRED", "must be set")
                violations.add("conversion_id", "TOO_LONG", "at most 256 characters")
                violations.check()
            case "missing":
                raise NotFound("CONVERSION_NOT_FOUND", "no such conversion", conversion_id="missing")
            case "busy":
                raise ResourceExhausted("OVERLOADED", "later", retry_after_s=1.5)
            case away if away in AWAY:
                raise AWAY[away]("host and port")
            case "broken":
                raise ValueError("secret text")
            case "slow":
                self.entered.set()
                await self.release.wait()
            case _:
                pass
        decision = decision_pb2.Decision(conversion_id=request_id.get() or "", device_id=str(context.time_remaining()))
        return decision_pb2.GetDecisionResponse(decision=decision)


@asynccontextmanager
async def running(
    max_calls: int = 256,
) -> AsyncIterator[tuple[Servicer, grpc.aio.Channel, grpc.aio.Server]]:
    servicer = Servicer()  # type: ignore[abstract]  # one method is enough here

    def add(server: grpc.aio.Server) -> None:
        attribution_grpc.add_AttributionServiceServicer_to_server(servicer, server)

    server, _ = build_server(ServerConfig(listen="", max_calls=max_calls), [Face(name=NAME, add=add)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with open_channel(f"127.0.0.1:{port}") as channel:
            yield servicer, channel, server
    finally:
        await server.stop(0)


def ask(channel: grpc.aio.Channel, what: str, **options: Any) -> Any:
    stub = attribution_grpc.AttributionServiceStub(channel)
    return stub.GetDecision(decision_pb2.GetDecisionRequest(conversion_id=what), **options)


@pytest.mark.parametrize(
    "request_", [b"\x0b", b"\x0a\x01", b"\x0a\x01\xff"], ids=["group without end", "cut off", "no UTF-8"]
)
async def test_bytes_that_are_no_request_are_an_invalid_argument(request_: bytes) -> None:
    async with running() as (servicer, channel, _):
        raw: Any = channel
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await raw.unary_unary(f"/{NAME}/GetDecision")(request_)
        assert not servicer.entered.is_set()
        assert isinstance((await ask(channel, "fine")).decision.conversion_id, str)
    found = from_rpc_error(caught.value)
    assert (found.code, found.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "UNPARSABLE_REQUEST")
    assert [violation.reason for violation in found.violations] == ["UNPARSABLE"]


async def failure(call: Any) -> Any:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


async def test_every_wrong_field_crosses_the_wire() -> None:
    async with running() as (_, channel, _):
        error = await failure(ask(channel, "wrong"))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert [(v.field, v.reason) for v in error.violations] == [("app_id", "REQUIRED"), ("conversion_id", "TOO_LONG")]


async def test_reasons_and_retry_delays_cross_the_wire() -> None:
    async with running() as (_, channel, _):
        missing = await failure(ask(channel, "missing"))
        busy = await failure(ask(channel, "busy"))
    assert (missing.code, missing.reason) == (grpc.StatusCode.NOT_FOUND, "CONVERSION_NOT_FOUND")
    assert (busy.reason, busy.retry_after_s) == ("OVERLOADED", 1.5)


@pytest.mark.parametrize("away", AWAY)
async def test_a_database_that_is_away_asks_to_come_back(away: str) -> None:
    async with running() as (_, channel, _):
        error = await failure(ask(channel, away))
    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "DATABASE_UNAVAILABLE")
    assert error.retry_after_s is not None
    assert "host" not in error.message


async def test_the_text_of_an_unforeseen_error_does_not() -> None:
    async with running() as (_, channel, _):
        error = await failure(ask(channel, "broken"))
    assert (error.code, error.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert "secret" not in error.message


async def test_the_request_id_is_taken_over_or_made() -> None:
    async with running() as (_, channel, _):
        given = await ask(channel, "", metadata=(("x-request-id", "r-1"),))
        made = await ask(channel, "")
    assert given.decision.conversion_id == "r-1"
    assert len(made.decision.conversion_id) == 32


async def test_a_call_without_deadline_gets_the_channels() -> None:
    async with running() as (_, channel, _):
        answer = await ask(channel, "")
    assert 0 < float(answer.decision.device_id) < 11


async def test_one_call_too_many_is_told_when_to_come_back() -> None:
    async with running(max_calls=1) as (servicer, channel, _):
        slow = ask(channel, "slow")
        await servicer.entered.wait()
        refused = await failure(ask(channel, ""))
        servicer.release.set()
        await slow
        await ask(channel, "")  # the room is free again
    assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
    assert refused.retry_after_s is not None


async def test_a_graceful_stop_finishes_what_is_under_way() -> None:
    async with running() as (servicer, channel, server):
        slow = ask(channel, "slow")
        await servicer.entered.wait()
        stopping = asyncio.ensure_future(server.stop(30))
        servicer.release.set()
        assert (await slow).decision.conversion_id
        await stopping


async def test_health_is_served() -> None:
    async with running() as (_, channel, _):
        stub: Any = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_health_can_be_watched() -> None:
    """It writes its responses, where ours yield them."""
    async with running() as (_, channel, _):
        stub: Any = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(service="no such"))
        response = await watch.read()
        assert response.status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        watch.cancel()


class Steps:
    """A listener that notes what it is told, in order."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.announced, self.stopped = asyncio.Event(), asyncio.Event()

    async def start(self) -> None:
        self.taken.append("start")

    async def announce(self) -> None:
        self.taken.append("announce")
        self.announced.set()

    async def stop(self, *, drain: bool) -> None:
        self.taken.append(f"stop, drain {drain}")
        self.stopped.set()

    async def ended(self) -> None:
        await self.stopped.wait()


async def test_a_service_starts_and_stops_in_order() -> None:
    steps, stop, is_ready = Steps(), asyncio.Event(), asyncio.Event()

    async def loop() -> None:
        steps.taken.append("loop")
        try:
            await asyncio.Event().wait()
        finally:
            steps.taken.append("loop ends")

    running = asyncio.create_task(supervise(Service(server=steps, loops={"one": loop}, ready=is_ready.wait), stop))
    await asyncio.sleep(0.01)
    assert steps.taken == ["start", "loop"], "not announced before it is ready"
    is_ready.set()
    await steps.announced.wait()
    stop.set()
    await running
    assert steps.taken == ["start", "loop", "announce", "stop, drain True", "loop ends"]


async def test_a_service_that_never_becomes_ready_stops() -> None:
    steps, stop = Steps(), asyncio.Event()
    running = asyncio.create_task(supervise(Service(server=steps, ready=asyncio.Event().wait), stop))
    await asyncio.sleep(0.01)
    stop.set()
    await running
    assert steps.taken == ["start", "stop, drain True"]


async def test_a_failing_loop_begins_anew_and_stops_nothing() -> None:
    steps, stop, runs = Steps(), asyncio.Event(), 0

    async def loop() -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            raise ValueError("once")
        stop.set()
        await asyncio.Event().wait()

    await supervise(Service(server=steps, loops={"failing": loop}), stop)
    assert runs == 2
