"""Every part of the performance table runs, in sizes of which the numbers mean nothing."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from tests.bench import run
from tests.bench.row import Row
from tests.support.processes import ROOT


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize("part", run.PARTS)
def test_a_part_ends_in_rows(part: str, tmp_path: Path) -> None:
    rows = tmp_path / "rows.json"
    command = [sys.executable, "-m", "tests.bench.run", "--smoke", "--only", part, "--json", str(rows)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    measured = json.loads(rows.read_text())
    assert measured
    assert all(row["value"] > 0 for row in measured if not row["name"].startswith("  ")), measured


def test_a_part_that_fails_loses_no_rows_of_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def fails() -> list[Row]:
        raise ValueError("no [luck]")

    async def measures() -> list[Row]:
        return [Row(name="calls", value=7, unit="calls/s")]

    parts = {"tests.bench.first": SimpleNamespace(bench=fails), "tests.bench.second": SimpleNamespace(bench=measures)}
    monkeypatch.setattr(run, "PARTS", {"first": {}, "second": {}})
    monkeypatch.setattr("tests.bench.run.importlib", SimpleNamespace(import_module=parts.__getitem__))
    monkeypatch.setattr(sys, "argv", ["bench", "--json", str(tmp_path / "rows.json")])
    assert run.main() == 1
    told = [(row["name"], row["failure"], row["value"]) for row in json.loads((tmp_path / "rows.json").read_text())]
    assert told == [("first", "ValueError: no [luck]", 0.0), ("calls", "", 7)]


def test_a_failure_is_in_the_table() -> None:
    console = Console(width=180, record=True)
    console.print(run._table([Row(name="postback", failure="ValueError: no [luck]")]))
    assert console.export_text().split()[-5:] == ["postback", "FAILED", "ValueError:", "no", "[luck]"]
