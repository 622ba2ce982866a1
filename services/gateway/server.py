"""Serving HTTP: uvicorn inside our process and our loop, with bounds on what a request may take."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from http import HTTPStatus
from typing import Protocol

import structlog
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from services.gateway.asgi import Receive, Refused, Scope, Send

MAX_HEAD_BYTES = 64 * 1024
REQUEST_TIMEOUT_S = 30.0
"""From its first byte to its last."""
_MAX_CONNECTIONS = 4_000
_TOO_SLOW = Refused(408, "REQUEST_TIMEOUT", f"a request must be whole within {REQUEST_TIMEOUT_S:.0f} s")
_HEAD_TOO_LARGE = Refused(431, "HEAD_TOO_LARGE", f"URL and headers must be at most {MAX_HEAD_BYTES} bytes")
_URL_TOO_LONG = Refused(414, "URL_TOO_LONG", "a URL must be at most 16 KiB")
_UNREADABLE = Refused(400, "INVALID_HTTP", "this is no HTTP request; all of a URL but ASCII must be percent-encoded")
_MAX_URL_BYTES = 65_535  # more httptools cannot parse
_log = structlog.get_logger()


class Application(Protocol):
    """An ASGI application that can tell balancers that it is about to stop."""

    stopping: bool

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""


class HttpServer:
    """Serves an application over HTTP; when told to stop, it is not ready for `drain_s` before it takes no more
    connections, and gives `grace_s` to what is under way. `listen` is `host:port`.
    """

    def __init__(self, app: Application, listen: str, *, drain_s: float, grace_s: float) -> None:
        self._app, self._listen, self._drain_s, self._grace_s = app, listen, drain_s, grace_s

    async def start(self) -> None:
        """Begins to listen. Raises OSError when the port cannot be had."""
        sock = _listen(self._listen)
        self._server = _Server(
            uvicorn.Config(
                self._app,
                http=BoundedProtocol,
                ws="none",
                lifespan="off",
                interface="asgi3",
                access_log=False,
                log_config=None,
                server_header=False,
                proxy_headers=False,  # whom to believe is decided in addresses.py
                limit_concurrency=_MAX_CONNECTIONS,
                timeout_graceful_shutdown=int(self._grace_s),
            )
        )
        self._serving = asyncio.ensure_future(self._server.serve(sockets=[sock]))
        self._port = sock.getsockname()[1]

    async def announce(self) -> None:
        """Nothing: the application itself says when it is ready."""
        _log.info("http.started", port=self._port)

    async def stop(self, *, drain: bool) -> None:
        """Ends once what was under way has ended."""
        _log.info("http.stopping")
        self._app.stopping = True
        await asyncio.sleep(self._drain_s if drain else 0)
        self._server.should_exit = True
        await self._serving


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, which by itself takes a head of any size, and any time for a request."""

    _head_bytes = 0
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A connection that never sends anything is closed too."""
        super().connection_made(transport)
        self._timer = self.loop.call_later(REQUEST_TIMEOUT_S, self._refuse, _TOO_SLOW)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timer."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what comes before the end of a head, and watch the time of a request that is not whole yet."""
        self._head_bytes += len(data)
        if self._head_bytes > MAX_HEAD_BYTES + len(data):
            self._refuse(_HEAD_TOO_LARGE)
            return
        super().data_received(data)
        if self._head_bytes and self._timer is None and not self.transport.is_closing():
            self._timer = self.loop.call_later(REQUEST_TIMEOUT_S, self._refuse, _TOO_SLOW)

    def on_body(self, body: bytes) -> None:
        """The head is over; one byte stands for a request that is not."""
        self._head_bytes = 1
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The next head begins."""
        self._head_bytes = 0
        self._stop_timer()
        super().on_message_complete()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        """What uvicorn cannot read is refused in the form of all errors."""
        self._refuse(_URL_TOO_LONG if len(self.url) > _MAX_URL_BYTES else _UNREADABLE)

    def _refuse(self, refused: Refused) -> None:
        if self.transport.is_closing():
            return
        status, headers, body = refused.answer()
        headers += [(b"content-length", b"%d" % len(body)), (b"connection", b"close")]
        lines = [b"HTTP/1.1 %d %b" % (status, HTTPStatus(status).phrase.encode()), *map(b": ".join, headers)]
        self.transport.write(b"\r\n".join([*lines, b"", body]))
        self.transport.close()


class _Server(uvicorn.Server):
    """uvicorn's server without its signal handlers, which would end the process before the spool is closed."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves signals to `libs.server`."""
        yield


def _listen(listen: str) -> socket.socket:
    host, _, port = listen.rpartition(":")
    try:
        [(family, kind, proto, _, address), *_rest] = socket.getaddrinfo(
            host.strip("[]") or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        sock = socket.socket(family, kind, proto)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError as error:
        raise OSError(f"cannot listen on {listen}: is the port taken?") from error
    return sock
