"""Reasons for which a network gave no claim: one for each cause, and none says that it was asked when it was not."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from deploy.local.x_network import PATH, SECRETS, Conduct, LocalX
from reengage.ingest.v1 import record_pb2
from reengage.postback.v1 import claim_pb2, configuration_pb2, conversion_pb2, delivery_pb2
from services.postback.model import LeaseRequest
from tests.conftest import Database
from tests.postback.conftest import Endpoint, Running, answering, running
from tests.postback.test_claims import HASHED, ask, fields, undecided
from tests.support.eventually import eventually
from tests.support.ports import free_port

ClaimAnswer = claim_pb2.ClaimAnswer
Answered = tuple[str, str, int, str]
"""State, reason, status and detail."""
PAUSED = configuration_pb2.Configuration.STATUS_PAUSED


@pytest.fixture
def x(endpoint: Endpoint) -> LocalX:
    """Returns X, at the test's endpoint."""
    network = LocalX()
    endpoint.answers[PATH] = network.handle
    return network


@pytest.fixture
async def idle(database: Database, endpoint: Endpoint, tmp_path: Path) -> AsyncIterator[Running]:
    """Yields a postback that sends nothing."""
    async with running(database, tmp_path / "idle.sock", allowed=endpoint.host, works=False) as one:
        yield one


def told(answer: claim_pb2.ClaimAnswer) -> Answered:
    """Returns what an answer says, and checks that it leads to its delivery."""
    state = ClaimAnswer.State.Name(answer.state).removeprefix("STATE_")
    assert bool(answer.delivery_id) is (state != "NOT_ASKED")
    reason = ClaimAnswer.Reason.Name(answer.reason).removeprefix("REASON_")
    return state, reason, answer.status_code, answer.detail


async def reason(service: Running, conversion: conversion_pb2.Conversion, *, wait_s: float = 10) -> Answered:
    """Returns what is told of the one network about a conversion."""
    ((only,),) = [claims.answers for claims in await ask(service, conversion, wait_s=wait_s)]
    return told(only)


async def reason_once_attempted(service: Running, conversion: conversion_pb2.Conversion) -> Answered:
    """Returns what is told when one attempt has failed and others follow."""
    await ask(service, conversion, wait_s=0)

    async def attempted() -> bool:
        return bool((await service.only()).attempts)

    await eventually(attempted)
    return await reason(service, conversion, wait_s=0)


def answering_with(status: int, **response: Any) -> Callable[[web.Request], Any]:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=status, **response)

    return answer


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        pytest.param(403, "", ("UNAVAILABLE", "HTTP_STATUS", 403, ""), id="refused"),
        pytest.param(302, "", ("UNAVAILABLE", "REDIRECT", 302, ""), id="redirected"),
        pytest.param(200, "fine", ("UNAVAILABLE", "BODY_MISMATCH", 200, ""), id="no answer of X's"),
        pytest.param(503, "", ("UNAVAILABLE", "HTTP_STATUS", 503, ""), id="all tries failed"),
    ],
)
async def test_it_was_asked(service: Running, endpoint: Endpoint, status: int, body: str, expected: Answered) -> None:
    endpoint.answers[PATH] = answering_with(status, text=body)
    await service.configure(**fields(endpoint, retry_attempts=0))
    assert await reason(service, undecided()) == expected


async def test_it_claimed_a_time_that_an_older_release_took(service: Running, endpoint: Endpoint) -> None:
    endpoint.answers[PATH] = answering_with(200, text='{"data": {}}')
    await service.configure(**fields(endpoint))
    conversion = undecided()
    await ask(service, conversion)
    claim = claim_pb2.Claim(engagement_time=Timestamp(seconds=2**62))
    await service.pool.execute("UPDATE deliveries SET network_claim = $1", claim.SerializeToString())
    detail = "its claim names a time at which nobody engaged"
    assert await reason(service, conversion) == ("UNAVAILABLE", "BODY_MISMATCH", 0, detail)


