"""Imports are declared: nothing stands on what something else happens to bring."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.support.processes import ROOT

OURS = {"libs", "services", "deploy", "tests", "reengage"}
NAMESPACES = {"google.protobuf": "protobuf", "google.rpc": "googleapis-common-protos"}
"""The packages of a module that several share."""
LATER = {"compression"}
"""Modules of the standard library of later versions; what stands for them until then is declared."""
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
GROUPS = PROJECT["dependency-groups"]


def names(requirements: list[str]) -> set[str]:
    return {normal(re.split(r"[<>=!~\[; ]", requirement)[0]) for requirement in requirements}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def imported(directory: str) -> Iterator[tuple[str, Path]]:
    """Yields every module that files below import, and the file."""
    for path in sorted((ROOT / directory).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from ((alias.name, path) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield node.module, path


def undeclared(directory: str, declared: set[str]) -> set[str]:
    """Returns imports of packages that are not among these, with a file of each."""
    packages = packages_distributions()
    found = {}
    for module, path in imported(directory):
        top = module.split(".")[0]
        if top in sys.stdlib_module_names or top in OURS | LATER:
            continue
        shared = NAMESPACES.get(".".join(module.split(".")[:2]))
        if not {normal(one) for one in ([shared] if shared else packages.get(top, []))} & declared:
            found[top] = f"{module} in {path.relative_to(ROOT)}"
    return set(found.values())


@pytest.mark.parametrize(
    ("directory", "groups"), [("libs", ()), ("services", ()), ("deploy", ("local",)), ("tests", ("local", "test"))]
)
def test_what_is_imported_is_declared(directory: str, groups: tuple[str, ...]) -> None:
    declared = names(PROJECT["project"]["dependencies"]).union(*(names(GROUPS[group]) for group in groups))
    assert undeclared(directory, declared) == set()


def test_the_check_finds_what_is_not_declared() -> None:
    assert undeclared("libs", set())
