"""The routes of ad links: clicks (`/c/…` and `/v1/cpi/click`), which are redirected, and impressions."""

import os
import time
from collections.abc import Callable
from contextlib import suppress

import prometheus_client

from libs.errors import ResourceExhausted, ServiceError
from libs.rates import RATE_LIMITED, Rates
from reengage.ingest.v1 import record_batch_pb2, record_pb2
from services.gateway.addresses import ClientAddresses
from services.gateway.batches import Batches
from services.gateway.links import (
    Visit,
    click_record,
    device_user_agent,
    impression_record,
    is_prefetch,
    parse_query,
    read_client_hints,
    read_link,
)
from services.gateway.model import App, Platform, Tracker
from services.gateway.opening import opening_page
from services.gateway.redirect import Lead, intent_url, lead, platform_of, signature_holds, signed_part
from services.gateway.refusals import RefusalTrace
from services.gateway.requests import MAX_QUERY_BYTES, TEXT, Headers, Request, Response, Route
from services.gateway.settings import GatewaySettings

_MAX_LISTED_PER_SECOND = 10
"""Of an app, as many as ingest lists."""
SHORT_CLICK = "/c/"
"""The beginning of a path that goes on with the tracker's id."""
_CLICK = "/v1/cpi/click"
_NO_STORE = (b"cache-control", b"no-store")
_ACCEPT_CH = (b"accept-ch", b"Sec-CH-UA-Model, Sec-CH-UA-Platform-Version")
"""Asks for what browsers have frozen in their user agent, from the person's next click on (A5); the platform comes
unasked. Without `Critical-CH`, by which they would walk the way to here again: two clicks for every network on it."""
_UNKNOWN: Response = (404, TEXT, b"This link belongs to no tracker that is known here.\n")
_NOWHERE: Response = (404, TEXT, b"This link's tracker has nowhere to lead to.\n")
_REJECTED = record_batch_pb2.RecordResult.STATUS_REJECTED
_UNKNOWN_TRACKER, _UNKNOWN_APP = "UNKNOWN_TRACKER", "UNKNOWN_APP"
_NO_CONTENT: Response = (204, [_NO_STORE], b"")
_GIF: Response = (
    200,
    [(b"content-type", b"image/gif"), _NO_STORE],
    (
        b"GIF89a\x01\x00\x01\x00\x80\x00\x00\x00\x00\x00\xff\xff\xff!\xf9\x04\x01\x00\x00\x00\x00,"
        b"\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02D\x01\x00;"
    ),
)


_INVALIDITIES = {number: name.removeprefix("INVALIDITY_") for name, number in record_pb2.Invalidity.items()}

_not_kept = prometheus_client.Counter(
    "gateway_engagements_not_kept_total",
    "Clicks and impressions of links that name no tracker, or one of an archived app, by reason.",
    ["reason"],
)


def as_link(request: Request) -> str | None:
    """Returns the path of the route that a request of no other route means; what was changed on its way is put right.

    None if it means no link.
    """
    read = read_link(request.raw_path, request.query)
    if read is None:
        return None
    path, name, request.query = read
    request.path = f"{path}{name}"
    return path


