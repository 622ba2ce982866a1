"""Records that are too large to be sent: their texts are cut as ingest would cut them."""

from google.protobuf.message import Message

from libs.domain.record_sizes import MAX_PAIRS, MAX_TEXT_BYTES, cut, is_long
from libs.errors import Violations


def shorten(message: Message, warnings: Violations, path: str = "") -> None:
    """Cuts each text of a message, and the values and the number of names of its maps; says so in names of a record."""
    for field, value in message.ListFields():
        inside = f"{path}.{field.name}" if path else field.name
        if isinstance(value, str):
            if is_long(value):
                setattr(message, field.name, cut(value))
                warnings.add(inside, "TOO_LONG", f"cut to {MAX_TEXT_BYTES:,} bytes")
        elif isinstance(value, Message):
            shorten(value, warnings, inside)
        elif hasattr(value, "items"):
            for name in sorted(value)[MAX_PAIRS:]:
                warnings.add(f"{inside}.{name}", "TOO_MANY", f"left out: more than {MAX_PAIRS} names")
                del value[name]
            for name, text in list(value.items()):
                if is_long(name):
                    del value[name]
                    warnings.add(f"{inside}.{name[:64]}", "TOO_LONG", "left out: its name is too long")
                elif is_long(text):
                    value[name] = cut(text)
                    warnings.add(f"{inside}.{name}", "TOO_LONG", f"cut to {MAX_TEXT_BYTES:,} bytes")
