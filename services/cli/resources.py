"""Tracker for the commands that read and change settings: every kind of resource by the same few calls."""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import grpc
from google.protobuf.field_mask_pb2 import FieldMask

from libs.channels import open_channel
from libs.errors import from_rpc_error
from libs.messages import message_class
from reengage.tracker.v1 import service_pb2_grpc
from services.cli.calls import CallError, describe_failure, key_of, target_of
from services.tracker.kinds import Kind

_PLURALS = {"Agency": "Agencies", "NetworkSettings": "NetworkSettings"}
_PAGE = 1000
_TIMEOUT_S = 60.0  # thousands of trackers at once


class Settings:
    """A running tracker. Its calls raise AioRpcError; `connected` turns that into words."""

    def __init__(self, stub: "service_pb2_grpc.TrackerConfigServiceStub", address: str) -> None:
        self.stub: Any = stub  # methods are found by the names of kinds
        self.address = address

    async def get(self, kind: Kind[Any], *key: str) -> Any | None:
        """One resource, archived or not; None when there is none."""
        try:
            answer = await self._call("Get", kind, **dict(zip(kind.key, key, strict=True)))
        except grpc.aio.AioRpcError as error:
            if from_rpc_error(error).reason == f"{kind.name.upper()}_NOT_FOUND":
                return None
            raise
        return getattr(answer, kind.name)

    async def all(self, kind: Kind[Any], **request: Any) -> list[Any]:
        """Every resource that a list request names, archived ones too if it says so."""
        found: list[Any] = []
        async for page in self._pages(kind, _PAGE, request):
            found.extend(page)
        return found

    async def some(self, kind: Kind[Any], limit: int, **request: Any) -> tuple[list[Any], bool]:
        """The first `limit` resources that a list request names, and whether there are more."""
        found: list[Any] = []
        async for page in self._pages(kind, min(limit + 1, _PAGE), request):
            found.extend(page)
            if len(found) > limit:
                break
        return found[:limit], len(found) > limit

    async def create(self, kind: Kind[Any], resource: Any) -> Any:
        """The new resource, as stored."""
        return getattr(await self._call("Create", kind, **{kind.name: resource}), kind.name)

    async def update(self, kind: Kind[Any], resource: Any, paths: Iterable[str]) -> Any:
        """The resource as stored, once the fields at `paths` are as given. Its etag, if it has one, must hold."""
        mask = FieldMask(paths=paths)
        return getattr(await self._call("Update", kind, **{kind.name: resource}, update_mask=mask), kind.name)

    async def archive(self, kind: Kind[Any], resource: Any) -> None:
        """Archives it, if it is still of this etag."""
        await self._call("Archive", kind, **dict(zip(kind.key, kind.key_of(resource), strict=True)), etag=resource.etag)

    async def _pages(self, kind: Kind[Any], size: int, request: dict[str, Any]) -> AsyncIterator[list[Any]]:
        name = kind.message.DESCRIPTOR.name
        method = f"List{_PLURALS.get(name, f'{name}s')}"
        token = ""
        while True:
            listed = message_class(f"reengage.tracker.v1.{method}Request")(page_size=size, page_token=token, **request)
            answer = await getattr(self.stub, method)(listed)
            yield getattr(answer, answer.DESCRIPTOR.fields_by_number[1].name)
            token = answer.next_page_token
            if not token:
                return

    async def _call(self, verb: str, kind: Kind[Any], **request: Any) -> Any:
        method = f"{verb}{kind.message.DESCRIPTOR.name}"
        return await getattr(self.stub, method)(message_class(f"reengage.tracker.v1.{method}Request")(**request))


@asynccontextmanager
async def connected(target: str) -> AsyncIterator[Settings]:
    """The tracker at `target`, or the one that runs here. A failed call becomes a CallError."""
    address = target or target_of("tracker")
    async with open_channel(address, timeout_s=_TIMEOUT_S, key=key_of("tracker")) as channel:
        try:
            yield Settings(service_pb2_grpc.TrackerConfigServiceStub(channel), address)
        except grpc.aio.AioRpcError as error:
            raise CallError(describe_failure(error, "tracker", address)) from error
