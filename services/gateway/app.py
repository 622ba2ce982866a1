"""The gateway's HTTP face, an ASGI application: which request is what, and what it is answered."""

import asyncio
import itertools
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

import grpc
import orjson
import structlog
from prometheus_client import CONTENT_TYPE_LATEST, Counter, Gauge, generate_latest

from libs.call_context import REQUEST_ID_HEADER
from libs.errors import InvalidArgument, ServiceError, Unavailable, Violation, from_rpc_error
from reengage.attribution.v1 import device_pb2
from reengage.attribution.v1 import service_pb2_grpc as attribution_grpc
from reengage.ingest.v1 import record_batch_pb2, record_pb2
from services.gateway.addresses import ClientAddresses
from services.gateway.asgi import MAX_QUERY_BYTES, Answer, Headers, Receive, Refused, Request, Scope, Send, json_answer
from services.gateway.batches import Batches, Outcome
from services.gateway.device_attribution import describe
from services.gateway.links import Visit, click_record, device_user_agent, impression_record, parse_query
from services.gateway.model import App
from services.gateway.rates import Rates
from services.gateway.redirect import destination, signature_holds
from services.gateway.refusals import Refusals
from services.gateway.settings import Settings
from services.gateway.translation.record import (
    UNKNOWN_APP,
    in_senders_words,
    is_too_deep,
    nul_fields,
    translate,
    unknown_app,
)

MAX_RECORDS = 1_000
_MAX_DEPTH = 16
_REJECTED = record_batch_pb2.RecordResult.STATUS_REJECTED
_SUCCESS: Answer = (200, [(b"content-type", b"application/json")], b'{"success":1}')
_TEXT: Headers = [(b"content-type", b"text/plain; charset=utf-8")]
_NO_STORE = (b"cache-control", b"no-store")
_NOWHERE: Answer = (404, _TEXT, b"This link's tracker has nowhere to lead to.\n")
_NO_CONTENT: Answer = (204, [_NO_STORE], b"")
_GIF: Answer = (
    200,
    [(b"content-type", b"image/gif"), _NO_STORE],
    (
        b"GIF89a\x01\x00\x01\x00\x80\x00\x00\x00\x00\x00\xff\xff\xff!\xf9\x04\x01\x00\x00\x00\x00,"
        b"\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02D\x01\x00;"
    ),
)
_WELCOME = {
    "service": "reengage gateway",
    "send": {
        "POST /track/json": "an install, event, session, update or identity link, or an array of up to 1,000",
        "POST /v1/cpi/identityLink.php": "an identity link",
        "GET /c/<tracker_id>": "a click, answered by a redirect",
        "GET /v1/cpi/click?campaign_id=<tracker_id>": "the same, as older links say it",
        "GET /track/impression?event=view&campaign_id=<tracker_id>": "a view",
    },
    "ask": {
        "GET /v1/cpi/get_attribution?kochava_app_id=&kochava_device_id=": "what a device is credited to",
        "GET /healthz": "whether this process lives",
        "GET /readyz": "whether it has its settings",
        "GET /metrics": "its metrics, for Prometheus",
    },
}

_answers = Counter("http_answers_total", "HTTP requests answered, by route and status.", ["route", "status"])
_in_flight = Gauge("http_in_flight", "HTTP requests being answered.")
_log = structlog.get_logger()

Respond: TypeAlias = Callable[[Request], Awaitable[Answer]]


