"""Writes docs/configuration.md from the configuration of every service: `make docs`; `--check` compares instead.

A field's documentation is the string below it.
"""

import ast
import dataclasses
import importlib
import inspect
import sys
from typing import Any, get_type_hints

from deploy.local.suite import SERVICES
from libs.config import PREFIX
from services.cli.places import ROOT

DOCUMENT = ROOT / "docs" / "configuration.md"
HEAD = """# Configuration

Made by `make docs` from the class `Config` of each service; change it there. A service reads these variables from its
environment once, when it starts, and names all that are missing or wrong. A variable without a default is required; an
empty one counts as missing. A secret is never logged.
"""
TAIL = """
## The command line
`reengage` finds a suite that `make run` started here by itself. For another one set

| variable | meaning |
|---|---|
| `REENGAGE_<SERVICE>_TARGET` | Where a service is: `host:port`, for example in `REENGAGE_TRACKER_TARGET`. |
| `REENGAGE_API_KEY` | **Secret.** The key that tracker knows you by. |
| `REENGAGE_DATA` | The directory of the suite of this machine; `.data` in the checkout by default. |
"""


def main(arguments: list[str]) -> int:
    """Returns exit code 1 when a field has no documentation or, with `--check`, when the document is not current."""
    configurations = {service: importlib.import_module(f"services.{service}.__main__").Config for service in SERVICES}
    undocumented = [
        f"{service}: {field.name}"
        for service, config in configurations.items()
        for field in dataclasses.fields(config)
        if field.name not in documentation(config)
    ]
    text = HEAD + "".join(section(service, config) for service, config in configurations.items()) + TAIL
    problems = [f"no string below field {name} says what it is for" for name in undocumented]
    if "--check" not in arguments:
        DOCUMENT.write_text(text)
    elif not DOCUMENT.exists() or DOCUMENT.read_text() != text:
        problems.append(f"{DOCUMENT.relative_to(ROOT)} is not current: run `make docs`")
    sys.stderr.writelines(f"{problem}\n" for problem in problems)
    return 1 if problems else 0


def section(service: str, config: type[Any]) -> str:
    """Returns the section of one service: a table with a row for each field."""
    types, told = get_type_hints(config), documentation(config)
    rows = [f"\n## {service}", "| variable | type | default | meaning |", "|---|---|---|---|"]
    for field in dataclasses.fields(config):
        default = (
            "required" if field.default is dataclasses.MISSING else f"`{field.default}`" if field.default != "" else ""
        )
        secret = "" if field.repr else "**Secret.** "
        meaning = secret + told.get(field.name, "").replace("|", "\\|")
        rows.append(f"| `{PREFIX}{field.name.upper()}` | {types[field.name].__name__} | {default} | {meaning} |")
    return "\n".join(rows) + "\n"


def documentation(config: type[Any]) -> dict[str, str]:
    """Returns the strings below the fields of a dataclass, by field, each in one line."""
    found: dict[str, str] = {}
    (declared,) = ast.parse(inspect.getsource(config)).body
    assert isinstance(declared, ast.ClassDef)
    for statement, following in zip(declared.body, declared.body[1:], strict=False):
        if not (isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)):
            continue
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            found[statement.target.id] = " ".join(str(following.value.value).split())
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
