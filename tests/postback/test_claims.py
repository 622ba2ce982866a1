"""Claims: networks are asked once, answers reach who waits, and what comes late changes nothing (E1 to E4)."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from aiohttp import web
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from prometheus_client import REGISTRY

from deploy.local.x_network import PATH, SECRETS, Conduct, LocalX, attribution, hashed
from libs.errors import from_rpc_error
from reengage.attribution.v1 import offer_pb2
from reengage.ingest.v1 import record_pb2
from reengage.postback.v1 import claim_pb2, configuration_pb2, conversion_pb2, delivery_pb2
from reengage.postback.v1.method_pb2 import METHOD_POST
from reengage.tracker.v1.app_pb2 import PLATFORM_IOS
from tests.conftest import Database
from tests.postback.conftest import Endpoint, Running, purchase, running, until_ended
from tests.support.eventually import eventually

ClaimAnswer = claim_pb2.ClaimAnswer
Delivery = delivery_pb2.Delivery
IDFA = "6D92078A-8246-4BA4-AE5B-76104861E7DC"
HASHED = hashed(IDFA)
YESTERDAY = datetime.now(UTC).replace(microsecond=0) - timedelta(days=1)
CLICK = Conduct(twitter=attribution(YESTERDAY, campaign_name="Summer"))


@pytest.fixture
def x(endpoint: Endpoint) -> LocalX:
    """Returns X, at the test's endpoint."""
    network = LocalX()
    endpoint.answers[PATH] = network.handle
    return network


def fields(endpoint: Endpoint, **changes: Any) -> dict[str, Any]:
    """Returns the fields of a configuration of the X adapter for `Purchase` of app `app`."""
    adapter = {"app_id": "333903271", "conversion_type": "PURCHASE", "base_url": endpoint.url("")}
    return {"configuration_id": "k", "network_id": "x-ios", "x": adapter, "secrets": SECRETS, **changes}


def undecided(conversion_id: str = "c1", *, idfa: str = IDFA, app_id: str = "app") -> conversion_pb2.Conversion:
    """Returns a purchase as attribution asks about it."""
    conversion = purchase(conversion_id, app_id=app_id)
    decision = conversion.decision
    for field in ("outcome", "attribution_type", "network_id", "tracker_id", "version"):
        decision.ClearField(field)
    conversion.ClearField("engagement")
    conversion.record.device_ids["idfa"] = idfa
    conversion.names.platform = PLATFORM_IOS
    return conversion


def decided(conversion_id: str = "c1", **decision: Any) -> conversion_pb2.Conversion:
    """Returns the same when it has been decided."""
    conversion = purchase(conversion_id, **decision)
    conversion.record.device_ids["idfa"] = IDFA
    conversion.names.platform = PLATFORM_IOS
    return conversion


async def ask(
    service: Running, *conversions: conversion_pb2.Conversion, wait_s: float | None = 10
) -> list[claim_pb2.ConversionClaims]:
    request = claim_pb2.RequestClaimsRequest(conversions=conversions)
    if wait_s is not None:
        request.wait.FromMilliseconds(int(wait_s * 1000))
    return list((await service.deliveries.RequestClaims(request)).conversions)


async def answer(service: Running, wait_s: float = 10) -> claim_pb2.ClaimAnswer:
    """Returns the one network's answer to the one conversion."""
    ((only,),) = [claims.answers for claims in await ask(service, undecided(), wait_s=wait_s)]
    return only


def late() -> float:
    return REGISTRY.get_sample_value("postback_claims_late_total") or 0.0


async def test_a_claim_is_the_answer_and_the_request_is_the_postback(
    service: Running, endpoint: Endpoint, x: LocalX
) -> None:
    await service.configure(**fields(endpoint))
    x.conducts[HASHED] = CLICK
    (claims,) = await ask(service, undecided())
    assert (claims.app_id, claims.conversion_id) == ("app", "c1")
    (only,) = claims.answers
    assert (only.network_id, only.state) == ("x-ios", ClaimAnswer.STATE_CLAIMED)
    assert only.claim.engagement_time.ToDatetime(UTC) == YESTERDAY
    assert (only.claim.is_view, only.claim.campaign_name, only.claim.granular_data_forbidden) == (
        False,
        "Summer",
        False,
    )
    (sent,) = x.received
    assert sent["conversion_type"] == "PURCHASE"
    assert await service.enqueue(decided()) == 0
    delivery = await service.only()
    assert (delivery.state, len(delivery.attempts)) == (Delivery.STATE_DELIVERED, 1)
    assert len(x.received) == 1


