"""The fields of settings as people write and read them: `30d`, `disabled`, `REENGAGEMENT`, and the names of the protos.

- durations are `90s`, `30m`, `6h` or `30d`, or 0; windows the same, or `disabled`, or `unlimited`;
- choices are named without their prefix, as `REENGAGEMENT`; times are ISO 8601, UTC where they do not say;
- lists, objects, texts, numbers, true and false are those of YAML; null is as good as no key.
"""

import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Any, NamedTuple

from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp

from libs.messages import short_name
from libs.time import duration_us, format_duration
from reengage.tracker.v1.windows_pb2 import Window

SECRET = frozenset({"auth_keys", "click_validation_key", "credentials", "secrets"})
"""Fields whose values are not shown."""
_STRUCT_VALUE = Struct.FieldsEntry.DESCRIPTOR.fields_by_name["value"]
_LEAVES = (Duration.DESCRIPTOR, Timestamp.DESCRIPTOR, Window.DESCRIPTOR)


class Difference(NamedTuple):
    """A field that is not as it shall be; texts as people write them, empty where it is not set."""

    path: str
    before: str
    after: str


class MisfitError(Exception):
    """A value that does not fit; the message says what would."""


def _whole(value: Any) -> Any:
    """Returns a value of JSON with whole numbers as such: a Struct holds but floating-point ones."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return {name: _whole(item) for name, item in value.items()} if isinstance(value, dict) else value


def text_of(field: FieldDescriptor, value: Any) -> str:
    """Returns a value for people, as it may be written."""
    if field.name in SECRET:
        return "(secret)"
    if is_map(field):
        return ", ".join(f"{key}={value[key]}" for key in sorted(value))
    if field.is_repeated:
        return ", ".join(_text(field, item) for item in value)
    return _text(field, value)


def plain(field: FieldDescriptor, value: Any) -> Any:
    """Returns a value as YAML holds it."""
    if is_map(field):
        return {key: value[key] for key in sorted(value)}
    if field.is_repeated:
        return [_text(field, item) for item in value]
    if isinstance(value, Value):
        from google.protobuf import json_format

        return _whole(json_format.MessageToDict(value))
    return value if isinstance(value, bool | int) and field.enum_type is None else _text(field, value)


def leaves(message: Message, prefix: str = "") -> Iterator[tuple[str, FieldDescriptor, Any]]:
    """Yields path, field and value of everything that is set: of inner messages each field by itself, as masks do."""
    for field, value in message.ListFields():
        path = f"{prefix}{field.name}"
        if field.message_type is Struct.DESCRIPTOR:
            yield from ((f"{path}.{name}", _STRUCT_VALUE, value.fields[name]) for name in sorted(value.fields))
        elif is_leaf(field):
            yield path, field, value
        else:
            yield from leaves(value, f"{path}.")


def differences(before: Message, after: Message, ignored: frozenset[str]) -> list[Difference]:
    """Returns every field that differs; `ignored` are names of fields of the message itself."""
    held = {path: (field, value) for path, field, value in leaves(before)}
    wanted = {path: (field, value) for path, field, value in leaves(after)}
    return [
        Difference(path, *(text_of(*side[path]) if path in side else "" for side in (held, wanted)))
        for path in (*wanted, *(path for path in held if path not in wanted))
        if path.partition(".")[0] not in ignored
        and (path not in held or path not in wanted or held[path][1] != wanted[path][1])
    ]


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns the known names that are like a name, as a question to follow a message; empty when none is."""
    found = get_close_matches(name, list(known), n=3)
    return f". Did you mean {' or '.join(found)}?" if found else ""


def read_choice(kind: EnumDescriptor, text: str) -> int:
    """Returns the number of an enum's value by its name, with or without its prefix. Raises MisfitError."""
    names = {short_name(kind, number): number for number in kind.values_by_number if number}
    if (number := names.get(text.upper().removeprefix(_prefix(kind)))) is None:
        raise MisfitError(f"should be one of {', '.join(names)}{nearest(text.upper(), names)}")
    return number


def is_map(field: FieldDescriptor) -> bool:
    """Returns whether a field is a map of texts."""
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def is_leaf(field: FieldDescriptor) -> bool:
    """Returns whether a field is written as a whole, so that nothing inside it has a path."""
    return field.message_type is None or field.is_repeated or field.message_type in _LEAVES


def _prefix(kind: EnumDescriptor) -> str:
    return kind.values_by_number[0].name.removesuffix("UNSPECIFIED")


def _text(field: FieldDescriptor, value: Any) -> str:
    if field.enum_type is not None:
        return short_name(field.enum_type, value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Duration):
        return _duration_text(value)
    if isinstance(value, Window):
        limit = value.WhichOneof("limit") or ""
        return _duration_text(value.duration) if limit == "duration" else limit
    if isinstance(value, Timestamp):
        return value.ToJsonString()
    if isinstance(value, Value):
        native = plain(field, value)
        return native if isinstance(native, str) else json.dumps(native, ensure_ascii=False)
    if isinstance(value, Message):
        from google.protobuf import json_format

        return json_format.MessageToJson(value, preserving_proto_field_name=True, indent=None)
    return str(value)


def _duration_text(duration: Duration) -> str:
    try:
        return format_duration(duration_us(duration))
    except ValueError:
        return duration.ToJsonString()  # nobody writes such a one


def read_time(text: str) -> Timestamp:
    """Returns a time as people write it, UTC where it names no zone. Raises MisfitError."""
    made = Timestamp()
    try:
        time = datetime.fromisoformat(text)
        made.FromDatetime(time if time.tzinfo else time.replace(tzinfo=UTC))
    except (ValueError, OverflowError):
        raise MisfitError("should be a time, as 2026-03-01T00:00:00Z or 2026-03-01") from None
    return made
