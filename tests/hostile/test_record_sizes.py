"""Records of any size, with anything in them: each costs itself, and nothing that comes with it or after it."""

from collections.abc import Callable

import asyncpg
import pytest

from libs.domain.record_sizes import MAX_RECORD_BYTES, MAX_STORED_RECORD_BYTES, MAX_WARNINGS
from libs.parts import MAX_MESSAGE_BYTES, PART_BYTES
from reengage.ingest.v1 import log_pb2, record_batch_pb2, record_erasure_pb2, record_pb2, rejected_record_pb2
from tests.conftest import Database
from tests.ingest.conftest import (  # noqa: F401, its fixtures
    APP,
    Ingest,
    StartIngest,
    click,
    event,
    ingest,
    read_log_request,
    record,
    start_ingest,
)

_ACCEPTED, _REJECTED = record_batch_pb2.RecordResult.STATUS_ACCEPTED, record_batch_pb2.RecordResult.STATUS_REJECTED
_UNKNOWN_FIELD_TAG = b"\xf2\xff\x0f"  # field 32,766, of bytes


def unknown(size: int) -> bytes:
    """Returns a field of so many bytes that no message of ours has."""
    length, encoded = size - len(_UNKNOWN_FIELD_TAG), bytearray()
    for length_size in range(1, 6):
        rest, encoded = length - length_size, bytearray()
        while rest > 0x7F:
            encoded.append(rest & 0x7F | 0x80)
            rest >>= 7
        encoded.append(rest)
        if len(encoded) == length_size:
            return _UNKNOWN_FIELD_TAG + bytes(encoded) + b"x" * (length - length_size)
    raise AssertionError


def padded(good: record_pb2.Record, size: int) -> record_pb2.Record:
    """Returns a record of exactly so many bytes, by a field that is unknown."""
    content = good.SerializeToString()
    return record_pb2.Record.FromString(content + unknown(size - len(content)))


def with_unknown(good: record_pb2.Record, path: str) -> record_pb2.Record:
    """Returns a record that has an unknown field in the message at a path."""
    message = good
    for name in path.split(".") if path else ():
        message = getattr(message, name)
    message.MergeFromString(unknown(20))
    return good


def violations(result: record_batch_pb2.RecordResult) -> list[tuple[str, str]]:
    return [(violation.field, violation.reason) for violation in result.violations]


async def test_an_event_of_16_mb_of_unknown_fields_is_refused_alone(ingest: Ingest) -> None:  # noqa: F811
    large = padded(event(), MAX_MESSAGE_BYTES - 1024)
    results = await ingest.send(event(record_id="before"), large, event(record_id="after"))
    assert [result.status for result in results] == [_ACCEPTED, _REJECTED, _ACCEPTED]
    assert violations(results[1]) == [("record", "TOO_LARGE")]
    assert f"{MAX_RECORD_BYTES:,}" in results[1].violations[0].description
    assert len(await ingest.log()) == 2


@pytest.mark.parametrize(
    ("size", "reason"),
    [(MAX_RECORD_BYTES, "UNKNOWN_FIELD"), (MAX_RECORD_BYTES + 1, "TOO_LARGE")],
    ids=["at the bound", "a byte beyond"],
)
async def test_the_bound_of_a_record_is_exact(ingest: Ingest, size: int, reason: str) -> None:  # noqa: F811
    sent = padded(event(), size)
    assert sent.ByteSize() == size
    [result] = await ingest.send(sent)
    assert violations(result) == [("record", reason)]


