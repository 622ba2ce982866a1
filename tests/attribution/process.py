"""The attribution service as its own process, to be killed."""

import asyncio
import os
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Mapping

import grpc

from reengage.attribution.v1 import decision_pb2
from reengage.attribution.v1 import service_pb2_grpc as attribution_grpc


class AttributionProcess:
    """`python -m services.attribution` on a port of its own, which it keeps from start to start.

    `targets` of the services it calls, by name: tracker, ingest, postback.
    """

    def __init__(self, *, dsn: str, targets: Mapping[str, str], lease_s: float = 1.0) -> None:
        self.target = f"127.0.0.1:{_free_port()}"
        self._environment = {
            "REENGAGE_DSN": dsn,
            "REENGAGE_SERVICE_KEY": "service",
            "REENGAGE_LISTEN": self.target,
            "REENGAGE_METRICS_PORT": str(_free_port()),
            "REENGAGE_LOG_LEVEL": "error",
            "REENGAGE_WORKER_LEASE_S": str(lease_s),
            **{f"REENGAGE_{name.upper()}_TARGET": target for name, target in targets.items()},
        }
        self._process: Process | None = None

    async def start(self) -> None:
        """Returns when it answers."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "services.attribution", env=os.environ | self._environment, stdout=DEVNULL
        )
        async with grpc.aio.insecure_channel(self.target) as channel:
            stub = attribution_grpc.AttributionServiceStub(channel)
            async with asyncio.timeout(30):
                while True:
                    try:
                        await stub.GetDecision(decision_pb2.GetDecisionRequest(), wait_for_ready=True)
                    except grpc.aio.AioRpcError as error:
                        if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
                            return
                    await asyncio.sleep(0.02)

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Signals it; returns its exit code."""
        assert self._process is not None
        if self._process.returncode is None:
            self._process.send_signal(number)
        return await self._process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
