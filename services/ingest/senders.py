"""Senders of records: for strict apps those who hold a sender's key, and the services of the suite."""

import hmac
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass

from libs.auth import Admit, hash_of
from libs.domain.snapshots import Resources
from libs.errors import Violation
from libs.time import timestamp_us
from reengage.tracker.v1 import api_key_pb2, status_pb2
from services.ingest.model import App, Sender

UNAUTHENTICATED = Violation(
    field="app_id", reason="UNAUTHENTICATED", description="the app is strict: send a key of ROLE_SENDER for it"
)
_NEVER_US = 2**63


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller of the call being served: the hash of his key, and whether it is that of the suite's services."""

    key_hash: bytes = b""
    is_service: bool = False


_NOBODY = Caller()
_current: ContextVar[Caller] = ContextVar("sender", default=_NOBODY)


def admission(service_key: str) -> Admit:
    """Returns what notes whose call is served. It refuses nobody: most apps take records of everybody."""
    own = service_key.encode()

    async def admit(_method: str, key: str) -> None:
        if key:
            is_service = bool(own) and hmac.compare_digest(key.encode(), own)
            _current.set(Caller(hash_of(key), is_service))

    return admit


def may_send(app_id: str, app: App | None, senders: Mapping[bytes, Sender], now_us: int) -> bool:
    """Returns whether the caller may send records of an app. Of one that is unknown, something else is said."""
    if app is None or not app.is_strict:
        return True
    caller = _current.get()
    if caller.is_service:
        return True
    sender = senders.get(caller.key_hash)
    if sender is None or not now_us < sender.end_us:
        return False
    return sender.app_id in ("", app_id) and sender.account_id in ("", app.account_id)


def senders_in(resources: Resources) -> dict[bytes, Sender]:
    """Returns the live keys of senders by their hashes."""
    keys = [key for key in resources["api_key"].values() if isinstance(key, api_key_pb2.ApiKey)]
    return {
        key.key_hash: Sender(
            app_id=key.app_id,
            account_id=key.account_id,
            end_us=timestamp_us(key.expire_time) if key.HasField("expire_time") else _NEVER_US,
        )
        for key in keys
        if key.role == api_key_pb2.ApiKey.ROLE_SENDER and key.status != status_pb2.STATUS_ARCHIVED and key.key_hash
    }
