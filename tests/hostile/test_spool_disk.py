"""Disks that fill up, lose their permissions or return something else: the spool keeps what it promised."""

import asyncio
import errno
import os
import resource
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from services.gateway.spool import Spool, SpoolFullError
from tests.support.disks import small_disk, without_permission
from tests.support.eventually import until

RECORD = b"x" * 1_000


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Yields a file system of 64 KiB."""
    with small_disk(tmp_path / "disk", 64 * 1024) as found:
        yield found


async def fill(spool: Spool, *, tries: int = 100) -> tuple[int, list[int]]:
    """Returns how many records the spool took, and the errors of the others."""
    taken, errors = 0, []
    for _ in range(tries):
        try:
            await spool.append([RECORD])
        except OSError as error:
            errors.append(error.errno or 0)
        else:
            taken += 1
    return taken, errors


async def resent(spool: Spool) -> list[bytes]:
    """Returns all that the spool hands on until it holds nothing."""
    records: list[bytes] = []

    async def send(batch: Sequence[bytes]) -> None:
        records.extend(batch)

    resending = asyncio.ensure_future(spool.resend(send))
    await until(lambda: spool.size_bytes == 0 or resending.done())
    resending.cancel()
    with suppress(asyncio.CancelledError):
        await resending
    return records


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def bytes_in(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.glob("*.spool"))


async def test_a_full_disk_keeps_what_was_promised_and_nothing_else(disk: Path) -> None:
    async with Spool(disk / "spool", max_bytes=1 << 20) as spool:
        taken, errors = await fill(spool)
        assert (set(errors), taken + len(errors)) == ({errno.ENOSPC}, 100)
        assert len(list((disk / "spool").glob("*.spool"))) == 1, "those refused leave no file"
        assert spool.size_bytes == bytes_in(disk / "spool")
        assert await resent(spool) == [RECORD] * taken
        assert (spool.size_bytes, names_in(disk / "spool")) == (0, ["lock"])
        assert (await fill(spool, tries=10))[0] == 10, "there is room again"


async def test_a_full_disk_in_the_middle_of_many_segments(disk: Path) -> None:
    async with Spool(disk / "spool", max_bytes=1 << 20, segment_bytes=5_000) as spool:
        taken, errors = await fill(spool)
        assert errors
        assert spool.size_bytes == bytes_in(disk / "spool")
        assert await resent(spool) == [RECORD] * taken


async def test_a_disk_without_room_for_a_file(disk: Path) -> None:
    async with Spool(disk / "spool", max_bytes=1 << 20) as spool:
        with suppress(OSError):
            (disk / "other").write_bytes(b"x" * 70_000)
        taken, errors = await fill(spool, tries=30)
        assert (taken, set(errors)) == (0, {errno.ENOSPC})
        assert (spool.size_bytes, names_in(disk / "spool")) == (0, ["lock"])


async def test_a_process_that_dies_while_the_disk_is_full_leaves_a_good_spool(disk: Path) -> None:
    dying = Spool(disk / "spool", max_bytes=1 << 20)
    await dying.__aenter__()
    taken, _ = await fill(dying)
    os.close(dying._lock_fd)  # and nothing else is closed, ended or written
    async with Spool(disk / "spool", max_bytes=1 << 20) as spool:
        assert spool.size_bytes == bytes_in(disk / "spool") > 0
        assert await resent(spool) == [RECORD] * taken


async def test_a_group_that_the_system_cuts_in_its_middle_is_taken_back(tmp_path: Path) -> None:
    """A bound on the size of files makes a write stop half-way, wherever one may mount nothing."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    async with Spool(tmp_path, max_bytes=1 << 20) as spool:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_500, hard))
        try:
            await spool.append([RECORD])
            with pytest.raises(OSError, match="File too large"):
                await spool.append([RECORD] * 3)
            with pytest.raises(OSError, match="File too large"):
                await spool.append([RECORD] * 4)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert len(names_in(tmp_path)) == 2
        assert spool.size_bytes == bytes_in(tmp_path) == 1_008
        await spool.append([b"after"])
        assert await resent(spool) == [RECORD, b"after"]


async def test_lost_permissions_cost_nothing_that_was_promised(tmp_path: Path) -> None:
    directory = tmp_path / "spool"
    async with Spool(directory, max_bytes=1 << 20, segment_bytes=1) as spool:
        for name in (b"a", b"b"):
            await spool.append([name])
        with without_permission(directory):
            assert (await fill(spool, tries=3)) == (0, [errno.EACCES] * 3)
            with pytest.raises(PermissionError):
                await resent(spool)
        assert spool.size_bytes == bytes_in(directory) == 18
        assert await resent(spool) == [b"a", b"b"]


