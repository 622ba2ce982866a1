"""Connections of clients that keep to nothing, against a gateway as a process of its own.

Its tracker is away, which none of this needs: links get 503, `GET /` 200.
"""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
import pytest_asyncio
import yaml

from tests.support.eventually import eventually
from tests.support.ports import HOST, free_port
from tests.support.processes import ROOT, ServiceProcess, gateway_process
from tests.support.raw_http import ask, connected

pytestmark = pytest.mark.process

GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
POST = b"POST /track/json HTTP/1.1\r\nhost: x\r\n"


@asynccontextmanager
async def gateway(directory: Path, **settings: str) -> AsyncIterator[ServiceProcess]:
    """Yields a gateway with these settings, alive and with nobody behind it."""
    away = {f"{name}_target": f"{HOST}:{free_port()}" for name in ("tracker", "ingest", "attribution")}
    process = gateway_process(directory, **(away | settings))
    await process.start(settings_come=False)
    try:
        yield process
        assert await health(process) == 200
    finally:
        assert await process.stop() == 0


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def process(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ServiceProcess]:
    """Yields a gateway with the usual bounds."""
    async with gateway(tmp_path_factory.mktemp("gateway")) as found:
        yield found


async def health(process: ServiceProcess) -> int:
    """Returns the status of /healthz where Kubernetes asks."""
    return (await ask(process.metrics_url.removeprefix("http://"), GET.replace(b"/ ", b"/healthz "))).status


async def metrics(process: ServiceProcess) -> dict[str, float]:
    """Returns the metrics of a gateway."""
    async with aiohttp.ClientSession() as session, session.get(f"{process.metrics_url}/metrics") as response:
        found = re.findall(r"^([a-z_]+(?:\{.*?\})?) (\S+)$", await response.text(), re.MULTILINE)
    return {name: float(value) for name, value in found}


async def cut(process: ServiceProcess, reason: str) -> float:
    """Returns how many connections were cut for this reason."""
    return (await metrics(process)).get(f'http_connections_cut_total{{reason="{reason}"}}', 0.0)


def memory_of(process: ServiceProcess) -> int:
    return int(psutil.Process(process.pid).memory_info().rss)


def manifest() -> dict[str, Any]:
    """Returns the container of the gateway in the manifests."""
    documents = yaml.safe_load_all((ROOT / "deploy/base/gateway/resources.yaml").read_text())
    [stateful] = [document for document in documents if document["kind"] == "StatefulSet"]
    container: dict[str, Any] = stateful["spec"]["template"]["spec"]["containers"][0]
    return container


def manifest_limit() -> int:
    """Returns the bytes that Kubernetes gives a gateway before it kills it."""
    return int(manifest()["resources"]["limits"]["memory"].removesuffix("Mi")) * 1024**2


def test_kubernetes_asks_for_health_where_no_crowd_comes() -> None:
    container = manifest()
    probes = [container[f"{kind}Probe"]["httpGet"]["port"] for kind in ("startup", "readiness", "liveness")]
    ports = {port["name"]: str(port["containerPort"]) for port in container["ports"]}
    environment = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert set(probes) == {"metrics"}
    assert ports["metrics"] == environment["REENGAGE_METRICS_PORT"] != ports["http"]


async def test_a_megabyte_of_pipelined_requests_costs_little_and_stops_nobody(tmp_path: Path) -> None:
    count = 1_000_000 // len(GET)
    async with gateway(tmp_path) as process, connected(process.target) as client:
        before, most = memory_of(process), 0
        sending = asyncio.create_task(client.send(GET * count))
        for number in range(count):
            assert (await client.response()).status == 200
            if number % 1_000 == 0:
                assert await health(process) == 200
                most = max(most, memory_of(process))
        await sending
        assert most - before < 8_000_000


async def test_a_client_that_takes_no_responses_is_cut(tmp_path: Path) -> None:
    async with gateway(tmp_path, answer_s="0.5") as process, connected(process.target) as client:
        before = memory_of(process)
        sending = asyncio.create_task(client.send(GET * 100_000))

        async def is_cut() -> bool:
            return await cut(process, "ANSWER_NOT_TAKEN") == 1

        await eventually(is_cut)
        assert (await metrics(process))["http_connections"] == 0
        assert memory_of(process) - before < 16_000_000
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


