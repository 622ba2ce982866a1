"""A local ad network: takes postbacks, keeps the newest, and can be told to misbehave."""

import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

from aiohttp import web

from deploy.local.x_network import PATH, LocalX

KEPT = 200
REMEMBERED = 100_000

Answer = Callable[[int], web.Response]
"""The answer to the n-th attempt (1, 2, …) at one delivery."""


def takes(_attempt: int) -> web.Response:
    """Answers 200, always."""
    return web.json_response({"ok": True})


def fails_first(attempt: int) -> web.Response:
    """Answers 500 to the first attempt, 200 afterwards."""
    return web.json_response({"error": "try later"}, status=500) if attempt == 1 else takes(attempt)


def limits_first(attempt: int) -> web.Response:
    """Answers 429 with `Retry-After: 1` to the first attempt, 200 afterwards."""
    return web.Response(status=429, headers={"Retry-After": "1"}) if attempt == 1 else takes(attempt)


def refuses(_attempt: int) -> web.Response:
    """Answers 400, always."""
    return web.json_response({"error": "unknown conversion"}, status=400)


class LocalNetwork:
    """A network that answers `/postbacks/<network>` as `answers[network]` says, 200 by default; `/` lists what came.

    `x`, a self-attributing network, answers conversion events under `/x`.
    """

    def __init__(self, answers: Mapping[str, Answer] | None = None) -> None:
        self.x = LocalX()
        self.attempts: Counter[tuple[str, str]] = Counter()
        """Attempts seen, by network and delivery id, of the last 100,000 deliveries."""
        self._answers = dict(answers or {})
        self._newest: deque[dict[str, object]] = deque(maxlen=KEPT)

    @asynccontextmanager
    async def serving(self, host: str, port: int) -> AsyncIterator[None]:
        """Listens for as long as the context lasts."""
        app = web.Application()
        app.router.add_get("/", self._list)
        app.router.add_route("*", "/postbacks/{network}", self._take)
        app.router.add_post(f"/x{PATH}", self._ask_x)
        # Whoever no longer waits is not answered; nor is the end waited for, as of X when it is silent.
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1)
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port).start()
            yield
        finally:
            await runner.cleanup()

    async def _take(self, request: web.Request) -> web.Response:
        network = request.match_info["network"]
        answer = self._answers.get(network, takes)(self._attempt(network, request))
        await self._keep(network, request, answer)
        return answer

    async def _ask_x(self, request: web.Request) -> web.StreamResponse:
        self._attempt("X", request)
        answer = await self.x.handle(request)
        await self._keep("X", request, answer)
        return answer

    def _attempt(self, network: str, request: web.Request) -> int:
        """Returns the number of this attempt at a delivery."""
        delivery = (network, _delivery_id(request))
        self.attempts[delivery] += 1
        if len(self.attempts) > REMEMBERED:
            del self.attempts[next(iter(self.attempts))]
        return self.attempts[delivery]

    async def _keep(self, network: str, request: web.Request, answer: web.StreamResponse) -> None:
        self._newest.appendleft(
            {
                "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "network": network,
                "delivery_id": _delivery_id(request),
                "method": request.method,
                "url": str(request.rel_url),
                "body": await request.text(),
                "answered": answer.status,
            }
        )

    async def _list(self, _request: web.Request) -> web.Response:
        return web.json_response({"newest_first": list(self._newest)})


def _delivery_id(request: web.Request) -> str:
    return request.headers.get("Idempotency-Key", "")
