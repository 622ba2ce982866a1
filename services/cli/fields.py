"""The fields of settings as people write and read them: `30d`, `disabled`, `REENGAGEMENT`, and the names of the protos.

Written as YAML, so that every problem has its line:

- durations are `90s`, `30m`, `6h` or `30d`, or 0; windows the same, or `disabled`, or `unlimited`;
- choices are named without their prefix, as `REENGAGEMENT`; times are ISO 8601, UTC where they do not say;
- lists, objects, texts, numbers, true and false are those of YAML; null is as good as no key.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Any, NamedTuple

import yaml
from google.protobuf import json_format
from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp

from libs.messages import short_name
from libs.time import duration_us, format_duration, parse_duration, to_duration
from libs.yaml_lines import Problem, line_of
from reengage.tracker.v1.windows_pb2 import Window

SECRET = frozenset({"click_validation_key", "credentials", "secrets"})
"""Fields whose values are not shown."""
_NULL, _TEXT = "tag:yaml.org,2002:null", "tag:yaml.org,2002:str"
_FLAGS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_SURROGATE = re.compile("[\ud800-\udfff]")
_WHOLE_NUMBER = re.compile(r"-?\d{1,18}")
_STRUCT_VALUE = Struct.FieldsEntry.DESCRIPTOR.fields_by_name["value"]
_LEAVES = (Duration.DESCRIPTOR, Timestamp.DESCRIPTOR, Window.DESCRIPTOR)


class Difference(NamedTuple):
    """A field that is not as it shall be; texts as people write them, empty where it is not set."""

    path: str
    before: str
    after: str


class MisfitError(Exception):
    """A value that does not fit; the message says what would."""


class Fields:
    """Reads the fields of one message, and notes problems and, by path, lines.

    `closed` says of fields that nobody may write here why that is so.
    """

    def __init__(self, message: Message, closed: Mapping[str, str]) -> None:
        self.message = message
        self.lines: dict[str, int] = {}
        self.problems: list[Problem] = []
        self._closed = closed

    def read(self, pairs: list[tuple[yaml.Node, yaml.Node]]) -> None:
        """The values of the keys of a YAML object."""
        self._object(pairs, self.message, "")

    def assign(self, path: str, text: str, *, is_yaml: bool = False) -> None:
        """Sets a value of the command line, at a path such as `windows.click_device`; an empty text clears the field.

        Lists may be written `a, b` and objects `key=value, key=value`, too; `is_yaml`: it is YAML, nothing else.
        """
        message: Any = self.message
        *parents, name = path.split(".")
        try:
            for parent in parents:
                message = self._inner(message, parent)
            field = self._field(message, name)
        except MisfitError as misfit:
            self.problems.append(Problem(1, f"{path}: {misfit}"))
            return
        if path in self.lines:
            self.problems.append(Problem(1, f"{path} is given twice"))
            return
        self.lines[path] = 1
        if text:
            try:
                node = _composed(text) if is_yaml else _node(field, text)
            except yaml.YAMLError as error:
                self.problems.append(Problem(1, f"{path}: {getattr(error, 'problem', error)}"))
                return
            self._value(node, message, field, path)

    def _object(self, pairs: list[tuple[yaml.Node, yaml.Node]], message: Message, prefix: str) -> None:
        for key, value in pairs:
            line = line_of(key)
            try:
                name = text_in(key)
                field = self._field(message, name)
            except MisfitError as misfit:
                self.problems.append(Problem(line, f"{prefix.removesuffix('.')}: {misfit}" if prefix else str(misfit)))
                continue
            path = f"{prefix}{name}"
            if path in self.lines:
                self.problems.append(Problem(line, f"{path} stands here twice"))
            elif value.tag != _NULL:
                self.lines[path] = line
                self._value(value, message, field, path)

    def _inner(self, message: Message, name: str) -> Message:
        if _is_leaf(self._field(message, name)):
            raise MisfitError(f"{name} has no fields; give it as a whole")
        inner: Message = getattr(message, name)
        return inner

    def _field(self, message: Message, name: str) -> FieldDescriptor:
        fields: Mapping[str, Any] = message.DESCRIPTOR.fields_by_name
        closed: Mapping[str, str] = self._closed if message is self.message else {}
        if name in closed:
            raise MisfitError(f"{name} {closed[name]}")
        if name not in fields:
            names = [each for each in fields if each not in closed]
            raise MisfitError(f"there is no {name!r} here; there are {', '.join(names)}{nearest(name, names)}")
        field: FieldDescriptor = fields[name]
        return field

    def _value(self, node: yaml.Node, message: Any, field: FieldDescriptor, path: str) -> None:
        """Puts one value into the message."""
        try:
            if _is_map(field):
                for key, value in pairs_in(node):
                    getattr(message, field.name)[text_in(key)] = text_in(value)
            elif field.message_type is Struct.DESCRIPTOR:
                for key, value in pairs_in(node):
                    self.lines[f"{path}.{text_in(key)}"] = line_of(key)
                    getattr(message, field.name)[text_in(key)] = _native(value)
            elif field.is_repeated:
                for index, item in enumerate(_items(node)):
                    self.lines[f"{path}[{index}]"] = line_of(item)
                    getattr(message, field.name).append(_scalar(field, item))
            elif not _is_leaf(field):
                inner = getattr(message, field.name)
                inner.SetInParent()
                self._object(pairs_in(node), inner, f"{path}.")
            elif field.message_type is not None:
                getattr(message, field.name).CopyFrom(_scalar(field, node))
            else:
                setattr(message, field.name, _scalar(field, node))
        except MisfitError as misfit:
            self.problems.append(Problem(line_of(node), f"{path}: {misfit}"))


def pairs_in(node: yaml.Node) -> list[tuple[yaml.Node, yaml.Node]]:
    """Keys and values of an object. Raises MisfitError."""
    if not isinstance(node, yaml.MappingNode):
        raise MisfitError("should be an object: keys and values")
    return list(node.value)


def _items(node: yaml.Node) -> list[yaml.Node]:
    if not isinstance(node, yaml.SequenceNode):
        raise MisfitError("should be a list")
    return list(node.value)


def _native(node: yaml.Node) -> Any:
    """Returns what a node is in YAML: a text, a number, a flag, a list or an object. Raises MisfitError."""
    if isinstance(node, yaml.SequenceNode):
        return [_native(item) for item in node.value]
    if isinstance(node, yaml.MappingNode):
        return {text_in(key): _native(value) for key, value in node.value}
    text = text_in(node)
    match node.tag.rpartition(":")[2]:
        case "bool":
            return _FLAGS[text.lower()]
        case "int" if _WHOLE_NUMBER.fullmatch(text):
            return int(text)
        case "float":
            return float(text)
        case _:
            return text


def _whole(value: Any) -> Any:
    """Returns a value of JSON with whole numbers as such: a Struct holds but floating-point ones."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return {name: _whole(item) for name, item in value.items()} if isinstance(value, dict) else value


