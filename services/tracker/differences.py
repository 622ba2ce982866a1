"""What differs between two states of a resource, field by field. Pure."""

import json
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from reengage.tracker.v1.change_pb2 import FieldChange
from services.tracker.kinds import SET_BY_SERVICE

_LEAVES = ("google.protobuf.Duration", "google.protobuf.Timestamp", "reengage.tracker.v1.Window")
_HIDDEN = ("click_validation_key",)


def field_changes(before: Message | None, after: Message) -> list[FieldChange]:
    """Every field that differs, by path, as JSON; without those that the service sets. Keys are shown as `"…"`."""
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
