"""`reengage call`: any RPC."""

import sys
from typing import Annotated

import typer

from services.cli.console import WRONG, fail, print_json
from services.cli.groups import single
from services.cli.options import Target

app = single()


@app.command()
def call(
    method: Annotated[str, typer.Argument(metavar="SERVICE/METHOD", help="As `tracker/ListApps`.")],
    request: Annotated[str, typer.Argument(metavar="JSON", help="The request; - reads it from standard input.")] = "{}",
    target: Target = "",
) -> None:
    """Calls a gRPC method: JSON in, JSON out, one object per response of a stream."""
    from services.cli import calls
    from services.cli.connections import CallError, run

    async def main() -> None:
        async for response in calls.call(service, descriptor, message, target=target):
            print_json(response, indent=None if descriptor.server_streaming else 2)

    try:
        service, descriptor = calls.find_method(method)
        message = calls.parse_request(descriptor, sys.stdin.read() if request == "-" else request)
    except CallError as error:
        fail(str(error), code=WRONG)
    run(main())
