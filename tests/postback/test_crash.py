"""The service as a process: killed in mid-delivery, stopped with grace, and what it writes to its log."""

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import pytest
from aiohttp import web
from google.protobuf.duration_pb2 import Duration

from deploy.local.x_network import PATH, SECRETS, Conduct, LocalX, attribution, hashed
from libs.channels import open_channel
from reengage.attribution.v1 import decision_pb2
from reengage.postback.v1 import claim_pb2, configuration_pb2, conversion_pb2, service_pb2_grpc
from reengage.postback.v1.delivery_pb2 import Attempt, Delivery
from reengage.tracker.v1.app_pb2 import PLATFORM_IOS
from tests.conftest import Database
from tests.postback.conftest import Endpoint, configuration, purchase
from tests.support.eventually import eventually
from tests.support.processes import ServiceProcess, postback_process

SECRET = "hush-hush"
UNDELIVERED = f"SELECT count(*) FROM postback.deliveries WHERE state <> {Delivery.STATE_DELIVERED}"
INTERRUPTED = f"SELECT count(*) FROM postback.attempts WHERE verdict = {Attempt.VERDICT_INTERRUPTED}"
END_LEASES = "UPDATE postback.deliveries SET due_us = postback.now_us() WHERE lease_id IS NOT NULL"
CONFIGURATIONS = 4
BATCH, BATCHES = 50, 6


@pytest.fixture
async def process(durable_database: Database, endpoint: Endpoint, tmp_path: Path) -> AsyncIterator[ServiceProcess]:
    """Yields a process that may reach the endpoint."""
    one = postback_process(tmp_path / "log", dsn=durable_database.dsn("postback"), allowed_hosts=endpoint.host)
    await one.start()
    yield one
    await one.stop(signal.SIGKILL)


async def configure(channel: grpc.aio.Channel, endpoint: Endpoint, number: int = 0, **fields: Any) -> None:
    stub = service_pb2_grpc.PostbackConfigServiceStub(channel)
    given = configuration(
        configuration_id=f"k{number}",
        template={"url": endpoint.url(f"/{number}?t={{secret.token}}")},
        secrets={"token": SECRET},
        **fields,
    )
    request = configuration_pb2.CreateConfigurationRequest(configuration=given)
    await stub.CreateConfiguration(request, wait_for_ready=True, timeout=30)


async def enqueue(channel: grpc.aio.Channel, batch: int, **decision: Any) -> None:
    """Hands a batch over until it is taken, as attribution's relay does."""
    stub = service_pb2_grpc.PostbackServiceStub(channel)
    request = conversion_pb2.EnqueueConversionsRequest(
        conversions=[purchase(f"c{batch}-{number}", **decision) for number in range(BATCH)]
    )
    while True:
        try:
            await stub.EnqueueConversions(request, wait_for_ready=True, timeout=10)
        except grpc.aio.AioRpcError as error:
            if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise
        else:
            return


@pytest.mark.crash
async def test_killed_in_mid_delivery_nothing_is_lost_or_doubled(
    process: ServiceProcess, endpoint: Endpoint, durable_database: Database
) -> None:
    async def take_a_moment(request: web.Request) -> web.Response:
        await asyncio.sleep(0.03)
        return web.Response()

    endpoint.answers.update({f"/{number}": take_a_moment for number in range(CONFIGURATIONS)})
    connection = await asyncpg.connect(durable_database.admin_dsn)
    async with open_channel(process.target) as channel:
        for number in range(CONFIGURATIONS):
            await configure(channel, endpoint, number)
        handing_over = asyncio.gather(*(enqueue(channel, batch) for batch in range(BATCHES)))
        for _ in range(4):
            before = len(endpoint.received)

            async def under_way(before: int = before) -> bool:
                return len(endpoint.received) > before + 20

            await eventually(under_way)
            await process.stop(signal.SIGKILL)
            # What would otherwise happen in 20 seconds: its leases end.
            await connection.execute(END_LEASES)
            await process.start()
        await handing_over

        async def all_delivered() -> bool:
            left = await connection.fetchval(
                "SELECT count(*) FROM postback.deliveries WHERE state <> $1", Delivery.STATE_DELIVERED
            )
            return bool(left == 0)

        await eventually(all_delivered)
    rows = await connection.fetch(
        "SELECT delivery_id::text AS id, configuration_id, conversion_id FROM postback.deliveries"
    )
    assert len(rows) == CONFIGURATIONS * BATCH * BATCHES
    assert len({(row["configuration_id"], row["conversion_id"]) for row in rows}) == len(rows)
    assert {one.delivery_id for one in endpoint.received} == {row["id"] for row in rows}
    # Every interrupted attempt is told.
    told = await connection.fetchval(
        "SELECT count(*) FROM postback.attempts WHERE verdict = $1", Attempt.VERDICT_INTERRUPTED
    )
    begun = await connection.fetchval("SELECT sum(attempt_count) FROM postback.deliveries")
    assert told > 0
    assert begun == len(rows) + told
    await connection.close()
    assert SECRET not in process.log.read_text()


