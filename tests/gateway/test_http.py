"""The HTTP that senders, SDKs and browsers see, with a real tracker and a real ingest behind."""

import asyncio
import hashlib
import hmac
import json
import re
import signal
import time
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from libs.channels import open_channel
from reengage.ingest.v1 import record_pb2, rejected_record_pb2
from reengage.ingest.v1.service_pb2_grpc import IngestServiceStub
from tests.gateway.conftest import ANDROID, KEY, World
from tests.support.eventually import eventually
from tests.support.processes import running

pytestmark = pytest.mark.asyncio(loop_scope="session")


def event(device_id: str, /, **data: Any) -> dict[str, Any]:
    return {
        "action": "event",
        "kochava_app_id": "shop",
        "kochava_device_id": device_id,
        "data": {"event_name": "Buy", "origination_ip": "203.0.113.7", **data},
    }


async def test_a_record_is_in_the_log_once_it_has_a_response(world: World) -> None:
    device = world.new_id()
    response = await world.track(event(device, event_data={"sum": 5}))
    assert (response.status, response.json) == (200, {"success": 1})
    [record] = await world.log_of(device)
    assert (record.event.event_name, record.event.revenue.amount_micros) == ("Buy", 5_000_000)


@pytest.mark.parametrize("same", [{"record_id": "r-1"}, {"usertime": int(time.time())}], ids=["record id", "digest"])
async def test_a_repeat_succeeds_and_changes_nothing(world: World, same: dict[str, Any]) -> None:
    device = world.new_id()
    answers = [(await world.track(event(device, **same))).json for _ in range(3)]
    assert answers == [{"success": 1}, {"success": 1, "repeated": 1}, {"success": 1, "repeated": 1}]
    assert len(await world.log_of(device)) == 1


async def test_all_actions(world: World) -> None:
    device = world.new_id()
    whole = {"kochava_app_id": "shop", "kochava_device_id": device, "data": {"origination_ip": "2001:db8::1"}}
    for action in ({"action": "install"}, {"action": "session", "state": "start"}, {"action": "update"}):
        assert (await world.track({**whole, **action})).status == 200
    linked = {"kochava_app_id": "shop", "device_id": {"idfv": device}, "data": {"email": "a@b.example"}}
    response = await world.ask("POST", "/v1/cpi/identityLink.php", data=json.dumps(linked))
    assert (response.status, response.json) == (200, {"success": 1})
    kinds = [record.WhichOneof("kind") for record in await world.log_of(device)]
    assert sorted(kinds, key=str) == ["event", "identity_link", "install", "session"]


async def test_every_wrong_field_is_named_where_it_was_written(world: World) -> None:
    response = await world.track(
        {
            "action": "event",
            "kochava_app_id": "shop",
            "origination_ip": "here",
            "data": {"event_data": {"network": "x"}},
        }
    )
    assert (response.status, response.json["success"]) == (400, 0)
    assert {field["field"]: field["reason"] for field in response.json["error"]["fields"]} == {
        "data.device_ids": "REQUIRED",
        "origination_ip": "INVALID_IP_ADDRESS",
        "data.event_name": "REQUIRED",
        "data.event_data.network": "RESERVED_NAME",
    }


