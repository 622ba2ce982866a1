"""Bodies of requests."""

import pytest

from services.gateway.bodies import is_too_deep


@pytest.mark.parametrize(("levels", "too_deep"), [(2, True), (3, False)])
def test_depth(levels: int, *, too_deep: bool) -> None:
    assert is_too_deep([[[]]], levels) is too_deep