def text_in(node: yaml.Node) -> str:
    """A text. Raises MisfitError."""
    if not isinstance(node, yaml.ScalarNode) or node.tag == _NULL:
        raise MisfitError("should be a text")
    text = str(node.value)
    if _SURROGATE.search(text):
        raise MisfitError("should be a text in UTF-8")
    return text


def text_of(field: FieldDescriptor, value: Any) -> str:
    """A value for people, as it may be written."""
    if field.name in SECRET:
        return "(secret)"
    if _is_map(field):
        return ", ".join(f"{key}={value[key]}" for key in sorted(value))
    if field.is_repeated:
        return ", ".join(_text(field, item) for item in value)
    return _text(field, value)


def plain(field: FieldDescriptor, value: Any) -> Any:
    """A value as YAML holds it."""
    if _is_map(field):
        return {key: value[key] for key in sorted(value)}
    if field.is_repeated:
        return [_text(field, item) for item in value]
    if isinstance(value, Value):
        return _whole(json_format.MessageToDict(value))
    return value if isinstance(value, bool | int) and field.enum_type is None else _text(field, value)


def leaves(message: Message, prefix: str = "") -> Iterator[tuple[str, FieldDescriptor, Any]]:
    """Path, field and value of everything that is set: those of inner messages each by itself, as field masks do."""
    for field, value in message.ListFields():
        path = f"{prefix}{field.name}"
        if field.message_type is Struct.DESCRIPTOR:
            yield from ((f"{path}.{name}", _STRUCT_VALUE, value.fields[name]) for name in sorted(value.fields))
        elif _is_leaf(field):
            yield path, field, value
        else:
            yield from leaves(value, f"{path}.")


