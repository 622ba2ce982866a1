"""The gRPC face: what it lists, and what it refuses."""

from typing import Any

import grpc
import pytest

from libs.errors import from_rpc_error
from reengage.attribution.v1 import decision_pb2, device_pb2
from tests.attribution.conftest import (
    APP,
    RE_TRACKER,
    World,
    click,
    device,
    event,
)

HOUR = 3600
REENGAGED = decision_pb2.OUTCOME_REENGAGED


async def test_the_api_says_what_is_wrong(world: World) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as wrong:
        await world.attribution.GetDecision(decision_pb2.GetDecisionRequest())
    with pytest.raises(grpc.aio.AioRpcError) as unknown:
        await world.attribution.GetDeviceAttribution(
            device_pb2.GetDeviceAttributionRequest(app_id=APP, device_id="nobody")
        )
    assert wrong.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    violations = from_rpc_error(wrong.value).violations
    assert [(v.field, v.reason) for v in violations] == [("app_id", "REQUIRED"), ("conversion_id", "REQUIRED")]
    assert unknown.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("GetDecision", decision_pb2.GetDecisionRequest(app_id=APP, conversion_id="a\0b")),
        ("ListDecisions", decision_pb2.ListDecisionsRequest(app_id="a\0b")),
        ("ListDecisions", decision_pb2.ListDecisionsRequest(app_id=APP, tracker_id="a\0b")),
        ("ListDecisions", decision_pb2.ListDecisionsRequest(app_id=APP, outcomes=[100_000])),  # type: ignore[list-item]
    ],
)
async def test_what_cannot_be_asked_is_the_callers_error(world: World, method: str, request_: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await getattr(world.attribution, method)(request_)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_decisions_are_listed_newest_first_in_pages(world: World) -> None:
    async with world.worker():
        await world.send(click(0, device(1), record_id="k1"))
        await world.send(*(event(10 + n, device(1), "View", record_id=f"v{n}") for n in range(5)))
        await world.send(event(100, device(1), record_id="e1"))
        await world.decided("e1")
    listed: list[str] = []
    token = ""
    while True:
        page = await world.attribution.ListDecisions(
            decision_pb2.ListDecisionsRequest(app_id=APP, page_size=2, page_token=token)
        )
        listed += [decision.conversion_id for decision in page.decisions]
        token = page.next_page_token
        if not token:
            break
    by_tracker = await world.attribution.ListDecisions(
        decision_pb2.ListDecisionsRequest(app_id=APP, tracker_id=RE_TRACKER, outcomes=[REENGAGED])
    )
    assert listed == ["e1", "v4", "v3", "v2", "v1", "v0"]
    assert [decision.conversion_id for decision in by_tracker.decisions] == ["e1"]
