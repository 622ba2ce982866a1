"""The service as callers see it: results, repeats, backpressure, streams, refused records, pages of the log, errors."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from prometheus_client import REGISTRY

from libs.domain.lanes import LANES
from libs.errors import from_rpc_error
from libs.time import DAY_US, MINUTE_US
from reengage.ingest.v1 import log_pb2, record_batch_pb2, record_pb2, rejected_record_pb2, warned_record_pb2
from services.ingest.retention import purge
from services.ingest.storage.log import LogStore
from tests.conftest import Database
from tests.ingest.conftest import (
    APP,
    TRACKER,
    Ingest,
    StartIngest,
    age_all,
    click,
    event,
    read_log_request,
    read_until_caught_up,
    record,
)
from tests.support.eventually import eventually
from tests.support.plans import query_log

ACCEPTED = record_batch_pb2.RecordResult.STATUS_ACCEPTED
REPEATED = record_batch_pb2.RecordResult.STATUS_REPEATED
REJECTED = record_batch_pb2.RecordResult.STATUS_REJECTED


def statuses(results: list[record_batch_pb2.RecordResult]) -> list[int]:
    return [result.status for result in results]


async def error_of(call: Awaitable[object]) -> tuple[grpc.StatusCode, str, float | None]:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    details = from_rpc_error(raised.value)
    return details.code, details.reason, details.retry_after_s


async def kept_ids(ingest: Ingest) -> list[str]:
    return [record_pb2.Record.FromString(entry.record).record_id for entry in await ingest.log()]


async def test_each_item_has_its_result_and_good_ones_are_kept(ingest: Ingest) -> None:
    results = await ingest.send(
        click(record_id="c"), event(""), event(record_id="e"), event(record_id="w", ip_address="x")
    )
    assert statuses(results) == [ACCEPTED, REJECTED, ACCEPTED, ACCEPTED]
    assert [result.record_id for result in results] == ["c", "", "e", "w"]
    assert [violation.reason for violation in results[1].violations] == ["REQUIRED"]
    assert [[warning.code for warning in result.warnings] for result in results] == [[], [], [], ["INVALID_IP_ADDRESS"]]
    assert await kept_ids(ingest) == ["c", "e", "w"]


async def test_a_ping_is_what_its_sender_calls_one(ingest: Ingest) -> None:
    """D12: nobody else can know over gRPC, whatever time it gives; who says nothing vouches for the time."""
    before = Timestamp(seconds=int(time.time()) - 3600)
    sent = [
        record(record_id="said", event_time=before, click=record_pb2.Click(tracker_id=TRACKER, is_ping=True)),
        record(record_id="not said", event_time=before, click=record_pb2.Click(tracker_id=TRACKER)),
        record(record_id="seen", impression=record_pb2.Impression(tracker_id=TRACKER, is_ping=True)),
        record(record_id="not seen", impression=record_pb2.Impression(tracker_id=TRACKER)),
    ]
    assert statuses(await ingest.send(*sent)) == [ACCEPTED] * len(sent)
    logged = [record_pb2.Record.FromString(entry.record) for entry in await ingest.log()]
    assert {each.record_id: each.click.is_ping or each.impression.is_ping for each in logged} == {
        "said": True, "not said": False, "seen": True, "not seen": False,
    }  # fmt: skip


async def test_an_engagement_of_a_bot_is_marked_whoever_sent_it(ingest: Ingest) -> None:
    """A9: by its user agent, whatever its sender says; a sender may know of others."""
    person, bot, prefetch = record_pb2.VISITOR_UNSPECIFIED, record_pb2.VISITOR_BOT, record_pb2.VISITOR_PREFETCH
    preview, said = "WhatsApp/2.23.20.0", record_pb2.Click(tracker_id=TRACKER, visitor=prefetch)
    sent = [
        click(record_id="person"),
        click(record_id="bot", user_agent=preview),
        record(record_id="both", user_agent=preview, click=said),
        record(record_id="prefetch", click=said),
        click(user_agent=preview),
        record(record_id="impression", user_agent=preview, impression=record_pb2.Impression(tracker_id=TRACKER)),
        event(record_id="event", user_agent=preview),
    ]
    assert statuses(await ingest.send(*sent)) == [ACCEPTED] * len(sent)
    assert statuses(await ingest.send(click(user_agent=preview))) == [REPEATED]
    logged = [record_pb2.Record.FromString(entry.record) for entry in await ingest.log()]
    assert [each.impression.visitor or each.click.visitor for each in logged] == [
        person, bot, bot, prefetch, bot, bot, person,
    ]  # fmt: skip
    assert {each.click.tracker_id for each in logged if each.HasField("click")} == {TRACKER}


async def test_repeats_with_an_id(ingest: Ingest) -> None:
    first = await ingest.send(event(record_id="r"), event(record_id="r"))
    again = await ingest.send(event(record_id="r", device_ids={"adid": "other"}))
    assert statuses(first + again) == [ACCEPTED, REPEATED, REPEATED]
    assert {result.record_id for result in first + again} == {"r"}
    assert await kept_ids(ingest) == ["r"]


@pytest.mark.parametrize(
    "other",
    [
        event("Other", record_id="r"),
        click(record_id="r"),
        record(session=record_pb2.Session(state=record_pb2.Session.STATE_START), record_id="r"),
    ],
    ids=["event", "click", "session"],
)
@pytest.mark.parametrize("together", [True, False], ids=["in one call", "in two"])
async def test_an_id_is_not_used_twice(ingest: Ingest, other: record_pb2.Record, *, together: bool) -> None:
    if together:
        results = await ingest.send(event(record_id="r"), other, event(record_id="r"))
    else:
        results = [(await ingest.send(each))[0] for each in (event(record_id="r"), other, event(record_id="r"))]
    assert statuses(results) == [ACCEPTED, REJECTED, REPEATED]
    assert [(v.field, v.reason) for v in results[1].violations] == [("record_id", "RECORD_ID_REUSED")]
    assert await kept_ids(ingest) == ["r"]

    async def is_listed() -> bool:
        listed = await ingest.stub.ListRejected(rejected_record_pb2.ListRejectedRequest(app_id=APP))
        return [refusal.record.WhichOneof("kind") for refusal in listed.rejected] == [other.WhichOneof("kind")]

    await eventually(is_listed)


async def test_without_id_and_time_a_repeat_is_one_for_five_minutes(ingest: Ingest, database: Database) -> None:
    [first] = await ingest.send(event())
    await age_all(database, 5 * MINUTE_US - 10_000_000)
    [again] = await ingest.send(event(user_agent="another", ip_address="192.0.2.99"))
    await age_all(database, 10_000_000)
    [second] = await ingest.send(event())
    assert statuses([first, again, second]) == [ACCEPTED, REPEATED, ACCEPTED]
    assert await kept_ids(ingest) == [first.record_id, second.record_id]


async def test_repeats_without_an_id_get_the_id_of_the_first(ingest: Ingest) -> None:
    first = await ingest.send(event(), event())
    again = await ingest.send(event(), event("Other"))
    assert statuses(first + again) == [ACCEPTED, REPEATED, REPEATED, ACCEPTED]
    assert len({result.record_id for result in [*first, again[0]]}) == 1
    assert await kept_ids(ingest) == [first[0].record_id, again[1].record_id]


async def test_concurrent_repeats_in_two_processes_are_stored_once(
    start_ingest: StartIngest, database: Database
) -> None:
    async with start_ingest(database) as one, start_ingest(database) as other:
        records = [event(record_id=f"r-{number}") for number in range(50)]
        calls = [
            replica.send(*(records if backwards else reversed(records)))
            for replica in (one, other)
            for backwards in (False, True)
            for _ in range(5)
        ]
        results = [result for results in await asyncio.gather(*calls) for result in results]
        assert statuses(results).count(ACCEPTED) == 50
        assert statuses(results).count(REPEATED) == 50 * 19
        assert sorted(await kept_ids(one)) == sorted(record.record_id for record in records)


@pytest.mark.parametrize("same", [{"record_id": "r"}, {"event_time": Timestamp()}], ids=["id", "time"])
async def test_after_a_week_it_is_a_new_record(ingest: Ingest, database: Database, same: dict[str, Any]) -> None:
    if "event_time" in same:
        same["event_time"].FromSeconds(int(time.time()))
    first = await ingest.send(event(**same))
    await age_all(database, 7 * DAY_US - MINUTE_US)
    assert statuses(await ingest.send(event(**same))) == [REPEATED]
    await age_all(database, MINUTE_US)
    second = await ingest.send(event(**same))
    assert statuses(second) == [ACCEPTED]
    assert statuses(await ingest.send(event(**same))) == [REPEATED]
    assert await kept_ids(ingest) == [first[0].record_id, second[0].record_id]


@pytest.mark.parametrize(
    ("records", "reason"), [(0, "INVALID_ARGUMENT"), (1001, "BATCH_TOO_LARGE")], ids=["none", "1,001"]
)
async def test_size_of_a_batch(ingest: Ingest, records: int, reason: str) -> None:
    call = ingest.stub.RecordBatch(record_batch_pb2.RecordBatchRequest(records=[event()] * records))
    assert (await error_of(call))[:2] == (grpc.StatusCode.INVALID_ARGUMENT, reason)


async def test_too_much_waiting_is_refused_with_a_time_to_retry(start_ingest: StartIngest, database: Database) -> None:
    async with start_ingest(database, max_waiting=10) as ingest:
        async with blocked_lanes(ingest):
            waiting = asyncio.ensure_future(ingest.send(*(event(record_id=f"a-{number}") for number in range(8))))
            while not await waiting_for_lock(ingest):
                pass
            more = record_batch_pb2.RecordBatchRequest(records=[event(record_id=f"b-{number}") for number in range(8)])
            error = await error_of(ingest.stub.RecordBatch(more))
            assert error == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED", 1.0)
            assert not waiting.done()
        assert statuses(await waiting) == [ACCEPTED] * 8


async def test_a_stream_waits_for_room_and_responds_in_order(start_ingest: StartIngest, database: Database) -> None:
    async with start_ingest(database, max_waiting=10) as ingest:

        async def requests() -> AsyncIterator[record_batch_pb2.RecordStreamRequest]:
            for number in range(40):
                records = [event(record_id=f"{number}-{part}") for part in range(7)] + [event("")]
                yield record_batch_pb2.RecordStreamRequest(records=records)

        responses = [response async for response in ingest.stub.RecordStream(requests())]
        assert [[result.record_id for result in response.results] for response in responses] == [
            [f"{number}-{part}" for part in range(7)] + [""] for number in range(40)
        ]
        # One device, so one lane: in the order of sending.
        assert await kept_ids(ingest) == [f"{number}-{part}" for number in range(40) for part in range(7)]


async def test_a_stream_ends_with_the_error_of_a_bad_request(ingest: Ingest) -> None:
    async def requests() -> AsyncIterator[record_batch_pb2.RecordStreamRequest]:
        yield record_batch_pb2.RecordStreamRequest(records=[event()])
        yield record_batch_pb2.RecordStreamRequest()
        await asyncio.Event().wait()

    responses = aiter(ingest.stub.RecordStream(requests()))
    assert statuses(list((await anext(responses)).results)) == [ACCEPTED]
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await anext(responses)
    assert from_rpc_error(raised.value).code is grpc.StatusCode.INVALID_ARGUMENT


async def test_refused_records_are_listed_newest_first(ingest: Ingest) -> None:
    sent = [event("", record_id=f"r-{number}", ip_address="x") for number in range(5)]
    for wrong in sent:
        await ingest.send(wrong)
    await ingest.send(event("", app_id="other\0"), event("", user_agent="x" * 70_000))
    listed: list[rejected_record_pb2.RejectedRecord] = []
    while len(listed) < 6:  # they are written by and by
        listed, token = [], ""
        while token or not listed:
            request = rejected_record_pb2.ListRejectedRequest(app_id=APP, page_size=2, page_token=token)
            page = await ingest.stub.ListRejected(request)
            listed.extend(page.rejected)
            token = page.next_page_token
            if not page.rejected:
                break
    assert [refusal.record for refusal in listed[1:]] == sent[::-1]
    assert {violation.reason for refusal in listed[1:] for violation in refusal.violations} == {
        "REQUIRED",
        "INVALID_IP_ADDRESS",
    }
    # Too large to be kept whole.
    assert listed[0].record == record_pb2.Record(app_id=APP)
    assert [violation.reason for violation in listed[0].violations] == ["REQUIRED", "TOO_LONG"]
    other = await ingest.stub.ListRejected(rejected_record_pb2.ListRejectedRequest(app_id="other"))
    assert [refusal.record.app_id for refusal in other.rejected] == ["other\0"]


def counted(app_id: str, field: str, code: str) -> float:
    labels = {"app_id": app_id, "field": field, "code": code}
    return REGISTRY.get_sample_value("ingest_warnings_total", labels) or 0.0


async def test_warnings_are_counted_and_listed_newest_first(ingest: Ingest) -> None:
    before = counted(APP, "ip_address", "INVALID_IP_ADDRESS"), counted(APP, "other", "other")
    given = record_pb2.FieldWarning(field="theirs.x", code="THEIRS", message="m")
    for number in range(5):
        await ingest.send(event(record_id=f"w-{number}", ip_address="x", warnings=[given]))
    await ingest.send(event(record_id="w-0", ip_address="x"), event(record_id="fine"))

    async def listed() -> list[warned_record_pb2.WarnedRecord]:
        found: list[warned_record_pb2.WarnedRecord] = []
        token = ""
        while token or not found:
            request = warned_record_pb2.ListWarningsRequest(app_id=APP, page_size=2, page_token=token)
            page = await ingest.stub.ListWarnings(request)
            found.extend(page.warned)
            token = page.next_page_token
            if not page.warned:
                break
        return found if len(found) == 5 else []

    warned = await eventually(listed)
    assert [each.record_id for each in warned] == [f"w-{number}" for number in range(4, -1, -1)]
    assert {(each.kind, *((w.field, w.code) for w in each.warnings)) for each in warned} == {
        ("event", ("theirs.x", "THEIRS"), ("ip_address", "INVALID_IP_ADDRESS"))
    }
    after = counted(APP, "ip_address", "INVALID_IP_ADDRESS"), counted(APP, "other", "other")
    assert (after[0] - before[0], after[1] - before[1]) == (5, 5)
    other = await ingest.stub.ListWarnings(warned_record_pb2.ListWarningsRequest(app_id="other"))
    assert not other.warned


async def test_of_many_records_with_warnings_the_newest_are_kept(ingest: Ingest) -> None:
    await ingest.send(*(event(record_id=f"w-{number}", ip_address="x") for number in range(200)))

    async def listed() -> list[str]:
        page = await ingest.stub.ListWarnings(warned_record_pb2.ListWarningsRequest(app_id=APP))
        return [each.record_id for each in page.warned]

    assert sorted(await eventually(listed)) == sorted(f"w-{number}" for number in range(180, 200))
    await ingest.pool.execute(
        """
        INSERT INTO warned (app_id, warn_time_us, warned_id, record_id, warned)
        SELECT app, 1, number, '', '' FROM generate_series(1, 1500) AS number, unnest(ARRAY['shop', 'few']) AS app
        WHERE app = 'shop' OR number <= 3
        """
    )
    await ingest.pool.execute("UPDATE warned SET warn_time_us = (SELECT max(warn_time_us) FROM warned) - 1")
    await purge(ingest.log_store, ingest.rejected, ingest.warned, log_days=35)
    kept = await ingest.pool.fetch("SELECT app_id, count(*) FROM warned GROUP BY app_id ORDER BY app_id")
    assert [tuple(row) for row in kept] == [("few", 3), (APP, 1_000)]


@pytest.mark.parametrize("method", ["ListRejected", "ListWarnings"])
async def test_bad_pages(ingest: Ingest, method: str) -> None:
    of_warnings = method == "ListWarnings"
    kind = warned_record_pb2.ListWarningsRequest if of_warnings else rejected_record_pb2.ListRejectedRequest
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await getattr(ingest.stub, method)(kind(page_size=-1, page_token="x"))
    found = from_rpc_error(raised.value).violations
    assert {(violation.field, violation.reason) for violation in found} == {
        ("app_id", "REQUIRED"),
        ("page_size", "OUT_OF_RANGE"),
        ("page_token", "INVALID_TOKEN"),
    }


async def test_bad_reads_of_the_log(ingest: Ingest) -> None:
    places = [log_pb2.LanePosition(lane=lane, position=position) for lane, position in ((64, 0), (3, -1), (3, 0))]
    request = log_pb2.ReadLogRequest(
        **{"from": places},
        selection=9,  # type: ignore[arg-type]
        app_lanes=[64],
        max_entries=10_001,
    )
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await anext(aiter(ingest.stub.ReadLog(request)))
    found = from_rpc_error(raised.value).violations
    assert [violation.field for violation in found] == [
        "from[0].lane",
        "from[1].position",
        "from[2].lane",
        "selection",
        "app_lanes",
        "max_entries",
    ]
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await anext(aiter(ingest.stub.ReadLog(log_pb2.ReadLogRequest())))
    assert [violation.field for violation in from_rpc_error(raised.value).violations] == ["from"]


async def test_selections_of_the_log(ingest: Ingest) -> None:
    sent = [
        click(record_id="c"),
        event(record_id="e"),
        event(record_id="s", app_id="strict"),
        record(impression=record_pb2.Impression(tracker_id="tr-1"), record_id="i"),
        record(deep_link_open=record_pb2.DeepLinkOpen(uri="app://a", tracker_id="tr-1"), record_id="both"),
        record(
            deep_link_open=record_pb2.DeepLinkOpen(uri="app://a", tracker_id="tr-1", click_record_id="c"),
            record_id="o",
        ),
    ]
    await ingest.send(*sent)
    app_lane = {entry.app_lane for entry in await ingest.log() if b"strict" in entry.record}

    async def read(**options: Any) -> list[str]:
        entries = read_until_caught_up(ingest.stub, read_log_request(**options))
        return [record_pb2.Record.FromString(entry.record).record_id async for entry in entries]

    assert await read() == ["c", "e", "s", "i", "both", "o"]
    assert await read(selection=log_pb2.ReadLogRequest.SELECTION_ENGAGEMENTS) == ["c", "i", "both"]
    assert await read(selection=log_pb2.ReadLogRequest.SELECTION_CONVERSIONS) == ["e", "s", "both", "o"]
    assert await read(app_lanes=app_lane) == ["s"]
    assert await read(app_lanes=app_lane, selection=log_pb2.ReadLogRequest.SELECTION_ENGAGEMENTS) == []


async def test_responses_stay_small_and_say_caught_up_once(ingest: Ingest) -> None:
    data = {f"k{index}": "x" * 4_000 for index in range(60)}
    large = [
        record(event=record_pb2.Event(event_name="e", event_data=data), record_id=f"r-{number}") for number in range(50)
    ]
    for start in range(0, 50, 10):
        await ingest.send(*large[start : start + 10])
    call = ingest.stub.ReadLog(read_log_request())
    ids: list[str] = []
    caught_up = False
    async for response in call:
        assert response.ByteSize() < 2_000_000
        assert not caught_up
        caught_up = response.caught_up
        ids += [record_pb2.Record.FromString(entry.record).record_id for entry in response.entries]
        if len(ids) == 50:
            break
    call.cancel()
    assert caught_up
    assert ids == [f"r-{number}" for number in range(50)]


async def test_a_reader_hears_of_silence_and_of_new_records(ingest: Ingest) -> None:
    call = ingest.stub.ReadLog(read_log_request())
    responses = aiter(call)
    assert (await anext(responses)).caught_up
    silent = await anext(responses)
    assert (silent.caught_up, len(silent.entries), list(silent.heads)) == (True, 0, [0] * LANES)
    [result] = await ingest.send(event())
    response = await anext(responses)
    while not response.entries:
        response = await anext(responses)
    assert record_pb2.Record.FromString(response.entries[0].record).record_id == result.record_id
    assert sum(response.heads) == 1
    call.cancel()


@pytest.mark.slow
async def test_what_is_old_is_purged_and_readers_go_past_it(ingest: Ingest, database: Database) -> None:
    await ingest.send(event(record_id="old", ip_address="x"), event(""))
    async with asyncio.timeout(10):
        while await ingest.pool.fetchval("SELECT (SELECT count(*) FROM rejected) * (SELECT count(*) FROM warned)") == 0:
            await asyncio.sleep(0.01)
    await age_all(database, 36 * DAY_US)
    await ingest.send(event(record_id="new"))
    await purge(ingest.log_store, ingest.rejected, ingest.warned, log_days=35)
    entries = await ingest.log()
    assert [(entry.position, record_pb2.Record.FromString(entry.record).record_id) for entry in entries] == [(1, "new")]
    assert await ingest.pool.fetchval("SELECT count(*) FROM dedupe") == 1
    assert await ingest.pool.fetchval("SELECT count(*) FROM rejected") == 0
    assert await ingest.pool.fetchval("SELECT count(*) FROM warned") == 0


async def test_a_page_is_read_by_the_primary_key(ingest: Ingest, database: Database) -> None:
    await ingest.send(*(event(record_id=f"r-{number}") for number in range(1000)))
    async with query_log(database.admin_dsn, "ingest") as log:
        await log.pool.execute(
            """
            INSERT INTO log (lane, app_lane, is_engagement, position, receive_time_us, record)
            SELECT lane, 1, true, position, position, 'x'
            FROM generate_series(0, 63) AS lane, generate_series(1000, 1999) AS position;
            ANALYZE log
            """
        )
        await LogStore(log.pool).read_page({1: 0, 2: 0}, span=64, engagements=True)
        plan = await log.last_plan()
    assert "Seq Scan on log" not in plan
    assert plan.count("using log_pkey on log") == 3


@asynccontextmanager
async def blocked_lanes(ingest: Ingest) -> AsyncIterator[None]:
    """Keeps every lane from writers while inside."""
    async with ingest.pool.acquire() as connection, connection.transaction():
        await connection.execute("SELECT * FROM lanes FOR UPDATE")
        yield


async def waiting_for_lock(ingest: Ingest) -> bool:
    return bool(await ingest.pool.fetchval("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)"))
