"""An ingest that keeps the loops which index waiting, for as long as a test wants."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from reengage.ingest.v1 import log_pb2
from reengage.ingest.v1.service_pb2_grpc import IngestServiceStub


class HeldLog:
    """An ingest whose indexing loop gets nothing while the gate is shut; who reads ahead is let through."""

    def __init__(self, stub: IngestServiceStub) -> None:
        self._stub = stub
        self.gate = asyncio.Event()

    def ReadLog(self, request: log_pb2.ReadLogRequest) -> Any:
        call = self._stub.ReadLog(request)
        is_loop = request.selection == log_pb2.ReadLogRequest.SELECTION_ENGAGEMENTS and not request.app_lanes
        return _Held(call, self.gate) if is_loop else call


class _Held:
    def __init__(self, call: Any, gate: asyncio.Event) -> None:
        self._call, self._gate = call, gate

    async def __aiter__(self) -> AsyncIterator[log_pb2.ReadLogResponse]:
        async for response in self._call:
            await self._gate.wait()
            yield response

    def cancel(self) -> None:
        self._call.cancel()
