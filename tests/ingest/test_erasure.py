"""Erasing a device's records from the log: EraseRecords, and what readers, writers and repeats make of the gaps."""

import asyncio
import itertools
import random
from collections import Counter

import asyncpg
import grpc
import pytest

from libs.domain.lanes import LANES
from libs.errors import from_rpc_error
from reengage.ingest.v1 import log_pb2, record_batch_pb2, record_erasure_pb2, record_pb2
from services.ingest.model import REPEAT_WINDOW_US
from services.ingest.storage import dedupe
from services.ingest.storage.log import LogStore
from tests.conftest import Database
from tests.ingest.conftest import APP, STRICT_APP, STRICT_TRACKER, Ingest, StartIngest, click, event, record
from tests.ingest.test_log import Reader, Senders, id_of
from tests.support.plans import query_log

MINE = "AAAAAAAA-1111-4111-8111-AAAAAAAAAAAA"
MINE_MD5 = "0123456789ABCDEF0123456789abcdef"
ACCEPTED, REPEATED = record_batch_pb2.RecordResult.STATUS_ACCEPTED, record_batch_pb2.RecordResult.STATUS_REPEATED
TABLES = ("log", "dedupe", "rejected", "warned")


async def request(ingest: Ingest, *device_ids: str, **fields: object) -> record_erasure_pb2.EraseRecordsRequest:
    """Returns a request for all that the log holds now."""
    heads = (await ingest.log_store.read_page({0: 0}, span=1)).heads
    below = [log_pb2.LanePosition(lane=lane, position=position) for lane, position in enumerate(heads)]
    given = {"app_id": APP, "device_ids": device_ids, "below": below, **fields}
    return record_erasure_pb2.EraseRecordsRequest(**given)  # type: ignore[arg-type]


async def erase(ingest: Ingest, wanted: record_erasure_pb2.EraseRecordsRequest) -> dict[str, int]:
    """Returns the rows erased, by table. Asserts that every lane was reported done, once."""
    counts = Counter[str]()
    done: list[int] = []
    async for response in ingest.stub.EraseRecords(wanted):
        counts.update(response.erased_counts)
        done += response.lanes_done
    assert sorted(done) == sorted(place.lane for place in wanted.below)
    return dict(counts)


async def rows(ingest: Ingest) -> dict[str, set[asyncpg.Record]]:
    return {table: set(await ingest.pool.fetch(f"SELECT * FROM {table}")) for table in TABLES}


async def refused(ingest: Ingest, count: int) -> None:
    """Waits until so many refusals are kept: they are written by and by."""
    while await ingest.pool.fetchval("SELECT count(*) FROM rejected") < count:
        await asyncio.sleep(0.01)


@pytest.mark.slow
async def test_all_of_a_device_goes_and_nothing_of_others(ingest: Ingest) -> None:
    for number in range(300):
        await ingest.send(event(f"View {number}", device_ids={"idfa": f"other-{number}"}))
    await ingest.send(event("", device_ids={"idfa": "other"}))
    await refused(ingest, 1)
    before = await rows(ingest)
    await ingest.send(
        event(device_ids={"idfa": MINE}, record_id="e-1"),
        event(device_ids={"adid": "else", "custom": MINE.lower().replace("-", "")}),
        click(device_ids={"idfa_md5": MINE_MD5.lower()}),
        click(device_ids={"kochava_device_id": "a-better-id", "idfa": f" {MINE.lower()} "}, record_id="k-1"),
        event("", device_ids={"idfa": MINE}),
        event("", device_ids={"no such name": MINE_MD5}, ip_address=""),
    )
    await refused(ingest, 3)
    # The same id in another app is another person's, as far as anyone knows.
    await ingest.send(
        record(app_id=STRICT_APP, click=record_pb2.Click(tracker_id=STRICT_TRACKER), device_ids={"idfa": MINE})
    )
    strict = {row for row in (await rows(ingest))["log"] if STRICT_APP.encode() in row["record"]}
    wanted = await request(ingest, MINE, MINE_MD5)
    assert await erase(ingest, wanted) == {"log": 4, "dedupe": 4, "rejected": 2}
    after = await rows(ingest)
    assert after["log"] == before["log"] | strict
    assert after["rejected"] == before["rejected"]
    assert len(after["dedupe"]) == len(before["dedupe"]) + 1
    assert await erase(ingest, wanted) == {}, "repeat-safe"


