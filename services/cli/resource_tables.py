"""Settings, and what changes in them, for people and as JSON."""

import json
from collections.abc import Iterable
from typing import Any, TypeAlias

from google.protobuf import json_format
from google.protobuf.message import Message
from rich.markup import escape

from reengage.tracker.v1 import change_pb2, resolve_pb2, tracker_edit_pb2, tracker_pb2
from services.cli.fields import Difference, choice, leaves, text_of
from services.cli.tables import console, print_whole, table
from services.tracker.kinds import Kind

Rows: TypeAlias = Iterable[tuple[str, str, Iterable[Difference]]]
"""Changes: what is done (`create`, `update` or `archive`), to what, and the fields that change."""
_ACTIONS = {
    change_pb2.Change.ACTION_CREATED: "create",
    change_pb2.Change.ACTION_UPDATED: "update",
    change_pb2.Change.ACTION_ARCHIVED: "archive",
}
_COLOURS = {"create": "green", "update": "yellow", "archive": "red"}


def print_changes(title: str, rows: Rows) -> None:
    """A line a change, and one for each field after the first."""
    changes = table(escape(title), "change", "what", "field", "is", "will be")
    for action, name, fields in rows:
        heads = iter([(f"[{_COLOURS[action]}]{action}[/]", escape(name))])
        for path, before, after in [*fields] or [Difference("", "", "")]:
            changes.add_row(*next(heads, ("", "")), escape(path), escape(before), escape(after))
    console.print(changes)


def changes_json(app_id: str, rows: Rows) -> str:
    """The same for programs."""
    changes = [
        {"action": action, "what": name, "fields": [field._asdict() for field in fields]}
        for action, name, fields in rows
    ]
    return json.dumps({"app_id": app_id, "changes": changes}, indent=2, ensure_ascii=False)


def tracker_rows(changes: Iterable[tracker_edit_pb2.TrackerChange]) -> Rows:
    """The changes that tracker answers."""
    return [
        (
            _ACTIONS[change.action],
            f"tracker {change.tracker_id}",
            [Difference(f.path, _shown(f.path, f.before), _shown(f.path, f.after)) for f in change.fields],
        )
        for change in changes
    ]


def print_resources(title: str, resources: Iterable[Message], *columns: str) -> None:
    """A line each, with the fields named; a column that is empty throughout is left out."""
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
    """Every field that is set."""
    rows = table(escape(title), "field", "value")
    for path, field, value in leaves(resource):
        rows.add_row(escape(path), escape(text_of(field, value)))
    console.print(rows)


def resources_json(kind: Kind[Any], resources: Iterable[Message]) -> str:
    """The same for programs: one object with a list."""
    listed = [json_format.MessageToDict(one, preserving_proto_field_name=True) for one in resources]
    return json.dumps({f"{kind.name}s": listed}, indent=2, ensure_ascii=False)


def print_resolved(tracker_id: str, answer: resolve_pb2.ResolveSettingsResponse) -> None:
    """The effective value of each setting, the layer that it comes from, and the rule."""
    rows = table(f"What holds for {escape(tracker_id)}, revision {answer.revision}", "setting", "value", "from", "rule")
    for setting in answer.settings:
        limit = setting.WhichOneof("value")
        field = setting.DESCRIPTOR.fields_by_name[limit] if limit else None
        value = text_of(field, getattr(setting, field.name)) if field is not None else ""
        layer = choice(resolve_pb2.ResolvedSetting.Layer.DESCRIPTOR, setting.layer).lower().replace("_", " ")
        rows.add_row(escape(setting.name), escape(value), layer, setting.rule)
    console.print(rows)


def _shown(path: str, text: str) -> str:
    """A field's JSON as people write the value."""
    if not text:
        return ""
    value = json.loads(text)
    for name in reversed(path.split(".")):
        value = {name: value}
    tracker = json_format.ParseDict(value, tracker_pb2.Tracker(), ignore_unknown_fields=True)
    return next((text_of(field, held) for _, field, held in leaves(tracker)), text)
