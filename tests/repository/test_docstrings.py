"""Docstrings begin as people speak: a function's with a verb, a class's with a noun."""

import ast
from collections.abc import Iterator

from tests.support.processes import ROOT
from tests.support.repository import is_generated, repository_files

CROOKED = {"how", "of", "those", "what", "whatever", "where", "whether", "which", "who", "whoever"}
CODE = [path for path in repository_files() if path.suffix == ".py" and not is_generated(path)]


def docstrings() -> Iterator[tuple[str, str, str]]:
    """Yields the place of each function and class that has a docstring, its name, and the docstring's first word."""
    for path in CODE:
        for node in ast.walk(ast.parse((ROOT / path).read_text())):
            is_test = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
            if is_test:
                continue  # a sentence on what is tested
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and (
                text := ast.get_docstring(node)
            ):
                yield f"{path}:{node.lineno}", node.name, text.split()[0].strip(",.:;").lower()


def test_no_docstring_begins_crookedly() -> None:
    assert [f"{place} {name}: {word}" for place, name, word in docstrings() if word in CROOKED] == []