async def test_idle_connections_shut_nobody_out(tmp_path: Path) -> None:
    async with (
        gateway(tmp_path, max_connections="50", max_connections_per_peer="50") as process,
        AsyncExitStack() as stack,
    ):
        idle = [await stack.enter_async_context(connected(process.target)) for _ in range(120)]
        assert [(await ask(process.target, GET)).status for _ in range(20)] == [200] * 20
        assert await health(process) == 200
        assert (await metrics(process))["http_connections"] <= 50
        assert await idle[0].ended() == b""


async def test_connections_without_end_do_not_shut_out_health(tmp_path: Path) -> None:
    async with gateway(tmp_path, max_connections="20") as process, AsyncExitStack() as stack:
        for start in range(100):
            client = await stack.enter_async_context(connected(process.target))
            await client.send(GET[: 1 + start % 20])
        assert await health(process) == 200
        assert (await ask(process.target, GET)).status == 200
        assert await cut(process, "GAVE_WAY") >= 80


@pytest.mark.parametrize(
    ("settings", "sent", "status"),
    [
        pytest.param({"first_byte_s": "0.2"}, b"", None, id="never begins"),
        pytest.param({"head_s": "0.2"}, b"G", 408, id="a head that begins"),
        pytest.param({"head_s": "0.2"}, b"\r\n", 408, id="an empty line"),
        pytest.param({"body_s": "0.2"}, POST + b"content-length: 9\r\n\r\n", 408, id="no body"),
        pytest.param({"body_s": "0.2"}, POST + b"transfer-encoding: chunked\r\n\r\n1\r\nx", 408, id="chunks"),
        pytest.param({"idle_s": "0.2"}, GET, 200, id="no second request"),
    ],
)
async def test_no_wait_is_for_ever(tmp_path: Path, settings: dict[str, str], sent: bytes, status: int | None) -> None:
    async with gateway(tmp_path, **settings) as process, connected(process.target) as client:
        await client.send(sent)
        if status is not None:
            assert (await client.response()).status == status
        assert await client.ended() == b""


@pytest.mark.parametrize(
    ("settings", "first", "drop"),
    [({"head_s": "0.5"}, b"GET / HTTP/1.1\r\nhost: x\r\nx: ", b"a"),
     ({"body_s": "0.5"}, POST + b"content-length: 2000000\r\n\r\n", b"a"),
     ({"body_s": "0.5"}, POST + b"transfer-encoding: chunked\r\n\r\n", b"1\r\na\r\n")],
    ids=["head", "body", "chunks"],
)  # fmt: skip
async def test_drops_do_not_prolong_a_wait(tmp_path: Path, settings: dict[str, str], first: bytes, drop: bytes) -> None:
    async with gateway(tmp_path, linger_s="0.1", **settings) as process, connected(process.target) as client:
        await client.send(first)

        async def drip() -> None:
            while True:
                await client.send(drop)
                await asyncio.sleep(0.01)

        dripping = asyncio.create_task(drip())
        assert (await client.response()).status == 408
        with pytest.raises(ConnectionError):
            await dripping


