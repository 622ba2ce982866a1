"""The gap trap: what readers get while several writers, slow commits and crashes are at work."""

import asyncio
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import asyncpg
import pytest

from libs.domain.lanes import LANES
from reengage.ingest.v1 import log_pb2, record_pb2
from services.ingest.storage.log import LogStore
from tests.conftest import Database
from tests.ingest.conftest import Ingest, StartIngest, event, read_log_request

SLOW_COMMITS = """
CREATE FUNCTION ingest.sleep_a_while() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN PERFORM pg_sleep(0.01); RETURN NULL; END $$;
-- Deferred: it sleeps while committing, when positions are long given.
CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON ingest.log DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (NEW.position % 7 = 3) EXECUTE FUNCTION ingest.sleep_a_while();
"""


@dataclass(kw_only=True)
class Senders:
    """Devices that each send one record after the other, over any replica; when each was sent and when acknowledged."""

    replicas: Sequence[Ingest]
    records_each: int
    clock: "itertools.count[int]" = field(default_factory=itertools.count)
    sent: dict[str, int] = field(default_factory=dict)
    acknowledged: dict[str, int] = field(default_factory=dict)

    async def run(self, devices: int) -> None:
        await asyncio.gather(*(self._send(device) for device in range(devices)))

    async def _send(self, device: int) -> None:
        for number in range(self.records_each):
            record_id = f"{device}:{number}"
            self.sent[record_id] = next(self.clock)
            record = event(record_id=record_id, device_ids={"idfa": f"device-{device}"})
            await random.choice(self.replicas).send(record)
            self.acknowledged[record_id] = next(self.clock)


@dataclass(kw_only=True)
class Reader:
    """A reader that keeps what it read; it crashes now and then and goes on where it was, reading from any replica."""

    replicas: Sequence[Ingest]
    responses: list[log_pb2.ReadLogResponse] = field(default_factory=list)
    positions: list[int] = field(default_factory=lambda: [0] * LANES)

    async def run(self, all_sent: asyncio.Event) -> None:
        """Reads until it has caught up with a call that it began when all was sent."""
        while True:
            last = all_sent.is_set()
            call = random.choice(self.replicas).stub.ReadLog(read_log_request(self.positions, max_entries=20))
            async for response in call:
                self.responses.append(response)
                for entry in response.entries:
                    self.positions[entry.lane] = entry.position + 1
                if response.caught_up if last else all_sent.is_set() or random.random() < 0.2:
                    break
            call.cancel()
            if last:
                return

    @property
    def ids(self) -> list[str]:
        return [id_of(entry) for response in self.responses for entry in response.entries]


def id_of(entry: log_pb2.LogEntry) -> str:
    return record_pb2.Record.FromString(entry.record).record_id


@pytest.mark.slow
async def test_gap_trap(start_ingest: StartIngest, database: Database) -> None:
    admin = await asyncpg.connect(database.admin_dsn)
    await admin.execute(SLOW_COMMITS)
    async with start_ingest(database) as one, start_ingest(database) as other:
        senders = Senders(replicas=(one, other), records_each=25)
        readers = [Reader(replicas=(one, other)) for _ in range(3)]
        all_sent = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            hold = group.create_task(_hold_lanes(admin))
            for reader in readers:
                group.create_task(reader.run(all_sent))
            await senders.run(devices=40)
            hold.cancel()
            all_sent.set()
    await admin.close()

    for reader in readers:
        assert sorted(reader.ids) == sorted(senders.acknowledged), "nothing lost, nothing doubled"
        for device in range(40):
            mine = [record_id for record_id in reader.ids if record_id.startswith(f"{device}:")]
            assert mine == [f"{device}:{number}" for number in range(25)], "nothing swapped"
        entries = [entry for response in reader.responses for entry in response.entries]
        for lane in range(LANES):
            in_lane = [entry for entry in entries if entry.lane == lane]
            assert [entry.position for entry in in_lane] == list(range(len(in_lane)))
            times = [entry.receive_time_us for entry in in_lane]
            assert times == sorted(times)
        for response in reader.responses:
            times = [entry.receive_time_us for entry in response.entries]
            assert times == sorted(times), "across lanes in the order of receipt"

        # What was acknowledged before an entry was even sent lies below the heads that came with the entry.
        places = {id_of(entry): (entry.lane, entry.position) for entry in entries}
        for response in reader.responses:
            last_sent = max((senders.sent[id_of(entry)] for entry in response.entries), default=-1)
            for record_id, acknowledged in senders.acknowledged.items():
                if acknowledged < last_sent:
                    lane, position = places[record_id]
                    assert position < response.heads[lane]