@pytest.mark.parametrize(
    ("made", "path"),
    [
        (event, ""),
        (event, "event"),
        (lambda: event(event_time={"seconds": 1_800_000_000}), "event_time"),
        (
            lambda: record(event=record_pb2.Event(event_name="e", revenue=record_pb2.Money(currency_code="EUR"))),
            "event.revenue",
        ),
        (click, "click"),
        (click, "click.ad"),
        (lambda: event(client_hints={"model": "Pixel"}), "client_hints"),
        (lambda: event(privacy_consent={"gdpr_applies": True}), "privacy_consent"),
        (lambda: event(tracking_transparency={"answer_time": {"seconds": 1}}), "tracking_transparency.answer_time"),
    ],
    ids=["record", "kind", "time", "revenue", "click", "ad", "hints", "consent", "nested time"],
)
async def test_an_unknown_field_is_refused_where_it_is(
    ingest: Ingest,  # noqa: F811
    made: Callable[[], record_pb2.Record],
    path: str,
) -> None:
    [result] = await ingest.send(with_unknown(made(), path))
    assert (path or "record", "UNKNOWN_FIELD") in violations(result)
    assert await ingest.log() == []


async def test_an_unknown_field_of_a_pair_is_refused_with_the_pairs(ingest: Ingest) -> None:  # noqa: F811
    pair = b"\x0a\x01k\x12\x01v" + unknown(20)
    sent = event()
    sent.event.MergeFromString(b"\x12" + bytes([len(pair)]) + pair)
    [result] = await ingest.send(sent)
    assert violations(result) == [("event", "UNKNOWN_FIELD")]


async def test_a_refusal_is_listed_without_its_unknown_fields(ingest: Ingest) -> None:  # noqa: F811
    await ingest.send(padded(event(record_id="r-1"), 10_000))
    response = rejected_record_pb2.ListRejectedResponse()
    while not response.rejected:
        response = await ingest.stub.ListRejected(rejected_record_pb2.ListRejectedRequest(app_id=APP))
    [refusal] = response.rejected
    assert refusal.record == event(record_id="r-1")


