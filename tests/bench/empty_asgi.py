"""An empty ASGI application on uvicorn, as one serves HTTP in Python. Arguments: listen."""

import sys
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import uvicorn

_Message: TypeAlias = dict[str, Any]


async def redirect(
    _scope: _Message, _receive: Callable[[], Awaitable[_Message]], send: Callable[[_Message], Awaitable[None]]
) -> None:
    """Redirects everyone to the same place."""
    headers = [(b"location", b"https://play.google.com/"), (b"content-length", b"0")]
    await send({"type": "http.response.start", "status": 302, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


if __name__ == "__main__":
    host, _, port = sys.argv[1].rpartition(":")
    uvicorn.run(redirect, host=host, port=int(port), ws="none", lifespan="off", access_log=False, log_level="warning")
