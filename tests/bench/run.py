"""The performance table: what this machine does, each row beside a limit measured in the same run.

`make bench` runs all of it, some five minutes on two cores. Load goes to loopback only.
"""

import argparse
import asyncio
import importlib
import json
import sys
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tests.bench.row import Row

PARTS: dict[str, dict[str, int]] = {
    "calls": {"calls": 200},
    "tracker": {"trackers": 1_000},
    "decide": {"records": 1_000, "decisions": 200},
    "stored": {"stored": 12_000, "conversions": 500, "of_a_device": 100},
    "replay": {"batches": 20, "live_batches": 10},
    "ingest": {"records": 2_000},
    "gateway": {"requests": 500, "connections": 16},
    "postback": {"deliveries": 400, "conversions": 1_000, "steady_s": 1},
    "whole": {"rate": 1_000, "seconds": 3, "latency_s": 1},
}
"""The modules beside this one whose `bench` is measured, in this order, and their sizes in a smoke run."""


def main() -> int:
    """Returns exit code 0, or 1 when a part fails or a row misses what is asked of it."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows to FILE")
    parser.add_argument("--only", choices=PARTS, action="append", help="measure this part alone; may be repeated")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, which show that every part runs")
    options = parser.parse_args()
    console = Console(stderr=True)
    rows: list[Row] = []
    for name in options.only or PARTS:
        console.print(f"[bold]{name}[/]")
        rows += _measured(name, console, smoke=options.smoke)
    # Wide enough for every name: broken over lines a table of numbers cannot be read.
    Console(width=max(Console().width, 180)).print(_table(rows))
    if options.json:
        found = [asdict(row) | {"ratio": row.ratio, "holds": row.holds} for row in rows]
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    missed = [row for row in rows if row.failure or (row.holds is False and not options.smoke)]
    return 1 if missed else 0


def _measured(name: str, console: Console, *, smoke: bool) -> list[Row]:
    """Returns the rows of a part, or one that says why it failed: what others measured is not lost by it."""
    bench = importlib.import_module(f"tests.bench.{name}").bench
    try:
        rows: list[Row] = asyncio.run(bench(**PARTS[name] if smoke else {}))
    except Exception as error:
        console.print_exception()
        return [Row(name=name, failure=f"{type(error).__name__}: {error}")]
    return rows


def _table(rows: list[Row]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("measured", "value", "", "ratio", "of the limit", "asked"):
        table.add_column(heading, justify="right" if heading in ("value", "ratio") else "left")
    for row in rows:
        if row.failure:
            table.add_row(row.name, "[red]FAILED[/]", "", "", escape(row.failure), "")
            continue
        asked = f">= {row.at_least:g}" if row.at_least else f"<= {row.at_most:g}" if row.at_most else ""
        mark = {None: "", True: " [green]ok[/]", False: " [red]missed[/]"}[row.holds]
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        limit = f"{row.limit_name} ({row.limit:,.0f})" if row.limit else ""
        table.add_row(row.name, f"{row.value:,.0f}", row.unit, ratio, limit, asked + mark)
    return table


if __name__ == "__main__":
    sys.exit(main())
