"""Clicks and impressions that an app's blocklist names: they are kept, marked, and say why."""

from hashlib import md5, sha256

import pytest

from libs.domain.snapshots import Resources
from reengage.ingest.v1 import record_pb2
from reengage.tracker.v1.app_pb2 import PLATFORM_ANDROID, App, BlocklistEntry
from reengage.tracker.v1.status_pb2 import STATUS_LIVE
from reengage.tracker.v1.tracker_pb2 import Tracker
from services.ingest.countries import Countries
from services.ingest.entry import admit
from services.ingest.model import Entry
from services.ingest.settings import build_settings

ID = "cdda802e-fb9c-47ad-9866-0794d394c912"
NOW_US = 1_764_000_000_000_000


def admitted(record: record_pb2.Record, *entries: BlocklistEntry) -> record_pb2.Record:
    app = App(app_id="shop", platform=PLATFORM_ANDROID, status=STATUS_LIVE)
    app.settings.blocklist.extend(entries)
    tracker = Tracker(tracker_id="t", app_id="shop")
    resources: Resources = {
        "app": {("shop",): app},
        "tracker": {("t",): tracker},
        "event_definition": {},
        "api_key": {},
    }
    entry = admit(record, build_settings(resources, 1), NOW_US, Countries("").of)
    assert isinstance(entry, Entry)
    return record_pb2.Record.FromString(entry.record)


def engagement(kind: str, *, site_id: str = "", ip_address: str = "", **ids: str) -> record_pb2.Record:
    record = record_pb2.Record(app_id="shop", record_id="k", ip_address=ip_address, device_ids=ids)
    into = record.click if kind == "click" else record.impression
    into.tracker_id = "t"
    into.ad.site_id = site_id
    return record


def entry(**blocked: str) -> BlocklistEntry:
    return BlocklistEntry(reason="a ring of fraud", **blocked)


CASES = {
    "site": (entry(site_id="s1"), {"site_id": "s1"}, "BLOCKED_SITE"),
    "another site": (entry(site_id="s1"), {"site_id": "s10"}, ""),
    "no site": (entry(site_id="s1"), {}, ""),
    "address": (entry(ip_range="203.0.113.7"), {"ip_address": "203.0.113.7"}, "BLOCKED_IP_ADDRESS"),
    "another address": (entry(ip_range="203.0.113.7"), {"ip_address": "203.0.113.8"}, ""),
    "network": (entry(ip_range="203.0.113.0/24"), {"ip_address": "203.0.113.255"}, "BLOCKED_IP_ADDRESS"),
    "network by one of it": (entry(ip_range="203.0.113.9/24"), {"ip_address": "203.0.113.1"}, "BLOCKED_IP_ADDRESS"),
    "another network": (entry(ip_range="203.0.113.0/24"), {"ip_address": "203.0.112.255"}, ""),
    "IPv6": (entry(ip_range="2001:db8::/48"), {"ip_address": "2001:db8:0:1::1"}, "BLOCKED_IP_ADDRESS"),
    "IPv4 as IPv6": (entry(ip_range="203.0.113.0/24"), {"ip_address": "::ffff:203.0.113.1"}, "BLOCKED_IP_ADDRESS"),
    "all": (entry(ip_range="0.0.0.0/0"), {"ip_address": "198.51.100.1"}, "BLOCKED_IP_ADDRESS"),
    "all of the other version": (entry(ip_range="::/0"), {"ip_address": "198.51.100.1"}, ""),
    "device": (entry(device_id=ID), {"adid": ID}, "BLOCKED_DEVICE_ID"),
    "device in another spelling": (entry(device_id=ID.upper().replace("-", "")), {"adid": ID}, "BLOCKED_DEVICE_ID"),
    "device of another kind": (entry(device_id=ID), {"oaid": ID}, "BLOCKED_DEVICE_ID"),
    "its hash": (entry(device_id=ID), {"adid_md5": md5(ID.encode()).hexdigest()}, "BLOCKED_DEVICE_ID"),
    "its hash in upper case": (
        entry(device_id=ID), {"adid_sha256": sha256(ID.upper().encode()).hexdigest().upper()}, "BLOCKED_DEVICE_ID"
    ),
    "a hash that is named": (entry(device_id="a" * 32), {"adid_md5": "A" * 32}, "BLOCKED_DEVICE_ID"),
    "another device": (entry(device_id=ID), {"adid": ID.replace("c", "d")}, ""),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["click", "impression"])
@pytest.mark.parametrize(("listed", "fields", "invalidity"), CASES.values(), ids=CASES)
def test_what_is_blocked(kind: str, listed: BlocklistEntry, fields: dict[str, str], invalidity: str) -> None:
    record = admitted(engagement(kind, **fields), entry(site_id="other"), listed)
    said = record.click if kind == "click" else record.impression
    assert said.tracker_id == "t"
    assert said.invalidity == record_pb2.Invalidity.Value(f"INVALIDITY_{invalidity or 'UNSPECIFIED'}")
    assert said.block_reason == ("a ring of fraud" if invalidity else "")
    assert record.click.invalid == (kind == "click" and bool(invalidity))


def test_conversions_are_not_blocked() -> None:
    install = record_pb2.Record(app_id="shop", ip_address="203.0.113.7", device_ids={"adid": ID})
    install.install.SetInParent()
    record = admitted(install, entry(ip_range="203.0.113.7"), entry(device_id=ID))
    assert record.WhichOneof("kind") == "install"


def test_nobody_else_says_why_something_is_blocked() -> None:
    record = engagement("click")
    record.click.block_reason = "x" * 10_000
    assert admitted(record).click.block_reason == ""
