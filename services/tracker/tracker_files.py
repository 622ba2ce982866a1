"""Trackers as files and back: CSV for spreadsheets, NDJSON for programs. Pure."""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from google.protobuf import json_format
from google.protobuf.duration_pb2 import Duration

from libs.errors import Violations
from libs.time import duration_us, format_duration, parse_duration, to_duration
from reengage.tracker.v1.tracker_edit_pb2 import FILE_FORMAT_NDJSON, FileFormat
from reengage.tracker.v1.tracker_pb2 import Tracker
from reengage.tracker.v1.windows_pb2 import Window, Windows

_LEFT_OUT = ("create_time", "revision", "etag", "click_validation_key", "has_click_validation_key")
# A spreadsheet would run a name that begins so, and others than its reader give names: a quote before it, one more
# before those that have some already, keeps it a text.
_FORMULA = re.compile(r"^(?='*[=+@-])")
_QUOTED_FORMULA = re.compile(r"^'(?='*[=+@-])")
_WINDOWS = tuple(f"windows.{field.name}" for field in Windows.DESCRIPTOR.fields)
_FIELDS = tuple(field.name for field in Tracker.DESCRIPTOR.fields if field.name not in _LEFT_OUT)
COLUMNS = tuple(column for name in _FIELDS for column in (_WINDOWS if name == "windows" else (name,)))
"""The columns of a CSV file, in their order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One tracker of a file: where it stands, what it says, and the paths of the fields that it speaks of."""

    line: int
    tracker: Tracker
    paths: tuple[str, ...]


def write(trackers: Iterable[Tracker], format: FileFormat.ValueType, *, first: bool) -> bytes:  # noqa: A002
    """Returns whole lines; with the column names before the `first` of a CSV file."""
    text = io.StringIO()
    if format == FILE_FORMAT_NDJSON:
        for tracker in trackers:
            values = json_format.MessageToDict(tracker, preserving_proto_field_name=True)
            kept = {name: value for name, value in values.items() if name not in _LEFT_OUT}
            text.write(json.dumps(kept, ensure_ascii=False) + "\n")
    else:
        writer = csv.writer(text, lineterminator="\n")
        if first:
            writer.writerow(COLUMNS)
        writer.writerows([_FORMULA.sub("'", _cell(tracker, column)) for column in COLUMNS] for tracker in trackers)
    return text.getvalue().encode()


def read(content: bytes, format: FileFormat.ValueType, violations: Violations) -> list[Row]:  # noqa: A002
    """Returns the rows of a file; notes every line that cannot be read, as `line 3: events`."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        violations.add("content", "INVALID_TEXT", "must be UTF-8")
        return []
    return list(_read_ndjson(text, violations) if format == FILE_FORMAT_NDJSON else _read_csv(text, violations))


def _read_ndjson(text: str, violations: Violations) -> Iterator[Row]:
    for line, row in enumerate(text.split("\n"), start=1):
        if not row.strip():
            continue
        try:
            tracker = json_format.Parse(row, Tracker())
        except (json_format.ParseError, RecursionError) as error:
            violations.add(f"line {line}", "INVALID_ROW", str(error))
            continue
        if tracker.click_validation_key:
            violations.add(f"line {line}: click_validation_key", "NOT_ALLOWED", "is a secret, which no file holds")
        yield Row(line=line, tracker=tracker, paths=_FIELDS)


def _read_csv(text: str, violations: Violations) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(text), strict=True)
    columns: list[str] = []
    try:
        columns = next(reader, [])
        for column in columns:
            if column not in COLUMNS:
                violations.add(f"line 1: {column[:64]}", "UNKNOWN_FIELD", "is no column of a tracker")
        for cells in reader:
            line = reader.line_num
            if len(cells) != len(columns):
                if cells:
                    violations.add(f"line {line}", "INVALID_ROW", f"must have {len(columns)} cells")
                continue
            tracker = Tracker()
            for column, cell in zip(columns, cells, strict=True):
                if column in COLUMNS and cell:
                    _fill(tracker, column, _QUOTED_FORMULA.sub("", cell), line, violations)
            yield Row(line=line, tracker=tracker, paths=tuple(column for column in columns if column in COLUMNS))
    except csv.Error as error:
        violations.add(f"line {reader.line_num}", "INVALID_ROW", str(error))


def _cell(tracker: Tracker, column: str) -> str:
    if column.startswith("windows."):
        name = column.removeprefix("windows.")
        return _window_text(getattr(tracker.windows, name)) if tracker.windows.HasField(name) else ""  # type: ignore[arg-type]
    field = Tracker.DESCRIPTOR.fields_by_name[column]
    value = getattr(tracker, column)
    if field.has_presence and not tracker.HasField(column):  # type: ignore[arg-type]
        return ""
    if isinstance(value, Duration):
        return _duration_text(value)
    if field.message_type is not None or field.is_repeated:
        plain = json_format.MessageToDict(tracker, preserving_proto_field_name=True).get(column)
        return json.dumps(plain, ensure_ascii=False) if plain else ""
    if field.enum_type is not None:
        return str(field.enum_type.values_by_number[value].name) if value else ""
    if isinstance(value, bool):
        return str(value).lower() if value or field.has_presence else ""
    return str(value) if value or field.has_presence else ""


def _fill(tracker: Tracker, column: str, cell: str, line: int, violations: Violations) -> None:
    try:
        if column.startswith("windows."):
            getattr(tracker.windows, column.removeprefix("windows.")).CopyFrom(_window(cell))
            return
        field = Tracker.DESCRIPTOR.fields_by_name[column]
        value: Any = cell
        if field.message_type is not None and field.message_type.full_name == Duration.DESCRIPTOR.full_name:
            getattr(tracker, column).CopyFrom(_duration(cell))
            return
        if field.message_type is not None or field.is_repeated or field.cpp_type != field.CPPTYPE_STRING:
            value = cell if field.enum_type is not None else json.loads(cell)
        json_format.ParseDict({column: value}, tracker)
    except (ValueError, RecursionError, json_format.ParseError):
        violations.add(f"line {line}: {column}", "INVALID_VALUE", "cannot be read; export a tracker to see its form")


def _window_text(window: Window) -> str:
    limit = window.WhichOneof("limit")
    return _duration_text(window.duration) if limit == "duration" else limit or ""


def _window(text: str) -> Window:
    if text == "disabled":
        return Window(disabled=True)
    if text == "unlimited":
        return Window(unlimited=True)
    return Window(duration=_duration(text))


def _duration_text(duration: Duration) -> str:
    return format_duration(duration_us(duration))


def _duration(text: str) -> Duration:
    return to_duration(parse_duration(text.strip()))
