"""Differences between two states of a resource, field by field. Pure."""

import json
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from reengage.tracker.v1.change_pb2 import FieldChange
from services.tracker.kinds import SET_BY_SERVICE

_LEAVES = ("google.protobuf.Duration", "google.protobuf.Timestamp", "reengage.tracker.v1.Window")
_HIDDEN = ("auth_keys", "click_validation_key", "credentials", "key_hash")


def field_changes(before: Message | None, after: Message) -> list[FieldChange]:
    """Returns every field that differs, by path, as JSON, but those that the service sets. Secrets show as `"…"`."""
    old = _flat(before) if before is not None else {}
    new = _flat(after)
    return [
        FieldChange(path=path, before=_shown(path, old.get(path, "")), after=_shown(path, new.get(path, "")))
        for path in sorted(old.keys() | new.keys())
        if old.get(path) != new.get(path)
    ]


def _flat(message: Message) -> dict[str, str]:
    values = MessageToDict(message, preserving_proto_field_name=True)
    for name in SET_BY_SERVICE:
        values.pop(name, None)
    found: dict[str, str] = {}
    _flatten("", message.DESCRIPTOR, values, found)
    return found


def _flatten(prefix: str, descriptor: Any, values: dict[str, Any], found: dict[str, str]) -> None:
    for name, value in values.items():
        field = descriptor.fields_by_name[name]
        within = field.message_type
        if within is not None and not field.is_repeated and within.full_name not in _LEAVES:
            _flatten(f"{prefix}{name}.", within, value, found)
        else:
            found[prefix + name] = json.dumps(value, ensure_ascii=False, sort_keys=True)


def _shown(path: str, text: str) -> str:
    return '"…"' if text and path in _HIDDEN else text


def shown_value(message: Message, name: str, value: Any) -> str:
    """Returns a text or an enum value as people call it: `REENGAGEMENT`."""
    kind = message.DESCRIPTOR.fields_by_name[name].enum_type
    if kind is None:
        return str(value)
    prefix = kind.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return str(kind.values_by_number[value].name.removeprefix(prefix)) if value in kind.values_by_number else str(value)