async def test_the_warnings_of_a_batch_fit_into_a_response(ingest: Ingest) -> None:  # noqa: F811
    wrong = {f"{number:02}{'é' * 300}\0": "\0" for number in range(64)}
    sent = record(event=record_pb2.Event(event_name="e", event_data=wrong))
    batch = [sent] * min(1_000, MAX_MESSAGE_BYTES // (sent.ByteSize() + 8))
    results = await ingest.send(*batch)
    assert [len(result.warnings) for result in results] == [MAX_WARNINGS] * len(batch)


@pytest.mark.parametrize("ip_address", ["192.0.2.7", ""], ids=["kept", "refused"])
async def test_device_ids_without_number_are_told_in_part(ingest: Ingest, ip_address: str) -> None:  # noqa: F811
    ids = {f"no kind {number}": "x" for number in range(20_000)}
    [result] = await ingest.send(event(device_ids=ids, ip_address=ip_address))
    told = [warning.code for warning in result.warnings] or [reason for _, reason in violations(result)]
    assert (result.status == _ACCEPTED, len(told), "UNKNOWN_DEVICE_ID" in told) == (
        bool(ip_address),
        MAX_WARNINGS,
        True,
    )


async def plant(database: Database, *, lane: int, position: int, size: int) -> None:
    """Puts an entry into the log as an older version would have taken it."""
    connection = await asyncpg.connect(database.admin_dsn)
    await connection.execute(
        """
        UPDATE ingest.lanes SET next_position = $2::bigint + 1 WHERE lane = $1
        """,
        lane,
        position,
    )
    await connection.execute(
        """
        INSERT INTO ingest.log (lane, app_lane, is_engagement, position, receive_time_us, record)
        VALUES ($1, 1, false, $2, 1, convert_to(repeat('x', $3), 'UTF8'))
        """,
        lane,
        position,
        size,
    )
    await connection.close()


@pytest.mark.parametrize(
    ("size", "is_too_large"),
    [(MAX_STORED_RECORD_BYTES, False), (MAX_STORED_RECORD_BYTES + 1, True), (MAX_MESSAGE_BYTES, True)],
    ids=["at the bound", "a byte beyond", "more than a message"],
)
async def test_an_entry_that_is_too_large_comes_without_its_record(
    ingest: Ingest,  # noqa: F811
    database: Database,
    size: int,
    is_too_large: bool,
) -> None:
    await plant(database, lane=0, position=0, size=size)
    await ingest.send(event(record_id="after"))
    planted, after = await ingest.log()
    assert (planted.lane, planted.position) == (0, 0)
    assert (len(planted.record), planted.too_large_bytes) == ((0, size) if is_too_large else (size, 0))
    assert after.record
    assert not after.too_large_bytes


async def test_a_page_of_large_records_is_bounded(ingest: Ingest, database: Database) -> None:  # noqa: F811
    for position in range(20):
        await plant(database, lane=3, position=position, size=MAX_STORED_RECORD_BYTES)
    page = await ingest.log_store.read_page({3: 0}, span=1_000)
    assert sum(len(row.record) for row in page.rows) < PART_BYTES + MAX_STORED_RECORD_BYTES
    assert len({entry.position for entry in await ingest.log()}) == 20


async def test_refusals_are_listed_in_pages_that_fit(ingest: Ingest) -> None:  # noqa: F811
    data = {f"k{number}": "x" * 4_000 for number in range(14)}
    wrong = [record(record_id=str(number), event=record_pb2.Event(event_data=data)) for number in range(250)]
    await ingest.send(*wrong)
    found, token = set[str](), ""
    while len(found) < len(wrong):
        request = rejected_record_pb2.ListRejectedRequest(app_id=APP, page_size=1_000, page_token=token)
        response = await ingest.stub.ListRejected(request)
        assert response.ByteSize() < MAX_MESSAGE_BYTES * 3 / 4
        found |= {refusal.record.record_id for refusal in response.rejected}
        token = response.next_page_token


@pytest.mark.parametrize("position", [2**63 - 1, 2**62, 1_000], ids=["the last number", "far", "near"])
async def test_erasing_ends_at_the_end_of_the_log(ingest: Ingest, position: int) -> None:  # noqa: F811
    await ingest.send(event(device_ids={"adid": "gone"}), event(device_ids={"adid": "stays"}))
    request = record_erasure_pb2.EraseRecordsRequest(app_id=APP, device_ids=["gone"])
    for lane in range(64):
        request.below.add(lane=lane, position=position)
    done = [lane async for response in ingest.stub.EraseRecords(request, timeout=60) for lane in response.lanes_done]
    assert done == list(range(64))
    [left] = await ingest.log()
    assert dict(record_pb2.Record.FromString(left.record).device_ids) == {"adid": "stays"}


async def test_an_erasure_does_not_wait_for_one_whose_caller_stopped_listening(
    start_ingest: StartIngest,  # noqa: F811
    database: Database,
) -> None:
    def request(*lanes: int) -> record_erasure_pb2.EraseRecordsRequest:
        below = [log_pb2.LanePosition(lane=lane, position=2**63 - 1) for lane in lanes]
        return record_erasure_pb2.EraseRecordsRequest(app_id=APP, device_ids=["gone"], below=below)

    # The first waits for refusals for a minute, before it reports its last lane.
    async with start_ingest(database, settle_s=60) as running:
        first = running.stub.EraseRecords(request(0, 1, 2))
        async for response in first:
            assert response.lanes_done == [0]
            break
        second = running.stub.EraseRecords(request(3, 4))
        async for response in second:
            assert response.lanes_done == [3]
            break
        first.cancel()
        second.cancel()


@pytest.mark.parametrize("position", [2**63 - 1, 2**62], ids=["the last number", "far"])
async def test_reading_from_beyond_the_end_waits(ingest: Ingest, position: int) -> None:  # noqa: F811
    await ingest.send(event())
    call = ingest.stub.ReadLog(read_log_request([position] * 64, max_entries=10_000), timeout=60)
    async for response in call:
        assert not response.entries
        assert response.caught_up
        break
    call.cancel()
