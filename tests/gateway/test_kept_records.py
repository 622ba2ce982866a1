"""Bodies as connectors and SDKs really send them: the answer, and the record that is in the log.

Each goes through the real gateway and the real ingest.
"""

import gzip
import json
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import brotli
import pytest
from google.protobuf import json_format

from tests.gateway.conftest import World

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

pytestmark = pytest.mark.asyncio(loop_scope="session")

IOS_17 = "Mozilla/5.0 (iPhone; CPU iPhone OS 17_4 like Mac OS X)"
IDFA = "6D92078A-8246-4BA4-AE5B-76104861E7DC"
PIXEL = "Mozilla/5.0 (Linux; Android 14; Pixel 8)"
NAMES = {f"k{number:02}": "v" for number in range(70)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A body: `data` and `root` in JSON; `warnings` of the answer by field; `stored`, a part of the record in the log.

    Fields of `stored` that are None must be absent.
    """

    action: str = "event"
    data: dict[str, Any] = field(default_factory=dict)
    root: dict[str, Any] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    headers: dict[str, str] = field(default_factory=dict)
    warnings: dict[str, str] = field(default_factory=dict)
    stored: dict[str, Any] = field(default_factory=dict)

    def body(self, device: str) -> dict[str, Any]:
        """Returns the body for a device."""
        given = {"event_name": "Buy"} if self.action == "event" else {}
        data = {"origination_ip": "203.0.113.7", **given, **self.data}
        whole = {
            "action": self.action,
            "kochava_app_id": "shop",
            "kochava_device_id": device,
            "data": {key: value for key, value in data.items() if key not in self.left_out},
            **self.root,
        }
        return {key: value for key, value in whole.items() if key not in self.left_out}


def revenue(micros: int, currency: str = "USD") -> dict[str, Any]:
    return {"event.revenue": {"amount_micros": str(micros), "currency_code": currency} if micros else None}


def amount(written: Any, micros: int, stored: str = "USD", **beside: Any) -> Case:
    kept = written if isinstance(written, str) else json.dumps(written)
    return Case(
        data={"event_data": {"sum": written, **beside}},
        stored={"event.event_data.sum": kept, **revenue(micros, stored)},
    )


def in_data(key: str, value: Any, code: str, **stored: Any) -> Case:
    return Case(data={key: value}, warnings={f"data.{key}": code}, stored=stored)


CASES = {
    # Amounts and currencies
    "a comma for a point": amount("13,95", 13_950_000),
    "with its currency": amount("$12.99", 12_990_000),
    "groups of three": amount("1,299.00", 1_299_000_000),
    "groups of three, a comma": amount("1.299,00", 1_299_000_000),
    "groups without decimals": amount("1,299", 1_299_000_000),
    "blanks for groups": amount("1\u00a0299,50 €", 1_299_500_000, "EUR"),
    "a code before it": amount("EUR 12.5", 12_500_000, "EUR"),
    "a refund": amount("-12,5", -12_500_000),
    "currency US$": amount("12.99", 12_990_000, currency="US$"),
    "currency in blanks": amount(5, 5_000_000, "EUR", currency=" eur "),
    "price times quantity": Case(
        data={"event_data": {"price": "2.50", "quantity": 3}}, stored={**revenue(7_500_000)}
    ),
    "the first that is not zero": Case(
        data={"event_data": {"sum": 0, "revenue": "", "value": "gold", "amount": 7}}, stored={**revenue(7_000_000)}
    ),
    "an amount that is none": Case(
        data={"event_data": {"sum": "twelve", "sku": "A"}},
        warnings={"data.event_data.sum": "INVALID_AMOUNT"},
        stored={"event.event_data": {"sum": "twelve", "sku": "A"}, **revenue(0)},
    ),
    "an amount that is too large": Case(
        data={"event_data": {"sum": 10**13}},
        warnings={"data.event_data.sum": "INVALID_AMOUNT"},
        stored={"event.event_data.sum": "10000000000000", **revenue(0)},
    ),
    "a currency that is none": Case(
        data={"event_data": {"sum": 5}, "currency": "points"},
        warnings={"data.currency": "INVALID_CURRENCY"},
        stored={"event.event_data.sum": "5", **revenue(0)},
    ),
    # Event data
    "an array": Case(
        data={"event_data": {"products": [{"id": 1, "price": 2}], "n": 1}},
        warnings={"data.event_data.products": "NOT_FLAT"},
        stored={"event.event_data": {"products": '[{"id":1,"price":2}]', "n": "1"}},
    ),
    "an object": Case(
        data={"event_data": {"user": {"a": None}}},
        warnings={"data.event_data.user": "NOT_FLAT"},
        stored={"event.event_data.user": '{"a":null}'},
    ),
    "a reserved name": Case(
        data={"event_data": {"source": "push", "campaign": 7}},
        warnings={"data.event_data.source": "RESERVED_NAME", "data.event_data.campaign": "RESERVED_NAME"},
        stored={"event.event_data": {"data_source": "push", "data_campaign": "7"}},
    ),
    "text for event data": in_data("event_data", "premium", "INVALID_TYPE", **{"event.event_data": None}),
    "a number for event data": in_data("event_data", 7, "INVALID_TYPE"),
    "an object in a text": Case(
        data={"event_data": '{"sum": 5}'},
        warnings={"data.event_data": "INVALID_TYPE"},
        stored={"event.event_data.sum": "5", **revenue(5_000_000)},
    ),
    "70 names": Case(
        data={"event_data": NAMES},
        warnings={f"data.event_data.k{number}": "TOO_MANY" for number in range(64, 70)},
        stored={"event.event_data": dict.fromkeys(sorted(NAMES)[:64], "v")},
    ),
    "a long value": Case(
        data={"event_data": {"note": "é" * 3_000}},
        warnings={"data.event_data.note": "TOO_LONG"},
        stored={"event.event_data.note": "é" * 2_048},
    ),
    "a value that is longer than a record may be": Case(
        data={"event_data": {"note": "x" * 700_000, "sum": 5}},
        warnings={"data.event_data.note": "TOO_LONG"},
        stored={"event.event_data.note": "x" * 4_096, **revenue(5_000_000)},
    ),
    "a NUL": Case(
        data={"event_data": {"note": "a\0b"}},
        warnings={"data.event_data.note": "INVALID_TEXT"},
        stored={"event.event_data.note": "a\ufffdb"},
    ),
    "a long event name": Case(
        data={"event_name": "e" * 200},
        warnings={"data.event_name": "TOO_LONG"},
        stored={"event.event_name": "e" * 128},
    ),
    "a reserved event name": Case(
        data={"event_name": "_install"},
        warnings={"data.event_name": "RESERVED_NAME"},
        stored={"event.event_name": "data__install"},
    ),
    # Addresses
    "no address": Case(left_out=("origination_ip",), stored={"ip_address": None}),
    "an update without an address": Case(
        action="update", data={"device_ids": {"idfa": IDFA}}, left_out=("origination_ip",),
        stored={"event.event_name": "_Update", "device_ids.idfa": IDFA},
    ),
    "a chain": Case(data={"origination_ip": "203.0.113.7, 10.0.0.1"}, stored={"ip_address": "203.0.113.7"}),
    "a port": Case(data={"origination_ip": "203.0.113.7:4711"}, stored={"ip_address": "203.0.113.7"}),
    "brackets": Case(data={"origination_ip": "[2001:db8::7]:443"}, stored={"ip_address": "2001:db8::7"}),
    "brackets alone": Case(data={"origination_ip": "[2001:db8::7]"}, stored={"ip_address": "2001:db8::7"}),
    "a zone": Case(data={"origination_ip": "fe80::7%en0"}, stored={"ip_address": "fe80::7"}),
    "blanks": Case(data={"origination_ip": " 203.0.113.7\n"}, stored={"ip_address": "203.0.113.7"}),
    "an address that is none": in_data("origination_ip", "localhost", "INVALID_IP_ADDRESS", ip_address=None),
    "an address that is a number": in_data("origination_ip", 7, "INVALID_IP_ADDRESS", ip_address=None),
    "an SDK, whose peer is the device": Case(
        data={"sdk_protocol": "16"}, left_out=("origination_ip",),
        headers={"X-Forwarded-For": "198.51.100.9", "User-Agent": "Dalvik/2.1.0 (Linux; U; Android 14; Pixel 8)"},
        stored={"ip_address": "198.51.100.9", "user_agent": "Dalvik/2.1.0 (Linux; U; Android 14; Pixel 8)"},
    ),
    "an SDK that knows its user agent": Case(
        data={"device_ua": PIXEL}, root={"sdk_version": "AndroidTracker 5"}, left_out=("origination_ip",),
        headers={"X-Forwarded-For": "198.51.100.9", "User-Agent": "okhttp"},
        stored={"ip_address": "198.51.100.9", "user_agent": PIXEL},
    ),
    "a server, whose peer is nobody": Case(
        left_out=("origination_ip",),
        headers={"X-Forwarded-For": "198.51.100.9", "User-Agent": "Go-http-client/1.1"},
        stored={"ip_address": None, "user_agent": None},
    ),
    # Ids
    "ids in data": Case(
        data={"idfv": "V", "GAID": "A", "custom": 7},
        stored={"device_ids.idfv": "V", "device_ids.adid": "A", "device_ids.custom": "7"},
    ),
    "ids at the root": Case(
        root={"android_id": "9a", "gaid": "A"}, stored={"device_ids.android_id": "9a", "device_ids.adid": "A"}
    ),
    "an id that has no kind": Case(
        data={"device_ids": {"adid": "A", "fb_id": "x"}},
        warnings={"data.device_ids.fb_id": "UNKNOWN_DEVICE_ID"},
        stored={"device_ids.adid": "A"},
    ),
    "a long id": Case(
        data={"device_ids": {"adid": "A" * 257, "custom": "c"}},
        warnings={"data.device_ids.adid": "TOO_LONG"},
        stored={"device_ids.adid": None, "device_ids.custom": "c"},
    ),
    "ids in a text": Case(
        data={"device_ids": '{"adid": "A"}'},
        warnings={"data.device_ids": "INVALID_TYPE"},
        stored={"device_ids.adid": "A"},
    ),
    "text for ids": in_data("device_ids", "unknown", "INVALID_TYPE"),
    # Device and tracking
    "an idfa without permission": Case(
        data={"device_ua": IOS_17, "device_ids": {"idfa": IDFA}},
        warnings={"data.device_ids.idfa": "TRACKING_NOT_AUTHORIZED"},
        stored={"device_ids.idfa": None},
    ),
    "an idfa and a version alone": Case(
        data={"device_ver": "16.4.1", "device_ids": {"idfa": IDFA}},
        warnings={"data.device_ids.idfa": "TRACKING_NOT_AUTHORIZED"},
        stored={"device_ids.idfa": None, "user_agent": None},
    ),
    "an idfa and an old version alone": Case(
        data={"device_ver": "13.7", "device_ids": {"idfa": IDFA}},
        stored={"device_ids.idfa": IDFA, "user_agent": None},
    ),
    "an idfa on tvOS": Case(
        data={"device_ver": "AppleTV11,1-tvOS-17.2", "device_ids": {"idfa": IDFA}},
        warnings={"data.device_ids.idfa": "TRACKING_NOT_AUTHORIZED"},
        stored={"device_ids.idfa": None, "user_agent": "Mozilla/5.0 (AppleTV11,1; tvOS 17.2)"},
    ),
    "an app's user agent, and the version": Case(
        data={"device_ua": "Shop/1.0", "device_ver": "iPhone14,2-iOS-16.4", "idfa": IDFA},
        warnings={"data.device_ids.idfa": "TRACKING_NOT_AUTHORIZED"},
        stored={"device_ids.idfa": None, "user_agent": "Shop/1.0"},
    ),
    "an idfa with permission": Case(
        data={"device_ver": "16.4.1", "device_ids": {"idfa": IDFA}, "app_tracking_transparency": {"att": True}},
        stored={"device_ids.idfa": IDFA},
    ),
    "a user agent with plus signs": Case(
        data={"device_ua": "Mozilla%2F5.0+%28Linux%3B+Android+14%3B+Pixel+8%29"}, stored={"user_agent": PIXEL}
    ),
    "plus signs alone": Case(data={"device_ua": PIXEL.replace(" ", "+")}, stored={"user_agent": PIXEL}),
    "a plus sign that is one": Case(data={"device_ua": "Shop/1.0+3"}, stored={"user_agent": "Shop/1.0+3"}),
    "no flag": in_data("device_limit_tracking", "perhaps", "INVALID_BOOLEAN", limit_ad_tracking=None),
    "no time": in_data("usertime", "yesterday", "INVALID_TIME"),
    "a long version": Case(
        data={"app_version": "1" * 5_000}, warnings={"data.app_version": "TOO_LONG"},
        stored={"app_version": "1" * 4_096},
    ),
    # Sessions, installs, deep links, persons
    "resume": Case(action="session", data={"state": "resume"}, stored={"session.state": "STATE_START"}),
    "pause": Case(action="session", data={"state": "Pause"}, stored={"session.state": "STATE_STOP"}),
    "no such state": Case(
        action="session", data={"state": "asleep"}, warnings={"data.state": "INVALID_VALUE"},
        stored={"session": {}},
    ),
    "no state": Case(action="session", warnings={"data.state": "REQUIRED"}, stored={"session": {}}),
    "a number for a referrer": Case(
        action="install", data={"install_referrer": 7}, warnings={"data.install_referrer": "INVALID_TYPE"},
        stored={"install": {}},
    ),
    "a deep link without a link": Case(
        data={"event_name": "_Deeplink"}, warnings={"data.event_data.uri": "REQUIRED"}, stored={"deep_link_open": {}}
    ),
    "bookkeeping of an SDK": Case(
        action="identityLink",
        data={"email": "a@b.example", "uptime": 12.5, "starttime": 1_764_000_000, "updelta": 3, "idfv": "V"},
        stored={"identity_link.identities": {"email": "a@b.example"}, "device_ids.idfv": "V"},
    ),
    "names of their own": Case(
        action="identityLink", data={"identity_link": {"customer": 7}, "usertime": "", "volume": 1, "anything": "x"},
        stored={"identity_link.identities": {"customer": "7"}},
    ),
    "a nested name": Case(
        action="identityLink", data={"email": "a@b.example", "tags": ["x"]}, warnings={"data.tags": "NOT_FLAT"},
        stored={"identity_link.identities": {"email": "a@b.example", "tags": '["x"]'}},
    ),
    "a long record id": Case(
        root={"record_id": "r" * 300}, warnings={"record_id": "TOO_LONG"}, stored={"event.event_name": "Buy"}
    ),
}  # fmt: skip


def part(record: dict[str, Any], path: str) -> Any:
    found: Any = record
    for name in path.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    return found


def warned(answer: dict[str, Any]) -> dict[str, str]:
    return {warning["field"]: warning["code"] for warning in answer.get("warnings", [])}


async def stored(world: World, device: str) -> dict[str, Any]:
    [record] = await world.log_of(device)
    return json_format.MessageToDict(record, preserving_proto_field_name=True)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
async def test_a_record_is_kept(world: World, case: Case) -> None:
    device = world.new_id()
    response = await world.track(case.body(device), headers=case.headers)
    assert (response.status, response.json["success"]) == (200, 1), response.json
    assert (warned(response.json), set(response.json)) == (
        case.warnings,
        {"success", "warnings"} if case.warnings else {"success"},
    )
    assert all(warning["message"] for warning in response.json.get("warnings", []))
    record = await stored(world, device)
    assert {path: part(record, path) for path in case.stored} == case.stored
    assert len(record.get("warnings", [])) >= len(case.warnings)


async def test_all_of_them_in_arrays(world: World) -> None:
    devices = {name: world.new_id() for name in CASES if not CASES[name].headers}
    cases = {name: CASES[name] for name in devices if name != "a value that is longer than a record may be"}
    answered = (await world.track([case.body(devices[name]) for name, case in cases.items()])).json
    assert answered["success"] == 1
    assert {name: warned(result) for name, result in zip(cases, answered["results"], strict=True)} == {
        name: case.warnings for name, case in cases.items()
    }


NOTHING_LEFT = {
    "unknown app": (Case(root={"kochava_app_id": "nobody"}), {"kochava_app_id": "UNKNOWN_APP"}),
    "no action": (Case(left_out=("action",)), {"action": "REQUIRED"}),
    "unknown action": (Case(action="dance"), {"action": "UNKNOWN_ACTION"}),
    "no event name": (Case(left_out=("event_name",)), {"data.event_name": "REQUIRED"}),
    "neither an id nor an address": (
        Case(left_out=("kochava_device_id", "origination_ip")),
        {"data.device_ids": "REQUIRED"},
    ),
    "a time that is past": (Case(data={"usertime": 1}), {"data.usertime": "EVENT_TIME_TOO_OLD"}),
    "a time before all": (Case(data={"usertime": -5}), {"data.usertime": "EVENT_TIME_TOO_OLD"}),
    "a time to come": (Case(data={"usertime": 99_999_999_999}), {"data.usertime": "EVENT_TIME_IN_FUTURE"}),
    "no time at all": (Case(data={"usertime": 10**30}), {"data.usertime": "INVALID_TIME"}),
    "no names of a person": (Case(action="identityLink", data={"uptime": 1}), {"data": "REQUIRED"}),
    "and all else that is wrong": (
        Case(action="dance", data={"event_data": "x", "usertime": "x", "origination_ip": "x"}),
        {
            "action": "UNKNOWN_ACTION",
            "data.usertime": "INVALID_TIME",
            "data.origination_ip": "INVALID_IP_ADDRESS",
        },
    ),
}


@pytest.mark.parametrize(("case", "wrong"), NOTHING_LEFT.values(), ids=NOTHING_LEFT.keys())
async def test_what_leaves_nothing_to_work_with_is_refused(world: World, case: Case, wrong: dict[str, str]) -> None:
    device = world.new_id()
    response = await world.track(case.body(device))
    assert response.status in (400, 404)
    assert {each["field"]: each["reason"] for each in response.json["error"]["fields"]} == wrong
    assert await world.log_of(device) == []


async def test_an_address_alone_is_kept(world: World) -> None:
    ip_address = "203.0.113.201"
    body = Case(data={"origination_ip": ip_address, "device_ua": IOS_17, "device_ids": {"idfa": IDFA}}).body("")
    assert warned((await world.track(body)).json) == {
        "data.device_ids": "NO_DEVICE_ID",
        "data.device_ids.idfa": "TRACKING_NOT_AUTHORIZED",
    }
    [record] = [record for record in await world.log() if record.ip_address == ip_address]
    assert not record.device_ids


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("123456789012345678901234", "123456789012345678901234"),
        ("1.10", "1.10"),
        ("1e5", "1e5"),
        ("0.1000000000000000055511151231257827", "0.1000000000000000055511151231257827"),
        ("-0.0", "-0.0"),
        ("9" * 100, "9" * 100),
        ('[1.10,{"a":2.50}]', '[1.10,{"a":2.50}]'),
        ("true", "true"),
    ],
    ids=["24 digits", "a zero at the end", "exponent", "many decimals", "minus zero", "100 digits", "nested", "true"],
)
@pytest.mark.parametrize("is_odd", [False, True], ids=["plain", "beside what is no JSON"])
async def test_numbers_keep_their_digits(world: World, written: str, kept: str, *, is_odd: bool) -> None:
    device = world.new_id()
    body = json.dumps(Case(data={"event_data": {"order_id": "?", "odd": "?"}}).body(device))
    body = body.replace('"order_id": "?"', f'"order_id": {written}').replace('"?"', "NaN" if is_odd else "1")
    answer = (await world.track(body.encode())).json
    assert ("data.event_data.odd" in warned(answer)) is is_odd
    assert (await stored(world, device))["event"]["event_data"]["order_id"] == kept


ODD = {
    "NaN": (b"NaN", "data.event_data.odd", "INVALID_NUMBER", None),
    "infinity": (b"-Infinity", "data.event_data.odd", "INVALID_NUMBER", None),
    "lone surrogate": (rb'"a\ud800b"', "data.event_data.odd", "INVALID_TEXT", "a\ufffdb"),
    "latin-1": ("café".encode("latin-1").join((b'"', b'"')), "data.event_data.odd", "INVALID_TEXT", "caf\ufffd"),
    "cut UTF-8": (b'"\xe2\x82"', "data.event_data.odd", "INVALID_TEXT", "\ufffd\ufffd"),
    "NUL": (rb'"a\u0000b"', "data.event_data.odd", "INVALID_TEXT", "a\ufffdb"),
}


@pytest.mark.parametrize(("written", "path", "code", "kept"), ODD.values(), ids=ODD.keys())
@pytest.mark.parametrize("in_array", [False, True], ids=["alone", "in an array"])
async def test_what_is_no_json_costs_itself(
    world: World, written: bytes, path: str, code: str, kept: str | None, *, in_array: bool
) -> None:
    odd, before, after = (world.new_id() for _ in range(3))
    body = json.dumps(Case(data={"event_data": {"odd": "?", "sum": 5}}).body(odd)).encode().replace(b'"?"', written)
    if in_array:
        good = [json.dumps(Case().body(device)).encode() for device in (before, after)]
        answer = (await world.track(b"[%b,%b,%b]" % (good[0], body, good[1]))).json
        assert [result.get("warnings", []) == [] for result in answer["results"]] == [True, False, True]
        assert (answer["success"], len(await world.log_of(before)), len(await world.log_of(after))) == (1, 1, 1)
        answer = answer["results"][1]
    else:
        answer = (await world.track(body)).json
    assert (answer["success"], warned(answer)) == (1, {path: code})
    event = (await stored(world, odd))["event"]
    assert (event["event_data"].get("odd"), event["revenue"]["amount_micros"]) == (kept, "5000000")


async def test_an_id_that_cannot_be_read_is_nobodys(world: World) -> None:
    """Else two that differ in what cannot be read would be one."""
    device = world.new_id()
    body = json.dumps(Case(data={"device_ids": {"adid": "?"}}).body(device)).encode().replace(b'"?"', b'"a\xff"')
    assert warned((await world.track(body)).json) == {"data.device_ids.adid": "INVALID_TEXT"}
    assert (await stored(world, device))["device_ids"] == {"kochava_device_id": device}


def raw_deflate(body: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return stream.compress(body) + stream.flush()


def two_members(body: bytes) -> bytes:
    return gzip.compress(body[:10]) + gzip.compress(body[10:])


PACKED: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "x-gzip": ("x-gzip", gzip.compress),
    "GZIP": ("GZIP", gzip.compress),
    "gzip in two members": ("gzip", two_members),
    "deflate": ("deflate", zlib.compress),
    "raw deflate": ("deflate", raw_deflate),
    "br": ("br", brotli.compress),
    "zstd": ("zstd", zstd.compress),
    "zstd in two frames": ("zstd", lambda body: zstd.compress(body[:10]) + zstd.compress(body[10:])),
}


@pytest.mark.parametrize(("encoding", "pack"), PACKED.values(), ids=PACKED.keys())
async def test_a_packed_body(world: World, encoding: str, pack: Any) -> None:
    device = world.new_id()
    body = json.dumps(Case(data={"event_data": {"note": "é" * 900}}).body(device)).encode()
    response = await world.track(pack(b"\xef\xbb\xbf" + body), headers={"Content-Encoding": encoding})
    assert (response.status, response.json) == (200, {"success": 1})
    assert (await stored(world, device))["event"]["event_data"]["note"] == "é" * 900


@pytest.mark.parametrize(
    "size", [2 * 1024 * 1024 - 1, 2 * 1024 * 1024, 300 * 1024 * 1024], ids=["fits", "2 MB", "bomb"]
)
@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd"])
async def test_what_a_packed_body_may_unpack_to(world: World, encoding: str, size: int) -> None:
    _, pack = PACKED[encoding]
    response = await world.track(pack(b" " * size), headers={"Content-Encoding": encoding})
    code = "INVALID_JSON" if size < 2 * 1024 * 1024 else "BODY_TOO_LARGE"
    assert (response.status, response.json["error"]["code"]) == (400 if code == "INVALID_JSON" else 413, code)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd"])
@pytest.mark.parametrize("wrong", ["plain", "cut", "empty"])
async def test_a_body_that_is_not_packed_as_it_says(world: World, encoding: str, wrong: str) -> None:
    _, pack = PACKED[encoding]
    body = json.dumps(Case().body(world.new_id())).encode()
    sent = {"plain": body, "cut": pack(body)[:-9], "empty": b""}[wrong]
    response = await world.track(sent, headers={"Content-Encoding": encoding})
    code = "INVALID_JSON" if wrong == "empty" and encoding != "br" else "INVALID_ENCODING"
    assert (response.status, response.json["error"]["code"]) == (400, code)


@pytest.mark.parametrize("encoding", ["compress", "gzip, br", "rot13"])
async def test_an_encoding_that_nobody_knows(world: World, encoding: str) -> None:
    response = await world.track(gzip.compress(b"{}"), headers={"Content-Encoding": encoding})
    assert (response.status, response.json["error"]["code"]) == (415, "UNSUPPORTED_ENCODING")
    assert encoding in response.json["error"]["message"]


async def test_a_byte_order_mark(world: World) -> None:
    device = world.new_id()
    response = await world.track(b"\xef\xbb\xbf" + json.dumps(Case().body(device)).encode())
    assert (response.status, response.json) == (200, {"success": 1})


REPEATS = {
    "the same": {},
    "another address": {"origination_ip": "198.51.100.77"},
    "no address": {"origination_ip": ""},
    "another user agent and version": {"device_ua": "Other/2", "app_version": "2"},
    "letter case of an id": {"device_ids": {"adid": "ABCDEF"}},
    "9.990": {"event_data": {"sum": "9.990", "sku": "A"}},
    "a number for a text": {"event_data": {"sku": "A", "sum": 9.99}},
}


@pytest.mark.parametrize("changed", REPEATS.values(), ids=REPEATS.keys())
@pytest.mark.parametrize("has_time", [False, True], ids=["without a time", "with a time"])
async def test_a_retry_is_one_record(world: World, changed: dict[str, Any], *, has_time: bool) -> None:
    device = world.new_id()
    time_ms = {"usertime": _now_ms()} if has_time else {}
    first = {"device_ids": {"adid": "abcdef"}, "event_data": {"sum": "9.99", "sku": "A"}, **time_ms}
    answers = [(await world.track(Case(data=data).body(device))).json for data in (first, {**first, **changed})]
    assert answers == [{"success": 1}, {"success": 1, "repeated": 1}]
    assert len(await world.log_of(device)) == 1


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


OTHERS = {
    "event name": {"event_name": "Sell"},
    "data": {"event_data": {"sum": "9.98"}},
    "time": {"usertime": True},
    "id": {"device_ids": {"adid": "other"}},
}


@pytest.mark.parametrize("changed", OTHERS.values(), ids=OTHERS.keys())
async def test_another_record_is_another(world: World, changed: dict[str, Any]) -> None:
    device = world.new_id()
    if "usertime" in changed:
        changed = {"usertime": _now_ms() - 60_000}
    for data in ({"event_data": {"sum": "9.99"}}, {"event_data": {"sum": "9.99"}, **changed}):
        assert (await world.track(Case(data=data).body(device))).json == {"success": 1}
    assert len(await world.log_of(device)) == 2


async def test_a_record_id_is_not_used_twice(world: World) -> None:
    device = world.new_id()
    bought = Case(root={"record_id": f"r-{device}"})
    sold = Case(root={"record_id": f"r-{device}"}, data={"event_name": "Sell"})
    responses = [await world.track(case.body(device)) for case in (bought, sold, bought)]
    assert [response.status for response in responses] == [200, 400, 200]
    assert [(each["field"], each["reason"]) for each in responses[1].json["error"]["fields"]] == [
        ("record_id", "RECORD_ID_REUSED")
    ]
    assert responses[2].json == {"success": 1, "repeated": 1}
    answer = (await world.track([bought.body(device), sold.body(device)])).json
    assert [result["success"] for result in answer["results"]] == [1, 0]


async def test_a_repeat_says_its_warnings_too(world: World) -> None:
    device = world.new_id()
    case = in_data("origination_ip", "x", "INVALID_IP_ADDRESS")
    answers = [(await world.track(case.body(device))).json for _ in range(2)]
    assert [warned(answer) for answer in answers] == [case.warnings] * 2
    assert [answer.get("repeated") for answer in answers] == [None, 1]
