"""The command `reengage simulate`: a scenario file in, its decisions out."""

import json
import sys
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from services.attribution.scenario import ScenarioError, read_scenario
from services.attribution.simulate import check, simulate

HOLDS, DIFFERS, BROKEN = 0, 1, 2
"""Exit codes."""


def run(path: Path, *, check_expect: bool = False, as_json: bool = False) -> int:
    """Runs a scenario file, prints its output, and returns the exit code.

    Prints one JSON line per conversion; a table instead when a person looks on, unless `as_json`. With `check_expect` a
    file whose `expect` does not hold is told difference by difference on the error stream, code 1. A file that is no
    scenario is told there problem by problem with its line, code 2.
    """
    try:
        scenario = read_scenario(path.read_text(encoding="utf-8"))
    except OSError as error:
        return _broken(f"{path}: {error.strerror}")
    except UnicodeDecodeError as error:
        return _broken(f"{path}: byte {error.start} is not UTF-8")
    except ScenarioError as error:
        return _broken(*(f"{path}:{line}: {message}" for line, message in error.problems))
    output = simulate(scenario)
    if as_json or not sys.stdout.isatty():
        for line in output:
            typer.echo(json.dumps(line, ensure_ascii=False))
    else:
        Console().print(_table(scenario.text, output))
    differences = check(output, scenario.expect) if check_expect else []
    for difference in differences:
        typer.echo(f"{path}: {difference}", err=True)
    return DIFFERS if differences else HOLDS


def _broken(*problems: str) -> int:
    for problem in problems:
        typer.echo(problem, err=True)
    return BROKEN


def _table(title: str, output: list[dict[str, Any]]) -> Table:
    table = Table(title=escape(title), title_justify="left")
    for heading in ("id", "outcome", "tracker", "by", "reason", "candidates"):
        table.add_column(heading, overflow="fold")
    for line in output:
        candidates = "\n".join(f"{candidate['engagement']} {candidate['verdict']}" for candidate in line["candidates"])
        cells = (line["id"], line["outcome"], line["tracker"], line["matched_by"], line["reason"], candidates)
        table.add_row(*(escape(cell or "") for cell in cells))
    return table
