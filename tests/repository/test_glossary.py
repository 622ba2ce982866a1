"""Words that are retired are said nowhere: each row of that table in docs/glossary.md is looked for."""

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.processes import ROOT
from tests.support.repository import is_generated, repository_files


class Search(NamedTuple):
    """The pattern that finds a retired word, in file names too, and the directories that it is looked for in."""

    pattern: str
    under: tuple[str, ...] = ("deploy", "docs", "libs", "protos", "services", "tests")


MODULES = "erasing|offering|handing|waiting|explaining|watching"
SEARCHES = {
    "`catalog`": Search(r"(?<!pg_)(?<!pg_c)catalog(?!ue)"),
    "`claim` for a hold on a row": Search(
        r"\bclaim_id\b|_claim_due\b|\bClaimed\b|\bclaimed_us\b|\bclaimers?\b",
        ("libs", "protos/reengage/ingest", "protos/reengage/postback", "services/ingest", "services/postback"),
    ),
    "`claim` for a dedupe key": Search(
        r"\bclaim(s|ed|ing)? (a |the |its |their )?(dedupe )?keys?\b|\b[Kk]eys? (is|are) claimed|\bclaim_keys?\b"
    ),
    "`replay` of a delivery": Search(
        "replay", ("services/postback", "protos/reengage/postback", "tests/postback", "deploy/base/postback")
    ),
    "`replay` of the spool": Search("replay", ("services/gateway", "tests/gateway", "deploy/base/gateway")),
    ", ".join(f"`{name}`" for name in MODULES.split("|")) + " as modules": Search(rf"(?:^|/)(?:{MODULES})\.py$"),
    "`MOST_…`, `LONGEST_…`": Search(r"\b_?(MOST|LONGEST)_"),
    "`BETWEEN_…`": Search(r"\b_?BETWEEN_"),
}
SAYS_THEM = {Path("docs/glossary.md"), Path("tests/repository/test_glossary.py")}
TEXTS = {
    path: (ROOT / path).read_text()
    for path in repository_files()
    if path.suffix in {".json", ".md", ".proto", ".py", ".sh", ".sql", ".yaml"}
    and not is_generated(path)
    and path not in SAYS_THEM
}


def test_every_retired_word_is_looked_for() -> None:
    table = (ROOT / "docs" / "glossary.md").read_text().partition("## Retired words")[2]
    rows = re.findall(r"^\| (.+?) \| .+ \|$", table, flags=re.MULTILINE)
    assert set(rows) - {"retired"} == SEARCHES.keys()


def test_a_word_has_one_meaning() -> None:
    text = (ROOT / "docs" / "glossary.md").read_text().partition("## Retired words")[0]
    terms = [term for term in re.findall(r"^\| (.+?) \|", text, flags=re.MULTILINE) if term != "term"]
    assert sorted(terms) == sorted(set(terms))


@pytest.mark.parametrize("word", SEARCHES)
def test_a_retired_word_is_found_nowhere(word: str) -> None:
    pattern, under = SEARCHES[word]
    searched = {path: text for path, text in TEXTS.items() if _below(path, under)}
    found = [str(path) for path in searched if re.search(pattern, str(path))]
    found += [
        f"{path}:{number}: {line.strip()}"
        for path, text in searched.items()
        for number, line in enumerate(text.splitlines(), start=1)
        if re.search(pattern, line)
    ]
    assert found == []


def _below(path: Path, directories: tuple[str, ...]) -> bool:
    return any(path.is_relative_to(directory) for directory in directories)
