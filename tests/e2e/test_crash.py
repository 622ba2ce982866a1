"""The whole suite under fire: every service is SIGKILLed in mid-load, several times, and PostgreSQL once.

Afterwards every accepted record has exactly one effect, no delivery was created twice, and order per device held. What
came late, from a sender or out of the gateway's spool, has changed what it had to change (D12), and nothing else.
"""

import asyncio
import collections
import itertools
import os
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

import aiohttp
import asyncpg
import grpc
import pytest

from deploy.local.suite import SERVICES, Ports, Suite, running_suite
from libs.channels import open_channel
from libs.time import SECOND_US, now_us, timestamp_us
from reengage.attribution.v1 import decision_pb2
from reengage.ingest.v1 import record_batch_pb2, record_pb2
from reengage.ingest.v1.service_pb2_grpc import IngestServiceStub
from services.attribution.wire.records import LATE_US
from tests.bench.load import APP, CLICKED
from tests.bench.whole import create_settings
from tests.support.network import Network
from tests.support.ports import suite_ports

ROUNDS = 3
SENDERS = 6
pytestmark = [pytest.mark.e2e, pytest.mark.crash, pytest.mark.timeout(300)]


class Entry(NamedTuple):
    """A record in the log."""

    receive_time_us: int
    record: record_pb2.Record

    @property
    def time_us(self) -> int:
        return timestamp_us(self.record.event_time)

    @property
    def device(self) -> str:
        return self.record.device_ids["adid"]


class Sender:
    """Devices that click and come back; one record after the other, each sent until it is acknowledged.

    Of every fourth the click that led to its purchase is sent last of all, when that is decided.
    """

    def __init__(self, name: str, ports: Ports) -> None:
        self._name, self._ports = name, ports
        self.acknowledged: list[record_pb2.Record] = []
        self.redirected: list[str] = []
        self._late: list[record_pb2.Record] = []
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
                is_late = number % 4 == 0
                await self._send(stub, self._click(device, f"c{number}", ago_s=20 if is_late else 0))
                if is_late:
                    self._late.append(self._click(device, f"late{number}", ago_s=10))
                else:
                    await self._click_link(http, device)
                for place in range(3):
                    event = self._record(device, f"e{number}-{place}")
                    event.event.event_name = "Purchase" if place == 0 else "View"
                    event.event.event_data["sent"] = event.record_id
                    await self._send(stub, event)

    async def send_late(self) -> None:
        """Sends the clicks that were held back."""
        async with open_channel(self._ports.address("ingest"), timeout_s=5) as channel:
            for click in self._late:
                await self._send(IngestServiceStub(channel), click)

    def _click(self, device: str, name: str, *, ago_s: int) -> record_pb2.Record:
        click = self._record(device, name)
        click.click.tracker_id = CLICKED
        click.event_time.FromMicroseconds(now_us() - ago_s * SECOND_US)
        return click

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
        """Clicks as a person does: not again when it fails, but counted once a redirect came."""
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
            await _until_decided(database, senders)
            late = [asyncio.ensure_future(sender.send_late()) for sender in senders]
            while not await database.fetchval("SELECT EXISTS (SELECT FROM attribution.decisions WHERE version > 1)"):
                await asyncio.sleep(0.01)
            await _kill(suite, "attribution")
            await asyncio.gather(*late)
            await _check(database, senders, network)
        finally:
            await database.close()
    assert sum(service.restarts for service in suite.services.values()) == ROUNDS * len(SERVICES) + 1, told


async def _some_more(senders: list[Sender]) -> None:
    """Waits until every sender got some way further."""
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


async def _until_decided(database: "asyncpg.Connection[asyncpg.Record]", senders: list[Sender]) -> None:
    """Waits until every event has its first decision."""
    count = sum(record.HasField("event") for sender in senders for record in sender.acknowledged)
    while await database.fetchval("SELECT count(*) FROM attribution.decisions WHERE version = 1") < count:
        await asyncio.sleep(0.05)


