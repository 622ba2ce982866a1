"""Starts the postback service: `python -m services.postback`."""

import asyncio
import random
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from libs.config import ConfigError
from libs.db import open_pool
from libs.periods import Periods
from libs.server import Face, GrpcServer, ServerConfig, Service, run
from libs.vault import Vault
from reengage.postback.v1 import service_pb2, service_pb2_grpc
from services.postback.adapters.adapter import Stamp
from services.postback.claims import Claims, Endings
from services.postback.configurations import Catalog
from services.postback.guard import Guard
from services.postback.sender import open_sender
from services.postback.service import PostbackConfigService, PostbackService
from services.postback.store import Store
from services.postback.worker import DeliveryWorker


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What postback reads from the environment."""

    dsn: str = field(repr=False)
    # The keys, comma-separated, that secrets of configurations are encrypted under: by the first, and read by all.
    # One is made by: python -c "import base64, os; print(base64.urlsafe_b64encode(os.urandom(32)).decode())"
    secrets_keys: str = field(repr=False)
    # Hosts that deliveries may go to though private or on unusual ports, and the only ones for those of sandbox apps:
    # `host` (any port) or `host:port`, comma-separated; IPv6 in brackets.
    allowed_hosts: str = ""
    listen: str = "127.0.0.1:7104"
    metrics_port: int = 0
    log_level: str = "info"


@asynccontextmanager
async def wire(config: Config) -> AsyncIterator[Service]:
    """Opens what postback needs."""
    # Names are looked up in threads: a name server that hangs takes one for as long as it does.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(64, "names"))
    with _one_sentence():
        guard, vault = Guard(config.allowed_hosts), Vault(config.secrets_keys)
    async with (
        open_pool(config.dsn, schema="postback", application_name="postback") as pool,
        open_sender(guard) as sender,
    ):
        store = Store(pool)
        catalog = Catalog(store, vault)
        with _one_sentence():
            await catalog.refresh()
        endings = Endings()
        worker = DeliveryWorker(store, catalog, sender, endings, jitter=random.random, stamp=_stamp)
        settings = PostbackConfigService(store=store, catalog=catalog, vault=vault, guard=guard)
        claims = Claims(store, catalog, endings)
        deliveries = PostbackService(store=store, catalog=catalog, claims=claims, wake=worker.wake)
        names = service_pb2.DESCRIPTOR.services_by_name
        faces = [
            Face.of(
                names["PostbackConfigService"],
                service_pb2_grpc.add_PostbackConfigServiceServicer_to_server,
                settings,
            ),
            Face.of(names["PostbackService"], service_pb2_grpc.add_PostbackServiceServicer_to_server, deliveries),
        ]
        yield Service(
            server=GrpcServer(ServerConfig(listen=config.listen, metrics_port=config.metrics_port), faces),
            loops={"configurations": catalog.run, "retention": Periods(pool).run, "deliver": worker.run},
        )


def _stamp() -> Stamp:
    return Stamp(nonce=secrets.token_hex(16), time_s=int(time.time()))


@contextmanager
def _one_sentence() -> Iterator[None]:
    """What the environment got wrong ends the process with the sentence that says so, and no traceback."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(str(error)) from None


if __name__ == "__main__":
    run("postback", Config, wire)
