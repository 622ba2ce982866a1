"""Files that people read have lines that a person can read, and name nobody's package registry."""

import re
from pathlib import Path

import pytest

from tests.support.processes import ROOT
from tests.support.repository import is_generated, repository_files

MAX_COLUMNS = 120
READ_BY_PEOPLE = {".md", ".proto", ".sh", ".sql"}  # the linter sees to Python
TEXTS = [path for path in repository_files() if path.suffix in READ_BY_PEOPLE and not is_generated(path)]
# Hosts in groups of alternatives, so that this file names none itself.
REGISTRIES = re.compile(
    r"py(?:pi|thonhosted)\.(?:org|python)|reg(?:istry)\.npm(?:js)|pro(?:xy)\.gol(?:ang)|--(?:extra-)?ind(?:ex)-url"
)


def is_row_of_a_table(path: Path, line: str) -> bool:
    """Returns whether Markdown has no way to break the line."""
    return path.suffix == ".md" and line.startswith("|")


def test_lines_have_at_most_120_columns() -> None:
    too_long = [
        f"{path}:{number}"
        for path in TEXTS
        for number, line in enumerate((ROOT / path).read_text().splitlines(), start=1)
        if len(line) > MAX_COLUMNS and not is_row_of_a_table(path, line)
    ]
    assert too_long == []


@pytest.mark.parametrize("path", [".ci/run", "Makefile", "requirements.lock", "deploy/requirements.lock"])
def test_these_are_looked_through_for_registries(path: str) -> None:
    assert Path(path) in repository_files()


def test_no_file_names_a_package_registry() -> None:
    found = []
    for path in repository_files():
        try:
            text = (ROOT / path).read_text()
        except UnicodeDecodeError:
            continue
        if REGISTRIES.search(text):
            found.append(path)
    assert found == []
