"""Ports that are taken are named before anything starts."""

import random
import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest

from deploy.local.processes import StartError
from deploy.local.suite import Ports, free_ports
from tests.support.ports import free_port, free_ports_in_a_row


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
    used = [getattr(ports, name) for name in (*names, "network")] + [ports.metrics_of(name) for name in names]
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


def test_a_row_with_a_taken_port_is_given_up_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    taken, anywhere = free_port(), random.randrange
    firsts = [taken - 1]
    monkeypatch.setattr(random, "randrange", lambda *ends: firsts.pop() if firsts else anywhere(*ends))
    # Had it left a socket open, this test would end in a warning, which is an error.
    first = free_ports_in_a_row(2)
    assert taken not in (first, first + 1)
