"""The HTTP listener: it starts, ends and fails as `libs.server` expects it to."""

import asyncio
import resource
import socket

import aiohttp
import pytest

from libs.server import Service, supervise
from services.gateway import server as server_module
from services.gateway.connections import Connections
from services.gateway.requests import Request, Response
from services.gateway.server import HttpServer
from tests.gateway.limits import LIMITS
from tests.support.eventually import until
from tests.support.ports import HOST, free_port


class Slow:
    """An application that responds when it is told to."""

    def __init__(self) -> None:
        self.stopping = False
        self.called, self.go = asyncio.Event(), asyncio.Event()

    async def respond(self, request: Request) -> Response:
        self.called.set()
        await self.go.wait()
        return 204, [], b""


async def test_it_stops_after_the_last_request_and_before_the_loops() -> None:
    app, stop, target, loop_ended = Slow(), asyncio.Event(), f"{HOST}:{free_port()}", asyncio.Event()
    is_ready = asyncio.Event()

    async def loop() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            loop_ended.set()

    async def ready() -> None:
        is_ready.set()

    server = HttpServer(app, target, LIMITS, drain_s=0, grace_s=10)
    running = asyncio.create_task(supervise(Service(server=server, loops={"one": loop}, ready=ready), stop))
    await is_ready.wait()
    async with aiohttp.ClientSession() as session:
        asking = asyncio.create_task(session.get(f"http://{target}/"))
        await app.called.wait()
        stop.set()
        await until(lambda: app.stopping)
        assert not loop_ended.is_set()
        app.go.set()
        response = await asking
        assert (response.status, response.headers["connection"]) == (204, "close")
    await running
    assert loop_ended.is_set()


async def test_it_stops_without_a_request_that_takes_too_long() -> None:
    app, target = Slow(), f"{HOST}:{free_port()}"
    server = HttpServer(app, target, LIMITS, drain_s=0, grace_s=0)
    await server.start()
    async with aiohttp.ClientSession() as session:
        asking = asyncio.create_task(session.get(f"http://{target}/"))
        await app.called.wait()
        await server.stop(drain=False)
        with pytest.raises(aiohttp.ClientConnectionError):
            await asking
    await server.ended()
    app.go.set()


async def test_once_started_it_listens() -> None:
    app, target = Slow(), f"{HOST}:{free_port()}"
    app.go.set()
    server = HttpServer(app, target, LIMITS, drain_s=0, grace_s=1)
    await server.start()
    async with aiohttp.ClientSession() as session:
        assert (await session.get(f"http://{target}/")).status == 204
    await server.stop(drain=False)
    await server.ended()


async def test_a_taken_port_is_said() -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        server = HttpServer(Slow(), f"{HOST}:{taken.getsockname()[1]}", LIMITS, drain_s=0, grace_s=1)
        with pytest.raises(OSError, match="is the port taken"):
            await server.start()


@pytest.mark.parametrize(
    ("soft", "hard", "wanted", "left"),
    [
        (5_000, 5_000, 4_000, 5_000),
        (1_024, 8_192, 4_000, 4_256),
        (1_024, 4_096, 3_840, 4_096),
        (1_024, -1, 4_000, 4_256),
    ],
    ids=["enough", "raised", "as many as there are", "no end of them"],
)
def test_there_are_no_more_connections_than_files(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, wanted: int, left: int
) -> None:
    limits = [(soft, hard)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, pair: limits.append(pair))
    assert server_module._files_for(4_000) == wanted
    assert limits[-1] == (left, hard)


async def test_a_listener_that_fails_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_connections: Connections) -> None:
        raise RuntimeError("broken")

    server = HttpServer(Slow(), f"{HOST}:0", LIMITS, drain_s=0, grace_s=1)
    monkeypatch.setattr(Connections, "end_overdue", fail)
    with pytest.raises(ExceptionGroup) as caught:
        await supervise(Service(server=server), asyncio.Event())
    assert [str(raised) for raised in caught.value.exceptions] == ["broken"]