def differences(before: Message, after: Message, ignored: frozenset[str]) -> list[Difference]:
    """Every field that differs; `ignored` are names of fields of the message itself."""
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
    """The number of an enum's value by its name, with or without its prefix. Raises MisfitError."""
    names = {short_name(kind, number): number for number in kind.values_by_number if number}
    if (number := names.get(text.upper().removeprefix(_prefix(kind)))) is None:
        raise MisfitError(f"should be one of {', '.join(names)}{nearest(text.upper(), names)}")
    return number


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _is_leaf(field: FieldDescriptor) -> bool:
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
        return json_format.MessageToJson(value, preserving_proto_field_name=True, indent=None)
    return str(value)


def _duration_text(duration: Duration) -> str:
    try:
        return format_duration(duration_us(duration))
    except ValueError:
        return duration.ToJsonString()  # nobody writes such a one


def _scalar(field: FieldDescriptor, node: yaml.Node) -> Any:
    text = text_in(node)
    if field.enum_type is not None:
        return read_choice(field.enum_type, text)
    if field.message_type is not None:
        if (parse := _MESSAGES.get(field.message_type.full_name)) is None:
            raise MisfitError("cannot be written here")
        return parse(text)
    if field.type == FieldDescriptor.TYPE_BOOL:
        if text.lower() not in _FLAGS:
            raise MisfitError("should be true or false")
        return _FLAGS[text.lower()]
    if field.type == FieldDescriptor.TYPE_STRING:
        return text
    bits = 31 if field.type == FieldDescriptor.TYPE_INT32 else 63
    if not _WHOLE_NUMBER.fullmatch(text) or not -(2**bits) <= int(text) < 2**bits:
        raise MisfitError("should be a whole number")
    return int(text)


def _duration(text: str) -> Duration:
    try:
        return to_duration(parse_duration("0s" if text == "0" else text))
    except ValueError as error:
        raise MisfitError(str(error)) from None


def _window(text: str) -> Window:
    if text == "disabled":
        return Window(disabled=True)
    if text == "unlimited":
        return Window(unlimited=True)
    try:
        return Window(duration=_duration(text))
    except MisfitError as misfit:
        raise MisfitError(f"{misfit}, or disabled, or unlimited") from None


def read_time(text: str) -> Timestamp:
    """A time as people write it, UTC where it names no zone. Raises MisfitError."""
    made = Timestamp()
    try:
        time = datetime.fromisoformat(text)
        made.FromDatetime(time if time.tzinfo else time.replace(tzinfo=UTC))
    except (ValueError, OverflowError):
        raise MisfitError("should be a time, as 2026-03-01T00:00:00Z or 2026-03-01") from None
    return made


_MESSAGES: dict[str, Callable[[str], Message]] = {
    Duration.DESCRIPTOR.full_name: _duration,
    Timestamp.DESCRIPTOR.full_name: read_time,
    Window.DESCRIPTOR.full_name: _window,
}


def _composed(text: str) -> yaml.Node:
    return yaml.compose(text, Loader=yaml.SafeLoader) or yaml.ScalarNode(_NULL, "")


def _node(field: FieldDescriptor, text: str) -> yaml.Node:
    """A value of the command line as it would stand in a file."""

    def scalar(value: str) -> yaml.Node:
        return yaml.ScalarNode(_TEXT, value.strip())

    if not field.is_repeated and _is_leaf(field):
        return yaml.ScalarNode(_TEXT, text)
    if text.lstrip().startswith(("[", "{")):
        return _composed(text)
    parts = [part for part in text.split(",") if part.strip()]
    if field.message_type is None:
        return yaml.SequenceNode(_TEXT, [scalar(part) for part in parts])
    return yaml.MappingNode(
        _TEXT, [(scalar(key), scalar(value)) for key, _, value in (part.partition("=") for part in parts)]
    )