@pytest.mark.parametrize(
    ("lead_s", "reason"),
    [(90_000, "EVENT_TIME_IN_FUTURE"), (-32 * 86_400, "EVENT_TIME_TOO_OLD")],
    ids=["ahead", "behind"],
)
async def test_clocks(world: World, lead_s: int, reason: str) -> None:
    usertime = int(time.time()) + lead_s
    response = await world.track(event(world.new_id(), usertime=usertime))
    assert response.status == 400
    assert [(f["field"], f["reason"]) for f in response.json["error"]["fields"]] == [("data.usertime", reason)]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "INVALID_JSON"),
        (b"{", 400, "INVALID_JSON"),
        (b"7", 400, "INVALID_JSON"),
        (b'"x"', 400, "INVALID_JSON"),
        (b'{"action":"\xff"}', 400, "INVALID_ARGUMENT"),
        (b'{"action":"\\ud800"}', 400, "INVALID_ARGUMENT"),
        (b'{"action":"\xff"', 400, "INVALID_JSON"),
        (b"[" * 100_000, 400, "INVALID_JSON"),
        (b'{"a":' * 20 + b"1" + b"}" * 20, 400, "INVALID_JSON"),
        (b'{"action":"event","data":{"event_name":"a\\u0000"}}', 400, "INVALID_ARGUMENT"),
        (b"{}", 400, "INVALID_ARGUMENT"),
        (json.dumps([{}] * 1_001).encode(), 400, "BATCH_TOO_LARGE"),
        (b" " * (2 * 1024 * 1024), 413, "BODY_TOO_LARGE"),
    ],
    ids=[
        "empty",
        "cut",
        "number",
        "text",
        "no utf-8",
        "surrogate",
        "no utf-8, cut",
        "very deep",
        "deep",
        "nul",
        "{}",
        "1,001",
        "2 MB",
    ],
)
async def test_bad_bodies(world: World, body: bytes, status: int, code: str) -> None:
    response = await world.track(body)
    assert (response.status, response.json["success"], response.json["error"]["code"]) == (status, 0, code)


async def test_a_body_that_says_it_is_not_compressed(world: World) -> None:
    body = event(world.new_id())
    assert (await world.track(body, headers={"Content-Encoding": "identity"})).status == 200


async def test_a_chunked_body_is_bounded_too(world: World) -> None:
    async def chunks() -> Any:
        for _ in range(64):
            yield b" " * 65_536

    response = await world.ask("POST", "/track/json", data=chunks())
    assert (response.status, response.json["error"]["code"]) == (413, "BODY_TOO_LARGE")


UNKNOWN = {"field": "kochava_app_id", "reason": "UNKNOWN_APP", "description": "no live app has this id"}
unknown_apps = pytest.mark.parametrize("app_id", ["nobody", "gone", "x" * 250], ids=["unknown", "archived", "long"])


@unknown_apps
@pytest.mark.parametrize("asks", [False, True], ids=["sent to", "asked about"])
async def test_an_unknown_app(world: World, app_id: str, *, asks: bool) -> None:
    if asks:
        path = f"/v1/cpi/get_attribution?kochava_app_id={app_id}&kochava_device_id=d"
        response = await world.ask("GET", path)
    else:
        response = await world.track({**event(world.new_id()), "kochava_app_id": app_id})
    assert (response.status, response.json["error"]) == (
        404,
        {"code": "UNKNOWN_APP", "message": "kochava_app_id: no live app has this id", "fields": [UNKNOWN]},
    )


@unknown_apps
@pytest.mark.parametrize("more", [{"event_name": ""}, {"app_ver": []}], ids=["ingest finds it", "the gateway does"])
async def test_an_unknown_app_and_something_else(world: World, app_id: str, more: dict[str, str]) -> None:
    body = {**event(world.new_id()), "kochava_app_id": app_id}
    response = await world.track({**body, "data": body["data"] | more})
    assert (response.status, response.json["error"]["code"]) == (400, "INVALID_ARGUMENT")
    assert UNKNOWN in response.json["error"]["fields"]
    assert len(response.json["error"]["fields"]) == 2


@pytest.mark.parametrize("is_alone", [True, False], ids=["alone", "in an array"])
async def test_a_nul_hides_nothing(world: World, *, is_alone: bool) -> None:
    device = world.new_id()
    bad = {"action": "event", "kochava_app_id": "gone", "data": {"event_name": "a\0", "usertime": "x", "other": "\0"}}
    wanted = {
        "data.event_name": "INVALID_TEXT",
        "data.other": "INVALID_TEXT",
        "data.usertime": "INVALID_TIME",
        "kochava_app_id": "UNKNOWN_APP",
        "data.device_ids": "REQUIRED",
    }
    if is_alone:
        result = (await world.track(bad)).json
    else:
        good, result = (await world.track([event(device), bad])).json["results"]
        assert good == {"success": 1}
    assert {field["field"]: field["reason"] for field in result["error"]["fields"]} == wanted


