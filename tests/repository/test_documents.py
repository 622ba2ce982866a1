"""Documents say what is there."""

import re
from itertools import count
from pathlib import Path

import pytest

from tests.support.processes import ROOT
from tests.support.repository import repository_files

MARKDOWN = [path for path in repository_files() if path.suffix == ".md"]
DECISIONS = sorted((ROOT / "docs" / "decisions").iterdir())


def tree() -> list[str]:
    """Returns the directories that the tree of docs/architecture.md names, from the root."""
    section = (ROOT / "docs" / "architecture.md").read_text().split("## The tree\n")[1].split("\n\n")[0]
    found: list[str] = []
    above: list[str] = []
    for line in section.splitlines():
        indent, name = re.fullmatch(r"    ((?:  )*)(\S+)/(?: .*)?", line).groups()  # type: ignore[union-attr]
        above = [*above[: len(indent) // 2], name]
        found.append("/".join(above))
    return found


def test_the_tree_names_directories_that_exist() -> None:
    assert [name for name in tree() if not (ROOT / name).is_dir()] == []


def test_the_tree_names_every_directory_of_code() -> None:
    code = [path.parent for path in repository_files() if path.suffix == ".py" and path.parts[0] != "protos"]
    named = {path.as_posix() for path in code if path.parts[0] != "tests" or len(path.parts) < 3}
    assert named - set(tree()) == set()


@pytest.mark.parametrize("path", MARKDOWN, ids=str)
def test_links_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / path).read_text())
    assert [link for link in links if not (ROOT / path.parent / link).exists()] == []


def test_decisions_are_numbered_without_holes() -> None:
    assert [int(path.name[:4]) for path in DECISIONS] == [
        number for number, _ in zip(count(1), DECISIONS, strict=False)
    ]


@pytest.mark.parametrize("path", DECISIONS, ids=lambda path: path.stem)
def test_a_decision_has_a_numbered_title_and_its_sections(path: Path) -> None:
    title, _, text = path.read_text().partition("\n")
    assert re.fullmatch(rf"# {int(path.name[:4])}\. [A-Z].+[^.]", title)
    sections = re.findall(r"^\*\*(Context|Decision|Consequences)\.\*\*", text, flags=re.MULTILINE)
    assert sections == ["Context", "Decision", "Consequences"]