async def test_it_was_asked_and_will_be_again(database: Database, endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.answers[PATH] = answering_with(503)
    async with running(database, tmp_path / "p.sock", allowed=endpoint.host, jitter=lambda: 0.999) as service:
        await service.configure(**fields(endpoint))
        assert await reason_once_attempted(service, undecided()) == ("PENDING", "HTTP_STATUS", 503, "")


@pytest.mark.slow
async def test_it_was_asked_and_took_too_long(service: Running, endpoint: Endpoint, x: LocalX) -> None:
    x.conducts[HASHED] = Conduct(silent=True)
    await service.configure(**fields(endpoint, retry_attempts=0, attempt_timeout=Duration(seconds=1)))
    assert await reason(service, undecided()) == ("UNAVAILABLE", "TIMEOUT", 0, "")


async def test_it_is_being_asked(service: Running, endpoint: Endpoint, x: LocalX) -> None:
    x.conducts[HASHED] = Conduct(silent=True)
    await service.configure(**fields(endpoint, attempt_timeout=Duration(seconds=1)))
    await ask(service, undecided(), wait_s=0)

    async def under_way() -> bool:
        return len(x.received) == 1

    await eventually(under_way)
    assert await reason(service, undecided(), wait_s=0) == ("PENDING", "UNDER_WAY", 0, "")


async def test_it_could_not_be_reached(database: Database, endpoint: Endpoint, tmp_path: Path) -> None:
    nobody = f"127.0.0.1:{free_port()}"
    async with running(database, tmp_path / "p.sock", allowed=nobody) as service:
        adapter = {"app_id": "1", "conversion_type": "PURCHASE", "base_url": f"http://{nobody}"}
        await service.configure(**fields(endpoint, x=adapter, retry_attempts=0))
        assert await reason(service, undecided()) == ("UNAVAILABLE", "CONNECTION_FAILED", 0, "")


async def test_its_host_may_not_be_reached(database: Database, endpoint: Endpoint, tmp_path: Path) -> None:
    lookup, _ = answering(["10.0.0.1"])
    async with running(database, tmp_path / "p.sock", lookup=lookup) as service:
        adapter = {"app_id": "1", "conversion_type": "PURCHASE", "base_url": "https://x.example"}
        await service.configure(**fields(endpoint, x=adapter))
        assert await reason(service, undecided()) == ("UNAVAILABLE", "ADDRESS_FORBIDDEN", 0, "")


async def test_the_app_is_a_sandbox(service: Running, endpoint: Endpoint) -> None:
    await service.configure(**fields(endpoint, x={"app_id": "1", "conversion_type": "PURCHASE"}))
    conversion = undecided()
    conversion.names.sandbox = True
    assert await reason(service, conversion) == ("UNAVAILABLE", "SANDBOX", 0, "")


async def test_the_request_cannot_be_made(service: Running, endpoint: Endpoint, x: LocalX) -> None:
    await service.configure(**fields(endpoint))
    conversion = undecided()
    conversion.record.device_ids.clear()
    detail = "no IDFA or advertising id, which X knows devices by"
    assert await reason(service, conversion) == ("UNAVAILABLE", "NOT_RENDERED", 0, detail)
    assert not x.received


async def test_there_are_no_credentials(service: Running, endpoint: Endpoint, x: LocalX) -> None:
    some = {name: value for name, value in SECRETS.items() if name != "token"}
    await service.configure(**fields(endpoint, secrets=some))
    detail = "no token: neither configuration k nor a tracker of x-ios has: none is for this conversion"
    assert await reason(service, undecided()) == ("UNAVAILABLE", "NO_CREDENTIALS", 0, detail)
    assert not x.received


@pytest.mark.slow
async def test_tracker_does_not_give_the_credentials(service: Running, endpoint: Endpoint, x: LocalX) -> None:
    """Nobody is where tracker should be."""
    await service.configure(**fields(endpoint, secrets={}, retry_attempts=0))
    conversion = undecided()
    conversion.claim_trackers.add(network_id="x-ios", tracker_id="t").accounts.add(san_account_id="x1")
    detail = "tracker did not give the credentials of SAN account x1 (UNAVAILABLE)"
    assert await reason(service, conversion) == ("UNAVAILABLE", "CREDENTIALS_UNAVAILABLE", 0, detail)
    assert not x.received


async def test_others_go_first(service: Running, endpoint: Endpoint, x: LocalX) -> None:
    await service.configure(**fields(endpoint, deliveries_per_second=1))
    answers = await ask(service, *(undecided(f"c{n}") for n in range(9)), wait_s=0.5)
    found = [told(claims.answers[0]) for claims in answers]
    assert ("NOT_CLAIMED", "UNSPECIFIED", 0, "") in found
    assert ("PENDING", "QUEUED", 0, "") in found


async def test_its_configuration_is_paused_while_it_waits(idle: Running, endpoint: Endpoint) -> None:
    await idle.configure(**fields(endpoint))
    assert await reason(idle, undecided(), wait_s=0) == ("PENDING", "QUEUED", 0, "")
    paused = configuration_pb2.Configuration(configuration_id="k", status=PAUSED)
    await idle.configs.UpdateConfiguration(
        configuration_pb2.UpdateConfigurationRequest(configuration=paused, update_mask=FieldMask(paths=["status"]))
    )
    assert await reason(idle, undecided(), wait_s=0) == ("PENDING", "PAUSED", 0, "")
    assert await reason(idle, undecided("c2"), wait_s=0) == ("NOT_ASKED", "PAUSED", 0, "")


async def test_postback_stopped_while_it_asked(idle: Running, endpoint: Endpoint) -> None:
    await idle.configure(**fields(endpoint))
    await ask(idle, undecided(), wait_s=0)
    over_at_once = [LeaseRequest(configuration_id="k", room=1, length_us=0)]
    assert len(await idle.queue.lease(over_at_once, limit=1, retries=False)) == 1
    assert len(await idle.queue.lease(over_at_once, limit=1, retries=True)) == 1
    assert await reason(idle, undecided(), wait_s=0) == ("PENDING", "INTERRUPTED", 0, "")


@pytest.mark.parametrize(
    ("record", "why"),
    [
        pytest.param({"data_controlled": True}, "DATA_CONTROLLED", id="user"),
        pytest.param({"country": "US"}, "COUNTRY", id="country"),
        pytest.param({"event": record_pb2.Event(revenue=record_pb2.Money(amount_micros=-1))}, "REFUND", id="refund"),
    ],
)
async def test_nobody_wants_to_ask_it(
    service: Running, endpoint: Endpoint, x: LocalX, record: dict[str, Any], why: str
) -> None:
    await service.configure(**fields(endpoint, respect_data_controlled=True, blocked_countries=["US"]))
    conversion = undecided()
    conversion.record.MergeFrom(record_pb2.Record(**record))
    assert await reason(service, conversion) == ("NOT_ASKED", why, 0, "")
    assert not x.received


async def test_of_an_archived_configuration_nothing_is_told(service: Running, endpoint: Endpoint) -> None:
    await service.configure(**fields(endpoint))
    await service.configs.ArchiveConfiguration(configuration_pb2.ArchiveConfigurationRequest(configuration_id="k"))
    (claims,) = await ask(service, undecided(), wait_s=0)
    assert not claims.answers


async def test_of_a_request_that_is_made_again_the_last_run_counts(
    service: Running, endpoint: Endpoint, x: LocalX
) -> None:
    await service.configure(**fields(endpoint, attempt_timeout=Duration(seconds=1)))
    assert (await reason(service, undecided()))[0] == "NOT_CLAIMED"
    x.conducts[HASHED] = Conduct(silent=True)
    delivery = await service.only()
    request = delivery_pb2.RedeliverRequest(delivery_id=delivery.delivery_id, request_id="r")
    await service.deliveries.Redeliver(request)

    async def under_way() -> bool:
        return len(x.received) == 2

    await eventually(under_way)
    assert await reason(service, undecided(), wait_s=0) == ("PENDING", "UNDER_WAY", 0, "")


async def test_of_two_configurations_of_a_network_the_one_that_asked_counts(
    service: Running, endpoint: Endpoint, x: LocalX
) -> None:
    await service.configure(**fields(endpoint, configuration_id="a", status=PAUSED))
    await service.configure(**fields(endpoint, configuration_id="b"))
    x.conducts[HASHED] = Conduct(failures=[403])
    assert await reason(service, undecided()) == ("UNAVAILABLE", "HTTP_STATUS", 403, "")
