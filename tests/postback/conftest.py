"""A postback service behind a real channel on a real PostgreSQL, and an endpoint that behaves as it is told."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from aiohttp import web
from aiohttp.abc import ResolveResult
from cryptography.fernet import Fernet

from libs.channels import open_channel
from libs.db import Pool
from libs.server import ServerConfig, build_server
from reengage.attribution.v1 import decision_pb2
from reengage.ingest.v1 import record_pb2
from reengage.postback.v1 import configuration_pb2, conversion_pb2, delivery_pb2, service_pb2_grpc
from reengage.tracker.v1.service_pb2_grpc import TrackerConfigServiceStub
from services.postback.adapters.adapter import ADAPTERS
from services.postback.configurations import POLL_INTERVAL_S, Configurations
from services.postback.guard import Guard, Lookup
from services.postback.san_accounts import SanAccounts
from services.postback.storage.queue import Queue
from services.postback.validation import complete
from services.postback.wiring import wire_parts
from tests.conftest import Database
from tests.support.eventually import eventually
from tests.tracker.conftest import POSTBACK_KEY

KEY = Fernet.generate_key().decode()
NO_TRACKER = "unix:/nobody/is/here"
Answer: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """A request that reached the endpoint."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: str

    @property
    def delivery_id(self) -> str:
        return self.headers["Idempotency-Key"]


@dataclass(slots=True)
class Endpoint:
    """A partner's server on this machine. `answers` by path, tried before the default 200."""

    port: int
    received: list[Received] = field(default_factory=list)
    answers: dict[str, Answer] = field(default_factory=dict)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def url(self, path: str) -> str:
        return f"http://{self.host}{path}"

    def at(self, path: str) -> list[Received]:
        return [one for one in self.received if one.path == path]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.received.append(
            Received(
                method=request.method,
                path=request.path,
                query=dict(request.query),
                headers=dict(request.headers),
                body=await request.text(),
            )
        )
        answer = self.answers.get(request.path)
        return await answer(request) if answer else web.Response(text="fine")


@asynccontextmanager
async def serving() -> AsyncIterator[Endpoint]:
    """Yields an endpoint, closed at once on leaving, whatever it is still busy with."""
    endpoint = Endpoint(port=0)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", endpoint.handle)
    runner = web.AppRunner(app, shutdown_timeout=0, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    endpoint.port = runner.addresses[0][1]
    try:
        yield endpoint
    finally:
        await runner.cleanup()


@pytest.fixture
async def endpoint() -> AsyncIterator[Endpoint]:
    """Yields an endpoint of the test's own."""
    async with serving() as one:
        yield one


def answering(*answers: list[str]) -> tuple[Lookup, list[str]]:
    """Returns a resolver that gives these answers in turn, the last for ever; and the names that it was asked."""
    asked: list[str] = []

    async def lookup(host: str, port: int, family: socket.AddressFamily) -> list[ResolveResult]:
        addresses = answers[min(len(asked), len(answers) - 1)]
        asked.append(host)
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in addresses
        ]

    return lookup, asked


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A running service and what a test may ask it."""

    configs: service_pb2_grpc.PostbackConfigServiceStub
    deliveries: service_pb2_grpc.PostbackServiceStub
    pool: Pool
    queue: Queue
    configurations: Configurations
    accounts: SanAccounts

    async def configure(self, **fields: Any) -> configuration_pb2.Configuration:
        """Returns a new configuration for `Purchase` of app `app`, unless told otherwise; see `configuration`."""
        request = configuration_pb2.CreateConfigurationRequest(configuration=configuration(**fields))
        return (await self.configs.CreateConfiguration(request)).configuration

    async def enqueue(self, *conversions: conversion_pb2.Conversion) -> int:
        request = conversion_pb2.EnqueueConversionsRequest(conversions=conversions)
        return (await self.deliveries.EnqueueConversions(request)).created_count

    async def list(self, **filters: Any) -> list[delivery_pb2.Delivery]:
        request = delivery_pb2.ListDeliveriesRequest(**{"app_id": "app", "page_size": 1000, **filters})
        return list((await self.deliveries.ListDeliveries(request)).deliveries)

    async def get(self, delivery_id: str) -> delivery_pb2.Delivery:
        request = delivery_pb2.GetDeliveryRequest(delivery_id=delivery_id)
        return (await self.deliveries.GetDelivery(request)).delivery

    async def only(self) -> delivery_pb2.Delivery:
        """Returns the one delivery there is, with its attempts."""
        (delivery,) = await self.list()
        return await self.get(delivery.delivery_id)

    async def erase(self, **what: Any) -> dict[str, int]:
        """Erases of app `app`, unless told otherwise; returns how many rows of each table."""
        request = conversion_pb2.EraseConversionsRequest(**{"app_id": "app", **what})
        return dict((await self.deliveries.EraseConversions(request)).erased_counts)

    async def due_now(self) -> None:
        """Makes every delivery that waits due: the test's way through the schedule."""
        await self.pool.execute("UPDATE deliveries SET due_us = now_us() WHERE state = 1 AND lease_id IS NULL")


