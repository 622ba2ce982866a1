import asyncio
import os
import sys
from pathlib import Path

import asyncpg
import pytest

from deploy.local.embedded import MAX_SOCKET_PATH_BYTES, EmbeddedPostgres, EmbeddedPostgresError
from tests.support.ports import free_port

pytestmark = pytest.mark.process


async def ask(server: EmbeddedPostgres, query: str) -> object:
    connection = await asyncpg.connect(server.admin_dsn("postgres"))
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


async def test_durable_unless_told_otherwise(tmp_path: Path, postgres: EmbeddedPostgres) -> None:
    settings = (
        "SELECT string_agg(setting, ' ' ORDER BY name) FROM pg_settings WHERE name IN ('fsync', 'synchronous_commit')"
    )
    async with EmbeddedPostgres(tmp_path) as server:
        assert await ask(server, settings) == "on on"
    assert not server.running
    assert await ask(postgres, settings) == "off off"


@pytest.mark.crash
async def test_data_outlives_restart_and_kill(tmp_path: Path) -> None:
    async with EmbeddedPostgres(tmp_path) as server:
        await ask(server, "CREATE TABLE kept (n int)")
        for end in (server.stop, server.kill):
            await ask(server, "INSERT INTO kept VALUES (1)")
            await end()
            assert not server.running
            await server.start()
        assert await ask(server, "SELECT count(*) FROM kept") == 2


@pytest.mark.crash
async def test_parent_that_dies_takes_it_along(tmp_path: Path) -> None:
    program = f"""
import asyncio, pathlib, deploy.local.embedded as embedded
async def main():
    async with embedded.EmbeddedPostgres(pathlib.Path({str(tmp_path)!r})):
        print("up", flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE)
    assert parent.stdout is not None
    assert await parent.stdout.readline() == b"up\n"
    parent.kill()
    await parent.wait()
    async with EmbeddedPostgres(tmp_path) as server:
        assert await ask(server, "SELECT 1") == 1


async def test_stale_pid_file_is_no_obstacle(tmp_path: Path) -> None:
    async with EmbeddedPostgres(tmp_path):
        pass
    (tmp_path / "cluster" / "postmaster.pid").write_text(f"{os.getpid()}\n")
    async with EmbeddedPostgres(tmp_path) as server:
        assert await ask(server, "SELECT 1") == 1


async def test_long_path_and_tcp_with_password(tmp_path: Path) -> None:
    directory, port = tmp_path / ("x" * MAX_SOCKET_PATH_BYTES), free_port()
    async with EmbeddedPostgres(directory, port=port) as server:
        assert await ask(server, "SELECT 1") == 1
        password_file = directory / "password"
        assert password_file.stat().st_mode & 0o777 == 0o600
        by_tcp = f"postgresql://postgres:{{}}@127.0.0.1:{port}/postgres"
        connection = await asyncpg.connect(by_tcp.format(password_file.read_text()))
        await connection.close()
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(by_tcp.format("wrong"))


@pytest.mark.slow
async def test_taken_port_is_told(tmp_path: Path) -> None:
    port = free_port()
    async with EmbeddedPostgres(tmp_path / "first", port=port):
        with pytest.raises(EmbeddedPostgresError, match="Address already in use"):
            await EmbeddedPostgres(tmp_path / "second", port=port).start()
