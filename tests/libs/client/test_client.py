"""Calls by the client library: typed errors, keys, pages."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from libs.client import connect, first, items, to_service_error
from libs.errors import (
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    ServiceError,
    Unavailable,
    Violation,
)
from libs.interceptors import ServerInterceptor
from reengage.tracker.v1 import app_pb2, service_pb2_grpc, snapshot_pb2
from tests.support.ports import free_port

NAMES = [f"app-{number}" for number in range(5)]
VIOLATION = Violation(field="app.name", reason="REQUIRED", description="must be set")


class Tracker(service_pb2_grpc.TrackerConfigServiceServicer):
    """A tracker that lists five apps, two a page unless told otherwise, and fails every other call as it was told."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.keys: list[str] = []
        self.page_sizes: list[int] = []

    async def ListApps(self, request: app_pb2.ListAppsRequest, context: Any) -> app_pb2.ListAppsResponse:
        self.keys.append(dict(context.invocation_metadata()).get("authorization", ""))
        self.page_sizes.append(request.page_size)
        start, size = int(request.page_token or 0), min(request.page_size, 2)
        more = str(start + size) if start + size < len(NAMES) else ""
        found = [app_pb2.App(name=name) for name in NAMES[start : start + size]]
        return app_pb2.ListAppsResponse(apps=found, next_page_token=more)

    async def GetApp(self, request: app_pb2.GetAppRequest, context: Any) -> app_pb2.GetAppResponse:
        assert self.error is not None
        raise self.error

    async def GetSnapshot(
        self, request: snapshot_pb2.GetSnapshotRequest, context: Any
    ) -> AsyncIterator[snapshot_pb2.GetSnapshotResponse]:
        yield snapshot_pb2.GetSnapshotResponse(revision=1)
        assert self.error is not None
        raise self.error


@pytest.fixture
async def target(tracker: Tracker) -> AsyncIterator[str]:
    server = grpc.aio.server(interceptors=[ServerInterceptor()])
    service_pb2_grpc.add_TrackerConfigServiceServicer_to_server(tracker, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(0)


@pytest.fixture
def tracker() -> Tracker:
    return Tracker()  # type: ignore[abstract]  # only these methods are called


async def test_a_list_is_read_over_all_its_pages(target: str, tracker: Tracker) -> None:
    async with connect(target, key="secret") as channel:
        stub = service_pb2_grpc.TrackerConfigServiceStub(channel)
        request = app_pb2.ListAppsRequest()
        assert [app.name async for app in items(stub.ListApps, request)] == NAMES
    assert tracker.keys == ["Bearer secret"] * 3
    assert tracker.page_sizes == [1000] * 3
    assert request == app_pb2.ListAppsRequest(), "it can be asked again"


async def test_pages_are_read_as_they_are_needed(target: str, tracker: Tracker) -> None:
    async with connect(target) as channel:
        stub = service_pb2_grpc.TrackerConfigServiceStub(channel)
        async for app in items(stub.ListApps, app_pb2.ListAppsRequest(page_size=1)):
            if app.name == "app-1":
                break
    assert tracker.page_sizes == [1, 1]


@pytest.mark.parametrize("limit", [len(NAMES) - 1, len(NAMES)], ids=["some", "all"])
async def test_the_first_of_a_list_are_read_and_whether_there_are_more(
    target: str, tracker: Tracker, limit: int
) -> None:
    async with connect(target) as channel:
        stub = service_pb2_grpc.TrackerConfigServiceStub(channel)
        found, has_more = await first(stub.ListApps, app_pb2.ListAppsRequest(), limit)
    assert ([app.name for app in found], has_more) == (NAMES[:limit], limit < len(NAMES))


@pytest.mark.parametrize(
    "error",
    [
        NotFound("APP_NOT_FOUND", "there is no app x"),
        ResourceExhausted("OVERLOADED", "too much", retry_after_s=1.5),
        Unavailable("STOPPING", "go on elsewhere"),
        InvalidArgument([VIOLATION]),
    ],
    ids=lambda error: error.reason,
)
async def test_a_failed_call_raises_what_the_service_raised(target: str, tracker: Tracker, error: ServiceError) -> None:
    tracker.error = error
    async with connect(target, timeout_s=30) as channel:
        stub = service_pb2_grpc.TrackerConfigServiceStub(channel)
        with pytest.raises(type(error)) as unary:
            await stub.GetApp(app_pb2.GetAppRequest())
        with pytest.raises(type(error)) as stream:
            async for _ in stub.GetSnapshot(snapshot_pb2.GetSnapshotRequest()):
                pass
    for raised in (unary.value, stream.value):
        assert (raised.code, raised.reason, raised.message) == (error.code, error.reason, error.message)
        assert (raised.violations, raised.retry_after_s) == (error.violations, error.retry_after_s)


async def test_who_is_not_there_is_unavailable() -> None:
    async with connect(f"127.0.0.1:{free_port()}") as channel:
        with pytest.raises(Unavailable) as raised:
            await service_pb2_grpc.TrackerConfigServiceStub(channel).ListApps(app_pb2.ListAppsRequest())
    assert raised.value.reason == "UNAVAILABLE"


async def test_a_method_that_is_not_there_keeps_its_code(target: str) -> None:
    async with connect(target) as channel:
        with pytest.raises(ServiceError) as raised:
            await service_pb2_grpc.TrackerConfigServiceStub(channel).ListNetworks(None)  # type: ignore[arg-type]
    assert raised.value.code in {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNIMPLEMENTED}


def test_a_bare_status_has_its_code_as_reason() -> None:
    metadata = grpc.aio.Metadata()
    error = to_service_error(grpc.aio.AioRpcError(grpc.StatusCode.DEADLINE_EXCEEDED, metadata, metadata, "too late"))
    assert (error.code, error.reason, error.message) == (
        grpc.StatusCode.DEADLINE_EXCEEDED,
        "DEADLINE_EXCEEDED",
        "too late",
    )
