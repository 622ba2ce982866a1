"""Docstrings begin as people speak: a function's with a verb, a class's with a noun, a module's with either."""

import ast
import re
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.support.processes import ROOT
from tests.support.repository import is_generated, repository_files

CROOKED = {"how", "of", "those", "what", "whatever", "where", "whether", "which", "who", "whoever", "why"}
NOUNS = {"its", "status", "this"}
"""They end like a verb of the third person."""
RULE = re.compile(r"[A-G]\d")
"""A function that is one rule may begin with its number."""
AFTER_A_NOUN = {"in", "of", "that", "with"}
"""Words that tell `Counts of …`, the noun, from the verb."""


class Docstring(NamedTuple):
    """A docstring: of what, where, and its first line."""

    node: ast.AST
    place: str
    line: str

    @property
    def word(self) -> str:
        """Returns its first word."""
        return self.line.split()[0].strip(",.:;`").lower()


def docstrings() -> Iterator[Docstring]:
    """Yields the docstrings of all modules, classes and functions, but of tests: theirs say what is tested."""
    for path in repository_files():
        if path.suffix != ".py" or is_generated(path):
            continue
        for node in ast.walk(ast.parse((ROOT / path).read_text())):
            if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            name = getattr(node, "name", "")
            if (text := ast.get_docstring(node)) and not name.startswith("test_"):
                yield Docstring(node, f"{path}:{getattr(node, 'lineno', 1)}", text.partition("\n")[0])


FOUND = list(docstrings())
FUNCTIONS = [each for each in FOUND if isinstance(each.node, ast.FunctionDef | ast.AsyncFunctionDef)]


def told(found: list[Docstring]) -> list[str]:
    """Returns docstrings for people to find."""
    return [f"{each.place}: {each.line}" for each in found]


@pytest.mark.parametrize("kind", [ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef])
def test_no_docstring_begins_crookedly(kind: type[ast.AST]) -> None:
    assert told([each for each in FOUND if isinstance(each.node, kind) and each.word in CROOKED]) == []


def test_the_docstring_of_a_function_begins_with_a_verb() -> None:
    assert told([each for each in FUNCTIONS if not is_verb(each.word) and not RULE.match(each.line)]) == []


def test_the_docstring_of_a_class_begins_with_a_noun() -> None:
    verbs = {each.word for each in FUNCTIONS}
    classes = [each for each in FOUND if isinstance(each.node, ast.ClassDef)]
    assert told([each for each in classes if each.word in verbs and each.line.split()[1] not in AFTER_A_NOUN]) == []


def is_verb(word: str) -> bool:
    """Returns whether a word may be a verb of the third person: `returns`."""
    return word.endswith("s") and not word.endswith("ss") and word not in NOUNS
