"""The whole suite under fire: every service is SIGKILLed in mid-load, several times, and PostgreSQL once.

Afterwards every accepted record has exactly one effect, no delivery was created twice, and order per device held.
"""

import asyncio
import collections
import os
import signal
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import aiohttp
import asyncpg
import grpc
import pytest

from deploy.local.suite import SERVICES, Ports, Suite, running_suite
from libs.channels import open_channel
from reengage.attribution.v1 import decision_pb2
from reengage.ingest.v1 import record_batch_pb2, record_pb2
from reengage.ingest.v1.service_pb2_grpc import IngestServiceStub
from tests.bench.load import APP, CLICKED
from tests.bench.whole import create_settings
from tests.support.network import Network
from tests.support.ports import suite_ports

ROUNDS = 3
SENDERS = 6
pytestmark = [pytest.mark.e2e, pytest.mark.crash, pytest.mark.timeout(300)]


class Sender:
    """Devices that click, install, and come back; one record after the other, each sent until it is acknowledged."""

    def __init__(self, name: str, ports: Ports) -> None:
        self._name, self._ports = name, ports
        self.acknowledged: list[record_pb2.Record] = []
        self.redirected: list[str] = []
        self.stop = asyncio.Event()

    async def run(self) -> None:
        async with (
            open_channel(self._ports.address("ingest"), timeout_s=5) as channel,
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as http,
        ):
            stub = IngestServiceStub(channel)
            number = 0
            while not self.stop.is_set():
                number += 1
                device = f"{abs(hash((self._name, number))) % 2**32:08x}-aaaa-4aaa-8aaa-{number:012x}"
                click = self._record(device, f"c{number}")
                click.click.tracker_id = CLICKED
                await self._send(stub, click)
                await self._click_link(http, device)
                for place in range(3):
                    event = self._record(device, f"e{number}-{place}")
                    event.event.event_name = "Purchase" if place == 0 else "View"
                    event.event.event_data["sent"] = event.record_id
                    await self._send(stub, event)

    def _record(self, device: str, name: str) -> record_pb2.Record:
        record_id = f"{self._name}-{name}"
        return record_pb2.Record(app_id=APP, record_id=record_id, device_ids={"adid": device}, ip_address="192.0.2.1")

    async def _send(self, stub: IngestServiceStub, record: record_pb2.Record) -> None:
        while True:
            try:
                answer = await stub.RecordBatch(record_batch_pb2.RecordBatchRequest(records=[record]))
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.05)  # as a sender does: the same record again
                continue
            assert answer.results[0].status != record_batch_pb2.RecordResult.STATUS_REJECTED, answer
            self.acknowledged.append(record)
            return

    async def _click_link(self, http: aiohttp.ClientSession, device: str) -> None:
        """A click of a person: not sent again when it fails, but counted once a redirect came."""
        url = f"http://{self._ports.address('gateway')}/c/{CLICKED}?adid={device}"
        try:
            async with http.get(url, allow_redirects=False) as answer:
                if answer.status == 302:
                    (click_id,) = parse_qs(urlsplit(answer.headers["Location"]).query)["ko_click_id"]
                    self.redirected.append(click_id)
        except (aiohttp.ClientError, TimeoutError):
            await asyncio.sleep(0.05)


async def test_crashes_lose_nothing_and_double_nothing(tmp_path: Path) -> None:
    ports, network, told = suite_ports(), Network(), list[str]()
    async with running_suite(tmp_path / "data", ports, announce=told.append) as suite, network.serving(ports.network):
        await create_settings(suite)
        senders = [Sender(f"s{number}", ports) for number in range(SENDERS)]
        sending = [asyncio.ensure_future(sender.run()) for sender in senders]
        for number in range(ROUNDS):
            for name in SERVICES:
                await _some_more(senders)
                await _kill(suite, name)
            if number == 1:
                await _some_more(senders)
                await suite.postgres.kill()  # the suite starts it again
        await _some_more(senders)
        for sender in senders:
            sender.stop.set()
        await asyncio.gather(*sending)
        database = await _connect(suite)
        try:
            await _check(database, senders, network)
        finally:
            await database.close()
    assert sum(service.restarts for service in suite.services.values()) == ROUNDS * len(SERVICES), told


