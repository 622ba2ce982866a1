"""The whole suite on one machine: embedded PostgreSQL, a schema and role each, and the services as processes."""

import asyncio
import base64
import fcntl
import json
import os
import random
import signal
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import aiohttp
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from rich.markup import escape

from deploy.local.embedded import EmbeddedPostgres, EmbeddedPostgresError
from deploy.local.processes import ServiceProcess, StartError
from libs.channels import open_channel
from libs.migrations import MigrationError, prepare
from services.cli.places import ADDRESSES, ROOT

HOST = "127.0.0.1"
SERVICES = ("tracker", "ingest", "attribution", "postback", "gateway")
"""In the order of starting; stopping is the other way round."""

Announce = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """The ports of the suite, on 127.0.0.1: port `gateway` is option --gateway-port and REENGAGE_PORT_GATEWAY.

    `network` is that of the local ad network, which receives postbacks; `metrics` the first of five, those of the
    services in the order of SERVICES.
    """

    tracker: int = 7101
    ingest: int = 7102
    attribution: int = 7103
    postback: int = 7104
    gateway: int = 8080
    network: int = 8090
    metrics: int = 7201

    def address(self, name: str) -> str:
        """Returns `host:port` of a service, or of `network`."""
        return f"{HOST}:{getattr(self, name)}"

    def metrics_of(self, service: str) -> int:
        """Returns the port that serves a service's /metrics."""
        return self.metrics + SERVICES.index(service)

    def check(self) -> None:
        """Raises StartError naming every port that is taken, what wants it, and the option that chooses another."""
        uses = [(getattr(self, service), service, service) for service in SERVICES]
        uses.append((self.network, "the local ad network", "network"))
        uses.extend((self.metrics_of(service), f"/metrics of {service}", "metrics") for service in SERVICES)
        problems = [
            f"Port {port}, wanted for {user}, is taken. End what holds it, or choose another by --{option}-port or "
            f"REENGAGE_PORT_{option.upper()}."
            for port, user, option in uses
            if _taken(port)
        ]
        if problems:
            raise StartError("\n".join(problems))


