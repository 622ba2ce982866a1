"""Connections that mean harm to a gRPC server: bombs, floods of resets, many of them. Others are served meanwhile."""

import asyncio
import gzip
import struct
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import psutil
import pytest

from libs.channels import open_channel
from libs.errors import from_rpc_error
from libs.parts import MAX_MESSAGE_BYTES
from reengage.tracker.v1 import app_pb2
from reengage.tracker.v1.service_pb2_grpc import TrackerConfigServiceStub
from tests.conftest import Database
from tests.support.eventually import eventually
from tests.tracker import samples
from tests.tracker.conftest import ADMIN_KEY, serving

METHOD = "/reengage.tracker.v1.TrackerConfigService/GetApp"
_MB = 1024 * 1024
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, CONTINUATION = 1, 3, 4, 6, 7, 9
CANCEL = struct.pack("!I", 8)


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack("!I", len(payload))[1:] + bytes([kind, flags]) + struct.pack("!I", stream) + payload


def literal(name: bytes, value: bytes) -> bytes:
    """Returns a header as HPACK's literal without indexing; both shorter than 127 bytes."""
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value


CALL = b"".join(
    literal(name, value)
    for name, value in (
        (b":method", b"POST"), (b":scheme", b"http"), (b":path", METHOD.encode()), (b":authority", b"localhost"),
        (b"content-type", b"application/grpc"), (b"te", b"trailers"),
    )
)  # fmt: skip


@asynccontextmanager
async def tracker(database: Database) -> AsyncIterator[tuple[str, TrackerConfigServiceStub]]:
    """Yields the address of a tracker with an app, and a client that means well."""
    async with serving(database) as served, open_channel(served.target, key=ADMIN_KEY) as channel:
        stub = TrackerConfigServiceStub(channel)
        await stub.CreateApp(app_pb2.CreateAppRequest(app=samples.app()))
        yield served.target, stub


async def is_served(stub: TrackerConfigServiceStub) -> bool:
    """Returns whether a call is; grpc ends some as CANCELLED while tens of thousands wait before them."""
    try:
        found = await stub.GetApp(app_pb2.GetAppRequest(app_id="kodemo1"))
    except grpc.aio.AioRpcError as error:
        if error.code() not in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE):
            raise
        return False
    return found.app.app_id == "kodemo1"


@asynccontextmanager
async def connected(target: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Yields a bare HTTP/2 connection whose greeting is sent."""
    host, _, port = target.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(PREFACE + frame(SETTINGS, 0, 0))
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def flood(target: str, frames: AsyncIterator[bytes]) -> bool:
    """Sends frames until there are no more; returns whether the server has ended the connection before."""
    async with connected(target) as (reader, writer):
        drain = asyncio.ensure_future(_drained(reader))
        try:
            async for some in frames:
                writer.write(some)
                await writer.drain()
                if drain.done():
                    return True
        except OSError:
            return True
        finally:
            drain.cancel()
    return False


async def _drained(reader: asyncio.StreamReader) -> None:
    try:
        while await reader.read(65_536):
            pass
    except OSError:
        pass


async def resets(count: int) -> AsyncIterator[bytes]:
    """Yields calls, each taken back at once."""
    for first in range(0, count, 100):
        streams = range(2 * first + 1, 2 * (first + 100) + 1, 2)
        yield b"".join(frame(HEADERS, 4, one, CALL) + frame(RST_STREAM, 0, one, CANCEL) for one in streams)


async def pings(count: int) -> AsyncIterator[bytes]:
    for _ in range(count // 100):
        yield frame(PING, 0, 0, bytes(8)) * 100


async def settings(count: int) -> AsyncIterator[bytes]:
    for _ in range(count // 100):
        yield frame(SETTINGS, 0, 0) * 100


async def continuations(count: int) -> AsyncIterator[bytes]:
    """Yields headers that never end."""
    yield frame(HEADERS, 0, 1, CALL)
    for _ in range(count // 100):
        yield frame(CONTINUATION, 0, 1, literal(b"x", b"y" * 100) * 100)


async def beginnings(count: int) -> AsyncIterator[bytes]:
    """Yields calls whose message never comes."""
    for first in range(0, count, 100):
        streams = range(2 * first + 1, 2 * (first + 100) + 1, 2)
        yield b"".join(frame(HEADERS, 4, one, CALL) for one in streams)


FLOODS = {
    "resets": resets,
    "calls that only begin": beginnings,
    "pings": pings,
    "settings": settings,
    "headers without end": continuations,
}


@pytest.mark.slow
@pytest.mark.parametrize("frames", FLOODS.values(), ids=FLOODS)
async def test_a_flood_stops_nobody_else(database: Database, frames: object) -> None:
    memory = psutil.Process().memory_info
    async with tracker(database) as (target, stub):
        before = memory().rss
        flooding = [asyncio.ensure_future(flood(target, frames(20_000))) for _ in range(4)]  # type: ignore[operator]
        while not all(one.done() for one in flooding):
            await is_served(stub)
        await asyncio.gather(*flooding)
        await eventually(lambda: is_served(stub))
        assert memory().rss - before < 200 * _MB


@pytest.mark.slow
async def test_a_compressed_bomb_is_refused(database: Database) -> None:
    """grpc reads no more than a message may have, whatever it was packed into."""
    bomb = bytes(4 * MAX_MESSAGE_BYTES)
    assert len(gzip.compress(bomb)) < MAX_MESSAGE_BYTES
    async with tracker(database) as (target, stub):
        options = [("grpc.max_send_message_length", -1)]
        async with grpc.aio.insecure_channel(target, options=options, compression=grpc.Compression.Gzip) as channel:
            call: Any = channel.unary_unary(METHOD)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(bomb)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await is_served(stub)


@pytest.mark.slow
async def test_many_connections_are_served_each(database: Database) -> None:
    async with tracker(database) as (target, stub), AsyncExitStack() as stack:
        for _ in range(300):  # they call nothing
            await stack.enter_async_context(connected(target))
        options = [("grpc.use_local_subchannel_pool", 1)]
        channels = [grpc.aio.insecure_channel(target, options=options) for _ in range(50)]
        for channel in channels:
            stack.push_async_callback(channel.close)
        request = app_pb2.GetAppRequest(app_id="kodemo1")
        calls = [TrackerConfigServiceStub(channel).GetApp(request) for channel in channels]
        refusals = await asyncio.gather(*map(samples.refusal, calls))
        assert set(refusals) == {("UNAUTHENTICATED", "API_KEY_REQUIRED")}
        assert await is_served(stub)


@pytest.mark.parametrize("size", [9_000, 100_000], ids=["more than usual", "more than any"])
async def test_metadata_that_is_too_large_is_refused(database: Database, size: int) -> None:
    async with tracker(database) as (target, stub), grpc.aio.insecure_channel(target) as channel:
        call = TrackerConfigServiceStub(channel).GetApp(
            app_pb2.GetAppRequest(app_id="kodemo1"), metadata=(("x-long", "x" * size),)
        )
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert from_rpc_error(caught.value).code in (
            grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAUTHENTICATED,
        )  # fmt: skip
        assert await is_served(stub)
