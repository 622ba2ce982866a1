"""API keys: made, shown once, replaced, and recognized."""

import hmac
from collections.abc import Callable, Iterable

from google.protobuf.duration_pb2 import Duration

from libs.auth import hash_of
from libs.errors import FailedPrecondition, Unauthenticated, Violations
from libs.time import MINUTE_US, SECOND_US, now_us, timestamp_us, to_timestamp
from reengage.tracker.v1.api_key_pb2 import ApiKey
from services.tracker import access, validation
from services.tracker.access import Caller
from services.tracker.kinds import API_KEY, SET_BY_SERVICE
from services.tracker.resources import ResourceMethods, call, check_key, copied
from services.tracker.storage.store import Store
from services.tracker.storage.views import Change

_USE_INTERVAL_US = MINUTE_US
"""The precision of the time of last use."""
_DEFAULT_OVERLAP_S = 86400
_MAX_OVERLAP_S = 30 * 86400


class ApiKeys:
    """Keys of the installation, and those it was started with: `admin_key`, `service_key` and `postback_key`, of every
    scope. With an empty `postback_key` nobody reads credentials.

    `new_key` makes a key of at least 128 random bits; `now_us` is the clock.
    """

    def __init__(
        self,
        store: Store,
        resources: ResourceMethods,
        *,
        admin_key: str,
        service_key: str,
        postback_key: str,
        new_key: Callable[[], str],
        now_us: Callable[[], int] = now_us,
    ) -> None:
        self._store, self._resources, self._new_key, self._now_us = store, resources, new_key, now_us
        self._own = (
            (admin_key.encode(), Caller(actor="admin", role=access.ADMIN)),
            (service_key.encode(), Caller(actor="service", role=access.SERVICE)),
            (postback_key.encode(), Caller(actor="postback", role=access.POSTBACK)),
        )

    async def admit(self, method: str, key: str) -> None:
        """Serves the call for the holder of the key. Raises Unauthenticated, or PermissionDenied for the role."""
        if not key:
            raise Unauthenticated("API_KEY_REQUIRED", "send an API key, as metadata `authorization: Bearer <key>`")
        caller = self._holder_of_own(key) or await self._holder(key)
        if caller is None:
            raise Unauthenticated("API_KEY_INVALID", "the API key is unknown, expired or revoked")
        access.check_method(caller, method)
        access.set_caller(caller)

    async def create(self, given: ApiKey, request_id: str, *, validate_only: bool = False) -> tuple[ApiKey, str]:
        """Returns the resource, and the key itself if it was made now."""
        wanted, key = self._resources.named(API_KEY, given), self._new_key()
        created, shown = await self._resources.change(
            lambda change: self._create(change, wanted, key, request_id), validate_only=validate_only
        )
        return (await self.with_use([created]))[0], "" if validate_only else shown

    async def rotate(self, api_key_id: str, overlap: Duration | None, request_id: str) -> tuple[ApiKey, str]:
        """Does as `create`, for a key like this one, which ends after the overlap."""
        violations = Violations()
        validation.check_key("", API_KEY.key, (api_key_id,), violations)
        overlap_s = overlap.seconds if overlap is not None else _DEFAULT_OVERLAP_S
        if not 0 <= overlap_s <= _MAX_OVERLAP_S:
            violations.add("overlap", "OUT_OF_RANGE", "must be 0 to 30 days")
        violations.check()
        wanted, key = self._resources.named(API_KEY, ApiKey()), self._new_key()
        ends_us = self._now_us() + overlap_s * SECOND_US

        async def work(change: Change) -> tuple[ApiKey, str]:
            old = await self._resources.readable(change, API_KEY, (api_key_id,))
            if API_KEY.is_archived(old) or self._is_over(old):
                raise FailedPrecondition("ARCHIVED", f"{call(API_KEY, (api_key_id,))} is revoked or expired")
            new = copied(old, without=(*SET_BY_SERVICE, "expire_time", "last_use_time"))
            new.api_key_id = wanted.api_key_id
            created, shown = await self._create(change, new, key, request_id)
            if shown and not (old.HasField("expire_time") and timestamp_us(old.expire_time) <= ends_us):
                old.expire_time.CopyFrom(to_timestamp(ends_us))
                await change.put(API_KEY, old)
            return created, shown

        return await self._resources.change(work)

    async def get(self, api_key_id: str) -> ApiKey:
        """Returns the resource of one key."""
        check_key(API_KEY, (api_key_id,))
        return (await self.with_use([await self._resources.get(API_KEY, api_key_id)]))[0]

    async def with_use(self, keys: Iterable[ApiKey]) -> list[ApiKey]:
        """Returns the resources with the time of their last use."""
        found = list(keys)
        uses_us = await self._store.last_uses_us([key.api_key_id for key in found])
        for key in found:
            if key.api_key_id in uses_us:
                key.last_use_time.CopyFrom(to_timestamp(uses_us[key.api_key_id]))
        return found

    async def _create(self, change: Change, wanted: ApiKey, key: str, request_id: str) -> tuple[ApiKey, str]:
        if wanted.role == ApiKey.ROLE_SENDER:
            wanted.key_hash = hash_of(key)
        made = await self._resources.create_in(change, API_KEY, wanted, request_id)
        is_new = await change.keep_key_hash(made.api_key_id, hash_of(key))
        return made, key if is_new else ""

    def _holder_of_own(self, key: str) -> Caller | None:
        found = None
        for own, caller in self._own:
            if hmac.compare_digest(key.encode(), own):
                found = caller
        return found

    async def _holder(self, key: str) -> Caller | None:
        held = await self._store.key_by_hash(hash_of(key))
        if held is None or API_KEY.is_archived(held.api_key) or self._is_over(held.api_key):
            return None
        time_us = self._now_us()
        if held.last_use_us is None or time_us - held.last_use_us >= _USE_INTERVAL_US:
            await self._store.note_use(held.api_key.api_key_id, time_us)
        return Caller(
            actor=f"key:{held.api_key.api_key_id}",
            role=held.api_key.role,
            account_id=held.account_id,
            app_id=held.api_key.app_id,
            network_id=held.api_key.network_id,
            agency_id=held.api_key.agency_id,
        )

    def _is_over(self, key: ApiKey) -> bool:
        return key.HasField("expire_time") and timestamp_us(key.expire_time) <= self._now_us()
