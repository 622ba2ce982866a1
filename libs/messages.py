"""Messages of any kind: their classes and enum values by name, and what in them nobody knows."""

from collections.abc import Iterable, Iterator
from typing import Any

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.message import Message


def message_class(full_name: str) -> type[Message]:
    """Returns the class of a message, such as `reengage.tracker.v1.App`. Raises KeyError if no module that defines it
    was imported."""
    return message_factory.GetMessageClass(descriptor_pool.Default().FindMessageTypeByName(full_name))


def short_name(kind: EnumDescriptor, number: int) -> str:
    """Returns the name of an enum's value without the prefix of the enum, as `WON` for VERDICT_WON.

    Returns "" for zero, and digits for a value that this version does not know.
    """
    if not number:
        return ""
    value = kind.values_by_number.get(number)
    return str(number) if value is None else value.name.removeprefix(kind.values[0].name.removesuffix("UNSPECIFIED"))


def take_unknown_fields(message: Message, path: str = "") -> Iterator[str]:
    """Takes the unknown fields away from a message and all in it; yields the paths of the messages that had some.

    The path of the message itself is empty, unless it is given.
    """
    for field, value in message.ListFields():
        if field.message_type is not None:
            inside = f"{path}.{field.name}" if path else field.name
            for suffix, part in _messages(value):
                yield from take_unknown_fields(part, inside + suffix)
    size = message.ByteSize()
    message.DiscardUnknownFields()
    if message.ByteSize() < size:
        yield path


def _messages(value: Any) -> Iterable[tuple[str, Message]]:
    """Returns the messages of a field that is one, or has several as a list or a map, each with the end of its path."""
    if isinstance(value, Message):
        return [("", value)]
    if hasattr(value, "items"):
        return [(f".{key}", part) for key, part in value.items() if isinstance(part, Message)]
    return [(f"[{index}]", part) for index, part in enumerate(value)]
