"""Bodies of requests, parsed."""

from typing import Any

import orjson

from services.gateway.errors import Refused
from services.gateway.requests import Request

MAX_BODY_BYTES = 2 * 1024 * 1024 - 1
_MAX_DEPTH = 16


def body_of(request: Request) -> bytes | bytearray:
    """Returns the body. Raises Refused: 415 when it is compressed, else why there is none (`connections.py`)."""
    encoding = request.header(b"content-encoding")
    if encoding and encoding.lower() != "identity":
        raise Refused(415, "UNSUPPORTED_ENCODING", f"send the body without Content-Encoding {encoding[:32]}")
    if request.no_body is not None:
        raise request.no_body
    return request.body


def parse_json(body: bytes | bytearray) -> dict[str, Any] | list[Any]:
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