class Gateway:
    """The ASGI application. `now_s` is the time in seconds since 1970.

    `settings` answers the newest settings or raises `Unavailable`; `records` and `engagements` take serialised records.
    """

    def __init__(
        self,
        *,
        settings: Callable[[], Settings],
        records: Batches,
        engagements: Batches,
        attribution: attribution_grpc.AttributionServiceStub,
        addresses: ClientAddresses,
        rates: Rates,
        max_requests: int = 2_000,
        now_s: Callable[[], float] = time.time,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._settings, self._records, self._engagements = settings, records, engagements
        self._attribution, self._addresses, self._rates = attribution, addresses, rates
        self._refusals = Refusals()
        self._room = max_requests
        self.stopping = False
        """Whether `/readyz` is to send balancers elsewhere."""
        _in_flight.set_function(lambda: max_requests - self._room)
        self._now_s, self._random_bytes = now_s, random_bytes
        self._entropy, self._entropy_at = b"", 0
        self._request_ids = map(f"{random_bytes(6).hex()}-{{:x}}".format, itertools.count())
        self._routes: dict[str, tuple[tuple[str, ...], Respond]] = {
            "/track/json": (("POST",), self._track),
            "/v1/cpi/click": (("GET", "HEAD"), self._click),
            "/track/impression": (("GET", "HEAD"), self._impression),
            "/v1/cpi/identityLink.php": (("POST",), self._identity_link),
            "/v1/cpi/get_attribution": (("GET",), self._get_attribution),
            "/": (("GET", "HEAD"), self._welcome),
            "/healthz": (("GET", "HEAD"), self._healthz),
            "/readyz": (("GET", "HEAD"), self._readyz),
            "/metrics": (("GET",), self._metrics),
        }
        self._counted: dict[tuple[str, int], Counter] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        request = Request(scope, receive, next(self._request_ids))
        self._room -= 1
        try:
            route, answer = await self._answer(request)
        finally:
            self._room += 1
        status, headers, body = answer
        self._count(route, status)
        await send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [
                    *headers,
                    (b"content-length", str(len(body)).encode()),
                    (b"x-request-id", request.request_id.encode()),
                ],
            }
        )
        await send({"type": "http.response.body", "body": b"" if request.method == "HEAD" else body})

    async def _answer(self, request: Request) -> tuple[str, Answer]:
        path = request.path
        found = self._routes.get(path)
        if found is None and path.startswith("/c/"):
            path, found = "/c/", (("GET", "HEAD"), self._short_click)
        try:
            if found is None:
                path = "other"
                raise Refused(404, "NOT_FOUND", "there is nothing here; GET / says what there is")  # noqa: TRY301
            methods, respond = found
            if request.method not in methods:
                allow = (b"allow", ", ".join(methods).encode())
                status, headers, body = Refused(405, "METHOD_NOT_ALLOWED", f"use {methods[0]}").answer()
                return path, (status, [*headers, allow], body)
            if self._room < 0:
                raise Refused(503, "OVERLOADED", "too many requests at once", retry_after_s=1)  # noqa: TRY301
            if len(request.query) > MAX_QUERY_BYTES:
                raise Refused(414, "QUERY_TOO_LONG", f"a query must be at most {MAX_QUERY_BYTES} bytes")  # noqa: TRY301
            return path, await respond(request)
        except Refused as refused:
            answer = refused.answer()
        except ServiceError as error:
            answer = Refused.by(error).answer()
        except Exception as error:
            _log.error("http.failed", route=path, request_id=request.request_id, exc_info=error)
            answer = Refused(500, "INTERNAL", f"internal error, request id {request.request_id}").answer()
        return path, answer

    def _count(self, route: str, status: int) -> None:
        try:
            self._counted[route, status].inc()
        except KeyError:
            counter = self._counted[route, status] = _answers.labels(route, str(status))
            counter.inc()

    # Records.

    async def _track(self, request: Request) -> Answer:
        value, may_hold_nul = await self._read_json(request)
        if isinstance(value, list):
            return await self._track_array(value, request, may_hold_nul=may_hold_nul)
        if value.get("action") == "get_attribution":
            device_id = value.get("kochava_device_id") or _data_of(value).get("kochava_device_id")
            return await self._device_attribution(value.get("kochava_app_id"), device_id, request)
        return await self._track_one(value, request, may_hold_nul=may_hold_nul)

    async def _identity_link(self, request: Request) -> Answer:
        value, may_hold_nul = await self._read_json(request)
        if isinstance(value, list):
            refused = Refused(400, "INVALID_RECORD", "must be a JSON object")
            self._refusals.note(refused, len(value))
            raise refused
        return await self._track_one({**value, "action": "identityLink"}, request, may_hold_nul=may_hold_nul)

    async def _read_json(self, request: Request) -> tuple[dict[str, Any] | list[Any], bool]:
        """The body, and whether there may be a NUL in its texts."""
        try:
            body = await request.body()
            return _parse_json(body), rb"\u0000" in body
        except Refused as refused:
            self._refusals.note(refused)
            raise

    async def _track_one(self, value: Mapping[str, Any], request: Request, *, may_hold_nul: bool) -> Answer:
        try:
            settings = self._settings()
            app = _app_of(value, settings)
            if app is not None:
                self._rates.take(app)
            record = _translated(value, settings, may_hold_nul=may_hold_nul)
            result = _result(await self._records.add(record, request.request_id))
        except (Refused, ServiceError) as error:
            self._refusals.note(error)
            raise
        refused = _refusal(value, result)
        if refused is not None:
            raise refused
        return _SUCCESS

    async def _track_array(self, values: list[Any], request: Request, *, may_hold_nul: bool) -> Answer:
        """200 with a result per element once each has its verdict; an error for all when they could not be stored.

        Then the whole array is to be sent again: what was stored of it is known as a repeat.
        """
        try:
            results = await self._results(values, request, may_hold_nul=may_hold_nul)
        except (Refused, ServiceError) as error:
            self._refusals.note(error, len(values))
            raise
        return json_answer([{"success": 1} if refused is None else refused.as_json() for refused in results])

    async def _results(self, values: list[Any], request: Request, *, may_hold_nul: bool) -> list[Refused | None]:
        if len(values) > MAX_RECORDS:
            raise Refused(400, "BATCH_TOO_LARGE", f"at most {MAX_RECORDS} records at once")
        settings = self._settings()
        by_app: dict[str, tuple[App, int]] = {}
        for value in values:
            if (app := _app_of(value, settings)) is not None:
                by_app[app.app_id] = app, by_app.get(app.app_id, (app, 0))[1] + 1
        for app, count in by_app.values():
            self._rates.take(app, count)
        outcomes: list[asyncio.Future[Outcome] | Refused] = []
        for value in values:
            try:
                record = _translated(value, settings, may_hold_nul=may_hold_nul)
                outcomes.append(self._records.add(record, request.request_id))
            except Refused as wrong:
                self._refusals.note(wrong)
                outcomes.append(wrong)
        return [
            outcome if isinstance(outcome, Refused) else _refusal(value, _result(await outcome))
            for value, outcome in zip(values, outcomes, strict=True)
        ]

    # Links.

    async def _click(self, request: Request) -> Answer:
        parameters = parse_query(request.query)
        return await self._follow(parameters.get("campaign_id", ""), parameters, request)

    async def _short_click(self, request: Request) -> Answer:
        return await self._follow(request.path[3:], parse_query(request.query), request)

    async def _follow(self, tracker_id: str, parameters: dict[str, str], request: Request) -> Answer:
        tracker = self._settings().tracker(tracker_id)
        if tracker is None:
            return 404, _TEXT, b"This link belongs to no tracker that is known here.\n"
        visit = self._visit(request)
        click_id = self._new_id(visit.time_s)
        url = destination(tracker, click_id, parameters, device_user_agent(parameters, visit))
        # Someone clicked, even where that leads nowhere.
        status, headers, body = _NOWHERE if url is None else (302, [(b"location", url.encode("ascii", "ignore"))], b"")
        headers = [*headers, _NO_STORE]
        # A link checker asks with HEAD; nobody clicked.
        if tracker.app.live and request.method == "GET":
            valid = signature_holds(
                tracker, request.raw_path + b"?" + request.query, parameters.get("expires", ""), visit.time_s
            )
            record = click_record(tracker, parameters, visit, click_id=click_id, invalid=not valid)
            await self._keep(record, request, headers)
        return status, headers, body

    async def _impression(self, request: Request) -> Answer:
        parameters = parse_query(request.query)
        tracker = self._settings().tracker(parameters.get("campaign_id", ""))
        if tracker is None:
            return 404, _TEXT, b"This link belongs to no tracker that is known here.\n"
        status, headers, body = _GIF if b"image/" in request.headers.get(b"accept", b"") else _NO_CONTENT
        if tracker.app.live and request.method == "GET":
            visit = self._visit(request)
            record = impression_record(tracker, parameters, visit, record_id=self._new_id(visit.time_s))
            headers = list(headers)
            await self._keep(record, request, headers)
        return status, headers, body

    async def _keep(self, record: record_pb2.Record, request: Request, headers: Headers) -> None:
        """Keep an engagement before its answer goes out. The visitor goes on even if it is lost, but never silently."""
        try:
            outcome = await self._engagements.add(record.SerializeToString(), request.request_id)
        except ServiceError as error:
            outcome = error
        if isinstance(outcome, ServiceError):
            headers.append((b"x-engagement", b"lost"))

    def _visit(self, request: Request) -> Visit:
        return Visit(
            ip_address=self._addresses.client(request.peer, request.header(b"x-forwarded-for")),
            user_agent=request.header(b"user-agent"),
            time_s=self._now_s(),
        )

    def _new_id(self, time_s: float) -> str:
        """128 bits as hex: 48 of milliseconds, so that ids sort by time, and 80 random."""
        if self._entropy_at + 10 > len(self._entropy):
            self._entropy, self._entropy_at = self._random_bytes(4_000), 0  # a system call for 400 ids
        self._entropy_at += 10
        return f"{int(time_s * 1000):012x}{self._entropy[self._entropy_at - 10 : self._entropy_at].hex()}"

    # Questions.

    async def _get_attribution(self, request: Request) -> Answer:
        parameters = parse_query(request.query)
        return await self._device_attribution(
            parameters.get("kochava_app_id"), parameters.get("kochava_device_id"), request
        )

    async def _device_attribution(self, app_id: Any, device_id: Any, request: Request) -> Answer:
        named = {"kochava_app_id": app_id, "kochava_device_id": device_id}
        wrong = [
            Violation(field=name, reason="REQUIRED", description="must be text of at most 256 characters")
            for name, value in named.items()
            if not isinstance(value, str) or not value or len(value) > 256 or "\0" in value
        ]
        if wrong:
            raise InvalidArgument(wrong)
        settings = self._settings()
        app = settings.app(app_id)
        if app is None:
            raise _refused([unknown_app("kochava_app_id")])
        self._rates.take(app)
        try:
            found = await self._attribution.GetDeviceAttribution(
                device_pb2.GetDeviceAttributionRequest(app_id=app_id, device_id=device_id),
                metadata=((REQUEST_ID_HEADER, request.request_id),),
            )
        except grpc.aio.AioRpcError as error:
            details = from_rpc_error(error)
            if details.code is not grpc.StatusCode.NOT_FOUND:
                raise Unavailable(
                    "ATTRIBUTION_UNAVAILABLE", "attribution does not answer just now", retry_after_s=1.0
                ) from None
            found = None
        return json_answer(describe(device_id, found, settings.names_of))

    async def _welcome(self, _: Request) -> Answer:
        return 200, [(b"content-type", b"application/json")], orjson.dumps(_WELCOME, option=orjson.OPT_INDENT_2)

    async def _healthz(self, _: Request) -> Answer:
        return json_answer({"status": "alive"})

    async def _readyz(self, _: Request) -> Answer:
        if self.stopping:
            raise Unavailable("STOPPING", "this process is about to stop")
        return json_answer({"status": "ready", "settings_revision": self._settings().revision})

    async def _metrics(self, _: Request) -> Answer:
        return 200, [(b"content-type", CONTENT_TYPE_LATEST.encode())], generate_latest()


