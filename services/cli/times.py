"""Times and periods on the command line."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli.console import WRONG, fail

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

Start = Annotated[
    str,
    typer.Option(
        "--from", metavar="TIME", help="Required: conversions then or later; 2026-03-01T00:00:00Z, or the day."
    ),
]
End = Annotated[str, typer.Option("--to", metavar="TIME", help="Conversions before that. Default: now.")]


def time_option(name: str, text: str) -> "Timestamp":
    """Returns the time that an option gives. Ends the command when it is none."""
    from services.cli.fields import MisfitError, read_time

    try:
        return read_time(text)
    except MisfitError as misfit:
        fail(f"{name} {misfit}", code=WRONG)


def period(start: str, end: str) -> "tuple[Timestamp, Timestamp]":
    """Returns the times of `--from` and `--to`. Ends the command when one is missing or wrong."""
    if not start:
        fail("--from is missing: since when conversions are decided again.", code=WRONG)
    return time_option("--from", start), time_option("--to", end or datetime.now(UTC).isoformat())
