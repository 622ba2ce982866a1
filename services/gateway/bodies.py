"""Bodies of requests: unpacked and parsed."""

import json
import sys
import zlib
from collections.abc import Callable
from typing import Any

import brotli
import msgspec

from services.gateway.errors import Refused
from services.gateway.requests import Request

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MAX_BODY_BYTES = 2 * 1024 * 1024 - 1
_MAX_DEPTH = 16
_BOM = b"\xef\xbb\xbf"
_MAX_INTEGER_DIGITS = 64
_GZIP, _RAW_DEFLATE = zlib.MAX_WBITS | 16, -zlib.MAX_WBITS
_MAX_WINDOW = 23
"""The logarithm of the bytes that a body in zstd may have us remember: 8 MB, as RFC 9659 says."""


class Number(str):
    """A number with a point or an exponent, in the digits that it came with."""

    __slots__ = ()


NOT_A_NUMBER = object()
"""Stands for NaN and the infinities, which some serialisers write."""

_decoder = msgspec.json.Decoder(float_hook=Number)
_encoder = msgspec.json.Encoder(
    enc_hook=lambda number: msgspec.Raw(number.encode())
)  # what it does not know is a Number


def body_of(request: Request) -> bytes | bytearray:
    """Returns the body, unpacked, without a byte order mark.

    Raises Refused: 415 `UNSUPPORTED_ENCODING`, 400 `INVALID_ENCODING` when it is not what its Content-Encoding says,
    413 when it is 2 MB or more unpacked, else why there is none (`connections.py`).
    """
    encoding = request.header(b"content-encoding").strip().lower()
    unpack = None
    if encoding and encoding != "identity":
        unpack = _UNPACK.get(encoding)
        if unpack is None:
            known = ", ".join(_UNPACK)
            raise Refused(415, "UNSUPPORTED_ENCODING", f"Content-Encoding {encoding[:32]} is none of {known}")
    if request.no_body is not None:
        raise request.no_body.with_traceback(None)  # else one that all share keeps the frames of all
    body = request.body
    if unpack is not None:
        body = _unpacked(bytes(body), unpack, encoding)
    return body.removeprefix(_BOM)


def parse_json(body: bytes | bytearray) -> tuple[dict[str, Any] | list[Any], bool]:
    """Returns an object or array, and whether `readable_json` has to put something in it right.

    Numbers keep their digits: those with a point or an exponent are of type Number. Raises Refused `INVALID_JSON`:
    wrong JSON, nested too deep.
    """
    is_odd = rb"\u0000" in body
    try:
        value = _decoder.decode(body)
    except (msgspec.DecodeError, RecursionError):
        value, is_odd = _parse_odd(body), True
    if not isinstance(value, dict | list):
        raise Refused(400, "INVALID_JSON", "must be an object or an array of objects")
    # Most bodies are spared a walk: as many brackets are needed as there are levels.
    if body.count(b"{") + body.count(b"[") > _MAX_DEPTH and is_too_deep(value, _MAX_DEPTH):
        raise Refused(400, "INVALID_JSON", f"at most {_MAX_DEPTH} levels of objects and arrays")
    return value, is_odd


def json_text(value: Any) -> str:
    """Returns a parsed value as JSON again."""
    return _encoder.encode(value).decode()


def is_too_deep(value: Any, levels: int) -> bool:
    """Returns whether objects and arrays lie in each other more than `levels` deep."""
    if not isinstance(value, dict | list):
        return False
    if levels == 0:
        return True
    return any(is_too_deep(inner, levels - 1) for inner in (value.values() if isinstance(value, dict) else value))


def _parse_odd(body: bytes | bytearray) -> Any:
    """Returns what a body says that is no strict JSON: bytes that are no UTF-8 stand in it as lone surrogates."""
    try:
        return json.loads(
            body.decode(errors="surrogateescape"),
            parse_float=Number,
            parse_int=lambda digits: int(digits) if len(digits) <= _MAX_INTEGER_DIGITS else Number(digits),
            parse_constant=lambda _: NOT_A_NUMBER,
            strict=False,
        )
    except json.JSONDecodeError as error:
        raise Refused(400, "INVALID_JSON", f"line {error.lineno}, column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise Refused(400, "INVALID_JSON", f"at most {_MAX_DEPTH} levels of objects and arrays") from None


def _unpacked(packed: bytes, unpack: Callable[[bytes], bytes], encoding: str) -> bytes:
    try:
        body = unpack(packed)
    except (zlib.error, brotli.error, zstd.ZstdError, EOFError):
        raise Refused(400, "INVALID_ENCODING", f"the body is not {encoding}, or broken off") from None
    if len(body) > MAX_BODY_BYTES:
        raise Refused(413, "BODY_TOO_LARGE", "a body must be smaller than 2 MB, unpacked")
    return body


# Each returns at most a byte more than a body may have, however much is packed. Raises EOFError for what broke off.


def _unpack_zlib(packed: bytes, wbits: int) -> bytes:
    body = b""
    while packed and len(body) <= MAX_BODY_BYTES:  # gzip may have several members
        stream = zlib.decompressobj(wbits)
        body += stream.decompress(packed, MAX_BODY_BYTES + 1 - len(body))
        if not stream.eof and len(body) <= MAX_BODY_BYTES:
            raise EOFError
        packed = stream.unused_data if wbits == _GZIP else b""
    return body


def _unpack_deflate(packed: bytes) -> bytes:
    try:
        return _unpack_zlib(packed, zlib.MAX_WBITS)
    except zlib.error:  # what some senders take for deflate
        return _unpack_zlib(packed, _RAW_DEFLATE)


def _unpack_brotli(packed: bytes) -> bytes:
    stream = brotli.Decompressor()
    parts = [stream.process(packed, output_buffer_limit=MAX_BODY_BYTES + 1)]
    while parts[-1] and not stream.is_finished() and sum(map(len, parts)) <= MAX_BODY_BYTES:
        parts.append(stream.process(b"", output_buffer_limit=MAX_BODY_BYTES + 1))
    body = b"".join(parts)
    if not stream.is_finished() and len(body) <= MAX_BODY_BYTES:
        raise EOFError
    return body[: MAX_BODY_BYTES + 1]


def _unpack_zstd(packed: bytes) -> bytes:
    body = b""
    while packed and len(body) <= MAX_BODY_BYTES:  # it may have several frames
        stream = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _MAX_WINDOW})
        body += stream.decompress(packed, MAX_BODY_BYTES + 1 - len(body))
        if not stream.eof and len(body) <= MAX_BODY_BYTES:
            raise EOFError
        packed = stream.unused_data
    return body


_UNPACK: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda packed: _unpack_zlib(packed, _GZIP),
    "x-gzip": lambda packed: _unpack_zlib(packed, _GZIP),
    "deflate": _unpack_deflate,
    "br": _unpack_brotli,
    "zstd": _unpack_zstd,
}