def _parse_json(body: bytes) -> dict[str, Any] | list[Any]:
    """An object or array. Raises Refused `INVALID_JSON`: wrong UTF-8 or JSON, nested too deep."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Refused(400, "INVALID_JSON", f"line {error.lineno}, column {error.colno}: {error.msg}") from None
    if not isinstance(value, dict | list):
        raise Refused(400, "INVALID_JSON", "must be an object or an array of objects")
    # Most bodies are spared a walk: as many brackets are needed as there are levels.
    if body.count(b"{") + body.count(b"[") > _MAX_DEPTH and is_too_deep(value, _MAX_DEPTH):
        raise Refused(400, "INVALID_JSON", f"at most {_MAX_DEPTH} levels of objects and arrays")
    return value


def _data_of(value: Mapping[str, Any]) -> Mapping[str, Any]:
    data = value.get("data")
    return data if isinstance(data, dict) else {}


def _app_of(value: Any, settings: Settings) -> App | None:
    app_id = value.get("kochava_app_id") if isinstance(value, dict) else None
    if app_id is None and isinstance(value, dict):
        app_id = _data_of(value).get("kochava_app_id")
    return settings.app(app_id) if isinstance(app_id, str) else None


def _translated(value: Any, settings: Settings, *, may_hold_nul: bool) -> bytes:
    """The record, serialised. Raises Refused with every wrong field that can be known here."""
    if not isinstance(value, dict):
        raise Refused(400, "INVALID_RECORD", "must be an object")
    paths = nul_fields(value) if may_hold_nul else ()
    wrong = [Violation(field=path, reason="INVALID_TEXT", description="must not contain NUL") for path in paths]
    try:
        return translate(value, settings.app, wrong).SerializeToString()
    except InvalidArgument as error:
        raise Refused.by(error) from None


def _result(outcome: Outcome) -> record_batch_pb2.RecordResult:
    if isinstance(outcome, ServiceError):
        raise outcome
    return outcome


def _refusal(value: Mapping[str, Any], result: record_batch_pb2.RecordResult) -> Refused | None:
    """What ingest refused a record with, in its sender's words; None for one that is stored."""
    if result.status != _REJECTED:
        return None
    found = in_senders_words(
        value, (Violation(field=v.field, reason=v.reason, description=v.description) for v in result.violations)
    )
    return _refused(found)


def _refused(wrong: list[Violation]) -> Refused:
    """404 when the app is all that is wrong, else 400."""
    error = InvalidArgument(wrong)
    if all(violation.reason == UNKNOWN_APP for violation in wrong):
        return Refused(404, UNKNOWN_APP, error.message, fields=wrong)
    return Refused.by(error)