async def test_an_array_gets_a_result_per_element(world: World) -> None:
    device = world.new_id()
    body = [
        event(device),
        7,
        {**event(device), "kochava_app_id": "nobody"},
        event(device, event_name=""),
        event(device, n=1, event_name="View"),
    ]
    response = await world.track(body)
    assert response.status == 200
    results = response.json["results"]
    codes = [result.get("error", {}).get("code") for result in results]
    assert codes == [None, "INVALID_RECORD", "UNKNOWN_APP", "INVALID_ARGUMENT", None]
    assert [result["success"] for result in results] == [1, 0, 0, 0, 1]
    assert response.json["success"] == 0
    whole = [event(device, event_name="Whole"), event(device, event_name="Whole")]
    assert (await world.track(whole)).json == {"success": 1, "results": [{"success": 1}, {"success": 1, "repeated": 1}]}
    assert (await world.track([])).json == {"success": 1, "results": []}


async def test_an_app_over_its_rate(world: World) -> None:
    device = world.new_id()
    limited = {**event(device), "kochava_app_id": "limited"}
    batch = [{**limited, "record_id": f"{device}-{number}"} for number in range(9)]
    responses = [await world.track(batch) for _ in range(2)]
    assert [response.status for response in responses] == [200, 429]
    assert responses[1].json["error"]["code"] == "RATE_LIMITED"
    assert int(responses[1].headers["retry-after"]) >= 1
    assert (await world.track(limited)).status == 429
    clicked = await world.ask("GET", f"/c/limited-1?adid={device}")
    assert (clicked.status, "x-engagement" in clicked.headers) == (302, False), "clicks are counted apart"
    assert (await world.track(event(device))).status == 200
    mixed = await world.track([limited, event(device, event_data={"n": 1}), limited])
    assert mixed.status == 200
    results = mixed.json["results"]
    assert [result.get("error", {}).get("code") for result in results] == ["RATE_LIMITED", None, "RATE_LIMITED"]
    assert results[0]["error"]["retry_after_s"] >= 1
    assert len(await world.log_of(device)) == 9 + 1 + 2


_FLOOD = 200
"""Requests at once for an app of 5 a second."""


async def test_a_flood_of_clicks_is_led_on_and_told_apart(world: World) -> None:
    """A click over the rate is never lost behind its redirect: that says so, it is counted, and some are listed."""
    device = world.new_id()
    before = await refused_records(world)
    paths = [f"/c/limited-1?adid={device}&click_id=c{n}" for n in range(_FLOOD)]
    clicks = await asyncio.gather(*(world.ask("GET", path) for path in paths))
    assert {(click.status, "location" in click.headers) for click in clicks} == {(302, True)}
    told = [click.headers.get("x-engagement") for click in clicks]
    refused = told.count("refused RATE_LIMITED")
    assert set(told) == {None, "refused RATE_LIMITED"}
    other = await world.ask("GET", f"/c/plain?adid={device}&click_id=other")
    assert (other.status, "x-engagement" in other.headers) == (302, False)
    stored = {record.click.click_id for record in await world.log_of(device)}
    assert stored == {"other", *(f"c{n}" for n, word in enumerate(told) if word is None)}
    after = await refused_records(world)
    key = "RATE_LIMITED", "429"
    assert after[key] - before.get(key, 0) == refused

    async def listed() -> list[str]:
        async with open_channel(world.backend.ingest.target) as channel:
            request = rejected_record_pb2.ListRejectedRequest(app_id="limited")
            response = await IngestServiceStub(channel).ListRejected(request)
        found = [one for one in response.rejected if device in one.record.device_ids.values()]
        assert {one.violations[0].reason for one in found} <= {"RATE_LIMITED"}
        return [one.record.click.click_id for one in found]

    await eventually(listed)
    assert not {*await listed()} & stored


