"""Times and periods on the command line."""

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli.console import WRONG, fail

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

    from google.protobuf.timestamp_pb2 import Timestamp

_DAY = re.compile(r"\d{4}-\d\d-\d\d")

Start = Annotated[
    str,
    typer.Option(
        "--from",
        metavar="TIME",
        help="Required: conversions then or later; 2026-03-01T00:00:00Z, or the day in the app's time zone.",
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


def period(app_id: str, start: str, end: str) -> "tuple[Timestamp, Timestamp]":
    """Returns the times of `--from` and `--to`. Ends the command when one is missing or wrong.

    A day begins in the time zone of the app.
    """
    if not start:
        fail("--from is missing: since when conversions are decided again.", code=WRONG)
    end = end or datetime.now(UTC).isoformat()
    times = time_option("--from", start), time_option("--to", end)
    for time, text in zip(times, (start, end), strict=True):
        if _DAY.fullmatch(text.strip()):
            time.FromDatetime(datetime.fromisoformat(text.strip()).replace(tzinfo=_time_zone(app_id)))
    return times


def _time_zone(app_id: str) -> "ZoneInfo":
    from zoneinfo import ZoneInfo

    from services.cli.kinds import APP
    from services.cli.resource_commands import existing

    return ZoneInfo(existing(APP, "", app_id).time_zone)