async def test_answers_that_claim_nothing(service: Running, endpoint: Endpoint, x: LocalX) -> None:
    await service.configure(**fields(endpoint, retry_attempts=0))
    broken, refused = hashed("broken"), hashed("refused")
    x.conducts |= {broken: Conduct(failures=[503]), refused: Conduct(failures=[403])}
    anonymous = undecided("anonymous")
    anonymous.record.device_ids.clear()
    answers = await ask(
        service, undecided("none"), undecided("broken", idfa="broken"), undecided("refused", idfa="refused"), anonymous
    )
    assert {one.conversion_id: [found.state for found in one.answers] for one in answers} == {
        "none": [ClaimAnswer.STATE_NOT_CLAIMED],
        "broken": [ClaimAnswer.STATE_UNAVAILABLE],
        "refused": [ClaimAnswer.STATE_UNAVAILABLE],
        "anonymous": [ClaimAnswer.STATE_UNAVAILABLE],
    }
    assert [one.conversion_id for one in answers] == ["none", "broken", "refused", "anonymous"]
    (delivery,) = await service.list(conversion_id="anonymous")
    (attempt,) = (await service.get(delivery.delivery_id)).attempts
    assert (delivery.state, attempt.verdict, attempt.method) == (
        Delivery.STATE_REFUSED,
        delivery_pb2.Attempt.VERDICT_NOT_RENDERED,
        METHOD_POST,
    )


async def test_what_is_kept_of_a_request_opens_nothing(service: Running, endpoint: Endpoint, x: LocalX) -> None:
    await service.configure(**fields(endpoint))
    await ask(service, undecided())
    (attempt,) = (await service.only()).attempts
    assert attempt.request_headers["Authorization"] == "OAuth _masked_"
    assert not [value for value in SECRETS.values() if value in str(attempt)]


@pytest.mark.slow
async def test_a_network_that_does_not_answer_is_waited_for_no_longer_than_asked(
    service: Running, endpoint: Endpoint, x: LocalX
) -> None:
    await service.configure(**fields(endpoint, attempt_timeout=Duration(seconds=30)))
    x.conducts[HASHED] = Conduct(silent=True)
    other = undecided("c2", idfa="other")
    began = time.monotonic()
    silent, quick = await ask(service, undecided(), other, wait_s=None)
    assert 1 <= time.monotonic() - began < 5
    assert [found.state for found in silent.answers] == [ClaimAnswer.STATE_PENDING]
    assert [found.state for found in quick.answers] == [ClaimAnswer.STATE_NOT_CLAIMED]
    began = time.monotonic()
    assert (await answer(service, wait_s=0)).state == ClaimAnswer.STATE_PENDING
    assert time.monotonic() - began < 1
    assert len(x.received) == 2


async def test_nobody_waits_longer_than_the_network_takes(service: Running, endpoint: Endpoint, x: LocalX) -> None:
    await service.configure(**fields(endpoint))
    x.conducts[HASHED] = replace(CLICK, delay_s=0.3)
    waiting = [asyncio.create_task(answer(service)) for _ in range(5)]
    began = time.monotonic()
    assert {(await one).state for one in waiting} == {ClaimAnswer.STATE_CLAIMED}
    assert time.monotonic() - began < 5
    assert len(x.received) == 1


@pytest.mark.slow
async def test_the_first_retries_are_soon_while_somebody_waits(
    database: Database, tmp_path: Path, endpoint: Endpoint, x: LocalX
) -> None:
    # Half of the longest wait.
    async with running(database, tmp_path / "sock", allowed=endpoint.host, jitter=lambda: 0.5) as service:
        await service.configure(**fields(endpoint))
        x.conducts[HASHED] = replace(CLICK, failures=[503, 429])
        assert (await answer(service)).state == ClaimAnswer.STATE_CLAIMED
        attempts = (await service.only()).attempts
        waits = [one.next_attempt_time.ToNanoseconds() - one.start_time.ToNanoseconds() for one in attempts[:2]]
        assert [0.5e9 <= waits[0] < 1e9, 1e9 <= waits[1] < 2e9] == [True, True]