def configuration(**fields: Any) -> configuration_pb2.Configuration:
    """Returns a configuration for `Purchase` of app `app`, unless told otherwise.

    An adapter's name is a field that stands for it and its fields: `template={"url": …}`.
    """
    given: dict[str, Any] = {"app_id": "app", "network_id": "network", "trigger": "Purchase", **fields}
    for name in ADAPTERS.keys() & given.keys():
        given |= {"adapter": name, "adapter_fields": given.pop(name)}
    return configuration_pb2.Configuration(**given)


def completed(message: configuration_pb2.Configuration) -> configuration_pb2.Configuration:
    """Returns a configuration with its defaults filled in."""
    complete(message)
    return message


@asynccontextmanager
async def running(
    database: Database,
    socket: Path,
    *,
    allowed: str = "",
    new_guard: Callable[[str], Guard] = Guard,
    lookup: Lookup | None = None,
    tracker: str = NO_TRACKER,
    jitter: Callable[[], float] = lambda: 0.0,
    keys: str = KEY,
    works: bool = True,
    poll_interval_s: float = POLL_INTERVAL_S,
) -> AsyncIterator[Running]:
    """Yields a service with its worker, unless it must not work. Without jitter, retries are due at once.

    `tracker` is the target of tracker: by default nobody is there.
    """
    async with (
        open_channel(tracker, key=POSTBACK_KEY) as to_tracker,
        wire_parts(
            dsn=database.dsn("postback"),
            secrets_keys=keys,
            allowed_hosts=allowed,
            tracker=TrackerConfigServiceStub(to_tracker),
            new_guard=new_guard,
            lookup=lookup,
            jitter=jitter,
            poll_interval_s=poll_interval_s,
        ) as parts,
    ):
        server, _ = build_server(ServerConfig(listen=""), parts.faces)
        server.add_insecure_port(f"unix:{socket}")
        await server.start()
        names = ("configurations", "deliver") if works else ("configurations",)
        tasks = [asyncio.ensure_future(parts.loops[name]()) for name in names]
        try:
            async with open_channel(f"unix:{socket}") as channel:
                yield Running(
                    configs=service_pb2_grpc.PostbackConfigServiceStub(channel),
                    deliveries=service_pb2_grpc.PostbackServiceStub(channel),
                    pool=parts.pool,
                    queue=parts.queue,
                    configurations=parts.configurations,
                    accounts=parts.accounts,
                )
        finally:
            await server.stop(None)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
async def service(database: Database, endpoint: Endpoint, tmp_path: Path) -> AsyncIterator[Running]:
    """Yields a service that may reach the test's endpoint."""
    async with running(database, tmp_path / "postback.sock", allowed=endpoint.host) as one:
        yield one


def purchase(conversion_id: str = "c1", **decision: Any) -> conversion_pb2.Conversion:
    """Returns a purchase that a click on a tracker of `network` reengaged."""
    fields: dict[str, Any] = {
        "app_id": "app",
        "conversion_id": conversion_id,
        "version": 1,
        "event_name": "Purchase",
        "device_id": "device",
        "outcome": decision_pb2.OUTCOME_REENGAGED,
        "attribution_type": decision_pb2.ATTRIBUTION_TYPE_REENGAGEMENT,
        "network_id": "network",
        "tracker_id": "tracker",
        **decision,
    }
    conversion = conversion_pb2.Conversion(
        decision=decision_pb2.Decision(**fields),
        record=record_pb2.Record(
            record_id=fields["conversion_id"],
            app_id=fields["app_id"],
            event=record_pb2.Event(
                event_name=fields["event_name"], revenue=record_pb2.Money(amount_micros=12_500_000, currency_code="EUR")
            ),
        ),
        engagement=record_pb2.Record(
            record_id="click", click=record_pb2.Click(tracker_id="tracker", click_id="their click")
        ),
    )
    if "conversion_time" not in decision:
        conversion.decision.conversion_time.FromSeconds(1_767_270_896)
    return conversion


async def until_ended(service: Running, count: int = 1) -> list[delivery_pb2.Delivery]:
    """Returns all deliveries of app `app` once `count` of them have ended."""

    async def ended() -> bool:
        found = await service.list()
        return sum(one.state != delivery_pb2.Delivery.STATE_PENDING for one in found) >= count

    await eventually(ended)
    return await service.list()


def template(endpoint: Endpoint, path: str = "/x", **fields: Any) -> dict[str, Any]:
    """Returns the fields of a template that sends to the endpoint."""
    return {"url": endpoint.url(path), **fields}


def word(attempt: delivery_pb2.Attempt) -> str:
    """Returns the verdict of an attempt, as DELIVERED."""
    return delivery_pb2.Attempt.Verdict.Name(attempt.verdict).removeprefix("VERDICT_")
