"""Message classes and enum values by name, for code that handles many kinds alike."""

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