@pytest.mark.crash
async def test_killed_while_newer_versions_come_the_winner_is_told_and_nobody_twice(
    process: ServiceProcess, endpoint: Endpoint, durable_database: Database
) -> None:
    """D12, with everything handed over twice: 0 and 1 are of who won first (1 would tell later), 2 of who won then."""

    async def take_a_moment(request: web.Request) -> web.Response:
        await asyncio.sleep(0.03)
        return web.Response()

    async def hand_over(channel: grpc.aio.Channel, batch: int) -> None:
        for _ in range(2):
            await enqueue(channel, batch, network_id="first")
            await enqueue(channel, batch, network_id="then", version=2)

    endpoint.answers.update({f"/{number}": take_a_moment for number in range(3)})
    connection = await asyncpg.connect(durable_database.admin_dsn)
    async with open_channel(process.target) as channel:
        only = {"delivery_method": configuration_pb2.Configuration.DELIVERY_METHOD_NETWORK_ONLY}
        await configure(channel, endpoint, 0, network_id="first", **only)
        await configure(channel, endpoint, 1, network_id="first", delivery_delay=Duration(seconds=30), **only)
        await configure(channel, endpoint, 2, network_id="then", **only)
        handing_over = asyncio.gather(*(hand_over(channel, batch) for batch in range(BATCHES)))
        for _ in range(4):
            before = len(endpoint.received)

            async def under_way(before: int = before) -> bool:
                return len(endpoint.received) > before + 20 or handing_over.done()

            await eventually(under_way)
            await process.stop(signal.SIGKILL)
            await connection.execute(END_LEASES)
            await process.start()
        await handing_over

        async def all_ended() -> bool:
            return bool(await connection.fetchval("SELECT count(*) = 0 FROM postback.deliveries WHERE state = 1"))

        await eventually(all_ended)
    rows = await connection.fetch(
        """
        SELECT
            configuration_id, state, superseded, delivery_id::text AS id,
            count(*) FILTER (WHERE verdict = $1) AS told, count(*) FILTER (WHERE verdict = $2) AS interrupted
        FROM postback.deliveries LEFT JOIN postback.attempts USING (delivery_id, configuration_id)
        GROUP BY configuration_id, state, superseded, delivery_id
        """,
        Attempt.VERDICT_DELIVERED,
        Attempt.VERDICT_INTERRUPTED,
    )
    await connection.close()
    first, later, then = ([row for row in rows if row["configuration_id"] == f"k{number}"] for number in range(3))
    assert [len(first), len(later), len(then)] == [BATCH * BATCHES] * 3
    delivered, lost = Delivery.STATE_DELIVERED, Delivery.STATE_SUPERSEDED
    assert {(row["state"], row["superseded"], row["told"]) for row in first} <= {
        (delivered, Delivery.SUPERSEDED_OTHER_WINNER, 1),
        (lost, Delivery.SUPERSEDED_OTHER_WINNER, 0),
    }
    assert {(row["state"], row["superseded"]) for row in later} == {(lost, Delivery.SUPERSEDED_OTHER_WINNER)}
    assert {(row["state"], row["superseded"], row["told"]) for row in then} == {(delivered, None, 1)}
    # Only an attempt that was interrupted, which is told of, may have been made twice.
    requests = Counter(one.delivery_id for one in endpoint.received)
    assert sum(row["interrupted"] for row in rows) > 0
    assert not [row for row in rows if requests[row["id"]] > row["told"] + row["interrupted"]]
    assert not endpoint.at("/1")