@pytest.mark.parametrize(
    "path",
    [
        "/c/limited-1?adid={id}&click_id=p-{n}&ip_address=192.0.2.7",
        "/track/impression?campaign_id=limited-1&adid={id}&click_id=i-{n}",
    ],
    ids=["pings", "impressions"],
)
async def test_whoever_can_ask_again_is_told_to(world: World, path: str) -> None:
    device = world.new_id()
    paths = [path.format(id=device, n=n) for n in range(_FLOOD)]
    responses = await asyncio.gather(*(world.ask("GET", path) for path in paths))
    refused = [response for response in responses if response.status == 429]
    assert refused
    assert {response.json["error"]["code"] for response in refused} == {"RATE_LIMITED"}
    assert min(int(response.headers["retry-after"]) for response in refused) >= 1
    assert len(await world.log_of(device)) == len(responses) - len(refused)


async def test_many_at_once_each_get_a_response_of_their_own(world: World) -> None:
    device = world.new_id()
    bodies = [event(device, event_name="") if number % 10 == 0 else event(device, event_data={"n": number})
              for number in range(200)]  # fmt: skip
    responses = await asyncio.gather(*(world.track(body) for body in bodies))
    assert [response.status for response in responses] == [400 if number % 10 == 0 else 200 for number in range(200)]
    numbers = sorted(int(record.event.event_data["n"]) for record in await world.log_of(device))
    assert numbers == [number for number in range(200) if number % 10]


@pytest.mark.parametrize(
    "path",
    [
        "/c/plain?adid={id}&network_id=n&click_id=c-{id}&cp_0=x",
        "/v1/cpi/click?campaign_id=plain&adid={id}&network_id=n&click_id=c-{id}&cp_0=x",
        "/v1/cpi/click?campaign_id?campaign_id=plain&adid={id}&network_id=n&click_id=c-{id}&cp_0=x",
    ],
    ids=["short", "as older links say it", "malformed"],
)
async def test_a_click_is_redirected_and_in_the_log(world: World, path: str) -> None:
    device = world.new_id()
    response = await world.ask("GET", path.format(id=device), headers={"User-Agent": ANDROID})
    assert response.status == 302
    assert response.headers["cache-control"] == "no-store"
    place = urlsplit(response.headers["location"])
    [click_id] = parse_qs(place.query)["ko_click_id"]
    assert (place.netloc, len(click_id)) == ("play.google.com", 32)
    [record] = await world.log_of(device)
    assert (record.record_id, record.app_id, record.click.tracker_id) == (click_id, "shop", "plain")
    assert (record.click.click_id, record.user_agent, record.ip_address) == (f"c-{device}", ANDROID, "127.0.0.1")
    assert dict(record.click.ad.custom_parameters) == {"cp_0": "x"}
    assert abs(record.event_time.seconds - time.time()) < 30


async def test_click_ids_sort_by_time(world: World) -> None:
    places = [(await world.ask("GET", "/c/plain")).headers["location"] for _ in range(3)]
    milliseconds = [int(place.rpartition("ko_click_id=")[2][:12], 16) for place in places]
    assert milliseconds == sorted(milliseconds)
    assert abs(milliseconds[0] / 1000 - time.time()) < 30


async def test_the_deep_link_on_its_platform(world: World) -> None:
    phone = await world.ask("GET", "/c/deep?sku=a/1", headers={"User-Agent": ANDROID})
    assert phone.headers["location"].startswith("intent://p/a%2F1?ko_click_id=")
    assert "#Intent;scheme=shop;S.browser_fallback_url=https%3A%2F%2Fplay.google.com%2F" in phone.headers["location"]
    desktop = await world.ask("GET", "/c/deep?sku=a/1", headers={"User-Agent": "Firefox"})
    assert desktop.headers["location"].startswith("https://play.google.com/")
    pinged = await world.ask("GET", f"/c/deep?sku=1&ip_address=198.51.100.1&device_ua={ANDROID.replace(' ', '%20')}")
    assert pinged.headers["location"].startswith("intent://")


async def test_the_address_is_what_the_trusted_proxy_says(world: World) -> None:
    device = world.new_id()
    await world.ask("GET", f"/c/plain?adid={device}", headers={"X-Forwarded-For": "6.6.6.6, 198.51.100.9"})
    assert [record.ip_address for record in await world.log_of(device)] == ["198.51.100.9"]