async def _check(database: "asyncpg.Connection[asyncpg.Record]", senders: list[Sender], network: Network) -> None:
    sent = [record for sender in senders for record in sender.acknowledged]
    events = {record.record_id: record for record in sent if record.HasField("event")}
    purchases = {record_id for record_id, record in events.items() if record.event.event_name == "Purchase"}
    clicks = {click_id for sender in senders for click_id in sender.redirected}
    assert len(purchases) > 50
    assert clicks

    while len(purchases - network.told.keys()) > 0:
        await asyncio.sleep(0.05)

    # The log: each acknowledged record once; per device in the order they were sent.
    await _until_logged(database, clicks)
    logged = [
        Entry(row["receive_time_us"], record_pb2.Record.FromString(row["record"]))
        for row in await database.fetch("SELECT receive_time_us, record FROM ingest.log ORDER BY lane, position")
    ]
    counts = collections.Counter(each.record.record_id for each in logged)
    assert {record_id for record_id, count in counts.items() if count > 1} == set()
    assert {record.record_id for record in sent} <= counts.keys()
    order = collections.defaultdict(list)
    clicked = collections.defaultdict(list)
    for each in logged:
        if each.record.record_id in events:
            order[each.device].append(each.record.record_id)
        else:
            clicked[each.device].append(each)
    for record_ids in order.values():
        assert record_ids == sorted(record_ids)

    # Decisions: a first version each, per device in order.
    await _until_settled(database, sum(map(len, clicked.values())))
    versions = await _versions(database)
    assert versions.keys() == events.keys()
    places = {conversion_id: place for place, conversion_id in enumerate(versions)}
    for record_ids in order.values():
        assert record_ids == sorted(record_ids, key=places.__getitem__)

    # Later versions only where something late has changed something.
    assert {(each[0].version, each[0].because) for each in versions.values()} == {(1, decision_pb2.BECAUSE_UNSPECIFIED)}
    for before, after in itertools.chain.from_iterable(map(itertools.pairwise, versions.values())):
        assert (after.version, after.because) == (before.version + 1, decision_pb2.BECAUSE_LATE_ENGAGEMENT)
        assert after.late_record_id in counts.keys() - events.keys()
        assert _told(after) != _told(before)

    # The newest version is the right one: the latest click before the purchase has won it, however late it arrived.
    newest = {conversion_id: decisions[-1] for conversion_id, decisions in versions.items()}
    assert {newest[record_id].outcome for record_id in purchases} == {decision_pb2.OUTCOME_REENGAGED}
    assert {newest[record_id].outcome for record_id in events.keys() - purchases} == {decision_pb2.OUTCOME_CREDITED}
    for purchase in (each for each in logged if each.record.record_id in purchases):
        assert newest[purchase.record.record_id].engagement_id in _may_have_won(purchase, clicked[purchase.device])

    # Deliveries: one for each purchase; the network may have heard of one twice, but always by the same id.
    rows = await database.fetch("SELECT conversion_id FROM postback.deliveries")
    assert sorted(row["conversion_id"] for row in rows) == sorted(purchases)
    assert {len(delivery_ids) for delivery_ids in network.told.values()} == {1}
    assert network.told.keys() == purchases


async def _versions(database: "asyncpg.Connection[asyncpg.Record]") -> dict[str, list[decision_pb2.Decision]]:
    """Returns the versions of every decision, in the order in which they were made."""
    versions = collections.defaultdict(list)
    for row in await database.fetch("SELECT decision FROM attribution.decisions ORDER BY lane, sequence"):
        decision = decision_pb2.Decision.FromString(row["decision"])
        versions[decision.conversion_id].append(decision)
    return versions


def _told(decision: decision_pb2.Decision) -> decision_pb2.Decision:
    """Returns what a version tells, but for what it was made of and when."""
    told = decision_pb2.Decision()
    told.CopyFrom(decision)
    for name in ("version", "because", "late_record_id", "decide_time", "candidates"):
        told.ClearField(name)
    return told


def _may_have_won(purchase: Entry, clicks: Iterable[Entry]) -> set[str]:
    """Returns the latest click before a purchase.

    And clicks after that which were received after the purchase but too soon to be late: it may know of them or not.
    """
    found = set()
    for click in sorted(clicks, key=lambda click: click.time_us, reverse=True):
        if click.time_us < purchase.time_us:
            found.add(click.record.record_id)
            is_late = click.receive_time_us - click.time_us > LATE_US
            if is_late or click.receive_time_us <= purchase.receive_time_us:
                break
    return found


async def _until_settled(database: "asyncpg.Connection[asyncpg.Record]", click_count: int) -> None:
    """Waits until every click is indexed, and what those that arrived late change is decided again (D12)."""
    while await database.fetchval("SELECT count(DISTINCT engagement_id) FROM attribution.engagements") < click_count:
        await asyncio.sleep(0.05)
    while await database.fetchval("SELECT count(*) FROM attribution.late_arrivals") > 0:
        await asyncio.sleep(0.05)


async def _until_logged(database: "asyncpg.Connection[asyncpg.Record]", clicks: set[str]) -> None:
    """Waits until every click that was redirected is in the log, if by way of the gateway's spool."""
    while True:
        records = await database.fetch("SELECT record FROM ingest.log WHERE is_engagement")
        found = collections.Counter(record_pb2.Record.FromString(row["record"]).record_id for row in records)
        if clicks <= found.keys():
            assert max(found.values()) == 1
            return
        await asyncio.sleep(0.1)
