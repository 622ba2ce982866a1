"""Tables for people, in one style."""

import sys
from collections.abc import Iterable
from typing import Literal

from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

# A file or a pipe has no width: wide enough for a table of candidates.
console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)


def table(title: str, *headings: str, numbers: Iterable[str] = (), whole: Iterable[str] = ()) -> Table:
    """Returns an empty table in the style of all of them.

    Columns named in `numbers` are aligned right; what stands in those named in `whole` is never broken over lines.
    """
    made = Table(
        title=title, title_justify="left", title_style="bold", header_style="bold dim", box=None, pad_edge=False
    )
    right, unbroken = set(numbers), set(whole)
    for heading in headings:
        justify: Literal["left", "right"] = "right" if heading in right else "left"
        made.add_column(heading, justify=justify, overflow="fold", no_wrap=heading in unbroken)
    return made


def print_whole(rows: Table) -> None:
    """Prints a table with no id cut off: where there is too little room, its lines run over the edge instead."""
    needed = Measurement.get(console, console.options.update(max_width=10_000), rows)
    if needed.minimum > console.width:
        rows.width = needed.maximum
    console.print(rows, crop=False)


def time_text(time: Timestamp) -> str:
    """Returns a time for people, in UTC and to the second."""
    return time.ToDatetime().strftime("%Y-%m-%d %H:%M:%S")
