"""The address that a request comes from, when proxies stand between."""

import ipaddress
from collections.abc import Iterable
from functools import lru_cache

from libs.domain.addresses import is_ip_address


class ClientAddresses:
    """Addresses of clients: `X-Forwarded-For` is believed only as far as trusted proxies wrote it.

    `proxies` are addresses or networks (`10.0.0.0/8`). Raises ValueError for anything else.
    """

    def __init__(self, proxies: Iterable[str]) -> None:
        self._networks = [ipaddress.ip_network(proxy) for proxy in proxies]
        self.is_proxy = lru_cache(4096)(self._belongs_to_proxy)
        """Returns whether an address is that of a trusted proxy."""

    def client(self, peer: str, forwarded_for: str) -> str:
        """Returns the peer or, behind trusted proxies, the last forwarded address that is none; empty if unknown."""
        if not self._networks or not forwarded_for or not self.is_proxy(peer):
            return peer
        for address in map(_without_port, reversed(forwarded_for.split(","))):
            if not self.is_proxy(address):
                return address if is_ip_address(address) else ""
        return peer

    def _belongs_to_proxy(self, text: str) -> bool:
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            return False
        return any(address in network for network in self._networks)


def _without_port(address: str) -> str:
    address = address.strip()
    if address.startswith("["):
        return address[1:].partition("]")[0]
    host, _, port = address.rpartition(":")
    return host if port and "." in host and ":" not in host else address