@pytest.mark.parametrize("scope", ["", "account-"])
async def test_the_limit_that_was_met_is_waited_for(service: Running, endpoint: Endpoint, scope: str) -> None:
    reset = int(time.time()) + 600
    limits = {"x-rate-limit-remaining": "9", "x-rate-limit-reset": str(reset + 9999)}
    limits |= {"x-account-rate-limit-remaining": "9", "x-account-rate-limit-reset": str(reset + 9999)}
    limits |= {f"x-{scope}rate-limit-remaining": "0", f"x-{scope}rate-limit-reset": str(reset)}

    async def limited(request: web.Request) -> web.Response:
        return web.json_response({"errors": [{"code": "TOO_MANY_REQUESTS"}]}, status=429, headers=limits)

    endpoint.answers[PATH] = limited
    await service.configure(**fields(endpoint))
    await ask(service, undecided(), wait_s=0)

    async def attempted() -> bool:
        return len((await service.only()).attempts) == 1

    await eventually(attempted)
    (attempt,) = (await service.only()).attempts
    assert abs(attempt.next_attempt_time.ToSeconds() - reset) <= 2


async def test_x_tells_when_its_limit_is_met(service: Running, endpoint: Endpoint) -> None:
    now_s = time.time()
    x = LocalX(now_s=lambda: now_s)
    endpoint.answers[PATH] = x.handle
    await service.configure(**fields(endpoint))
    x.calls_left = 1
    first, second = await ask(service, undecided("c1"), undecided("c2"), wait_s=1)
    assert sorted(one.answers[0].state for one in (first, second)) == [
        ClaimAnswer.STATE_PENDING,
        ClaimAnswer.STATE_NOT_CLAIMED,
    ]


OLDER = attribution(YESTERDAY - timedelta(days=1), campaign_name="older")
VIEW = attribution(YESTERDAY + timedelta(hours=1), "VIEW", campaign_name="view")
CONDUCTS = {
    "silent": Conduct(silent=True),
    "broken": Conduct(failures=[403]),
    "none": Conduct(),
    "view": Conduct(twitter=VIEW),
    "older": Conduct(twitter=OLDER),
    "click": CLICK,
}


@pytest.mark.parametrize(
    ("conducts", "state", "campaign"),
    [
        pytest.param(["broken", "none"], ClaimAnswer.STATE_NOT_CLAIMED, "", id="one is broken"),
        pytest.param(["none", "silent"], ClaimAnswer.STATE_PENDING, "", id="one is silent", marks=pytest.mark.slow),
        pytest.param(
            ["silent", "view"], ClaimAnswer.STATE_CLAIMED, "view", id="a claim of two", marks=pytest.mark.slow
        ),
        pytest.param(["view", "older", "none"], ClaimAnswer.STATE_CLAIMED, "older", id="the click"),
        pytest.param(["older", "click"], ClaimAnswer.STATE_CLAIMED, "Summer", id="the newer click"),
    ],
)
async def test_of_several_configurations_of_a_network_the_best_answer_counts(
    service: Running, endpoint: Endpoint, conducts: list[str], state: ClaimAnswer.State.ValueType, campaign: str
) -> None:
    """Each has a path of its own, as each X account would be another's."""
    for name in conducts:
        endpoint.answers[f"/{name}{PATH}"] = LocalX({HASHED: CONDUCTS[name]}).handle
        adapter = {"app_id": "1", "conversion_type": "PURCHASE", "base_url": endpoint.url(f"/{name}")}
        await service.configure(**fields(endpoint, x=adapter, configuration_id=name))
    (claims,) = await ask(service, undecided(), wait_s=2)
    (only,) = claims.answers
    assert (only.state, only.claim.campaign_name) == (state, campaign)


async def test_only_live_configurations_that_may_be_told_are_asked(
    service: Running, endpoint: Endpoint, x: LocalX
) -> None:
    await service.configure(**fields(endpoint, respect_data_controlled=True))
    paused = configuration_pb2.Configuration.STATUS_PAUSED
    await service.configure(**fields(endpoint, configuration_id="paused", network_id="other", status=paused))
    controlled = undecided("controlled")
    controlled.record.data_controlled = True
    free, withheld = await ask(service, undecided("free"), controlled)
    not_asked = ClaimAnswer.STATE_NOT_ASKED
    assert [(found.network_id, found.state) for found in free.answers] == [
        ("other", not_asked),
        ("x-ios", ClaimAnswer.STATE_NOT_CLAIMED),
    ]
    assert [(found.network_id, found.state) for found in withheld.answers] == [
        ("other", not_asked),
        ("x-ios", not_asked),
    ]
    assert len(x.received) == 1
    await service.configure(configuration_id="template", network_id="x-ios", template={"url": endpoint.url("/t")})
    await ask(service, undecided("link-based networks learn of decided conversions"))
    assert endpoint.at("/t") == []


