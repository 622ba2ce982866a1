"""Deliveries and their attempts go by whole partitions, app by app; each is made once, whatever its app's retention."""

import shutil
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import grpc
import pytest

from deploy.local.embedded import EmbeddedPostgres
from libs.migrations import prepare
from libs.periods import Periods
from reengage.postback.v1 import configuration_pb2, conversion_pb2
from tests.conftest import SERVICES
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
    await service.configure(template=configuration_pb2.Template(url=endpoint.url("/")))
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
    assert [one.verdict for one in (await service.get(ended["default"])).attempts] == ["DELIVERED"]
    assert [one.conversion_id for one in await service.list()] == ["default"]


async def test_a_change_of_retention_makes_no_second_delivery(service: Running, endpoint: Endpoint) -> None:
    await service.configure(template=configuration_pb2.Template(url=endpoint.url("/")))
    assert await service.enqueue(kept_for(400, "c1")) == 1
    assert await service.enqueue(kept_for(60, "c1"), kept_for(60, "c2")) == 1
    await until_ended(service, 2)
    assert len(endpoint.received) == 2


async def test_what_was_stored_before_is_kept(postgres: EmbeddedPostgres, tmp_path: Path) -> None:
    """The migration copies every row."""
    files = sorted((SERVICES / "postback" / "migrations").glob("*.sql"))
    for file in files[:2]:
        shutil.copy(file, tmp_path)
    await postgres.create_database("before_periods_of_postback")
    dsn = postgres.admin_dsn("before_periods_of_postback")
    await prepare(dsn, schema="postback", directory=tmp_path)
    connection = await asyncpg.connect(dsn, server_settings={"search_path": "postback"})
    await connection.execute(
        """
        INSERT INTO deliveries (delivery_id, configuration_id, app_id, network_id, conversion_id, event_name, device_id,
                                conversion, due_time, create_time)
        SELECT md5(n::text)::uuid, 'c', 'a', 'n', n::text, 'e', 'd', 'x', now(),
               '2026-01-01Z'::timestamptz + n * interval '1 day'
        FROM generate_series(0, 58) AS n;
        INSERT INTO attempts (delivery_id, configuration_id, replay_count, number, start_time, verdict, attempt)
        SELECT delivery_id, configuration_id, 0, 1, now(), 'DELIVERED', '' FROM deliveries
        """
    )
    told = purchase("told" * 50)
    told.decision.version = 300
    told.decision.conversion_time.FromNanoseconds(1_767_225_599_999_999_999)
    await connection.execute(
        """
        INSERT INTO deliveries (delivery_id, configuration_id, app_id, network_id, conversion_id, event_name, device_id,
                                conversion, due_time, create_time)
        VALUES (gen_random_uuid(), 'c', 'a', 'n', 'told', 'e', 'd', $1, now(), '2026-01-02Z')
        """,
        told.SerializeToString(),
    )
    await prepare(dsn, schema="postback", directory=files[0].parent)
    told_time = await connection.fetchval("SELECT conversion_time FROM deliveries WHERE conversion_id = 'told'")
    assert told_time == told.decision.conversion_time.ToDatetime(UTC), "a repeat of it is known for one"
    for table, count in (
        ("deliveries", 60),
        ("attempts", 59),
        ("deliveries_202512_400", 1),
        ("deliveries_202601_400", 31),
        ("attempts_202602_400", 28),
    ):
        assert await connection.fetchval(f"SELECT count(*) FROM {table}") == count
    await connection.close()
