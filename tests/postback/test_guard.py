"""The guard against requests into private networks."""

import pytest
from yarl import URL

from services.postback.adapters.adapter import Request
from services.postback.guard import Guard, is_public
from services.postback.retry import Failure
from services.postback.sender import open_sender
from tests.postback.conftest import Endpoint, answering

PUBLIC = "93.184.215.14"
FORBIDDEN = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",
    "127.0.0.1",
    "127.255.255.254",
    "169.254.1.1",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.1",
    "192.0.2.1",
    "192.168.0.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "233.252.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:7f00:1",
    f"::ffff:{PUBLIC}",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    f"64:ff9b::{PUBLIC}",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:db8::1",
    "2002:7f00:1::",
    "2002:a9fe:a9fe::",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
    "ff0e::1",
]


@pytest.mark.parametrize("address", FORBIDDEN)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", [PUBLIC, "8.8.8.8", "172.32.0.1", "2606:2800:21f:cb07:6820:80da:af6b:8b2c"])
def test_addresses_that_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    ("url", "refused"),
    [
        (f"http://{PUBLIC}/", False),
        ("https://a.example/", False),
        ("https://a.example:8443/", False),
        ("http://a.example:8080/", False),
        ("http://a.example:22/", True),
        ("http://a.example:6379/", True),
        ("ftp://a.example/", True),
        ("file:///etc/passwd", True),
        ("http://127.0.0.1/", True),
        ("http://[::1]/", True),
        ("http://[::ffff:127.0.0.1]/", True),
        ("http://169.254.169.254/latest/meta-data", True),
        ("http://localhost/", True),
        ("http://LOCALHOST./", True),
        ("http://a.localhost/", True),
        ("http://notlocalhost/", False),
        ("http://localhost.example/", False),
        ("http://2130706433/", True),
        ("http://127.1/", True),
        ("http://0x7f.1/", True),
        ("http://0X7F000001/", True),
        ("http://0177.0.0.1/", True),
        ("http://127.0.0.0x1/", True),
        ("http://1.2.3.4.5/", True),
        ("http://127.1.example/", False),
        ("http://0xbeef.example/", False),
    ],
)
def test_urls(url: str, refused: bool) -> None:
    assert bool(Guard().refusal(URL(url, encoded=True))) == refused


@pytest.mark.parametrize(
    ("allowed", "url", "opened"),
    [
        ("127.0.0.1:9000", "http://127.0.0.1:9000/", True),
        ("127.0.0.1:9000", "http://127.0.0.1:9001/", False),
        ("127.0.0.1", "http://127.0.0.1:9001/", True),
        ("partner.local", "http://PARTNER.local.:9001/", True),
        ("a.local, partner.local:81", "http://partner.local:81/", True),
        ("partner.local", "http://sub.partner.local/", False),
        ("partner.local:443", "https://partner.local/", True),
        ("[::1]:9000", "http://[0:0:0:0:0:0:0:1]:9000/", True),
        ("localhost", "http://localhost:3000/", True),
        ("2130706433", "http://2130706433/", True),
        ("", "http://127.0.0.1/", False),
    ],
)
def test_allow_list(allowed: str, url: str, opened: bool) -> None:
    assert Guard(allowed).allows_host(URL(url, encoded=True)) == opened


@pytest.mark.parametrize("allowed", ["http://a.example", "a.example/path", "user@a.example", "a:b:c"])
def test_allow_list_entries_are_hosts(allowed: str) -> None:
    with pytest.raises(ValueError, match="REENGAGE_ALLOWED_HOSTS"):
        Guard(allowed)


def get(url: str) -> Request:
    return Request(method="GET", url=url, headers={}, body="")


@pytest.mark.parametrize(
    "addresses", [["127.0.0.1"], ["::1"], ["::ffff:127.0.0.1"], [PUBLIC, "10.0.0.1"], ["64:ff9b::7f00:1"]]
)
async def test_a_name_that_resolves_to_a_private_address(addresses: list[str]) -> None:
    lookup, asked = answering(addresses)
    async with open_sender(Guard(), lookup=lookup) as sender:
        answer = await sender.send(get("http://partner.example/"), timeout_s=5, sandbox=False)
    assert (answer.failure, answer.status_code) == (Failure.ADDRESS_FORBIDDEN, 0)
    assert asked == ["partner.example"]


async def test_a_name_that_is_rebound_is_resolved_once_and_gains_nothing(endpoint: Endpoint) -> None:
    """The first address counts as public here, all later ones do not: what was checked is what is connected to."""
    guard = Guard(ports=frozenset({endpoint.port}), is_public=lambda address: address != "127.0.0.1")
    lookup, asked = answering(["127.0.0.3"], ["127.0.0.1"])  # nobody listens on the first
    async with open_sender(guard, lookup=lookup) as sender:
        answer = await sender.send(get(f"http://partner.example:{endpoint.port}/"), timeout_s=5, sandbox=False)
        assert answer.failure == Failure.CONNECTION_FAILED
        assert len(asked) == 1
        sender._public.connector.clear_dns_cache()  # type: ignore[union-attr]  # as if the time to live were over
        answer = await sender.send(get(f"http://partner.example:{endpoint.port}/"), timeout_s=5, sandbox=False)
    assert answer.failure == Failure.ADDRESS_FORBIDDEN
    assert endpoint.received == []


@pytest.mark.parametrize(
    "host", ["2130706433", "0x7f000001", "0x7f.1", "017700000001", "127.1", "127.0.0.1.", "localhost", "localhost."]
)
async def test_other_ways_to_write_this_machine(host: str, endpoint: Endpoint) -> None:
    async with open_sender(Guard(ports=frozenset({endpoint.port}))) as sender:
        answer = await sender.send(get(f"http://{host}:{endpoint.port}/"), timeout_s=5, sandbox=False)
    assert answer.status_code == 0
    assert answer.failure in (Failure.ADDRESS_FORBIDDEN, Failure.CONNECTION_FAILED)
    assert endpoint.received == []


async def test_the_last_check_is_where_the_connection_is_made(
    monkeypatch: pytest.MonkeyPatch, endpoint: Endpoint
) -> None:
    """Even a URL that nobody looked at, to a literal address that no resolver sees, does not get through."""
    monkeypatch.setattr(Guard, "refusal", lambda self, url: "")
    async with open_sender(Guard()) as sender:
        answer = await sender.send(get(endpoint.url("/")), timeout_s=5, sandbox=False)
    assert answer.failure == Failure.ADDRESS_FORBIDDEN
    assert endpoint.received == []
