"""Names of enum values for people, and what nobody knows in messages."""

import pytest
from google.protobuf.struct_pb2 import Struct

from libs.messages import short_name, take_unknown_fields
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


UNKNOWN = b"\xf2\xff\x0f\x01x"


def test_unknown_fields_are_taken_from_the_message_and_all_in_it() -> None:
    decision = decision_pb2.Decision(
        conversion_id="c1", candidates=[decision_pb2.Candidate(), decision_pb2.Candidate(engagement_id="k1")]
    )
    known = decision_pb2.Decision()
    known.CopyFrom(decision)
    for message in (decision, decision.candidates[1], decision.conversion_time):
        message.MergeFromString(UNKNOWN)
    known.conversion_time.SetInParent()
    assert set(take_unknown_fields(decision)) == {"", "candidates[1]", "conversion_time"}
    assert decision == known
    assert list(take_unknown_fields(decision)) == []


def test_unknown_fields_of_messages_in_a_map_are_found() -> None:
    struct = Struct()
    struct.update({"a": {"b": 1}})
    struct.fields["a"].struct_value.fields["b"].MergeFromString(UNKNOWN)
    assert list(take_unknown_fields(struct, "struct")) == ["struct.fields.a.struct_value.fields.b"]
