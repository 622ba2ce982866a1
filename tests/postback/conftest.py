"""A postback service behind a real channel on a real PostgreSQL, and an endpoint that behaves as it is told."""

import asyncio
import secrets
import socket
import time
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
from libs.db import Pool, open_pool
from libs.server import Face, ServerConfig, build_server
from libs.vault import Vault
from reengage.attribution.v1 import decision_pb2
from reengage.ingest.v1 import record_pb2
from reengage.postback.v1 import configuration_pb2, conversion_pb2, delivery_pb2, service_pb2_grpc
from services.postback.adapters.adapter import Stamp
from services.postback.claims import Claims, Endings
from services.postback.configurations import Catalog
from services.postback.guard import Guard, Lookup
from services.postback.sender import open_sender
from services.postback.service import PostbackConfigService, PostbackService
from services.postback.store import Store
from services.postback.worker import DeliveryWorker
from tests.conftest import Database

KEY = Fernet.generate_key().decode()
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
    """An endpoint, closed at once on leaving, whatever it is still busy with."""
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
    """An endpoint of the test's own."""
    async with serving() as one:
        yield one


def answering(*answers: list[str]) -> tuple[Lookup, list[str]]:
    """A resolver that gives one of these answers after the other, the last for ever; and the names it was asked."""
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
    store: Store
    catalog: Catalog

    async def configure(self, **fields: Any) -> configuration_pb2.Configuration:
        """A configuration for `Purchase` of app `app`, unless told otherwise."""
        given: dict[str, Any] = {"app_id": "app", "network_id": "network", "trigger": "Purchase", **fields}
        request = configuration_pb2.CreateConfigurationRequest(configuration=configuration_pb2.Configuration(**given))
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
        """The one delivery there is, with its attempts."""
        (delivery,) = await self.list()
        return await self.get(delivery.delivery_id)

    async def due_now(self) -> None:
        """Make every waiting delivery due: the test's way through the schedule."""
        await self.pool.execute("UPDATE deliveries SET due_time = now() WHERE state = 'PENDING' AND claim_id IS NULL")


def stamp() -> Stamp:
    """As the service makes them."""
    return Stamp(nonce=secrets.token_hex(16), time_s=int(time.time()))


@asynccontextmanager
async def running(
    database: Database,
    socket: Path,
    *,
    allowed: str = "",
    lookup: Lookup | None = None,
    jitter: Callable[[], float] = lambda: 0.0,
    keys: str = KEY,
    works: bool = True,
    **bounds: int,
) -> AsyncIterator[Running]:
    """A service with its worker, unless it must not work. Without jitter, retries are due at once."""
    guard, vault = Guard(allowed), Vault(keys)
    async with (
        open_pool(database.dsn("postback"), schema="postback", application_name="postback") as pool,
        open_sender(guard, lookup=lookup) as sender,
    ):
        store = Store(pool)
        catalog = Catalog(store, vault)
        await catalog.refresh()
        endings = Endings()
        worker = DeliveryWorker(store, catalog, sender, endings, jitter=jitter, stamp=stamp, **bounds)
        configs = PostbackConfigService(store=store, catalog=catalog, vault=vault, guard=guard)
        claims = Claims(store, catalog, endings)
        deliveries = PostbackService(store=store, catalog=catalog, claims=claims, wake=worker.wake)
        faces = [
            Face(
                name="configs",
                add=lambda server: service_pb2_grpc.add_PostbackConfigServiceServicer_to_server(configs, server),
            ),
            Face(
                name="deliveries",
                add=lambda server: service_pb2_grpc.add_PostbackServiceServicer_to_server(deliveries, server),
            ),
        ]
        server, _ = build_server(ServerConfig(listen=""), faces)
        server.add_insecure_port(f"unix:{socket}")
        await server.start()
        bodies = [catalog.run, worker.run] if works else [catalog.run]
        tasks = [asyncio.create_task(body()) for body in bodies]
        try:
            async with open_channel(f"unix:{socket}") as channel:
                yield Running(
                    configs=service_pb2_grpc.PostbackConfigServiceStub(channel),
                    deliveries=service_pb2_grpc.PostbackServiceStub(channel),
                    pool=pool,
                    store=store,
                    catalog=catalog,
                )
        finally:
            await server.stop(None)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
async def service(database: Database, endpoint: Endpoint, tmp_path: Path) -> AsyncIterator[Running]:
    """A service that may reach the test's endpoint."""
    async with running(database, tmp_path / "postback.sock", allowed=endpoint.host) as one:
        yield one


def purchase(conversion_id: str = "c1", **decision: Any) -> conversion_pb2.Conversion:
    """A purchase that a click on a tracker of `network` reengaged."""
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


async def until(fact: Callable[[], Awaitable[bool]], *, within_s: float = 30.0) -> None:
    """Wait for a fact."""
    async with asyncio.timeout(within_s):
        while not await fact():  # facts in a database set no event
            await asyncio.sleep(0.02)


async def until_ended(service: Running, count: int = 1) -> list[delivery_pb2.Delivery]:
    """Wait until `count` deliveries of app `app` have ended, and answer all there are."""

    async def ended() -> bool:
        those = await service.list()
        return sum(one.state != delivery_pb2.Delivery.STATE_PENDING for one in those) >= count

    await until(ended)
    return await service.list()
