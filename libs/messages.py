"""Messages of any kind: their classes and enum values by name, and what in them nobody knows."""

from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, EnumDescriptor
from google.protobuf.message import Message

_FREE_MESSAGES, _MAX_MESSAGES, _BYTES_A_MESSAGE = 10_000, 100_000, 32


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


def is_bomb(content: bytes, kind: Descriptor) -> bool:
    """Returns whether a serialised message holds so many tiny messages that parsing it takes a hundred times its size.

    An empty message takes two bytes, and some two hundred in memory. What cannot be parsed anyway is none.
    """
    most = min(_FREE_MESSAGES + len(content) // _BYTES_A_MESSAGE, _MAX_MESSAGES)
    count, waiting = 0, [(kind, 0, len(content))]
    while waiting:
        kind, place, end = waiting.pop()
        lists, looked_into = _lists_of(kind)
        try:
            while place < end:
                tag, place = _varint(content, place)
                match tag & 7:
                    case 2:  # bytes, a text, or a message
                        size, place = _varint(content, place)
                        number = tag >> 3
                        count += number in lists
                        if size and number in looked_into:
                            waiting.append((looked_into[number], place, min(place + size, end)))
                        place += size
                    case 0:
                        _, place = _varint(content, place)
                    case 1:
                        place += 8
                    case 5:
                        place += 4
                    case _:
                        pass  # a group: its fields come next
                if count > most:
                    return True
        except IndexError:
            return False
    return False


def _varint(content: bytes, place: int) -> tuple[int, int]:
    """Returns a number, and the place after it. Raises IndexError at the end of the content."""
    byte = content[place]
    if byte < 128:
        return byte, place + 1
    value, shift = 0, 0
    while byte >= 128:
        value |= (byte & 127) << shift
        shift, place = shift + 7, place + 1
        byte = content[place]
    return value | byte << shift, place + 1


@cache
def _lists_of(kind: Descriptor) -> tuple[frozenset[int], dict[int, Descriptor]]:
    """Returns the fields that are lists of messages, and those whose messages have such in them, by number."""
    parts = {field.number: field for field in kind.fields if field.message_type is not None}
    lists = frozenset(number for number, field in parts.items() if field.is_repeated)
    looked_into = {n: part for n, field in parts.items() if (part := field.message_type) and _has_lists(part)}
    return lists, looked_into


def _has_lists(kind: Descriptor, seen: frozenset[str] = frozenset()) -> bool:
    return kind.full_name not in seen and any(
        field.is_repeated or _has_lists(field.message_type, seen | {kind.full_name})
        for field in kind.fields
        if field.message_type is not None
    )


def _messages(value: Any) -> Iterable[tuple[str, Message]]:
    """Returns the messages of a field that is one, or has several as a list or a map, each with the end of its path."""
    if isinstance(value, Message):
        return [("", value)]
    if hasattr(value, "items"):
        return [(f".{key}", part) for key, part in value.items() if isinstance(part, Message)]
    return [(f"[{index}]", part) for index, part in enumerate(value)]
