"""The parts that hold records back: batches, spool and rates."""

import asyncio
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from libs.channels import open_channel
from libs.errors import InvalidArgument, ResourceExhausted, Violation
from reengage.ingest.v1 import record_batch_pb2
from services.gateway import refusals
from services.gateway.asgi import Refused
from services.gateway.batches import Batches, Outcome
from services.gateway.ingest_log import EngagementLog, IngestLog
from services.gateway.model import App, Platform
from services.gateway.rates import Rates
from services.gateway.spool import Spool, SpoolFullError


class Ingest:
    """Remembers calls, and answers them when told to."""

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
    answers = [await future for future in (first, *others)]
    assert ingest.calls == [
        ([b"0"], "request-0"),
        ([b"1", b"2", b"3"], "request-1"),
        ([b"4", b"5"], "request-4"),
    ]
    assert [answer.record_id for answer in answers if isinstance(answer, record_batch_pb2.RecordResult)] == list(
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


async def test_a_request_that_was_given_up_harms_no_other() -> None:
    ingest = Ingest()
    batches = Batches(ingest.send, calls=1)
    given_up, other = batches.add(b"0", "r"), batches.add(b"1", "r")
    given_up.cancel()
    ingest.go.set()
    answer = await other
    assert isinstance(answer, record_batch_pb2.RecordResult)
    assert answer.record_id == "1"


class Reader:
    """Takes what a spool replays; `wanted` is set when so many records have come."""

    def __init__(self, wanted: int, *, fail_after: int = -1) -> None:
        self.records: list[bytes] = []
        self._wanted, self._fail_after = wanted, fail_after
        self.done = asyncio.Event()

    async def send(self, records: Sequence[bytes]) -> None:
        if 0 <= self._fail_after <= len(self.records):
            raise ConnectionError
        self.records.extend(records)
        if len(self.records) >= self._wanted:
            self.done.set()


async def replayed(spool: Spool, wanted: int) -> list[bytes]:
    reader = Reader(wanted)
    replaying = asyncio.ensure_future(spool.replay(reader.send, batch=7))
    async with asyncio.timeout(10):
        await reader.done.wait()
        while spool.size_bytes:
            await asyncio.sleep(0)
    replaying.cancel()
    return reader.records


async def test_the_spool_gives_back_all_in_order_and_forgets_it(tmp_path: Path) -> None:
    records = [f"record {number}".encode() for number in range(100)]
    async with Spool(tmp_path, max_bytes=1 << 20, segment_bytes=200) as spool:
        for start in range(0, 100, 10):
            await spool.append(records[start : start + 10])
        assert await replayed(spool, 100) == records
        await spool.append([b"one more"])
        assert await replayed(spool, 1) == [b"one more"]
    assert _names_in(tmp_path) == ["lock"]


async def test_the_spool_outlives_its_process(tmp_path: Path) -> None:
    async with Spool(tmp_path, max_bytes=1 << 20) as spool:
        await spool.append([b"a", b"b"])
    async with Spool(tmp_path, max_bytes=1 << 20) as spool:
        await spool.append([b"c"])
        assert await replayed(spool, 3) == [b"a", b"b", b"c"]


async def test_a_failing_replay_begins_again_with_the_same_segment(tmp_path: Path) -> None:
    async with Spool(tmp_path, max_bytes=1 << 20) as spool:
        await spool.append([b"a", b"b", b"c"])
        failing = Reader(3, fail_after=2)
        with pytest.raises(ConnectionError):
            await spool.replay(failing.send, batch=2)
        assert failing.records == [b"a", b"b"]
        assert await replayed(spool, 3) == [b"a", b"b", b"c"]


@pytest.mark.parametrize("torn", [b"\x05", struct.pack("<II", 9, 1) + b"half", struct.pack("<II", 1, 1) + b"x"],
                         ids=["half a head", "half a record", "wrong checksum"])  # fmt: skip
async def test_a_torn_tail_is_no_record(tmp_path: Path, torn: bytes) -> None:
    async with Spool(tmp_path, max_bytes=1 << 20) as spool:
        await spool.append([b"a", b"b"])
    _append_to_segment(tmp_path, torn)
    async with Spool(tmp_path, max_bytes=1 << 20) as spool:
        await spool.append([b"c"])
        assert await replayed(spool, 3) == [b"a", b"b", b"c"]


async def test_a_full_spool_says_so_until_it_has_room(tmp_path: Path) -> None:
    async with Spool(tmp_path, max_bytes=30) as spool:
        await spool.append([b"x" * 20])
        with pytest.raises(SpoolFullError):
            await spool.append([b"y"])
        await replayed(spool, 1)
        await spool.append([b"y"])


async def test_a_spool_belongs_to_one_process(tmp_path: Path) -> None:
    async with Spool(tmp_path, max_bytes=30):
        with pytest.raises(OSError, match="unavailable"):
            await Spool(tmp_path, max_bytes=30).__aenter__()


def _names_in(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


def _append_to_segment(directory: Path, torn: bytes) -> None:
    [segment] = directory.glob("*.spool")
    with segment.open("ab") as file:
        file.write(torn)


def test_rates() -> None:
    now_s = 100.0
    rates = Rates(lambda: now_s)
    app = App(app_id="shop", platform=Platform.IOS, records_per_second=8)
    for _ in range(8):
        rates.take(app)
    with pytest.raises(ResourceExhausted) as caught:
        rates.take(app)
    assert (caught.value.reason, caught.value.retry_after_s) == ("RATE_LIMITED", 1)
    now_s += 0.125
    rates.take(app, 30)  # an array may overdraw
    now_s += 3.625
    with pytest.raises(ResourceExhausted):
        rates.take(app)
    now_s += 0.125
    rates.take(app)
    rates.take(App(app_id="other", platform=Platform.IOS, records_per_second=8))
    for _ in range(1_000):
        rates.take(App(app_id="free", platform=Platform.IOS))


async def test_refusals_are_said_once_a_second_with_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "_SAID_EVERY_S", 0.01)
    time_wrong = InvalidArgument([Violation(field="usertime", reason="INVALID_TIME", description="d")])
    with capture_logs() as lines:
        trace = refusals.Refusals()
        for _ in range(100):
            trace.note(time_wrong)
        trace.note(Refused(415, "UNSUPPORTED_ENCODING", "m"), 7)
        async with asyncio.timeout(5):
            while len(lines) < 2:
                await asyncio.sleep(0.01)
    line = {"event": "records.refused", "log_level": "warning"}
    assert lines == [
        {**line, "reason": "INVALID_TIME", "status": 400, "count": 100},
        {**line, "reason": "UNSUPPORTED_ENCODING", "status": 415, "count": 7},
    ]


async def test_a_replay_that_waits_for_ingest_says_so_in_a_line(tmp_path: Path) -> None:
    async with (
        open_channel("unix:" + str(tmp_path / "nobody.sock")) as channel,
        Spool(tmp_path / "spool", max_bytes=1 << 20) as spool,
    ):
        await spool.append([b""])
        with capture_logs() as lines:
            replaying = asyncio.ensure_future(EngagementLog(IngestLog(channel), spool, patience_s=1).replay())
            async with asyncio.timeout(20):
                while len(lines) < 2:
                    await asyncio.sleep(0.02)
            replaying.cancel()
    for line in lines:
        assert line.pop("log_level") in ("info", "warning")
        assert line == {"event": "worker.waiting", "worker": "replay", "error": "LOG_UNAVAILABLE"}
