"""Batches: many requests in few calls."""

import asyncio
from collections.abc import Sequence

import pytest

from libs.errors import ResourceExhausted
from reengage.ingest.v1 import record_batch_pb2
from services.gateway.batches import Batches, Outcome


class Ingest:
    """An ingest that remembers calls, and returns from them when told to."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[bytes], str]] = []
        self.go = asyncio.Event()

    async def send(self, records: Sequence[bytes], request_id: str) -> Sequence[Outcome]:
        self.calls.append((list(records), request_id))
        await self.go.wait()
        return [record_batch_pb2.RecordResult(record_id=record.decode()) for record in records]


async def test_what_arrives_during_a_call_goes_out_with_the_next() -> None:
    ingest = Ingest()
    batches = Batches(ingest.send, calls=1, max_records=3)
    first = batches.add(b"0", "request-0")
    await asyncio.sleep(0)
    others = [batches.add(str(number).encode(), f"request-{number}") for number in range(1, 6)]
    await asyncio.sleep(0)
    ingest.go.set()
    results = [await future for future in (first, *others)]
    assert ingest.calls == [
        ([b"0"], "request-0"),
        ([b"1", b"2", b"3"], "request-1"),
        ([b"4", b"5"], "request-4"),
    ]
    assert [result.record_id for result in results if isinstance(result, record_batch_pb2.RecordResult)] == list(
        "012345"
    )


async def test_a_second_call_begins_when_it_is_worth_one() -> None:
    ingest = Ingest()
    batches = Batches(ingest.send, calls=2, worth_a_call=3)
    futures = [batches.add(b"0", "r")]
    for waiting in range(1, 5):
        await asyncio.sleep(0)  # the call is made
        await asyncio.sleep(0)  # and begins
        assert [len(records) for records, _ in ingest.calls] == ([1] if waiting < 4 else [1, 3])
        futures.append(batches.add(b"1", "r"))
    ingest.go.set()
    await asyncio.gather(*futures)
    assert [len(records) for records, _ in ingest.calls] == [1, 3, 1]


async def test_a_batch_is_bounded_by_bytes() -> None:
    ingest = Ingest()
    ingest.go.set()
    batches = Batches(ingest.send, calls=1, max_bytes=10)
    await asyncio.gather(*(batches.add(b"x" * 6, "r") for _ in range(4)))
    assert [len(records) for records, _ in ingest.calls] == [2, 2]


async def test_a_full_queue_says_so_and_closing_waits_for_the_rest() -> None:
    ingest = Ingest()
    batches = Batches(ingest.send, calls=1, max_waiting=2)
    kept = [batches.add(b"0", "r"), batches.add(b"1", "r")]
    with pytest.raises(ResourceExhausted) as caught:
        await batches.add(b"2", "r")
    assert caught.value.retry_after_s
    ingest.go.set()
    await batches.close()
    assert all(future.done() for future in kept)


async def test_a_queue_is_full_by_bytes_too_and_takes_more_after_a_call() -> None:
    ingest = Ingest()
    batches = Batches(ingest.send, calls=1, max_bytes=10, max_waiting_bytes=10)
    kept = [batches.add(b"x" * 6, "r"), batches.add(b"x" * 6, "r")]
    with pytest.raises(ResourceExhausted):
        await batches.add(b"x", "r")
    ingest.go.set()
    await asyncio.gather(*kept)
    await batches.add(b"x", "r")
    assert [len(records) for records, _ in ingest.calls] == [2, 1]


async def test_a_request_that_was_given_up_harms_no_other() -> None:
    ingest = Ingest()
    batches = Batches(ingest.send, calls=1)
    given_up, other = batches.add(b"0", "r"), batches.add(b"1", "r")
    given_up.cancel()
    ingest.go.set()
    result = await other
    assert isinstance(result, record_batch_pb2.RecordResult)
    assert result.record_id == "1"
