"""The parts of the service, put together: for its main, and for tests that replace the world around it."""

import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from libs.db import Pool
from libs.server import Face
from libs.time import now_us
from libs.vault import Vault
from reengage.tracker.v1 import service_pb2, service_pb2_grpc
from services.tracker.following import MAX_CHANGES
from services.tracker.keys import ApiKeys
from services.tracker.resources import ResourceMethods
from services.tracker.revisions import Revisions
from services.tracker.service import TrackerConfigService
from services.tracker.storage.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The service, ready to be served, and the loops beside it."""

    face: Face
    loops: Mapping[str, Callable[[], Awaitable[None]]]


def wire_parts(
    pool: Pool,
    *,
    admin_key: str,
    service_key: str,
    postback_key: str,
    secrets_keys: str,
    new_id: Callable[[], str] = lambda: secrets.token_hex(8),
    new_key: Callable[[], str] = lambda: f"rk_{secrets.token_urlsafe(32)}",
    now_us: Callable[[], int] = now_us,
    max_changes: int = MAX_CHANGES,
) -> Parts:
    """Returns the parts. The keys are those of the configuration; keys end by the clock `now_us`.

    A follower that is more than `max_changes` behind gets a whole snapshot.
    """
    vault = Vault(secrets_keys)
    store = Store(pool, vault)
    revisions = Revisions(store.revision)
    resources = ResourceMethods(store, revisions, vault, new_id=new_id)
    keys = ApiKeys(
        store,
        resources,
        admin_key=admin_key,
        service_key=service_key,
        postback_key=postback_key,
        new_key=new_key,
        now_us=now_us,
    )
    face = Face.of(
        service_pb2.DESCRIPTOR.services_by_name["TrackerConfigService"],
        service_pb2_grpc.add_TrackerConfigServiceServicer_to_server,
        TrackerConfigService(resources, keys, store, revisions, max_changes=max_changes),
        admit=keys.admit,
    )
    return Parts(face=face, loops={"revisions": revisions.run})
