"""HTTP manners: what a client may ask of every path, and that each answer is one object."""

import io
from typing import Any

import pytest

from tests.gateway.conftest import World

pytestmark = pytest.mark.asyncio(loop_scope="session")

SHOP, OTHER = "https://shop.example", "https://other.example"
EVENT: dict[str, Any] = {
    "action": "event",
    "kochava_app_id": "pages",
    "kochava_device_id": "page-1",
    "data": {"event_name": "View", "origination_ip": "203.0.113.7"},
}
PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
TOO_LARGE = b"[" + b" " * 2 * 1024 * 1024 + b"]"
ALLOW_HEADERS = "content-type, content-encoding, kochava-api-key, kochava-auth-token, x-request-id"


def cors(headers: dict[str, str]) -> dict[str, str]:
    return {name.removeprefix("access-control-"): each for name, each in headers.items() if name.startswith("access-")}


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        pytest.param("GET", "/track/json", 405, "POST, OPTIONS", id="GET of a record"),
        pytest.param("HEAD", "/track/json", 405, "POST, OPTIONS", id="HEAD of a record"),
        pytest.param("PUT", "/track/json/", 405, "POST, OPTIONS", id="PUT of a record"),
        pytest.param("POST", "/c/plain", 405, "GET, HEAD, OPTIONS", id="POST of a click"),
        pytest.param("POST", "/v1/cpi/get_attribution", 405, "GET, HEAD, OPTIONS", id="POST of a question"),
        pytest.param("DELETE", "/", 405, "GET, HEAD, OPTIONS", id="DELETE of all"),
        pytest.param("OPTIONS", "/track/json", 204, "POST, OPTIONS", id="OPTIONS of a record"),
        pytest.param("OPTIONS", "/track/json/", 204, "POST, OPTIONS", id="OPTIONS with a slash"),
        pytest.param("OPTIONS", "/c/plain", 204, "GET, HEAD, OPTIONS", id="OPTIONS of a click"),
        pytest.param("OPTIONS", "/nothing", 404, None, id="OPTIONS of nothing"),
        pytest.param("HEAD", "/v1/cpi/get_attribution", 400, None, id="HEAD of a question"),
        pytest.param("HEAD", "/c/plain", 302, None, id="HEAD of a click"),
        pytest.param("HEAD", "/healthz", 200, None, id="HEAD of health"),
    ],
)
async def test_methods(world: World, method: str, path: str, status: int, allow: str | None) -> None:
    response = await world.ask(method, path)
    assert (response.status, response.headers.get("allow")) == (status, allow)
    assert "access-control-allow-origin" not in response.headers
    if method in ("HEAD", "OPTIONS") and status < 300:
        assert response.body == b""
    elif method != "HEAD" and status >= 400:
        assert response.json["success"] == 0


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        pytest.param("POST", "/track/json/", 200, id="record"),
        pytest.param("POST", "/track/json//", 200, id="two"),
        pytest.param("POST", "/track/kvinit/", 200, id="init"),
        pytest.param("GET", "/v1/cpi/click/?campaign_id=plain", 302, id="click"),
        pytest.param("GET", "/track/impression/?campaign_id=plain", 204, id="impression"),
        pytest.param("GET", "/healthz/", 200, id="health"),
        pytest.param("GET", "//", 404, id="nothing but slashes"),
        pytest.param("GET", "/nothing/", 404, id="nothing"),
    ],
)
async def test_a_path_may_end_in_a_slash(world: World, method: str, path: str, status: int) -> None:
    assert (await world.ask(method, path, json=EVENT if method == "POST" else None)).status == status