@pytest.mark.parametrize("tracker_id", ["nothing", "", "a%2Fb", "%00", "x" * 5_000])
async def test_a_link_of_nobody(world: World, tracker_id: str) -> None:
    response = await world.ask("GET", f"/c/{tracker_id}")
    assert (response.status, response.headers["content-type"]) == (404, "text/plain; charset=utf-8")
    assert b"no tracker" in response.body


async def test_a_click_that_leads_nowhere_is_kept(world: World) -> None:
    device = world.new_id()
    response = await world.ask("GET", f"/c/nowhere?adid={device}")
    assert (response.status, response.headers["cache-control"]) == (404, "no-store")
    assert b"nowhere to lead to" in response.body
    assert [record.click.tracker_id for record in await world.log_of(device)] == ["nowhere"]


async def test_links_of_an_archived_app_lead_on(world: World) -> None:
    response = await world.ask("GET", "/c/gone-1")
    assert (response.status, response.headers["x-engagement"]) == (302, "refused UNKNOWN_APP")


async def test_a_click_on_an_archived_tracker_is_kept(world: World) -> None:
    device = world.new_id()
    response = await world.ask("GET", f"/c/old?adid={device}")
    assert (response.status, response.headers["content-type"]) == (404, "text/plain; charset=utf-8")
    assert [record.click.tracker_id for record in await world.log_of(device)] == ["old"]


async def test_a_link_checker_is_no_click(world: World) -> None:
    device = world.new_id()
    response = await world.ask("HEAD", f"/c/plain?adid={device}")
    assert (response.status, await world.log_of(device)) == (302, [])


@pytest.mark.parametrize("good", [True, False])
async def test_a_click_with_a_wrong_signature_is_kept_as_invalid(world: World, *, good: bool) -> None:
    device = world.new_id()
    signed = f"/c/checked?adid={device}&expires={int(time.time()) + 60}"
    signature = hmac.new(KEY.encode(), signed.encode(), hashlib.sha256).hexdigest()
    response = await world.ask("GET", f"{signed}&signature={signature if good else signature[::-1]}")
    assert response.status == 302
    [record] = await world.log_of(device)
    assert record.click.invalid is not good


async def test_browsers_are_asked_for_client_hints_which_are_in_the_log(world: World) -> None:
    """A5: beside their frozen user agents; a network's server that pings has none of a device."""
    device = world.new_id()
    hints = {
        "Sec-CH-UA-Model": '"Pixel 8"',
        "Sec-CH-UA-Platform": '"Android"',
        "Sec-CH-UA-Platform-Version": '"14.0.0"',
    }
    clicked = await world.ask("GET", f"/c/plain?adid={device}", headers=hints)
    assert clicked.headers["accept-ch"] == "Sec-CH-UA-Model, Sec-CH-UA-Platform-Version"
    assert "critical-ch" not in clicked.headers, "or the browser would click again"
    await world.ask("GET", f"/track/impression?campaign_id=plain&adid={device}", headers=hints)
    await world.ask("GET", f"/c/plain?adid={device}&ip_address=198.51.100.1", headers=hints)
    told = sorted((record.ip_address, record.client_hints.model) for record in await world.log_of(device))
    assert told == [("127.0.0.1", "Pixel 8"), ("127.0.0.1", "Pixel 8"), ("198.51.100.1", "")]


async def refused_engagements(world: World) -> float:
    """Returns how many clicks and impressions of this gateway ingest has refused."""
    found = re.search(r"^gateway_engagements_refused_total (\S+)$", await world.metrics(), re.MULTILINE)
    assert found is not None
    return float(found[1])


async def test_a_click_that_ingest_refuses_leads_on_and_is_listed(world: World) -> None:
    """No click is lost behind a redirect without a sign."""
    clicked, before = int(time.time()) - 3 * 3600, await refused_engagements(world)
    response = await world.ask("GET", f"/c/limited-1?adid={world.new_id()}&click_time={clicked}")
    assert (response.status, response.headers["x-engagement"]) == (302, "refused EVENT_TIME_TOO_OLD")
    [click_id] = parse_qs(urlsplit(response.headers["location"]).query)["ko_click_id"]
    assert await refused_engagements(world) == before + 1
    async with open_channel(world.backend.ingest.target) as channel:
        request = rejected_record_pb2.ListRejectedRequest(app_id="limited")

        async def is_listed() -> bool:
            listed = (await IngestServiceStub(channel).ListRejected(request)).rejected
            return click_id in [rejected.record.record_id for rejected in listed]

        await eventually(is_listed)


