"""Credentials of SAN accounts: networks are asked with what a configuration lacks, and nobody else sees them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import grpc
import pytest
from aiohttp import web
from google.protobuf.field_mask_pb2 import FieldMask

from deploy.local.x_network import PATH, SECRETS, LocalX
from libs.channels import open_channel
from reengage.postback.v1 import conversion_pb2, delivery_pb2
from reengage.tracker.v1 import san_account_pb2
from reengage.tracker.v1.san_account_pb2 import SanAccount
from reengage.tracker.v1.service_pb2_grpc import TrackerConfigServiceStub
from services.postback.san_accounts import FRESH_S, CredentialsMissingError, SanAccounts
from services.postback.wire import compiled
from tests.conftest import Database
from tests.postback.conftest import Endpoint, Running, completed, configuration, running, until_ended, word
from tests.postback.test_claims import decided, fields
from tests.support.eventually import eventually
from tests.tracker import samples
from tests.tracker.conftest import ADMIN_KEY, POSTBACK_KEY, Served, serving
from tests.tracker.samples import Stub, create_parents

DAY = 86_400
APP = "kodemo1"


@pytest.fixture
def x(endpoint: Endpoint) -> LocalX:
    """Returns X, at the test's endpoint; it is strict about signatures."""
    network = LocalX()
    endpoint.answers[PATH] = network.handle
    return network


@asynccontextmanager
async def tracker_of(served: Served, key: str = ADMIN_KEY) -> AsyncIterator[Stub]:
    async with open_channel(served.target, key=key) as channel:
        yield TrackerConfigServiceStub(channel)


async def create_account(served: Served, **changes: Any) -> SanAccount:
    """Returns an account of app `kodemo1` with X."""
    async with tracker_of(served) as tracker:
        wanted = samples.san_account(**changes)
        request = san_account_pb2.CreateSanAccountRequest(san_account=wanted)
        return (await tracker.CreateSanAccount(request)).san_account


async def update_account(served: Served, **credentials: str) -> SanAccount:
    """Returns the account `x1` with these credentials in place of those it had."""
    async with tracker_of(served) as tracker:
        request = san_account_pb2.UpdateSanAccountRequest(
            san_account=SanAccount(san_account_id="x1", credentials=credentials),
            update_mask=FieldMask(paths=["credentials"]),
        )
        return (await tracker.UpdateSanAccount(request)).san_account


@pytest.fixture
async def served(database: Database) -> AsyncIterator[Served]:
    """Yields a tracker with an app."""
    async with serving(database) as tracker:
        async with tracker_of(tracker) as admin:
            await create_parents(admin)
        yield tracker


@pytest.fixture
async def postback(database: Database, endpoint: Endpoint, tmp_path: Path, served: Served) -> AsyncIterator[Running]:
    """Yields a postback that knows the tracker."""
    async with running(database, tmp_path / "p.sock", allowed=endpoint.host, tracker=served.target) as one:
        yield one


def claim_tracker(*accounts: SanAccount, network_id: str = "x-ios") -> conversion_pb2.ClaimTracker:
    """Returns the tracker `x-t1`, of 30 days after a click and one after a view, with these accounts."""
    made = conversion_pb2.ClaimTracker(network_id=network_id, tracker_id="x-t1")
    made.post_engagement_window.FromSeconds(30 * DAY)
    made.post_view_window.FromSeconds(DAY)
    for account in accounts:
        made.accounts.add(san_account_id=account.san_account_id, revision=account.revision)
    return made


def purchase(conversion_id: str, *trackers: conversion_pb2.ClaimTracker) -> conversion_pb2.Conversion:
    conversion = decided(conversion_id, app_id=APP)
    conversion.claim_trackers.extend(trackers)
    return conversion


async def configure(postback: Running, endpoint: Endpoint, **changes: Any) -> None:
    """Makes a configuration of X; without credentials unless told."""
    await postback.configure(**{**fields(endpoint, app_id=APP), "secrets": {}, **changes})


async def attempts_of(postback: Running, conversion_id: str) -> list[delivery_pb2.Attempt]:
    (delivery,) = await postback.list(app_id=APP, conversion_id=conversion_id)
    return list((await postback.get(delivery.delivery_id)).attempts)


async def sent(postback: Running, conversion: conversion_pb2.Conversion) -> tuple[str, str]:
    """Returns the verdict on the last attempt of a conversion that is told now, and what was missing."""
    await postback.enqueue(conversion)
    conversion_id = conversion.decision.conversion_id

    async def attempted() -> bool:
        return bool(await attempts_of(postback, conversion_id))

    await eventually(attempted)
    attempt = (await attempts_of(postback, conversion_id))[-1]
    return word(attempt), attempt.detail


