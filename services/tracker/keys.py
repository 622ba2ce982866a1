"""API keys: made, shown once, replaced, and recognized."""

import hashlib
import hmac
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta

from google.protobuf.duration_pb2 import Duration

from libs.errors import FailedPrecondition, Unauthenticated, Violations
from reengage.tracker.v1.api_key_pb2 import ApiKey
from services.tracker import access, validation
from services.tracker.access import Caller
from services.tracker.kinds import API_KEY, SET_BY_SERVICE
from services.tracker.resources import ResourceMethods, call, check_key, copied
from services.tracker.store import Change, Store

_USE_NOTED_EVERY = timedelta(minutes=1)
_DEFAULT_OVERLAP_S = 86400
_MAX_OVERLAP_S = 30 * 86400


class ApiKeys:
    """Keys of the installation, and the two it was started with: `admin_key` and `service_key`, of every scope.

    `new_key` makes a key of at least 128 random bits; `now` is the time, with its zone.
    """

    def __init__(
        self,
        store: Store,
        resources: ResourceMethods,
        *,
        admin_key: str,
        service_key: str,
        new_key: Callable[[], str],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store, self._resources, self._new_key, self._now = store, resources, new_key, now
        self._own = (
            (admin_key.encode(), Caller(actor="admin", role=access.ADMIN)),
            (service_key.encode(), Caller(actor="service", role=access.SERVICE)),
        )

    async def admit(self, method: str, key: str) -> None:
        """Serve a call for the holder of the key. Raises Unauthenticated, or PermissionDenied for the role."""
        if not key:
            raise Unauthenticated("API_KEY_REQUIRED", "send an API key, as metadata `authorization: Bearer <key>`")
        caller = self._holder_of_own(key) or await self._holder(key)
        if caller is None:
            raise Unauthenticated("API_KEY_INVALID", "the API key is unknown, expired or revoked")
        access.check_method(caller, method)
        access.set_caller(caller)

    async def create(self, given: ApiKey, request_id: str) -> tuple[ApiKey, str]:
        """The resource, and the key if it was made now."""
        wanted, key = self._resources.named(API_KEY, given), self._new_key()

        async def work(change: Change) -> tuple[ApiKey, str]:
            return await self._create(change, wanted, key, request_id)

        made, shown = await self._resources.change(work)
        return (await self.with_use([made]))[0], shown

    async def rotate(self, api_key_id: str, overlap: Duration | None, request_id: str) -> tuple[ApiKey, str]:
        """As `create`, for one like this, which ends after the overlap."""
        violations = Violations()
        validation.check_key("", API_KEY.key, (api_key_id,), violations)
        overlap_s = overlap.seconds if overlap is not None else _DEFAULT_OVERLAP_S
        if not 0 <= overlap_s <= _MAX_OVERLAP_S:
            violations.add("overlap", "OUT_OF_RANGE", "must be 0 to 30 days")
        violations.check()
        wanted, key = self._resources.named(API_KEY, ApiKey()), self._new_key()
        ends = self._now() + timedelta(seconds=overlap_s)

        async def work(change: Change) -> tuple[ApiKey, str]:
            old = await self._resources.readable(change, API_KEY, (api_key_id,))
            if API_KEY.is_archived(old) or self._is_over(old):
                raise FailedPrecondition("ARCHIVED", f"{call(API_KEY, (api_key_id,))} is revoked or expired")
            new = copied(old, without=frozenset((*SET_BY_SERVICE, "expire_time", "last_use_time")))
            new.api_key_id = wanted.api_key_id
            made, shown = await self._create(change, new, key, request_id)
            if shown and not (old.HasField("expire_time") and old.expire_time.ToDatetime(UTC) <= ends):
                old.expire_time.FromDatetime(ends)
                await change.put(API_KEY, old)
            return made, shown

        return await self._resources.change(work)

    async def get(self, api_key_id: str) -> ApiKey:
        """One key's resource."""
        check_key(API_KEY, (api_key_id,))
        return (await self.with_use([await self._resources.get(API_KEY, api_key_id)]))[0]

    async def with_use(self, keys: Iterable[ApiKey]) -> list[ApiKey]:
        """The resources with the time of their last use."""
        found = list(keys)
        uses = await self._store.last_uses([key.api_key_id for key in found])
        for key in found:
            if key.api_key_id in uses:
                key.last_use_time.FromDatetime(uses[key.api_key_id])
        return found

    async def _create(self, change: Change, wanted: ApiKey, key: str, request_id: str) -> tuple[ApiKey, str]:
        made = await self._resources.create_in(change, API_KEY, wanted, request_id)
        is_new = await change.keep_key_hash(made.api_key_id, _hash(key))
        return made, key if is_new else ""

    def _holder_of_own(self, key: str) -> Caller | None:
        found = None
        for own, caller in self._own:
            if hmac.compare_digest(key.encode(), own):
                found = caller
        return found

    async def _holder(self, key: str) -> Caller | None:
        held = await self._store.key_by_hash(_hash(key))
        if held is None or API_KEY.is_archived(held.api_key) or self._is_over(held.api_key):
            return None
        if held.last_use_time is None or self._now() - held.last_use_time >= _USE_NOTED_EVERY:
            await self._store.note_use(held.api_key.api_key_id, self._now())
        return Caller(
            actor=f"key:{held.api_key.api_key_id}",
            role=held.api_key.role,
            account_id=held.account_id,
            app_id=held.api_key.app_id,
            network_id=held.api_key.network_id,
            agency_id=held.api_key.agency_id,
        )

    def _is_over(self, key: ApiKey) -> bool:
        return key.HasField("expire_time") and key.expire_time.ToDatetime(UTC) <= self._now()


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
