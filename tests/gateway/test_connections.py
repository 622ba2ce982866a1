"""Connections: what HTTP promises, and who gives way to whom."""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace

import pytest

from services.gateway.connections import Connections, HttpConnection, Limits, network_of
from services.gateway.requests import Request, Response
from tests.gateway.limits import LIMITS
from tests.support.eventually import until
from tests.support.raw_http import RawClient, ask, connected

HOST = b"host: x\r\n"
GET = b"GET /a HTTP/1.1\r\n" + HOST + b"\r\n"


class Echo:
    """An application that says what it was asked; `/wait` waits until `go` is set."""

    def __init__(self) -> None:
        self.asked: list[Request] = []
        self.go = asyncio.Event()

    async def respond(self, request: Request) -> Response:
        self.asked.append(request)
        if request.path == "/wait":
            await self.go.wait()
        if request.path == "/fail":
            raise RuntimeError("broken")
        if request.path == "/none":
            return 204, [], b""
        if request.no_body is not None:
            return request.no_body.response()
        return 200, [(b"x-query", request.query)], request.path.encode() + b"|" + bytes(request.body)


class Listening:
    """A listener with an echo behind it."""

    def __init__(self, limits: Limits, is_exempt: Callable[[str], bool]) -> None:
        self.app = Echo()
        self.connections = Connections(limits, self.app.respond, is_exempt)
        self.target = ""


@asynccontextmanager
async def listening(
    limits: Limits = LIMITS, is_exempt: Callable[[str], bool] = lambda _: False
) -> AsyncIterator[Listening]:
    found = Listening(limits, is_exempt)
    server = await asyncio.get_running_loop().create_server(lambda: HttpConnection(found.connections), "127.0.0.1", 0)
    found.target = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield found
        found.app.go.set()
        await found.connections.drain(0)
        await until(lambda: not found.connections.tasks)
        assert found.connections.request_bytes == 0, "what is held is counted right"
    finally:
        server.close()


async def test_requests_follow_each_other_on_a_connection() -> None:
    async with listening() as at, connected(at.target) as client:
        for number in range(3):
            await client.send(b"POST /%d?q=%d HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nab" % (number, number))
            response = await client.response()
            assert (response.status, response.headers["x-query"], response.body) == (
                200, f"q={number}", b"/%d|ab" % number,
            )  # fmt: skip
            assert response.headers.keys() >= {"date", "content-length"}


@pytest.mark.parametrize("size", [1, 7, 10_000], ids=["byte by byte", "in sevens", "at once"])
async def test_pipelined_requests_have_their_responses_in_order(size: int) -> None:
    requests = b"".join(
        b"POST /%d HTTP/1.1\r\n%bcontent-length: 3\r\n\r\nb%d\n" % (number, HOST, number)
        + b"GET /g HTTP/1.1\r\n%b\r\n" % HOST
        for number in range(9)
    )
    async with listening() as at, connected(at.target) as client:
        for start in range(0, len(requests), size):
            await client.send(requests[start : start + size])
        bodies = [(await client.response()).body for _ in range(18)]
    assert bodies == [body for number in range(9) for body in (b"/%d|b%d\n" % (number, number), b"/g|")]


async def test_one_request_of_a_connection_is_under_way_at_a_time() -> None:
    async with listening() as at, connected(at.target) as client:
        await client.send(b"GET /wait HTTP/1.1\r\n" + HOST + b"\r\n" + GET * 100)
        await until(lambda: at.app.asked)
        assert len(at.app.asked) == 1
        at.app.go.set()
        assert [(await client.response()).status for _ in range(101)] == [200] * 101


