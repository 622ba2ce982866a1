"""Answers of networks that are made to harm: no attempt is lost, the schedule is kept, other deliveries go on."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from reengage.postback.v1 import claim_pb2, conversion_pb2, delivery_pb2
from services.postback import delivery as delivery_module
from services.postback import retry
from services.postback import settlement as settlement_module
from services.postback.adapters import template as template_module
from services.postback.adapters.x import X
from services.postback.model import Settled
from services.postback.retry import MAX_ASKED_S, Answer, Next, asked_wait
from services.postback.sender import Sender
from services.postback.settlement import MAX_KEPT_CHARACTERS
from services.postback.storage.queue import Queue
from tests.conftest import Database
from tests.postback.conftest import purchase, running, serving, until_ended, word

NOW_S = 1_767_270_896.0
DEEP = 100_000
MAX_KEPT_BYTES = 64 * 1024
"""Of one attempt, whatever was answered: characters have up to four bytes."""


def http(status: str, *headers: str, body: bytes = b"") -> bytes:
    lines = [f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body)}", "Connection: close"]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def chunked(*chunks: bytes, trailers: bytes = b"") -> bytes:
    body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body + b"0\r\n" + trailers + b"\r\n"


ANSWERS = {
    "a hundred headers of 8 KB": (http("500 No", *(f"X-{n}: {'h' * 8000}" for n in range(100))), "HTTP_STATUS"),
    "a thousand headers": (http("500 No", *(f"X-{n}: h" for n in range(1000))), "CONNECTION_FAILED"),
    "a header of a megabyte": (http("500 No", f"X-Long: {'h' * 1_000_000}"), "CONNECTION_FAILED"),
    "a thousand cookies": (http("500 No", *(f"Set-Cookie: c{n}=v" for n in range(100))), "HTTP_STATUS"),
    "headers that are no text": (http("500 No", "X-Odd: \xff\xfe\x80", "\xe9: x"), None),
    "a header with NUL": (http("500 No", "X-Nul: a\0b"), "CONNECTION_FAILED"),
    "a long reason phrase": (http(f"500 {'r' * 8000}"), "HTTP_STATUS"),
    "a reason phrase without end": (http(f"500 {'r' * 1_000_000}"), "CONNECTION_FAILED"),
    "no status": (http("000 Nothing"), None),
    "a status of four digits": (http("2000 Very well"), "CONNECTION_FAILED"),
    "a switch of protocols": (http("101 Switching Protocols", "Upgrade: h2c"), None),
    "a flood of 1xx, then a refusal": (b"HTTP/1.1 103 Early\r\n\r\n" * 5000 + http("500 No"), "HTTP_STATUS"),
    "a redirect to a private address": (http("302 Go", "Location: http://169.254.169.254/latest"), "REDIRECT"),
    "a redirect of 8 KB": (http("302 Go", f"Location: https://a.example/{'x' * 8000}"), "REDIRECT"),
    "a redirect to nonsense": (http("302 Go", "Location: http://[::1/\\%zz"), "REDIRECT"),
    "a gzip bomb": (
        http("200 OK", "Content-Encoding: gzip", body=gzip.compress(bytes(50_000_000))),
        "DELIVERED",
    ),
    "a content encoding of its own": (http("200 OK", "Content-Encoding: br, deflate, gzip", body=b"xx"), "DELIVERED"),
    "ten thousand chunks of a byte": (chunked(*[b"x"] * 10_000), "DELIVERED"),
    "a chunk larger than any": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffffff\r\nx",
        "CONNECTION_FAILED",
    ),
    "trailers": (chunked(b"x", trailers=b"".join(b"X-%d: t\r\n" % n for n in range(100))), None),
    "a length that lies": (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nx", "CONNECTION_FAILED"),
    "a negative length": (b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nx", "CONNECTION_FAILED"),
    "no HTTP at all": (b"\x16\x03\x01" * 10_000, "CONNECTION_FAILED"),
    "a body that is no text": (http("500 No", body=b"\xff\x00\xed\xa0\x80" * 20_000), "HTTP_STATUS"),
    "deep JSON": (http("500 No", body=b"[" * DEEP), "HTTP_STATUS"),
    "a date of another age": (http("503 No", "Retry-After: 1 Jan 99999999999999999999 00:00:00 GMT"), "HTTP_STATUS"),
}


@asynccontextmanager
async def saying(answers: list[bytes]) -> AsyncIterator[str]:
    """Yields `host:port` of a server that writes one of these to whoever connects, in turn and the last for ever."""
    said = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal said
        answer, said = answers[min(said, len(answers) - 1)], said + 1
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


def size(attempt: delivery_pb2.Attempt) -> int:
    return len(attempt.SerializeToString())


@pytest.mark.parametrize(("answer", "verdict"), ANSWERS.values(), ids=ANSWERS)
async def test_an_answer_is_settled_by_the_schedule_and_kept_small(
    database: Database, tmp_path: Path, answer: bytes, verdict: str | None
) -> None:
    async with (
        saying([answer]) as host,
        serving() as fine,
        running(database, tmp_path / "s", allowed=f"{host},{fine.host}") as service,
    ):
        await service.configure(template={"url": f"http://{host}/"}, retry_attempts=2)
        await service.configure(template={"url": fine.url("/")}, network_id="other")
        await service.enqueue(purchase())
        ended = await until_ended(service, 2)
        (bad,) = [await service.get(one.delivery_id) for one in ended if one.network_id == "network"]
        (good,) = [one for one in ended if one.network_id == "other"]
    assert good.state == delivery_pb2.Delivery.STATE_DELIVERED
    assert all(size(attempt) < MAX_KEPT_BYTES for attempt in bad.attempts)
    words = [word(attempt) for attempt in bad.attempts]
    if verdict is not None:
        assert set(words) == {verdict}
    if bad.state == delivery_pb2.Delivery.STATE_EXHAUSTED:
        assert len(words) == 3, "each of its tries is kept, and none is made beyond them"
    else:
        assert len(words) == 1
    assert "INTERRUPTED" not in words


async def test_of_a_megabyte_of_headers_those_are_kept_that_say_the_most(database: Database, tmp_path: Path) -> None:
    headers = [*(f"X-{n}: {'h' * 8000}" for n in range(100)), "Retry-After: 0", f"Location: {'l' * 8000}"]
    async with saying([http("500 No", *headers)]) as host, running(database, tmp_path / "s", allowed=host) as service:
        await service.configure(template={"url": f"http://{host}/"}, retry_attempts=0)
        await service.enqueue(purchase())
        await until_ended(service)
        (attempt,) = (await service.only()).attempts
    kept = dict(attempt.response_headers)
    assert kept["retry-after"] == "0"
    assert kept["location"] == "l" * 512 + "…"
    assert sum(map(len, [*kept, *kept.values()])) <= MAX_KEPT_CHARACTERS
    assert attempt.dropped_response_header_count == len(headers) + 2 - len(kept)


@pytest.mark.parametrize(
    "text",
    [
        "1e300", "-1e300", "inf", "-inf", "nan", "9" * 400, "-1", "", " ", "0x10", "١٢", "1_000", "\0", "1 Jan",
        "[" * 100,
        "1 Jan 99999999999999999999 00:00:00 GMT", "Mon, 01 Jan 0001 00:00:00 +2359", "Fri, 31 Dec 9999 23:59:59 -2359",
        "Wed, 21 Oct 2015 07:28:00 +9999", "31 Feb 2026 00:00:00 GMT", ",,,", "1e99", "\udcff",
    ],
    ids=ascii,
)  # fmt: skip
@pytest.mark.parametrize("header", ["retry-after", "x-rate-limit-reset", "x-account-rate-limit-reset"])
@pytest.mark.parametrize("remaining", [None, "0", "1e300", "nan"])
def test_absurd_waits_are_bounded(header: str, text: str, remaining: str | None) -> None:
    headers = {header: text} | ({} if remaining is None else {"x-rate-limit-remaining": remaining})
    asked_s = asked_wait(Answer(status_code=429, headers=headers), NOW_S)
    wait_s = retry.next_attempt(failures=1, retry_attempts=3, jitter=0.5, asked_s=asked_s)
    assert wait_s is not None
    assert 2.5 <= wait_s <= MAX_ASKED_S


def claim(**attribution: Any) -> str:
    engagement = {"engagement_type": "CLICK", "engagement_time": "2026-01-01T12:00:00Z", **attribution}
    return json.dumps({"data": {"twitter_attribution": engagement}})


CLAIMS = {
    "deep": "[" * DEEP,
    "deep and whole": "[" * DEEP + "]" * DEEP,
    "NaN": '{"data": NaN}',
    "a list": '{"data": []}',
    "a text": '{"data": "x"}',
    "a number": "1e400",
    "data twice": '{"data": 1, "data": {"twitter_attribution": 1}}',
    "an attribution that is a list": '{"data": {"twitter_attribution": [[]]}}',
    "an attribution that is true": '{"data": {"twitter_attribution": true}}',
    "a time that is a number": claim(engagement_time=1e300),
    "a negative time": claim(engagement_time=-1),
    "no time": claim(engagement_time=None),
    "a time before all": claim(engagement_time="0001-01-01T00:00:00+23:59"),
    "a time after all": claim(engagement_time="9999-12-31T23:59:59-23:59"),
    "the year 9999": claim(engagement_time="9999-12-31T23:59:59Z"),
    "the year 1": claim(engagement_time="0001-01-01T00:00:00Z"),
    "the year 1969": claim(engagement_time="1969-12-31T23:59:59Z"),
    "a time of another age": claim(engagement_time="99999-01-01T00:00:00Z"),
    "a type that is an object": claim(engagement_type={"CLICK": 1}),
    "a name that is an object": claim(promoted_properties={"campaign_name": {"a": 1}}),
    "a name that is a number": claim(promoted_properties={"campaign_name": 10**30}),
    "properties that are a text": claim(promoted_properties="campaign_name"),
    "a lone surrogate": '{"data": {"twitter_attribution": {"engagement_type": "\\ud800"}}}',
    "no UTF-8": '{"data": "\ufffd',
}


def x() -> X:
    return X(
        app_id="1", conversion_type="PURCHASE", san_account_id="", letter_case="LOWER", encoding="HEX", base_url=""
    )


@pytest.mark.parametrize("body", CLAIMS.values(), ids=CLAIMS)
def test_what_is_no_answer_of_x_is_no_claim(body: str) -> None:
    verdict = x().judge(Answer(status_code=200, body=body))
    assert (verdict.word, verdict.next) == (retry.Word.BODY_MISMATCH, Next.GIVE_UP)


def test_a_campaign_of_x_is_a_name() -> None:
    found = x().claim(claim(promoted_properties={"campaign_name": "a\0b\n" + "c" * 60_000}))
    assert found is not None
    assert found.campaign_name == "ab" + "c" * 1022


async def raise_in(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    def fail(*_: object, **__: object) -> Any:
        raise RecursionError("of the secret to/ken")

    async def fail_later(*_: object, **__: object) -> Any:
        fail()

    patches: dict[str, tuple[Any, str, Any]] = {
        "sending": (Sender, "send", fail_later),
        "judging": (template_module.Template, "judge", fail),
        "reading the claim": (template_module.Template, "claim", fail),
        "rendering": (delivery_module, "Values", fail),
        "keeping": (settlement_module, "_kept", lambda headers: fail() if headers else {}),
    }
    monkeypatch.setattr(*patches[place])


@pytest.mark.parametrize(
    ("place", "verdict", "state", "count"),
    [
        ("sending", "CONNECTION_FAILED", "STATE_EXHAUSTED", 3),
        ("judging", "BODY_MISMATCH", "STATE_EXHAUSTED", 3),
        ("reading the claim", "BODY_MISMATCH", "STATE_EXHAUSTED", 3),
        ("rendering", "NOT_RENDERED", "STATE_REFUSED", 1),
        ("keeping", "BODY_MISMATCH", "STATE_EXHAUSTED", 3),
    ],
)
async def test_a_fault_of_ours_is_an_attempt_too(
    database: Database,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    verdict: str,
    state: str,
    count: int,
) -> None:
    await raise_in(monkeypatch, place)
    async with serving() as endpoint, running(database, tmp_path / "s", allowed=endpoint.host) as service:
        await service.configure(template={"url": endpoint.url("/")}, retry_attempts=2)
        await service.enqueue(purchase())
        await until_ended(service)
        delivery = await service.only()
        assert delivery_pb2.Delivery.State.Name(delivery.state) == state
        assert [word(attempt) for attempt in delivery.attempts] == [verdict] * count
        assert {attempt.detail for attempt in delivery.attempts} == {"could not be handled (RecursionError)"}
        monkeypatch.undo()
        again = delivery_pb2.RedeliverRequest(delivery_id=delivery.delivery_id, request_id="again")
        assert (await service.deliveries.Redeliver(again)).redelivered_count == 1
        await until_ended(service)
        assert word((await service.only()).attempts[-1]) == "DELIVERED"


@pytest.mark.parametrize(
    "time",
    [Timestamp(seconds=2**62), Timestamp(seconds=-(2**62)), Timestamp(nanos=-1), Timestamp(seconds=253_402_300_799)],
    ids=["2^62 s", "-2^62 s", "negative nanos", "the year 9999"],
)
async def test_a_claim_of_an_impossible_time_is_refused_whatever_adapter_reads_it(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, time: Timestamp
) -> None:
    monkeypatch.setattr(template_module.Template, "claim", lambda *_: claim_pb2.Claim(engagement_time=time))
    async with serving() as endpoint, running(database, tmp_path / "s", allowed=endpoint.host) as service:
        await service.configure(template={"url": endpoint.url("/")}, retry_attempts=2)
        await service.enqueue(purchase())
        await until_ended(service)
        delivery = await service.only()
        claims = await service.pool.fetchval("SELECT count(network_claim) FROM deliveries")
    (attempt,) = delivery.attempts
    assert (delivery.state, word(attempt), claims) == (delivery_pb2.Delivery.STATE_REFUSED, "BODY_MISMATCH", 0)
    assert attempt.detail == "its claim names a time at which nobody engaged"


async def test_an_attempt_that_the_database_refuses_holds_up_no_other(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle = Queue.settle

    async def refuse(self: Queue, batch: Sequence[Settled]) -> set[UUID]:
        if any(b"poison" in one.attempt for one in batch):
            raise ValueError("poison")
        return await settle(self, batch)

    monkeypatch.setattr(Queue, "settle", refuse)
    async with serving() as endpoint, running(database, tmp_path / "s", allowed=endpoint.host) as service:
        await service.configure(template={"url": endpoint.url("/{event_name}/{quantity}")})
        poison = purchase("poison")
        poison.record.event.event_data["quantity"] = "poison"
        await service.enqueue(*(purchase(f"c{number}") for number in range(10)), poison)
        ended = await until_ended(service, 10)
        assert len(endpoint.received) == 11
    assert {one.conversion_id for one in ended if one.state == delivery_pb2.Delivery.STATE_PENDING} == {"poison"}


def bomb() -> conversion_pb2.Conversion:
    conversion = purchase("bomb")
    conversion.record.event.event_data["x"] = "x" * 8000
    return conversion


async def test_what_cannot_be_rendered_is_refused_and_listed(database: Database, tmp_path: Path) -> None:
    async with serving() as endpoint, running(database, tmp_path / "s", allowed=endpoint.host) as service:
        await service.configure(template={"url": endpoint.url("/"), "method": "POST", "body": "{x}" * 1000})
        await service.enqueue(bomb(), purchase("good"))
        found = {one.conversion_id: one for one in await until_ended(service, 2)}
        bad = await service.get(found["bomb"].delivery_id)
    assert found["good"].state == delivery_pb2.Delivery.STATE_DELIVERED
    assert bad.state == delivery_pb2.Delivery.STATE_REFUSED
    (attempt,) = bad.attempts
    assert (word(attempt), attempt.detail) == ("NOT_RENDERED", "filled in it has more than 131,072 characters")


@pytest.mark.parametrize("value", ["[" * 900, "[" * DEEP, '{"a":' * DEEP, "1" * 5000, "-", "1e999999", '"\\ud800"'])
async def test_event_data_that_pretends_to_be_json_is_delivered(database: Database, tmp_path: Path, value: str) -> None:
    conversion = purchase()
    conversion.record.event.event_data["x"] = value[:8000]
    async with serving() as endpoint, running(database, tmp_path / "s", allowed=endpoint.host) as service:
        await service.configure(template={"url": endpoint.url("/"), "method": "POST", "body": '{"a": {x}}'})
        await service.enqueue(conversion)
        (delivery,) = await until_ended(service)
        assert delivery.state == delivery_pb2.Delivery.STATE_DELIVERED
        json.loads(endpoint.received[0].body)


async def test_a_delivery_that_was_sent_again_and_again_is_shown(database: Database, tmp_path: Path) -> None:
    answer = http("500 No", body=b"\xff" * 5000)
    async with saying([answer]) as host, running(database, tmp_path / "s", allowed=host) as service:
        await service.configure(template={"url": f"http://{host}/"}, retry_attempts=0)
        await service.enqueue(purchase())
        await until_ended(service)
        (delivery,) = await service.list()
        # As if sent again two thousand times.
        await service.pool.execute(
            """
            INSERT INTO attempts
            SELECT
                delivery_id, configuration_id, run, number, conversion_us, retention_days, start_us, verdict,
                attempt
            FROM attempts, generate_series(1, 2000) AS run
            """
        )
        shown = await service.get(delivery.delivery_id)
    assert 100 < len(shown.attempts) < 2001
    assert shown.ByteSize() < 9 * 1024 * 1024