async def test_an_erased_record_sent_again_is_a_new_one(ingest: Ingest) -> None:
    mine = [event(device_ids={"idfa": MINE}, record_id="given"), click(device_ids={"idfa": MINE})]
    others = [event(device_ids={"idfa": "other"}, record_id="o"), click(device_ids={"idfa": "other"})]
    await ingest.send(*mine, *others)
    wanted = await request(ingest, MINE)
    await erase(ingest, wanted)
    statuses = [result.status for result in await ingest.send(*mine, *others)]
    assert statuses == [ACCEPTED, ACCEPTED, REPEATED, REPEATED]
    before = await rows(ingest)
    assert await erase(ingest, wanted) == {}, "what came later lies above the positions"
    assert await rows(ingest) == before


async def test_a_record_goes_by_its_id_too(ingest: Ingest) -> None:
    """A click without device ids that a conversion gave back."""
    await ingest.send(click(device_ids={}, record_id="k-1"), click(device_ids={}, record_id="k-2"))
    assert await erase(ingest, await request(ingest, record_ids=["k-1"])) == {"log": 1, "dedupe": 1}
    assert [id_of(entry) for entry in await ingest.log()] == ["k-2"]


async def test_what_a_later_record_is_recognised_by_stays(ingest: Ingest) -> None:
    """The same id, accepted anew a week later: the entry below the positions is erased, the key is not."""
    await ingest.send(event(device_ids={"idfa": MINE}, record_id="e-1"))
    wanted = await request(ingest, MINE)
    await ingest.pool.execute("UPDATE log SET receive_time_us = receive_time_us - $1::bigint", REPEAT_WINDOW_US)
    assert await erase(ingest, wanted) == {"log": 1}
    assert [result.status for result in await ingest.send(event(device_ids={"idfa": MINE}, record_id="e-1"))] == [
        REPEATED
    ]


@pytest.mark.slow
async def test_a_refusal_that_is_yet_to_be_written_goes_too(start_ingest: StartIngest, database: Database) -> None:
    async with start_ingest(database, settle_s=2.0) as ingest:
        await ingest.send(event("", device_ids={"idfa": MINE}))
        assert await erase(ingest, await request(ingest, MINE)) == {"rejected": 1}


async def test_the_warnings_of_a_device_go_too(start_ingest: StartIngest, database: Database) -> None:
    """Also those that are yet to be written."""
    async with start_ingest(database, settle_s=2.0) as ingest:
        await ingest.send(event(device_ids={"idfa": MINE}, record_id="mine", ip_address="x"))
        await ingest.send(event(device_ids={"idfa": "other"}, record_id="other", ip_address="x"))
        assert await erase(ingest, await request(ingest, MINE)) == {"log": 1, "dedupe": 1, "warned": 1}
        await ingest.send(event(device_ids={"idfa": MINE}, record_id="again", ip_address="x"))
        while await ingest.pool.fetchval("SELECT count(*) FROM warned") < 2:
            await asyncio.sleep(0.01)
        assert await erase(ingest, await request(ingest, MINE)) == {"log": 1, "dedupe": 1, "warned": 1}
        assert [row["record_id"] for row in (await rows(ingest))["warned"]] == ["other"]


async def test_a_call_broken_off_goes_on_with_the_lanes_left(ingest: Ingest) -> None:
    await ingest.send(*(event(f"E{n}", device_ids={"idfa": MINE, "kochava_device_id": f"{n}"}) for n in range(200)))
    wanted = await request(ingest, MINE)
    call = ingest.stub.EraseRecords(wanted)
    done: set[int] = set()
    async for response in call:
        done.update(response.lanes_done)
        if len(done) == 10:
            break
    call.cancel()
    left = [place for place in wanted.below if place.lane not in done]
    await erase(ingest, record_erasure_pb2.EraseRecordsRequest(app_id=APP, device_ids=[MINE], below=left))
    assert await ingest.log() == []


