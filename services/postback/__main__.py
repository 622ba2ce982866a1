"""Starts the postback service: `python -m services.postback`."""

import asyncio
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import uvloop

from libs.config import load
from libs.db import open_pool
from libs.log import configure_logging
from libs.server import Face, ServerConfig, serve
from libs.vault import Vault
from reengage.postback.v1 import postback_pb2, postback_pb2_grpc
from services.postback.catalog import Catalog
from services.postback.guard import Guard
from services.postback.sender import open_sender
from services.postback.service import PostbackConfigService, PostbackService
from services.postback.store import Store
from services.postback.worker import DeliveryWorker


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What the environment says; see README."""

    dsn: str = field(repr=False)
    secrets_keys: str = field(repr=False)
    allowed_hosts: str = ""
    listen: str = "127.0.0.1:7104"
    metrics_port: int = 0
    log_level: str = "info"


async def main(config: Config) -> None:
    """Serve until told to stop."""
    # Names are looked up in threads: a name server that hangs takes one for as long as it does.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(64, "names"))
    guard, vault = Guard(config.allowed_hosts), Vault(config.secrets_keys)
    async with (
        open_pool(config.dsn, schema="postback", application_name="postback") as pool,
        open_sender(guard) as sender,
    ):
        store = Store(pool)
        catalog = Catalog(store, vault)
        await catalog.refresh()
        worker = DeliveryWorker(store, catalog, sender, jitter=random.random)
        settings = PostbackConfigService(store=store, catalog=catalog, vault=vault, guard=guard)
        deliveries = PostbackService(store=store, catalog=catalog, wake=worker.wake)
        names = postback_pb2.DESCRIPTOR.services_by_name
        await serve(
            ServerConfig(listen=config.listen, metrics_port=config.metrics_port),
            [
                Face(
                    name=names["PostbackConfigService"].full_name,
                    add=lambda server: postback_pb2_grpc.add_PostbackConfigServiceServicer_to_server(settings, server),
                ),
                Face(
                    name=names["PostbackService"].full_name,
                    add=lambda server: postback_pb2_grpc.add_PostbackServiceServicer_to_server(deliveries, server),
                ),
            ],
            tasks=[catalog.run, worker.run],
        )


if __name__ == "__main__":
    CONFIG = load(Config)
    configure_logging("postback", CONFIG.log_level)
    uvloop.run(main(CONFIG))
