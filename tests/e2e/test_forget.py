"""`reengage forget` on the whole suite: what was sent by way of gateway, log and networks is gone from every schema."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import aiohttp
import asyncpg
import pytest

from deploy.local.suite import Ports, Suite, running_suite
from libs.channels import open_channel
from reengage.attribution.v1 import decision_pb2
from reengage.attribution.v1 import service_pb2_grpc as attribution_grpc
from reengage.ingest.v1 import record_batch_pb2, record_pb2
from reengage.ingest.v1.service_pb2_grpc import IngestServiceStub
from reengage.postback.v1.configuration_pb2 import Configuration
from tests.bench.load import APP, CLICKED, INSTALLED
from tests.bench.whole import create_postback, create_settings
from tests.support.network import Network
from tests.support.ports import suite_ports
from tests.traces import all_rows, places, traces

REENGAGE = Path(sys.executable).with_name("reengage")
ADID, CUSTOM = "aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee", "Person-17"
OTHER = "99999999-bbbb-4ccc-8ddd-eeeeeeeeeeee"
pytestmark = [pytest.mark.e2e, pytest.mark.crash, pytest.mark.timeout(180)]


class Person:
    """A person who clicks a link, sees an ad, installs, comes back, and buys; on one device."""

    def __init__(self, name: str, adid: str, custom: str, ports: Ports) -> None:
        self.name, self.ids, self._ports = name, {"adid": adid, "custom": custom}, ports

    async def click_link(self) -> str:
        """Returns the click id that the redirect handed on."""
        url = f"http://{self._ports.address('gateway')}/c/{CLICKED}?adid={self.ids['adid'].upper()}&click_id={self.name}-net"
        async with aiohttp.ClientSession() as http, http.get(url, allow_redirects=False) as answer:
            (click_id,) = parse_qs(urlsplit(answer.headers["Location"]).query)["ko_click_id"]
            return click_id

    async def send(self, *records: record_pb2.Record) -> list[record_batch_pb2.RecordResult]:
        async with open_channel(self._ports.address("ingest")) as channel:
            stub = IngestServiceStub(channel)
            return list((await stub.RecordBatch(record_batch_pb2.RecordBatchRequest(records=records))).results)

    def record(self, name: str, **fields: object) -> record_pb2.Record:
        usual = {"app_id": APP, "record_id": f"{self.name}-{name}", "device_ids": self.ids, "ip_address": "192.0.2.9"}
        return record_pb2.Record(**{**usual, **fields})  # type: ignore[arg-type]

    def purchase(self, name: str) -> record_pb2.Record:
        data = {"sent": f"{self.name}-{name}"}
        return self.record(name, event=record_pb2.Event(event_name="Purchase", event_data=data))

    async def come(self) -> None:
        await self.click_link()
        await self.send(
            self.record("k", click=record_pb2.Click(tracker_id=INSTALLED)),
            self.record("m", impression=record_pb2.Impression(tracker_id=CLICKED)),
            self.record("i", install=record_pb2.Install()),
            self.record("l", identity_link=record_pb2.IdentityLink(identities={"email": f"{self.name}@example.com"})),
            self.record("bad", event=record_pb2.Event(event_name="")),
        )
        await self.click_link()
        await self.send(self.purchase("e1"))


async def test_forget_on_the_whole_suite(tmp_path: Path) -> None:
    ports, network = suite_ports(), Network()
    async with (
        running_suite(tmp_path / "data", ports, announce=lambda _: None) as suite,
        network.serving(ports.network),
        open_channel(ports.address("attribution")) as channel,
    ):
        attribution = attribution_grpc.AttributionServiceStub(channel)
        await _settings(suite)
        other, person = Person("o", OTHER, "else", ports), Person("p", ADID, CUSTOM, ports)
        await other.come()
        await _until(lambda: "o-e1" in network.told)
        await _rows(suite, "ingest.rejected", 1)
        await _settled(suite)
        before = await all_rows(suite.postgres.admin_dsn())
        await person.come()
        await _until(lambda: "p-e1" in network.told)
        network.is_broken = True
        await person.send(person.purchase("e2"))  # told again and again, without success
        await _rows(suite, "ingest.rejected", 2)
        await _rows(suite, "postback.attempts", 3)
        during = await all_rows(suite.postgres.admin_dsn())
        assert places(during, traces(APP, ADID, CUSTOM)) >= {
            "ingest.log.record",
            "ingest.rejected.refusal",
            "attribution.decisions.record",
            "attribution.decisions.engagement",
            "attribution.devices.ids",
            "attribution.identifiers.id_key",
            "attribution.engagements.match_key",
            "postback.deliveries.conversion",
            "postback.attempts.attempt",
        }

        # Killed while it goes on, one after the other; the command does not mind.
        target = ("--target", ports.address("attribution"))
        forgetting = asyncio.create_task(_reengage("forget", APP, CUSTOM, "--json", *target))
        await _rows(suite, "attribution.erasures", 1)
        for name in ("attribution", "ingest", "postback"):
            await _kill(suite, name)
        proof = json.loads(await forgetting)
        network.is_broken = False
        await _settled(suite)
        after = await all_rows(suite.postgres.admin_dsn())
        words = {b"p@example.com", b"p-net", b"pnet", b"p-e1", b"p-i"}
        assert places(after, traces(APP, ADID, CUSTOM) | words) == set()
        for table in ("ingest.log", "ingest.rejected", "ingest.dedupe"):
            assert set(after[table]) == set(before[table]), table
        for table in ("attribution.decisions", "attribution.devices", "attribution.identifiers"):
            assert set(after[table]) == set(before[table]), table
        for table in ("attribution.engagements", "postback.deliveries", "postback.attempts"):
            assert set(after[table]) == set(before[table]), table
        assert proof["state"] == "STATE_DONE"
        assert "p-e2" not in network.told
        shown = await _reengage("erasures", "get", APP, proof["erasure_id"], *target)
        assert "ingest.log" in shown

        # The same records again are those of a new device.
        network.told.clear()
        await person.come()
        await _until(lambda: "p-e1" in network.told)
        request = decision_pb2.GetDecisionRequest(app_id=APP, conversion_id="p-e1")
        decision = (await attribution.GetDecision(request)).decision
        assert decision.outcome == decision_pb2.OUTCOME_REENGAGED
        assert uuid.UUID(decision.device_id) not in {row["device_id"] for row in during["attribution.devices"]}


async def _settings(suite: Suite) -> None:
    """Creates those of the bench, and a postback that names the device."""
    await create_settings(suite)
    await create_postback(suite, "named", "sent={sent}&adid={adid}&click={click_id}", Configuration.DELIVERY_METHOD_ALL)


async def _reengage(*arguments: str) -> str:
    """Returns what the command writes; it must do well."""
    process = await asyncio.create_subprocess_exec(REENGAGE, *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return output.decode()


async def _until(fact: Callable[[], bool]) -> None:
    while not fact():
        await asyncio.sleep(0.02)


async def _rows(suite: Suite, table: str, count: int) -> None:
    """Waits until a table has so many rows."""
    connection = await asyncpg.connect(suite.postgres.admin_dsn())
    while await connection.fetchval(f"SELECT count(*) FROM {table}") < count:
        await asyncio.sleep(0.02)
    await connection.close()


async def _settled(suite: Suite) -> None:
    """Waits until no delivery is left to be sent, and none is noted as under way."""
    connection = await asyncpg.connect(suite.postgres.admin_dsn())
    while await connection.fetchval("SELECT count(*) FROM postback.deliveries WHERE state = 1"):
        await asyncio.sleep(0.02)
    await connection.close()


async def _kill(suite: Suite, name: str) -> None:
    service = suite.services[name]
    before = service.restarts
    assert service.pid is not None
    os.kill(service.pid, signal.SIGKILL)
    while service.restarts == before or service.pid is None:
        await asyncio.sleep(0.01)
