"""The calls on resources: every kind by the same few, found by the name of its message."""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from importlib import import_module
from typing import Any

import grpc
from google.protobuf.field_mask_pb2 import FieldMask

from libs.client import first, items
from libs.errors import NotFound
from services.cli.connections import connected
from services.cli.kinds import Kind

_SERVICES = {"tracker": "TrackerConfigService", "postback": "PostbackConfigService"}


class Resources:
    """The resources of one service. Its calls raise ServiceError."""

    def __init__(self, channel: grpc.aio.Channel, service: str) -> None:
        # The protos of the other service would double the time that a command takes to start.
        module = import_module(f"reengage.{service}.v1.service_pb2_grpc")
        self.stub: Any = getattr(module, f"{_SERVICES[service]}Stub")(channel)

    async def get(self, kind: Kind, *key: str) -> Any | None:
        """Returns one resource, archived or not; None when there is none."""
        try:
            return await self.existing(kind, *key)
        except NotFound as error:
            if error.reason == f"{kind.name.upper()}_NOT_FOUND":
                return None
            raise

    async def existing(self, kind: Kind, *key: str) -> Any:
        """Returns one resource, archived or not. Raises NotFound when there is none."""
        return getattr(await self._call("Get", kind, **dict(zip(kind.key, key, strict=True))), kind.name)

    async def all(self, kind: Kind, **request: Any) -> list[Any]:
        """Returns every resource that a list request names, archived ones too if it says so."""
        return [resource async for resource in items(*self._listing(kind, request))]

    async def some(self, kind: Kind, limit: int, **request: Any) -> tuple[list[Any], bool]:
        """Returns the first `limit` resources that a list request names, and whether there are more."""
        return await first(*self._listing(kind, request), limit)

    async def create(self, kind: Kind, resource: Any, **further: Any) -> Any:
        """Returns the new resource, as stored."""
        return getattr(await self._call("Create", kind, **{kind.name: resource}, **further), kind.name)

    async def update(self, kind: Kind, resource: Any, paths: Iterable[str], **further: Any) -> Any:
        """Returns the resource as stored, once the fields at `paths` are as given. An etag that it has must hold."""
        mask = FieldMask(paths=paths)
        response = await self._call("Update", kind, **{kind.name: resource}, update_mask=mask, **further)
        return getattr(response, kind.name)

    async def archive(self, kind: Kind, *key: str) -> Any:
        """Returns the archived resource."""
        return getattr(await self._call("Archive", kind, **dict(zip(kind.key, key, strict=True))), kind.name)

    def _listing(self, kind: Kind, request: dict[str, Any]) -> tuple[Any, Any]:
        """Returns the List method of a kind, and its request."""
        return getattr(self.stub, kind.list_method), kind.class_of(f"{kind.list_method}Request")(**request)

    async def _call(self, verb: str, kind: Kind, **request: Any) -> Any:
        method = f"{verb}{kind.message_name}"
        return await getattr(self.stub, method)(kind.class_of(f"{method}Request")(**request))


@asynccontextmanager
async def resources_of(service: str, target: str = "") -> AsyncIterator[Resources]:
    """Yields the resources of tracker or postback, at `target` or where it runs here. A failed call is a CallError."""
    async with connected(service, target) as channel:
        yield Resources(channel, service)
