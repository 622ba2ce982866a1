"""A bounded queue on disk for records that ingest cannot take just now.

Append-only segment files of frames: length and CRC-32 of the record (4 bytes each, little-endian), then the record.
A frame counts once `append` has returned: its group is on the disk. A group that the disk refuses is taken back, and
leaves no file. A crash leaves at most the end of the last segment half written, which is never read as a record; a new
process begins a new segment. A segment that cannot be read to its end is set aside, for its owner to look at.
"""

import asyncio
import errno
import fcntl
import os
import struct
import zlib
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import structlog
from prometheus_client import Counter

from libs.parts import in_parts

_T = TypeVar("_T")
_FRAME = struct.Struct("<II")
_SUFFIX = ".spool"
_SET_ASIDE = ".broken"
_PASSING = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""Errors that say nothing of the file."""

_set_aside = Counter("gateway_spool_segments_set_aside_total", "Segments that could not be read or removed.")
_log = structlog.get_logger()


class SpoolFullError(Exception):
    """The spool holds as much as it may."""


class Spool:
    """The spool in `directory`, of at most `max_bytes`. Open it with `async with`; one process at a time may."""

    def __init__(self, directory: Path, *, max_bytes: int, segment_bytes: int = 4 * 1024 * 1024) -> None:
        self._directory, self._max_bytes, self._segment_bytes = directory, max_bytes, segment_bytes
        # Writes wait for the disk; one thread keeps them in order and the event loop free. This is the thread's:
        self._disk = ThreadPoolExecutor(1, "spool")
        self._lock_fd = -1
        self._segment_fd = -1
        self._segment = -1
        """The number of the segment that is written."""
        self._sizes: dict[int, int] = {}
        """The bytes of each segment by its number, oldest first: the directory is listed once, at the start."""
        self._next_number = 0
        self._stored_bytes = 0
        # And this the event loop's:
        self._coming_bytes = 0
        self._filled = asyncio.Event()

    @property
    def size_bytes(self) -> int:
        """Returns the bytes of all segments, and those that are just being written."""
        return self._stored_bytes + self._coming_bytes

    async def __aenter__(self) -> Self:
        """Raises OSError when the directory cannot be written or belongs to another process."""
        await self._on_disk(self._open)
        if self._sizes:
            self._filled.set()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._on_disk(self._end_segment)
        os.close(self._lock_fd)
        self._disk.shutdown()

    async def append(self, records: Sequence[bytes]) -> None:
        """Adds records; on return they are durable. Raises SpoolFullError, or OSError when the disk refuses."""
        frames = b"".join(_FRAME.pack(len(record), zlib.crc32(record)) + record for record in records)
        if self.size_bytes + len(frames) > self._max_bytes:
            raise SpoolFullError
        self._coming_bytes += len(frames)
        try:
            await self._on_disk(lambda: self._write(frames))
        finally:
            self._coming_bytes -= len(frames)
        self._filled.set()

    async def resend(self, send: Callable[[Sequence[bytes]], Awaitable[None]], *, batch: int = 500) -> None:
        """Hands all records to `send`, oldest first, until cancelled; a segment is dropped once all of it was sent.

        Raises what `send` raises. Begun anew, it begins with the same segment, so records may be sent twice.
        """
        while True:
            await self._filled.wait()
            oldest = await self._on_disk(self._read_oldest)
            if oldest is None:
                if not self._sizes:
                    self._filled.clear()
                continue
            number, found = oldest
            for part in in_parts(found.records, len, max_items=batch):
                await send(part)
            await self._on_disk(partial(self._drop, number, is_whole=found.is_whole))

    async def _on_disk(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._disk, work)

    # All below runs in the thread.

    def _open(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        self._lock_fd = os.open(self._directory / "lock", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            numbers = {path: int(path.stem) for path in self._directory.iterdir() if path.stem.isdecimal()}
            self._next_number = max(numbers.values(), default=-1) + 1
            for number in sorted(number for path, number in numbers.items() if path == self._path(number)):
                self._resize(number, self._path(number).stat().st_size)
        except OSError:
            os.close(self._lock_fd)
            raise
        if self._sizes:
            self._cut_torn_end(max(self._sizes))

    def _cut_torn_end(self, number: int) -> None:
        """Cuts off what a crash left half written: nobody was told that it is kept."""
        with suppress(OSError):  # whoever reads it next will set it aside
            found = _read_frames(self._path(number).read_bytes())
            if found.torn_bytes:
                _log.warning("spool.torn", unread_bytes=found.torn_bytes)
                os.truncate(self._path(number), self._sizes[number] - found.torn_bytes)
                self._resize(number, self._sizes[number] - found.torn_bytes)

    def _write(self, frames: bytes) -> None:
        try:
            if self._segment_fd < 0:
                self._begin_segment()
            written = 0
            while written < len(frames):
                written += os.write(self._segment_fd, frames[written:])
            os.fdatasync(self._segment_fd)
        except OSError:
            self._take_back()
            raise
        self._resize(self._segment, self._sizes[self._segment] + len(frames))
        if self._sizes[self._segment] >= self._segment_bytes:
            self._end_segment()

    def _begin_segment(self) -> None:
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND
        self._segment_fd = os.open(self._path(self._next_number), flags, 0o600)
        self._segment = self._next_number
        self._next_number += 1
        self._resize(self._segment, 0)
        directory_fd = os.open(self._directory, os.O_RDONLY)
        try:
            os.fsync(directory_fd)
        finally:
            os.close(directory_fd)

    def _take_back(self) -> None:
        """Cuts the segment to what counts; removes it where that is nothing. Nothing more is written to it."""
        if self._segment_fd < 0:
            return
        number, size = self._segment, self._sizes[self._segment]
        with suppress(OSError):
            os.ftruncate(self._segment_fd, size)
        self._end_segment()
        if not size:
            self._drop(number)
        else:
            with suppress(OSError):
                self._resize(number, self._path(number).stat().st_size)

    def _end_segment(self) -> None:
        fd, self._segment_fd, self._segment = self._segment_fd, -1, -1
        if fd >= 0:
            with suppress(OSError):  # what counts is synced
                os.close(fd)

    def _read_oldest(self) -> "tuple[int, _Frames] | None":
        for number in list(self._sizes):
            if number == self._segment:
                self._end_segment()
            try:
                return number, _read_frames(self._path(number).read_bytes())
            except OSError as error:
                # An error that is not the file's own meets the renaming too: then all wait for it to pass.
                if error.errno in _PASSING or not self._set_aside(number, error):
                    raise
        return None

    def _drop(self, number: int, *, is_whole: bool = True) -> None:
        """Removes a segment that was sent; one with more in it than could be read is kept aside."""
        try:
            if is_whole:
                self._path(number).unlink(missing_ok=True)
            else:
                self._set_aside(number)
        except OSError as error:
            self._set_aside(number, error)
        if number in self._sizes:
            self._forget(number)  # where it could not even be renamed, the next process will send it again

    def _set_aside(self, number: int, error: OSError | None = None) -> bool:
        """Gives a segment that cannot be read or removed another name, for its owner; returns whether that went well.

        Others go on before it.
        """
        _set_aside.inc()
        because = errno.errorcode.get(error.errno or 0, "") if error is not None else "UNREADABLE"
        _log.error("spool.set_aside", segment=self._path(number).name, because=because)
        try:
            self._path(number).rename(self._path(number).with_suffix(_SET_ASIDE))
        except FileNotFoundError:
            pass  # somebody took it away
        except OSError:
            return False
        self._forget(number)
        return True

    def _path(self, number: int) -> Path:
        return self._directory / f"{number:012d}{_SUFFIX}"

    def _resize(self, number: int, size: int) -> None:
        self._stored_bytes += size - self._sizes.get(number, 0)
        self._sizes[number] = size

    def _forget(self, number: int) -> None:
        self._stored_bytes -= self._sizes.pop(number)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Frames:
    """The records of a segment; the bytes at its end that are none, and whether there are others that are none."""

    records: list[bytes]
    torn_bytes: int
    has_holes: bool

    @property
    def is_whole(self) -> bool:
        return not self.torn_bytes and not self.has_holes


def _read_frames(content: bytes) -> _Frames:
    records: list[bytes] = []
    position = good_end = hole_bytes = 0
    while position + _FRAME.size <= len(content):
        length, checksum = _FRAME.unpack_from(content, position)
        end = position + _FRAME.size + length
        if not length or end > len(content):  # a length of 0 is what a file system fills up with
            break
        record = content[position + _FRAME.size : end]
        if zlib.crc32(record) == checksum:
            hole_bytes += position - good_end
            records.append(record)
            good_end = end
        position = end
    return _Frames(records=records, torn_bytes=len(content) - good_end, has_holes=hole_bytes > 0)
