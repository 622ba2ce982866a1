"""`reengage reattribute`: deciding stored conversions again, for good."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from services.cli.groups import single
from services.cli.options import Json, Target
from services.cli.times import End, Start, period

app = single()


@app.command()
def reattribute(
    app_id: str,
    start: Start = "",
    end: End = "",
    reattribution_id: Annotated[str, typer.Option("--id", help="A name for it. Default: the time.")] = "",
    send_postbacks: Annotated[
        bool, typer.Option("--send-postbacks", help="Send the postbacks it calls for. Default: only offer them.")
    ] = False,
    as_json: Json = False,
    target: Target = "",
) -> None:
    """Decides stored conversions again under the settings as they are, and writes a new version of what changes.

    The work is done by the services: Ctrl-C leaves it going, and `reengage reattributions follow` follows it again.
    """
    from reengage.attribution.v1 import reattribution_pb2
    from services.cli.connections import run
    from services.cli.reattributions import print_reattribution, reattribute_and_follow

    start_time, end_time = period(app_id, start, end)
    request = reattribution_pb2.ReattributeRequest(
        app_id=app_id,
        reattribution_id=reattribution_id or f"{datetime.now(UTC):%Y-%m-%dT%H.%M.%SZ}",
        start_time=start_time,
        end_time=end_time,
        send_postbacks=send_postbacks,
    )
    print_reattribution(run(reattribute_and_follow(request, target)), as_json)