@pytest.mark.parametrize(
    ("request_", "status", "body"),
    [
        pytest.param(b"HEAD /a HTTP/1.1\r\nhost: x\r\n\r\n", 200, b"", id="HEAD"),
        pytest.param(b"GET /none HTTP/1.1\r\nhost: x\r\n\r\n", 204, b"", id="no content"),
        pytest.param(b"GET http://x/a%20b?c HTTP/1.1\r\nhost: x\r\n\r\n", 200, b"/a b|", id="as to a proxy"),
        pytest.param(b"OPTIONS * HTTP/1.1\r\nhost: x\r\n\r\n", 200, b"*|", id="star"),
        pytest.param(b"\r\nGET /a HTTP/1.1\r\nhost: x\r\n\r\n", 200, b"/a|", id="an empty line first"),
        pytest.param(
            b"POST /a HTTP/1.1\r\nhost: x\r\ntransfer-encoding: Chunked\r\n\r\n"
            b"2;a=b\r\nab\r\n1\r\nc\r\n0\r\nx-t: 1\r\n\r\n",
            200, b"/a|abc", id="chunks",
        ),
        pytest.param(
            b"GET /a HTTP/1.1\r\nhost: x\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\n\r\n",
            200, b"/a|", id="an upgrade nobody offers",
        ),
        pytest.param(
            b"POST /a HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: h2c\r\ncontent-length: 2\r\n\r\nab",
            200, b"/a|ab", id="with a body",
        ),
    ],
)  # fmt: skip
async def test_what_http_promises(request_: bytes, status: int, body: bytes) -> None:
    async with listening() as at, connected(at.target) as client:
        await client.send(request_)
        response = await client.response(to=request_[:4].decode())
        assert (response.status, response.body) == (status, body)
        assert ("content-length" in response.headers) == (status != 204)
        await client.send(GET)
        assert (await client.response()).body == b"/a|"


@pytest.mark.parametrize(
    "request_", [b"GET /a HTTP/1.0\r\n\r\n", GET[:-2] + b"connection: close\r\n\r\n"], ids=["HTTP/1.0", "on request"]
)
async def test_a_connection_ends_when_its_client_wants_it(request_: bytes) -> None:
    async with listening() as at, connected(at.target) as client:
        await client.send(request_ + GET)
        assert (await client.response()).headers["connection"] == "close"
        assert await client.ended() == b""


async def test_a_client_that_asks_first_is_told_to_go_on() -> None:
    async with listening() as at, connected(at.target) as client:
        await client.send(b"POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\nexpect: 100-continue\r\n\r\n")
        assert (await client.response()).status == 100
        await client.send(b"ab")
        assert (await client.response()).body == b"/a|ab"


async def test_a_client_that_sends_no_more_gets_what_it_asked_for() -> None:
    async with listening() as at, connected(at.target) as client:
        await client.send(b"GET /wait HTTP/1.1\r\nhost: x\r\n\r\n" + GET)
        client.end()
        await until(lambda: at.app.asked)
        at.app.go.set()
        assert [(await client.response()).body for _ in range(2)] == [b"/wait|", b"/a|"]
        assert await client.ended() == b""


async def test_a_body_that_breaks_off_is_told() -> None:
    async with listening() as at, connected(at.target) as client:
        await client.send(b"POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nabc")
        client.end()
        response = await client.response()
        assert (response.status, b"BODY_INCOMPLETE" in response.body) == (400, True)


async def test_headers_after_a_body_mean_nothing() -> None:
    async with listening() as at:
        await ask(
            at.target,
            b"POST /a HTTP/1.1\r\nhost: x\r\nx-forwarded-for: 1.2.3.4\r\ntransfer-encoding: chunked\r\n\r\n"
            b"0\r\nx-forwarded-for: 6.6.6.6\r\n\r\n",
        )
        assert at.app.asked[0].headers[b"x-forwarded-for"] == b"1.2.3.4"


async def test_what_follows_on_chunks_is_asked_for_again() -> None:
    request = b"POST /a HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n"
    async with listening() as at, connected(at.target) as client:
        await client.send(request + b"GET /b HTTP/1.1\r\nhost: y\r\n\r\n")
        response = await client.response()
        assert (response.body, response.headers["connection"]) == (b"/a|a", "close")
        assert await client.ended() == b""
        assert at.app.asked[0].headers[b"host"] == b"x"


async def test_a_request_whose_client_has_gone_is_still_under_way() -> None:
    async with listening() as at:
        async with connected(at.target) as client:
            await client.send(b"POST /wait HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\nabc")
            await until(lambda: at.app.asked)
            client.reset()
        await until(lambda: not at.connections.open)
        assert at.connections.request_bytes > 0, "it still holds what it holds"
        assert len(at.connections.tasks) == 1


@asynccontextmanager
async def idle(at: Listening, count: int) -> AsyncIterator[list[RawClient]]:
    """Yields connections that have asked once, in this order, and wait."""
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(at.target)) for _ in range(count)]
        for client in clients:
            await client.send(GET)
            await client.response()
        yield clients


