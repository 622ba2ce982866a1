"""The gateway's HTTP face: finds the route of a request, and returns the response."""

import itertools
import os
from collections.abc import Callable, Mapping

import orjson
import structlog
from prometheus_client import CONTENT_TYPE_LATEST, Counter, Gauge, generate_latest

from libs.errors import ServiceError, Unavailable
from libs.worker import stuck_workers
from services.gateway.errors import Refused
from services.gateway.link_routes import SHORT_CLICK, as_link
from services.gateway.requests import JSON, MAX_QUERY_BYTES, Request, Response, Route, json_response
from services.gateway.settings import GatewaySettings

_WELCOME = {
    "service": "reengage gateway",
    "send": {
        "POST /track/json": "an install, event, session, update or identity link, or an array of up to 1,000",
        "POST /v1/cpi/identityLink.php": "an identity link",
        "GET /c/<tracker_id>": "a click; the response is a redirect",
        "GET /v1/cpi/click?campaign_id=<tracker_id>": "the same, as older links say it",
        "GET /track/impression?event=view&campaign_id=<tracker_id>": "a view",
    },
    "ask": {
        "GET /v1/cpi/get_attribution?kochava_app_id=&kochava_device_id=": "what a device is credited to",
        "GET /healthz": "whether this process lives, and which of its loops are stuck",
        "GET /readyz": "whether it has its settings",
    },
}

_responses = Counter("http_responses_total", "HTTP responses, by route and status.", ["route", "status"])
_in_flight = Gauge("http_in_flight", "HTTP requests under way.")
_log = structlog.get_logger()


class Gateway:
    """Routes for everybody: `routes` by their path, and health, for balancers that can ask nowhere else.

    `settings` returns the newest settings or raises `Unavailable`.
    """

    def __init__(
        self,
        routes: Mapping[str, Route],
        *,
        settings: Callable[[], GatewaySettings],
        max_requests: int = 2_000,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._settings = settings
        self._room = max_requests
        self.stopping = False
        """True: `/readyz` sends balancers elsewhere."""
        _in_flight.set_function(lambda: max_requests - self._room)
        self._request_ids = map(f"{random_bytes(6).hex()}-{{:x}}".format, itertools.count())
        self.health_routes = {
            "/healthz": Route(("GET", "HEAD"), self._healthz),
            "/readyz": Route(("GET", "HEAD"), self._readyz),
        }
        self._routes = {
            **routes,
            "/": Route(("GET", "HEAD"), self._welcome),
            **self.health_routes,
        }
        self._counters: dict[tuple[str, int], Counter] = {}

    async def respond(self, request: Request) -> Response:
        """Returns the response to a request."""
        request.take_id(next(self._request_ids))
        self._room -= 1
        try:
            path, response = await self._respond(request)
        finally:
            self._room += 1
        status, headers, body = response
        self._count(path, status)
        return status, [*headers, (b"x-request-id", request.request_id.encode())], body

    async def _respond(self, request: Request) -> tuple[str, Response]:
        """Returns the route's path, for the metrics, and the response."""
        path = request.path
        route = self._routes.get(path)
        if route is None and path.startswith(SHORT_CLICK):
            path, route = SHORT_CLICK, self._routes.get(SHORT_CLICK)
        elif route is None and (link := as_link(request)) is not None:
            path, route = link, self._routes.get(link)
        if route is None:
            refused = Refused(404, "NOT_FOUND", "there is nothing here; GET / says what there is")
            return "other", refused.response()
        try:
            if self._room < 0:
                raise Refused(503, "OVERLOADED", "too many requests at once", retry_after_s=1)  # noqa: TRY301
            if len(request.query) > MAX_QUERY_BYTES and not route.is_link:
                raise Refused(414, "QUERY_TOO_LONG", f"a query must be at most {MAX_QUERY_BYTES} bytes")  # noqa: TRY301
            return path, await _ask(route, request)
        except Refused as refused:
            response = refused.response()
        except ServiceError as error:
            response = Refused.by(error).response()
        except Exception as error:
            _log.error("http.failed", route=path, request_id=request.request_id, exc_info=error)
            response = Refused(500, "INTERNAL", f"internal error, request id {request.request_id}").response()
        return path, response

    def _count(self, path: str, status: int) -> None:
        try:
            self._counters[path, status].inc()
        except KeyError:
            counter = self._counters[path, status] = _responses.labels(path, str(status))
            counter.inc()

    async def _welcome(self, _: Request) -> Response:
        return 200, JSON, orjson.dumps(_WELCOME, option=orjson.OPT_INDENT_2)

    async def _healthz(self, _: Request) -> Response:
        return json_response({"status": "alive", "stuck_workers": stuck_workers()})

    async def _readyz(self, _: Request) -> Response:
        if self.stopping:
            raise Unavailable("STOPPING", "this process is about to stop")
        return json_response({"status": "ready", "settings_revision": self._settings().revision})


class Operators:
    """Routes for whoever runs the gateway: health and metrics, told however many requests are under way."""

    def __init__(self, gateway: Gateway) -> None:
        self._routes = {**gateway.health_routes, "/metrics": Route(("GET",), _metrics)}

    async def respond(self, request: Request) -> Response:
        """Returns the response to a request."""
        route = self._routes.get(request.path)
        if route is None:
            return Refused(404, "NOT_FOUND", f"here are {', '.join(self._routes)}").response()
        try:
            return await _ask(route, request)
        except ServiceError as error:
            return Refused.by(error).response()


async def _metrics(_: Request) -> Response:
    return 200, [(b"content-type", CONTENT_TYPE_LATEST.encode())], generate_latest()


async def _ask(route: Route, request: Request) -> Response:
    if request.method in route.methods:
        return await route.respond(request)
    status, headers, body = Refused(405, "METHOD_NOT_ALLOWED", f"use {route.methods[0]}").response()
    return status, [*headers, (b"allow", ", ".join(route.methods).encode())], body
