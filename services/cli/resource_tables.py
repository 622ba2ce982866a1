"""Settings, and what changes in them, for people and as JSON."""

import json
from collections.abc import Iterable
from typing import Any, TypeAlias

from google.protobuf.message import Message
from rich.markup import escape

from libs.messages import short_name
from reengage.tracker.v1 import change_pb2, resolve_pb2, status_pb2, tracker_edit_pb2, tracker_pb2
from services.cli.fields import Difference, leaves, text_of
from services.cli.tables import console, print_whole, table

Rows: TypeAlias = Iterable[tuple[str, str, Iterable[Difference]]]
"""Changes: what is done (`create`, `update` or `archive`), to what, and the fields that change."""
_ACTIONS = {
    change_pb2.Change.ACTION_CREATED: "create",
    change_pb2.Change.ACTION_UPDATED: "update",
    change_pb2.Change.ACTION_ARCHIVED: "archive",
}
_COLOURS = {"create": "green", "update": "yellow", "archive": "red"}


def print_changes(title: str, rows: Rows) -> None:
    """Prints a line a change, and one for each field after the first."""
    changes = table(escape(title), "change", "what", "field", "is", "will be")
    for action, name, fields in rows:
        heads = iter([(f"[{_COLOURS[action]}]{action}[/]", escape(name))])
        for path, before, after in [*fields] or [Difference("", "", "")]:
            changes.add_row(*next(heads, ("", "")), escape(path), escape(before), escape(after))
    console.print(changes)


def changes_json(app_id: str, rows: Rows) -> str:
    """Returns the same for programs."""
    changes = [
        {"action": action, "what": name, "fields": [field._asdict() for field in fields]}
        for action, name, fields in rows
    ]
    return json.dumps({"app_id": app_id, "changes": changes}, indent=2, ensure_ascii=False)


def tracker_rows(changes: Iterable[tracker_edit_pb2.TrackerChange]) -> Rows:
    """Returns the changes of trackers as rows."""
    return [
        (
            _ACTIONS[change.action],
            f"tracker {change.tracker_id}",
            field_changes(tracker_pb2.Tracker, change.fields),
        )
        for change in changes
    ]


def field_changes(message: type[Message], changes: Iterable[change_pb2.FieldChange]) -> list[Difference]:
    """Returns changes of fields of a message as people write the values."""
    return [Difference(f.path, _shown(message, f.path, f.before), _shown(message, f.path, f.after)) for f in changes]


def print_resources(title: str, resources: Iterable[Message], *columns: str) -> None:
    """Prints a line each, with the fields named; a column that is empty throughout is left out."""
    cells = [{path: text_of(field, value) for path, field, value in leaves(one)} for one in resources]
    if not cells:
        console.print(f"{escape(title)}: none")
        return
    shown = [name for name in columns if any(one.get(name) for one in cells)]
    headings = [name.removesuffix("_id").replace("_", " ") for name in shown]
    ids = [heading for heading, name in zip(headings, shown, strict=True) if name.endswith("_id")]
    rows = table(escape(title), *headings, whole=ids)
    for one in cells:
        rows.add_row(*(escape(one.get(name, "")) for name in shown))
    print_whole(rows)


def print_resource(title: str, resource: Any) -> None:
    """Prints every field that is set."""
    rows = table(escape(title), "field", "value")
    for path, field, value in leaves(resource):
        rows.add_row(escape(path), escape(text_of(field, value)))
    console.print(rows)


def print_resolved(title: str, settings: Iterable[resolve_pb2.ResolvedSetting]) -> None:
    """Prints the effective value of each setting, the layer that it comes from, and the rule."""
    rows = table(escape(title), "setting", "value", "from", "rule")
    for setting in settings:
        rows.add_row(escape(setting.name), escape(_value(setting)), _layer(setting), setting.rule)
    console.print(rows)


def print_events(app_id: str, events: Iterable[Any], settings: Iterable[resolve_pb2.ResolvedSetting]) -> None:
    """Prints a line an event, with its effective settings and the layer of each; what people call it, if any has it."""
    held: dict[str, dict[str, str]] = {}
    for setting in settings:
        event_name, _, name = setting.name.removeprefix("events[").rpartition("].")
        held.setdefault(event_name, {})[name] = f"{_value(setting)} [dim]({_layer(setting)})[/]"
    found = list(events)
    display_names = {event.event_name: event.display_name for event in found if event.display_name != event.event_name}
    names = list(dict.fromkeys(name for values in held.values() for name in values))
    headings = ["event", *(["name"] if display_names else []), *(name.replace("_", " ") for name in names), "status"]
    rows = table(f"Events of {escape(app_id)}", *headings, whole=["event"])
    for event in found:
        values = held.get(event.event_name, {})
        status = "registered" if event.registered else short_name(status_pb2.Status.DESCRIPTOR, event.status).lower()
        called = [escape(display_names.get(event.event_name, ""))] if display_names else []
        rows.add_row(escape(event.event_name), *called, *(values.get(name, "") for name in names), status)
    if rows.row_count:
        print_whole(rows)
    else:
        console.print(f"Events of {escape(app_id)}: none")


def _value(setting: resolve_pb2.ResolvedSetting) -> str:
    limit = setting.WhichOneof("value")
    return text_of(setting.DESCRIPTOR.fields_by_name[limit], getattr(setting, limit)) if limit else ""


def _layer(setting: resolve_pb2.ResolvedSetting) -> str:
    return short_name(resolve_pb2.ResolvedSetting.Layer.DESCRIPTOR, setting.layer).lower().replace("_", " ")


def _shown(message: type[Message], path: str, text: str) -> str:
    """Returns a field's JSON as people write the value."""
    if not text:
        return ""
    value = json.loads(text)
    for name in reversed(path.split(".")):
        value = {name: value}
    from google.protobuf import json_format

    resource = json_format.ParseDict(value, message(), ignore_unknown_fields=True)
    return next((text_of(field, held) for _, field, held in leaves(resource)), text)
