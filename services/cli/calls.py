"""Calling any method of the suite by name, with JSON in and out, from the checked-in descriptors."""

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator, Iterator
from importlib import import_module
from pkgutil import iter_modules

import grpc
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message

from libs.channels import open_channel
from libs.errors import from_rpc_error
from services.cli.places import ADDRESSES, ADMIN_KEY

PACKAGES = ("tracker", "ingest", "attribution", "postback")
DEFAULT_PORTS = {"tracker": 7101, "ingest": 7102, "attribution": 7103, "postback": 7104}
RETRY_S = 0.5


class CallError(Exception):
    """The call could not be made, or failed; the message says what to change."""


def find_method(name: str) -> tuple[str, MethodDescriptor]:
    """The service (`tracker`, …) and the method that `name` means.

    `name` is SERVICE/METHOD: `ingest/RecordBatch`, `IngestService/RecordBatch` or
    `reengage.ingest.v1.IngestService/RecordBatch`. Raises CallError with what there is instead.
    """
    wanted_service, _, wanted_method = name.lstrip("/").rpartition("/")
    methods: list[tuple[str, MethodDescriptor]] = []
    for package in PACKAGES:
        for service in _services(package):
            if wanted_service in (package, service.name, service.full_name):
                methods.extend((package, method) for method in service.methods)
    if not methods:
        raise CallError(f"{name!r} is no SERVICE/METHOD; services are {', '.join(PACKAGES)}")
    for package, method in methods:
        if method.name == wanted_method:
            return package, method
    raise CallError(f"{wanted_service} has no method {wanted_method!r}; it has {', '.join(m.name for _, m in methods)}")


def _services(package: str) -> Iterator[ServiceDescriptor]:
    """Yields the gRPC services of a package: each of its files that has gRPC code defines some."""
    for module in iter_modules(import_module(f"reengage.{package}.v1").__path__):
        if module.name.endswith("_pb2_grpc"):
            file = import_module(f"reengage.{package}.v1.{module.name.removesuffix('_grpc')}").DESCRIPTOR
            yield from file.services_by_name.values()


def target_of(service: str) -> str:
    """Where a service is: REENGAGE_<SERVICE>_TARGET, else as `make run` has it here, else its default port."""
    if given := os.environ.get(f"REENGAGE_{service.upper()}_TARGET"):
        return given
    try:
        running: dict[str, str] = json.loads(ADDRESSES.read_text())
    except (OSError, ValueError):
        running = {}
    return running.get(service) or f"127.0.0.1:{DEFAULT_PORTS[service]}"


def key_of(service: str) -> str:
    """The API key for a service, of which only tracker wants one: REENGAGE_API_KEY, else that of `make run` here."""
    if service != "tracker":
        return ""
    if given := os.environ.get("REENGAGE_API_KEY"):
        return given
    try:
        return ADMIN_KEY.read_text()
    except OSError:
        return ""


def parse_request(method: MethodDescriptor, text: str) -> Message:
    """The request that a JSON text is. Raises CallError naming what does not fit."""
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
    """Calls a unary or server-streaming method; yields its responses. Raises CallError."""
    if method.client_streaming:
        raise CallError(f"{method.name} takes a stream of requests, which this command does not send")
    address = target or target_of(service)
    assert method.containing_service is not None
    path = f"/{method.containing_service.full_name}/{method.name}"
    answer = message_factory.GetMessageClass(method.output_type)
    async with open_channel(address, key=key_of(service)) as channel:
        try:
            if method.server_streaming:
                stream = channel.unary_stream(
                    path, request_serializer=type(request).SerializeToString, response_deserializer=answer.FromString
                )
                async for response in stream(request):
                    yield response
            else:
                unary = channel.unary_unary(
                    path, request_serializer=type(request).SerializeToString, response_deserializer=answer.FromString
                )
                yield await unary(request)
        except grpc.aio.AioRpcError as error:
            raise CallError(describe_failure(error, service, address)) from error


async def follow(name: str, request: Message, *, target: str = "") -> AsyncIterator[Message]:
    """The responses of a stream that can be gone on with: broken off, it goes on after the last response.

    Raises CallError when the first call fails, or one for another reason than that the service is away.
    """
    service, method = find_method(name)
    has_begun = False
    while True:
        try:
            async for response in call(service, method, request, target=target):
                yield response
                has_begun = True
                request.resume_token = response.resume_token  # type: ignore[attr-defined]  # both have one
        except CallError as error:
            if not (has_begun and is_away(error)):
                raise
            await asyncio.sleep(RETRY_S)


async def ask(name: str, request: Message, *, target: str = "") -> Message:
    """The one response of a unary method. Raises CallError."""
    service, method = find_method(name)
    async for response in call(service, method, request, target=target):
        return response
    raise CallError(f"{name} answered nothing")


def is_away(error: CallError) -> bool:
    """Whether nobody answered, which may be otherwise in a moment."""
    cause = error.__cause__
    return isinstance(cause, grpc.aio.AioRpcError) and cause.code() is grpc.StatusCode.UNAVAILABLE


def describe_failure(error: grpc.aio.AioRpcError, service: str, address: str) -> str:
    """A failed call for people: the reason, every wrong field, and what to do."""
    details = from_rpc_error(error)
    if details.code is grpc.StatusCode.UNAVAILABLE and details.reason == details.code.name:
        return (
            f"No {service} answers at {address}. `make run` starts the suite; for another place set "
            f"REENGAGE_{service.upper()}_TARGET or --target."
        )
    lines = [f"{details.code.name} {details.message}"]
    if details.violations:
        lines = [" ".join(dict.fromkeys((details.code.name, details.reason)))]
        lines.extend(f"  {wrong.field}: {wrong.description} ({wrong.reason})" for wrong in details.violations)
    if details.retry_after_s is not None:
        lines.append(f"  Try again in {details.retry_after_s:g} s.")
    return "\n".join(lines)


def to_json(message: Message, *, indent: int | None = None) -> str:
    """JSON with the field names of the protos."""
    return json_format.MessageToJson(message, preserving_proto_field_name=True, indent=indent, ensure_ascii=False)
