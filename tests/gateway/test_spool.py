"""The spool: a bounded queue on disk that outlives its process."""

import asyncio
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest

from services.gateway.spool import Spool, SpoolFullError


class Reader:
    """A taker of what a spool resends; `wanted` is set when so many records have come."""

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


async def resent(spool: Spool, wanted: int) -> list[bytes]:
    reader = Reader(wanted)
    resending = asyncio.ensure_future(spool.resend(reader.send, batch=7))
    async with asyncio.timeout(10):
        await reader.done.wait()
        while spool.size_bytes:
            await asyncio.sleep(0)
    resending.cancel()
    return reader.records


async def test_the_spool_gives_back_all_in_order_and_forgets_it(tmp_path: Path) -> None:
    records = [f"record {number}".encode() for number in range(100)]
    async with Spool(tmp_path, max_bytes=1 << 20, segment_bytes=200) as spool:
        for start in range(0, 100, 10):
            await spool.append(records[start : start + 10])
        assert await resent(spool, 100) == records
        await spool.append([b"one more"])
        assert await resent(spool, 1) == [b"one more"]
    assert _names_in(tmp_path) == ["lock"]


async def test_the_spool_outlives_its_process(tmp_path: Path) -> None:
    async with Spool(tmp_path, max_bytes=1 << 20) as spool:
        await spool.append([b"a", b"b"])
    async with Spool(tmp_path, max_bytes=1 << 20) as spool:
        await spool.append([b"c"])
        assert await resent(spool, 3) == [b"a", b"b", b"c"]


async def test_failing_resending_begins_again_with_the_same_segment(tmp_path: Path) -> None:
    async with Spool(tmp_path, max_bytes=1 << 20) as spool:
        await spool.append([b"a", b"b", b"c"])
        failing = Reader(3, fail_after=2)
        with pytest.raises(ConnectionError):
            await spool.resend(failing.send, batch=2)
        assert failing.records == [b"a", b"b"]
        assert await resent(spool, 3) == [b"a", b"b", b"c"]


@pytest.mark.parametrize(
    "torn",
    [b"\x05", struct.pack("<II", 9, 1) + b"half", struct.pack("<II", 1, 1) + b"x"],
    ids=["half a head", "half a record", "wrong checksum"],
)
async def test_a_torn_tail_is_no_record(tmp_path: Path, torn: bytes) -> None:
    async with Spool(tmp_path, max_bytes=1 << 20) as spool:
        await spool.append([b"a", b"b"])
    _append_to_segment(tmp_path, torn)
    async with Spool(tmp_path, max_bytes=1 << 20) as spool:
        await spool.append([b"c"])
        assert await resent(spool, 3) == [b"a", b"b", b"c"]


async def test_a_full_spool_says_so_until_it_has_room(tmp_path: Path) -> None:
    async with Spool(tmp_path, max_bytes=30) as spool:
        await spool.append([b"x" * 20])
        with pytest.raises(SpoolFullError):
            await spool.append([b"y"])
        await resent(spool, 1)
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
