"""Requests and responses, as ASGI gives and takes them."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, NamedTuple, TypeAlias

import orjson

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers: TypeAlias = list[tuple[bytes, bytes]]
Response: TypeAlias = tuple[int, Headers, bytes]
"""Status, headers beside content-length and x-request-id, body."""

JSON: Headers = [(b"content-type", b"application/json")]
TEXT: Headers = [(b"content-type", b"text/plain; charset=utf-8")]


class Route(NamedTuple):
    """The methods that a path takes, and the function that responds."""

    methods: tuple[str, ...]
    respond: "Callable[[Request], Awaitable[Response]]"


class Request:
    """One request. `request_id` is the caller's `X-Request-Id`, or ours."""

    __slots__ = ("headers", "method", "path", "peer", "query", "raw_path", "receive", "request_id")

    def __init__(self, scope: Scope, receive: Receive, request_id: str) -> None:
        self.receive = receive
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.raw_path: bytes = scope["raw_path"]
        self.query: bytes = scope["query_string"]
        # Of equal headers the last counts: of X-Forwarded-For that is the one the nearest proxy wrote.
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        client = scope.get("client")
        self.peer: str = client[0] if client else ""
        given = self.headers.get(b"x-request-id")
        if given is not None and len(given) <= 64 and given.isascii() and (text := given.decode()).isprintable():
            request_id = text or request_id
        self.request_id = request_id

    def header(self, name: bytes) -> str:
        """Returns a header's value; empty when it is absent."""
        value = self.headers.get(name)
        return value.decode("latin-1") if value is not None else ""


def json_response(value: Any, status: int = 200) -> Response:
    """Returns a response of JSON."""
    return status, JSON, orjson.dumps(value)
