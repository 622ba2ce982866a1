"""Bodies of requests: read within limits, and parsed."""

from typing import Any

import orjson

from services.gateway.asgi import Request
from services.gateway.errors import Refused

MAX_BODY_BYTES = 2 * 1024 * 1024 - 1
_MAX_DEPTH = 16


async def read_body(request: Request) -> bytes:
    """Returns the whole body. Its time is bounded in server.py.

    Raises Refused: 413 from 2 MB, 415 when it is compressed, 400 when it breaks off.
    """
    encoding = request.header(b"content-encoding")
    if encoding and encoding.lower() != "identity":
        raise Refused(415, "UNSUPPORTED_ENCODING", f"send the body without Content-Encoding {encoding[:32]}")
    length = request.headers.get(b"content-length", b"0")
    if len(length) > 9 or (length.isdigit() and int(length) > MAX_BODY_BYTES):
        raise _too_large()
    parts: list[bytes] = []
    size = 0
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise Refused(400, "BODY_INCOMPLETE", "the body broke off")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > MAX_BODY_BYTES:
            raise _too_large()
        if not message.get("more_body", False):
            return b"".join(parts)


def parse_json(body: bytes) -> dict[str, Any] | list[Any]:
    """Returns an object or array. Raises Refused `INVALID_JSON`: wrong UTF-8 or JSON, nested too deep."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Refused(400, "INVALID_JSON", f"line {error.lineno}, column {error.colno}: {error.msg}") from None
    if not isinstance(value, dict | list):
        raise Refused(400, "INVALID_JSON", "must be an object or an array of objects")
    # Most bodies are spared a walk: as many brackets are needed as there are levels.
    if body.count(b"{") + body.count(b"[") > _MAX_DEPTH and is_too_deep(value, _MAX_DEPTH):
        raise Refused(400, "INVALID_JSON", f"at most {_MAX_DEPTH} levels of objects and arrays")
    return value


def is_too_deep(value: Any, levels: int) -> bool:
    """Returns whether objects and arrays lie in each other more than `levels` deep."""
    if not isinstance(value, dict | list):
        return False
    if levels == 0:
        return True
    return any(is_too_deep(inner, levels - 1) for inner in (value.values() if isinstance(value, dict) else value))


def _too_large() -> Refused:
    return Refused(413, "BODY_TOO_LARGE", "a body must be smaller than 2 MB")
