"""Tables for people of records that were refused, or kept without what was wrong with them."""

from collections.abc import Iterable

from rich.markup import escape

from reengage.ingest.v1 import rejected_record_pb2, warned_record_pb2
from services.cli import tables
from services.cli.tables import print_whole, table, time_text


def print_warned(app_id: str, found: Iterable[warned_record_pb2.WarnedRecord]) -> None:
    """Prints a line for each warning; the time and the record stand beside the first of a record."""
    rows = table(f"Warnings of {escape(app_id)}", "accepted", "kind", "record", "field", "code", "what became of it",
                 whole=["record"])  # fmt: skip
    for each in found:
        beside = [time_text(each.accept_time), each.kind, escape(each.record_id)]
        for warning in each.warnings:
            rows.add_row(*beside, escape(warning.field), escape(warning.code), escape(warning.message))
            beside = [""] * len(beside)
    if rows.row_count:
        print_whole(rows)
    else:
        tables.console.print(f"Warnings of {escape(app_id)}: none")


def print_refused(app_id: str, found: Iterable[rejected_record_pb2.RejectedRecord]) -> None:
    """Prints a line for each wrong field; the time and the record stand beside the first of a record."""
    rows = table(f"Refused records of {escape(app_id)}", "refused", "kind", "record", "field", "reason", "must be",
                 whole=["record"])  # fmt: skip
    for each in found:
        kind = each.record.WhichOneof("kind") or "unknown"
        beside = [time_text(each.reject_time), kind, escape(each.record.record_id)]
        for wrong in each.violations:
            rows.add_row(*beside, escape(wrong.field), escape(wrong.reason), escape(wrong.description))
            beside = [""] * len(beside)
    if rows.row_count:
        print_whole(rows)
    else:
        tables.console.print(f"Refused records of {escape(app_id)}: none")
