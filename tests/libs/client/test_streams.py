"""Streams that break off: following decisions, and what-if while attribution comes and goes."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from libs.client import connect, watch_decisions, what_if
from libs.errors import InvalidArgument, ServiceError, Unavailable, Violation
from libs.interceptors import ServerInterceptor
from reengage.attribution.v1 import decision_pb2, reattribution_pb2, service_pb2_grpc, what_if_pb2
from tests.support.eventually import until
from tests.support.ports import HOST, free_port


class Attribution(service_pb2_grpc.AttributionServiceServicer):
    """An attribution with three decisions and the parts of a what-if; it fails after the first, or hangs before it."""

    def __init__(self, *, error: ServiceError | None = None, hangs: bool = False) -> None:
        self.error = error
        self.hangs = hangs
        self.tokens: list[str] = []

    async def WatchDecisions(
        self, request: decision_pb2.WatchDecisionsRequest, context: Any
    ) -> AsyncIterator[decision_pb2.WatchDecisionsResponse]:
        self.tokens.append(request.resume_token)
        for number in range(int(request.resume_token or 0) + 1, 4):
            yield decision_pb2.WatchDecisionsResponse(resume_token=str(number))
            if number == 1 and self.error is not None:
                raise self.error
        await asyncio.Event().wait()

    async def ListReattributions(
        self, request: reattribution_pb2.ListReattributionsRequest, context: Any
    ) -> reattribution_pb2.ListReattributionsResponse:
        return reattribution_pb2.ListReattributionsResponse()

    async def WhatIf(
        self, request: what_if_pb2.WhatIfRequest, context: Any
    ) -> AsyncIterator[what_if_pb2.WhatIfResponse]:
        self.tokens.append(request.resume_token)
        if self.hangs:
            await asyncio.Event().wait()
        if not request.resume_token:
            yield what_if_pb2.WhatIfResponse(conversion_count=7, resume_token="half")
            if self.error is not None:
                raise self.error
        yield what_if_pb2.WhatIfResponse(conversion_count=5)


async def serve(attribution: Attribution, target: str) -> grpc.aio.Server:
    server = grpc.aio.server(interceptors=[ServerInterceptor()])
    service_pb2_grpc.add_AttributionServiceServicer_to_server(attribution, server)
    server.add_insecure_port(target)
    await server.start()
    return server


@pytest.fixture
def target() -> str:
    return f"{HOST}:{free_port()}"


async def tokens(target: str, count: int) -> list[str]:
    found = []
    async with connect(target) as channel:
        async for response in watch_decisions(channel, decision_pb2.WatchDecisionsRequest(app_id="a"), pause_s=0.01):
            found.append(response.resume_token)
            if len(found) == count:
                break
    return found


async def parts(target: str) -> list[int]:
    async with connect(target) as channel:
        request = what_if_pb2.WhatIfRequest(app_id="a")
        return [part.conversion_count async for part in what_if(channel, request, pause_s=0.01)]


async def test_watching_goes_on_after_the_last_response(target: str) -> None:
    attribution = Attribution(error=Unavailable("STOPPING", "go on elsewhere"))  # type: ignore[abstract]
    server = await serve(attribution, target)
    assert await tokens(target, 3) == ["1", "2", "3"]
    assert attribution.tokens == ["", "1"]
    await server.stop(None)


async def test_watching_goes_on_after_a_crash(target: str) -> None:
    found: list[str] = []

    async def watch() -> None:
        async with connect(target) as channel:
            responses = watch_decisions(channel, decision_pb2.WatchDecisionsRequest(), pause_s=0.01)
            async for response in responses:
                found.append(response.resume_token)  # noqa: PERF401  # the stream has no end

    watching = asyncio.create_task(watch())
    server = await serve(Attribution(), target)  # type: ignore[abstract]
    await until(lambda: len(found) == 3)
    await server.stop(None)
    second = Attribution()  # type: ignore[abstract]
    server = await serve(second, target)
    await until(lambda: second.tokens)
    watching.cancel()
    assert second.tokens == ["3"]
    await server.stop(None)


async def test_watching_ends_with_a_refusal(target: str) -> None:
    refusal = InvalidArgument([Violation(field="resume_token", reason="INVALID_TOKEN", description="of other filters")])
    server = await serve(Attribution(error=refusal), target)  # type: ignore[abstract]
    with pytest.raises(InvalidArgument):
        await tokens(target, 3)
    await server.stop(None)


async def test_watching_does_not_wait_for_who_was_never_there(target: str) -> None:
    with pytest.raises(Unavailable):
        await tokens(target, 1)


async def test_a_what_if_goes_on_where_it_broke_off(target: str) -> None:
    attribution = Attribution(error=Unavailable("STOPPING", "go on elsewhere"))  # type: ignore[abstract]
    server = await serve(attribution, target)
    assert await parts(target) == [7, 5]
    assert attribution.tokens == ["", "half"]
    await server.stop(None)


async def test_a_what_if_survives_a_crash_before_the_first_part(target: str) -> None:
    first = Attribution(hangs=True)  # type: ignore[abstract]
    server = await serve(first, target)
    response = asyncio.create_task(parts(target))
    await until(lambda: first.tokens)
    await server.stop(None)
    server = await serve(Attribution(), target)  # type: ignore[abstract]
    assert await response == [7, 5]
    await server.stop(None)


async def test_a_what_if_does_not_wait_for_who_was_never_there(target: str) -> None:
    with pytest.raises(Unavailable):
        await parts(target)
