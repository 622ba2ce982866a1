"""Connections that speak HTTP/1.1, with a bound on everything that a client can make us keep, do or wait for.

A connection has one request at a time. What a client sends after it waits, unread, until the request has its response:
whoever pipelines gets as far as everybody else, and costs one read (at most 256 KiB) of memory. Whenever the next move
is the client's there is a time for it. httptools (llhttp, strict) parses; what it lets pass though another server in
front could read it otherwise is refused in `_fault_of_head`.
"""

import asyncio
import enum
import ipaddress
import math
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import TypeAlias, cast

import httptools
import prometheus_client

from services.gateway.bodies import MAX_BODY_BYTES
from services.gateway.errors import Refused
from services.gateway.requests import Request, Response

MAX_URL_BYTES = 65_535
"""More httptools cannot parse."""

_UNREADABLE = Refused(400, "INVALID_HTTP", "this is no HTTP request; all of a URL but ASCII must be percent-encoded")
_NO_ONE_HOST = Refused(400, "INVALID_HTTP", "there must be exactly one Host")
_AMBIGUOUS_BODY = Refused(400, "INVALID_HTTP", "where the body ends must be said in one way, by HTTP/1.1")
_UNKNOWN_CODING = Refused(501, "UNSUPPORTED_ENCODING", "of transfer codings there is only chunked")
_UNKNOWN_VERSION = Refused(505, "INVALID_HTTP", "speak HTTP/1.1")
_URL_TOO_LONG = Refused(414, "URL_TOO_LONG", "a URL must be at most 16 KiB")
_HEAD_TOO_LARGE = Refused(431, "HEAD_TOO_LARGE", "URL and headers must be fewer and shorter")
_BODY_TOO_LARGE = Refused(413, "BODY_TOO_LARGE", "a body must be smaller than 2 MB")
_BODY_BROKE_OFF = Refused(400, "BODY_INCOMPLETE", "the body broke off")
_TOO_SLOW = Refused(408, "REQUEST_TIMEOUT", "the request took too long to come")
_NO_ROOM = Refused(503, "OVERLOADED", "too many connections, or too large requests, at once", retry_after_s=1)
_TOO_MANY_OF_PEER = Refused(429, "TOO_MANY_CONNECTIONS", "too many connections from one address", retry_after_s=1)

_cut = prometheus_client.Counter(
    "http_connections_cut_total",
    "Connections refused or ended because the client kept to no bound, or to make room, by reason.",
    ["reason"],
)

Respond: TypeAlias = Callable[[Request], Awaitable[Response]]
"""Responds to a request; never raises."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of a listener's connections, as `Config` of `__main__.py` explains them."""

    max_connections: int
    max_connections_per_peer: int
    max_request_bytes: int
    max_head_bytes: int
    max_headers: int
    first_byte_s: float
    head_s: float
    body_s: float
    answer_s: float
    idle_s: float
    linger_s: float


class _State(enum.Enum):
    """The moment in a connection's life. In each but WORKING the next move is the client's."""

    IDLE = enum.auto()
    """Nothing of a request has come."""
    HEAD = enum.auto()
    BODY = enum.auto()
    WORKING = enum.auto()
    """We owe a response."""
    TAKING = enum.auto()
    """The client has not taken all of the response yet."""
    LINGERING = enum.auto()
    """All was said; what still comes is thrown away. To close at once would reset what the client has not read yet."""
    ENDED = enum.auto()


