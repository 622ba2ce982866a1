"""The postback service as its own process."""

import asyncio
import os
import signal
import socket
import sys
from asyncio.subprocess import Process
from pathlib import Path

from cryptography.fernet import Fernet


class PostbackProcess:
    """`python -m services.postback` on a port of its own, which it keeps from start to start; logs go to a file."""

    def __init__(self, *, dsn: str, log: Path, allowed_hosts: str, log_level: str = "debug") -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.target = f"127.0.0.1:{probe.getsockname()[1]}"
        self.log = log
        self._environment = {
            "REENGAGE_DSN": dsn,
            "REENGAGE_LISTEN": self.target,
            "REENGAGE_SECRETS_KEYS": Fernet.generate_key().decode(),
            "REENGAGE_ALLOWED_HOSTS": allowed_hosts,
            "REENGAGE_LOG_LEVEL": log_level,
        }
        self._process: Process | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        """Returns when the process runs; calls that wait for it find it."""
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "services.postback", env=os.environ | self._environment, stdout=log, stderr=log
            )

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Signals it; returns its exit code."""
        assert self._process is not None
        if self._process.returncode is None:
            self._process.send_signal(number)
        return await self._process.wait()
