"""`reengage explain`: asking why."""

from typing import Annotated, Any

import typer

from services.cli.console import WRONG, fail, print_json
from services.cli.groups import single
from services.cli.options import Json, Target

app = single()


@app.command()
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
    from services.cli.connections import with_attribution
    from services.cli.decision_tables import print_explanation
    from services.cli.times import time_option

    if bool(record_id) == bool(device) or bool(device) != bool(at):
        fail("Give the id of a record, or --device and --at.", code=WRONG)
    request = explanation_pb2.ExplainDecisionRequest(app_id=app_id, conversion_id=record_id, device_id=device)
    if at:
        request.time.CopyFrom(time_option("--at", at))

    async def ask(stub: Any) -> explanation_pb2.ExplainDecisionResponse:
        response: explanation_pb2.ExplainDecisionResponse = await stub.ExplainDecision(request)
        return response

    response = with_attribution(target, ask)
    print_json(response) if as_json else print_explanation(response)
