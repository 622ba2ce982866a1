"""`reengage what-if` while attribution comes and goes."""

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from reengage.attribution.v1 import reattribution_pb2, what_if_pb2
from reengage.attribution.v1 import service_pb2_grpc as attribution_grpc
from services.cli import calls
from services.cli.commands.reattributions import _parts


class Attribution(attribution_grpc.AttributionServiceServicer):
    """Hangs before the first part of an answer, or gives it."""

    def __init__(self, *, hangs: bool) -> None:
        self._hangs = hangs
        self.asked = asyncio.Event()

    async def ListReattributions(
        self, request: reattribution_pb2.ListReattributionsRequest, context: Any
    ) -> reattribution_pb2.ListReattributionsResponse:
        return reattribution_pb2.ListReattributionsResponse()

    async def WhatIf(
        self, request: what_if_pb2.WhatIfRequest, context: Any
    ) -> AsyncIterator[what_if_pb2.WhatIfResponse]:
        self.asked.set()
        if self._hangs:
            await asyncio.Event().wait()
        assert not request.resume_token
        yield what_if_pb2.WhatIfResponse(conversion_count=7)


async def serve(attribution: Attribution, target: str) -> grpc.aio.Server:
    server = grpc.aio.server()
    attribution_grpc.add_AttributionServiceServicer_to_server(attribution, server)
    server.add_insecure_port(target)
    await server.start()
    return server


@pytest.fixture
def target() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


async def parts(target: str) -> list[int]:
    return [part.conversion_count async for part in _parts(what_if_pb2.WhatIfRequest(app_id="a"), target)]


async def test_what_if_survives_a_crash_before_the_first_part(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "RETRY_S", 0.01)
    first = Attribution(hangs=True)  # type: ignore[abstract]  # what-if calls two methods only
    server = await serve(first, target)
    answer = asyncio.ensure_future(parts(target))
    await first.asked.wait()
    retried = asyncio.Event()

    def is_away(error: calls.CallError, is_away: Any = calls.is_away) -> bool:
        retried.set()
        return bool(is_away(error))

    monkeypatch.setattr(calls, "is_away", is_away)
    await server.stop(None)
    await asyncio.wait([answer, asyncio.ensure_future(retried.wait())], return_when=asyncio.FIRST_COMPLETED)
    server = await serve(Attribution(hangs=False), target)  # type: ignore[abstract]  # likewise
    assert await answer == [7]
    await server.stop(None)


async def test_what_if_does_not_wait_for_who_was_never_there(target: str) -> None:
    with pytest.raises(calls.CallError, match="No attribution answers"):
        await parts(target)
