"""The HTTP listener: it starts, ends and fails as `libs.server` expects it to."""

import asyncio
import socket

import aiohttp
import pytest

from libs.server import Service, supervise
from services.gateway.asgi import Receive, Scope, Send
from services.gateway.server import HttpServer
from tests.support.eventually import until
from tests.support.ports import HOST, free_port


class Slow:
    """An application that responds when it is told to."""

    def __init__(self) -> None:
        self.stopping = False
        self.called, self.go = asyncio.Event(), asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.called.set()
        await self.go.wait()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})


async def test_it_stops_after_the_last_request_and_before_the_loops() -> None:
    app, stop, target, loop_ended = Slow(), asyncio.Event(), f"{HOST}:{free_port()}", asyncio.Event()

    async def loop() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            loop_ended.set()

    server = HttpServer(app, target, drain_s=0, grace_s=10)
    running = asyncio.create_task(supervise(Service(server=server, loops={"one": loop}), stop))
    await until(lambda: server._server.started)
    async with aiohttp.ClientSession() as session:
        asking = asyncio.create_task(session.get(f"http://{target}/"))
        await app.called.wait()
        stop.set()
        await until(lambda: app.stopping)
        assert not loop_ended.is_set()
        app.go.set()
        assert (await asking).status == 204
    await running
    assert loop_ended.is_set()


async def test_once_started_it_listens() -> None:
    app, target = Slow(), f"{HOST}:{free_port()}"
    app.go.set()
    server = HttpServer(app, target, drain_s=0, grace_s=1)
    await server.start()
    async with aiohttp.ClientSession() as session:
        assert (await session.get(f"http://{target}/")).status == 204
    await server.stop(drain=False)
    await server.ended()


async def test_a_taken_port_is_said() -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        server = HttpServer(Slow(), f"{HOST}:{taken.getsockname()[1]}", drain_s=0, grace_s=1)
        with pytest.raises(OSError, match="is the port taken"):
            await server.start()


@pytest.mark.parametrize("error", [RuntimeError("broken"), None], ids=["it fails", "it ends by itself"])
async def test_a_listener_that_does_not_serve_ends_the_process(
    monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    is_ready = asyncio.Event()

    async def ready() -> None:
        is_ready.set()

    async def main_loop() -> None:
        await is_ready.wait()
        if error is not None:
            raise error

    server = HttpServer(Slow(), f"{HOST}:0", drain_s=0, grace_s=1)
    monkeypatch.setattr(server._server, "main_loop", main_loop)
    with pytest.raises(ExceptionGroup) as caught:
        await supervise(Service(server=server, ready=ready), asyncio.Event())
    assert [str(raised) for raised in caught.value.exceptions] == [
        "broken" if error is not None else "the HTTP server ended without being told to"
    ]
