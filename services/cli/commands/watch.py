"""`reengage watch`: following decisions."""

from typing import Annotated

import typer

from services.cli.console import INTERRUPTED, WRONG, fail, print_json
from services.cli.groups import single
from services.cli.options import Target

app = single()


@app.command()
def watch(
    app: Annotated[str, typer.Option(help="Only of this app.")] = "",
    network: Annotated[str, typer.Option(help="Only credited to this network.")] = "",
    tracker: Annotated[str, typer.Option(help="Only credited to this tracker.")] = "",
    since: Annotated[
        str, typer.Option(metavar="TIME", help="Decided then or later; 2026-03-01T12:00:00Z, or the day.")
    ] = "",
    from_now: Annotated[bool, typer.Option("--from-now", help="Only what is decided from now on.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    target: Target = "",
) -> None:
    """Follows decisions as they are made, from the first one kept; Ctrl-C ends it.

    Goes on where it was when the service is away for a while. A decision that a re-attribution replaces comes again as
    taken back (-), before the new one (+).
    """
    from libs.client import watch_decisions
    from reengage.attribution.v1 import decision_pb2
    from services.cli.connections import connected, run
    from services.cli.decision_tables import print_fact
    from services.cli.times import time_option

    if since and from_now:
        fail("Give --since or --from-now.", code=WRONG)
    request = decision_pb2.WatchDecisionsRequest(app_id=app, network_id=network, tracker_id=tracker)
    if since:
        request.start_time.CopyFrom(time_option("--since", since))
    if from_now:
        request.from_now = True

    async def follow() -> None:
        async with connected("attribution", target) as channel:
            async for response in watch_decisions(channel, request):
                for fact in response.facts:
                    print_json(fact, indent=None) if as_json else print_fact(fact)

    try:
        run(follow())
    except typer.Exit as end:
        if end.exit_code != INTERRUPTED:  # how it is meant to end
            raise
