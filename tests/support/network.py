"""An ad network of a test's own, which hears what it is told."""

import collections
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from deploy.local.suite import HOST


class Network:
    """An ad network that is told by GET /postback?sent=…: `told` has the delivery ids by `sent`.

    While it `is_broken` it responds 503, and hears nothing.
    """

    def __init__(self) -> None:
        self.told: dict[str, set[str]] = collections.defaultdict(set)
        self.is_broken = False

    @asynccontextmanager
    async def serving(self, port: int) -> AsyncIterator[None]:
        """Serves on a port of this machine."""
        app = web.Application()
        app.router.add_get("/postback", self._receive)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, HOST, port).start()
        try:
            yield
        finally:
            await runner.cleanup()

    async def _receive(self, request: web.Request) -> web.Response:
        if self.is_broken:
            return web.Response(status=503)
        self.told[request.query["sent"]].add(request.headers["Idempotency-Key"])
        return web.Response()
