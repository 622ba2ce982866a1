"""The parts of the service, put together: for its main, and for tests that replace the world around it."""

import random
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from libs.config import ConfigError
from libs.db import Pool, open_pool
from libs.periods import Periods
from libs.server import Face
from libs.vault import Vault
from reengage.postback.v1 import service_pb2, service_pb2_grpc
from reengage.tracker.v1 import service_pb2_grpc as tracker_grpc
from services.postback.adapters.adapter import Stamp
from services.postback.claims import Claims, Endings
from services.postback.configurations import POLL_INTERVAL_S, Configurations
from services.postback.guard import Guard, Lookup
from services.postback.san_accounts import SanAccounts
from services.postback.sender import open_sender
from services.postback.service import PostbackConfigService, PostbackService
from services.postback.storage.claims import ClaimStore
from services.postback.storage.configurations import ConfigurationStore
from services.postback.storage.deliveries import DeliveryStore
from services.postback.storage.erasure import ErasureStore
from services.postback.storage.queue import Queue
from services.postback.worker import DeliveryWorker


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The service, ready to be served, and what it is made of."""

    faces: Sequence[Face]
    loops: Mapping[str, Callable[[], Awaitable[None]]]
    pool: Pool
    configurations: Configurations
    queue: Queue
    accounts: SanAccounts


@asynccontextmanager
async def wire_parts(
    *,
    dsn: str,
    secrets_keys: str,
    allowed_hosts: str,
    tracker: tracker_grpc.TrackerConfigServiceStub,
    new_guard: Callable[[str], Guard] = Guard,
    lookup: Lookup | None = None,
    jitter: Callable[[], float] = random.random,
    poll_interval_s: float = POLL_INTERVAL_S,
) -> AsyncIterator[Parts]:
    """Yields the parts, and closes what they opened. Raises ConfigError.

    `tracker` is called with the key that may read credentials. `new_guard` makes the guard of the allowed hosts,
    `lookup` replaces the system's resolver, `jitter` draws evenly from [0, 1), and `poll_interval_s` is the time after
    which another process's configurations are seen.
    """
    with _one_sentence():
        guard, vault = new_guard(allowed_hosts), Vault(secrets_keys)
    async with (
        open_pool(dsn, schema="postback", application_name="postback") as pool,
        open_sender(guard, lookup=lookup) as sender,
    ):
        store = ConfigurationStore(pool)
        configurations = Configurations(store, vault, poll_interval_s=poll_interval_s)
        with _one_sentence():
            await configurations.refresh()
        queue, claim_store, endings = Queue(pool), ClaimStore(pool), Endings()
        accounts = SanAccounts(tracker)
        worker = DeliveryWorker(queue, configurations, sender, accounts, endings, jitter=jitter, stamp=new_stamp)
        settings = PostbackConfigService(store=store, configurations=configurations, vault=vault, guard=guard)
        deliveries = PostbackService(
            deliveries=DeliveryStore(pool),
            claim_store=claim_store,
            erasure=ErasureStore(pool),
            configurations=configurations,
            claims=Claims(claim_store, configurations, endings),
            wake=worker.wake,
        )
        names = service_pb2.DESCRIPTOR.services_by_name
        yield Parts(
            faces=[
                Face.of(
                    names["PostbackConfigService"],
                    service_pb2_grpc.add_PostbackConfigServiceServicer_to_server,
                    settings,
                ),
                Face.of(names["PostbackService"], service_pb2_grpc.add_PostbackServiceServicer_to_server, deliveries),
            ],
            loops={"configurations": configurations.run, "retention": Periods(pool).run, "deliver": worker.run},
            pool=pool,
            configurations=configurations,
            queue=queue,
            accounts=accounts,
        )


def new_stamp() -> Stamp:
    """Returns a stamp that no other request has."""
    return Stamp(nonce=secrets.token_hex(16), time_s=int(time.time()))


@contextmanager
def _one_sentence() -> Iterator[None]:
    """Ends the process with the sentence that says what the environment got wrong, and no traceback."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(str(error)) from None