async def test_a_configuration_that_another_process_was_told_of_is_asked(
    database: Database, tmp_path: Path, endpoint: Endpoint, x: LocalX
) -> None:
    async with (
        running(database, tmp_path / "one.sock", allowed=endpoint.host) as one,
        running(database, tmp_path / "two.sock", allowed=endpoint.host, poll_interval_s=3600.0) as two,
    ):
        await one.configure(**fields(endpoint))
        assert (await answer(two)).state == ClaimAnswer.STATE_NOT_CLAIMED


async def test_any_process_may_hear_the_answer(
    database: Database, tmp_path: Path, endpoint: Endpoint, x: LocalX
) -> None:
    async with (
        running(database, tmp_path / "one.sock", allowed=endpoint.host) as one,
        running(database, tmp_path / "two.sock", allowed=endpoint.host) as two,
    ):
        await one.configure(**fields(endpoint))
        await two.configurations.refresh()
        conversions = [undecided(f"c{n}") for n in range(60)]
        both = await asyncio.gather(ask(one, *conversions), ask(two, *conversions))
    for claims in both:
        assert [one.conversion_id for one in claims] == [f"c{n}" for n in range(60)]
        assert {found.state for one in claims for found in one.answers} == {ClaimAnswer.STATE_NOT_CLAIMED}
    assert len(x.received) == 60


# Late claims


async def test_a_claim_that_comes_when_it_was_decided_is_kept_counted_and_no_answer_to_wait_for(
    service: Running, endpoint: Endpoint, x: LocalX
) -> None:
    await service.configure(**fields(endpoint))
    x.conducts[HASHED] = replace(CLICK, delay_s=0.5)
    before = late()
    assert (await answer(service, wait_s=0)).state == ClaimAnswer.STATE_PENDING
    assert await service.enqueue(decided(claims_unavailable=["x-ios"])) == 0
    await until_ended(service)
    assert late() == before + 1
    stored = await service.pool.fetchrow("SELECT conversion, network_claim FROM deliveries")
    assert stored is not None
    assert claim_pb2.Claim.FromString(stored["network_claim"]).campaign_name == "Summer"
    # What is sent again later is the conversion as it was decided.
    assert conversion_pb2.Conversion.FromString(stored["conversion"]).decision.claims_unavailable == ["x-ios"]


async def test_a_claim_that_came_after_the_asker_s_wait_is_late(
    service: Running, endpoint: Endpoint, x: LocalX
) -> None:
    await service.configure(**fields(endpoint))
    x.conducts[HASHED] = CLICK
    await ask(service, undecided(), wait_s=0)
    await until_ended(service)
    before = late()
    await service.enqueue(decided(claims_unavailable=["x-ios"]))
    assert late() == before + 1
    # Said once, however often it is handed over.
    await service.enqueue(decided(claims_unavailable=["x-ios"]))
    assert late() == before + 1


async def test_a_claim_that_was_heard_is_not_late_and_stays_what_it_was(
    service: Running, endpoint: Endpoint, x: LocalX
) -> None:
    await service.configure(**fields(endpoint))
    x.conducts[HASHED] = CLICK
    before = late()
    assert (await answer(service)).state == ClaimAnswer.STATE_CLAIMED
    await service.enqueue(decided())
    assert late() == before
    x.conducts[HASHED] = Conduct()
    delivery = await service.only()
    await service.deliveries.Redeliver(delivery_pb2.RedeliverRequest(delivery_id=delivery.delivery_id, request_id="r"))
    await until_ended(service)
    assert len(x.received) == 2
    assert (await answer(service)).claim.campaign_name == "Summer"


async def test_a_conversion_that_nobody_asked_about_is_told_when_it_is_decided(
    service: Running, endpoint: Endpoint, x: LocalX
) -> None:
    await service.configure(**fields(endpoint))
    assert await service.enqueue(decided()) == 1
    await until_ended(service)
    assert len(x.received) == 1
    assert await service.enqueue(decided()) == 0


# Triggers


async def next_triggers(stream: AsyncIterator[Any]) -> list[tuple[str, str, str]]:
    response = await asyncio.wait_for(anext(stream), 30)
    return [(one.app_id, one.event_name, one.network_id) for one in response.triggers]


