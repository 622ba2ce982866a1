"""An empty ASGI application on the gateway's own server: what HTTP in Python can do at most. Arguments: listen."""

import sys

import uvloop

from services.gateway.asgi import Receive, Scope, Send
from services.gateway.server import serve_http


class Empty:
    """Redirects everyone to the same place."""

    stopping = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Redirect."""
        headers = [(b"location", b"https://play.google.com/"), (b"content-length", b"0")]
        await send({"type": "http.response.start", "status": 302, "headers": headers})
        await send({"type": "http.response.body", "body": b""})


if __name__ == "__main__":
    uvloop.run(serve_http(Empty(), sys.argv[1], drain_s=0, grace_s=1))
