"""A gateway without services: its links lead on by the settings given, and what it keeps is at hand."""

import asyncio
from collections.abc import Iterable
from typing import Any, cast

from google.protobuf.message import Message

from libs.rates import Rates
from reengage.ingest.v1 import record_batch_pb2, record_pb2
from reengage.tracker.v1.app_pb2 import App
from reengage.tracker.v1.tracker_pb2 import Tracker
from services.gateway.addresses import ClientAddresses
from services.gateway.app import Gateway
from services.gateway.association import AssociationRoutes
from services.gateway.batches import Batches
from services.gateway.link_routes import LinkRoutes
from services.gateway.requests import Request
from services.gateway.settings import GatewaySettings

NOW_S = 1_764_000_000.25
PEER = "203.0.113.7"
_WEBKIT = "AppleWebKit/605.1.15 (KHTML, like Gecko)"
ANDROID = f"Mozilla/5.0 (Linux; Android 14; Pixel 8) {_WEBKIT} Chrome/120.0.0.0 Mobile Safari/537.36"
IPHONE = f"Mozilla/5.0 (iPhone; CPU iPhone OS 17_4 like Mac OS X) {_WEBKIT} Version/17.4 Mobile/15E148 Safari/604.1"
SAFARI = f"Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) {_WEBKIT} Version/17.4 Safari/605.1.15"
MAC_CHROME = f"Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) {_WEBKIT} Chrome/120.0.0.0 Safari/537.36"
DESKTOP = "Mozilla/5.0 (X11; Linux x86_64; rv:130.0) Gecko/20100101 Firefox/130.0"


class Answer:
    """An answer of the gateway: status, headers, body, and the record that it kept, if it did."""

    def __init__(self, response: tuple[int, list[tuple[bytes, bytes]], bytes], kept: list[record_pb2.Record]) -> None:
        self.status, headers, self.body = response
        self.headers = {name.decode(): value.decode() for name, value in headers}
        self.location = self.headers.get("location", "")
        self.sign = self.headers.get("x-engagement", "")
        self.record = kept[0] if kept else None


class _Engagements:
    """A keeper of engagements that answers all with one result."""

    def __init__(self, *reasons: str) -> None:
        self.kept: list[record_pb2.Record] = []
        self._result = record_batch_pb2.RecordResult(status=record_batch_pb2.RecordResult.STATUS_ACCEPTED)
        if reasons:
            self._result.status = record_batch_pb2.RecordResult.STATUS_REJECTED
            self._result.violations.extend(record_batch_pb2.FieldViolation(reason=reason) for reason in reasons)

    def add(self, record: bytes, _: str) -> asyncio.Future[record_batch_pb2.RecordResult]:
        self.kept.append(record_pb2.Record.FromString(record))
        future = asyncio.get_running_loop().create_future()
        future.set_result(self._result)
        return future


def settings_of(*resources: App | Tracker) -> GatewaySettings:
    """Returns settings that hold these."""
    held: dict[str, dict[tuple[str, ...], Message]] = {"app": {}, "network": {}, "campaign": {}, "tracker": {}}
    for each in resources:
        kind, key = ("app", each.app_id) if isinstance(each, App) else ("tracker", each.tracker_id)
        held[kind][(key,)] = each
    return GatewaySettings(held, 1)


def ask(
    settings: GatewaySettings,
    target: str | bytes,
    agent: str = ANDROID,
    *,
    method: str = "GET",
    refusals: Iterable[str] = (),
    **headers: str,
) -> Answer:
    """Returns the answer to a request; ingest refuses the record for these reasons, if there are any."""
    engagements = _Engagements(*refusals)
    routes = LinkRoutes(
        settings=lambda: settings,
        engagements=cast(Batches, engagements),
        refused=cast(Batches, _Engagements()),
        rates=Rates(lambda: NOW_S),
        addresses=ClientAddresses([]),
        now_s=lambda: NOW_S,
        random_bytes=bytes,
    )
    all_routes: dict[str, Any] = {**routes.routes, **AssociationRoutes(lambda: settings).routes}
    gateway = Gateway(all_routes, settings=lambda: settings)
    sent = {b"user-agent": agent.encode(), **{name.encode(): value.encode() for name, value in headers.items()}}
    raw = target.encode() if isinstance(target, str) else target
    return Answer(asyncio.run(gateway.respond(Request(method, raw, sent, peer=PEER))), engagements.kept)
