"""Pages of lists: sizes and tokens. A token is the sort key of the last row shown, opaque to callers."""

import base64

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

    `field`: of the request, the one that holds the token.
    """
    if not token:
        return None
    try:
        key = orjson.loads(base64.b64decode(token, altchars=b"-_", validate=True))
    except ValueError:
        key = None
    fits = isinstance(key, list) and [type(part) for part in key] == list(kinds)
    if not fits or not all(map(_is_storable, key)):
        violations.add(field, "INVALID_TOKEN", "must come from an earlier response, unchanged")
        return None
    return tuple(key)


def _is_storable(part: str | int) -> bool:
    """Returns whether a column can hold a part of a key."""
    return part.bit_length() <= 63 if isinstance(part, int) else "\0" not in part