@pytest.mark.slow
async def test_heads_are_above_all_that_was_acknowledged_before(start_ingest: StartIngest, database: Database) -> None:
    async with start_ingest(database) as one, start_ingest(database) as other:
        senders = Senders(replicas=(one, other), records_each=30)
        sending = asyncio.ensure_future(senders.run(devices=20))
        looks: list[tuple[set[str], list[int]]] = []
        while not sending.done():
            acknowledged = set(senders.acknowledged)
            call = random.choice((one, other)).stub.ReadLog(read_log_request(max_entries=1))
            response = await anext(aiter(call))
            call.cancel()
            looks.append((acknowledged, list(response.heads)))
        await sending
        places = {id_of(entry): (entry.lane, entry.position) for entry in await one.log()}
    assert sum(bool(acknowledged) for acknowledged, _ in looks) > 3
    for acknowledged, heads in looks:
        for record_id in acknowledged:
            lane, position = places[record_id]
            assert position < heads[lane]


@pytest.mark.parametrize("lanes", [[0], [3, 9], list(range(LANES))], ids=["one lane", "two lanes", "all lanes"])
@pytest.mark.parametrize("span", [1, 7, 1000])
@pytest.mark.slow
async def test_pages_join_without_a_seam(
    ingest: Ingest, lanes: list[int], span: int, subtests: pytest.Subtests
) -> None:
    """Pages of any size are together the log; across lanes in the order of receipt."""
    # Lanes of very different lengths, in an order of their own.
    pick = random.Random(7)
    rows, ends = [], [0] * LANES
    for number in range(600):
        lane = min(int(pick.expovariate(0.15)), 63)
        is_engagement = (True, False, None)[number % 3]
        rows.append((lane, ends[lane], number % 5, is_engagement, 1_000 + number // 4, b"%d" % number))
        ends[lane] += 1
    columns = ("lane", "position", "app_lane", "is_engagement", "receive_time_us", "record")
    await ingest.pool.copy_records_to_table("log", columns=columns, records=rows)
    await ingest.pool.executemany("UPDATE lanes SET next_position = $2 WHERE lane = $1", list(enumerate(ends)))

    for engagements, app_lanes in itertools.product((None, True, False), (None, [2, 3])):
        expected = sorted(
            (row[4], row[0], row[1], row[5])
            for row in rows
            if row[0] in lanes
            and (engagements is None or row[3] is None or row[3] is engagements)
            and (app_lanes is None or row[2] in app_lanes)
        )
        with subtests.test(engagements=engagements, app_lanes=app_lanes):
            found = await _read_all(ingest.log_store, lanes, span, engagements, app_lanes)
            assert sorted(found) == expected
            assert [row[0] for row in found] == [row[0] for row in expected]


async def test_a_page_cut_by_its_size_loses_nothing(start_ingest: StartIngest, database: Database) -> None:
    records = [
        event(record_id=f"r-{number}", device_ids={"idfa": f"id-{number}"}, user_agent="x" * 2_000)
        for number in range(40)
    ]
    async with start_ingest(database, page_bytes=5_000) as ingest:
        await ingest.send(*records)
        found = await _read_all(ingest.log_store, list(range(LANES)), 1000, None, None)
    assert [record_pb2.Record.FromString(row[3]).record_id for row in found] == [f"r-{number}" for number in range(40)]


async def _read_all(
    log: LogStore, lanes: Sequence[int], span: int, engagements: bool | None, app_lanes: list[int] | None
) -> list[tuple[int, int, int, bytes]]:
    positions = dict.fromkeys(lanes, 0)
    found = []
    caught_up = False
    while not caught_up:
        page = await log.read_page(positions, span=span, engagements=engagements, app_lanes=app_lanes)
        assert page.caught_up or page.next_positions != positions, "every look gets on"
        positions, caught_up = page.next_positions, page.caught_up
        found += [(row.receive_time_us, row.lane, row.position, row.record) for row in page.rows]
    return found


async def _hold_lanes(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    """Holds a lane in the middle now and then, so that writers wait with half of theirs in hand."""
    for lane in itertools.cycle((31, 7, 60)):
        async with connection.transaction():
            await connection.execute("SELECT FROM ingest.lanes WHERE lane = $1 FOR UPDATE", lane)
            await connection.execute("SELECT pg_sleep(0.03)")
        await asyncio.sleep(0.01)
