"""Page tokens: those of ours are read back, all others are refused."""

import base64
import json

import pytest

from libs.errors import Violations
from libs.pages import decode_token, encode_token, page_size


def test_a_token_brings_its_key_back() -> None:
    violations = Violations()
    assert decode_token(encode_token(7, "a"), (int, str), violations) == (7, "a")
    assert decode_token("", (int, str), violations) is None
    assert not violations.found


@pytest.mark.parametrize("key", [[1], ["1", "a"], [True, "a"], {"a": 1}, [2**63, "a"], None])
def test_a_forged_token_is_a_wrong_field(key: object) -> None:
    violations = Violations()
    token = base64.urlsafe_b64encode(json.dumps(key).encode()).decode()
    assert decode_token(token, (int, str), violations) is None
    assert [v.reason for v in violations.found] == ["INVALID_TOKEN"]


@pytest.mark.parametrize(
    ("asked", "size", "wrong"), [(0, 100, 0), (1, 1, 0), (1000, 1000, 0), (1001, 1001, 1), (-1, -1, 1)]
)
def test_page_sizes(asked: int, size: int, wrong: int) -> None:
    violations = Violations()
    assert page_size(asked, violations) == size
    assert len(violations.found) == wrong
