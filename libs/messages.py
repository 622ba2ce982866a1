"""Message classes by name, for code that handles many kinds of messages alike."""

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.message import Message


def message_class(full_name: str) -> type[Message]:
    """Returns the class of a message, such as `reengage.tracker.v1.App`. Raises KeyError if no module that defines it
    was imported."""
    return message_factory.GetMessageClass(descriptor_pool.Default().FindMessageTypeByName(full_name))