@pytest.mark.parametrize("bound", ["max_connections", "max_connections_per_peer"])
async def test_who_has_been_idle_longest_gives_way(bound: str) -> None:
    async with listening(replace(LIMITS, **{bound: 3})) as at, idle(at, 3) as (first, second, third):
        await first.send(GET)
        await first.response()
        async with connected(at.target) as newcomer:
            await newcomer.send(GET)
            assert (await newcomer.response()).status == 200
            gone = second if bound == "max_connections" else first  # of a peer, the one that came first
            assert await gone.ended() == b""
            await third.send(GET)
            assert (await third.response()).status == 200


@pytest.mark.parametrize("bound", ["max_connections", "max_connections_per_peer"])
async def test_idle_ones_give_way_before_those_in_the_middle_of_a_request(bound: str) -> None:
    async with listening(replace(LIMITS, **{bound: 2})) as at, connected(at.target) as sending:
        await sending.send(GET[:5])
        await until(lambda: at.connections.waiting)
        async with idle(at, 1) as [waiting], connected(at.target) as newcomer:
            await newcomer.send(GET)
            await newcomer.response()
            assert await waiting.ended() == b""
            await sending.send(GET[5:])
            assert (await sending.response()).status == 200


@pytest.mark.parametrize(
    ("bound", "status"), [("max_connections", 503), ("max_connections_per_peer", 429)], ids=["all", "of a peer"]
)
async def test_who_is_owed_a_response_does_not_give_way(bound: str, status: int) -> None:
    async with listening(replace(LIMITS, **{bound: 1})) as at, connected(at.target) as working:
        await working.send(b"GET /wait HTTP/1.1\r\nhost: x\r\n\r\n")
        await until(lambda: at.app.asked)
        async with connected(at.target) as newcomer:
            assert (await newcomer.response()).status == status
            assert await newcomer.ended() == b""
        at.app.go.set()
        assert (await working.response()).status == 200


async def test_proxies_speak_for_many() -> None:
    async with (
        listening(replace(LIMITS, max_connections_per_peer=1), lambda peer: peer == "127.0.0.1") as at,
        idle(at, 5) as clients,
    ):
        for client in clients:
            await client.send(GET)
            assert (await client.response()).status == 200


async def test_the_largest_request_that_is_not_whole_gives_way() -> None:
    async with listening(replace(LIMITS, max_request_bytes=100_000)) as at:
        async with connected(at.target) as large, connected(at.target) as small:
            head = b"POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: 90000\r\n\r\n"
            await large.send(head + b"x" * 80_000)
            await until(lambda: at.connections.request_bytes > 80_000)
            await small.send(head + b"x" * 60_000)
            assert await large.ended() == b""
            await small.send(b"x" * 30_000)
            assert (await small.response()).status == 200
        async with connected(at.target) as alone:
            await alone.send(b"POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: 200000\r\n\r\n" + b"x" * 110_000)
            assert (await alone.response()).status == 503


async def test_an_application_that_fails_keeps_no_connection() -> None:
    """It says that it never does; whoever breaks that must not leave clients waiting."""
    raised: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: raised.append(context))
    async with listening() as at:
        async with connected(at.target) as client:
            await client.send(b"GET /fail HTTP/1.1\r\nhost: x\r\n\r\n")
            assert await client.ended() == b""
        await until(lambda: gc.collect() >= 0 and raised)
    assert [str(context["exception"]) for context in raised] == ["broken"]


async def test_who_pipelines_while_there_is_no_room_is_cut() -> None:
    """An error before the response that is owed would pass for it."""
    async with listening(replace(LIMITS, max_request_bytes=1_000)) as at, connected(at.target) as client:
        await client.send(b"GET /wait HTTP/1.1\r\nhost: x\r\n\r\n")
        await until(lambda: at.app.asked)
        await client.send(GET * 100)
        with suppress(ConnectionError):
            assert await client.ended() == b""
        await until(lambda: not at.connections.open)


@pytest.mark.parametrize(
    ("address", "network"),
    [("192.0.2.1", "192.0.2.1"), ("2001:db8::1", "2001:db8::/64"), ("2001:db8::ffff:1", "2001:db8::/64"),
     ("::ffff:192.0.2.1", "192.0.2.1"), ("fe80::1%eth0", "fe80::/64"), ("", "")],
)  # fmt: skip
def test_networks(address: str, network: str) -> None:
    assert network_of(address) == network
