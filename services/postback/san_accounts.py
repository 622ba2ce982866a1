"""The credentials that networks are asked with: a configuration's own, else those of the tracker's account with it.

Tracker keeps the accounts, and gives their credentials to postback alone (docs/decisions/0015). They are held in memory
only, and read again when the account has changed, or a minute later.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import grpc
import structlog

from reengage.postback.v1 import conversion_pb2
from reengage.tracker.v1 import san_account_pb2
from reengage.tracker.v1 import service_pb2_grpc as tracker_grpc
from services.postback.delivery import claim_tracker
from services.postback.model import Configuration

FRESH_S = 60.0
"""So long what was read is used, unless a change of the account is heard of."""
_AWAY_S = 5.0
"""So long tracker, when it was away, is not asked again for what is held."""
_TIMEOUT_S = 2.0
_NO_ACCOUNT = (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT)
"""There is none of this id, or none any more; or it is no id."""

_log = structlog.get_logger()


class CredentialsMissingError(Exception):
    """Neither the configuration nor an account has what the adapter cannot do without; the message tells people."""


class CredentialsUnavailableError(Exception):
    """Tracker gives no credentials now, and none are held; the message tells people."""


@dataclass(slots=True, kw_only=True)
class _Held:
    """The credentials of an account as they were read at a revision of it."""

    credentials: Mapping[str, str] = field(repr=False)
    revision: int
    fresh_until_s: float


class SanAccounts:
    """The accounts as tracker keeps them; an account is read once, however many wait for it."""

    def __init__(
        self, tracker: tracker_grpc.TrackerConfigServiceStub, *, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._tracker, self._clock_s = tracker, clock_s
        self._held: dict[tuple[str, str], _Held] = {}
        self._reading: dict[tuple[str, str], asyncio.Task[_Held]] = {}

    async def secrets(self, configuration: Configuration, conversion: conversion_pb2.Conversion) -> Mapping[str, str]:
        """Returns the secrets to send a conversion with: those the configuration lacks are the account's.

        Raises CredentialsMissingError, CredentialsUnavailableError.
        """
        missing = configuration.adapter.secret_names - configuration.secrets.keys()
        if not missing:
            return configuration.secrets
        tracker = claim_tracker(configuration, conversion)
        account_id, revision = configuration.adapter.san_account_id, 0
        if not account_id and tracker is not None and tracker.accounts:
            account_id, revision = tracker.accounts[0].san_account_id, tracker.accounts[0].revision
        held = await self._credentials(configuration.app_id, account_id, revision) if account_id else {}
        if still_missing := missing - held.keys():
            raise CredentialsMissingError(_problem(sorted(still_missing), configuration, tracker, account_id))
        return {**{name: held[name] for name in missing}, **configuration.secrets}

    async def _credentials(self, app_id: str, account_id: str, revision: int) -> Mapping[str, str]:
        """Returns the credentials of an account, of this revision at least unless tracker is away; none of no account.

        Raises CredentialsUnavailableError.
        """
        key = app_id, account_id
        held = self._held.get(key)
        if held is not None and held.revision >= revision and self._clock_s() < held.fresh_until_s:
            return held.credentials
        reading = self._reading.get(key)
        if reading is None:
            reading = self._reading[key] = asyncio.create_task(self._read(app_id, account_id))
            reading.add_done_callback(lambda done: self._end(key, done))
        try:
            self._held[key] = held = await asyncio.shield(reading)
        except grpc.aio.AioRpcError as error:
            _log.warning("credentials.unavailable", san_account_id=account_id, code=error.code().name)
            if held is None:
                raise CredentialsUnavailableError(
                    f"tracker did not give the credentials of SAN account {account_id} ({error.code().name})"
                ) from None
            held.fresh_until_s = self._clock_s() + _AWAY_S
        return held.credentials

    def _end(self, key: tuple[str, str], reading: "asyncio.Task[_Held]") -> None:
        del self._reading[key]
        if not reading.cancelled():
            reading.exception()  # whoever waits is told; perhaps nobody does any more

    async def _read(self, app_id: str, account_id: str) -> _Held:
        request = san_account_pb2.GetSanAccountCredentialsRequest(app_id=app_id, san_account_id=account_id)
        fresh_until_s = self._clock_s() + FRESH_S
        try:
            response = await self._tracker.GetSanAccountCredentials(request, timeout=_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            if error.code() in _NO_ACCOUNT:
                return _Held(credentials={}, revision=0, fresh_until_s=fresh_until_s)
            raise
        return _Held(credentials=dict(response.credentials), revision=response.revision, fresh_until_s=fresh_until_s)


def _problem(
    names: list[str], configuration: Configuration, tracker: conversion_pb2.ClaimTracker | None, account_id: str
) -> str:
    """Tells people which credentials there are none of, and who might have them."""
    if account_id:
        others = f"SAN account {account_id} has"
    elif tracker is not None:
        others = f"tracker {tracker.tracker_id} has, which names no SAN account"
    else:
        others = f"a tracker of {configuration.network_id} has: none is for this conversion"
    return f"no {', '.join(names)}: neither configuration {configuration.configuration_id} nor {others}"
