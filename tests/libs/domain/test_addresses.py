"""Addresses of devices as senders write them."""

import pytest

from libs.domain.addresses import read_ip_address

READ = {
    "192.0.2.7": "192.0.2.7", "2001:db8::7": "2001:db8::7", " 192.0.2.7\t": "192.0.2.7", "192.0.2.7:80": "192.0.2.7",
    "[2001:db8::7]": "2001:db8::7", "[2001:db8::7]:80": "2001:db8::7", "fe80::7%eth0": "fe80::7",
    "[fe80::7%25en0]:80": "fe80::7", "192.0.2.7, 10.0.0.1": "192.0.2.7", "[2001:db8::7]:1,10.0.0.1": "2001:db8::7",
    '"[2001:db8::7]:80"': "2001:db8::7", "::ffff:192.0.2.7": "::ffff:192.0.2.7",
}  # fmt: skip
NONE = [
    "",
    ",192.0.2.7",
    "unknown, 192.0.2.7",
    "192.0.2.256",
    "192.0.2",
    "localhost",
    "192.0.2.7:x",
    "[192.0.2.7",
    "1\0",
]


@pytest.mark.parametrize(("written", "meant"), READ.items(), ids=READ.keys())
def test_addresses(written: str, meant: str) -> None:
    assert read_ip_address(written) == meant


@pytest.mark.parametrize("written", NONE)
def test_what_is_no_address(written: str) -> None:
    assert read_ip_address(written) == ""