async def test_what_cannot_be_removed_is_not_sent_for_ever(tmp_path: Path) -> None:
    """The next process sends it again; ingest knows it as a repeat."""
    directory = tmp_path / "spool"
    async with Spool(directory, max_bytes=1 << 20, segment_bytes=1) as spool:
        await spool.append([b"a"])
        sent: list[bytes] = []

        async def send(batch: Sequence[bytes]) -> None:
            sent.extend(batch)
            lost.enter_context(without_permission(directory))

        with ExitStack() as lost:
            resending = asyncio.ensure_future(spool.resend(send))
            await until(lambda: spool.size_bytes == 0)
        await spool.append([b"b"])
        await until(lambda: sent == [b"a", b"b"])
        lost.close()
        resending.cancel()
    async with Spool(directory, max_bytes=1 << 20) as spool:
        assert (await resent(spool))[0] == b"a"


async def test_a_segment_that_cannot_be_read_is_set_aside(tmp_path: Path) -> None:
    async with Spool(tmp_path, max_bytes=1 << 20, segment_bytes=1) as spool:
        for name in (b"a", b"b", b"c"):
            await spool.append([name])
        (tmp_path / "000000000001.spool").unlink()
        (tmp_path / "000000000001.spool").mkdir()
        assert await resent(spool) == [b"a", b"c"]
        assert spool.size_bytes == 0
    assert names_in(tmp_path) == ["000000000001.broken", "lock"]


@pytest.mark.parametrize("place", [9, 0], ids=["a byte of a record", "its length"])
async def test_what_can_be_read_of_a_damaged_segment_is_sent_and_the_rest_kept(tmp_path: Path, place: int) -> None:
    async with Spool(tmp_path, max_bytes=1 << 20) as spool:
        await spool.append([b"first", b"second", b"third"])
    async with Spool(tmp_path, max_bytes=1 << 20) as spool:
        await spool.append([b"fourth"])
        damaged = tmp_path / "000000000000.spool"
        content = bytearray(damaged.read_bytes())
        content[len(b"first") + 8 + place] ^= 0x70
        damaged.write_bytes(content)
        assert await resent(spool) == [b"first", *([b"third"] if place else []), b"fourth"]
    assert (tmp_path / "000000000000.broken").read_bytes() == content


async def test_the_zeros_of_a_file_system_that_lost_power_are_no_records(tmp_path: Path) -> None:
    async with Spool(tmp_path, max_bytes=1 << 20) as spool:
        await spool.append([b"a"])
    with (tmp_path / "000000000000.spool").open("ab") as file:
        file.write(b"\0" * 4_096)
    async with Spool(tmp_path, max_bytes=1 << 20) as spool:
        assert spool.size_bytes == bytes_in(tmp_path) == 9
        assert await resent(spool) == [b"a"]
    assert names_in(tmp_path) == ["lock"]


async def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    for name in ("notes.spool", "7.spool", "٣.spool", "000000000004.broken"):
        (tmp_path / name).write_bytes(b"not ours")
    async with Spool(tmp_path, max_bytes=30) as spool:
        assert spool.size_bytes == 0
        await spool.append([b"a"])
        assert await resent(spool) == [b"a"]
    assert len(names_in(tmp_path)) == 5


async def test_the_directory_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = 0
    iterdir = Path.iterdir

    def counting(path: Path) -> Iterator[Path]:
        nonlocal listed
        listed += 1
        return iter(list(iterdir(path)))

    monkeypatch.setattr(Path, "iterdir", counting)
    monkeypatch.setattr(Path, "glob", None)
    async with Spool(tmp_path, max_bytes=1 << 20, segment_bytes=1) as spool:
        for _ in range(100):
            await spool.append([b"a"])
        assert await resent(spool) == [b"a"] * 100
    assert listed == 1


async def test_a_cancelled_append_is_counted_right(tmp_path: Path) -> None:
    async with Spool(tmp_path, max_bytes=1 << 20) as spool:
        appending = asyncio.ensure_future(spool.append([b"a"]))
        await asyncio.sleep(0)
        appending.cancel()
        with suppress(asyncio.CancelledError):
            await appending
        await spool.append([b"b"])
        assert spool.size_bytes == bytes_in(tmp_path)
        assert (await resent(spool))[-1] == b"b"


async def test_a_spool_as_full_as_it_may_be_still_takes_nothing_too_much(tmp_path: Path) -> None:
    async with Spool(tmp_path, max_bytes=2_100) as spool:
        results = await asyncio.gather(*(spool.append([RECORD]) for _ in range(20)), return_exceptions=True)
        assert sum(isinstance(result, SpoolFullError) for result in results) == 18
        assert spool.size_bytes == bytes_in(tmp_path) == 2_016
