"""Reads the fields of settings as people write them, from a file of YAML or from the command line.

Values are written as `services.cli.fields` says; every problem has its line.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import yaml
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from libs.time import parse_duration, to_duration
from libs.yaml_lines import Problem, line_of
from reengage.tracker.v1.windows_pb2 import Window
from services.cli.fields import MisfitError, is_leaf, is_map, nearest, read_choice, read_time

_NULL, _TEXT = "tag:yaml.org,2002:null", "tag:yaml.org,2002:str"
_FLAGS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_SURROGATE = re.compile("[\ud800-\udfff]")
_WHOLE_NUMBER = re.compile(r"-?\d{1,18}")


class Fields:
    """Reader of the fields of one message, which notes problems and, by path, lines.

    `closed` says of fields that nobody may write here why that is so.
    """

    def __init__(self, message: Message, closed: Mapping[str, str]) -> None:
        self.message = message
        self.lines: dict[str, int] = {}
        self.problems: list[Problem] = []
        self._closed = closed

    def read(self, pairs: list[tuple[yaml.Node, yaml.Node]]) -> None:
        """Reads the values of the keys of a YAML object."""
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
        if is_leaf(self._field(message, name)):
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
            if is_map(field):
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
            elif not is_leaf(field):
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
    """Returns keys and values of an object. Raises MisfitError."""
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


def text_in(node: yaml.Node) -> str:
    """Returns a text. Raises MisfitError."""
    if not isinstance(node, yaml.ScalarNode) or node.tag == _NULL:
        raise MisfitError("should be a text")
    text = str(node.value)
    if _SURROGATE.search(text):
        raise MisfitError("should be a text in UTF-8")
    return text


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


_MESSAGES: dict[str, Callable[[str], Message]] = {
    Duration.DESCRIPTOR.full_name: _duration,
    Timestamp.DESCRIPTOR.full_name: read_time,
    Window.DESCRIPTOR.full_name: _window,
}


def _composed(text: str) -> yaml.Node:
    return yaml.compose(text, Loader=yaml.SafeLoader) or yaml.ScalarNode(_NULL, "")


def _node(field: FieldDescriptor, text: str) -> yaml.Node:
    """Returns a value of the command line as it would stand in a file."""

    def scalar(value: str) -> yaml.Node:
        return yaml.ScalarNode(_TEXT, value.strip())

    if not field.is_repeated and is_leaf(field):
        return yaml.ScalarNode(_TEXT, text)
    if text.lstrip().startswith(("[", "{")):
        return _composed(text)
    parts = [part for part in text.split(",") if part.strip()]
    if field.message_type is None:
        return yaml.SequenceNode(_TEXT, [scalar(part) for part in parts])
    return yaml.MappingNode(
        _TEXT, [(scalar(key), scalar(value)) for key, _, value in (part.partition("=") for part in parts)]
    )
