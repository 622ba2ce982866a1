"""The gateway's HTTP face: finds the route of a request, and returns the response."""

import itertools
import os
from collections.abc import Callable, Mapping, Sequence

import orjson
import structlog
from prometheus_client import CONTENT_TYPE_LATEST, Counter, Gauge, generate_latest

from libs.errors import ServiceError, Unavailable
from libs.worker import stuck_workers
from services.gateway.errors import Refused
from services.gateway.link_routes import SHORT_CLICK, as_link
from services.gateway.model import App
from services.gateway.requests import JSON, MAX_QUERY_BYTES, Headers, Request, Response, Route, json_response
from services.gateway.settings import GatewaySettings

_WELCOME = {
    "service": "reengage gateway",
    "send": {
        "POST /track/json": "an install, event, session, update or identity link, or an array of up to 1,000",
        "POST /v1/cpi/identityLink.php": "an identity link",
        "POST /track/kvinit": "how an SDK is to start",
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

_ALLOW_HEADERS = (
    b"access-control-allow-headers",
    b"content-type, content-encoding, kochava-api-key, kochava-auth-token, x-request-id",
)
_EXPOSE_HEADERS = (b"access-control-expose-headers", b"retry-after, x-request-id")
_MAX_AGE = (b"access-control-max-age", b"600")

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
        headers = [*headers, (b"x-request-id", request.request_id.encode())]
        route = self._routes.get(path)
        if route is not None and route.for_pages:
            headers += self._for_pages(request, route)
        return status, headers, body

    def _for_pages(self, request: Request, route: Route) -> Headers:
        """Returns the headers that let a page's script read the response (CORS), never with its credentials."""
        vary = (b"vary", b"origin")
        origin = request.headers.get(b"origin")
        if origin is None or not self._allows(origin, request.apps):
            return [vary]
        allowed: Headers = [vary, (b"access-control-allow-origin", origin)]
        if request.method == "OPTIONS":
            methods = ", ".join(route.methods).encode()
            return [*allowed, (b"access-control-allow-methods", methods), _ALLOW_HEADERS, _MAX_AGE]
        return [*allowed, _EXPOSE_HEADERS]

    def _allows(self, origin: bytes, apps: Sequence[App]) -> bool:
        try:
            return self._settings().allows_origin(origin.decode("latin-1"), apps)
        except Unavailable:
            return False

    def _find(self, request: Request) -> tuple[str, Route | None]:
        """Returns the path of the route that a request means, and the route; None if it means none."""
        path = request.path
        route = self._routes.get(path)
        if route is None and path.endswith("/") and not path.startswith(SHORT_CLICK):
            path = path.rstrip("/")
            route = self._routes.get(path)
        if route is None and path.startswith(SHORT_CLICK):
            path, route = SHORT_CLICK, self._routes.get(SHORT_CLICK)
        elif route is None and (link := as_link(request)) is not None:
            path, route = link, self._routes.get(link)
        return path, route

    async def _respond(self, request: Request) -> tuple[str, Response]:
        """Returns the route's path, for the metrics, and the response."""
        if request.path == "*" and request.method == "OPTIONS":
            return "*", (204, [(b"allow", b"GET, HEAD, POST, OPTIONS")], b"")
        path, route = self._find(request)
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
        self._routes = {**gateway.health_routes, "/metrics": Route(("GET", "HEAD"), _metrics)}

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
    allow = (b"allow", ", ".join((*route.methods, "OPTIONS")).encode())
    if request.method == "OPTIONS":
        return 204, [allow], b""
    status, headers, body = Refused(405, "METHOD_NOT_ALLOWED", f"use {route.methods[0]}").response()
    return status, [*headers, allow], body
