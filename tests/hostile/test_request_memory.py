"""Requests that would fill the memory of a service: refused before they are parsed, and others are served."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import psutil
import pytest

from libs.channels import open_channel
from libs.errors import from_rpc_error
from libs.interceptors import MAX_HELD_BYTES
from libs.messages import is_bomb
from libs.parts import MAX_MESSAGE_BYTES
from libs.server import Face, ServerConfig, build_server
from reengage.attribution.v1 import decision_pb2
from reengage.ingest.v1 import record_batch_pb2, record_pb2, service_pb2
from reengage.ingest.v1 import service_pb2_grpc as ingest_grpc
from reengage.postback.v1 import conversion_pb2
from tests.support.eventually import until

NAME = service_pb2.DESCRIPTOR.services_by_name["IngestService"].full_name
MB = 1024 * 1024
EMPTY = b"\x0a\x00"


def delimited(tag: bytes, content: bytes) -> bytes:
    size, left = b"", len(content)
    while left > 127:
        size, left = size + bytes([left & 127 | 128]), left >> 7
    return tag + size + bytes([left]) + content


def nested(count: int) -> bytes:
    """Returns a request with one conversion whose decision has so many empty candidates (field 26)."""
    return delimited(b"\x0a", delimited(b"\x0a", b"\xd2\x01\x00" * count))


def records(*made: record_pb2.Record) -> bytes:
    return record_batch_pb2.RecordBatchRequest(records=made).SerializeToString()


def conversion() -> conversion_pb2.Conversion:
    candidates = [decision_pb2.Candidate(engagement_id=f"{n:036}", tracker_id="tracker", verdict=1) for n in range(40)]  # type: ignore[arg-type]
    decision = decision_pb2.Decision(app_id="shop", conversion_id="c", candidates=candidates)
    return conversion_pb2.Conversion(decision=decision, record=record_pb2.Record(record_id="c"))


def enqueue(count: int) -> bytes:
    return conversion_pb2.EnqueueConversionsRequest(conversions=[conversion()] * count).SerializeToString()


BATCH, ENQUEUE = record_batch_pb2.RecordBatchRequest, conversion_pb2.EnqueueConversionsRequest
SMALL = record_pb2.Record(
    app_id="shop", record_id="e", device_ids={"adid": "a"}, event=record_pb2.Event(event_name="P")
)
USUAL = record_pb2.Record(app_id="shop", record_id="order-4711", ip_address="192.0.2.1", event=SMALL.event)


@pytest.mark.parametrize(
    ("kind", "content", "is_one"),
    [
        pytest.param(BATCH, EMPTY * MB, True, id="empty records"),
        pytest.param(BATCH, b"\x0a\x02\x08\x00" * MB, True, id="records that say next to nothing"),
        pytest.param(BATCH, records(SMALL) * 1000, False, id="a thousand small records"),
        pytest.param(BATCH, records(USUAL) * 90_000, False, id="far too many records, of a usual size"),
        pytest.param(
            BATCH, records(record_pb2.Record(user_agent="\x0a\0" * MB)), False, id="a text that looks like it"
        ),
        pytest.param(BATCH, b"\x0b" + EMPTY * MB, True, id="behind a group"),
        pytest.param(BATCH, b"\x0a" + b"\xff" * 100_000, False, id="a length without end"),
        pytest.param(BATCH, b"", False, id="nothing"),
        pytest.param(ENQUEUE, EMPTY * MB, True, id="empty conversions"),
        pytest.param(ENQUEUE, nested(MB), True, id="empty candidates of one conversion"),
        pytest.param(ENQUEUE, nested(100) * 10_000, True, id="a few empty candidates of each of many"),
        pytest.param(ENQUEUE, enqueue(1000), False, id="a thousand conversions with forty candidates"),
    ],
)
def test_what_would_fill_the_memory_is_known_before_it_is_parsed(kind: Any, content: bytes, is_one: bool) -> None:
    assert is_bomb(content, kind.DESCRIPTOR) is is_one


class Slow(ingest_grpc.IngestServiceServicer):
    """A servicer whose calls wait to be let go."""

    def __init__(self) -> None:
        self.go, self.waiting = asyncio.Event(), 0

    async def RecordBatch(self, request: Any, context: Any) -> record_batch_pb2.RecordBatchResponse:
        self.waiting += 1
        await self.go.wait()
        return record_batch_pb2.RecordBatchResponse()


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[Slow, Callable[[bytes], Any]]]:
    servicer = Slow()  # type: ignore[abstract]  # one method is enough here

    def add(server: grpc.aio.Server) -> None:
        ingest_grpc.add_IngestServiceServicer_to_server(servicer, server)

    server, _ = build_server(ServerConfig(listen=""), [Face(name=NAME, add=add)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with open_channel(f"127.0.0.1:{port}", timeout_s=60) as channel:
            raw: Any = channel
            yield servicer, raw.unary_unary(f"/{NAME}/RecordBatch")
    finally:
        await server.stop(0)


async def test_one_call_of_empty_records_costs_its_bytes() -> None:
    """Parsed it would take 1.5 GB."""
    before = psutil.Process().memory_info().rss
    async with serving() as (servicer, call):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(EMPTY * ((MAX_MESSAGE_BYTES - 1024) // 2))
        assert not servicer.waiting
    found = from_rpc_error(caught.value)
    assert (found.code, found.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "UNPARSABLE_REQUEST")
    assert psutil.Process().memory_info().rss - before < 200 * MB


async def test_large_calls_at_once_are_bounded_by_their_bytes() -> None:
    large = records(*[record_pb2.Record(user_agent="a" * 500_000)] * 10)
    fitting = MAX_HELD_BYTES // len(large)
    async with serving() as (servicer, call):
        calls = [asyncio.ensure_future(_ended(call(large))) for _ in range(fitting)]
        await until(lambda: servicer.waiting == fitting)
        refused = [await _ended(call(large)) for _ in range(3)]
        small = asyncio.ensure_future(_ended(call(records(SMALL))))
        await until(lambda: servicer.waiting == fitting + 1)
        calls[0].cancel()
        servicer.go.set()
        served = [await each for each in (*calls[1:], small)]
        again = await _ended(call(large))
    assert set(refused) == {("RESOURCE_EXHAUSTED", "OVERLOADED", True)}
    assert served == [None] * fitting
    assert again is None, "the room is free again"


async def _ended(call: Any) -> tuple[str, str, bool] | None:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        found = from_rpc_error(error)
        return found.code.name, found.reason, found.retry_after_s is not None
    return None
