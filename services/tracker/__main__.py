"""Starts tracker."""

import asyncio
import secrets
from dataclasses import dataclass, field

from libs.config import load
from libs.db import open_pool
from libs.logs import configure_logging
from libs.server import Face, ServerConfig, serve
from libs.vault import Vault
from reengage.tracker.v1 import service_pb2, service_pb2_grpc
from services.tracker.keys import ApiKeys
from services.tracker.revisions import Revisions
from services.tracker.service import TrackerConfigService
from services.tracker.settings import Settings
from services.tracker.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What tracker reads from the environment."""

    dsn: str = field(repr=False)
    # The keys of ops and of the other services; keys of people are made by the API.
    admin_key: str = field(repr=False)
    service_key: str = field(repr=False)
    secrets_keys: str = field(repr=False)
    listen: str = "127.0.0.1:7101"
    metrics_port: int = 7201
    log_level: str = "info"


async def main() -> None:
    """Serve until told to stop."""
    config = load(Config)
    configure_logging("tracker", config.log_level)
    async with open_pool(config.dsn, schema="tracker", application_name="tracker") as pool:
        store = Store(pool)
        revisions = Revisions(store.revision)
        settings = Settings(store, revisions, Vault(config.secrets_keys), new_id=lambda: secrets.token_hex(8))
        keys = ApiKeys(
            store,
            settings,
            admin_key=config.admin_key,
            service_key=config.service_key,
            new_key=lambda: f"rk_{secrets.token_urlsafe(32)}",
        )
        service = TrackerConfigService(settings, keys, store, revisions)
        face = Face(
            name=service_pb2.DESCRIPTOR.services_by_name["TrackerConfigService"].full_name,
            add=lambda server: service_pb2_grpc.add_TrackerConfigServiceServicer_to_server(service, server),
            admit=keys.admit,
        )
        await serve(ServerConfig(listen=config.listen, metrics_port=config.metrics_port), [face], tasks=[revisions.run])


asyncio.run(main())