def free_ports() -> Ports:
    """Returns ports in a row that nobody uses at this moment."""
    names = [field.name for field in fields(Ports)]
    wanted = len(names) + len(SERVICES) - 1
    while True:
        first = random.randrange(20_000, 32_000)  # below what systems hand out to clients
        if not any(_taken(port) for port in range(first, first + wanted)):
            return Ports(**{name: first + offset for offset, name in enumerate(names)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """A suite that runs: every service healthy, each restarted when it crashes."""

    ports: Ports
    postgres: EmbeddedPostgres
    services: Mapping[str, ServiceProcess]
    admin_key: str = field(repr=False)
    """Opens tracker."""


@asynccontextmanager
async def running_suite(
    directory: Path, ports: Ports, *, announce: Announce, durable: bool = True
) -> AsyncIterator[Suite]:
    """Starts all with the data in `directory`, and stops all in reverse order at the end, with nothing lost.

    SIGINT or SIGTERM cancels the calling task, which leads to that end; a second one kills the services. `announce`
    gets a line for people at each step. Raises StartError; before anything is started, when the suite already runs
    there or a port is taken.
    """
    services: dict[str, ServiceProcess] = {}
    async with AsyncExitStack() as stack:
        stack.enter_context(_signals(services))
        stack.enter_context(_only_one(directory, ports))
        ports.check()
        postgres = EmbeddedPostgres(directory / "postgres", durable=durable)
        try:
            await stack.enter_async_context(postgres)
        except EmbeddedPostgresError as error:
            raise StartError(str(error)) from error
        await postgres.create_database()
        await _migrate(postgres, directory)
        announce("PostgreSQL runs, schemas are up to date")
        for name in SERVICES:
            services[name] = service = ServiceProcess(
                name,
                environment=_environment(name, directory, ports, postgres),
                log=directory / "logs" / f"{name}.log",
                is_healthy=_gateway_is_ready(ports) if name == "gateway" else _serves(ports.address(name)),
                announce=announce,
            )
            stack.push_async_callback(_stop, service, announce)
        try:
            async with asyncio.TaskGroup() as starting:
                for service in services.values():
                    starting.create_task(_start(service, ports, announce))
        except* StartError as group:
            raise group.exceptions[0] from None
        watch = asyncio.create_task(_keep_postgres(postgres, announce))
        stack.callback(watch.cancel)
        stack.callback(announce, "Stopping")
        yield Suite(ports=ports, postgres=postgres, services=services, admin_key=_key(directory / "admin.key"))


def migrated_services() -> list[str]:
    """Returns the services that own a schema."""
    return [name for name in SERVICES if migrations_of(name).is_dir()]


def migrations_of(service: str) -> Path:
    """Returns the directory of a service's migrations."""
    return ROOT / "services" / service / "migrations"


@contextmanager
def _signals(services: Mapping[str, ServiceProcess]) -> Iterator[None]:
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None

    def stop() -> None:
        if task.cancelling():
            for service in services.values():
                service.kill()
        else:
            task.cancel()

    numbers = (signal.SIGINT, signal.SIGTERM)
    for number in numbers:
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


async def _migrate(postgres: EmbeddedPostgres, directory: Path) -> None:
    try:
        for schema in migrated_services():
            await prepare(postgres.admin_dsn(), schema=schema, directory=migrations_of(schema))
    except MigrationError as error:
        raise StartError(f"{error}\nTo start afresh, move {directory} away.") from error


async def _start(service: ServiceProcess, ports: Ports, announce: Announce) -> None:
    await service.start()
    announce(f"{service.name} serves on {ports.address(service.name)}")


async def _stop(service: ServiceProcess, announce: Announce) -> None:
    await service.stop()
    announce(f"{service.name} stopped")


async def _keep_postgres(postgres: EmbeddedPostgres, announce: Announce) -> None:
    while True:
        await asyncio.sleep(0.5)
        if not postgres.running:
            announce("[red]PostgreSQL crashed[/]; starting it again")
            try:
                await postgres.start()
            except EmbeddedPostgresError as error:
                announce(f"PostgreSQL does not come back: {escape(str(error))}")
                continue
            announce("[green]PostgreSQL is back[/]")


_CALLERS = {"tracker": ("admin", "service", "postback"), "postback": ("postback",)}
"""Whose API keys a service knows, where it is not that of the services alone."""


def _environment(service: str, directory: Path, ports: Ports, postgres: EmbeddedPostgres) -> dict[str, str]:
    environment = {
        "REENGAGE_LISTEN": ports.address(service),
        "REENGAGE_METRICS_PORT": str(ports.metrics_of(service)),
        **{f"REENGAGE_{name.upper()}_TARGET": ports.address(name) for name in SERVICES if name != "gateway"},
    }
    if migrations_of(service).is_dir():
        environment["REENGAGE_DSN"] = postgres.dsn(service)
    if service in ("tracker", "postback"):
        environment["REENGAGE_SECRETS_KEYS"] = _key(directory / "secrets.key")
    for caller in _CALLERS.get(service, ("service",)):
        environment[f"REENGAGE_{caller.upper()}_KEY"] = _key(directory / f"{caller}.key")
    if service == "postback":
        # The local ad network, and whatever whoever starts the suite allows besides.
        allowed = (ports.address("network"), os.environ.get("REENGAGE_ALLOWED_HOSTS", ""))
        environment["REENGAGE_ALLOWED_HOSTS"] = ",".join(filter(None, allowed))
    if service == "attribution" and "REENGAGE_CLAIM_WAIT_S" in os.environ:
        environment["REENGAGE_CLAIM_WAIT_S"] = os.environ["REENGAGE_CLAIM_WAIT_S"]
    if service == "ingest":
        environment["REENGAGE_GEOIP_DATABASE"] = os.environ.get("REENGAGE_GEOIP_DATABASE", "")
    if service == "gateway":
        environment["REENGAGE_SPOOL_DIRECTORY"] = str(directory / "spool")
        environment["REENGAGE_TRUSTED_PROXIES"] = os.environ.get("REENGAGE_TRUSTED_PROXIES", "")
    return environment


def _key(file: Path) -> str:
    """Returns a random key, for secrets at rest or for callers; made once, and kept where only its owner reads it."""
    if not file.exists():
        unfinished = file.with_suffix(".new")
        unfinished.unlink(missing_ok=True)
        with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as new:
            new.write(base64.urlsafe_b64encode(os.urandom(32)))
        unfinished.rename(file)
    return file.read_text()


@contextmanager
def _only_one(directory: Path, ports: Ports) -> Iterator[None]:
    """Holds the directory against a second suite, and leaves the addresses there for the commands that ask this one."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (directory / ADDRESSES.name).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            running = json.loads(file.read() or "{}")
            raise StartError(
                f"The suite already runs here: process {running.get('pid', '?')}, {running.get('gateway', '')}. "
                "Ctrl-C where it runs stops it."
            ) from None
        file.truncate(0)
        json.dump({"pid": os.getpid(), **{name: ports.address(name) for name in (*SERVICES, "network")}}, file)
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def _taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # what lingers of closed connections is no hindrance
        try:
            probe.bind((HOST, port))
        except OSError:
            return True
    return False


def _serves(address: str) -> Callable[[], Coroutine[None, None, bool]]:
    async def healthy() -> bool:
        if not await _listens(address):
            return False
        async with open_channel(address, timeout_s=2) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)  # its stubs do not know what a channel makes of it
            try:
                answer = await stub.Check(health_pb2.HealthCheckRequest())
            except grpc.aio.AioRpcError:
                return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    return healthy


def _gateway_is_ready(ports: Ports) -> Callable[[], Coroutine[None, None, bool]]:
    async def ready() -> bool:
        if not await _listens(ports.address("gateway")):
            return False
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as session,
                session.get(f"http://{ports.address('gateway')}/readyz") as answer,
            ):
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    return ready


async def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        _, writer = await asyncio.open_connection(host, int(port))
    except OSError:
        return False
    writer.close()
    return True
