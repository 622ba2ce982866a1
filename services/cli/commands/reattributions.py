"""`reengage reattributions`: re-attributions under way and ended, and the postbacks that they offer."""

from typing import Any

import typer

from services.cli.console import print_json
from services.cli.groups import new_group
from services.cli.options import Json, Limit, Target

app = new_group("Lists, shows, follows and cancels re-attributions; lists and sends their postbacks.")


@app.command("list")
def list_reattributions(app_id: str, limit: Limit = 50, as_json: Json = False, target: Target = "") -> None:
    """Lists the re-attributions of an app, newest first."""
    from libs.client import first
    from reengage.attribution.v1 import reattribution_pb2
    from services.cli.connections import with_attribution
    from services.cli.reattributions import print_reattributions

    async def list_them(stub: Any) -> reattribution_pb2.ListReattributionsResponse:
        request = reattribution_pb2.ListReattributionsRequest(app_id=app_id)
        found, _ = await first(stub.ListReattributions, request, limit)
        return reattribution_pb2.ListReattributionsResponse(reattributions=found)

    listed = with_attribution(target, list_them)
    print_json(listed) if as_json else print_reattributions(app_id, listed.reattributions)


@app.command("get")
def get_reattribution(app_id: str, reattribution_id: str, as_json: Json = False, target: Target = "") -> None:
    """Shows how far a re-attribution is, and the totals so far."""
    from reengage.attribution.v1 import reattribution_pb2
    from services.cli.connections import with_attribution
    from services.cli.reattributions import print_reattribution

    async def get_it(stub: Any) -> reattribution_pb2.Reattribution:
        request = reattribution_pb2.GetReattributionRequest(app_id=app_id, reattribution_id=reattribution_id)
        found: reattribution_pb2.Reattribution = (await stub.GetReattribution(request)).reattribution
        return found

    print_reattribution(with_attribution(target, get_it), as_json)


@app.command("follow")
def follow_reattribution(app_id: str, reattribution_id: str, as_json: Json = False, target: Target = "") -> None:
    """Follows a re-attribution to its end. Ctrl-C leaves it going."""
    from services.cli.connections import with_attribution
    from services.cli.reattributions import follow, print_reattribution

    async def follow_it(stub: Any) -> Any:
        return await follow(stub, app_id, reattribution_id)

    print_reattribution(with_attribution(target, follow_it), as_json)


@app.command("cancel")
def cancel_reattribution(app_id: str, reattribution_id: str, as_json: Json = False, target: Target = "") -> None:
    """Stops a re-attribution; what it has written stays."""
    from reengage.attribution.v1 import reattribution_pb2
    from services.cli.connections import with_attribution
    from services.cli.reattributions import print_reattribution

    async def cancel_it(stub: Any) -> Any:
        request = reattribution_pb2.CancelReattributionRequest(app_id=app_id, reattribution_id=reattribution_id)
        return (await stub.CancelReattribution(request)).reattribution

    print_reattribution(with_attribution(target, cancel_it), as_json)


@app.command("offers")
def list_offers(app_id: str, reattribution_id: str, as_json: Json = False, target: Target = "") -> None:
    """Lists the postbacks that a re-attribution calls for."""
    from libs.client import items
    from reengage.attribution.v1 import offer_pb2
    from services.cli.connections import with_attribution
    from services.cli.decision_tables import print_offered

    async def list_them(stub: Any) -> list[Any]:
        request = offer_pb2.ListOfferedPostbacksRequest(app_id=app_id, reattribution_id=reattribution_id)
        return [each async for each in items(stub.ListOfferedPostbacks, request)]

    found = with_attribution(target, list_them)
    if not as_json:
        print_offered(app_id, reattribution_id, found)
    for each in found if as_json else ():
        print_json(each, indent=None)


@app.command("send")
def send_offers(app_id: str, reattribution_id: str, as_json: Json = False, target: Target = "") -> None:
    """Sends those of its postbacks that were not sent yet."""
    from reengage.attribution.v1 import offer_pb2
    from services.cli.connections import with_attribution

    async def send_them(stub: Any) -> Any:
        request = offer_pb2.SendOfferedPostbacksRequest(app_id=app_id, reattribution_id=reattribution_id)
        return await stub.SendOfferedPostbacks(request)

    response = with_attribution(target, send_them)
    if as_json:
        print_json(response, indent=None)
    elif response.created_count:
        typer.echo(f"{response.created_count:,} postbacks are on their way.")
    else:
        typer.echo(f"{reattribution_id} has no postback left to send.")
