"""Every method returns a status that the contract knows, whatever is sent to it."""

from typing import Any

import grpc
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from libs.errors import from_rpc_error
from reengage.tracker.v1 import service_pb2
from tests.tracker import samples
from tests.tracker.samples import Stub, create_parents, create_tracker

METHODS = service_pb2.DESCRIPTOR.services_by_name["TrackerConfigService"].methods
KNOWN = {"resource_id": "kodemo1", "tracker_id": "acq1", "source_tracker_id": "acq1", "app_id": "kodemo1"}
TEXTS = ["null\x00", "x" * 20_000, "é/\u202e", "a/b", "*", "-1", "' OR 1=1 --", '{"', ""]


def fill(message: Message, text: str, number: int, *, known: bool, depth: int = 4) -> None:
    """Sets every field; ids to those that exist, if `known`."""
    for field in message.DESCRIPTOR.fields:
        value: Any = KNOWN[field.name] if known and field.name in KNOWN else text
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            getattr(message, field.name)[text] = text
        elif field.message_type is not None:
            if depth:
                nested = getattr(message, field.name)
                target = nested.add() if field.is_repeated else nested
                target.SetInParent()
                fill(target, text, number, known=known, depth=depth - 1)
        elif field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
            value = value.encode() if field.type == FieldDescriptor.TYPE_BYTES else value
            getattr(message, field.name).extend([value, value]) if field.is_repeated else setattr(
                message, field.name, value
            )
        elif field.is_repeated:
            getattr(message, field.name).append(number)
        elif field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
            setattr(message, field.name, number > 0)
        else:
            wide = field.cpp_type == FieldDescriptor.CPPTYPE_INT64
            setattr(message, field.name, number * (2**63 - 1) if wide else number * (2**31 - 1))


@pytest.mark.parametrize("number", [-1, 0, 1])
@pytest.mark.slow
async def test_unexpected_requests_get_a_foreseen_status(tracker: Stub, number: int) -> None:
    await create_parents(tracker)
    await create_tracker(tracker, samples.acquisition())
    unforeseen = set()
    for method in METHODS:
        for text in TEXTS:
            for known in (False, True):
                request = message_factory.GetMessageClass(method.input_type)()
                fill(request, text, number, known=known)
                call = getattr(tracker, method.name)(request, timeout=10)
                try:
                    if method.server_streaming:
                        await call.read()
                        call.cancel()
                    else:
                        await call
                except grpc.aio.AioRpcError as error:
                    if from_rpc_error(error).code in (
                        grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAVAILABLE,
                        grpc.StatusCode.DEADLINE_EXCEEDED,
                    ):  # fmt: skip
                        unforeseen.add((method.name, text[:10], known, error.details()))
    assert not unforeseen
