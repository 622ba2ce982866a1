"""Conversions become deliveries, and deliveries reach an endpoint that does not always behave."""

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from aiohttp import web
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from libs.errors import from_rpc_error
from reengage.attribution.v1 import decision_pb2
from reengage.postback.v1 import configuration_pb2, conversion_pb2, delivery_pb2
from reengage.postback.v1.method_pb2 import METHOD_POST
from services.postback.guard import Guard
from services.postback.model import Leased, LeaseRequest, Status
from services.postback.retry import MAX_INTERRUPTIONS
from tests.conftest import Database
from tests.postback.conftest import (
    Answer,
    Endpoint,
    Running,
    answering,
    purchase,
    running,
    serving,
    template,
    until_ended,
    word,
)
from tests.support.eventually import eventually, until

Delivery = delivery_pb2.Delivery


def answer(status: int, text: str = "", **headers: str) -> Answer:
    async def handle(request: web.Request) -> web.Response:
        return web.Response(status=status, text=text, headers={k.replace("_", "-"): v for k, v in headers.items()})

    return handle


async def hang(request: web.Request) -> web.Response:
    await asyncio.Event().wait()
    raise AssertionError("never")


async def hang_in_the_body(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b"beginning")
    await asyncio.Event().wait()
    return response


async def close_the_connection(request: web.Request) -> web.Response:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def never_end_the_body(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b"x" * 100_000)


def attempted(delivery: delivery_pb2.Delivery) -> list[tuple[str, int, bool]]:
    return [(word(attempt), attempt.status_code, attempt.will_retry) for attempt in delivery.attempts]


async def test_a_conversion_is_told_once(service: Running, endpoint: Endpoint) -> None:
    configuration = await service.configure(template=template(endpoint, "/x?click={click_id}&id={delivery_id}"))
    assert await service.enqueue(purchase()) == 1
    assert await service.enqueue(purchase(), purchase()) == 0
    assert await service.enqueue(purchase(version=2)) == 0
    (delivery,) = await until_ended(service)
    assert (delivery.state, delivery.configuration_id) == (Delivery.STATE_DELIVERED, configuration.configuration_id)
    (received,) = endpoint.received
    assert received.query == {"click": "their click", "id": delivery.delivery_id}
    assert received.delivery_id == received.headers["webhook-id"] == delivery.delivery_id


async def test_every_configuration_that_wants_it_is_told(service: Running, endpoint: Endpoint) -> None:
    await service.configure(template=template(endpoint, "/all"))
    await service.configure(
        template=template(endpoint, "/other"),
        network_id="other",
        delivery_method=configuration_pb2.Configuration.DELIVERY_METHOD_NETWORK_ONLY,
    )
    await service.configure(template=template(endpoint, "/event"), trigger="Other")
    await service.configure(template=template(endpoint, "/app"), app_id="other")
    assert await service.enqueue(purchase("c1"), purchase("c2", network_id="other")) == 3
    await until_ended(service, 3)
    assert (len(endpoint.at("/all")), len(endpoint.at("/other")), len(endpoint.received)) == (2, 1, 3)


