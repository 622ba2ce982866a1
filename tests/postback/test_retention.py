"""Deliveries and their attempts go by whole partitions, app by app; each is made once, whatever its app's retention."""

from datetime import UTC, datetime

import grpc
import pytest

from libs.periods import Periods
from reengage.postback.v1 import conversion_pb2, delivery_pb2
from tests.postback.conftest import Endpoint, Running, purchase, until_ended

DAY_US = 86_400_000_000


def kept_for(days: int, conversion_id: str) -> conversion_pb2.Conversion:
    conversion = purchase(conversion_id)
    conversion.names.retention_days = days
    return conversion


async def partitions(service: Running) -> set[str]:
    rows = await service.pool.fetch(
        "SELECT relname FROM pg_inherits JOIN pg_class ON oid = inhrelid "
        "WHERE relkind = 'r' AND relnamespace = current_schema()::regnamespace"
    )
    return {row["relname"] for row in rows}


async def test_each_retention_goes_in_its_time(service: Running, endpoint: Endpoint) -> None:
    await service.configure(template={"url": endpoint.url("/")})
    await service.enqueue(kept_for(60, "brief"), kept_for(0, "default"))
    ended = {one.conversion_id: one.delivery_id for one in await until_ended(service, 2)}
    (first, *_) = (await service.get(ended["brief"])).attempts
    assert first.status_code == 200
    assert await partitions(service) == {
        f"{table}_202601_{days}" for table in ("deliveries", "attempts") for days in (60, 400)
    }

    def at(day: datetime) -> Periods:
        return Periods(service.pool, lambda: int(day.timestamp()) * 1_000_000)

    await at(datetime(2026, 4, 1, tzinfo=UTC)).drop_past()
    assert len(await partitions(service)) == 4, "the last of January is kept for 60 days, to 2 April"
    await at(datetime(2026, 4, 2, tzinfo=UTC)).drop_past()
    assert await partitions(service) == {"deliveries_202601_400", "attempts_202601_400"}
    with pytest.raises(grpc.aio.AioRpcError) as gone:
        await service.get(ended["brief"])
    assert gone.value.code() is grpc.StatusCode.NOT_FOUND
    (kept,) = (await service.get(ended["default"])).attempts
    assert kept.verdict == delivery_pb2.Attempt.VERDICT_DELIVERED
    assert [one.conversion_id for one in await service.list()] == ["default"]


async def test_a_change_of_retention_makes_no_second_delivery(service: Running, endpoint: Endpoint) -> None:
    await service.configure(template={"url": endpoint.url("/")})
    assert await service.enqueue(kept_for(400, "c1")) == 1
    assert await service.enqueue(kept_for(60, "c1"), kept_for(60, "c2")) == 1
    await until_ended(service, 2)
    assert len(endpoint.received) == 2