EARLY = {
    "a body too large": (POST + b"content-length: 4000000\r\n\r\n", 413),
    "a body of which nobody knows the size": (POST + b"transfer-encoding: chunked\r\n\r\n3d0900\r\n", 413),
    "a head too large": (b"GET / HTTP/1.1\r\nhost: x\r\nx: ", 431),
    "headers too many": (b"GET / HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 200 + b"\r\n", 431),
    "a URL too long": (b"GET /" + b"a" * 65_600, 431),
    "no HTTP": (b"\x16\x03\x01\x02\x00\r\n\r\n", 400),
    "an unknown coding": (POST + b"transfer-encoding: gzip, chunked\r\n\r\n", 501),
    "two lengths": (POST + b"content-length: 1\r\ncontent-length: 2\r\n\r\n", 400),
}


@pytest.mark.parametrize(("head", "status"), EARLY.values(), ids=EARLY.keys())
async def test_a_sender_sees_why_it_is_refused(process: ServiceProcess, head: bytes, status: int) -> None:
    """It sends all it has before it looks, as most do."""
    for _ in range(12):
        async with connected(process.target) as client:
            await client.send(head)
            await client.send(b"a" * 4_000_000)
            client.end()
            assert (await client.response()).status == status
            assert await client.ended() == b""


AMBIGUOUS = {
    "a length and chunks": (b"content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "chunks and a length": (b"transfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n0\r\n\r\n", 400),
    "two lengths": (b"content-length: 0\r\ncontent-length: 5\r\n\r\n", 400),
    "the same length twice": (b"content-length: 0\r\ncontent-length: 0\r\n\r\n", 400),
    "a list of lengths": (b"content-length: 0, 5\r\n\r\n", 400),
    "a signed length": (b"content-length: +0\r\n\r\n", 400),
    "a length beyond all numbers": (b"content-length: 99999999999999999999999\r\n\r\n", 400),
    "a length in hex": (b"content-length: 0x0\r\n\r\n", 400),
    "an empty length": (b"content-length:\r\n\r\n", 400),
    "a bare line feed": (b"a: b\nc: d\r\n\r\n", 400),
    "bare line feeds": (b"a: b\n\n", 400),
    "a bare carriage return": (b"a: b\rc: d\r\n\r\n", 400),
    "a folded line": (b"a: b\r\n c\r\n\r\n", 400),
    "a folded coding": (b"transfer-encoding:\r\n chunked\r\n\r\n0\r\n\r\n", 400),
    "a space before the colon": (b"content-length : 0\r\n\r\n", 400),
    "a coding that looks like chunked": (b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n", 400),
    "a coding after chunked": (b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n", 400),
    "a coding before chunked": (b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
    "chunked twice": (b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "a vertical tab": (b"transfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n", 400),
    "NUL": (b"a: b\0c\r\n\r\n", 400),
    "two hosts": (b"host: y\r\n\r\n", 400),
    "a chunk larger than all": (b"transfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\n", 400),
    "a chunk as C writes it": (b"transfer-encoding: chunked\r\n\r\n0x0\r\n\r\n", 400),
    "chunks by bare line feeds": (b"transfer-encoding: chunked\r\n\r\n0\n\n", 400),
    "a chunk longer than it says": (b"transfer-encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n", 400),
    "an extension with a line feed": (b"transfer-encoding: chunked\r\n\r\n0;a\nb\r\n\r\n", 400),
    "chunks and an upgrade": (
        b"connection: upgrade\r\nupgrade: h2c\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
}


@pytest.mark.parametrize(("rest", "status"), AMBIGUOUS.values(), ids=AMBIGUOUS.keys())
async def test_no_request_is_smuggled(process: ServiceProcess, rest: bytes, status: int) -> None:
    """Whatever another server may have taken for a body, or for the next request: neither is responded to."""
    async with connected(process.target) as client:
        await client.send(POST + rest + GET)
        client.end()
        assert (await client.response()).status == status
        assert await client.ended() == b""


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", 400, id="no host"),
        pytest.param(b"GET /\r\n\r\n", 505, id="HTTP/0.9"),
        pytest.param(b"GET / HTTP/2.0\r\nhost: x\r\n\r\n", 505, id="HTTP/2.0"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, id="the preface of HTTP/2"),
        pytest.param(b"POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400, id="chunks by HTTP/1.0"),
        pytest.param(b"\r\n\r\n", 400, id="empty lines"),
        pytest.param(b"\0" * 10 + b"\r\n\r\n", 400, id="NULs"),
        pytest.param(b"CONNECT x:80 HTTP/1.1\r\nhost: x\r\n\r\n", 404, id="CONNECT"),
    ],
)
async def test_what_is_no_request_of_ours(process: ServiceProcess, request_: bytes, status: int) -> None:
    async with connected(process.target) as client:
        await client.send(GET)
        assert (await client.response()).status == 200
        await client.send(request_)
        assert (await client.response()).status == status


async def test_whatever_many_send_at_once_the_gateway_keeps_below_its_limit(tmp_path: Path) -> None:
    """Bodies without their last byte, heads without end, bodies in chunks of a byte, pipelined requests, arrays."""
    nested = b'[{"action":"event","data":{"event_data":{%s}}}]' % b",".join(b'"%x":{}' % n for n in range(150_000))
    floods = [
        POST + b"content-length: 1900000\r\n\r\n" + b"x" * 1_899_999,
        b"GET / HTTP/1.1\r\nhost: x\r\nx: " + b"x" * 60_000,
        POST + b"transfer-encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 300_000,
        GET * 20_000,
        POST + b"content-length: %d\r\n\r\n" % len(nested) + nested,
    ]
    async with gateway(tmp_path, linger_s="0.1") as process, AsyncExitStack() as stack:
        most = 0

        async def flood(number: int) -> None:
            nonlocal most
            client = await stack.enter_async_context(connected(process.target))
            with suppress(ConnectionError, TimeoutError):
                await asyncio.wait_for(client.send(floods[number % len(floods)]), 1)
            most = max(most, memory_of(process))

        for _ in range(2):
            await asyncio.gather(*(flood(number) for number in range(50)))
            assert await health(process) == 200
            assert (await ask(process.target, GET)).status == 200
        assert most < manifest_limit()