async def test_x_is_asked_with_the_windows_of_the_tracker_and_the_credentials_of_its_account(
    postback: Running, endpoint: Endpoint, served: Served, x: LocalX
) -> None:
    await configure(postback, endpoint)
    account = await create_account(served, credentials=SECRETS)
    other = claim_tracker(network_id="y-ios")
    other.post_engagement_window.FromSeconds(7 * DAY)
    assert await sent(postback, purchase("c1", other, claim_tracker(account))) == ("DELIVERED", "")
    (asked,) = x.received
    assert (asked["click_window"], asked["view_through_window"]) == ("30", "1")


async def test_credentials_of_the_configuration_go_first_each_by_itself(
    postback: Running, endpoint: Endpoint, served: Served, x: LocalX
) -> None:
    partner = {name: SECRETS[name] for name in ("consumer_key", "consumer_secret", "device_id_key")}
    await configure(postback, endpoint, secrets=partner)
    wrong = dict.fromkeys(partner, "wrong")
    account = await create_account(served, credentials=SECRETS | wrong)
    assert (await sent(postback, purchase("c1", claim_tracker(account))))[0] == "DELIVERED"


async def test_a_configuration_with_all_its_credentials_asks_tracker_nothing(
    service: Running, endpoint: Endpoint, x: LocalX
) -> None:
    """Nobody is where tracker should be."""
    await configure(service, endpoint, secrets=SECRETS)
    account = SanAccount(san_account_id="x1", revision=1)
    assert (await sent(service, purchase("c1", claim_tracker(account))))[0] == "DELIVERED"
    assert (x.received[0]["click_window"], x.received[0]["view_through_window"]) == ("30", "1")


async def test_the_account_that_the_configuration_names_goes_before_the_tracker_s(
    postback: Running, endpoint: Endpoint, served: Served, x: LocalX
) -> None:
    adapter = {"app_id": "1", "conversion_type": "PURCHASE", "base_url": endpoint.url(""), "san_account_id": "x2"}
    await configure(postback, endpoint, x=adapter)
    first = await create_account(served, credentials={"token": "of another account"})
    await create_account(served, san_account_id="x2", name="Second", credentials=SECRETS)
    assert (await sent(postback, purchase("c1", claim_tracker(first))))[0] == "DELIVERED"
    assert (await sent(postback, purchase("c2")))[0] == "DELIVERED", "whether or not there is a tracker"


NAMES = "consumer_key, consumer_secret, device_id_key, token, token_secret"


@pytest.mark.parametrize(
    ("accounts", "lacking", "who"),
    [
        pytest.param(None, NAMES, "a tracker of x-ios has: none is for this conversion", id="no tracker"),
        pytest.param([], NAMES, "tracker x-t1 has, which names no SAN account", id="no account"),
        pytest.param(["x1"], "device_id_key", "SAN account x1 has", id="not all"),
        pytest.param(["x9"], NAMES, "SAN account x9 has", id="not known"),
        pytest.param(["nobody's"], NAMES, "SAN account nobody's has", id="no id"),
    ],
)
async def test_without_credentials_nothing_is_sent_and_it_is_said_who_might_have_them(
    postback: Running, endpoint: Endpoint, served: Served, x: LocalX, accounts: list[str] | None, lacking: str, who: str
) -> None:
    await configure(postback, endpoint)
    held = await create_account(served, credentials=dict(list(SECRETS.items())[:-1]))
    named = [SanAccount(san_account_id=name, revision=held.revision) for name in accounts or ()]
    trackers = [] if accounts is None else [claim_tracker(*named)]
    detail = f"no {lacking}: neither configuration k nor {who}"
    assert await sent(postback, purchase("c1", *trackers)) == ("NO_CREDENTIALS", detail)
    assert not x.received
    assert {one.state for one in await postback.list(app_id=APP)} == {delivery_pb2.Delivery.STATE_REFUSED}


async def test_an_account_is_of_its_app_alone(postback: Running, endpoint: Endpoint, served: Served, x: LocalX) -> None:
    """Whoever may write one app's postbacks must not ask with another's credentials."""
    await create_account(served, credentials=SECRETS)
    adapter = {"app_id": "1", "conversion_type": "PURCHASE", "base_url": endpoint.url(""), "san_account_id": "x1"}
    await postback.configure(**fields(endpoint, secrets={}, x=adapter))
    await postback.enqueue(decided("c1"))
    await until_ended(postback)
    (attempt,) = (await postback.only()).attempts
    assert (word(attempt), len(x.received)) == ("NO_CREDENTIALS", 0)


