"""The services that can be run."""

from typing import Annotated

import typer

from services.cli.console import WRONG, fail

SERVICES = ("tracker", "ingest", "attribution", "postback", "gateway")
ServiceName = Annotated[str, typer.Argument(metavar="SERVICE", help=f"One of {', '.join(SERVICES)}.")]


def check_service(name: str) -> None:
    """Ends the command when there is no such service."""
    if name not in SERVICES:
        fail(f"there is no service {name!r}; there are {', '.join(SERVICES)}", code=WRONG)