@pytest.mark.crash
async def test_killed_while_claims_are_asked_for_each_is_answered_once(
    process: ServiceProcess, endpoint: Endpoint, durable_database: Database
) -> None:
    devices = [f"device-{number}" for number in range(BATCH)]
    now = datetime.now(UTC)
    claiming = {
        hashed(device): Conduct(twitter=attribution(now, campaign_name=device), delay_s=0.2) for device in devices
    }
    x = LocalX(claiming)
    endpoint.answers[PATH] = x.handle
    request = claim_pb2.RequestClaimsRequest(conversions=map(claim_of, devices))
    request.wait.FromSeconds(1)
    connection = await asyncpg.connect(durable_database.admin_dsn)
    async with open_channel(process.target) as channel:
        await configure_x(channel, endpoint)
        stub = service_pb2_grpc.PostbackServiceStub(channel)
        asking = asyncio.ensure_future(stub.RequestClaims(request, wait_for_ready=True, timeout=10))

        async def under_way() -> bool:
            return len(x.received) > 20

        await eventually(under_way)
        await process.stop(signal.SIGKILL)
        asking.cancel()
        # What would otherwise happen in 20 seconds: its leases end.
        await connection.execute(END_LEASES)
        await process.start()
        while True:
            response = await stub.RequestClaims(request, wait_for_ready=True, timeout=10)
            answers = [answer for claims in response.conversions for answer in claims.answers]
            if claim_pb2.ClaimAnswer.STATE_PENDING not in {answer.state for answer in answers}:
                break
    assert {answer.state for answer in answers} == {claim_pb2.ClaimAnswer.STATE_CLAIMED}
    assert [answer.claim.campaign_name for answer in answers] == devices
    told = await connection.fetchval(
        "SELECT count(*) FROM postback.attempts WHERE verdict = $1", Attempt.VERDICT_INTERRUPTED
    )
    rows = await connection.fetchrow("SELECT count(*) AS count, sum(attempt_count) AS begun FROM postback.deliveries")
    await connection.close()
    assert rows is not None
    assert told > 0
    assert (rows["count"], rows["begun"]) == (BATCH, BATCH + told)
    assert BATCH < len(x.received) <= BATCH + told
    log = process.log.read_text()
    assert not [secret for secret in [*SECRETS.values(), *x.conducts, "oauth_signature"] if secret in log]


async def configure_x(channel: grpc.aio.Channel, endpoint: Endpoint) -> None:
    stub = service_pb2_grpc.PostbackConfigServiceStub(channel)
    given = configuration(
        configuration_id="x",
        network_id="x-ios",
        x={"app_id": "1", "conversion_type": "PURCHASE", "base_url": endpoint.url("")},
        secrets=SECRETS,
    )
    request = configuration_pb2.CreateConfigurationRequest(configuration=given)
    await stub.CreateConfiguration(request, wait_for_ready=True, timeout=30)


def claim_of(device: str) -> conversion_pb2.Conversion:
    conversion = purchase(device, outcome=decision_pb2.OUTCOME_UNSPECIFIED)
    conversion.record.device_ids["idfa"] = device
    conversion.names.platform = PLATFORM_IOS
    return conversion


@pytest.mark.crash
async def test_the_database_restarts_in_mid_delivery(
    process: ServiceProcess, endpoint: Endpoint, durable_database: Database
) -> None:
    async with open_channel(process.target) as channel:
        await configure(channel, endpoint)
        handing_over = asyncio.gather(*(enqueue(channel, batch) for batch in range(BATCHES)))

        async def under_way() -> bool:
            return len(endpoint.received) > 20

        await eventually(under_way)
        await durable_database.postgres.restart()
        await handing_over
        connection = await asyncpg.connect(durable_database.admin_dsn)

        async def all_delivered() -> bool:
            # Those whose lease was lost with the connection come again when their leases end: now.
            await connection.execute(
                "UPDATE postback.deliveries SET due_us = postback.now_us() "
                "WHERE lease_id IS NOT NULL AND leased_us < postback.now_us() - 2000000"
            )
            rows = await connection.fetch("SELECT state FROM postback.deliveries")
            return {row["state"] for row in rows} == {Delivery.STATE_DELIVERED} and len(rows) == BATCH * BATCHES

        await eventually(all_delivered)
        await connection.close()


@pytest.mark.crash
async def test_stopped_with_grace_it_ends_what_it_began(
    process: ServiceProcess, endpoint: Endpoint, durable_database: Database
) -> None:
    release = asyncio.Event()

    async def wait(request: web.Request) -> web.Response:
        await release.wait()
        return web.Response()

    endpoint.answers["/0"] = wait
    async with open_channel(process.target) as channel:
        await configure(channel, endpoint)
        await enqueue(channel, 0)

        async def all_under_way() -> bool:
            return len(endpoint.received) == BATCH

        await eventually(all_under_way)
        stopping = asyncio.ensure_future(process.stop())

        async def noticed() -> bool:
            return "server.stopping" in process.log.read_text()

        await eventually(noticed)
        release.set()
        assert await stopping == 0
    connection = await asyncpg.connect(durable_database.admin_dsn)
    states = await connection.fetch("SELECT state, count(*) FROM postback.deliveries GROUP BY state")
    await connection.close()
    assert [tuple(row) for row in states] == [(Delivery.STATE_DELIVERED, BATCH)]
    log = process.log.read_text()
    assert log.count("delivery.settled") == BATCH
    assert SECRET not in log
    assert endpoint.url("/0") not in log
