"""`reengage explain` and `reengage watch`: asking why, and following along."""

import asyncio
from typing import Annotated, NoReturn

import typer

Json = Annotated[bool, typer.Option("--json", help="Answer as JSON.")]
Target = Annotated[str, typer.Option(help="host:port of the service. Default: the suite that runs here.")]


def explain(
    app_id: str,
    record_id: Annotated[str, typer.Argument(help="Of a conversion, or of anything else that was sent.")] = "",
    device: Annotated[str, typer.Option(help="Instead: any id of a device; with --at.")] = "",
    at: Annotated[
        str, typer.Option(metavar="TIME", help="The conversion nearest to it; 2026-03-01T12:00:00Z, or the day.")
    ] = "",
    as_json: Json = False,
    target: Target = "",
) -> None:
    """Tells what became of a record and why: what won it, and the verdict on every candidate."""
    from reengage.attribution.v1 import explanation_pb2
    from services.cli import calls
    from services.cli.fields import MisfitError, read_time
    from services.cli.tables import print_explanation

    if bool(record_id) == bool(device) or bool(device) != bool(at):
        _fail("Give the id of a record, or --device and --at.", code=2)
    request = explanation_pb2.ExplainDecisionRequest(app_id=app_id, conversion_id=record_id, device_id=device)
    try:
        if at:
            request.time.CopyFrom(read_time(at))
        answer = asyncio.run(calls.ask("attribution/ExplainDecision", request, target=target))
    except MisfitError as misfit:
        _fail(f"--at {misfit}", code=2)
    except calls.CallError as error:
        _fail(str(error))
    assert isinstance(answer, explanation_pb2.ExplainDecisionResponse)
    typer.echo(calls.to_json(answer, indent=2)) if as_json else print_explanation(answer)


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
    from reengage.attribution.v1 import decision_pb2
    from services.cli import calls
    from services.cli.fields import MisfitError, read_time
    from services.cli.tables import print_fact

    if since and from_now:
        _fail("Give --since or --from-now.", code=2)
    request = decision_pb2.WatchDecisionsRequest(app_id=app, network_id=network, tracker_id=tracker)
    try:
        if since:
            request.start_time.CopyFrom(read_time(since))
    except MisfitError as misfit:
        _fail(f"--since {misfit}", code=2)
    if from_now:
        request.from_now = True

    async def follow() -> None:
        async for response in calls.follow("attribution/WatchDecisions", request, target=target):
            assert isinstance(response, decision_pb2.WatchDecisionsResponse)
            for fact in response.facts:
                typer.echo(calls.to_json(fact)) if as_json else print_fact(fact)

    try:
        asyncio.run(follow())
    except KeyboardInterrupt:  # how it is meant to end
        return
    except calls.CallError as error:
        _fail(str(error))


def _fail(message: str, *, code: int = 1) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(code)
