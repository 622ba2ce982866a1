"""Requests that are right but for one field, which holds what nobody means: for every field of every RPC."""

import asyncio
import base64
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message

from libs.errors import MAX_VIOLATIONS, from_rpc_error

MAX_DEPTH = 6
_CALLS_AT_ONCE = 16
_UNARY_S, _STREAM_S = 60.0, 0.3
"""A stream may have nothing to say; whatever else has no answer within a minute never has one."""
_LAST = ("Archive", "Erase", "Forget")
_FAULTS = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNIMPLEMENTED)

_INT64, _INT32 = (-(2**63), -1, 2**63 - 1), (-(2**31), -1, 2**31 - 1)
_UINT64, _UINT32 = (2**63, 2**64 - 1), (2**31, 2**32 - 1)
_REALS = (float("nan"), float("inf"), -float("inf"), 1e308, -1.0)
_KINDS: dict[int, tuple[Any, ...]] = {
    FieldDescriptor.CPPTYPE_INT64: _INT64,
    FieldDescriptor.CPPTYPE_INT32: _INT32,
    FieldDescriptor.CPPTYPE_UINT64: _UINT64,
    FieldDescriptor.CPPTYPE_UINT32: _UINT32,
    FieldDescriptor.CPPTYPE_DOUBLE: _REALS,
    FieldDescriptor.CPPTYPE_FLOAT: _REALS,
    FieldDescriptor.CPPTYPE_ENUM: (-1, 99, 2**31 - 1),
    FieldDescriptor.CPPTYPE_BOOL: (True,),
}
_TEXTS = ("", "\0", "a\0b", "\u202e😀'\"\\%{}/../..\n", "-1", "9" * 400, "x" * 1_000_000)
_BYTES = (b"", b"\0", b"\xff" * 100, b"x" * 1_000_000)


def token(*key: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(key).encode()).decode()


_KEYS: tuple[list[Any], ...] = (
    ["\0"], [""], ["x"], [2**63 - 1], [-(2**63)], [2**63], [10**400], [1.5], [True], [None], [[]],
    [2**63 - 1, "x"], [-1, "\0"], [1, 2**63 - 1], [2**63 - 1, -(2**63)], ["x", 1],
    ["00000000-0000-0000-0000-000000000000", 2**63 - 1], [1, "00000000-0000-0000-0000-000000000000"],
    [1, 1, "x"], [2**63 - 1, 1, "x/y"], [2**63 - 1, "00", "x"], [1, "zz", "x"], [1, "00" * 5000, "x"],
    [1, "00", "\0"],
)  # fmt: skip
_TOKENS = (
    "[" * 3000,
    base64.urlsafe_b64encode(b"[" * 3000).decode(),
    base64.urlsafe_b64encode(b'["\\ud800"]').decode(),
    *(token(*key) for key in _KEYS),
)

