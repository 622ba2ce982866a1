"""`reengage forget`: erasing a device everywhere."""

from typing import Annotated

import typer

from services.cli.groups import single
from services.cli.options import Json, Target

app = single()


@app.command()
def forget(
    app_id: str,
    device_id: Annotated[
        str, typer.Argument(help="Any id of the device, of whatever kind: raw, or hashed if it never came raw.")
    ],
    as_json: Json = False,
    target: Target = "",
) -> None:
    """Erases a device from the log, attribution and postbacks, for good, and shows the proof; it names no device.

    The work is done by the services: Ctrl-C leaves it going, and `reengage erasures` shows it later.
    """
    from services.cli.connections import run
    from services.cli.erasures import forget_device, print_erasure

    print_erasure(run(forget_device(app_id, device_id, target)), as_json)
