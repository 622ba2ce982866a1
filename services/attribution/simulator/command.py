"""The command of the simulator: scenario files in, their decisions out.

It is started for one small file as often as for many: so it loads what draws tables only when somebody looks at one.
"""

import json
import sys
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from services.attribution.simulator.scenario import Scenario
from services.attribution.simulator.scenario_file import ScenarioError, read_scenario
from services.attribution.simulator.simulation import check, simulate

HOLDS, DIFFERS, BROKEN = 0, 1, 2
"""Exit codes; of several files the highest."""

SUFFIXES = (".json", ".yaml", ".yml")
"""The endings of the files that are read of a directory."""


def run(path: Path, *, check_expect: bool = False, as_json: bool = False) -> int:
    """Runs a scenario file, or all in a directory in the order of their names, and returns the exit code.

    Prints one JSON line per conversion (of a directory it begins with the key `file`); a table per file instead when a
    person looks on, unless `as_json`. On the error stream, with progress when that is a terminal: where a file's
    `expect` does not hold if `check_expect`, code 1; what does not fit in a file that is no scenario, line by line,
    code 2; and of a directory how many files are which.
    """
    try:
        is_directory = path.is_dir()
        paths = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES) if is_directory else [path]
    except OSError as error:
        return _complain(BROKEN, f"{path}: {error.strerror}")
    if not paths:
        return _complain(BROKEN, f"{path}: there is no file here that ends in {', '.join(SUFFIXES)}")
    for_people = sys.stdout.isatty() and not as_json
    codes = [_run_file(file, is_directory, check_expect, for_people) for file in paths]
    if is_directory:
        count = Counter(codes)
        held = f"{count[HOLDS]} hold, {count[DIFFERS]} differ" if check_expect else f"{count[HOLDS]} ran"
        _complain(HOLDS, f"{path}: {len(paths)} scenarios: {held}, {count[BROKEN]} broken")
    return max(codes)


def _run_file(path: Path, in_directory: bool, check_expect: bool, for_people: bool) -> int:
    try:
        with _status(f"reading {path.name}"):
            scenario = read_scenario(path.read_text(encoding="utf-8"))
    except OSError as error:
        return _complain(BROKEN, f"{path}: {error.strerror}")
    except UnicodeDecodeError as error:
        return _complain(BROKEN, f"{path}: byte {error.start} is not UTF-8")
    except ScenarioError as error:
        return _complain(BROKEN, *(f"{path}:{line}: {message}" for line, message in error.problems))
    output = _simulate(scenario, path.name)
    if for_people:
        _print_table(scenario.text or path.name, output)
    else:
        named = {"file": path.name} if in_directory else {}
        sys.stdout.writelines(f"{json.dumps(named | line, ensure_ascii=False)}\n" for line in output)
    if not check_expect:
        return HOLDS
    if not scenario.expect:
        return _complain(HOLDS, f"{path}: expects nothing, so there is nothing to check")
    differences = check(output, scenario.expect)
    return _complain(DIFFERS if differences else HOLDS, *(f"{path}: {difference}" for difference in differences))


def _status(text: str) -> Any:
    if not sys.stderr.isatty():
        return nullcontext()
    from rich.console import Console

    return Console(stderr=True).status(text)


def _simulate(scenario: Scenario, name: str) -> list[dict[str, Any]]:
    if not sys.stderr.isatty():
        return simulate(scenario)
    from rich.console import Console
    from rich.progress import track

    progress = Console(stderr=True)
    return simulate(
        scenario, lambda timeline: track(timeline, name, len(scenario.timeline), console=progress, transient=True)
    )


def _complain(code: int, *lines: str) -> int:
    sys.stderr.writelines(f"{line}\n" for line in lines)
    return code


def _print_table(title: str, output: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), title_justify="left")
    for heading in ("id", "outcome", "tracker", "by", "reason", "candidates"):
        table.add_column(heading, overflow="fold")
    for line in output:
        candidates = "\n".join(f"{candidate['engagement']} {candidate['verdict']}" for candidate in line["candidates"])
        cells = (line["id"], line["outcome"], line["tracker"], line["matched_by"], line["reason"], candidates)
        table.add_row(*(escape(cell or "") for cell in cells))
    Console().print(table)
