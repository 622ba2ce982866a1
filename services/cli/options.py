"""Arguments and options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="JSON, for programs.")]
Target = Annotated[str, typer.Option(help="host:port of the service. Default: the suite that runs here.")]
Archived = Annotated[bool, typer.Option("--archived", help="Archived ones too.")]
Limit = Annotated[int, typer.Option(min=1, max=100_000, help="How many, at most.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
PlanOnly = Annotated[bool, typer.Option("--plan-only", help="Show what would change, and change nothing.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="A file. Default: standard output.")]
Fields = Annotated[
    list[str],
    typer.Argument(
        metavar="FIELD=VALUE",
        help="As name=Spring, events=Purchase,Login, windows.click_device=7d, custom_parameters=sku=home. "
        "Nothing after the = clears the field. A wrong name is told which there are.",
    ),
]
