"""A supervised process: started, watched, restarted when it crashes, stopped gracefully."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from rich.markup import escape

from services.cli.places import ROOT

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0  # a service's own grace is 20
FIRST_PAUSE_S = 0.2
MAX_PAUSE_S = 10.0
LONG_LIFE_S = 30.0  # whoever ran this long begins with the first pause again
TRIES_AT_START = 3
KEPT_LOG_BYTES = 20 * 1024 * 1024
SHOWN_LINES = 8
SHOWN_WIDTH = 240


class StartError(Exception):
    """The suite cannot start; the message says why and what to change."""


class ServiceProcess:
    """One service as a child process in a session of its own; its output is appended to `log`.

    `is_healthy` returns whether it serves; `announce` gets a line for people, in rich's markup, at each crash and
    recovery.
    """

    def __init__(
        self,
        name: str,
        *,
        environment: Mapping[str, str],
        log: Path,
        is_healthy: Callable[[], Awaitable[bool]],
        announce: Callable[[str], None],
    ) -> None:
        self.name = name
        self.log = log
        self.restarts = 0
        self._environment = _inherited() | dict(environment)
        self._is_healthy = is_healthy
        self._announce = announce
        self._process: asyncio.subprocess.Process | None = None
        self._log_start = 0
        self._stopping = False
        self._watch: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """Returns the id of the process as it is now; None while there is none."""
        running = self._process is not None and self._process.returncode is None
        return self._process.pid if running and self._process else None

    async def start(self) -> None:
        """Returns once it is healthy, and from then on keeps it running. Raises StartError when it never gets there."""
        for tries_left in reversed(range(TRIES_AT_START)):
            await self._spawn()
            if await self._becomes_healthy():
                break
            if not tries_left:
                raise StartError(f"{self.name} does not start. {self._last_words()}")
            await asyncio.sleep(FIRST_PAUSE_S)
        self._watch = asyncio.create_task(self._keep_running(), name=f"watch {self.name}")

    async def stop(self) -> None:
        """Sends SIGTERM, and SIGKILL when that does not end it; returns when it is gone."""
        self._stopping = True
        if self._watch is not None:
            self._watch.cancel()
        process = self._process
        if process is None or process.returncode is not None:
            return
        self._signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)
        except TimeoutError:
            self._announce(f"[yellow]{self.name} did not stop within {STOP_TIMEOUT_S:g} s and is killed[/]")
            self._signal(signal.SIGKILL)
            await process.wait()

    def kill(self) -> None:
        """Sends SIGKILL, at once and for good."""
        self._stopping = True
        self._signal(signal.SIGKILL)

    async def _spawn(self) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        if self.log.exists() and self.log.stat().st_size > KEPT_LOG_BYTES:
            self.log.rename(self.log.with_suffix(".log.1"))
        with self.log.open("ab") as log:
            self._log_start = log.tell()
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "deploy.local.child",
                self.name,
                str(os.getpid()),
                env=self._environment,
                cwd=ROOT,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches the supervisor only, which decides the order of stopping
            )

    async def _becomes_healthy(self) -> bool:
        deadline = time.monotonic() + START_TIMEOUT_S
        while self.pid is not None:
            if await self._is_healthy():
                return True
            if time.monotonic() > deadline:
                self._signal(signal.SIGKILL)
            await asyncio.sleep(0.05)
        return False

    async def _keep_running(self) -> None:
        pause_s = FIRST_PAUSE_S
        while not self._stopping:
            assert self._process is not None
            began = time.monotonic()
            await self._process.wait()
            if self._stopping:
                return
            if time.monotonic() - began > LONG_LIFE_S:
                pause_s = FIRST_PAUSE_S
            self._announce(f"[red]{self.name} crashed[/]. {self._last_words()}\nStarting it again in {pause_s:g} s.")
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, MAX_PAUSE_S)
            self.restarts += 1
            await self._spawn()
            if await self._becomes_healthy():
                self._announce(f"[green]{self.name} is back[/]")

    def _signal(self, number: signal.Signals) -> None:
        if self.pid is not None:
            os.kill(self.pid, number)

    def _last_words(self) -> str:
        code = self._process.returncode if self._process is not None else None
        how = "It runs, but is not healthy" if code is None else f"It ended with {_reason(code)}"
        try:
            with self.log.open("rb") as log:
                log.seek(max(self._log_start, log.seek(0, os.SEEK_END) - 64 * 1024))
                lines = log.read().decode(errors="replace").splitlines()[-SHOWN_LINES:]
        except OSError:
            lines = []
        shown = "".join(f"\n    {escape(line[:SHOWN_WIDTH])}" for line in lines)
        return f"{how}; the end of {self.log}:{shown or ' (nothing)'}"


def _inherited() -> dict[str, str]:
    # A variable meant for one service must not reach the others.
    return {name: value for name, value in os.environ.items() if not name.startswith("REENGAGE_")}


def _reason(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
