"""Claims under fire: postback, attribution and PostgreSQL are killed while X is asked; every answer counts once."""

import asyncio
import itertools
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import grpc
import pytest

from deploy.local.network import LocalNetwork
from deploy.local.sample.settings import DAY, IOS
from deploy.local.suite import HOST, running_suite
from deploy.local.up import load_sample
from deploy.local.x_network import Conduct, LocalX, attribution, hashed
from libs.channels import open_channel
from reengage.attribution.v1 import decision_pb2
from reengage.ingest.v1 import record_batch_pb2, record_pb2
from reengage.ingest.v1.service_pb2_grpc import IngestServiceStub
from reengage.postback.v1.delivery_pb2 import Delivery
from tests.e2e.test_crash import _connect, _kill
from tests.support.ports import suite_ports

KILLED = ("postback", "attribution", "postback", "postgres", "attribution")
SENDERS = 4
pytestmark = [pytest.mark.e2e, pytest.mark.crash, pytest.mark.timeout(300)]


class Devices:
    """Devices that installed three days ago and subscribe now; X claims every other one."""

    def __init__(self, x: LocalX) -> None:
        self._x, self._numbers = x, itertools.count()
        self.subscribed: dict[str, bool] = {}
        """Whether X claims it, by record id of each acknowledged subscription."""
        self.stop = asyncio.Event()

    async def run(self, target: str) -> None:
        async with open_channel(target, timeout_s=5) as channel:
            stub = IngestServiceStub(channel)
            while not self.stop.is_set():
                number = next(self._numbers)
                device = f"{number:08X}-AAAA-4AAA-8AAA-{number:012X}"
                if number % 2:
                    clicked = datetime.now(UTC) - timedelta(hours=1)
                    self._x.conducts[hashed(device)] = Conduct(twitter=attribution(clicked), delay_s=0.1)
                install = record_pb2.Record(app_id=IOS, record_id=f"install-{number}", install=record_pb2.Install())
                install.event_time.FromSeconds(int(time.time()) - 3 * DAY)
                event = record_pb2.Record(
                    app_id=IOS, record_id=f"event-{number}", event=record_pb2.Event(event_name="Subscribe")
                )
                for record in (install, event):
                    record.device_ids["idfa"], record.ip_address = device, "192.0.2.1"
                    record.tracking_transparency.authorized = True
                    await self._send(stub, record)
                self.subscribed[event.record_id] = bool(number % 2)

    async def _send(self, stub: IngestServiceStub, record: record_pb2.Record) -> None:
        while True:
            try:
                answer = await stub.RecordBatch(record_batch_pb2.RecordBatchRequest(records=[record]))
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.05)  # as a sender does: the same record again
                continue
            assert answer.results[0].status != record_batch_pb2.RecordResult.STATUS_REJECTED, answer
            return

    async def some_more(self) -> None:
        """Waits until they got some way further."""
        goal = len(self.subscribed) + 40
        while len(self.subscribed) < goal:
            await asyncio.sleep(0.01)


async def test_every_answer_counts_once_whoever_crashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Longer than everything here takes: so no claim is given up.
    monkeypatch.setenv("REENGAGE_CLAIM_WAIT_S", "120")
    ports, network, told = suite_ports(), LocalNetwork(), list[str]()
    devices = Devices(network.x)
    async with (
        running_suite(tmp_path / "data", ports, announce=told.append) as suite,
        network.serving(HOST, ports.network),
    ):
        await load_sample(suite)
        async with asyncio.TaskGroup() as sending:
            for _ in range(SENDERS):
                sending.create_task(devices.run(ports.address("ingest")))
            for name in KILLED:
                await devices.some_more()
                if name == "postgres":
                    await suite.postgres.kill()  # the suite starts it again
                else:
                    await _kill(suite, name)
            await devices.some_more()
            devices.stop.set()
        database = await _connect(suite)
        try:
            await check(database, devices, network.x)
        finally:
            await database.close()


async def check(database: "asyncpg.Connection[asyncpg.Record]", devices: Devices, x: LocalX) -> None:
    decisions = "SELECT conversion_id, outcome, tracker_id FROM attribution.decisions"
    while len(rows := await database.fetch(f"{decisions} WHERE conversion_id ~ '^event'")) < len(devices.subscribed):
        await asyncio.sleep(0.05)
    assert sorted(row["conversion_id"] for row in rows) == sorted(devices.subscribed)
    found = {row["conversion_id"]: (row["outcome"], row["tracker_id"]) for row in rows}
    won, nobody = (decision_pb2.OUTCOME_REENGAGED, "ios-x-return"), (decision_pb2.OUTCOME_UNATTRIBUTED, None)
    assert found == {one: won if is_claimed else nobody for one, is_claimed in devices.subscribed.items()}
    # The request is the postback: one delivery each, and no more requests than attempts begun.
    deliveries = await database.fetch(
        "SELECT conversion_id, state, attempt_count FROM postback.deliveries WHERE configuration_id = 'x-ios-subscribe'"
    )
    assert sorted(row["conversion_id"] for row in deliveries) == sorted(devices.subscribed)
    assert {row["state"] for row in deliveries} == {Delivery.STATE_DELIVERED}
    asked = Counter(parameters["hashed_device_id"] for parameters in x.received)
    assert len(asked) == len(deliveries)
    assert asked.total() <= sum(row["attempt_count"] for row in deliveries)
