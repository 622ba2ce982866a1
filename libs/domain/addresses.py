"""Addresses of devices, as senders write them."""

import re
import socket

_BRACKETED = re.compile(r"\[([^\]]*)\](?::[0-9]{1,5})?")
_WITH_PORT = re.compile(r"([0-9.]+):[0-9]{1,5}")


def is_ip_address(text: str) -> bool:
    """Returns whether a text is one IPv4 or IPv6 address and nothing else."""
    try:
        socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)
    except (OSError, ValueError):  # no address; a NUL in it
        return False
    return True


def read_ip_address(text: str) -> str:
    """Returns the address that a text says, the first of a chain, without port, brackets and zone; empty if none."""
    first = text.partition(",")[0].strip().strip('"')
    if found := _BRACKETED.fullmatch(first) or _WITH_PORT.fullmatch(first):
        first = found[1]
    first = first.partition("%")[0].strip()
    return first if is_ip_address(first) else ""
