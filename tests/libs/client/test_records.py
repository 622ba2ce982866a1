"""The record sender: each record is stored once, whatever happens on the way."""

import asyncio
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import grpc
import pytest

from libs.client import RecordSender, UnsentRecordsError, connect
from libs.errors import PermissionDenied, ResourceExhausted, ServiceError
from libs.interceptors import ServerInterceptor
from reengage.ingest.v1 import record_batch_pb2, record_pb2, service_pb2_grpc
from reengage.tracker.v1 import app_pb2, tracker_pb2
from tests.conftest import Database
from tests.support.backend import backend, create_tracker
from tests.support.eventually import eventually, until

Result = record_batch_pb2.RecordResult


class Ingest(service_pb2_grpc.IngestServiceServicer):
    """An ingest that keeps records by id, refuses those of the app `refused`, and fails the first calls so."""

    def __init__(self, *failures: ServiceError) -> None:
        self.failures = list(failures)
        self.batches: list[list[record_pb2.Record]] = []
        self.open = asyncio.Event()
        self.open.set()

    async def RecordBatch(
        self, request: record_batch_pb2.RecordBatchRequest, context: Any
    ) -> record_batch_pb2.RecordBatchResponse:
        self.batches.append(list(request.records))
        await self.open.wait()
        if self.failures:
            raise self.failures.pop(0)
        statuses = [
            Result.STATUS_REJECTED if record.app_id == "refused" else Result.STATUS_ACCEPTED
            for record in request.records
        ]
        return record_batch_pb2.RecordBatchResponse(results=[Result(status=status) for status in statuses])


