"""Services as processes of their own, to be killed and paused."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import grpc
from cryptography.fernet import Fernet
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support.ports import HOST, free_port

ROOT = Path(__file__).parents[2]
START_S = 60.0


class ServiceProcess:
    """`python -m services.<name>` on a port of its own, which it keeps from start to start.

    What it writes is appended to `log`. `settings` are fields of its configuration; it serves no metrics unless told.
    """

    def __init__(self, name: str, *, log: Path, **settings: str) -> None:
        self.name = name
        self.log = log
        self.target = f"{HOST}:{free_port()}"
        configured = {"listen": self.target, "metrics_port": "0", "log_level": "warning"} | settings
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("REENGAGE_")}
        self._environment = inherited | {f"REENGAGE_{field.upper()}": value for field, value in configured.items()}
        self._ready_path = "/readyz"
        self._process: Process | None = None

    @property
    def url(self) -> str:
        """Returns the address of a service that speaks HTTP."""
        return f"http://{self.target}"

    @property
    def metrics_url(self) -> str:
        """Returns the address of its metrics, and a gateway's health; it must have been given a port."""
        return f"http://{HOST}:{self._environment['REENGAGE_METRICS_PORT']}"

    @property
    def pid(self) -> int:
        """Returns the id of the process that was started last."""
        assert self._process is not None
        return self._process.pid

    async def start(self, *command: str, settings_come: bool = True) -> None:
        """Returns once it serves, a gateway whose tracker is away with `settings_come` false.

        `command` goes before python, to look at it.
        """
        self._ready_path = "/readyz" if settings_come else "/healthz"
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(*command, sys.executable, "-m", f"services.{self.name}"),
                env=self._environment,
                cwd=ROOT,
                stdin=DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            async with asyncio.timeout(START_S):
                await self._serves(self._process)
        except BaseException:
            await self.stop(signal.SIGKILL)
            raise

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Signals it, unless it has ended; returns its exit code."""
        assert self._process is not None
        self.send(number)
        return await self._process.wait()

    def send(self, number: signal.Signals) -> None:
        """Signals it, unless it has ended: SIGSTOP pauses it, SIGCONT lets it go on."""
        assert self._process is not None
        if self._process.returncode is None:
            self._process.send_signal(number)

    async def _serves(self, process: Process) -> None:
        is_serving = self._is_ready if self.name == "gateway" else self._is_healthy
        while not (await self._listens() and await is_serving()):
            if process.returncode is not None:
                raise AssertionError(f"{self.name} ended with {process.returncode}: {self.log.read_text()[-2000:]}")
            await asyncio.sleep(0.02)

    async def _listens(self) -> bool:
        host, _, port = self.target.rpartition(":")
        try:
            _, writer = await asyncio.open_connection(host, int(port))
        except OSError:
            return False
        writer.close()
        return True

    async def _is_healthy(self) -> bool:
        async with grpc.aio.insecure_channel(self.target) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)  # its stubs do not know what a channel makes of it
            try:
                answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
            except grpc.aio.AioRpcError:
                return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    async def _is_ready(self) -> bool:
        try:
            async with (
                aiohttp.ClientSession() as session,
                session.get(f"{self.metrics_url}{self._ready_path}") as answer,
            ):
                return answer.status == 200
        except aiohttp.ClientConnectionError:
            return False


@asynccontextmanager
async def running(process: ServiceProcess) -> AsyncIterator[ServiceProcess]:
    """Yields the process, started; stops it at the end."""
    await process.start()
    try:
        yield process
    finally:
        await process.stop()


def tracker_process(log: Path, **settings: str) -> ServiceProcess:
    """Returns a tracker, not started yet, with the admin key `admin` and the services' key `service`."""
    keys = {"admin_key": "admin", "service_key": "service", "secrets_keys": Fernet.generate_key().decode()}
    return ServiceProcess("tracker", log=log, **(keys | settings))


def ingest_process(log: Path, **settings: str) -> ServiceProcess:
    """Returns an ingest, not started yet; it needs a `dsn` and a `tracker_target`."""
    return ServiceProcess("ingest", log=log, service_key="service", **settings)


def attribution_process(log: Path, **settings: str) -> ServiceProcess:
    """Returns an attribution, not started yet; it needs a `dsn` and targets. It leaves its lanes 1 s after it dies."""
    usual = {"service_key": "service", "worker_lease_s": "1.0", "log_level": "error"}
    return ServiceProcess("attribution", log=log, **(usual | settings))


def postback_process(log: Path, **settings: str) -> ServiceProcess:
    """Returns a postback, not started yet; it needs a `dsn`, and to send to this machine `allowed_hosts`."""
    usual = {"secrets_keys": Fernet.generate_key().decode(), "log_level": "debug"}
    return ServiceProcess("postback", log=log, **(usual | settings))


def gateway_process(directory: Path, **settings: str) -> ServiceProcess:
    """Returns a gateway, not started yet, with its spool and its log in `directory`; it needs targets."""
    usual = {
        "service_key": "service",
        "spool_directory": str(directory / "spool"),
        "metrics_port": str(free_port()),
    }
    return ServiceProcess("gateway", log=directory / "gateway.log", **(usual | settings))
