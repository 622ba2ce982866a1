"""Parts: what may be too much for one message, or for one read, is cut by its bytes."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
"""The bytes of one request or response: channels and servers refuse larger ones."""
PART_BYTES = MAX_MESSAGE_BYTES // 2
"""The bytes of a part. The other half of a message is for what is around them."""


def in_parts(
    items: Iterable[T], bytes_of: Callable[[T], int], *, max_bytes: int = PART_BYTES, max_items: int | None = None
) -> Iterator[list[T]]:
    """Yields the items, in their order, in lists of at most so many bytes and items.

    One that is larger by itself comes alone: whether that fits is for the caller to say.
    """
    part: list[T] = []
    size = 0
    for item in items:
        bytes_more = bytes_of(item)
        if part and (size + bytes_more > max_bytes or len(part) == max_items):
            yield part
            part, size = [], 0
        part.append(item)
        size += bytes_more
    if part:
        yield part


def page_of(rows: Sequence[T], size: int, bytes_of: Callable[[T], int]) -> tuple[list[T], bool]:
    """Returns a page of up to `size` rows that fit into a part, and whether there are more.

    There are if more rows are given: callers ask for one more than `size`.
    """
    page = first_part(rows[:size], bytes_of)
    return page, len(rows) > len(page)


def first_part(items: Iterable[T], bytes_of: Callable[[T], int], *, max_bytes: int = PART_BYTES) -> list[T]:
    """Returns the first items of at most so many bytes together, and at least one, if there is any."""
    return next(in_parts(items, bytes_of, max_bytes=max_bytes), [])
