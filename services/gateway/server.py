"""Listening for HTTP: a port, its connections, and the order of a graceful stop."""

import asyncio
import contextlib
import resource
import socket
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import prometheus_client
import structlog

from services.gateway.connections import Connections, HttpConnection, Limits
from services.gateway.requests import Request, Response

_BACKLOG = 2_048
_SWEEP_S = 0.5
_OTHER_FILES = 256
"""Files that a process opens beside its connections: channels, the spool, logs."""

_open = prometheus_client.Gauge("http_connections", "Open HTTP connections.")
_request_bytes = prometheus_client.Gauge("http_request_bytes", "Bytes of requests that have no response yet.")
_log = structlog.get_logger()


class Application(Protocol):
    """Routes."""

    async def respond(self, request: Request) -> Response:
        """Returns the response to one request. Never raises."""


class StoppableApplication(Application, Protocol):
    """Routes that can tell balancers that they are about to stop."""

    stopping: bool


class HttpServer:
    """Listeners for HTTP: for everybody, in front of an application, and for operators.

    `listen` and `operators_listen` are `host:port`; without the second nobody listens there. Operators have connections
    of their own, so that health can be asked however many others there are. `is_exempt` is of `Connections`.

    When it is to stop, it is not ready for `drain_s`. Then it takes no more connections, and gives `grace_s` to what is
    under way. Operators are responded to until then.
    """

    def __init__(
        self,
        app: StoppableApplication,
        listen: str,
        limits: Limits,
        *,
        drain_s: float,
        grace_s: float,
        operators: Application | None = None,
        operators_listen: str = "",
        is_exempt: Callable[[str], bool] = lambda _: False,
    ) -> None:
        self._app, self._limits, self._is_exempt = app, limits, is_exempt
        self._drain_s, self._grace_s = drain_s, grace_s
        self._listen, self._operators, self._operators_listen = listen, operators, operators_listen
        self._listeners: list[_Listener] = []
        self._sweeping: asyncio.Task[None] | None = None
        self._port = 0

    async def start(self) -> None:
        """Returns once it listens. Raises OSError when a port cannot be had."""
        limits = replace(self._limits, max_connections=_files_for(self._limits.max_connections))
        public = Connections(limits, self._app.respond, self._is_exempt)
        self._listeners.append(_Listener(public, self._listen))
        if self._operators is not None and self._operators_listen:
            few = replace(limits, max_connections=_OTHER_FILES // 4)
            self._listeners.append(_Listener(Connections(few, self._operators.respond), self._operators_listen))
        for listener in self._listeners:
            await listener.start()
        self._port = self._listeners[0].port
        _open.set_function(lambda: len(public.open))
        _request_bytes.set_function(lambda: public.request_bytes)
        self._sweeping = asyncio.create_task(self._sweep())

    async def announce(self) -> None:
        """Logs that it serves. The application itself says when it is ready."""
        _log.info("http.started", port=self._port)

    async def ended(self) -> None:
        """Waits until it has been stopped. Raises what ended it before."""
        assert self._sweeping is not None, "it was started"
        await asyncio.wait({self._sweeping})
        if not self._sweeping.cancelled():
            self._sweeping.result()

    async def stop(self, *, drain: bool) -> None:
        """Returns once what was under way has ended."""
        _log.info("http.stopping")
        self._app.stopping = True
        await asyncio.sleep(self._drain_s if drain else 0)
        for listener in self._listeners:
            await listener.stop(self._grace_s)
        if self._sweeping is not None:
            self._sweeping.cancel()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_S)
            for listener in self._listeners:
                listener.connections.tell_time()
                listener.connections.end_overdue()


class _Listener:
    """One port and its connections."""

    def __init__(self, connections: Connections, listen: str) -> None:
        self.connections, self._listen = connections, listen
        self._server: asyncio.Server | None = None
        self.port = 0

    async def start(self) -> None:
        """Begins to listen. Raises OSError when the port cannot be had."""
        sock = _bind(self._listen)
        self.port = sock.getsockname()[1]
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: HttpConnection(self.connections), sock=sock, backlog=_BACKLOG)

    async def stop(self, grace_s: float) -> None:
        """Takes no more connections, and returns once what was under way has ended, or `grace_s` later."""
        if self._server is None:
            return
        self._server.close()
        self._server = None
        if cut := await self.connections.drain(grace_s):
            _log.warning("http.cut", connections=cut)


def _files_for(connections: int) -> int:
    """Returns how many of these connections the process has files for, having raised its limit where it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + _OTHER_FILES
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft < wanted:
        _log.warning("http.few_files", max_connections=soft - _OTHER_FILES)
    return min(connections, soft - _OTHER_FILES)


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
