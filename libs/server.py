"""Serving: the one place that knows signals, health, reflection, metrics and the order of a graceful stop."""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import start_http_server

from libs.auth import Admission, Admit
from libs.channels import MAX_MESSAGE_BYTES
from libs.interceptors import ServerInterceptor

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Where and how to serve. Times in seconds; `grace_s + drain_s` must stay below Kubernetes' grace period (30 s)."""

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


async def serve(
    config: ServerConfig,
    faces: Sequence[Face],
    *,
    tasks: Sequence[Callable[[], Awaitable[None]]] = (),
    ready: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then stop with nothing lost.

    `tasks` run beside the server for as long as it does; one that ends or fails ends the process, so that whoever
    supervises it starts it anew. Health is SERVING once `ready` returned (for example: settings have arrived).
    Stop: NOT_SERVING, `drain_s` for balancers to notice, no new calls, watches end, `grace_s` for the other calls under
    way, then the tasks are cancelled; the caller closes what it opened.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if config.metrics_port:
        host = config.listen.rpartition(":")[0].strip("[]")
        start_http_server(config.metrics_port, addr=host)  # where the service itself is heard, no wider
    interceptor = ServerInterceptor(max_calls=config.max_calls, max_streams=config.max_streams)
    server, checks = build_server(config, faces, interceptor)
    port = server.add_insecure_port(config.listen)
    if port == 0:
        raise OSError(f"cannot listen on {config.listen}: is the port taken?")
    await server.start()
    running = [asyncio.ensure_future(task()) for task in tasks]
    waiting = asyncio.ensure_future(stop.wait())
    becoming_ready = asyncio.ensure_future(_announce(checks, faces, ready, port))
    try:
        done, _ = await asyncio.wait([waiting, *running, becoming_ready], return_when=asyncio.FIRST_COMPLETED)
        while done == {becoming_ready} and becoming_ready.exception() is None:
            done, _ = await asyncio.wait([waiting, *running], return_when=asyncio.FIRST_COMPLETED)
        _log.info("server.stopping")
        await checks.enter_graceful_shutdown()
        if stop.is_set():
            await asyncio.sleep(config.drain_s)
        stopped = asyncio.ensure_future(server.stop(config.grace_s))
        interceptor.end_watches()
        await stopped
        for ended in done - {waiting}:
            ended.result()  # raises what ended it
            if ended is not becoming_ready:
                raise RuntimeError("a background task ended by itself")
    finally:
        for pending in (waiting, becoming_ready, *running):
            pending.cancel()
        await asyncio.gather(waiting, becoming_ready, *running, return_exceptions=True)
        _log.info("server.stopped")


def build_server(
    config: ServerConfig, faces: Sequence[Face], interceptor: ServerInterceptor | None = None
) -> tuple[grpc.aio.Server, health.aio.HealthServicer]:
    """The server every service and every test uses: interceptor, bounds, health, reflection."""
    server = grpc.aio.server(
        interceptors=[
            interceptor or ServerInterceptor(max_calls=config.max_calls, max_streams=config.max_streams),
            Admission({face.name: face.admit for face in faces if face.admit is not None}),
        ],
        options=[
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
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


async def _announce(
    checks: health.aio.HealthServicer,
    faces: Sequence[Face],
    ready: Callable[[], Awaitable[None]] | None,
    port: int,
) -> None:
    names = ["", *(face.name for face in faces)]
    for name in names:
        await checks.set(name, health_pb2.HealthCheckResponse.NOT_SERVING)
    if ready is not None:
        await ready()
    for name in names:
        await checks.set(name, health_pb2.HealthCheckResponse.SERVING)
    _log.info("server.started", port=port)
