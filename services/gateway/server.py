"""Serving HTTP: uvicorn inside our process and our loop, with bounds on what a request may take."""

import asyncio
import contextlib
import math
import socket
from collections.abc import Iterator
from http import HTTPStatus
from typing import Protocol

import structlog
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from services.gateway.asgi import Receive, Scope, Send
from services.gateway.errors import Refused

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
        """Responds to one request."""


class HttpServer:
    """Listener for HTTP, in front of an application. `listen` is `host:port`.

    When it is to stop, it is not ready for `drain_s`. Then it takes no more connections, and gives `grace_s` to what is
    under way.
    """

    def __init__(self, app: Application, listen: str, *, drain_s: float, grace_s: float) -> None:
        self._app, self._listen, self._drain_s = app, listen, drain_s
        self._server = _Server(
            uvicorn.Config(
                app,
                http=BoundedProtocol,
                ws="none",
                lifespan="off",
                interface="asgi3",
                access_log=False,
                log_config=None,
                server_header=False,
                proxy_headers=False,  # whom to believe is decided in addresses.py
                limit_concurrency=_MAX_CONNECTIONS,
                timeout_graceful_shutdown=math.ceil(grace_s),
            )
        )
        self._serving: asyncio.Task[None] | None = None
        self._port = 0

    async def start(self) -> None:
        """Returns once it listens. Raises OSError when the port cannot be had."""
        sock = _bind(self._listen)
        self._port = sock.getsockname()[1]
        self._serving = asyncio.create_task(self._server.serve(sockets=[sock]))
        listening = asyncio.create_task(self._server.listening.wait())
        await asyncio.wait({self._serving, listening}, return_when=asyncio.FIRST_COMPLETED)
        listening.cancel()
        if self._serving.done():
            await self.ended()

    async def announce(self) -> None:
        """Logs that it serves. The application itself says when it is ready."""
        _log.info("http.started", port=self._port)

    async def ended(self) -> None:
        """Waits until it has been stopped. Raises what ended it before."""
        assert self._serving is not None, "it was started"
        await asyncio.shield(self._serving)
        if not self._server.should_exit:
            raise RuntimeError("the HTTP server ended without being told to")

    async def stop(self, *, drain: bool) -> None:
        """Returns once what was under way has ended."""
        _log.info("http.stopping")
        self._app.stopping = True
        await asyncio.sleep(self._drain_s if drain else 0)
        self._server.should_exit = True
        if self._serving is not None:
            await asyncio.wait({self._serving})  # what it raises, `ended` does


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with bounds: by itself it takes a head of any size, and any time for a request."""

    _head_bytes = 0
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Starts the time of the first request: a connection that never sends anything is closed too."""
        super().connection_made(transport)
        self._timer = self.loop.call_later(REQUEST_TIMEOUT_S, self._refuse, _TOO_SLOW)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets the timer."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Counts what comes before the end of a head, and watches the time of a request that is not whole yet."""
        self._head_bytes += len(data)
        if self._head_bytes > MAX_HEAD_BYTES + len(data):
            self._refuse(_HEAD_TOO_LARGE)
            return
        super().data_received(data)
        if self._head_bytes and self._timer is None and not self.transport.is_closing():
            self._timer = self.loop.call_later(REQUEST_TIMEOUT_S, self._refuse, _TOO_SLOW)

    def on_body(self, body: bytes) -> None:
        """Ends the head; one byte stands for a request that has not ended."""
        self._head_bytes = 1
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Begins the next head."""
        self._head_bytes = 0
        self._stop_timer()
        super().on_message_complete()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        """Refuses what uvicorn cannot read, in the form of all errors."""
        self._refuse(_URL_TOO_LONG if len(self.url) > _MAX_URL_BYTES else _UNREADABLE)

    def _refuse(self, refused: Refused) -> None:
        if self.transport.is_closing():
            return
        status, headers, body = refused.response()
        headers += [(b"content-length", b"%d" % len(body)), (b"connection", b"close")]
        lines = [b"HTTP/1.1 %d %b" % (status, HTTPStatus(status).phrase.encode()), *map(b": ".join, headers)]
        self.transport.write(b"\r\n".join([*lines, b"", body]))
        self.transport.close()


class _Server(uvicorn.Server):
    """uvicorn's server without its signal handlers, which would end the process before the spool is closed.

    `listening` is set once it takes connections.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to listen."""
        await super().startup(sockets)
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves signals to `libs.server`."""
        yield


def _bind(listen: str) -> socket.socket:
    host, _, port = listen.rpartition(":")
    with contextlib.ExitStack() as stack:
        try:
            [(family, kind, proto, _, address), *_rest] = socket.getaddrinfo(
                host.strip("[]") or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            sock = stack.enter_context(socket.socket(family, kind, proto))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
        except OSError as error:
            raise OSError(f"cannot listen on {listen}: is the port taken?") from error
        stack.pop_all()  # it stays open
        return sock
