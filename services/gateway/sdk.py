"""SDKs: what published ones ask before and beside their records, answered so that they go on. Pure.

docs/sdks.md says which SDKs were read, and what each of them needs of an answer.
"""

from collections.abc import Mapping
from typing import Any

from libs.errors import Violations
from services.gateway.model import App
from services.gateway.translation.body import read_body

INIT, SMARTLINK = "init", "smartlink"
_INSTALLS = ("install", "initial")
_PUSH_TOKENS = ("push_token_add", "push_token_remove")
_JSON_URLS = (
    "install", "event", "identityLink", "identity_link", "update", "session", "session_begin", "session_end",
    "push_token_add", "push_token_remove", "smartlink",
)  # fmt: skip
"""The names, in the answer to `init`, of the URLs that an SDK sends to by what it sends; Web and Android differ."""
_NOT_KEPT = {
    "field": "data.token",
    "code": "PUSH_TOKENS_NOT_KEPT",
    "message": "left out: the app's keep_push_tokens is off",
}


class Answered(dict[str, Any]):
    """An answer to an element of which no record is made."""


def answer(value: Mapping[str, Any], app: App | None, public_url: str) -> Answered | None:
    """Returns the answer to what is no record: how to start, where a link leads, a push token that is not kept.

    None for a record, and for an unknown app.
    """
    if app is None:
        return None
    action = value.get("action")
    if action == INIT:
        return Answered(_how_to_start(app, public_url))
    if action == SMARTLINK:
        return Answered(_where_it_leads(value))
    if action in _PUSH_TOKENS and not app.keeps_push_tokens:
        return Answered(success=1, warnings=[_NOT_KEPT])
    return None


def identity_link_in(value: Any, *, is_odd: bool) -> dict[str, Any] | None:
    """Returns the identity link that an SDK packs into an install, as one of its own; None if there is none."""
    if not isinstance(value, dict) or value.get("action") not in _INSTALLS:
        return None
    body = read_body(value, Violations(), is_odd=is_odd)
    if not body.object("identity_link"):
        return None
    # The record_id is the install's.
    return {
        **{name: each for name, each in body.root.items() if name != "record_id"},
        "action": "identityLink",
        "data": {name: each for name, each in body.data.items() if name != "record_id"},
    }


def wants_text(value: Any) -> bool:
    """Returns whether the sender is an SDK for Unity that takes `"success":"1"` alone for a success."""
    first = value[0] if isinstance(value, list) and value else value
    if not isinstance(first, dict):
        return False
    version, device_id = first.get("sdk_version"), first.get("kochava_device_id")
    if not isinstance(version, str):
        return False
    return version.startswith("Unity") or (isinstance(device_id, str) and device_id.startswith("KU"))


def with_text(body: bytes) -> bytes:
    """Returns an answer with its success as a text."""
    return body.replace(b'"success":1', b'"success":"1"')


def _how_to_start(app: App, public_url: str) -> dict[str, Any]:
    """Returns what an SDK keeps until it asks again. What is left out stays as the SDK has it by itself."""
    found: dict[str, Any] = {
        "success": 1,
        "action": INIT,
        "flags": {"push": app.keeps_push_tokens, "send_updates": True},
        "install": {"updates_enabled": True},
    }
    if public_url:
        urls = dict.fromkeys(_JSON_URLS, f"{public_url}/track/json")
        urls |= {"init": f"{public_url}/track/kvinit", "get_attribution": f"{public_url}/track/kvquery"}
        found["networking"] = {"urls": urls}
    return found


def _where_it_leads(value: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the link that the app was opened with: it goes on with it as it is."""
    data = value.get("data")
    given = data if isinstance(data, dict) else value
    texts = (given.get(name) for name in ("path", "uri", "url"))
    destination = next((text for text in texts if isinstance(text, str) and text), "")
    return {"success": 1, "action": SMARTLINK, "deeplink": {"destination": destination, "raw": {}}}
