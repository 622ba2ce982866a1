"""Every record with a result is in the log once, whoever dies."""

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from libs.channels import open_channel
from reengage.ingest.v1 import record_batch_pb2, record_pb2
from reengage.ingest.v1.service_pb2_grpc import IngestServiceStub
from tests.conftest import Database
from tests.ingest.conftest import event, read_until_caught_up, settings_response
from tests.support.eventually import until
from tests.support.feed import serve_settings
from tests.support.processes import ServiceProcess, ingest_process

pytestmark = [pytest.mark.crash, pytest.mark.timeout(180)]

DEVICES = 24
BATCH = 10


class Load:
    """Devices that send batch after batch, each again until it is acknowledged."""

    def __init__(self, target: str, *, again: bool = True) -> None:
        self.acknowledged: list[str] = []
        self._target, self._again = target, again
        self._stop = asyncio.Event()
        self._sending: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._sending = asyncio.create_task(self._run())

    async def reach(self, records: int) -> None:
        """Waits until so many records more have been acknowledged."""
        goal = len(self.acknowledged) + records
        await until(lambda: len(self.acknowledged) >= goal, every_s=0.005)

    async def finish(self) -> None:
        assert self._sending is not None
        self._stop.set()
        await self._sending

    async def _run(self) -> None:
        async with open_channel(self._target) if self._again else grpc.aio.insecure_channel(self._target) as channel:
            stub = IngestServiceStub(channel)
            await asyncio.gather(*(self._send(stub, device) for device in range(DEVICES)))

    async def _send(self, stub: IngestServiceStub, device: int) -> None:
        number = 0
        while not self._stop.is_set():
            ids = [f"{device}:{number + offset}" for offset in range(BATCH)]
            records = [event(record_id=record_id, device_ids={"idfa": f"d-{device}"}) for record_id in ids]
            try:
                response = await stub.RecordBatch(record_batch_pb2.RecordBatchRequest(records=records))
            except grpc.aio.AioRpcError:
                if not self._again:
                    return
                await asyncio.sleep(0.02)
                continue
            assert [result.record_id for result in response.results] == ids
            self.acknowledged += ids
            number += BATCH


@asynccontextmanager
async def running_ingest(database: Database, log: Path) -> AsyncIterator[ServiceProcess]:
    async with serve_settings(settings_response()) as tracker:
        process = ingest_process(log, dsn=database.dsn("ingest"), tracker_target=tracker)
        await process.start()
        try:
            yield process
        finally:
            await process.stop(signal.SIGKILL)


async def kept(process: ServiceProcess) -> list[str]:
    async with open_channel(process.target) as channel:
        entries = read_until_caught_up(IngestServiceStub(channel))
        return [record_pb2.Record.FromString(entry.record).record_id async for entry in entries]


def assert_once_and_in_order(found: list[str], acknowledged: list[str]) -> None:
    assert Counter(found) == Counter(acknowledged)
    for device in range(DEVICES):
        numbers = [int(record_id.partition(":")[2]) for record_id in found if record_id.startswith(f"{device}:")]
        assert numbers == list(range(len(numbers)))


async def test_killed_in_mid_load(durable_database: Database, tmp_path: Path) -> None:
    async with running_ingest(durable_database, tmp_path / "log") as process:
        load = Load(process.target)
        load.start()
        for _ in range(4):
            await load.reach(1_000)
            await process.stop(signal.SIGKILL)
            await process.start()
        await load.reach(1_000)
        await load.finish()
        assert_once_and_in_order(await kept(process), load.acknowledged)


async def test_database_killed_in_mid_load(durable_database: Database, tmp_path: Path) -> None:
    async with running_ingest(durable_database, tmp_path / "log") as process:
        load = Load(process.target)
        load.start()
        await load.reach(1_000)
        await durable_database.postgres.kill()
        await durable_database.postgres.start()
        await load.reach(1_000)
        await load.finish()
        assert_once_and_in_order(await kept(process), load.acknowledged)


async def test_asked_to_stop_in_mid_load(durable_database: Database, tmp_path: Path) -> None:
    """All that was stored had its result, and the other way round."""
    async with running_ingest(durable_database, tmp_path / "log") as process:
        load = Load(process.target, again=False)
        load.start()
        await load.reach(1_000)
        assert await process.stop(signal.SIGTERM) == 0
        await load.finish()
        await process.start()
        assert_once_and_in_order(await kept(process), load.acknowledged)