class LinkRoutes:
    """The routes of links: `engagements` keeps what came, and clicks are led on. `now_s` is in seconds since 1970.

    Of what is over the rate of its app, `refused` gets a few to be listed; all of it is counted.
    `settings` returns the newest settings or raises `Unavailable`.
    """

    def __init__(
        self,
        *,
        settings: Callable[[], GatewaySettings],
        engagements: Batches,
        refused: Batches,
        rates: Rates,
        addresses: ClientAddresses,
        now_s: Callable[[], float] = time.time,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._settings, self._engagements, self._addresses = settings, engagements, addresses
        self._refused, self._rates, self._listed, self._refusals = refused, rates, Rates(time.monotonic), RefusalTrace()
        self._now_s, self._random_bytes = now_s, random_bytes
        self._entropy, self._entropy_at = b"", 0
        self.routes = {
            SHORT_CLICK: Route(("GET", "HEAD"), self._short_click, is_link=True),
            _CLICK: Route(("GET", "HEAD"), self._click, is_link=True),
            "/track/impression": Route(("GET", "HEAD"), self._impression, is_link=True),
        }

    async def _click(self, request: Request) -> Response:
        parameters = _parameters(request.query)
        tracker = self._find(parameters.get("campaign_id", ""))
        return await self._follow(tracker, parameters, _CLICK, request)

    async def _short_click(self, request: Request) -> Response:
        name = request.path[len(SHORT_CLICK) :]
        tracker = self._settings().tracker(name)
        if tracker is None:
            if (read := read_link(request.raw_path, request.query)) is not None:
                _, name, request.query = read
            tracker = self._find(name)
        return await self._follow(tracker, _parameters(request.query), SHORT_CLICK, request)

    def _find(self, name: str) -> Tracker | None:
        settings = self._settings()
        return settings.tracker(name) or settings.find_tracker(name)

    async def _follow(
        self, tracker: Tracker | None, parameters: dict[str, str], route: str, request: Request
    ) -> Response:
        """Returns where a click leads, once it is kept."""
        visit = self._visit(request)
        if tracker is None:
            return self._lead_away(request, visit)
        is_signed = True
        if tracker.validation_key:
            made_path = f"{route}{tracker.tracker_id if route == SHORT_CLICK else ''}".encode()
            is_signed = signature_holds(tracker, request.raw_path, made_path, request.query, visit.time_s)
            parameters = _parameters(signed_part(request.query))
        click_id, user_agent = self._new_id(visit.time_s), device_user_agent(parameters, visit)
        # Someone clicked, even where that leads nowhere.
        status, headers, body = _way(lead(tracker, click_id, parameters, user_agent), tracker, user_agent)
        # A link checker asks with HEAD; nobody clicked.
        if request.method == "GET":
            record = click_record(tracker, parameters, visit, click_id=click_id, is_signed=is_signed)
            try:
                sign = await self._keep(tracker.app, record, request)
            except ServiceError as error:
                if record.click.is_ping:
                    raise
                # The person goes on all the same.
                sign = _sign("refused", RATE_LIMITED) if error.reason == RATE_LIMITED else b"lost"
            if sign or record.click.invalidity:
                headers.append((b"x-engagement", sign or _sign("invalid", _INVALIDITIES[record.click.invalidity])))
        return status, headers, body

    def _lead_away(self, request: Request, visit: Visit) -> Response:
        """Returns where a link of no tracker leads: to the fallback URL of an app whose links are on its host.

        That is one of the device's platform, if there is one.
        """
        apps = [app for app in self._settings().apps_on(request.host) if app.fallback_url]
        platform = platform_of(visit.user_agent)
        app = next((app for app in apps if app.platform is platform), next(iter(apps), None))
        status, headers, body = _UNKNOWN
        if app is not None:
            status, headers, body = 302, [(b"location", app.fallback_url.encode())], b""
        if request.method == "GET":
            _not_kept.labels(_UNKNOWN_TRACKER).inc()
        return status, [*headers, _NO_STORE, (b"x-engagement", _sign("refused", _UNKNOWN_TRACKER))], body

    async def _impression(self, request: Request) -> Response:
        parameters = _parameters(request.query)
        tracker = self._find(parameters.get("campaign_id", ""))
        if tracker is None:
            if request.method == "GET":
                _not_kept.labels(_UNKNOWN_TRACKER).inc()
            return _UNKNOWN
        status, headers, body = _GIF if b"image/" in request.headers.get(b"accept", b"") else _NO_CONTENT
        if request.method == "GET":
            visit = self._visit(request)
            record = impression_record(tracker, parameters, visit, record_id=self._new_id(visit.time_s))
            if sign := await self._keep(tracker.app, record, request):
                headers = [*headers, (b"x-engagement", sign)]
        return status, headers, body

    async def _keep(self, app: App, record: record_pb2.Record, request: Request) -> bytes:
        """Keeps an engagement before its response goes out; returns the sign that it was refused, if it was.

        Raises ServiceError when it is lost, or over the rate of its app: servers ask again.
        """
        if not app.live:
            _not_kept.labels(_UNKNOWN_APP).inc()
            return _sign("refused", _UNKNOWN_APP)
        content = record.SerializeToString()
        try:
            # Apart from each other, and from what senders send: whose SDK or views are too many loses no click.
            self._rates.take(f"{record.WhichOneof('kind')}:{app.app_id}", app.records_per_second)
        except ResourceExhausted as error:
            self._refusals.note(error)
            self._list(content, app, request)
            raise
        outcome = await self._engagements.add(content, request.request_id)
        if isinstance(outcome, ServiceError):
            raise outcome
        if outcome.status != _REJECTED:
            return b""
        return _sign("refused", *(wrong.reason for wrong in outcome.violations[:4]))

    def _list(self, content: bytes, app: App, request: Request) -> None:
        """Has an engagement listed as refused, unless there are too many."""
        with suppress(ResourceExhausted):
            self._listed.take(app.app_id, _MAX_LISTED_PER_SECOND)
            _ = self._refused.add(content, request.request_id)

    def _visit(self, request: Request) -> Visit:
        return Visit(
            ip_address=self._addresses.client(request.peer, request.header(b"x-forwarded-for")),
            user_agent=request.header(b"user-agent"),
            time_s=self._now_s(),
            is_prefetch=is_prefetch(request.headers),
            client_hints=read_client_hints(request.headers),
        )

    def _new_id(self, time_s: float) -> str:
        """Returns 128 bits as hex: 48 of milliseconds, so that ids sort by time, and 80 random."""
        if self._entropy_at + 10 > len(self._entropy):
            self._entropy, self._entropy_at = self._random_bytes(4_000), 0  # a system call for 400 ids
        self._entropy_at += 10
        return f"{int(time_s * 1000):012x}{self._entropy[self._entropy_at - 10 : self._entropy_at].hex()}"


def _parameters(query: bytes) -> dict[str, str]:
    """Returns the parameters of a link; of a query that is too long what stands at its beginning."""
    return parse_query(query if len(query) <= MAX_QUERY_BYTES else query[:MAX_QUERY_BYTES])


def _sign(what: str, *reasons: str) -> bytes:
    """Returns the value of the header that tells what became of an engagement, and why."""
    return " ".join((what, *reasons)).encode()


def _way(found: Lead | None, tracker: Tracker, user_agent: str) -> tuple[int, Headers, bytes]:
    """Returns the response to a click, as the browser of its platform needs it to go on where there is no app."""
    if found is None:
        status, headers, body = _NOWHERE
        return status, [*headers, _NO_STORE], body
    url = found.url
    if found.fallback:
        if platform_of(user_agent) is not Platform.ANDROID:
            status, headers, body = opening_page(url, found.fallback, is_for_touch=found.is_for_touch)
            return status, [*headers, _ACCEPT_CH, _NO_STORE], body
        url = intent_url(url, tracker.app.bundle_id, found.fallback)
    return 302, [(b"location", url.encode("ascii", "ignore")), _ACCEPT_CH, _NO_STORE], b""
