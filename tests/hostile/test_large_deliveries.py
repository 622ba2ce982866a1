"""Deliveries, configurations and spooled records of any size: they are listed, shown and sent on."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from libs.domain.record_sizes import MAX_RECORD_BYTES
from libs.parts import MAX_MESSAGE_BYTES, PART_BYTES
from reengage.ingest.v1 import record_batch_pb2
from reengage.postback.v1 import configuration_pb2, conversion_pb2, delivery_pb2
from services.gateway.ingest_log import EngagementLog
from services.gateway.spool import Spool
from services.postback.model import Handed, Leased, LeaseRequest
from services.postback.storage.deliveries import DeliveryStore
from services.postback.storage.queue import Queue
from tests.conftest import Database
from tests.postback.conftest import Endpoint, Running, endpoint, purchase, service, template, until_ended  # noqa: F401
from tests.support.eventually import until


async def test_configurations_with_large_templates_are_listed_in_pages(
    service: Running,  # noqa: F811
    endpoint: Endpoint,  # noqa: F811
) -> None:
    fields = template(endpoint, body="x" * 60_000, method="POST")
    for number in range(160):
        await service.configure(template=fields, configuration_id=f"c{number:03}", status="STATUS_PAUSED")
    listed: list[str] = []
    token = ""
    while token or not listed:
        request = configuration_pb2.ListConfigurationsRequest(app_id="app", page_size=1_000, page_token=token)
        response = await service.configs.ListConfigurations(request)
        assert response.ByteSize() < MAX_MESSAGE_BYTES * 3 / 4
        listed += [each.configuration_id for each in response.configurations]
        token = response.next_page_token
    assert listed == [f"c{number:03}" for number in range(160)]


async def test_a_delivery_with_many_large_attempts_shows_the_newest(
    service: Running,  # noqa: F811
    endpoint: Endpoint,  # noqa: F811
    database: Database,
) -> None:
    await service.configure(template=template(endpoint))
    await service.enqueue(purchase())
    (ended,) = await until_ended(service)
    connection = await asyncpg.connect(database.admin_dsn)
    await connection.execute(
        """
        INSERT INTO postback.attempts (
            delivery_id, configuration_id, redelivery_count, number, conversion_us, retention_days, start_us, verdict,
            attempt
        )
        SELECT delivery_id, configuration_id, redelivery_count + n, 1, conversion_us, retention_days, start_us, verdict,
            $1
        FROM postback.attempts, generate_series(1, 40) AS n
        """,
        delivery_pb2.Attempt(response_body="x" * 500_000).SerializeToString(),
    )
    await connection.close()
    delivery = await service.get(ended.delivery_id)
    assert 0 < delivery.omitted_attempt_count < 41
    assert len(delivery.attempts) + delivery.omitted_attempt_count == 41
    assert PART_BYTES / 2 < delivery.ByteSize() < MAX_MESSAGE_BYTES * 3 / 4
    assert all(len(attempt.response_body) == 500_000 for attempt in delivery.attempts)


class Ingest:
    """An ingest that takes everything, and keeps how much came at once."""

    def __init__(self) -> None:
        self.records: list[bytes] = []
        self.sizes: list[int] = []

    async def store(self, records: Sequence[bytes], *_: Any) -> Sequence[record_batch_pb2.RecordResult]:
        self.records += records
        self.sizes.append(sum(map(len, records)))
        return [record_batch_pb2.RecordResult()] * len(records)


async def test_the_spool_resends_by_bytes_and_passes_over_what_fits_nowhere(tmp_path: Path) -> None:
    large = [bytes([number]) * MAX_RECORD_BYTES for number in range(40)]
    ingest = Ingest()
    async with Spool(tmp_path, max_bytes=1 << 28, segment_bytes=1 << 28) as spool:
        await spool.append([*large, b"x" * (MAX_MESSAGE_BYTES + 1), b"after"])
        log = EngagementLog(ingest, spool, patience_s=1)  # type: ignore[arg-type]
        resending = asyncio.create_task(log.resend())
        await until(lambda: not spool.size_bytes)
        resending.cancel()
    assert ingest.records == [*large, b"after"]
    assert max(ingest.sizes) <= PART_BYTES


def large(conversion_id: str) -> conversion_pb2.Conversion:
    conversion = purchase(conversion_id)
    conversion.record.user_agent = "x" * 500_000
    return conversion


async def test_a_call_is_stored_in_parts_whatever_the_number_of_its_configurations(
    service: Running,  # noqa: F811
    endpoint: Endpoint,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A call of 8 MB for 20 configurations would be 160 MB."""
    sizes = []
    enqueue = DeliveryStore.enqueue

    async def measured(self: DeliveryStore, handed: Sequence[Handed]) -> Any:
        sizes.append(sum(len(one.delivery.conversion) for one in handed))
        return await enqueue(self, handed)

    monkeypatch.setattr(DeliveryStore, "enqueue", measured)
    for number in range(20):
        await service.configure(template=template(endpoint), configuration_id=f"c{number:02}")
    assert await service.enqueue(*(large(f"c{number}") for number in range(16))) == 320
    assert max(sizes) <= PART_BYTES
    assert sum(sizes) > 19 * PART_BYTES
    assert len(await until_ended(service, 320)) == 320


async def test_deliveries_are_leased_by_bytes(
    service: Running,  # noqa: F811
    endpoint: Endpoint,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A thousand at once of a megabyte each would fill the memory; all are sent all the same."""
    under_way: list[int] = []
    lease = Queue.lease

    async def measured(self: Queue, wanted: Sequence[LeaseRequest], **options: Any) -> list[Leased]:
        leased = await lease(self, wanted, **options)
        under_way.append(sum(len(one.conversion) for one in leased))
        assert under_way[-1] <= options["max_bytes"] + 600_000
        assert options["max_bytes"] <= PART_BYTES
        return leased

    monkeypatch.setattr(Queue, "lease", measured)
    await service.configure(template=template(endpoint))
    await service.enqueue(*(large(f"a{number}") for number in range(30)))
    await service.enqueue(*(large(f"b{number}") for number in range(30)))
    ended = await until_ended(service, 60)
    assert {one.state for one in ended} == {delivery_pb2.Delivery.STATE_DELIVERED}
    assert len(endpoint.received) == 60
