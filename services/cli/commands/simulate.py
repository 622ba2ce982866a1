"""`reengage simulate`: scenarios."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from services.cli.groups import single

app = single()


@app.command()
def simulate(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A scenario, YAML or JSON, or a directory of them.")],
    check: Annotated[
        bool, typer.Option("--check", help="Compare with each file's `expect`; exit 1 if one differs.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON lines, not a table.")] = False,
) -> None:
    """Runs scenarios through the real decision code, without a server. Exit code 2: a file does not fit."""
    import runpy

    options = [*(["--check"] if check else []), *(["--json"] if as_json else [])]
    sys.argv = ["simulate", *options, "--", str(path)]
    runpy.run_module("services.attribution.simulator", run_name="__main__", alter_sys=True)
