"""A bounded queue on disk for records that ingest cannot take just now.

Append-only segment files of frames: length and CRC-32 of the record (4 bytes each, little-endian), then the record.
A frame counts once `append` has returned: its group is on the disk. A crash leaves at most the end of a segment half
written, which is never read as a record; a new process begins a new segment.
"""

import asyncio
import fcntl
import os
import struct
import zlib
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import structlog

from libs.parts import in_parts

_T = TypeVar("_T")
_FRAME = struct.Struct("<II")
_SUFFIX = ".spool"
_log = structlog.get_logger()


class SpoolFullError(Exception):
    """The spool holds as much as it may."""


class Spool:
    """The spool in `directory`, of at most `max_bytes`. Open it with `async with`; one process at a time may."""

    def __init__(self, directory: Path, *, max_bytes: int, segment_bytes: int = 4 * 1024 * 1024) -> None:
        self._directory, self._max_bytes, self._segment_bytes = directory, max_bytes, segment_bytes
        # Writes wait for the disk; one thread keeps them in order and the event loop free.
        self._disk = ThreadPoolExecutor(1, "spool")
        self._lock_fd = -1
        self._segment_fd = -1
        self._segment = Path()
        self._segment_size = 0
        self._next_number = 0
        self._filled = asyncio.Event()
        self.size_bytes = 0

    async def __aenter__(self) -> Self:
        """Raises OSError when the directory cannot be written or belongs to another process."""
        await self._on_disk(self._open)
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
        self.size_bytes += len(frames)
        try:
            await self._on_disk(lambda: self._write(frames))
        except OSError:
            self.size_bytes -= len(frames)
            raise
        self._filled.set()

    async def resend(self, send: Callable[[Sequence[bytes]], Awaitable[None]], *, batch: int = 500) -> None:
        """Hands all records to `send`, oldest first, until cancelled; a segment is dropped once all of it was sent.

        Raises what `send` raises. Begun anew, it begins with the same segment, so records may be sent twice.
        """
        while True:
            await self._filled.wait()
            segment = await self._on_disk(self._take_oldest)
            if segment is None:
                self._filled.clear()
                continue
            path, size, records = segment
            for part in in_parts(records, len, max_items=batch):
                await send(part)
            await self._on_disk(path.unlink)
            self.size_bytes -= size

    async def _on_disk(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._disk, work)

    def _open(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        self._lock_fd = os.open(self._directory / "lock", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock_fd)
            raise
        segments = self._segments()
        self._next_number = int(segments[-1].stem) + 1 if segments else 0
        self.size_bytes = sum(path.stat().st_size for path in segments)
        if segments:
            self._filled.set()

    def _segments(self) -> list[Path]:
        return sorted(self._directory.glob(f"*{_SUFFIX}"))

    def _write(self, frames: bytes) -> None:
        if self._segment_fd < 0:
            self._begin_segment()
        try:
            written = 0
            while written < len(frames):
                written += os.write(self._segment_fd, frames[written:])
            os.fdatasync(self._segment_fd)
        except OSError:
            # The end of this segment may be half a frame, so nothing may come after it.
            self._end_segment()
            raise
        self._segment_size += len(frames)
        if self._segment_size >= self._segment_bytes:
            self._end_segment()

    def _begin_segment(self) -> None:
        self._segment = self._directory / f"{self._next_number:012d}{_SUFFIX}"
        self._segment_fd = os.open(self._segment, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o600)
        self._next_number += 1
        self._segment_size = 0
        directory_fd = os.open(self._directory, os.O_RDONLY)
        try:
            os.fsync(directory_fd)
        finally:
            os.close(directory_fd)

    def _end_segment(self) -> None:
        if self._segment_fd >= 0:
            os.close(self._segment_fd)
            self._segment_fd = -1

    def _take_oldest(self) -> tuple[Path, int, list[bytes]] | None:
        segments = self._segments()
        if not segments:
            return None
        path = segments[0]
        if path == self._segment:
            self._end_segment()
        content = path.read_bytes()
        return path, len(content), _read_frames(content)


def _read_frames(content: bytes) -> list[bytes]:
    records, position = [], 0
    while position + _FRAME.size <= len(content):
        length, checksum = _FRAME.unpack_from(content, position)
        record = content[position + _FRAME.size : position + _FRAME.size + length]
        if len(record) < length or zlib.crc32(record) != checksum:
            break
        records.append(record)
        position += _FRAME.size + length
    if position < len(content):
        _log.warning("spool.torn", unread_bytes=len(content) - position)
    return records