Field: TypeAlias = Any
"""A FieldDescriptor: the stubs have two classes of this name."""
Filler = Callable[[Field], Any]
"""Returns a right value of a field that is no message; None for its type's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """A request for a method, and the field that is wrong in it."""

    method: MethodDescriptor
    request: Message
    place: str

    def __str__(self) -> str:
        return f"{self.method.name} {self.place}"


def attacks(method: MethodDescriptor, fill: Filler, right: Message | None) -> Iterator[Attack]:
    """Yields requests with one wrong field each: in an else empty one, in one that is filled as far as it goes, and in
    a right one, if there is one."""
    kind = message_factory.GetMessageClass(method.input_type)
    bases = {"empty": kind(), "filled": filled(kind(), fill), **({} if right is None else {"right": right})}
    for name, base in bases.items():
        for path in _paths(method.input_type):
            for value in _values(path[-1]):
                request: Any = kind()
                request.CopyFrom(base)
                if _put(request, path, value, fill):
                    if name == "right" and "update_mask" in kind.DESCRIPTOR.fields_by_name and len(path) > 1:
                        request.update_mask.paths[:] = [path[1].name]  # it is read only then
                    place = ".".join(field.name for field in path)
                    yield Attack(method=method, request=request, place=f"{name} {place}={ascii(value)[:40]}")


def filled(message: Message, fill: Filler, depth: int = 0) -> Message:
    """Fills a message, of each oneof the first field, of each list one entry; returns it."""
    for field in message.DESCRIPTOR.fields:
        oneof = field.containing_oneof
        if oneof is not None and field is not oneof.fields[0]:
            continue
        if field.message_type is None:
            _set(message, field, _right(field, fill))
        elif depth < MAX_DEPTH and not _is_map(field):
            inner = getattr(message, field.name)
            inner = inner.add() if field.is_repeated else inner
            inner.SetInParent()
            filled(inner, fill, depth + 1)
    return message


def _paths(kind: Descriptor, above: tuple[Field, ...] = ()) -> Iterator[tuple[Field, ...]]:
    for field in kind.fields:
        path = (*above, field)
        if field.message_type is None or _is_map(field):
            yield path
        elif len(path) <= MAX_DEPTH and sum(one.message_type is field.message_type for one in path) < 2:
            if field.is_repeated:
                yield path
            yield from _paths(field.message_type, path)


def _values(field: Field) -> tuple[Any, ...]:
    if _is_map(field):
        return (*({text: text} for text in _TEXTS), {str(number): "x" for number in range(3000)})
    if field.message_type is not None:
        return (5000,)  # a list of as many
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING if field.type == FieldDescriptor.TYPE_BYTES:
            found: tuple[Any, ...] = _BYTES
        case FieldDescriptor.CPPTYPE_STRING:
            found = _TEXTS + (_TOKENS if field.name.endswith("_token") else ())
        case kind:
            found = _KINDS[kind]
    return (*found, "many") if field.is_repeated else found


def _put(message: Message, path: tuple[Field, ...], value: Any, fill: Filler) -> bool:
    """Puts a value at a path; returns whether it can stand there."""
    *above, last = path
    for field in above:
        inner = getattr(message, field.name)
        if field.is_repeated:
            inner = inner[0] if len(inner) else inner.add()
        inner.SetInParent()
        message = inner
    given = getattr(message, last.name)
    if _is_map(last):
        key, item = last.message_type.fields
        if key.cpp_type != FieldDescriptor.CPPTYPE_STRING or item.message_type is not None:
            first = next(iter(value))
            if key.cpp_type == FieldDescriptor.CPPTYPE_STRING and item.message_type is not None:
                given[first].SetInParent()
                return True
            return False
        if item.cpp_type != FieldDescriptor.CPPTYPE_STRING:
            value = dict.fromkeys(value, _KINDS[item.cpp_type][-1])
        given.clear()
        given.update(value)
    elif last.message_type is not None:
        for _ in range(value):
            given.add()
    elif value == "many" and last.is_repeated:
        given.extend([_right(last, fill)] * 5000)
    else:
        _set(message, last, value)
    return True


def _set(message: Message, field: Field, value: Any) -> None:
    if field.is_repeated:
        given = getattr(message, field.name)
        del given[:]
        given.append(value)
    else:
        setattr(message, field.name, value)


def _right(field: Field, fill: Filler) -> Any:
    value = fill(field)
    if value is not None:
        return value
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return b"x" if field.type == FieldDescriptor.TYPE_BYTES else "x"
    if field.enum_type is not None:
        return field.enum_type.values[min(1, len(field.enum_type.values) - 1)].number
    return 0


def _is_map(field: Field) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


async def faults(
    service: ServiceDescriptor,
    stub: Any,
    fill: Filler,
    *,
    right: Mapping[str, Message] = MappingProxyType({}),
    left_out: Collection[str] = (),
) -> list[str]:
    """Attacks every method of a service, those that remove things after the others; returns what went wrong.

    `right` has requests that are served, by method.
    """
    found: list[str] = []
    room = asyncio.Semaphore(_CALLS_AT_ONCE)

    async def attack(one: Attack) -> None:
        async with room:
            if fault := await fault_of(one, stub):
                found.append(f"{one}: {fault}")

    methods = sorted(service.methods, key=lambda method: method.name.startswith(_LAST))
    for method in methods:
        if method.name not in left_out:
            async with asyncio.TaskGroup() as tasks:
                for one in attacks(method, fill, right.get(method.name)):
                    await room.acquire()
                    room.release()
                    tasks.create_task(attack(one))
    return found


async def fault_of(attack: Attack, stub: Any) -> str:
    """Returns what is wrong with the response to a request; empty when it is an answer, or refuses with a reason."""
    call, is_stream = getattr(stub, attack.method.name), attack.method.server_streaming
    given = iter([attack.request]) if attack.method.client_streaming else attack.request
    try:
        if is_stream:
            responses = call(given, timeout=_STREAM_S)
            await responses.read()
            responses.cancel()
        else:
            await call(given, timeout=_UNARY_S)
    except grpc.aio.AioRpcError as error:
        details = from_rpc_error(error)
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED and is_stream:
            return ""
        if details.code in _FAULTS or details.reason == details.code.name != "INVALID_ARGUMENT":
            return f"{details.code.name} {details.reason} {details.message[:200]}"
        texts = [details.message, *(one.field + one.description for one in details.violations)]
        if len(details.violations) > MAX_VIOLATIONS or not all(text.isprintable() for text in texts):
            return f"too many wrong fields, or not printable: {texts[-1][:200]!r}"
    except asyncio.CancelledError:
        if not is_stream:
            raise
    return ""