@asynccontextmanager
async def serve(ingest: Ingest) -> AsyncIterator[grpc.aio.Channel]:
    server = grpc.aio.server(interceptors=[ServerInterceptor()])
    service_pb2_grpc.add_IngestServiceServicer_to_server(ingest, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with connect(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(0)


class Results(list[tuple[record_pb2.Record, Result]]):
    """The result of each record, in the order in which it was told."""

    def note(self, record: record_pb2.Record, result: Result) -> None:
        self.append((record, result))

    @property
    def apps(self) -> list[str]:
        return [record.app_id for record, _ in self]


def records(count: int) -> list[record_pb2.Record]:
    return [record_pb2.Record(app_id=str(number)) for number in range(count)]


async def send(channel: grpc.aio.Channel, sent: Sequence[record_pb2.Record], **options: Any) -> Results:
    results = Results()
    async with RecordSender(channel, on_result=results.note, **options) as sender:
        for record in sent:
            await sender.send(record)
    return results


async def test_everything_is_sent_in_order_and_told_of_by_the_end() -> None:
    ingest = Ingest()  # type: ignore[abstract]  # a sender calls one method
    async with serve(ingest) as channel:
        results = await send(channel, records(25), max_batch_size=10)
    assert results.apps == [str(number) for number in range(25)]
    assert max(map(len, ingest.batches)) <= 10


async def test_a_refusal_is_handed_to_the_caller() -> None:
    async with serve(Ingest()) as channel:  # type: ignore[abstract]
        results = await send(channel, [record_pb2.Record(app_id="refused"), record_pb2.Record(app_id="good")])
    assert [(record.app_id, result.status) for record, result in results] == [
        ("refused", Result.STATUS_REJECTED),
        ("good", Result.STATUS_ACCEPTED),
    ]


async def test_what_was_not_acknowledged_is_sent_again_under_the_same_ids() -> None:
    given = [record_pb2.Record(app_id="a"), record_pb2.Record(app_id="b", record_id="mine")]
    ingest = Ingest(ServiceError("INTERNAL", "?"), ResourceExhausted("OVERLOADED", "?", retry_after_s=0.01))  # type: ignore[abstract]
    async with serve(ingest) as channel:
        results = await send(channel, given, max_batch_size=1)
    ids = [record.record_id for batch in ingest.batches for record in batch]
    assert ids[0]
    assert ids == [ids[0]] * 3 + ["mine"]
    assert [record.record_id for record, _ in results] == [ids[0], "mine"]
    assert given[0].record_id == "", "the caller's own record is left as it is"


async def test_what_is_over_its_rate_is_sent_again_alone() -> None:
    class Limiting(Ingest):
        """An ingest that takes a record of the app `limited` the third time that it comes."""

        async def RecordBatch(self, request: Any, context: Any) -> Any:
            response = await super().RecordBatch(request, context)
            for record, result in zip(request.records, response.results, strict=True):
                if record.app_id == "limited" and sum(record in batch for batch in self.batches) < 3:
                    result.status = Result.STATUS_RATE_LIMITED
                    result.retry_delay.FromMilliseconds(10)
            return response

    ingest = Limiting(ResourceExhausted("RATE_LIMITED", "?", retry_after_s=0.01))  # type: ignore[abstract]
    given = [record_pb2.Record(app_id=app_id) for app_id in ("limited", "good", "limited", "good")]
    async with serve(ingest) as channel:
        results = await send(channel, given, max_batch_size=3)
    assert [(record.app_id, result.status) for record, result in results] == [
        (record.app_id, Result.STATUS_ACCEPTED) for record in given
    ]
    assert [[record.app_id for record in batch] for batch in ingest.batches[1:]] == [
        ["limited", "good", "limited"], ["limited", "limited"], ["good"],
    ]  # fmt: skip


async def test_a_full_buffer_makes_the_sender_wait() -> None:
    ingest, results = Ingest(), Results()  # type: ignore[abstract]
    ingest.open.clear()
    async with serve(ingest) as channel, RecordSender(channel, on_result=results.note, max_buffered=3) as sender:
        for record in records(3):
            await sender.send(record)
        await until(lambda: ingest.batches)
        fourth = asyncio.create_task(sender.send(record_pb2.Record(app_id="fourth")))
        await asyncio.sleep(0)
        assert not fourth.done()
        assert len(sender.unacknowledged) == 3
        ingest.open.set()
        await fourth
        await sender.flush()
        assert results.apps == ["0", "1", "2", "fourth"]
        assert not sender.unacknowledged


async def test_closing_does_not_wait_for_ever_and_gives_back_what_is_left() -> None:
    ingest = Ingest()  # type: ignore[abstract]
    ingest.open.clear()
    async with serve(ingest) as channel:
        with pytest.raises(UnsentRecordsError) as raised:
            await send(channel, records(2), close_timeout_s=0.05)
        ingest.open.set()
    assert [record.app_id for record in raised.value.records] == ["0", "1"]
    assert all(record.record_id for record in raised.value.records)


async def test_what_never_succeeds_ends_the_sender() -> None:
    ingest = Ingest(PermissionDenied("ROLE_NOT_ALLOWED", "no"))  # type: ignore[abstract]
    async with serve(ingest) as channel:
        with pytest.raises(PermissionDenied):
            await send(channel, records(1))
    assert len(ingest.batches) == 1


async def send_and_fail(sender: RecordSender) -> None:
    async with sender:
        await sender.send(record_pb2.Record(app_id="a"))
        raise KeyError


async def test_an_error_in_the_block_is_not_hidden_and_what_was_sent_is_flushed() -> None:
    results = Results()
    async with serve(Ingest()) as channel:  # type: ignore[abstract]
        sender = RecordSender(channel, on_result=results.note)
        with pytest.raises(KeyError):
            await send_and_fail(sender)
    assert results.apps == ["a"]


async def test_a_record_that_ingest_would_refuse_is_refused_at_once() -> None:
    async with serve(Ingest()) as channel, RecordSender(channel, on_result=Results().note) as sender:  # type: ignore[abstract]
        with pytest.raises(ValueError, match="at most 524,288"):
            await sender.send(record_pb2.Record(user_agent="x" * 5_000_000))


async def until_known(ingest: service_pb2_grpc.IngestServiceStub, tracker: tracker_pb2.Tracker) -> None:
    """Waits until ingest knows a tracker, and so accepts clicks on it."""
    record = record_pb2.Record(app_id=tracker.app_id, click=record_pb2.Click(tracker_id=tracker.tracker_id))

    async def accepted() -> bool:
        request = record_batch_pb2.RecordBatchRequest(records=[record])
        return (await ingest.RecordBatch(request)).results[0].status != Result.STATUS_REJECTED

    await eventually(accepted)


@pytest.mark.crash
async def test_a_killed_ingest_loses_and_doubles_nothing(durable_database: Database, tmp_path: Any) -> None:
    dsns = {name: durable_database.dsn(name) for name in ("tracker", "ingest")}
    async with backend(dsns, tmp_path) as behind:
        app = app_pb2.App(app_id="shop", name="Shop", platform=app_pb2.PLATFORM_ANDROID)
        tracker = await create_tracker(behind.settings, app, install_url="https://shop.example")
        sent = [
            record_pb2.Record(
                app_id="shop", click=record_pb2.Click(tracker_id=tracker.tracker_id, click_id=str(number))
            )
            for number in range(2000)
        ]
        results = Results()
        async with (
            connect(behind.ingest.target) as channel,
            RecordSender(channel, on_result=results.note, max_batch_size=50, max_buffered=200) as sender,
        ):
            await until_known(service_pb2_grpc.IngestServiceStub(channel), tracker)
            for number, record in enumerate(sent):
                if number in (300, 900):
                    await behind.ingest.stop(signal.SIGKILL)
                    await behind.ingest.start()
                await sender.send(record)
    assert [record.click.click_id for record, _ in results] == [str(number) for number in range(2000)]
    assert {result.status for _, result in results} <= {Result.STATUS_ACCEPTED, Result.STATUS_REPEATED}
    connection = await asyncpg.connect(durable_database.admin_dsn)
    assert await connection.fetchval("SELECT count(*) FROM ingest.log") == 1 + 2000
    await connection.close()