async def _some_more(senders: list[Sender]) -> None:
    """Wait until every sender got some way further."""
    goals = [(sender, len(sender.acknowledged) + 12) for sender in senders]
    while any(len(sender.acknowledged) < goal for sender, goal in goals):
        await asyncio.sleep(0.01)


async def _kill(suite: Suite, name: str) -> None:
    service = suite.services[name]
    before = service.restarts
    assert service.pid is not None
    os.kill(service.pid, signal.SIGKILL)
    while service.restarts == before or service.pid is None:
        await asyncio.sleep(0.01)


async def _connect(suite: Suite) -> "asyncpg.Connection[asyncpg.Record]":
    while not suite.postgres.running:
        await asyncio.sleep(0.05)
    return await asyncpg.connect(suite.postgres.admin_dsn())


async def _check(database: "asyncpg.Connection[asyncpg.Record]", senders: list[Sender], network: Network) -> None:
    sent = [record for sender in senders for record in sender.acknowledged]
    events = {record.record_id: record for record in sent if record.HasField("event")}
    purchases = {record_id for record_id, record in events.items() if record.event.event_name == "Purchase"}
    clicks = {click_id for sender in senders for click_id in sender.redirected}
    assert len(purchases) > 50
    assert clicks

    while await database.fetchval("SELECT count(*) FROM attribution.decisions") < len(events):
        await asyncio.sleep(0.05)
    while len(purchases - network.told.keys()) > 0:
        await asyncio.sleep(0.05)

    # The log: each acknowledged record once; per device in the order they were sent.
    logged = [
        (entry["lane"], entry["position"], record_pb2.Record.FromString(entry["record"]))
        for entry in await database.fetch("SELECT lane, position, record FROM ingest.log ORDER BY lane, position")
    ]
    counts = collections.Counter(record.record_id for _, _, record in logged)
    assert {record_id for record_id, count in counts.items() if count > 1} == set()
    assert {record.record_id for record in sent} <= counts.keys()
    await _until_logged(database, clicks)
    order = collections.defaultdict(list)
    for _, _, record in logged:
        if record.record_id in events:
            order[record.device_ids["adid"]].append(record.record_id)
    for record_ids in order.values():
        assert record_ids == sorted(record_ids)

    # Decisions: one each, the right one; per device in order.
    rows = await database.fetch("SELECT conversion_id, outcome FROM attribution.decisions ORDER BY lane, sequence")
    decided = [row["conversion_id"] for row in rows]
    assert sorted(decided) == sorted(events)
    outcomes = {row["conversion_id"]: row["outcome"] for row in rows}
    assert {outcomes[record_id] for record_id in purchases} == {decision_pb2.OUTCOME_REENGAGED}
    assert {outcomes[record_id] for record_id in events.keys() - purchases} == {decision_pb2.OUTCOME_CREDITED}
    places = {conversion_id: place for place, conversion_id in enumerate(decided)}
    for record_ids in order.values():
        assert record_ids == sorted(record_ids, key=places.__getitem__)

    # Deliveries: one for each purchase; the network may have heard of one twice, but always by the same id.
    rows = await database.fetch("SELECT conversion_id FROM postback.deliveries")
    assert sorted(row["conversion_id"] for row in rows) == sorted(purchases)
    assert {len(delivery_ids) for delivery_ids in network.told.values()} == {1}
    assert network.told.keys() == purchases


async def _until_logged(database: "asyncpg.Connection[asyncpg.Record]", clicks: set[str]) -> None:
    """Every click that was redirected reaches the log, if by way of the gateway's spool."""
    while True:
        records = await database.fetch("SELECT record FROM ingest.log WHERE is_engagement")
        found = collections.Counter(record_pb2.Record.FromString(row["record"]).record_id for row in records)
        if clicks <= found.keys():
            assert max(found.values()) == 1
            return
        await asyncio.sleep(0.1)
