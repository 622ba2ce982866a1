"""Blocklists: the clicks and impressions that an app wants to be kept, and never to win. Pure."""

import ipaddress
from collections.abc import Iterable, Mapping
from hashlib import md5, sha1, sha256

from libs.domain.device_ids import normalise
from reengage.ingest.v1 import record_pb2
from reengage.tracker.v1 import app_pb2


class Blocklist:
    """The blocklist of an app; of several entries that name an engagement, the first of a kind counts."""

    def __init__(self, entries: Iterable[app_pb2.BlocklistEntry]) -> None:
        self._sites: dict[str, str] = {}
        self._device_ids: dict[str, str] = {}
        self._networks: dict[tuple[int, int], dict[int, str]] = {}
        """By IP version and bits that differ inside of a network: the reason by the other bits."""
        for entry in entries:
            match entry.WhichOneof("blocked"):
                case "site_id":
                    self._sites.setdefault(entry.site_id, entry.reason)
                case "ip_range":
                    network = ipaddress.ip_network(entry.ip_range, strict=False)
                    host_bits = network.max_prefixlen - network.prefixlen
                    same = self._networks.setdefault((network.version, host_bits), {})
                    same.setdefault(int(network.network_address) >> host_bits, entry.reason)
                case "device_id":
                    for spelling in _spellings(entry.device_id):
                        self._device_ids.setdefault(spelling, entry.reason)
                case _:  # tracker takes none
                    pass

    def mark(self, kind: str, record: record_pb2.Record, device_ids: Mapping[str, str]) -> bytes:
        """Returns what says of a click or an impression that it is blocked, and why; nothing if it is not.

        `kind` is that of the record, `device_ids` are its usable ids.
        """
        found = self._find(record.click.ad if kind == "click" else record.impression.ad, record.ip_address, device_ids)
        if found is None:
            return b""
        invalidity, reason = found
        if kind == "click":
            click = record_pb2.Click(invalid=True, invalidity=invalidity, block_reason=reason)
            return record_pb2.Record(click=click).SerializeToString()
        impression = record_pb2.Impression(invalidity=invalidity, block_reason=reason)
        return record_pb2.Record(impression=impression).SerializeToString()

    def _find(
        self, ad: record_pb2.AdDetails, ip_address: str, device_ids: Mapping[str, str]
    ) -> tuple[record_pb2.Invalidity.ValueType, str] | None:
        if (reason := self._sites.get(ad.site_id)) is not None:
            return record_pb2.INVALIDITY_BLOCKED_SITE, reason
        if self._networks and ip_address and (reason := self._reason_of_network(ip_address)) is not None:
            return record_pb2.INVALIDITY_BLOCKED_IP_ADDRESS, reason
        if self._device_ids:
            for value in device_ids.values():
                if (reason := self._device_ids.get(normalise(value))) is not None:
                    return record_pb2.INVALIDITY_BLOCKED_DEVICE_ID, reason
        return None

    def _reason_of_network(self, ip_address: str) -> str | None:
        address = ipaddress.ip_address(ip_address)
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        number = int(address)
        for (version, host_bits), reasons in self._networks.items():
            if version == address.version and (reason := reasons.get(number >> host_bits)) is not None:
                return reason
        return None


def _spellings(device_id: str) -> set[str]:
    """Returns what an id is compared as: itself, and its hashes in either case, with and without dashes (A3)."""
    plain = device_id.replace("-", "").replace(":", "")
    texts = {form for each in (device_id.strip(), plain.strip()) for form in (each, each.lower(), each.upper())}
    hashes = {method(text.encode()).hexdigest() for text in texts for method in (md5, sha1, sha256)}
    return {normalise(device_id), *hashes}
