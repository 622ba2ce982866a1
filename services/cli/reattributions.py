"""Re-attributions: starting one, following it to its end, showing it."""

from collections.abc import Iterable
from typing import Any

import typer
from rich.markup import escape

from libs.messages import short_name
from reengage.attribution.v1 import reattribution_pb2
from reengage.attribution.v1.service_pb2_grpc import AttributionServiceStub
from services.cli import progress, tables
from services.cli.connections import connected
from services.cli.console import print_json
from services.cli.decision_tables import print_totals
from services.cli.tables import print_whole, table, time_text

_Reattribution = reattribution_pb2.Reattribution


async def reattribute_and_follow(request: reattribution_pb2.ReattributeRequest, target: str) -> _Reattribution:
    """Starts a re-attribution and returns it once it has ended."""
    async with connected("attribution", target) as channel:
        stub = AttributionServiceStub(channel)
        await stub.Reattribute(request)
        return await follow(stub, request.app_id, request.reattribution_id)


async def follow(stub: Any, app_id: str, reattribution_id: str) -> _Reattribution:
    """Returns a re-attribution once it has ended; shows on the error stream how far it is. Raises ServiceError."""
    request = reattribution_pb2.GetReattributionRequest(app_id=app_id, reattribution_id=reattribution_id)

    async def read() -> _Reattribution:
        found: _Reattribution = (await stub.GetReattribution(request)).reattribution
        return found

    return await progress.follow(
        "Deciding again",
        read,
        has_ended=lambda found: found.state != _Reattribution.STATE_RUNNING,
        progress=lambda found: (
            f"{found.conversion_count:,} of about {found.estimated_total_count:,} decided again, "
            f"{found.changed_count:,} changed"
        ),
        if_left=f"It goes on. To stop it: reengage reattributions cancel {app_id} {reattribution_id}",
    )


def print_reattribution(found: _Reattribution, as_json: bool) -> None:
    """Prints how far a re-attribution is, and what it changed."""
    if as_json:
        print_json(found)
        return
    print_totals(found.totals)
    typer.echo(
        f"Re-attribution {found.reattribution_id} of {found.app_id} is {_state(found)}: {found.changed_count:,} of "
        f"{found.conversion_count:,} decisions have a new version."
    )
    if found.changed_count and not found.send_postbacks:
        typer.echo(f"Its postbacks: reengage reattributions offers {found.app_id} {found.reattribution_id}")


def print_reattributions(app_id: str, found: Iterable[_Reattribution]) -> None:
    """Prints a line each."""
    headings = ("re-attribution", "state", "from", "to", "decided", "changed", "asked for")
    rows = table(
        f"Re-attributions of {escape(app_id)}", *headings, numbers=["decided", "changed"], whole=["re-attribution"]
    )
    for each in found:
        rows.add_row(
            escape(each.reattribution_id),
            _state(each),
            time_text(each.start_time),
            time_text(each.end_time),
            f"{each.conversion_count:,}",
            f"{each.changed_count:,}",
            time_text(each.create_time),
        )
    if rows.row_count:
        print_whole(rows)
    else:
        tables.console.print(f"Re-attributions of {escape(app_id)}: none")


def _state(found: _Reattribution) -> str:
    return short_name(_Reattribution.State.DESCRIPTOR, found.state).lower()
