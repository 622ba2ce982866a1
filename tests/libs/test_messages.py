"""Names of enum values for people."""

import pytest

from libs.messages import short_name
from reengage.attribution.v1 import decision_pb2


@pytest.mark.parametrize(
    ("number", "name"),
    [
        pytest.param(decision_pb2.VERDICT_WON, "WON", id="known"),
        pytest.param(decision_pb2.VERDICT_UNSPECIFIED, "", id="zero"),
        pytest.param(99, "99", id="of a later version"),
    ],
)
def test_short_name(number: int, name: str) -> None:
    assert short_name(decision_pb2.Verdict.DESCRIPTOR, number) == name
