"""The routes of ad links: clicks (`/c/…` and `/v1/cpi/click`), which are redirected, and impressions."""

import os
import time
from collections.abc import Callable

from libs.errors import ServiceError
from reengage.ingest.v1 import record_pb2
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
)
from services.gateway.redirect import destination, signature_holds
from services.gateway.requests import TEXT, Request, Response, Route
from services.gateway.settings import GatewaySettings

SHORT_CLICK = "/c/"
"""The beginning of a path that goes on with the tracker's id."""
_NO_STORE = (b"cache-control", b"no-store")
_ACCEPT_CH = (b"accept-ch", b"Sec-CH-UA-Model, Sec-CH-UA-Platform-Version")
"""Asks for what browsers have frozen in their user agent, from the person's next click on (A5); the platform comes
unasked. Without `Critical-CH`, by which they would walk the way to here again: two clicks for every network on it."""
_UNKNOWN: Response = (404, TEXT, b"This link belongs to no tracker that is known here.\n")
_NOWHERE: Response = (404, TEXT, b"This link's tracker has nowhere to lead to.\n")
_NO_CONTENT: Response = (204, [_NO_STORE], b"")
_GIF: Response = (
    200,
    [(b"content-type", b"image/gif"), _NO_STORE],
    (
        b"GIF89a\x01\x00\x01\x00\x80\x00\x00\x00\x00\x00\xff\xff\xff!\xf9\x04\x01\x00\x00\x00\x00,"
        b"\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02D\x01\x00;"
    ),
)


class LinkRoutes:
    """The routes of links: `engagements` keeps what came, and clicks are led on. `now_s` is in seconds since 1970.

    `settings` returns the newest settings or raises `Unavailable`.
    """

    def __init__(
        self,
        *,
        settings: Callable[[], GatewaySettings],
        engagements: Batches,
        addresses: ClientAddresses,
        now_s: Callable[[], float] = time.time,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._settings, self._engagements, self._addresses = settings, engagements, addresses
        self._now_s, self._random_bytes = now_s, random_bytes
        self._entropy, self._entropy_at = b"", 0
        self.routes = {
            SHORT_CLICK: Route(("GET", "HEAD"), self._short_click),
            "/v1/cpi/click": Route(("GET", "HEAD"), self._click),
            "/track/impression": Route(("GET", "HEAD"), self._impression),
        }

    async def _click(self, request: Request) -> Response:
        parameters = parse_query(request.query)
        return await self._follow(parameters.get("campaign_id", ""), parameters, request)

    async def _short_click(self, request: Request) -> Response:
        return await self._follow(request.path[len(SHORT_CLICK) :], parse_query(request.query), request)

    async def _follow(self, tracker_id: str, parameters: dict[str, str], request: Request) -> Response:
        tracker = self._settings().tracker(tracker_id)
        if tracker is None:
            return _UNKNOWN
        visit = self._visit(request)
        click_id = self._new_id(visit.time_s)
        url = destination(tracker, click_id, parameters, device_user_agent(parameters, visit))
        # Someone clicked, even where that leads nowhere.
        status, headers, body = _NOWHERE
        if url is not None:
            status, headers, body = 302, [(b"location", url.encode("ascii", "ignore")), _ACCEPT_CH], b""
        headers = [*headers, _NO_STORE]
        # A link checker asks with HEAD; nobody clicked.
        if tracker.app.live and request.method == "GET":
            valid = signature_holds(
                tracker, request.raw_path + b"?" + request.query, parameters.get("expires", ""), visit.time_s
            )
            record = click_record(tracker, parameters, visit, click_id=click_id, invalid=not valid)
            try:
                await self._keep(record, request)
            except ServiceError:
                if record.click.is_ping:
                    raise
                headers.append((b"x-engagement", b"lost"))  # the person goes on all the same
        return status, headers, body

    async def _impression(self, request: Request) -> Response:
        parameters = parse_query(request.query)
        tracker = self._settings().tracker(parameters.get("campaign_id", ""))
        if tracker is None:
            return _UNKNOWN
        status, headers, body = _GIF if b"image/" in request.headers.get(b"accept", b"") else _NO_CONTENT
        if tracker.app.live and request.method == "GET":
            visit = self._visit(request)
            record = impression_record(tracker, parameters, visit, record_id=self._new_id(visit.time_s))
            await self._keep(record, request)
        return status, headers, body

    async def _keep(self, record: record_pb2.Record, request: Request) -> None:
        """Keeps an engagement before its response goes out. Raises ServiceError when it is lost: servers ask again."""
        outcome = await self._engagements.add(record.SerializeToString(), request.request_id)
        if isinstance(outcome, ServiceError):
            raise outcome

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