async def test_a_late_ping(world: World) -> None:
    device, clicked = world.new_id(), int(time.time()) - 3 * 3600
    await world.ask(
        "GET", f"/c/plain?adid={device}&ip_address=198.51.100.1&click_time={clicked}", headers={"User-Agent": ANDROID}
    )
    [record] = await world.log_of(device)
    assert (record.event_time.seconds, record.ip_address, record.user_agent) == (clicked, "198.51.100.1", ANDROID)
    assert record.click.is_ping


@pytest.mark.parametrize(
    ("reported", "is_ping"),
    [("", False), (f"&click_time={int(time.time())}", True), ("&ip_address=198.51.100.1&device_ua=Phone", True)],
    ids=["a person's browser", "with a time", "for a device"],
)
@pytest.mark.parametrize("path", ["/c/plain", "/v1/cpi/click", "/track/impression"])
async def test_the_log_says_what_is_a_servers_ping(world: World, path: str, reported: str, *, is_ping: bool) -> None:
    """D12."""
    device = world.new_id()
    response = await world.ask("GET", f"{path}?campaign_id=plain&adid={device}{reported}")
    assert response.status in (302, 204)
    [record] = await world.log_of(device)
    assert (record.click.is_ping or record.impression.is_ping) == is_ping


@pytest.mark.parametrize(
    ("headers", "visitor"),
    [
        ({"User-Agent": ANDROID}, record_pb2.VISITOR_UNSPECIFIED),
        ({"User-Agent": "WhatsApp/2.23.20.0 A"}, record_pb2.VISITOR_BOT),
        ({"User-Agent": ANDROID, "Sec-Purpose": "prefetch;prerender"}, record_pb2.VISITOR_PREFETCH),
        ({"User-Agent": ANDROID, "Purpose": "prefetch"}, record_pb2.VISITOR_PREFETCH),
        ({"User-Agent": ANDROID, "X-Purpose": "preview"}, record_pb2.VISITOR_PREFETCH),
        ({"User-Agent": ANDROID, "X-Moz": "Prefetch"}, record_pb2.VISITOR_PREFETCH),
        ({"User-Agent": ANDROID, "Purpose": "pleasure"}, record_pb2.VISITOR_UNSPECIFIED),
        ({"User-Agent": "WhatsApp/2.23.20.0 A", "Purpose": "prefetch"}, record_pb2.VISITOR_BOT),
    ],
    ids=["a person", "a bot", "Sec-Purpose", "Purpose", "X-Purpose", "X-Moz", "another purpose", "a bot's prefetch"],
)
async def test_what_no_person_asked_for_is_redirected_and_marked(
    world: World, headers: dict[str, str], visitor: int
) -> None:
    """A9."""
    device = world.new_id()
    clicked = await world.ask("GET", f"/c/plain?adid={device}", headers=headers)
    viewed = await world.ask("GET", f"/track/impression?campaign_id=plain&adid={device}", headers=headers)
    assert (clicked.status, viewed.status) == (302, 204)

    async def both() -> list[record_pb2.Record] | None:  # on a busy machine one may have gone over the spool
        found = await world.log_of(device)
        return sorted(found, key=lambda record: record.HasField("impression")) if len(found) == 2 else None

    found = await eventually(both)
    assert found is not None
    click, impression = found
    assert (click.click.visitor, impression.impression.visitor) == (visitor, visitor)
    assert (click.click.tracker_id, click.user_agent) == ("plain", headers["User-Agent"])


async def test_the_user_agent_of_a_server_that_pings_says_nothing_of_the_person(world: World) -> None:
    device = world.new_id()
    await world.ask("GET", f"/c/plain?adid={device}&ip_address=198.51.100.1", headers={"User-Agent": "Pingdom/1.4"})
    [record] = await world.log_of(device)
    assert (record.click.visitor, record.user_agent) == (record_pb2.VISITOR_UNSPECIFIED, "")


