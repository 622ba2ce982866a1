"""A tracker that serves settings as a test has them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from reengage.tracker.v1 import service_pb2_grpc, snapshot_pb2


@asynccontextmanager
async def serve_settings(settings: snapshot_pb2.WatchSnapshotResponse) -> AsyncIterator[str]:
    """Yields the target of a tracker that has these settings for ever."""

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
