"""The fields of an adapter: described for callers, and read from what callers sent."""

from collections.abc import Iterable
from typing import TypeAlias, assert_never

from google.protobuf.struct_pb2 import Struct, Value

from libs.time import format_duration, parse_duration
from reengage.postback.v1 import adapter_pb2
from services.postback.adapters.adapter import Adapter, Description, Field, FieldType, FieldValue, FieldValues, Report

Written: TypeAlias = str | bool | float | list[str] | dict[str, str]
"""A value as callers write it, in a Struct."""


def describe(adapter: type[Adapter]) -> adapter_pb2.Adapter:
    """Returns an adapter's description as a message."""
    description = adapter.description
    return adapter_pb2.Adapter(
        name=description.name,
        label=description.label,
        help=description.help,
        catalogue_networks=description.catalogue_networks,
        claim_capable=description.is_claim_capable,
        options=[adapter_pb2.Adapter.Option.ValueType(one) for one in sorted(description.options)],
        max_deliveries_per_second=description.max_deliveries_per_second,
        takes_named_secrets=description.takes_named_secrets,
        fields=map(_described, description.fields),
    )


def complete_fields(description: Description, fields: Struct) -> None:
    """Fills in the defaults of fields that were not given, and writes durations in their shortest form.

    What is wrong, or of another adapter, stays as it is, for `read_fields` to report.
    """
    for field in description.fields:
        if _is_given(fields, field):
            if field.type is FieldType.DURATION:
                _shorten(fields, field)
        elif field.default is not None:
            fields[field.name] = field.default
        elif field.name in fields:
            del fields[field.name]


def read_fields(description: Description, fields: Struct, report: Report) -> FieldValues:
    """Returns the values of completed fields, and reports every one that the description alone refuses.

    In place of one that is refused stands the field's default, if it has any.
    """
    by_name = {field.name: field for field in description.fields if field.type is not FieldType.SECRET}
    for name in sorted(set(fields) - by_name.keys()):
        reason = "SECRET" if name in description.secret_names else "UNKNOWN_FIELD"
        report(name, reason, "belongs into secrets" if reason == "SECRET" else "the adapter has no such field")
    values: dict[str, FieldValue] = {}
    for field in by_name.values():
        if field.name not in fields:
            if field.required:
                report(field.name, "REQUIRED", "must be set")
            continue
        problem = _problem(field, fields.fields[field.name])
        if problem is None:
            values[field.name] = _parsed(field, _written(fields.fields[field.name]))
        else:
            report(field.name, *problem)
            if field.default is not None:
                values[field.name] = _parsed(field, field.default)
    return FieldValues(values)


def _described(field: Field) -> adapter_pb2.AdapterField:
    return adapter_pb2.AdapterField(
        name=field.name,
        type=adapter_pb2.AdapterField.Type.ValueType(field.type),
        label=field.label,
        help=field.help,
        required=field.required,
        default=None if field.default is None else _to_value(field.default),
        allowed_values=[
            adapter_pb2.AllowedValue(value=_to_value(allowed.value), label=allowed.label) for allowed in field.allowed
        ],
        max_characters=field.max_characters,
        max_entries=field.max_entries,
    )


def _to_value(written: str | bool | int) -> Value:
    match written:
        case bool():
            return Value(bool_value=written)
        case int():
            return Value(number_value=written)
        case str():
            return Value(string_value=written)
        case _:
            assert_never(written)


def _is_given(fields: Struct, field: Field) -> bool:
    """Returns whether a field is given; an empty text counts as not given, as in every other message."""
    if field.name not in fields:
        return False
    value = fields.fields[field.name]
    return value.WhichOneof("kind") not in (None, "null_value") and (
        value.WhichOneof("kind") != "string_value" or value.string_value != ""
    )


def _shorten(fields: Struct, field: Field) -> None:
    try:
        fields[field.name] = format_duration(parse_duration(fields.fields[field.name].string_value))
    except ValueError:
        return  # reported when it is read


_KINDS = {
    FieldType.TEXT: ("string_value", "must be a text"),
    FieldType.CHOICE: ("string_value", "must be a text"),
    FieldType.FLAG: ("bool_value", "must be true or false"),
    FieldType.NUMBER: ("number_value", "must be a whole number"),
    FieldType.DURATION: ("string_value", "must be a duration, as 90s, 30m, 6h or 30d"),
    FieldType.LIST: ("list_value", "must be a list of texts"),
    FieldType.HEADERS: ("struct_value", "must be an object of texts by name"),
}


def _problem(field: Field, value: Value) -> tuple[str, str] | None:
    """Returns the reason and the remedy of the first thing that is wrong with a value."""
    kind, remedy = _KINDS[field.type]
    if value.WhichOneof("kind") != kind or not _has_type(field, value):
        return "INVALID_TYPE", remedy
    texts = list(_texts(value))
    if any("\0" in text for text in texts):
        return "INVALID_TEXT", "must not contain NUL"
    if field.max_characters and any(len(text) > field.max_characters for text in texts):
        return "TOO_LONG", f"must be at most {field.max_characters:,} characters"
    if field.max_entries and _entry_count(value) > field.max_entries:
        return "TOO_MANY", f"must be at most {field.max_entries}"
    if field.allowed and _parsed(field, _written(value)) not in [_parsed(field, one.value) for one in field.allowed]:
        return "NOT_ALLOWED", f"must be one of {', '.join(str(one.value) for one in field.allowed)}"
    return None


def _has_type(field: Field, value: Value) -> bool:
    match field.type:
        case FieldType.NUMBER:
            return value.number_value.is_integer() and abs(value.number_value) <= 2**53
        case FieldType.DURATION:
            try:
                parse_duration(value.string_value)
            except ValueError:
                return False
            return True
        case FieldType.LIST:
            return _are_texts(value.list_value.values)
        case FieldType.HEADERS:
            return _are_texts(value.struct_value.fields.values())
        case FieldType.TEXT | FieldType.CHOICE | FieldType.FLAG | FieldType.SECRET:
            return True
        case _:
            assert_never(field.type)


def _are_texts(values: Iterable[Value]) -> bool:
    return all(value.WhichOneof("kind") == "string_value" for value in values)


def _texts(value: Value) -> Iterable[str]:
    match value.WhichOneof("kind"):
        case "string_value":
            return [value.string_value]
        case "list_value":
            return [entry.string_value for entry in value.list_value.values]
        case "struct_value":
            fields = value.struct_value.fields
            return [*fields, *(entry.string_value for entry in fields.values())]
        case _:
            return []


def _entry_count(value: Value) -> int:
    return len(value.list_value.values) or len(value.struct_value.fields)


def _written(value: Value) -> Written:
    match value.WhichOneof("kind"):
        case "bool_value":
            return value.bool_value
        case "number_value":
            return value.number_value
        case "list_value":
            return [entry.string_value for entry in value.list_value.values]
        case "struct_value":
            return {name: entry.string_value for name, entry in value.struct_value.fields.items()}
        case _:
            return value.string_value


def _parsed(field: Field, written: Written) -> FieldValue:
    match written:
        case str() if field.type is FieldType.DURATION:
            return parse_duration(written)
        case float():
            return int(written)
        case list():
            return tuple(written)
        case _:
            return written