class Connections:
    """The open connections of a listener, and what they hold together.

    When there are too many, of one network or in all, those that wait for their client give way: idle ones first, and
    the oldest of them. When they hold too much, the largest request that is not whole gives way.
    `is_exempt` says of whom there may be any number: proxies that speak for many.
    """

    def __init__(self, limits: Limits, respond: Respond, is_exempt: Callable[[str], bool] = lambda _: False) -> None:
        self.limits, self.respond, self._is_exempt = limits, respond, is_exempt
        self.open: set[HttpConnection] = set()
        self.idle: dict[HttpConnection, None] = {}
        self.waiting: dict[HttpConnection, None] = {}
        """Those that wait for their client in the middle of something. Both from the longest wait to the shortest."""
        self.tasks: set[asyncio.Task[None]] = set()
        self.request_bytes = 0
        """The bytes of requests that have no response yet."""
        self.date = b""
        self._by_network: dict[str, dict[HttpConnection, None]] = {}
        self.tell_time()

    def tell_time(self) -> None:
        """Renews the date that responses bear."""
        self.date = b"date: %b\r\n" % formatdate(usegmt=True).encode()

    def admit(self, connection: "HttpConnection") -> Refused | None:
        """Takes a connection in; returns why it is refused, if it is."""
        if len(self.open) >= self.limits.max_connections:
            oldest = next(iter(self.idle), None) or next(iter(self.waiting), None)
            if oldest is None:
                return _NO_ROOM
            oldest.give_way()
        network = network_of(connection.peer)
        of_network = self._by_network.get(network, {})
        if len(of_network) >= self.limits.max_connections_per_peer and not self._is_exempt(connection.peer):
            idle = (other for other in of_network if other in self.idle)
            oldest = next(idle, None) or next((other for other in of_network if other in self.waiting), None)
            if oldest is None:
                return _TOO_MANY_OF_PEER
            oldest.give_way()
        self.open.add(connection)
        self._by_network.setdefault(network, {})[connection] = None
        return None

    def forget(self, connection: "HttpConnection") -> None:
        """Lets a connection go; it may be gone already."""
        if connection not in self.open:
            return
        self.open.discard(connection)
        self.idle.pop(connection, None)
        self.waiting.pop(connection, None)
        network = network_of(connection.peer)
        of_network = self._by_network[network]
        del of_network[connection]
        if not of_network:
            del self._by_network[network]

    def make_room_for(self, connection: "HttpConnection") -> bool:
        """Returns whether the request of this connection may grow on, for which larger ones gave way."""
        while self.request_bytes > self.limits.max_request_bytes:
            largest = max(self.waiting, key=lambda waiting: waiting.request_bytes, default=connection)
            if largest.request_bytes <= connection.request_bytes:
                return False
            largest.give_way()
        return True

    def end_overdue(self) -> None:
        """Ends the waits for clients that let their time pass."""
        now_s = asyncio.get_running_loop().time()
        for connection in [connection for connection in self.open if connection.deadline_s < now_s]:
            connection.expire()

    async def drain(self, grace_s: float) -> int:
        """Ends all connections once nothing is under way for them; returns how many it had to cut after `grace_s`."""
        for connection in list(self.open):
            connection.finish()
        loop = asyncio.get_running_loop()
        give_up_s = loop.time() + grace_s
        while (self.open or self.tasks) and loop.time() < give_up_s:  # noqa: ASYNC110 - once, at the very end
            await asyncio.sleep(0.02)
        cut = list(self.open)
        for connection in cut:
            connection.give_way()
        return len(cut)


