"""Strict authentication: who may send for an app that asks for it."""

import hashlib
import hmac
import json
from typing import Any

import pytest

from services.gateway.authentication import token_of
from tests.gateway.conftest import AUTH_KEYS, World

pytestmark = pytest.mark.asyncio(loop_scope="session")

VECTOR = (
    rb'{"action":"event","kochava_app_id":"kodemo1","kochava_device_id":"KD1",'
    rb'"data":{"event_name":"Purchase","device_ua":"Mozilla\/5.0"}}'
)
VECTOR_TOKEN = "e8f3768adf67090c8bea5df9d48beeac88724e28178bb2a721c47f3f3545feb0"
OF_VECTOR = {"Kochava-Api-Key": "APIKEY123", "Kochava-Auth-Token": VECTOR_TOKEN}
REFUSED = {
    "success": 0,
    "error": {
        "code": "UNAUTHENTICATED",
        "message": "this app needs a Kochava-Api-Key and its Kochava-Auth-Token for this body",
        "fields": [],
    },
}


def body(device_id: str, app_id: str = "kodemo1") -> bytes:
    data = {"event_name": "Buy", "origination_ip": "203.0.113.7", "device_ids": {"adid": device_id}}
    return json.dumps({"action": "event", "kochava_app_id": app_id, "data": data}).encode()


def headers(api_key: str, signed: bytes) -> dict[str, str]:
    """Returns what a sender says of a body, as its rule says it."""
    message = AUTH_KEYS[api_key] + hashlib.sha1(signed).hexdigest()
    token = hmac.new(api_key.encode(), message.encode(), "sha256").hexdigest()
    return {"Kochava-Api-Key": api_key, "Kochava-Auth-Token": token}


async def test_the_vector() -> None:
    assert hashlib.sha1(VECTOR).hexdigest() == "ba4e1f0c5ec040df8fafdea28e43e794970413a8"
    assert token_of(b"APIKEY123", b"SECRET456", VECTOR) == VECTOR_TOKEN


@pytest.mark.parametrize("api_key", AUTH_KEYS)
async def test_each_key_is_valid(world: World, api_key: str) -> None:
    signed = body(world.new_id())
    response = await world.track(signed, headers=headers(api_key, signed))
    assert (response.status, response.json) == (200, {"success": 1})


async def test_what_is_wrong_with_the_record_is_told_to_who_holds_a_key(world: World) -> None:
    response = await world.track(VECTOR, headers=OF_VECTOR)
    assert response.status != 401


@pytest.mark.parametrize(
    "given",
    [
        pytest.param({}, id="nothing"),
        pytest.param({"Kochava-Api-Key": "APIKEY123"}, id="no token"),
        pytest.param({"Kochava-Auth-Token": VECTOR_TOKEN}, id="no key"),
        pytest.param({**OF_VECTOR, "Kochava-Api-Key": "NEXTKEY"}, id="another's key"),
        pytest.param({**OF_VECTOR, "Kochava-Api-Key": "NOBODY"}, id="an unknown key"),
        pytest.param({**OF_VECTOR, "Kochava-Auth-Token": "0" * 64}, id="a wrong token"),
        pytest.param({**OF_VECTOR, "Kochava-Auth-Token": VECTOR_TOKEN[:-1]}, id="a short token"),
        pytest.param({**OF_VECTOR, "Kochava-Auth-Token": ""}, id="an empty token"),
        pytest.param({**OF_VECTOR, "Kochava-Auth-Token": "é"}, id="no ASCII"),
    ],
)
@pytest.mark.parametrize("path", ["/track/json", "/track/json/", "/v1/cpi/identityLink.php", "/track/kvquery"])
async def test_nobody_learns_what_was_wrong(world: World, path: str, given: dict[str, str]) -> None:
    response = await world.ask("POST", path, data=VECTOR, headers=given)
    assert (response.status, response.json) == (401, REFUSED)
    assert response.headers["www-authenticate"] == "Kochava-Auth-Token"


async def test_a_token_is_that_of_one_body(world: World) -> None:
    response = await world.track(VECTOR + b" ", headers=OF_VECTOR)
    assert (response.status, response.json) == (401, REFUSED)


async def test_a_token_in_capitals(world: World) -> None:
    signed = body(world.new_id())
    given = {name: value.upper() for name, value in headers("APIKEY123", signed).items()}
    assert (await world.track(signed, headers=given)).status == 200


@pytest.mark.parametrize(
    ("at_root", "in_data"),
    [
        pytest.param("kodemo1", None, id="root"),
        pytest.param(None, "kodemo1", id="data"),
        pytest.param("shop", "kodemo1", id="data, another at the root"),
        pytest.param("kodemo1", "shop\0", id="root, none in data"),
    ],
)
@pytest.mark.parametrize("as_text", [False, True], ids=["object", "data as text"])
@pytest.mark.parametrize("is_array", [False, True], ids=["alone", "in an array"])
async def test_wherever_the_app_is_named(
    world: World, at_root: str | None, in_data: str | None, *, as_text: bool, is_array: bool
) -> None:
    device = world.new_id()
    value: dict[str, Any] = json.loads(body(device))
    data = {**value["data"], "kochava_app_id": in_data}
    value |= {"kochava_app_id": at_root, "data": json.dumps(data) if as_text else data}
    response = await world.track([value] if is_array else value)
    assert response.status == (200 if is_array else 401)
    assert response.json == ({"success": 0, "results": [REFUSED]} if is_array else REFUSED)


async def test_a_question_needs_a_key_too(world: World) -> None:
    path = "/v1/cpi/get_attribution?kochava_app_id=kodemo1&kochava_device_id=x"
    assert (await world.ask("GET", path)).json == REFUSED
    assert (await world.ask("GET", path, headers=headers("APIKEY123", b""))).status == 503, "attribution is away"


async def test_in_an_array_each_element_stands_for_itself(world: World) -> None:
    device = world.new_id()
    array = b"[%b,%b]" % (body(device), body(device, "shop"))
    refused = (await world.track(array)).json
    assert refused == {"success": 0, "results": [REFUSED, {"success": 1}]}
    taken = (await world.track(array, headers=headers("NEXTKEY", array))).json
    assert taken["success"] == 1
    assert [record.app_id for record in await world.log_of(device)].count("kodemo1") == 1


async def test_other_apps_ask_for_no_key(world: World) -> None:
    assert (await world.track(body(world.new_id(), "shop"), headers=OF_VECTOR)).status == 200