@pytest.mark.slow
async def test_whoever_watches_knows_what_to_ask_about(database: Database, tmp_path: Path, endpoint: Endpoint) -> None:
    async with (
        running(database, tmp_path / "one.sock", allowed=endpoint.host) as one,
        running(database, tmp_path / "two.sock", allowed=endpoint.host) as two,
    ):
        streams = [
            aiter(each.deliveries.WatchClaimTriggers(claim_pb2.WatchClaimTriggersRequest())) for each in (one, two)
        ]

        async def told() -> list[tuple[str, str, str]]:
            first, second = [await next_triggers(stream) for stream in streams]
            assert first == second
            return first

        assert await told() == []
        await one.configure(template={"url": endpoint.url("/x")})
        await one.configure(**fields(endpoint))
        assert await told() == [("app", "Purchase", "x-ios")]
        await one.configure(**fields(endpoint, configuration_id="again"))
        await two.configure(**fields(endpoint, configuration_id="install", trigger="_install", app_id="a"))
        assert await told() == [("a", "_install", "x-ios"), ("app", "Purchase", "x-ios")]
        for configuration_id in ("k", "again"):
            archive = configuration_pb2.ArchiveConfigurationRequest(configuration_id=configuration_id)
            await two.configs.ArchiveConfiguration(archive)
        assert await told() == [("a", "_install", "x-ios")]


# What is refused


@pytest.mark.parametrize("wait_s", [-0.001, 10.001])
async def test_a_wait_has_bounds(service: Running, wait_s: float) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(service, undecided(), wait_s=wait_s)
    assert [found.field for found in from_rpc_error(caught.value).violations] == ["wait"]


async def test_what_is_asked_about_must_be_whole(service: Running) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(service, undecided(), conversion_pb2.Conversion(record=record_pb2.Record()))
    assert [found.field for found in from_rpc_error(caught.value).violations] == [
        f"conversions[1].decision.{name}" for name in ("app_id", "event_name", "conversion_id")
    ]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(service, *(undecided() for _ in range(1001)))
    assert from_rpc_error(caught.value).reason == "BATCH_TOO_LARGE"


