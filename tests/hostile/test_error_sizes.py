"""Errors about hostile requests: printable, cut, few enough, and within what every gRPC client takes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.errors import (
    MAX_STATUS_BYTES,
    MAX_VIOLATIONS,
    MORE,
    InvalidArgument,
    NotFound,
    ServiceError,
    Violation,
    Violations,
    shown,
    to_status,
)

TEXTS = ["x" * 100_000, "\0\r\n\x1b[31m" * 1000, "\ud800" * 500, "😀" * 10_000, "%" * 5000, ""]


def size(error: ServiceError) -> int:
    """Returns the bytes of a status in metadata: its message percent-encoded, and its details in base64."""
    status = to_status(error)
    encoded = sum(1 if 0x20 <= byte <= 0x7E and byte != 0x25 else 3 for byte in status.message.encode())
    return encoded + -(-len(status.SerializeToString()) // 3) * 4


@pytest.mark.parametrize("count", [1, 2, 50, 51, 10_000])
@pytest.mark.parametrize("text", TEXTS, ids=lambda text: ascii(text[:2]))
def test_wrong_fields_are_bounded(text: str, count: int) -> None:
    violations = Violations()
    for number in range(count):
        violations.add(f"field[{number}].{text}", "WRONG", f"must not be {text}")
    with pytest.raises(InvalidArgument) as caught:
        violations.check()
    error = caught.value
    assert len(error.violations) == min(count, MAX_VIOLATIONS)
    assert size(error) <= MAX_STATUS_BYTES
    told = f"… and {count - MAX_VIOLATIONS + 1:,} more"
    if count > MAX_VIOLATIONS:
        assert (error.violations[-1].reason, error.violations[-1].description) == (MORE, told)
        assert error.message.endswith(" more")
    for one in error.violations:
        assert (one.field + one.description).isprintable()


def test_what_fits_is_told_whole() -> None:
    wrong = [Violation(field=f"field[{number}]", reason="REQUIRED", description="must be set") for number in range(20)]
    assert InvalidArgument(wrong).message == "; ".join(f"field[{number}]: must be set" for number in range(20))
    assert InvalidArgument(wrong).violations == tuple(wrong)


@given(st.lists(st.tuples(st.text(), st.text(max_size=400)), max_size=80), st.text(max_size=2000))
def test_a_status_is_never_too_large(wrong: list[tuple[str, str]], text: str) -> None:
    named = [Violation(field=field, reason="WRONG", description=description) for field, description in wrong]
    assert size(InvalidArgument(named)) <= MAX_STATUS_BYTES
    assert size(NotFound("NOT_FOUND", text, first_id=text, second_id=text, third_id=text)) <= MAX_STATUS_BYTES


@given(st.text(), st.integers(3, 300))
def test_a_shown_text_is_printable_and_short(text: str, max_bytes: int) -> None:
    found = shown(text, max_bytes)
    assert found.isprintable()
    assert len(found.encode()) <= max_bytes
    if text.isprintable() and len(text.encode()) <= max_bytes:
        assert found == text
