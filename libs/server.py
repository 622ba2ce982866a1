"""Serving: the one place that knows signals, health, reflection, metrics and the order of a graceful stop."""

import asyncio
import gc
import signal
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, Self, TypeVar
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import grpc
import orjson
import structlog
import uvloop
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import make_wsgi_app, start_http_server

from libs.auth import Admission, Admit
from libs.config import load
from libs.interceptors import ServerInterceptor
from libs.logs import configure_logging
from libs.parts import MAX_MESSAGE_BYTES
from libs.worker import keep_running, stuck_workers

MAX_STREAMS_PER_CONNECTION = 1000

_log = structlog.get_logger()


C = TypeVar("C", bound="ServiceConfig")
S = TypeVar("S")


class ServiceConfig(Protocol):
    """Fields that the configuration of every service has."""

    @property
    def log_level(self) -> str:
        """Returns the lowest level that is logged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """The address and the manner of serving gRPC. `grace_s + drain_s` must stay below Kubernetes' grace period (30 s).

    `listen` is `host:port`; a `metrics_port` of 0 serves no metrics.
    """

    listen: str
    metrics_port: int = 0
    max_calls: int = 256
    max_streams: int = 256
    drain_s: float = 0.0
    grace_s: float = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Face:
    """A gRPC service to serve: its full name, and the function that adds its servicer to a server.

    `admit` is asked before each of its calls; without it everybody is served.
    """

    name: str
    add: Callable[[grpc.aio.Server], None]
    admit: Admit | None = None

    @classmethod
    def of(
        cls,
        descriptor: ServiceDescriptor,
        add: Callable[[S, grpc.aio.Server], None],
        servicer: S,
        *,
        admit: Admit | None = None,
    ) -> Self:
        """Returns the face of a servicer; `add` is the generated `add_…Servicer_to_server`."""
        return cls(name=descriptor.full_name, add=partial(add, servicer), admit=admit)


class Server(Protocol):
    """The listener of a service."""

    async def start(self) -> None:
        """Begins to listen. Raises OSError when the port cannot be had."""

    async def announce(self) -> None:
        """Tells balancers that the service is ready."""

    async def ended(self) -> None:
        """Waits until it has been stopped. Raises what ended it before."""

    async def stop(self, *, drain: bool) -> None:
        """Tells balancers that it is not, with `drain` gives them time to notice, and ends once calls have ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A service that is wired and ready to run.

    `loops` run beside the server for as long as it does, each under the name it is logged and counted by: one that
    fails begins anew (`libs.worker.keep_running`). Health is SERVING once `ready` has returned, for example when
    settings have arrived.
    """

    server: Server
    loops: Mapping[str, Callable[[], Awaitable[None]]] = field(default_factory=dict)
    ready: Callable[[], Awaitable[object]] | None = None


def run(name: str, config: type[C], wire: Callable[[C], AbstractAsyncContextManager[Service]]) -> None:
    """Runs a service until SIGTERM or SIGINT, then stops it with nothing lost: the main of every service.

    `wire` opens what the service needs, and closes it at the end. Raises ConfigError, which ends the process with one
    sentence, where the environment does not fit.
    """
    loaded = load(config)
    configure_logging(name, loaded.log_level)
    uvloop.run(_run(wire(loaded)))


async def _run(wired: AbstractAsyncContextManager[Service]) -> None:
    stop = asyncio.Event()
    starting = asyncio.current_task()

    def ask_to_stop() -> None:
        stop.set()
        if starting is not None:
            starting.cancel()  # a start may wait for a database for long

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ask_to_stop)
    try:
        async with wired as service:
            starting = None
            # What was loaded so far never goes: the collector need not look through it again and again.
            gc.freeze()
            await supervise(service, stop)
    except asyncio.CancelledError:
        if starting is None:
            raise


async def supervise(service: Service, stop: asyncio.Event) -> None:
    """Runs a wired service until `stop` is set.

    The order at the end: NOT_SERVING, time for balancers to notice, no new calls, watches end, time for the other
    calls under way, then the loops are cancelled; whoever opened what they use closes it after that.
    """
    await service.server.start()
    async with asyncio.TaskGroup() as tasks:
        loops = [tasks.create_task(keep_running(name, loop), name=name) for name, loop in service.loops.items()]
        becoming_ready = tasks.create_task(_become_ready(service))
        tasks.create_task(service.server.ended())  # a listener that fails ends the process
        try:
            await stop.wait()
        finally:
            _log.info("server.stopping")
            becoming_ready.cancel()
            await service.server.stop(drain=stop.is_set())
            for loop in loops:
                loop.cancel()
    _log.info("server.stopped")


async def _become_ready(service: Service) -> None:
    if service.ready is not None:
        await service.ready()
    await service.server.announce()


class GrpcServer:
    """Listener for gRPC, with health, reflection and metrics."""

    def __init__(self, config: ServerConfig, faces: Sequence[Face]) -> None:
        self._config = config
        self._names = ["", *(face.name for face in faces)]
        self._interceptor = ServerInterceptor(max_calls=config.max_calls, max_streams=config.max_streams)
        self._server, self._checks = build_server(config, faces, self._interceptor)
        self._port = 0
        self._stopped = asyncio.Event()

    async def start(self) -> None:
        """Begins to listen, NOT_SERVING. Raises OSError when the port cannot be had."""
        for name in self._names:
            await self._checks.set(name, health_pb2.HealthCheckResponse.NOT_SERVING)
        if self._config.metrics_port:
            host = self._config.listen.rpartition(":")[0].strip("[]")
            # Where the service itself is heard, no wider.
            httpd, _ = start_http_server(self._config.metrics_port, addr=host)
            httpd.set_app(_with_healthz(make_wsgi_app()))
        self._port = self._server.add_insecure_port(self._config.listen)
        if self._port == 0:
            raise OSError(f"cannot listen on {self._config.listen}: is the port taken?")
        await self._server.start()

    async def announce(self) -> None:
        """Sets health to SERVING."""
        for name in self._names:
            await self._checks.set(name, health_pb2.HealthCheckResponse.SERVING)
        _log.info("server.started", port=self._port)

    async def stop(self, *, drain: bool) -> None:
        """Sets health to NOT_SERVING, waits `drain_s` if told to, ends watches, and waits `grace_s` for other calls."""
        await self._checks.enter_graceful_shutdown()
        if drain:
            await asyncio.sleep(self._config.drain_s)
        stopped = asyncio.ensure_future(self._server.stop(self._config.grace_s))
        self._interceptor.end_watches()
        await stopped
        self._stopped.set()

    async def ended(self) -> None:
        """Waits until it has been stopped: gRPC serves until then."""
        await self._stopped.wait()


def _with_healthz(metrics: WSGIApplication) -> WSGIApplication:
    """Returns the application of the metrics with `/healthz` beside them: alive, with the loops that are stuck (200).

    It says no less than alive, whatever is stuck: a restart does not help.
    """

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ.get("PATH_INFO") != "/healthz":
            return metrics(environ, start_response)
        start_response("200 OK", [("Content-Type", "application/json")])
        return [orjson.dumps({"status": "alive", "stuck_workers": stuck_workers()})]

    return app


def build_server(
    config: ServerConfig, faces: Sequence[Face], interceptor: ServerInterceptor | None = None
) -> tuple[grpc.aio.Server, health.aio.HealthServicer]:
    """Returns the server that every service and every test uses: interceptor, bounds, health, reflection."""
    server = grpc.aio.server(
        interceptors=[
            interceptor or ServerInterceptor(max_calls=config.max_calls, max_streams=config.max_streams),
            Admission({face.name: face.admit for face in faces if face.admit is not None}),
        ],
        options=[
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            # Calls that only begin take no room of `max_calls` yet; those beyond wait at the client.
            ("grpc.max_concurrent_streams", MAX_STREAMS_PER_CONNECTION),
            # round_robin clients see new pods only when a connection ends.
            ("grpc.max_connection_age_ms", 10 * 60_000),
            ("grpc.max_connection_age_grace_ms", 60_000),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
            ("grpc.keepalive_permit_without_calls", 1),
        ],
    )
    for face in faces:
        face.add(server)
    checks = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    names = [face.name for face in faces]
    reflection.enable_server_reflection([*names, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
    return server, checks
