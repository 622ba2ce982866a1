"""The guard against requests into private networks.

Configurations come from people who may not be trusted with this machine's surroundings. A delivery goes to http and
https, to the usual ports, and to public addresses only. The check is made on the very address that is connected to, so
a name that resolves differently a second time gains nothing. An allow-list of hosts opens named hosts: their name and
port are trusted, wherever they point.
"""

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Any, TypeAlias

from aiohttp import TCPConnector, ThreadedResolver
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

PORTS = frozenset({80, 443, 8080, 8443})

Lookup: TypeAlias = Callable[[str, int, socket.AddressFamily], Awaitable[list[ResolveResult]]]
IsPublic: TypeAlias = Callable[[str], bool]

# Only these are routed to the world; much else of the space is not, and some parts carry an IPv4 address inside.
_GLOBAL_IPV6 = IPv6Network("2000::/3")
_CARRIES_IPV4 = (
    IPv6Network("2001::/32"),  # Teredo
    IPv6Network("2002::/16"),  # 6to4
)

_THIS_MACHINE = re.compile(r"(.*\.)?localhost")
# Resolvers read 127.1, 0x7f.1 and 2130706433 as addresses; no public name ends in a number.
_NUMERIC = re.compile(r"(.*\.)?([0-9]+|0x[0-9a-f]*)")


class AddressForbiddenError(OSError):
    """A delivery may not connect there."""


def is_public(address: str) -> bool:
    """Returns whether an IP address lies in the public internet; none that carries another does (NAT64, 6to4, …)."""
    if "%" in address:  # a scope: never global
        return False
    ip = ip_address(address)
    match ip:
        case IPv4Address():
            return ip.is_global and not ip.is_multicast
        case IPv6Address():
            return ip in _GLOBAL_IPV6 and ip.is_global and not any(ip in network for network in _CARRIES_IPV4)


class Guard:
    """The rules of what may be connected to. `allowed`: comma-separated `host` (any port) or `host:port`; IPv6 in
    brackets. All others only on `ports`, and at addresses that are public."""

    def __init__(self, allowed: str = "", *, ports: frozenset[int] = PORTS, is_public: IsPublic = is_public) -> None:
        """Raises ValueError for an entry that is no host."""
        self._allowed = frozenset(_entry(text.strip()) for text in allowed.split(",") if text.strip())
        self._ports, self._is_public = ports, is_public

    def allows_host(self, url: URL) -> bool:
        """Returns whether the allow-list opens the host of `url`, so that its addresses are not checked."""
        host = _canonical(url.raw_host or "")
        return (host, None) in self._allowed or (host, url.port) in self._allowed

    def refusal(self, url: URL) -> str:
        """Returns why `url` may not be asked, as far as can be told without resolving its host; empty when it may."""
        opened = "unless REENGAGE_ALLOWED_HOSTS names it"
        if url.scheme not in ("http", "https") or not url.raw_host:
            return "must be http or https, to a host"
        if self.allows_host(url):
            return ""
        if url.port not in self._ports:
            return f"only ports {', '.join(map(str, sorted(self._ports)))} of a host, {opened}"
        host = _canonical(url.raw_host)
        if is_literal(host) and not self._is_public(host):
            return f"not a public address; refused {opened}"
        if _THIS_MACHINE.fullmatch(host):
            return f"a name of the service's own machine; refused {opened}"
        if _NUMERIC.fullmatch(host) and not is_literal(host):
            return f"an IPv4 address is written as four decimal numbers; refused {opened}"
        return ""

    def connector(self, *, lookup: Lookup | None = None) -> TCPConnector:
        """Returns a connector to public addresses only, whatever a name resolves to. Bounds are the caller's."""
        resolver = PublicResolver(self._require_public, lookup)
        return TCPConnector(resolver=resolver, socket_factory=self._public_socket, limit=0, ttl_dns_cache=10)

    def trusting_connector(self) -> TCPConnector:
        """Returns a connector to the hosts of the allow-list."""
        return TCPConnector(limit=0, ttl_dns_cache=10)

    def _public_socket(
        self, info: tuple[int | socket.AddressFamily, int | socket.SocketKind, int, str, Any]
    ) -> socket.socket:
        # Literal addresses never meet the resolver; this is the last step before connecting, for all.
        family, kind, protocol, _, address = info
        self._require_public(address[0])
        return socket.socket(family, kind, protocol)

    def _require_public(self, address: str) -> None:
        if not self._is_public(address):
            raise AddressForbiddenError("not a public address")


class PublicResolver(AbstractResolver):
    """A resolver that refuses a name of which any address is not public: half a public name is no accident."""

    def __init__(self, require_public: Callable[[str], None], lookup: Lookup | None = None) -> None:
        self._require_public = require_public
        self._lookup = lookup or ThreadedResolver(loop=asyncio.get_running_loop()).resolve

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Returns the addresses of a name. Raises AddressForbiddenError."""
        found = await self._lookup(host, port, family)
        for result in found:
            self._require_public(result["host"])
        return found

    async def close(self) -> None:
        """Does nothing: there is nothing to close."""


def is_literal(host: str) -> bool:
    """Returns whether a host is an address in its usual form. Other numeric forms are left to the resolver."""
    try:
        ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


@lru_cache(maxsize=4096)
def _canonical(host: str) -> str:
    host = host.lower().rstrip(".")
    return str(ip_address(host)) if is_literal(host) and "%" not in host else host


def _entry(text: str) -> tuple[str, int | None]:
    wrong = f"REENGAGE_ALLOWED_HOSTS: {text!r} is not host or host:port"
    try:
        url = URL(f"http://{text}")
    except ValueError:
        raise ValueError(wrong) from None
    if not url.raw_host or url.raw_path != "/" or url.raw_user:
        raise ValueError(wrong)
    return _canonical(url.raw_host), url.explicit_port
