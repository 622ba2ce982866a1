"""Strict authentication: whether a request comes from who holds one of its app's keys."""

import hashlib
import hmac

from services.gateway.errors import Refused
from services.gateway.model import App
from services.gateway.requests import Request

_NEEDED = "this app needs a Kochava-Api-Key and its Kochava-Auth-Token for this body"
"""It never says what was wrong: who guesses would learn which half he has."""


def token_of(api_key: bytes, secret: bytes, body: bytes | bytearray) -> str:
    """Returns the token that a sender makes of a body, as it travels."""
    message = secret + hashlib.sha1(body, usedforsecurity=False).hexdigest().encode()
    return hmac.digest(api_key, message, "sha256").hex()


def check(app: App | None, request: Request) -> None:
    """Raises Refused (401) if the app is strict and none of its keys made the token of the request."""
    if app is None or not app.is_strict:
        return
    given_key = request.headers.get(b"kochava-api-key", b"").strip()
    given_token = request.headers.get(b"kochava-auth-token", b"").strip().lower()
    is_valid = False
    for api_key, secret in app.auth_keys:  # all of them, so that the time tells of none
        token = token_of(api_key, secret, request.body).encode()
        is_valid |= hmac.compare_digest(given_key, api_key) & hmac.compare_digest(given_token, token)
    if not is_valid:
        raise Refused(401, "UNAUTHENTICATED", _NEEDED)
