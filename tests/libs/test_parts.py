"""Cutting by bytes: nothing is lost, doubled or put in another order, and no part is larger than it must be."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from libs.parts import MAX_MESSAGE_BYTES, PART_BYTES, first_part, in_parts, page_of

texts = st.lists(st.binary(max_size=12), max_size=30)


@given(texts, st.integers(1, 20), st.integers(1, 6))
def test_parts_are_as_large_as_they_may_be(items: list[bytes], max_bytes: int, max_items: int) -> None:
    parts = list(in_parts(items, len, max_bytes=max_bytes, max_items=max_items))
    assert [item for part in parts for item in part] == items
    assert all(part for part in parts)
    for part in parts:
        assert len(part) <= max_items
        assert len(part) == 1 or sum(map(len, part)) <= max_bytes
    for part, following in itertools.pairwise(parts):
        assert len(part) == max_items or sum(map(len, part)) + len(following[0]) > max_bytes


@given(texts, st.integers(1, 20))
def test_the_first_part_is_the_first_of_all_parts(items: list[bytes], max_bytes: int) -> None:
    assert first_part(items, len, max_bytes=max_bytes) == next(in_parts(items, len, max_bytes=max_bytes), [])


def test_a_page_ends_at_its_size_or_at_its_bytes() -> None:
    assert page_of([1, 1, 1], 2, lambda _: 1) == ([1, 1], True)
    assert page_of([1, 1], 2, lambda _: 1) == ([1, 1], False)
    assert page_of([1, 1], 2, lambda _: PART_BYTES) == ([1], True)
    assert page_of([], 2, lambda _: 1) == ([], False)


def test_a_part_leaves_half_a_message_for_what_is_around_it() -> None:
    assert PART_BYTES * 2 == MAX_MESSAGE_BYTES