@pytest.mark.slow
async def test_while_tracker_is_away_it_is_tried_again(
    database: Database, endpoint: Endpoint, tmp_path: Path, x: LocalX
) -> None:
    socket = f"unix:{tmp_path / 'tracker.sock'}"
    async with running(database, tmp_path / "p.sock", allowed=endpoint.host, tracker=socket) as postback:
        await configure(postback, endpoint)
        account = SanAccount(san_account_id="x1", revision=1)
        verdict, detail = await sent(postback, purchase("c1", claim_tracker(account)))
        assert (verdict, len(x.received)) == ("CREDENTIALS_UNAVAILABLE", 0)
        assert detail == "tracker did not give the credentials of SAN account x1 (UNAVAILABLE)"
        (delivery,) = await postback.list(app_id=APP)
        assert delivery.state == delivery_pb2.Delivery.STATE_PENDING


async def test_what_opens_an_account_is_seen_nowhere(
    postback: Running,
    endpoint: Endpoint,
    served: Served,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Not in attempts, though an endpoint echoes it; not in rows, logs, or the representation of what holds it."""
    secrets = {name: f"secret-{name}-0123456789" for name in SECRETS}

    async def echo(request: web.Request) -> web.Response:
        return web.Response(text=request.headers["Authorization"], status=400)

    endpoint.answers[PATH] = echo
    await configure(postback, endpoint)
    account = await create_account(served, credentials=secrets)
    assert (await sent(postback, purchase("c1", claim_tracker(account))))[0] == "HTTP_STATUS"
    (attempt,) = await attempts_of(postback, "c1")
    assert attempt.request_headers["Authorization"] == "OAuth _masked_"
    assert 'oauth_token="_masked_"' in attempt.response_body
    held = [str(attempt), repr(postback.accounts._held), *capfd.readouterr()]
    rows = [
        await postback.pool.fetch(f"SELECT * FROM {table}") for table in ("configurations", "deliveries", "attempts")
    ]
    held += [str(bytes(value)) for table in rows for row in table for value in row.values() if isinstance(value, bytes)]
    assert postback.accounts._held, "it is held in memory"
    assert not [secret for secret in secrets.values() for text in held if secret in text]


class Counted:
    """A tracker that counts how often it was asked, and may be away."""

    def __init__(self, tracker: Stub) -> None:
        self._tracker, self.calls, self.is_away = tracker, 0, False

    async def GetSanAccountCredentials(self, request: Any, timeout: float) -> Any:
        self.calls += 1
        if self.is_away:
            raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata())
        return await self._tracker.GetSanAccountCredentials(request, timeout=timeout)


@pytest.fixture
async def tracker(served: Served) -> AsyncIterator[Counted]:
    async with tracker_of(served, POSTBACK_KEY) as stub:
        yield Counted(stub)


async def test_credentials_are_read_once_a_minute_and_when_the_account_has_changed(
    served: Served, endpoint: Endpoint, tracker: Counted
) -> None:
    clock = SimpleNamespace(now_s=0.0)
    accounts = SanAccounts(cast(Any, tracker), clock_s=lambda: clock.now_s)
    one = compiled(completed(configuration(**fields(endpoint, app_id=APP, secrets={}))))
    account = await create_account(served, credentials=SECRETS)

    async def token(account: SanAccount) -> str:
        return (await accounts.secrets(one, purchase("c", claim_tracker(account))))["token"]

    assert await asyncio.gather(*(token(account) for _ in range(50))) == [SECRETS["token"]] * 50
    assert tracker.calls == 1
    newer = await update_account(served, **SECRETS | {"token": "new"})
    assert await token(account) == SECRETS["token"], "of a conversion from before the change"
    assert await token(newer) == "new"
    assert tracker.calls == 2
    newest = await update_account(served, **SECRETS | {"token": "newest"})
    clock.now_s = FRESH_S
    tracker.is_away = True
    assert await token(newer) == await token(newest) == "new", "better than none, while tracker is away"
    assert tracker.calls == 4
    tracker.is_away = False
    clock.now_s += 5
    assert await token(newer) == "newest"
    await update_account(served)
    clock.now_s += FRESH_S
    with pytest.raises(CredentialsMissingError):
        await token(newer)


async def test_an_archived_account_opens_nothing_any_more(served: Served, endpoint: Endpoint, tracker: Counted) -> None:
    accounts = SanAccounts(cast(Any, tracker))
    adapter = {"app_id": "1", "conversion_type": "PURCHASE", "san_account_id": "x1"}
    one = compiled(completed(configuration(**fields(endpoint, app_id=APP, secrets={}, x=adapter))))
    account = await create_account(served, credentials=SECRETS)
    conversion = purchase("c", claim_tracker(account))
    assert await accounts.secrets(one, conversion) == SECRETS
    async with tracker_of(served) as admin:
        await admin.ArchiveSanAccount(san_account_pb2.ArchiveSanAccountRequest(san_account_id="x1"))
    accounts = SanAccounts(cast(Any, tracker))
    with pytest.raises(CredentialsMissingError, match="SAN account x1"):
        await accounts.secrets(one, conversion)
    assert replace(one, secrets=SECRETS).secrets == await accounts.secrets(replace(one, secrets=SECRETS), conversion)