async def test_every_wrong_field_of_an_x_configuration_is_named_at_once(service: Running, endpoint: Endpoint) -> None:
    adapter = {
        "conversion_type": "BUY",
        "click_window": "7d",
        "letter_case": 9,
        "encoding": "HEXADECIMAL",
        "base_url": "https://user@x.example/",
        "token_secret": "t",
    }
    wrong = fields(
        endpoint,
        x=adapter,
        secrets={"token": "t", "tokem": "t"},
        deliveries_per_second=67,
        clicks_only=True,
        delivery_delay=Duration(seconds=30),
        delivery_method=configuration_pb2.Configuration.DELIVERY_METHOD_NETWORK_ONLY,
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await service.configure(**wrong)
    found = [f"{one.field} {one.reason}" for one in from_rpc_error(caught.value).violations]
    assert sorted(found) == sorted(
        [
            "configuration.adapter_fields.app_id REQUIRED",
            "configuration.adapter_fields.conversion_type NOT_ALLOWED",
            "configuration.adapter_fields.click_window UNKNOWN_FIELD",
            "configuration.adapter_fields.letter_case INVALID_TYPE",
            "configuration.adapter_fields.encoding NOT_ALLOWED",
            "configuration.adapter_fields.base_url INVALID_URL",
            "configuration.adapter_fields.token_secret SECRET",
            "configuration.secrets.tokem UNKNOWN_FIELD",
            "configuration.deliveries_per_second OUT_OF_RANGE",
            "configuration.clicks_only NOT_ALLOWED",
            "configuration.delivery_delay NOT_ALLOWED",
            "configuration.delivery_method NOT_ALLOWED",
        ]
    )


async def test_an_x_configuration_s_defaults_address_and_preview(service: Running, endpoint: Endpoint) -> None:
    created = await service.configure(**fields(endpoint, x={"app_id": "1", "conversion_type": "INSTALL"}))
    assert dict(created.adapter_fields) == {
        "app_id": "1",
        "conversion_type": "INSTALL",
        "letter_case": "LOWER",
        "encoding": "HEX",
        "base_url": "https://ads-api.x.com",
    }
    assert sorted(created.secret_names) == sorted(SECRETS)
    preview = await service.configs.Preview(configuration_pb2.PreviewRequest(configuration_id="k"))
    assert preview.method == METHOD_POST
    assert preview.url.startswith("https://ads-api.x.com/12/conversion_event?app_id=1&conversion_time=2026-01-01T")
    assert preview.headers["Authorization"] == "OAuth _masked_"
    adapter = {"app_id": "1", "conversion_type": "INSTALL", "base_url": "http://10.0.0.1/"}
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await service.configure(**fields(endpoint, configuration_id="private", x=adapter))
    (found,) = from_rpc_error(caught.value).violations
    assert (found.field, found.reason) == ("configuration.adapter_fields.base_url", "ADDRESS_FORBIDDEN")


# Offered postbacks


async def offered(service: Running, *conversions: conversion_pb2.Conversion) -> list[tuple[str, str, str]]:
    request = conversion_pb2.EnqueueConversionsRequest(conversions=conversions, validate_only=True)
    response = await service.deliveries.EnqueueConversions(request)
    assert response.created_count == 0
    effects = offer_pb2.OfferedPostback.Effect
    return [
        (one.conversion_id, one.configuration_id, effects.Name(one.effect).removeprefix("EFFECT_"))
        for one in response.offered
    ]


async def test_a_new_version_offers_what_it_changes(service: Running, endpoint: Endpoint, x: LocalX) -> None:
    only = configuration_pb2.Configuration.DELIVERY_METHOD_NETWORK_ONLY
    for network_id in ("one", "two"):
        await service.configure(
            configuration_id=network_id,
            network_id=network_id,
            template={"url": endpoint.url("/x")},
            delivery_method=only,
        )
    await service.configure(configuration_id="all", template={"url": endpoint.url("/x")})
    await service.configure(**fields(endpoint))
    before = [decided("c1", network_id="one"), decided("c2", network_id="two")]
    assert await offered(service, *before) == [
        ("c1", "all", "WOULD_BE_SENT"),
        ("c1", "k", "WOULD_BE_SENT"),
        ("c1", "one", "WOULD_BE_SENT"),
        ("c2", "all", "WOULD_BE_SENT"),
        ("c2", "k", "WOULD_BE_SENT"),
        ("c2", "two", "WOULD_BE_SENT"),
    ]
    assert await service.list() == []
    assert await service.enqueue(*before) == 6
    assert await offered(service, *before) == []
    after = [decided("c1", network_id="two", version=2), decided("c2", network_id="two", version=2)]
    assert await offered(service, *after) == [("c1", "one", "WAS_SENT"), ("c1", "two", "WOULD_BE_SENT")]
    # An archived one sends no more, but what it sent it sent.
    for configuration_id in ("one", "two", "all"):
        archive = configuration_pb2.ArchiveConfigurationRequest(configuration_id=configuration_id)
        await service.configs.ArchiveConfiguration(archive)
    assert await offered(service, *after) == [("c1", "one", "WAS_SENT")]


async def test_a_session_that_would_be_held_back_is_not_offered(service: Running, endpoint: Endpoint) -> None:
    await service.configure(
        configuration_id="sessions",
        template={"url": endpoint.url("/x")},
        trigger="SessionBegin",
        delivery_method=configuration_pb2.Configuration.DELIVERY_METHOD_NETWORK_ONLY,
    )

    def session(hours: float, device_id: str = "d") -> conversion_pb2.Conversion:
        stamp = Timestamp(seconds=1_767_200_000 + int(hours * 3600))
        return purchase(f"{device_id}{hours}", event_name="SessionBegin", device_id=device_id, conversion_time=stamp)

    await service.enqueue(session(0))
    offers = await offered(service, session(-1), session(0), session(23.9), session(24), session(1, "e"))
    assert [conversion_id for conversion_id, _, _ in offers] == ["d24", "e1"]


# Erasing


async def test_an_attempt_that_ends_after_its_delivery_was_erased_leaves_no_row(
    service: Running, endpoint: Endpoint, x: LocalX
) -> None:
    await service.configure(**fields(endpoint))
    x.conducts[HASHED] = replace(CLICK, delay_s=0.3)
    asked = asyncio.create_task(ask(service, undecided("c1")))

    async def under_way() -> bool:
        return len(x.received) == 1

    await eventually(under_way)
    assert await service.erase(conversion_ids=["c1"]) == {"deliveries": 1, "attempts": 0, "session_holds": 0}
    # Whoever waits is told that there is nobody to wait for.
    (claims,) = await asked
    assert list(claims.answers) == []
    # A later one is settled after it.
    await ask(service, undecided("c2", idfa="other"))
    assert await service.pool.fetchval("SELECT count(*) FROM attempts") == 1