class HttpConnection(asyncio.Protocol):
    """One connection: reads a request, has it responded to, writes the response, reads the next."""

    def __init__(self, connections: Connections) -> None:
        self._all, self._limits = connections, connections.limits
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport = cast("asyncio.Transport", None)
        self._parser = httptools.HttpRequestParser(self)
        self._state = _State.IDLE
        self.peer = ""
        self.deadline_s = math.inf
        self.request_bytes = 0
        self._head = bytearray()
        """Of a head that is not whole yet."""
        self._held = b""
        """What came after the request that is responded to."""
        self._method, self._url, self._version = b"", b"", ""
        self._headers: dict[bytes, bytes] = {}
        self._in_head = False
        self._hosts = 0
        self._body = bytearray()
        self._to_come: int | None = 0
        """Bytes of the body that are still to come; None while they come in chunks."""
        self._is_whole = False
        self._is_upgrade = False
        self._keep_alive = True
        self._is_last = False
        self._has_ended = False
        self._is_blocked = False

    # asyncio's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begins to wait for the first request."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own is no subclass of it
        self._transport.set_write_buffer_limits(0)  # to hear of all that the client does not take
        peer = transport.get_extra_info("peername")
        self.peer = peer[0] if peer else ""
        refused = self._all.admit(self)
        if refused is None:
            self._await(_State.IDLE, self._limits.first_byte_s)
        else:
            self._keep_alive = False
            self._write(refused.response())
            self._end(refused.code)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Forgets the connection. What is under way for it goes on: a click was made, whoever waits for the answer."""
        self._end()

    def data_received(self, data: bytes) -> None:
        """Reads on; keeps what came too early, and asks for no more."""
        if self._state is _State.LINGERING or self._state is _State.ENDED:
            return
        self.request_bytes += len(data)
        self._all.request_bytes += len(data)
        if self._all.request_bytes > self._limits.max_request_bytes and not self._all.make_room_for(self):
            if self._state is _State.WORKING or self._state is _State.TAKING:
                self._end(_NO_ROOM.code)  # there is a response to come, which no other may precede
            else:
                self._refuse(_NO_ROOM)
            return
        self._read(data)

    def eof_received(self) -> bool:
        """Returns whether to stay open: a client that sends no more may still take what it asked for."""
        self._has_ended = True
        if self._state is _State.BODY:
            self._respond(_BODY_BROKE_OFF)
        return self._state is _State.WORKING or self._state is _State.TAKING

    def pause_writing(self) -> None:
        """Notes that the client has not taken everything."""
        self._is_blocked = True

    def resume_writing(self) -> None:
        """Goes on once it has."""
        self._is_blocked = False
        if self._state is _State.TAKING:
            self._go_on()

    # The listener's side.

    def give_way(self) -> None:
        """Ends this connection at once, whatever its client still wants."""
        self._end("GAVE_WAY")

    def expire(self) -> None:
        """Ends a wait for the client that took too long."""
        if self._state is _State.HEAD:
            self._refuse(_TOO_SLOW)
        elif self._state is _State.BODY:
            self._respond(_TOO_SLOW)
        elif self._state is _State.TAKING:
            self._end("ANSWER_NOT_TAKEN")
        else:
            self._end()  # idle or lingering: that is usual

    def finish(self) -> None:
        """Ends as soon as nothing is under way."""
        self._is_last = True
        if self._state is _State.IDLE or self._state is _State.LINGERING:
            self._end()

    # httptools' side.

    def on_message_begin(self) -> None:
        """Begins a head. Raises ValueError at one that follows on a body in chunks."""
        if self._is_whole:
            raise ValueError
        self._url, self._headers, self._in_head, self._hosts = b"", {}, True, 0

    def on_url(self, url: bytes) -> None:
        """Takes the URL, or a part of it."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Takes a header. Those after the body mean nothing: they could contradict what proxies checked."""
        if self._in_head:
            name = name.lower()
            self._hosts += name == b"host"
            self._headers[name] = value

    def on_headers_complete(self) -> None:
        """Ends the head. Once the request has ended, the parser knows no more of it."""
        self._in_head = False
        self._method, self._version = self._parser.get_method(), self._parser.get_http_version()
        self._keep_alive = self._version == "1.1" and self._parser.should_keep_alive()

    def on_body(self, body: bytes) -> None:
        """Takes a part of the body."""
        self._body += body

    def on_message_complete(self) -> None:
        """Ends the request."""
        self._is_whole = True

    # Reading.

    def _read(self, data: bytes) -> None:
        while data:
            if self._state is _State.IDLE or self._state is _State.HEAD:
                data = self._read_head(data)
            elif self._state is _State.BODY:
                data = self._read_body(data)
            elif self._state is _State.WORKING or self._state is _State.TAKING:
                self._held += data
                self._transport.pause_reading()
                return
            else:
                return

    def _read_head(self, data: bytes) -> bytes:
        """Reads up to the end of the head, and returns what comes after it."""
        before = len(self._head)
        if before:
            self._head += data
            end = self._head.find(b"\r\n\r\n", max(0, before - 3)) + 4
            head = bytes(self._head[:end])
        else:
            end = data.find(b"\r\n\r\n") + 4
            head = data if end == len(data) else data[:end]
        if end < 4:
            self._read_part_of_head(data)
            return b""
        if end > self._limits.max_head_bytes or head.count(b"\r\n") > self._limits.max_headers + 2:
            self._refuse(_HEAD_TOO_LARGE)
            return b""
        self._head.clear()
        fault = self._feed(head) or self._fault_of_head()
        if fault is not None:
            self._refuse(fault)
        elif self._to_come == 0:
            self._respond()
        elif self._to_come is not None and self._to_come > MAX_BODY_BYTES:
            self._respond(_BODY_TOO_LARGE)
        else:
            expects = self._version == "1.1" and self._headers.get(b"expect", b"").lower() == b"100-continue"
            if expects and end - before == len(data):  # else it has not waited
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._await(_State.BODY, self._limits.body_s)
        return data[end - before :]

    def _read_part_of_head(self, data: bytes) -> None:
        if not self._head:
            self._head += data
            self._await(_State.HEAD, self._limits.head_s)
        if len(self._head) > self._limits.max_head_bytes:
            self._refuse(_HEAD_TOO_LARGE)
        elif b"\n\n" in self._head:
            self._refuse(_UNREADABLE)  # it would go on waiting for an end that is behind it

    def _fault_of_head(self) -> Refused | None:
        """Returns what is wrong with a head that could be parsed; sets how much of a body is to come, if nothing is."""
        headers, version = self._headers, self._version
        if version not in ("1.1", "1.0"):
            return _UNKNOWN_VERSION if version else _UNREADABLE  # empty lines are no head
        if len(self._url) > MAX_URL_BYTES:
            return _URL_TOO_LONG
        if self._hosts != 1 and (self._hosts or version == "1.1"):
            return _NO_ONE_HOST
        coding = headers.get(b"transfer-encoding")
        if coding is not None:
            if version != "1.1" or self._is_upgrade:
                return _AMBIGUOUS_BODY
            if coding.strip().lower() != b"chunked":
                return _UNKNOWN_CODING
            self._to_come = None
        else:
            length = headers.get(b"content-length")
            self._to_come = int(length) if length else 0
        return None

    def _read_body(self, data: bytes) -> bytes:
        """Reads up to the end of the body, and returns what comes after it."""
        if self._to_come is None:
            # Where the body ends within `data` is not known without parsing what follows on it: that is let go.
            fault, rest = self._feed(data), b""
            # Chunks of a byte each, or with extensions, cost more than what they hold.
            if (
                len(self._body) > MAX_BODY_BYTES
                or self.request_bytes > 2 * MAX_BODY_BYTES + self._limits.max_head_bytes
            ):
                self._respond(_BODY_TOO_LARGE)
                return b""
        else:
            part, rest = (data, b"") if len(data) <= self._to_come else (data[: self._to_come], data[self._to_come :])
            self._to_come -= len(part)
            fault = None
            if self._is_upgrade:
                self._body += part  # llhttp sees another protocol here
            else:
                fault = self._feed(part)
        if fault is not None:
            self._refuse(fault)
            return b""
        if self._is_whole and not self._to_come:
            self._respond()
        return rest

    def _feed(self, data: bytes) -> Refused | None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # To HTTP/2 or a websocket: a server that speaks neither responds as if it had not been asked.
            self._parser, self._is_upgrade = httptools.HttpRequestParser(self), True
        except httptools.HttpParserError:
            if self._is_whole:
                self._keep_alive = False  # the next request follows on a body in chunks; its client will ask again
                return None
            return _URL_TOO_LONG if len(self._url) > MAX_URL_BYTES else _UNREADABLE
        return None

    # Responding.

    def _respond(self, no_body: Refused | None = None) -> None:
        """Has the request responded to: it is whole, or `no_body` says why it will not be."""
        self._leave(_State.WORKING)
        if no_body is not None:
            self._keep_alive = False
            self._body.clear()
        target = self._url
        if not target.startswith(b"/"):  # `*`, or a whole URL as one sends it to a proxy
            with suppress(httptools.HttpParserInvalidURLError):
                url = httptools.parse_url(target)
                target = (url.path or b"/") + (b"?" + url.query if url.query else b"")
        request = Request(
            self._method.decode(), target, self._headers, peer=self.peer, body=self._body, no_body=no_body
        )
        task = self._loop.create_task(self._work(request))
        self._all.tasks.add(task)
        task.add_done_callback(self._all.tasks.discard)

    async def _work(self, request: Request) -> None:
        try:
            response = await self._all.respond(request)
        except BaseException:
            self._end("FAILED")  # nobody else will respond
            raise
        finally:
            if self._state is _State.ENDED:
                self._release()
        if self._state is _State.ENDED:
            return
        if self._is_last:
            self._keep_alive = False
        self._write(response, with_body=request.method != "HEAD")
        self._await(_State.TAKING, self._limits.answer_s)
        if not self._is_blocked:
            self._go_on()

    def _write(self, response: Response, *, with_body: bool = True) -> None:
        status, headers, body = response
        lines = [_STATUS_LINES[status], self._all.date]
        lines += [b"%b: %b\r\n" % header for header in headers]
        if status != 204:
            lines.append(b"content-length: %d\r\n" % len(body))
        lines.append(b"\r\n" if self._keep_alive else b"connection: close\r\n\r\n")
        if with_body:
            lines.append(body)
        self._transport.write(b"".join(lines))

    def _go_on(self) -> None:
        """Ends, or reads the next request, once the client has taken the response."""
        if self._transport.is_closing():
            self._end()
            return
        held, self._held = self._held, b""
        if not self._keep_alive:
            self._linger()
            return
        self._release(len(held))
        self._is_whole = self._is_upgrade = False
        self._version = ""
        self._body = bytearray()
        self._await(_State.IDLE, self._limits.idle_s)
        if held:
            self._transport.resume_reading()
            self._read(held)
        if self._has_ended and self._state is not _State.WORKING:
            self._end()

    def _refuse(self, refused: Refused) -> None:
        """Says what is wrong with what no route can respond to."""
        _cut.labels(refused.code).inc()
        self._keep_alive = False
        self._write(refused.response())
        self._linger()

    def _linger(self) -> None:
        if self._has_ended or self._transport.is_closing():
            self._end()
            return
        self._release()
        self._head.clear()
        self._body = bytearray()
        self._await(_State.LINGERING, self._limits.linger_s)
        self._transport.resume_reading()
        self._transport.write_eof()

    # States.

    def _await(self, state: _State, timeout_s: float) -> None:
        """Leaves the next move to the client, for so long."""
        self._leave(state)
        self.deadline_s = self._loop.time() + timeout_s
        waiting = self._all.idle if state is _State.IDLE else self._all.waiting
        waiting[self] = None

    def _leave(self, state: _State) -> None:
        left = self._all.idle if self._state is _State.IDLE else self._all.waiting
        left.pop(self, None)
        self._state, self.deadline_s = state, math.inf

    def _release(self, but: int = 0) -> None:
        self._all.request_bytes -= self.request_bytes - but
        self.request_bytes = but

    def _end(self, reason: str = "") -> None:
        """Closes, and counts why if that is not usual."""
        if self._state is _State.ENDED:
            return
        if reason:
            _cut.labels(reason).inc()
        if self._state is not _State.WORKING:
            self._release()
        self._leave(_State.ENDED)
        self._all.forget(self)
        # What the client does not take must not keep the connection.
        self._transport.abort() if self._is_blocked else self._transport.close()


def network_of(address: str) -> str:
    """Returns what connections are counted by: an IPv4 address, or the /64 network of an IPv6 one."""
    return _network_of(address) if ":" in address else address


@lru_cache(4096)
def _network_of(address: str) -> str:
    parsed = ipaddress.IPv6Address(address.partition("%")[0])
    return str(parsed.ipv4_mapped or ipaddress.IPv6Network((parsed, 64), strict=False))


_STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus if status >= 200
}
