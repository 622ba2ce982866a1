"""Ports that are taken are named before anything starts."""

import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest

from deploy.local.processes import StartError
from deploy.local.suite import Ports, free_ports


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_free_ports_pass_the_check_and_differ() -> None:
    ports = free_ports()
    ports.check()
    names = ("tracker", "ingest", "attribution", "postback", "gateway")
    used = [getattr(ports, name) for name in (*names, "network")] + [ports.metrics_of(name) for name in names[:-1]]
    assert len(set(used)) == len(used)


@pytest.mark.parametrize("name", ["tracker", "ingest", "attribution", "postback", "gateway", "network"])
def test_a_taken_port_is_named_with_its_user_and_option(name: str, taken: int) -> None:
    ports = replace(free_ports(), **{name: taken})
    with pytest.raises(StartError) as raised:
        ports.check()
    message = str(raised.value)
    assert str(taken) in message
    assert name in message
    assert f"--{name}-port" in message
    assert f"REENGAGE_PORT_{name.upper()}" in message


def test_all_taken_ports_are_named_at_once(taken: int) -> None:
    with pytest.raises(StartError) as raised:
        Ports(tracker=taken, ingest=taken, gateway=taken).check()
    assert str(raised.value).count(str(taken)) == 3
