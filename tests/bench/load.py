"""A bounded load for the whole suite, as a process of its own: records in a paced stream, postbacks received.

Prints one line of JSON: what was sent, how long it took, and how long each postback took from its record's receipt.
"""

import asyncio
import json
import random
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass

from aiohttp import web

from libs.channels import open_channel
from reengage.ingest.v1 import record_batch_pb2, record_pb2
from reengage.ingest.v1.service_pb2_grpc import IngestServiceStub

BATCH = 100
APP, CLICKED, SEEN, INSTALLED = "bench", "bench-re", "bench-re", "bench-ua"
_PAUSE_BATCHES = 20
"""Batches between a click and the event it leads to, so that the order of receipt is beyond doubt."""
_USER_AGENTS = [
    f"Mozilla/5.0 (Linux; Android {version}; SM-G{model}) AppleWebKit/537.36 Chrome/1{version}.0 Mobile Safari/537.36"
    for version in range(10, 16)
    for model in range(900, 990)
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """The sent records and the answers to them."""

    records: int
    conversions: int
    reengaging: int
    seconds: float
    cpu_s: float
    latencies_s: list[float]


async def load(ingest: str, port: int, rate: int, seconds: int, seed: int) -> Loaded:
    """Sends `rate` records a second for `seconds`, in batches of 100 on a stream; then waits for all postbacks.

    It waits 60 s at most. Of a hundred: 60 clicks, 10 impressions, 5 installs, 25 events of which 5 reengage.
    """
    latencies_s: list[float] = []
    everything = asyncio.Event()
    batches = rate * seconds // BATCH
    reengaging = max(0, batches - _PAUSE_BATCHES) * 5

    async def receive(request: web.Request) -> web.Response:
        latencies_s.append(time.time() - int(request.query["sent"]) / 1e6)
        if len(latencies_s) == reengaging:
            everything.set()
        return web.Response()

    app = web.Application()
    app.router.add_get("/postback", receive)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    began = time.monotonic()

    async def requests() -> AsyncIterator[record_batch_pb2.RecordStreamRequest]:
        rows = Traffic(seed)
        for number in range(batches):
            await asyncio.sleep(max(0.0, began + number * BATCH / rate - time.monotonic()))
            yield record_batch_pb2.RecordStreamRequest(records=rows.batch(number))

    async with open_channel(ingest) as channel:
        stub = IngestServiceStub(channel)
        async for response in stub.RecordStream(requests()):
            statuses = {result.status for result in response.results}
            if statuses != {record_batch_pb2.RecordResult.STATUS_ACCEPTED}:
                raise RuntimeError(f"not accepted: {response}")
    elapsed = time.monotonic() - began
    try:
        async with asyncio.timeout(60):
            if reengaging:
                await everything.wait()
    except TimeoutError:
        pass  # the numbers tell
    await runner.cleanup()
    return Loaded(
        records=batches * BATCH,
        conversions=batches * 30,
        reengaging=reengaging,
        seconds=elapsed,
        cpu_s=time.process_time(),
        latencies_s=latencies_s,
    )


class Traffic:
    """The mix, batch after batch."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._seed = seed

    def batch(self, number: int) -> list[record_pb2.Record]:
        records = []
        for place in range(60):
            record = self._record(f"{self._seed}c{number}-{place}")
            record.click.tracker_id, record.click.click_id = CLICKED, record.record_id
            record.click.ad.site_id = f"site-{place}"
            records.append(record)
        for place in range(10):
            record = self._record(f"{self._seed}m{number}-{place}")
            record.impression.tracker_id = SEEN
            records.append(record)
        for place in range(5):
            record = self._record(f"{self._seed}i{number}-{place}")
            record.install.referrer = "utm_source=bench"
            records.append(record)
        for place in range(25):
            # The first five events are of devices that clicked a while ago; the rest of devices known from installs.
            earlier = number - _PAUSE_BATCHES
            reengages = place < 5 and earlier >= 0
            device = f"{self._seed}c{earlier}-{place}" if reengages else f"{self._seed}i{max(0, earlier)}-{place % 5}"
            record = self._record(device)
            record.record_id = f"{self._seed}e{number}-{place}"
            record.event.event_name = "Purchase" if reengages else "View"
            record.event.event_data["sent"] = str(time.time_ns() // 1000)
            record.event.revenue.amount_micros = 9_990_000
            record.event.revenue.currency_code = "USD"
            records.append(record)
        return records

    def _record(self, device: str) -> record_pb2.Record:
        rng = random.Random(device)
        return record_pb2.Record(
            record_id=device,
            app_id=APP,
            device_ids={"adid": f"{rng.getrandbits(32):08x}-aaaa-4aaa-8aaa-{rng.getrandbits(48):012x}"},
            ip_address=f"{rng.randrange(1, 200)}.{rng.randrange(256)}.{rng.randrange(256)}.{rng.randrange(1, 255)}",
            user_agent=rng.choice(_USER_AGENTS),
        )


if __name__ == "__main__":
    target, *numbers = sys.argv[1:]
    json.dump(asdict(asyncio.run(load(target, *map(int, numbers)))), sys.stdout)
