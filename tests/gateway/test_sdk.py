"""The questions of published SDKs beside their records, and exactly what they are answered (docs/sdks.md)."""

import json
from typing import Any

import pytest

from tests.gateway.conftest import World

pytestmark = pytest.mark.asyncio(loop_scope="session")

SDK = {"sdk_version": "WebTracker 3.0.4", "sdk_protocol": "17", "nt_id": "1-1-abc"}
UNITY = {"sdk_version": "Unity3D-20150514", "sdk_protocol": "3"}
LITE = {"sdk_version": "3.1.0", "kochava_device_id": "KU0123456789abcdef"}
"""The platform-independent part of the SDK for Unity makes its device id so."""
URLS = {
    name: f"https://track.example/track/{path}"
    for path, names in {
        "kvinit": ["init"],
        "kvquery": ["get_attribution"],
        "json": [
            "install", "event", "identityLink", "identity_link", "update", "session", "session_begin", "session_end",
            "push_token_add", "push_token_remove", "smartlink",
        ],
    }.items()
    for name in names
}  # fmt: skip


def asked(action: str, app_id: str = "pages", root: dict[str, Any] | None = None, **data: Any) -> dict[str, Any]:
    given = {"origination_ip": "203.0.113.7", **data}
    return {
        "action": action,
        "kochava_app_id": app_id,
        "kochava_device_id": "KW1",
        "data": given,
        **SDK,
        **(root or {}),
    }


def start(*, push: bool, success: Any = 1) -> dict[str, Any]:
    return {
        "success": success,
        "action": "init",
        "flags": {"push": push, "send_updates": True},
        "install": {"updates_enabled": True},
        "networking": {"urls": URLS},
    }


def opened(destination: str) -> dict[str, Any]:
    return {"success": 1, "action": "smartlink", "deeplink": {"destination": destination, "raw": {}}}


def not_kept() -> dict[str, Any]:
    message = "left out: the app's keep_push_tokens is off"
    return {"success": 1, "warnings": [{"field": "data.token", "code": "PUSH_TOKENS_NOT_KEPT", "message": message}]}


@pytest.mark.parametrize(
    ("path", "body", "status", "wanted"),
    [
        pytest.param("/track/kvinit", asked("init"), 200, start(push=True), id="init"),
        pytest.param("/track/kvinit", asked("init", "shop"), 200, start(push=False), id="init without push tokens"),
        pytest.param("/track/kvinit", asked(""), 200, start(push=True), id="init by its path"),
        pytest.param("/track/json", asked("init"), 200, start(push=True), id="init by its action"),
        pytest.param("/track/json", [asked("init")], 200, {"success": 1, "results": [start(push=True)]},
                     id="init in an array"),
        pytest.param("/track/kvinit", asked("init", root=UNITY), 200, start(push=True, success="1"), id="init, Unity"),
        pytest.param("/track/kvinit", asked("init", root=LITE), 200, start(push=True, success="1"), id="Unity Net"),
        pytest.param("/track/json", asked("event", root=LITE, event_name="A"), 200, {"success": "1"}, id="event, Net"),
        pytest.param("/track/json", asked("event", event_name="A"), 200, {"success": 1}, id="event"),
        pytest.param("/track/kvTracker?v4", [asked("event", event_name="A")], 200,
                     {"success": 1, "results": [{"success": 1}]}, id="events of an old SDK"),
        pytest.param("/track/json", asked("initial"), 200, {"success": 1}, id="initial"),
        pytest.param("/track/json", asked("smartlink", path="https://s.example/x"), 200, opened("https://s.example/x"),
                     id="smartlink"),
        pytest.param("/v1/links-sdk", asked("smartlink"), 200, opened(""), id="smartlink without a link"),
        pytest.param("/token/add", asked("push_token_add", token="T"), 200, {"success": 1}, id="push token"),
        pytest.param("/token/remove", asked("push_token_remove", token="T"), 200, {"success": 1}, id="push token gone"),
        pytest.param("/track/json", asked("push_token_add", "shop", token="T"), 200, not_kept(), id="no push tokens"),
        pytest.param("/track/json", [asked("push_token_remove", "shop", token="T"), asked("initial", "shop")], 200,
                     {"success": 1, "results": [not_kept(), {"success": 1}]}, id="no push tokens in an array"),
    ],
)  # fmt: skip
async def test_answers(world: World, path: str, body: Any, status: int, wanted: Any) -> None:
    def renewed(value: Any) -> Any:
        is_lite = value["kochava_device_id"].startswith("KU")
        return {**value, "kochava_device_id": ("KU" if is_lite else "") + world.new_id()}

    body = [renewed(each) for each in body] if isinstance(body, list) else renewed(body)
    response = await world.ask("POST", path, json=body)
    assert (response.status, response.json) == (status, wanted)


@pytest.mark.parametrize("path", ["/track/kvinit", "/track/json", "/v1/links-sdk"])
@pytest.mark.parametrize("action", ["init", "smartlink", "push_token_add"])
@pytest.mark.parametrize("app_id", ["nobody", "gone"])
async def test_of_no_app_nothing_is_told(world: World, path: str, action: str, app_id: str) -> None:
    response = await world.ask("POST", path, json=asked(action, app_id))
    assert response.status in (400, 404)
    assert response.json["success"] == 0


async def test_a_question_of_an_sdk(world: World) -> None:
    body = asked("get_attribution")
    assert (await world.ask("POST", "/track/kvquery", json=body)).status == 503, "attribution is away"
    assert (await world.ask("POST", "/track/kvquery", json=[body])).status == 400


async def test_push_tokens_are_identities(world: World) -> None:
    device = world.new_id()
    for action in ("push_token_add", "push_token_remove"):
        body = {**asked(action, token="T1"), "kochava_device_id": device}
        assert (await world.track(body)).json == {"success": 1}
    kept = [dict(record.identity_link.identities) for record in await world.log_of(device)]
    assert kept == [{"push_token": "T1"}, {"push_token": ""}]


async def test_a_push_token_that_is_missing(world: World) -> None:
    response = await world.track({**asked("push_token_add"), "kochava_device_id": world.new_id()})
    assert response.status == 400


@pytest.mark.parametrize("is_array", [False, True], ids=["alone", "in an array"])
@pytest.mark.parametrize("as_text", [False, True], ids=["object", "data as text"])
@pytest.mark.parametrize("action", ["install", "initial"])
async def test_identities_in_an_install_come_after_it(
    world: World, action: str, *, as_text: bool, is_array: bool
) -> None:
    device = world.new_id()
    body = {**asked(action, identity_link={"user": "u1"}, record_id=device), "kochava_device_id": device}
    if as_text:
        body["data"] = json.dumps(body["data"])
    other = {**asked("event", event_name="A"), "kochava_device_id": device}
    response = await world.track([body, other] if is_array else body)
    assert [each["success"] for each in response.json.get("results", [response.json])] == [1] * (1 + is_array)
    log = [record for record in await world.log_of(device) if record.WhichOneof("kind") != "event"]
    assert [record.WhichOneof("kind") for record in log] == ["install", "identity_link"]
    assert dict(log[1].identity_link.identities) == {"user": "u1"}
