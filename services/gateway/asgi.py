"""Requests and answers: what ASGI gives, read within limits, and the one shape of errors."""

import math
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, TypeAlias

import grpc
import orjson

from libs.errors import ServiceError, Violation

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers: TypeAlias = list[tuple[bytes, bytes]]
Answer: TypeAlias = tuple[int, Headers, bytes]
"""Status, headers beside content-length and x-request-id, body."""

MAX_BODY_BYTES = 2 * 1024 * 1024 - 1
MAX_QUERY_BYTES = 16 * 1024
_JSON: Headers = [(b"content-type", b"application/json")]
_STATUSES = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 503,
    grpc.StatusCode.UNAVAILABLE: 503,
}


class Refused(Exception):  # noqa: N818 - named as the errors of libs are
    """A request that is answered by an error: a status, a stable code in capitals, a sentence, the wrong fields."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        fields: Iterable[Violation] = (),
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.retry_after_s = status, code, message, retry_after_s
        self.fields = list(fields)

    @classmethod
    def by(cls, error: ServiceError) -> "Refused":
        """The same error, for HTTP: 400, 404, 429 over an app's rate, 503 when it is us who cannot."""
        status = 429 if error.reason == "RATE_LIMITED" else _STATUSES.get(error.code, 500)
        return cls(status, error.reason, error.message, fields=error.violations, retry_after_s=error.retry_after_s)

    def as_json(self) -> dict[str, Any]:
        """`{"success":0,"error":{"code","message","fields":[{"field","reason","description"}]}}`."""
        fields = [{"field": v.field, "reason": v.reason, "description": v.description} for v in self.fields]
        return {"success": 0, "error": {"code": self.code, "message": self.message, "fields": fields}}

    def answer(self) -> Answer:
        """The answer, with `Retry-After` in whole seconds where repeating may help."""
        headers = list(_JSON)
        if self.retry_after_s is not None:
            headers.append((b"retry-after", str(max(1, math.ceil(self.retry_after_s))).encode()))
        return self.status, headers, orjson.dumps(self.as_json())


def json_answer(value: Any, status: int = 200) -> Answer:
    """An answer of JSON."""
    return status, _JSON, orjson.dumps(value)


class Request:
    """One request. `request_id` is the caller's `X-Request-Id`, or ours."""

    __slots__ = ("_receive", "headers", "method", "path", "peer", "query", "raw_path", "request_id")

    def __init__(self, scope: Scope, receive: Receive, request_id: str) -> None:
        self._receive = receive
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
        """A header's value; empty when it is absent."""
        value = self.headers.get(name)
        return value.decode("latin-1") if value is not None else ""

    async def body(self) -> bytes:
        """The whole body. Its time is bounded in server.py.

        Raises Refused: 413 from 2 MB, 415 when it is compressed, 400 when it breaks off.
        """
        encoding = self.header(b"content-encoding")
        if encoding and encoding.lower() != "identity":
            raise Refused(415, "UNSUPPORTED_ENCODING", f"send it as it is, without Content-Encoding {encoding[:32]}")
        length = self.headers.get(b"content-length", b"0")
        if len(length) > 9 or (length.isdigit() and int(length) > MAX_BODY_BYTES):
            raise _too_large()
        parts: list[bytes] = []
        size = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise Refused(400, "BODY_INCOMPLETE", "the body broke off")
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > MAX_BODY_BYTES:
                raise _too_large()
            if not message.get("more_body", False):
                return b"".join(parts)


def _too_large() -> Refused:
    return Refused(413, "BODY_TOO_LARGE", "a body must be smaller than 2 MB")