@pytest.mark.parametrize(
    ("accept", "status", "kind"), [("*/*", 204, None), ("image/avif,image/*;q=0.8", 200, "image/gif")]
)
async def test_an_impression(world: World, accept: str, status: int, kind: str | None) -> None:
    device = world.new_id()
    path = f"/track/impression?event=view&campaign_id=plain&adid={device}&impression_id=i-{device}"
    response = await world.ask("GET", path, headers={"Accept": accept})
    assert (response.status, response.headers.get("content-type")) == (status, kind)
    assert response.body[:6] == (b"GIF89a" if kind else b"")
    [record] = await world.log_of(device)
    assert (record.impression.tracker_id, record.impression.impression_id) == ("plain", f"i-{device}")
    assert (await world.ask("GET", "/track/impression?campaign_id=nothing")).status == 404


async def test_request_ids_come_back(world: World) -> None:
    assert (await world.ask("GET", "/", headers={"X-Request-Id": "mine-1"})).headers["x-request-id"] == "mine-1"
    made = [(await world.ask("GET", "/", headers={"X-Request-Id": "x" * 65})).headers["x-request-id"] for _ in "12"]
    assert made[0] != made[1]
    assert "x" not in made[0]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 200), ("GET", "/healthz", 200), ("GET", "/readyz", 200), ("GET", "/metrics", 404),
        ("GET", "/track/json", 405), ("POST", "/c/plain", 405), ("GET", "/nothing", 404),
        ("GET", "/c/plain?" + "a" * 20_000, 302),
        ("GET", "/v1/cpi/get_attribution?" + "a" * 20_000, 414),
    ],
)  # fmt: skip
async def test_the_rest(world: World, method: str, path: str, status: int) -> None:
    assert (await world.ask(method, path)).status == status


@pytest.mark.parametrize(
    ("url", "responses"),
    [
        ("/c/plain?q=é".encode(), {(400, "INVALID_HTTP")}),
        (b"/a b", {(400, "INVALID_HTTP")}),
        # Which of them depends on how it arrives.
        (b"/c/plain?q=" + b"x" * 66_000, {(414, "URL_TOO_LONG"), (431, "HEAD_TOO_LARGE")}),
    ],
    ids=["not ascii", "space", "overlong"],
)
async def test_a_url_that_cannot_be_read(world: World, url: bytes, responses: set[tuple[int, str]]) -> None:
    host, _, port = world.gateway.target.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET " + url + b" HTTP/1.1\r\nhost: x\r\n\r\n")
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    assert (int(head.split()[1]), json.loads(body)["error"]["code"]) in responses


async def test_a_head_without_end_is_cut_off(world: World) -> None:
    host, _, port = world.gateway.target.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\nx-a: ")
    try:
        for _ in range(64):
            writer.write(b"a" * 4_096)
            await writer.drain()
            await asyncio.sleep(0)
    except ConnectionError:
        pass
    try:
        response = await reader.read()
    except ConnectionError:
        response = b"HTTP/1.1 431 cut before it was read"
    assert response.startswith(b"HTTP/1.1 431 ")
    writer.close()


async def test_no_body_makes_it_fail(world: World) -> None:
    """Values of every kind in every place: each is refused or taken."""
    values: list[Any] = [None, True, 0, -1, 2**63, 1e308, "", "x", "\u2028", [], {}, [[]], {"a": {}}, ["x"], [{}]]
    keys = [
        *event("")["data"], "device_ids", "device_ua", "device_ver", "usertime", "event_data", "device_limit_tracking",
        "install_referrer", "app_tracking_transparency", "gdpr_privacy_consent", "data_controlled", "state",
        "record_id", "currency", "device_id", "device_hash_method", "identity_link", "app_version",
    ]  # fmt: skip
    device = world.new_id()
    actions = ("event", "install", "session", "update", "identityLink")
    bodies = [{**event(device), "action": action, key: value} for key in keys for value in values for action in actions]
    bodies += [event(device, **{key: value}) for key in keys for value in values]
    bodies += [{**event(device), key: value} for key in event("") for value in values]
    for start in range(0, len(bodies), 500):
        response = await world.track(bodies[start : start + 500])
        assert response.status == 200
        codes = {result["error"]["code"] for result in response.json["results"] if not result["success"]}
        assert codes <= {"INVALID_ARGUMENT", "UNKNOWN_APP"}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/healthz", 200), ("HEAD", "/readyz", 200), ("GET", "/metrics", 200), ("GET", "/", 404),
     ("GET", "/c/plain", 404), ("POST", "/metrics", 405)],
)  # fmt: skip
async def test_what_operators_can_ask(world: World, method: str, path: str, status: int) -> None:
    async with world.session.request(method, world.gateway.metrics_url + path) as response:
        assert response.status == status


