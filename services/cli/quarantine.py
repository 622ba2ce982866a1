"""Tables of the quarantine for people, and the choice that they make of it."""

from collections.abc import Collection, Iterable

import typer
from google.protobuf.descriptor import EnumDescriptor
from rich.markup import escape

from libs.messages import short_name
from reengage.attribution.v1 import quarantine_pb2
from services.cli import tables
from services.cli.tables import print_whole, table, time_text

_WORK = quarantine_pb2.QuarantineWork.DESCRIPTOR
_REASON = quarantine_pb2.QuarantineReason.DESCRIPTOR


def work_of(text: str) -> quarantine_pb2.QuarantineWork.ValueType:
    """Returns the work that a text names, of any if it is empty. Ends the command if there is none such."""
    return quarantine_pb2.QuarantineWork.ValueType(_value_of(_WORK, text, "--work"))


def filter_of(item_ids: Collection[str], app_id: str, work: str, because: str) -> quarantine_pb2.QuarantineFilter:
    """Returns the filter that arguments and options mean. Ends the command if they mean nothing."""
    if not (item_ids or app_id or work or because):
        raise typer.BadParameter("say what is meant: ids, --app, --work or --because")
    return quarantine_pb2.QuarantineFilter(
        item_ids=item_ids,
        app_id=app_id,
        work=work_of(work),
        reason=quarantine_pb2.QuarantineReason.ValueType(_value_of(_REASON, because, "--because")),
    )


def print_quarantined(found: Iterable[quarantine_pb2.QuarantinedItem]) -> None:
    """Prints a line for each thing that was set aside."""
    rows = table(
        "Set aside", "id", "app", "work", "record", "reason", "error", "tried", "times", numbers=["times"], whole=["id"]
    )
    for each in found:
        rows.add_row(
            each.item_id,
            escape(each.app_id),
            _text_of(_WORK, each.work),
            escape(each.record_id),
            _text_of(_REASON, each.reason) + (", is tried again" if each.retrying else ""),
            escape(each.error),
            time_text(each.try_time),
            str(each.try_count),
        )
    if rows.row_count:
        print_whole(rows)
    else:
        tables.console.print("Set aside: nothing")


def _text_of(kind: EnumDescriptor, number: int) -> str:
    return short_name(kind, number).lower().replace("_", "-")


def _value_of(kind: EnumDescriptor, text: str, option: str) -> int:
    if not text:
        return 0
    numbers = {_text_of(kind, value.number): value.number for value in kind.values if value.number}
    if text not in numbers:
        raise typer.BadParameter(f"must be one of {', '.join(numbers)}", param_hint=option)
    return numbers[text]
