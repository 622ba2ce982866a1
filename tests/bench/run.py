"""The performance table: what this machine does, each row beside a limit measured in the same run.

`make bench` runs all of it, some five minutes on two cores. Load goes to loopback only.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.bench import calls, decide, gateway, ingest, postback, replay, stored, tracker, whole
from tests.bench.row import Row

Part = Callable[[], Awaitable[list[Row]]]
PARTS: dict[str, Part] = {
    "calls": calls.bench,
    "tracker": tracker.bench,
    "decide": decide.bench,
    "stored": stored.bench,
    "replay": replay.bench,
    "ingest": ingest.bench,
    "gateway": gateway.bench,
    "postback": postback.bench,
    "whole": whole.bench,
}


def main() -> int:
    """Exit code 0, or 1 when a row misses what is asked of it."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows to FILE")
    parser.add_argument("--only", choices=PARTS, action="append", help="measure this part alone; may be repeated")
    options = parser.parse_args()
    console = Console(stderr=True)
    rows: list[Row] = []
    for name in options.only or PARTS:
        console.print(f"[bold]{name}[/]")
        rows += asyncio.run(PARTS[name]())  # type: ignore[arg-type]  # every part is a coroutine function
    # Wide enough for every name: broken over lines a table of numbers cannot be read.
    Console(width=max(Console().width, 180)).print(_table(rows))
    if options.json:
        found = [asdict(row) | {"ratio": row.ratio, "holds": row.holds} for row in rows]
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0 if all(row.holds is not False for row in rows) else 1


def _table(rows: list[Row]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("measured", "value", "", "ratio", "of the limit", "asked"):
        table.add_column(heading, justify="right" if heading in ("value", "ratio") else "left")
    for row in rows:
        asked = f">= {row.at_least:g}" if row.at_least else f"<= {row.at_most:g}" if row.at_most else ""
        mark = {None: "", True: " [green]ok[/]", False: " [red]missed[/]"}[row.holds]
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        limit = f"{row.limit_name} ({row.limit:,.0f})" if row.limit else ""
        table.add_row(row.name, f"{row.value:,.0f}", row.unit, ratio, limit, asked + mark)
    return table


if __name__ == "__main__":
    sys.exit(main())
