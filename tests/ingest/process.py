"""The ingest service as its own process, and a tracker for it to get its settings from."""

import asyncio
import os
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from reengage.ingest.v1 import record_batch_pb2
from reengage.ingest.v1.service_pb2_grpc import IngestServiceStub
from reengage.tracker.v1 import service_pb2_grpc, snapshot_pb2


@asynccontextmanager
async def serve_settings(settings: snapshot_pb2.WatchSnapshotResponse) -> AsyncIterator[str]:
    """A tracker that has these settings for ever; gives its target."""

    class Tracker(service_pb2_grpc.TrackerConfigServiceServicer):
        async def WatchSnapshot(
            self,
            request: snapshot_pb2.WatchSnapshotRequest,
            context: grpc.aio.ServicerContext[
                snapshot_pb2.WatchSnapshotRequest, AsyncIterator[snapshot_pb2.WatchSnapshotResponse]
            ],
        ) -> AsyncIterator[snapshot_pb2.WatchSnapshotResponse]:
            yield settings
            await asyncio.Event().wait()

    server = grpc.aio.server()
    service_pb2_grpc.add_TrackerConfigServiceServicer_to_server(Tracker(), server)  # type: ignore[abstract]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(0)


class IngestProcess:
    """`python -m services.ingest` on a port of its own, which it keeps from start to start."""

    def __init__(self, *, dsn: str, tracker_target: str) -> None:
        self.target = f"127.0.0.1:{_free_port()}"
        self._environment = {
            "REENGAGE_DSN": dsn,
            "REENGAGE_TRACKER_TARGET": tracker_target,
            "REENGAGE_SERVICE_KEY": "service",
            "REENGAGE_LISTEN": self.target,
            "REENGAGE_METRICS_PORT": str(_free_port()),
            "REENGAGE_LOG_LEVEL": "warning",
        }
        self._process: Process | None = None

    async def start(self, *command: str) -> None:
        """Returns when it answers. `command` goes before python, to look at it."""
        self._process = await asyncio.create_subprocess_exec(
            *command, sys.executable, "-m", "services.ingest", env=os.environ | self._environment, stdout=DEVNULL
        )
        async with grpc.aio.insecure_channel(self.target) as channel:
            stub = IngestServiceStub(channel)
            async with asyncio.timeout(30):
                while True:
                    try:
                        await stub.RecordBatch(record_batch_pb2.RecordBatchRequest(), wait_for_ready=True)
                    except grpc.aio.AioRpcError as error:
                        if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
                            return
                    await asyncio.sleep(0.02)

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Signals it; returns its exit code."""
        assert self._process is not None
        if self._process.returncode is None:
            self._process.send_signal(number)
        return await self._process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