@pytest.mark.parametrize(
    ("fields", "untold"),
    [
        ({}, set()),
        ({"clicks_only": True}, {"viewed"}),
        ({"respect_data_controlled": True}, {"controlled"}),
        ({"allowed_countries": ["FR"]}, {"clicked", "viewed", "controlled", "another's"}),
        ({"blocked_countries": ["FR"]}, {"abroad"}),
        ({"delivery_method": configuration_pb2.Configuration.DELIVERY_METHOD_NETWORK_ONLY}, {"another's"}),
        (
            {"status": configuration_pb2.Configuration.STATUS_PAUSED},
            {"clicked", "viewed", "controlled", "abroad", "another's"},
        ),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
)
async def test_a_configuration_is_told_what_it_is_for(
    service: Running, endpoint: Endpoint, fields: dict[str, Any], untold: set[str]
) -> None:
    viewed, controlled, abroad = (purchase(name) for name in ("viewed", "controlled", "abroad"))
    viewed.engagement.impression.tracker_id = "tracker"
    controlled.record.data_controlled = True
    abroad.record.country = "FR"
    everything = [purchase("clicked"), viewed, controlled, abroad, purchase("another's", network_id="other")]
    await service.configure(template=template(endpoint), **fields)
    await service.enqueue(*everything)
    told = {one.conversion_id for one in await service.list()}
    assert told == {one.decision.conversion_id for one in everything} - untold


async def test_what_was_sent_and_answered_is_kept(service: Running, endpoint: Endpoint) -> None:
    endpoint.answers["/x"] = answer(200, "y" * 10_000, X_Their="header")
    await service.configure(
        template=template(
            endpoint,
            method="POST",
            headers={"X-Event": "{event_name}"},
            body='{"revenue": {revenue}, "currency": "{currency}"}',
        ),
        is_revenue=True,
    )
    await service.enqueue(purchase())
    await until_ended(service)
    delivery = await service.only()
    (attempt,) = delivery.attempts
    assert (attempt.method, attempt.url, attempt.status_code) == (METHOD_POST, endpoint.url("/x"), 200)
    assert attempt.request_body == endpoint.received[0].body == '{"revenue": 12.5, "currency": "EUR"}'
    assert attempt.request_headers["X-Event"] == endpoint.received[0].headers["X-Event"] == "Purchase"
    assert attempt.request_headers["Idempotency-Key"] == delivery.delivery_id
    assert attempt.response_headers["x-their"] == "header"
    assert attempt.response_body == "y" * 4096
    assert attempt.duration.ToNanoseconds() > 0
    assert attempt.start_time.ToDatetime() >= delivery.create_time.ToDatetime()
    assert delivery.end_time.ToDatetime() >= attempt.start_time.ToDatetime()


@pytest.mark.parametrize(
    ("handle", "state", "verdict", "status"),
    [
        pytest.param(answer(500), Delivery.STATE_EXHAUSTED, "HTTP_STATUS", 500, id="server error"),
        pytest.param(answer(404), Delivery.STATE_REFUSED, "HTTP_STATUS", 404, id="refusal"),
        pytest.param(answer(302, location="/y"), Delivery.STATE_REFUSED, "REDIRECT", 302, id="redirect"),
        pytest.param(answer(200, "no"), Delivery.STATE_REFUSED, "BODY_MISMATCH", 200, id="wrong body"),
        pytest.param(hang, Delivery.STATE_EXHAUSTED, "TIMEOUT", 0, id="hangs"),
        pytest.param(hang_in_the_body, Delivery.STATE_EXHAUSTED, "TIMEOUT", 200, id="hangs in the body"),
        pytest.param(close_the_connection, Delivery.STATE_EXHAUSTED, "CONNECTION_FAILED", 0, id="closes"),
        pytest.param(never_end_the_body, Delivery.STATE_REFUSED, "BODY_MISMATCH", 200, id="endless body"),
        pytest.param(
            answer(200, "success", x_bad="caf\udce9"), Delivery.STATE_DELIVERED, "DELIVERED", 200, id="bytes as text"
        ),
    ],
)
@pytest.mark.slow
async def test_endpoints_that_misbehave(
    service: Running, endpoint: Endpoint, handle: Answer, state: Delivery.State.ValueType, verdict: str, status: int
) -> None:
    endpoint.answers["/x"] = handle
    await service.configure(
        template=template(endpoint, success_substring="success"),
        retry_attempts=1,
        attempt_timeout=Duration(seconds=1),
    )
    await service.enqueue(purchase())
    (listed,) = await until_ended(service)
    delivery = await service.only()
    assert listed.state == delivery.state == state
    retried = state == Delivery.STATE_EXHAUSTED
    assert attempted(delivery) == [(verdict, status, retried)] * retried + [(verdict, status, False)]
    if verdict == "TIMEOUT":
        took = [attempt.duration.ToTimedelta() for attempt in delivery.attempts]
        assert all(timedelta(seconds=1) <= each < timedelta(seconds=4) for each in took), "no longer than it may"
    assert len(endpoint.at("/y")) == 0
    assert {received.delivery_id for received in endpoint.received} == {delivery.delivery_id}


async def test_a_name_that_leads_to_this_machine_is_not_connected_to(database: Database, tmp_path: Path) -> None:
    lookup, _ = answering(["127.0.0.1"])
    async with running(database, tmp_path / "sock", lookup=lookup) as service:
        await service.configure(template={"url": "http://partner.example:8080/"})
        await service.enqueue(purchase())
        (delivery,) = await until_ended(service)
        assert delivery.state == Delivery.STATE_REFUSED
        assert attempted(await service.only()) == [("ADDRESS_FORBIDDEN", 0, False)]


async def test_nothing_of_a_sandbox_app_reaches_a_host_that_the_allow_list_does_not_name(
    database: Database, tmp_path: Path, endpoint: Endpoint
) -> None:
    """The other host counts as public here, and is this very endpoint: whatever is sent there arrives."""
    new_guard = functools.partial(Guard, ports=frozenset({endpoint.port}), is_public=lambda address: True)
    lookup, _ = answering(["127.0.0.1"])
    async with running(
        database, tmp_path / "sock", allowed=endpoint.host, new_guard=new_guard, lookup=lookup
    ) as service:
        listed = await service.configure(template=template(endpoint, "/listed"))
        other = await service.configure(
            template={"url": f"http://partner.example:{endpoint.port}/other"}, network_id="other"
        )
        sandbox = purchase("sandbox")
        sandbox.names.sandbox = True
        assert await service.enqueue(sandbox, purchase("real")) == 4
        ended = {(one.configuration_id, one.conversion_id): one for one in await until_ended(service, 4)}
        refused = ended.pop((other.configuration_id, "sandbox"))
        assert refused.state == Delivery.STATE_REFUSED
        assert attempted(await service.get(refused.delivery_id)) == [("SANDBOX", 0, False)]
    assert {one.state for one in ended.values()} == {Delivery.STATE_DELIVERED}
    assert ended.keys() == {
        (listed.configuration_id, "sandbox"),
        *((one.configuration_id, "real") for one in (listed, other)),
    }
    assert sorted(one.path for one in endpoint.received) == ["/listed", "/listed", "/other"]


async def test_connection_refused(database: Database, tmp_path: Path) -> None:
    async with serving() as gone:
        pass
    async with running(database, tmp_path / "sock", allowed=gone.host) as service:
        await service.configure(template=template(gone), retry_attempts=0)
        await service.enqueue(purchase())
        await until_ended(service)
        assert attempted(await service.only()) == [("CONNECTION_FAILED", 0, False)]


async def test_tries_until_it_succeeds_under_one_id(service: Running, endpoint: Endpoint) -> None:
    async def fail_twice(request: web.Request) -> web.Response:
        return web.Response(status=500 if len(endpoint.received) < 3 else 200)

    endpoint.answers["/x"] = fail_twice
    await service.configure(template=template(endpoint), retry_attempts=2)
    await service.enqueue(purchase())
    (delivery,) = await until_ended(service)
    assert (delivery.state, delivery.attempt_count) == (Delivery.STATE_DELIVERED, 3)
    assert {received.delivery_id for received in endpoint.received} == {delivery.delivery_id}


async def test_retry_after_is_honoured(service: Running, endpoint: Endpoint) -> None:
    endpoint.answers["/x"] = answer(429, Retry_After="600")
    await service.configure(template=template(endpoint))
    await service.enqueue(purchase())

    async def attempted_once() -> bool:
        return len((await service.only()).attempts) == 1

    await eventually(attempted_once)
    delivery = await service.only()
    assert delivery.state == Delivery.STATE_PENDING
    wait = delivery.next_attempt_time.ToDatetime() - delivery.attempts[0].start_time.ToDatetime()
    assert timedelta(seconds=600) <= wait < timedelta(seconds=660)
    assert delivery.attempts[0].will_retry
    told = delivery.attempts[0].next_attempt_time.ToDatetime() - delivery.next_attempt_time.ToDatetime()
    assert abs(told) < timedelta(seconds=5)


async def test_a_delay_is_kept(service: Running, endpoint: Endpoint) -> None:
    await service.configure(template=template(endpoint, "/late"), delivery_delay=Duration(seconds=600))
    await service.configure(template=template(endpoint, "/now"))
    await service.enqueue(purchase())
    await until_ended(service)
    (late,) = await service.list(states=[Delivery.STATE_PENDING])
    assert late.next_attempt_time.ToDatetime() - late.create_time.ToDatetime() == timedelta(seconds=600)
    assert endpoint.at("/late") == []
    await service.due_now()
    await until_ended(service, 2)
    assert len(endpoint.at("/late")) == 1


async def update(service: Running, configuration_id: str, **fields: Any) -> configuration_pb2.Configuration:
    request = configuration_pb2.UpdateConfigurationRequest(
        configuration=configuration_pb2.Configuration(configuration_id=configuration_id, **fields),
        update_mask=FieldMask(paths=list(fields)),
    )
    return (await service.configs.UpdateConfiguration(request)).configuration


async def test_gone_pauses_the_configuration_and_what_waits_goes_on_later(service: Running, endpoint: Endpoint) -> None:
    endpoint.answers["/x"] = answer(410)
    configuration = await service.configure(template=template(endpoint))
    identity = configuration.configuration_id
    await service.enqueue(purchase("c1"))
    (gone,) = await until_ended(service)
    assert gone.state == Delivery.STATE_REFUSED

    def paused() -> bool:
        known = service.configurations.get(identity)
        return known is not None and known.status is Status.PAUSED

    await until(paused)
    request = configuration_pb2.GetConfigurationRequest(configuration_id=identity)
    shown = (await service.configs.GetConfiguration(request)).configuration
    assert shown.status == configuration_pb2.Configuration.STATUS_PAUSED
    assert await service.enqueue(purchase("c2")) == 0

    other = await service.configure(template=template(endpoint, "/other"))
    await service.enqueue(purchase("c3"))
    await until_ended(service, 2)  # so no lease is under way that was asked for before the pause
    await service.pool.execute(
        "UPDATE deliveries SET state = 1, end_us = NULL, attempt_count = 0, failure_count = 0 "
        "WHERE conversion_id = 'c1'"
    )
    await service.enqueue(purchase("c4"))
    await until_ended(service, 2)
    assert [one.configuration_id for one in await service.list(states=[Delivery.STATE_PENDING])] == [identity]
    assert len(endpoint.at("/x")) == 1

    endpoint.answers.clear()
    await update(service, identity, status=configuration_pb2.Configuration.STATUS_LIVE)
    ended = await until_ended(service, 3)
    assert {one.configuration_id for one in ended} == {identity, other.configuration_id}
    assert {one.state for one in ended} == {Delivery.STATE_DELIVERED}


async def test_archived_makes_no_new_deliveries_and_ends_the_old_ones_with_new_values(
    service: Running, endpoint: Endpoint
) -> None:
    configuration = await service.configure(template=template(endpoint, "/old"), delivery_delay=Duration(seconds=30))
    await service.enqueue(purchase("c1"))
    await update(service, configuration.configuration_id, adapter_fields=template(endpoint, "/new"))
    request = configuration_pb2.ArchiveConfigurationRequest(configuration_id=configuration.configuration_id)
    await service.configs.ArchiveConfiguration(request)
    assert await service.enqueue(purchase("c2")) == 0
    await service.due_now()
    await until_ended(service)
    assert [received.path for received in endpoint.received] == ["/new"]


async def test_a_redelivery_keeps_the_id_and_begins_a_new_run(service: Running, endpoint: Endpoint) -> None:
    endpoint.answers["/x"] = answer(500)
    await service.configure(template=template(endpoint), retry_attempts=1)
    await service.enqueue(purchase())
    (exhausted,) = await until_ended(service)
    assert exhausted.state == Delivery.STATE_EXHAUSTED
    endpoint.answers.clear()
    request = delivery_pb2.RedeliverRequest(delivery_id=exhausted.delivery_id, request_id="r1")
    assert (await service.deliveries.Redeliver(request)).redelivered_count == 1
    (redelivered,) = await until_ended(service)
    assert (redelivered.state, redelivered.redelivery_count, redelivered.attempt_count) == (
        Delivery.STATE_DELIVERED,
        1,
        1,
    )
    assert {received.delivery_id for received in endpoint.received} == {exhausted.delivery_id}
    attempts = (await service.only()).attempts
    assert [(one.redelivery_count, word(one)) for one in attempts] == [
        (0, "HTTP_STATUS"),
        (0, "HTTP_STATUS"),
        (1, "DELIVERED"),
    ]
    # The same request starts nothing new; another one does, though it was delivered.
    assert (await service.deliveries.Redeliver(request)).redelivered_count == 1
    assert len(endpoint.received) == 3
    request.request_id = "r2"
    assert (await service.deliveries.Redeliver(request)).redelivered_count == 1
    await until_ended(service)
    assert len(endpoint.received) == 4


async def test_a_redelivery_of_all_that_match(service: Running, endpoint: Endpoint) -> None:
    endpoint.answers["/bad"] = answer(404)
    bad = await service.configure(template=template(endpoint, "/bad"))
    worse = await service.configure(template=template(endpoint, "/bad"))
    await service.configure(template=template(endpoint, "/good"))
    await service.enqueue(purchase("c1"), purchase("c2"))
    await until_ended(service, 6)
    endpoint.answers.clear()
    request = delivery_pb2.RedeliverRequest(app_id="app", configuration_id=bad.configuration_id, request_id="r1")
    assert (await service.deliveries.Redeliver(request)).redelivered_count == 2
    await until_ended(service, 6)
    request = delivery_pb2.RedeliverRequest(app_id="app", request_id="r2")
    assert (await service.deliveries.Redeliver(request)).redelivered_count == 2
    await until_ended(service, 6)
    assert {one.redelivery_count for one in await service.list(configuration_id=worse.configuration_id)} == {1}
    assert len(endpoint.at("/good")) == 2


@pytest.mark.slow
async def test_one_bad_endpoint_does_not_slow_another(service: Running, endpoint: Endpoint) -> None:
    endpoint.answers["/bad"] = hang
    await service.configure(template=template(endpoint, "/bad"), attempt_timeout=Duration(seconds=30))
    await service.configure(template=template(endpoint, "/good"), trigger="Other")
    await service.enqueue(*(purchase(f"bad {n}") for n in range(1000)))

    async def bad_is_busy() -> bool:
        return len(endpoint.at("/bad")) >= 64

    await eventually(bad_is_busy)
    await service.enqueue(*(purchase(f"good {n}", event_name="Other") for n in range(200)))
    await until_ended(service, 200)
    assert len(endpoint.at("/good")) == 200
    assert len(endpoint.at("/bad")) == 64  # its share, while 936 more wait


@pytest.mark.slow
async def test_a_rate_limit_acts(service: Running, endpoint: Endpoint) -> None:
    times: list[float] = []

    async def note(request: web.Request) -> web.Response:
        times.append(time.monotonic())
        return web.Response()

    endpoint.answers["/x"] = note
    await service.configure(template=template(endpoint), deliveries_per_second=20)
    await service.enqueue(*(purchase(f"c{n}") for n in range(50)))
    await until_ended(service, 50)
    # 20 a second, and the bucket's 4.
    assert times[49] - times[0] >= (50 - 1 - 4) / 20 - 0.1


async def test_a_rate_limit_may_come_while_deliveries_are_leased(
    service: Running, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration = await service.configure(template=template(endpoint))
    lease = service.queue.lease

    async def lease_while_it_changes(wanted: list[LeaseRequest], **options: Any) -> list[Leased]:
        leased = await lease(wanted, **options)
        if leased:
            configuration.deliveries_per_second = 20
            await service.configs.UpdateConfiguration(
                configuration_pb2.UpdateConfigurationRequest(
                    configuration=configuration, update_mask=FieldMask(paths=["deliveries_per_second"])
                )
            )
        return leased

    monkeypatch.setattr(service.queue, "lease", lease_while_it_changes)
    await service.enqueue(purchase("c1"), purchase("c2"))
    await until_ended(service, 2)
    assert [one.attempt_count for one in await service.list()] == [1, 1]


async def test_sessions_go_to_their_network_once_in_24_hours(service: Running, endpoint: Endpoint) -> None:
    await service.configure(
        template=template(endpoint),
        trigger="SessionBegin",
        delivery_method=configuration_pb2.Configuration.DELIVERY_METHOD_NETWORK_ONLY,
    )

    def session(conversion_id: str, hours: float, device: str = "d") -> conversion_pb2.Conversion:
        stamp = Timestamp(seconds=1_767_200_000 + int(hours * 3600))
        return purchase(conversion_id, event_name="SessionBegin", device_id=device, conversion_time=stamp)

    first = [session("c0", 0), session("c1", 1), session("c24", 24), session("c25", 25), session("other", 1, "e")]
    assert await service.enqueue(*first) == 3
    assert await service.enqueue(*first) == 0
    assert await service.enqueue(session("c47", 47.9)) == 0
    assert await service.enqueue(session("c48", 48)) == 1
    told = {one.conversion_id for one in await service.list()}
    assert told == {"c0", "c24", "c48", "other"}


async def test_what_is_handed_over_must_be_whole(service: Running) -> None:
    nothing = conversion_pb2.EnqueueConversionsRequest()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await service.deliveries.EnqueueConversions(nothing)
    assert [found.field for found in from_rpc_error(caught.value).violations] == ["conversions"]
    bad = purchase()
    bad.decision.ClearField("app_id")
    bad.ClearField("record")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await service.enqueue(purchase(), bad)
    fields = [found.field for found in from_rpc_error(caught.value).violations]
    assert fields == ["conversions[1].decision.app_id", "conversions[1].record"]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await service.enqueue(*(purchase() for _ in range(1001)))
    assert from_rpc_error(caught.value).reason == "BATCH_TOO_LARGE"


async def test_lists_are_paged_newest_first_and_filtered(service: Running, endpoint: Endpoint) -> None:
    await service.configure(template=template(endpoint), delivery_delay=Duration(seconds=600))
    for batch in range(3):
        await service.enqueue(*(purchase(f"c{batch}-{n}") for n in range(5)))
    seen: list[delivery_pb2.Delivery] = []
    request = delivery_pb2.ListDeliveriesRequest(app_id="app", page_size=4)
    while True:
        page = await service.deliveries.ListDeliveries(request)
        seen += page.deliveries
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert len({one.delivery_id for one in seen}) == len(seen) == 15
    assert [one.create_time.ToNanoseconds() for one in seen] == sorted(
        (one.create_time.ToNanoseconds() for one in seen), reverse=True
    )
    assert [one.conversion_id for one in await service.list(conversion_id="c1-3")] == ["c1-3"]
    assert await service.list(states=[Delivery.STATE_DELIVERED]) == []
    assert await service.list(app_id="other") == []


Call = Callable[[Running], Awaitable[Any]]


@pytest.mark.parametrize(
    ("call", "code", "fields"),
    [
        pytest.param(lambda s: s.get("no uuid"), grpc.StatusCode.NOT_FOUND, [], id="get by nonsense"),
        pytest.param(
            lambda s: s.get("6a3f2f0e-3b0c-5d57-9d0b-1a1f5c1f7e55"),
            grpc.StatusCode.NOT_FOUND,
            [],
            id="get an unknown one",
        ),
        pytest.param(
            lambda s: s.deliveries.Redeliver(
                delivery_pb2.RedeliverRequest(delivery_id="6a3f2f0e-3b0c-5d57-9d0b-1a1f5c1f7e55", request_id="r")
            ),
            grpc.StatusCode.NOT_FOUND,
            [],
            id="redeliver an unknown one",
        ),
        pytest.param(
            lambda s: s.deliveries.Redeliver(delivery_pb2.RedeliverRequest()),
            grpc.StatusCode.INVALID_ARGUMENT,
            ["request_id", "delivery_id"],
            id="redeliver nothing",
        ),
        pytest.param(
            lambda s: s.list(app_id="", page_size=1001, page_token="x", conversion_id="\0"),
            grpc.StatusCode.INVALID_ARGUMENT,
            ["page_size", "page_token", "app_id", "conversion_id"],
            id="list with every field wrong",
        ),
    ],
)
async def test_errors(service: Running, call: Call, code: grpc.StatusCode, fields: list[str]) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(service)
    details = from_rpc_error(caught.value)
    assert (details.code, [found.field for found in details.violations]) == (code, fields)


async def test_outcomes_that_are_not_told(service: Running, endpoint: Endpoint) -> None:
    await service.configure(template=template(endpoint), trigger="_install")
    outcomes = [decision_pb2.OUTCOME_DUPLICATE, decision_pb2.OUTCOME_REFUSED, decision_pb2.OUTCOME_ORGANIC]
    installs = [purchase(f"c{n}", event_name="_install", outcome=outcome) for n, outcome in enumerate(outcomes)]
    assert await service.enqueue(*installs) == 1
    assert [one.conversion_id for one in await service.list()] == ["c2"]


async def test_two_processes_send_each_delivery_once(database: Database, tmp_path: Path, endpoint: Endpoint) -> None:
    async with (
        running(database, tmp_path / "one.sock", allowed=endpoint.host) as one,
        running(database, tmp_path / "two.sock", allowed=endpoint.host) as two,
    ):
        await one.configure(template=template(endpoint))
        await two.configurations.refresh()
        batches = [[purchase(f"c{batch}-{n}") for n in range(100)] for batch in range(6)]
        # Each batch comes to both, as when an answer was lost.
        created = await asyncio.gather(*(to.enqueue(*batch) for batch in batches for to in (one, two)))
        assert sum(created) == 600
        await until_ended(one, 600)
    assert len({received.delivery_id for received in endpoint.received}) == len(endpoint.received) == 600


async def test_a_delivery_that_cannot_be_rendered_does_not_stop_the_others(
    service: Running, endpoint: Endpoint
) -> None:
    await service.configure(template=template(endpoint), retry_attempts=0, delivery_delay=Duration(seconds=30))
    await service.enqueue(purchase("broken"), purchase("whole"))
    await service.pool.execute("UPDATE deliveries SET conversion = '\\xff' WHERE conversion_id = 'broken'")
    await service.due_now()
    ended = {one.conversion_id: one for one in await until_ended(service, 2)}
    assert ended["whole"].state == Delivery.STATE_DELIVERED
    assert ended["broken"].state == Delivery.STATE_EXHAUSTED
    assert attempted(await service.get(ended["broken"].delivery_id)) == [("NOT_RENDERED", 0, False)]


async def test_attempts_that_nobody_survives_come_to_an_end(service: Running, endpoint: Endpoint) -> None:
    configuration = await service.configure(template=template(endpoint), delivery_delay=Duration(seconds=600))
    await service.enqueue(purchase())
    await service.pool.execute("UPDATE deliveries SET attempt_count = $1", MAX_INTERRUPTIONS + 1)
    await service.due_now()
    (delivery,) = await until_ended(service)
    assert (delivery.state, delivery.configuration_id) == (Delivery.STATE_EXHAUSTED, configuration.configuration_id)
    assert endpoint.received == []
