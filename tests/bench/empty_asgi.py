"""An empty ASGI application on the gateway's own server: what HTTP in Python can do at most. Arguments: listen."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from libs.server import Service, run
from services.gateway.asgi import Receive, Scope, Send
from services.gateway.server import HttpServer


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Configuration of nothing that matters."""

    log_level: str = "warning"


class Empty:
    """An application that redirects everyone to the same place."""

    stopping = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Redirects."""
        headers = [(b"location", b"https://play.google.com/"), (b"content-length", b"0")]
        await send({"type": "http.response.start", "status": 302, "headers": headers})
        await send({"type": "http.response.body", "body": b""})


@asynccontextmanager
async def wire(_: Config) -> AsyncIterator[Service]:
    """Opens nothing."""
    yield Service(server=HttpServer(Empty(), sys.argv[1], drain_s=0, grace_s=1))


if __name__ == "__main__":
    run("empty", Config, wire)
