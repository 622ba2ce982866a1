"""Requests and responses, as the routes take and give them."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias
from urllib.parse import unquote

import orjson

if TYPE_CHECKING:
    from services.gateway.errors import Refused
    from services.gateway.model import App

Headers: TypeAlias = list[tuple[bytes, bytes]]
Response: TypeAlias = tuple[int, Headers, bytes]
"""Status, headers beside those of the connection (content-length, date), body."""

MAX_QUERY_BYTES = 16 * 1024
"""The most bytes that are read of a query."""
JSON: Headers = [(b"content-type", b"application/json")]
TEXT: Headers = [(b"content-type", b"text/plain; charset=utf-8")]


class Route(NamedTuple):
    """The methods that a path takes, and the function that responds. `is_link`: a query of any length is taken."""

    methods: tuple[str, ...]
    respond: "Callable[[Request], Awaitable[Response]]"
    is_link: bool = False
    for_pages: bool = False
    """True: scripts of web pages may ask and read the answer, where an app allows their origin."""


class Request:
    """One request, whole: `headers` by their names in lower case, of equal ones the last.

    (Of X-Forwarded-For that is the one the nearest proxy wrote.) `no_body` is why there is no `body`, where the sender
    did not get it through. `apps` are those that it names, once that is known.
    """

    __slots__ = ("apps", "body", "headers", "method", "no_body", "path", "peer", "query", "raw_path", "request_id")

    def __init__(
        self,
        method: str,
        target: bytes,
        headers: dict[bytes, bytes],
        *,
        peer: str = "",
        body: bytes | bytearray = b"",
        no_body: "Refused | None" = None,
    ) -> None:
        self.method, self.headers, self.peer, self.body, self.no_body = method, headers, peer, body, no_body
        self.raw_path, _, self.query = target.partition(b"?")
        path = self.raw_path.decode("latin-1")
        self.path = unquote(path) if "%" in path else path
        self.request_id = ""
        self.apps: Sequence[App] = ()

    def take_id(self, ours: str) -> None:
        """Sets `request_id`: the caller's `X-Request-Id` if that can be one, or ours."""
        given = self.headers.get(b"x-request-id")
        if given is not None and len(given) <= 64 and given.isascii() and (text := given.decode()).isprintable():
            ours = text or ours
        self.request_id = ours

    @property
    def host(self) -> str:
        """Returns the name of the host that was asked, in lower case, without its port."""
        return self.header(b"host").lower().partition(":")[0].rstrip(".")

    def header(self, name: bytes) -> str:
        """Returns a header's value; empty when it is absent."""
        value = self.headers.get(name)
        return value.decode("latin-1") if value is not None else ""


def json_response(value: Any, status: int = 200) -> Response:
    """Returns a response of JSON."""
    return status, JSON, orjson.dumps(value)
