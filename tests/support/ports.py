"""Free ports that stay free: each is held by a bound socket until the process ends.

A held port is never given to anybody who asks for any port, nor used by an outgoing connection, and yet a server may
listen on it: servers set SO_REUSEADDR, and the socket that holds it does not listen. So a service may be stopped and
started again on its port, and test runs may share a machine.
"""

import random
import socket
from dataclasses import fields

from deploy.local.suite import SERVICES, Ports

HOST = "127.0.0.1"
_held: list[socket.socket] = []


def free_port() -> int:
    """Returns a port that is this process's alone."""
    return _hold(0)


def free_ports_in_a_row(count: int) -> int:
    """Returns the first of `count` ports in a row that are this process's alone."""
    while True:
        first = random.randrange(20_000, 32_000)  # below what systems hand out to clients
        before = len(_held)
        try:
            for port in range(first, first + count):
                _hold(port)
        except OSError:
            while len(_held) > before:
                _held.pop().close()
        else:
            return first


def suite_ports() -> Ports:
    """Returns ports for a suite of the test's own, in a row."""
    names = [field.name for field in fields(Ports)]
    first = free_ports_in_a_row(len(names) + len(SERVICES) - 1)  # `metrics` is the first of one a service
    return Ports(**{name: first + offset for offset, name in enumerate(names)})


def _hold(port: int) -> int:
    holder = socket.socket()
    try:
        holder.bind((HOST, port))  # without SO_REUSEADDR: fails where anybody has bound the port, or picks a free one
    except OSError:
        # What collects it would be an "unclosed socket" without a line, of which pytest cannot make a report.
        holder.close()
        raise
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # from now on servers may listen beside it
    _held.append(holder)
    return int(holder.getsockname()[1])
