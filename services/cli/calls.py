"""Calling any method of the services by name, with JSON in and out, from the checked-in descriptors."""

import json
import re
from collections.abc import AsyncIterator, Iterator
from importlib import import_module
from pkgutil import iter_modules

from google.protobuf import json_format, message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message

from services.cli.connections import CallError, connected
from services.cli.fields import nearest

PACKAGES = ("tracker", "ingest", "attribution", "postback")


def find_method(name: str) -> tuple[str, MethodDescriptor]:
    """Returns the service (`tracker`, …) and the method that `name` means.

    `name` is SERVICE/METHOD: `ingest/RecordBatch`, `IngestService/RecordBatch` or
    `reengage.ingest.v1.IngestService/RecordBatch`. Raises CallError with what there is instead.
    """
    wanted_service, _, wanted_method = name.lstrip("/").rpartition("/")
    methods: list[tuple[str, MethodDescriptor]] = []
    for package in [package for package in PACKAGES if package in wanted_service.lower()] or PACKAGES:
        for service in _services(package):
            if wanted_service in (package, service.name, service.full_name):
                methods.extend((package, method) for method in service.methods)
    if not methods:
        raise CallError(f"{name!r} is no SERVICE/METHOD; services are {', '.join(PACKAGES)}")
    for package, method in methods:
        if method.name == wanted_method:
            return package, method
    names = [method.name for _, method in methods]
    hint = nearest(wanted_method, names) or f"; it has {', '.join(names)}"
    raise CallError(f"{wanted_service} has no method {wanted_method!r}{hint}")


def _services(package: str) -> Iterator[ServiceDescriptor]:
    """Yields the gRPC services of a package: each of its files that has gRPC code defines some."""
    for module in iter_modules(import_module(f"reengage.{package}.v1").__path__):
        if module.name.endswith("_pb2_grpc"):
            file = import_module(f"reengage.{package}.v1.{module.name.removesuffix('_grpc')}").DESCRIPTOR
            yield from file.services_by_name.values()


def parse_request(method: MethodDescriptor, text: str) -> Message:
    """Returns the request that a JSON text is. Raises CallError naming what does not fit."""
    request = message_factory.GetMessageClass(method.input_type)()
    try:
        fields = json.loads(text)
        if not isinstance(fields, dict):
            raise CallError(f"The JSON is no {method.input_type.name}: it must be an object")
        # JSON's field masks are in camelCase only, while all else here is written as the protos do.
        for name in {"update_mask", "updateMask"} & fields.keys():
            fields[name] = re.sub(r"_([a-z0-9])", lambda letter: letter[1].upper(), str(fields[name]))
        return json_format.ParseDict(fields, request)
    except (ValueError, json_format.ParseError) as error:
        raise CallError(f"The JSON is no {method.input_type.name}: {error}") from error


async def call(service: str, method: MethodDescriptor, request: Message, *, target: str = "") -> AsyncIterator[Message]:
    """Calls a unary or server-streaming method and yields its responses. Raises CallError."""
    if method.client_streaming:
        raise CallError(f"{method.name} takes a stream of requests, which this command does not send")
    assert method.containing_service is not None
    path = f"/{method.containing_service.full_name}/{method.name}"
    response_type = message_factory.GetMessageClass(method.output_type)
    serialise, parse = type(request).SerializeToString, response_type.FromString
    async with connected(service, target) as channel:
        if method.server_streaming:
            stream = channel.unary_stream(path, request_serializer=serialise, response_deserializer=parse)
            async for response in stream(request):
                yield response
        else:
            unary = channel.unary_unary(path, request_serializer=serialise, response_deserializer=parse)
            yield await unary(request)
