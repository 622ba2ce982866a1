"""Pages of lists: sizes and tokens. A token is the sort key of the last row shown, opaque to callers."""

import base64
from uuid import UUID

import orjson

from libs.errors import Violations

DEFAULT_SIZE = 100
MAX_SIZE = 1000


def page_size(asked: int, violations: Violations) -> int:
    """Returns the rows of one page: 1 to 1,000; 0 means 100."""
    if asked < 0 or asked > MAX_SIZE:
        violations.add("page_size", "OUT_OF_RANGE", f"must be 1 to {MAX_SIZE}")
    return asked or DEFAULT_SIZE


def encode_token(*key: str | int) -> str:
    """Returns the token of the page after the row with this sort key."""
    return base64.urlsafe_b64encode(orjson.dumps(key)).decode()


def decode_token(
    token: str, kinds: tuple[type, ...], violations: Violations, *, field: str = "page_token"
) -> tuple[str | int, ...] | None:
    """Returns the sort key in a token, of these types; None for the first page. A token of ours never fails.

    UUID is the type of a text that is one. `field`: of the request, the one that holds the token.
    """
    if not token:
        return None
    try:
        key = orjson.loads(base64.b64decode(token, altchars=b"-_", validate=True))
    except ValueError:
        key = None
    fits = isinstance(key, list) and len(key) == len(kinds) and all(map(_is_of, key, kinds))
    if not fits:
        violations.add(field, "INVALID_TOKEN", "must come from an earlier response, unchanged")
        return None
    return tuple(key)


def _is_of(part: object, kind: type) -> bool:
    """Returns whether a part of a key is of this type, and such that a column can hold it."""
    match part:
        case bool():
            return False
        case int():
            return kind is int and part.bit_length() <= 63
        case str() if kind is UUID:
            return _is_uuid(part)
        case str():
            return kind is str and "\0" not in part
        case _:
            return False


def _is_uuid(text: str) -> bool:
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False