@pytest.mark.parametrize("seed", range(5))
async def test_pages_over_gaps_come_in_the_order_of_receipt(ingest: Ingest, seed: int) -> None:
    """The gaps lie anywhere: at the ends of what a page looks at, whole pages long, at the ends of lanes."""
    rng = random.Random(seed)
    for _ in range(20):
        await ingest.send(
            *(
                record(device_ids={"idfa": f"d{rng.random()}"}, event=record_pb2.Event(event_name=f"E{n}"))
                for n in range(20)
            )
        )
    entries = await ingest.pool.fetch("SELECT lane, position FROM log ORDER BY lane, position")
    for row in entries:
        if rng.random() < 0.5 or rng.random() < 0.3 and row["position"] > 3:
            await ingest.pool.execute("DELETE FROM log WHERE lane = $1 AND position = $2", row["lane"], row["position"])
    left = [
        (row["lane"], row["position"])
        for row in await ingest.pool.fetch("SELECT lane, position FROM log ORDER BY receive_time_us")
    ]
    for span in (1, 2, 5):
        positions, read = dict.fromkeys(range(LANES), 0), []
        while not (page := await ingest.log_store.read_page(positions, span=span)).caught_up or page.rows:
            read += page.rows
            positions = page.next_positions
        assert [(row.lane, row.position) for row in read] == left


@pytest.mark.slow
async def test_readers_and_writers_go_on_while_a_device_is_erased(
    start_ingest: StartIngest, database: Database
) -> None:
    async with start_ingest(database) as one, start_ingest(database) as other:
        senders = Senders(replicas=(one, other), records_each=25)
        readers = [Reader(replicas=(one, other)) for _ in range(2)]
        all_sent = asyncio.Event()

        async def keep_erasing() -> None:
            for device in itertools.cycle(range(5)):
                await erase(one, await request(one, f"device-{device}"))

        async with asyncio.TaskGroup() as group:
            erasers = group.create_task(keep_erasing())
            for reader in readers:
                group.create_task(reader.run(all_sent))
            await senders.run(devices=20)
            erasers.cancel()
            all_sent.set()
        for device in range(5):
            await erase(other, await request(other, f"device-{device}"))
        kept = [id_of(entry) for entry in await one.log()]
    expected = [f"{device}:{number}" for device in range(5, 20) for number in range(25)]
    assert sorted(kept) == sorted(expected)
    for reader in readers:
        assert len(set(reader.ids)) == len(reader.ids), "nothing doubled"
        assert set(expected) <= set(reader.ids), "nothing of others lost"
        for device in range(20):
            mine = [int(record_id.partition(":")[2]) for record_id in reader.ids if record_id.startswith(f"{device}:")]
            assert mine == sorted(mine), "nothing swapped"


async def test_all_wrong_fields_are_named(ingest: Ingest) -> None:
    place = log_pb2.LanePosition
    wanted = record_erasure_pb2.EraseRecordsRequest(
        device_ids=["00-00"], below=[place(lane=64), place(lane=1, position=-1), place(lane=1)]
    )
    with pytest.raises(grpc.aio.AioRpcError) as wrong:
        await erase(ingest, wanted)
    with pytest.raises(grpc.aio.AioRpcError) as empty:
        await erase(ingest, record_erasure_pb2.EraseRecordsRequest(app_id=APP))
    assert [(v.field, v.reason) for v in from_rpc_error(wrong.value).violations] == [
        ("app_id", "REQUIRED"),
        ("device_ids", "INVALID_ID"),
        ("below[0].lane", "OUT_OF_RANGE"),
        ("below[1].position", "OUT_OF_RANGE"),
        ("below[2].lane", "OUT_OF_RANGE"),
    ]
    assert [v.field for v in from_rpc_error(empty.value).violations] == ["device_ids", "below"]


async def test_a_step_reads_by_the_primary_keys(database: Database) -> None:
    async with query_log(database.admin_dsn, "ingest") as log:
        await log.pool.execute(
            """
            INSERT INTO log (lane, app_lane, is_engagement, position, receive_time_us, record)
            SELECT lane, 1, true, position, position, 'x'
            FROM generate_series(0, 63) AS lane, generate_series(0, 999) AS position;
            INSERT INTO dedupe (key, first_time_us)
            SELECT decode(md5(n::text), 'hex'), n FROM generate_series(1, 50000) AS n;
            ANALYZE log; ANALYZE dedupe
            """
        )
        await LogStore(log.pool).read_lane(1, range(100), app_lane=1)
        assert "Seq Scan" not in await log.last_plan()
        async with log.pool.acquire() as connection:
            await dedupe.forget_keys(connection, [(b"\0", b"\1", 1)])
        assert "Seq Scan" not in await log.last_plan()
