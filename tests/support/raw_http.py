"""HTTP by hand: what no well-behaved client sends, and what a server says to it."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True, kw_only=True)
class RawResponse:
    """A response as it came."""

    status: int
    headers: dict[str, str]
    body: bytes


class RawClient:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def connect(cls, target: str) -> Self:
        """Returns a connection to `host:port`."""
        host, _, port = target.rpartition(":")
        return cls(*await asyncio.open_connection(host, int(port)))

    async def send(self, data: bytes) -> None:
        """Sends; returns once the system has taken it all. Raises ConnectionError when the server hung up."""
        self._writer.write(data)
        await self._writer.drain()

    def end(self) -> None:
        """Says that no more will be sent, and goes on reading."""
        self._writer.write_eof()

    async def response(self, *, to: str = "GET") -> RawResponse:
        """Returns the next response, to a request by this method. Raises ConnectionError when there is none."""
        try:
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
            length = 0 if to == "HEAD" else int(headers.get("content-length", "0"))
            body = await self._reader.readexactly(length)
        except asyncio.IncompleteReadError as error:
            raise ConnectionError(f"the connection ended after {error.partial!r}") from error
        return RawResponse(status=int(head[0].split()[1]), headers=headers, body=body)

    async def ended(self) -> bytes:
        """Returns what still comes, once the server has closed. Raises ConnectionError where it resets."""
        return await self._reader.read()

    def reset(self) -> None:
        """Hangs up without a word of farewell."""
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.close()

    async def close(self) -> None:
        """Hangs up, whatever was not sent yet."""
        self._writer.transport.abort()
        with suppress(ConnectionError):
            await self._writer.wait_closed()


@asynccontextmanager
async def connected(target: str) -> AsyncIterator[RawClient]:
    """Yields a connection to `host:port`."""
    client = await RawClient.connect(target)
    try:
        yield client
    finally:
        await client.close()


async def ask(target: str, request: bytes) -> RawResponse:
    """Returns the response to one request on a connection of its own."""
    async with connected(target) as client:
        await client.send(request)
        return await client.response()