@pytest.mark.parametrize(
    ("method", "path", "given", "status", "code"),
    [
        pytest.param("GET", "/nothing", {}, 404, "NOT_FOUND", id="404"),
        pytest.param("GET", "/track/json", {}, 405, "METHOD_NOT_ALLOWED", id="405"),
        pytest.param("GET", "/v1/cpi/get_attribution?a=" + "a" * 20_000, {}, 414, "QUERY_TOO_LONG", id="414"),
        pytest.param("GET", "/", {"headers": {"X-Long": "a" * 70_000}}, 431, "HEAD_TOO_LARGE", id="431"),
        pytest.param("POST", "/track/json", {"data": TOO_LARGE}, 413, "BODY_TOO_LARGE", id="413"),
        pytest.param("POST", "/track/json", {"data": b"7"}, 400, "INVALID_JSON", id="no object"),
        pytest.param("POST", "/track/kvinit", {"data": b"[]"}, 400, "INVALID_RECORD", id="an array where none may be"),
    ],
)
async def test_an_answer_is_one_object(
    world: World, method: str, path: str, given: dict[str, Any], status: int, code: str
) -> None:
    if given.get("data") is TOO_LARGE:
        given = {"data": io.BytesIO(TOO_LARGE)}
    response = await world.ask(method, path, **given)
    assert (response.status, response.headers["content-type"]) == (status, "application/json")
    assert (response.json["success"], response.json["error"]["code"]) == (0, code)


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        pytest.param("/track/json", "POST", id="record"),
        pytest.param("/track/json/", "POST", id="record with a slash"),
        pytest.param("/track/kvinit", "POST", id="init"),
        pytest.param("/v1/cpi/identityLink.php", "POST", id="identity link"),
        pytest.param("/v1/cpi/get_attribution", "GET, HEAD", id="question"),
    ],
)
async def test_a_page_asks_first(world: World, path: str, methods: str) -> None:
    response = await world.ask("OPTIONS", path, headers={"Origin": SHOP, **PREFLIGHT})
    assert (response.status, response.body) == (204, b"")
    assert cors(response.headers) == {
        "allow-origin": SHOP,
        "allow-methods": methods,
        "allow-headers": ALLOW_HEADERS,
        "max-age": "600",
    }
    assert response.headers["vary"] == "origin"


@pytest.mark.parametrize(
    ("path", "origin"),
    [
        pytest.param("/track/json", OTHER, id="another page"),
        pytest.param("/track/json", "http://shop.example", id="another scheme"),
        pytest.param("/track/json", "https://shop.example:8443", id="another port"),
        pytest.param("/track/json", "https://shop.example.evil.example", id="another host"),
        pytest.param("/track/json", "null", id="no origin"),
        pytest.param("/track/json", "*", id="not every origin"),
        pytest.param("/c/plain", SHOP, id="no path for pages"),
    ],
)
async def test_others_are_not_let_in(world: World, path: str, origin: str) -> None:
    response = await world.ask("OPTIONS", path, headers={"Origin": origin, **PREFLIGHT})
    assert (response.status, cors(response.headers)) == (204, {})


@pytest.mark.parametrize(
    ("body", "origin", "status", "reads"),
    [
        pytest.param(EVENT, SHOP, 200, True, id="of its app"),
        pytest.param(EVENT, OTHER, 200, False, id="of another page"),
        pytest.param({**EVENT, "kochava_app_id": "shop"}, SHOP, 200, False, id="of another app"),
        pytest.param([EVENT, {**EVENT, "kochava_app_id": "shop"}], SHOP, 200, False, id="of both"),
        pytest.param([EVENT, EVENT], SHOP, 200, True, id="an array"),
        pytest.param({**EVENT, "action": "init"}, SHOP, 200, True, id="init"),
        pytest.param({**EVENT, "action": ""}, SHOP, 400, True, id="an error"),
        pytest.param({"action": "event"}, SHOP, 400, True, id="of no app"),
    ],
)
async def test_the_page_reads_what_its_app_is_answered(
    world: World, body: Any, origin: str, status: int, *, reads: bool
) -> None:
    response = await world.track(body, headers={"Origin": origin})
    wanted = {"allow-origin": SHOP, "expose-headers": "retry-after, x-request-id"} if reads else {}
    assert (response.status, cors(response.headers)) == (status, wanted)
    assert response.headers["vary"] == "origin"