async def test_operators_are_told_that_a_gateway_is_about_to_stop(world: World, tmp_path: Path) -> None:
    gateway = world.backend.gateway(tmp_path, drain_s="60")
    async with running(gateway):
        gateway.send(signal.SIGTERM)

        async def is_unready() -> bool:
            async with world.session.get(f"{gateway.metrics_url}/readyz") as response:
                return response.status == 503

        await eventually(is_unready)
        assert (await world.ask("GET", "/c/plain", at=gateway)).status == 302, "it takes clicks until it has drained"
        await gateway.stop(signal.SIGKILL)


async def test_metrics_count_responses(world: World) -> None:
    await world.ask("GET", "/c/plain")
    metrics = await world.metrics()
    assert 'http_responses_total{route="/c/",status="302"}' in metrics
    assert "gateway_spool_bytes 0.0" in metrics


async def refused_records(world: World) -> dict[tuple[str, str], float]:
    """Returns how many records were refused, by reason and status."""
    metrics = await world.metrics()
    found = re.findall(r'gateway_records_refused_total\{reason="(\w+)",status="(\d+)"\} (\S+)', metrics)
    return {(reason, status): float(count) for reason, status, count in found}


async def test_what_the_gateway_refuses_is_counted(world: World) -> None:
    device = world.new_id()
    before = await refused_records(world)
    limited = {**event(device), "kochava_app_id": "limited"}
    await world.track([event(device), event(device, device_limit_tracking="x"), 7])
    await world.track(event(device, event_name=""))  # ingest refuses it, and counts it
    await world.track(b"{")
    await world.track([7] * 1_001)
    await world.track({"action": "get_attribution", "kochava_app_id": "nobody", "kochava_device_id": device})
    while (await world.track([limited] * 50)).status == 200:
        pass
    after = await refused_records(world)
    counted = {key: count - before.get(key, 0) for key, count in after.items() if count != before.get(key, 0)}
    assert counted == {
        ("INVALID_RECORD", "400"): 1, ("INVALID_JSON", "400"): 1,
        ("BATCH_TOO_LARGE", "400"): 1_001, ("RATE_LIMITED", "429"): 50,
    }  # fmt: skip


async def test_records_reach_ingest_under_the_senders_names(world: World) -> None:
    device = world.new_id()
    await world.track(event(device, device_ids={"ADID": f"{device}-adid", "unknown": "x"}, app_ver="1.2"))
    [record] = await world.log_of(device)
    assert isinstance(record, record_pb2.Record)
    assert dict(record.device_ids) == {"kochava_device_id": device, "adid": f"{device}-adid"}
    assert record.app_version == "1.2"


@pytest.mark.parametrize("is_refused", [True, False], ids=["refused", "kept"])
async def test_ten_thousand_wrong_fields_are_told_in_part(world: World, *, is_refused: bool) -> None:
    data = {f"{number}\x1b": [number] for number in range(10_000)}
    body = event(world.new_id(), event_data=data, event_name="" if is_refused else "View")
    for response in (await world.track(body), await world.track([body, body])):
        for answer in response.json.get("results", [response.json]):
            told = answer["error"]["fields"] if is_refused else answer["warnings"]
            assert 32 <= len(told) <= 64
            assert {"MORE", "NOT_FLAT"} <= {each["reason" if is_refused else "code"] for each in told}
            assert all(text.isprintable() for each in told for text in each.values())
