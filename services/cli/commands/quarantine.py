"""`reengage quarantine`: what attribution could not process and set aside, so that the rest went on."""

from typing import Annotated

import typer

from services.cli.groups import new_group
from services.cli.options import Json, Limit, Target

app = new_group("Shows what could not be processed and was set aside; has it tried again, or drops it.")

_WORKS = "index, decide, relay, late-arrival, reattribute or erase"
_REASONS = "too-large, unparsable, failed, timed-out or refused"

Ids = Annotated[list[str] | None, typer.Argument(help="Ids as `list` shows them. Default: all that the options say.")]
App = Annotated[str, typer.Option("--app", help="Only of this app.")]
Work = Annotated[str, typer.Option(help=f"Only from this work: {_WORKS}.")]
Reason = Annotated[str, typer.Option("--because", help=f"Only for this reason: {_REASONS}.")]


@app.command("list")
def list_quarantined(
    app_id: App = "", work: Work = "", limit: Limit = 50, as_json: Json = False, target: Target = ""
) -> None:
    """Lists what was set aside, with the reason, the error, and how often it was tried."""
    from libs.client import first
    from reengage.attribution.v1 import quarantine_pb2
    from services.cli.connections import with_attribution
    from services.cli.console import print_json
    from services.cli.quarantine import print_quarantined, work_of

    request = quarantine_pb2.ListQuarantinedRequest(app_id=app_id, work=work_of(work))
    found, _ = with_attribution(target, lambda stub: first(stub.ListQuarantined, request, limit))
    if as_json:
        print_json(quarantine_pb2.ListQuarantinedResponse(items=found))
    else:
        print_quarantined(found)


@app.command("retry")
def retry_quarantined(
    item_ids: Ids = None, app_id: App = "", work: Work = "", because: Reason = "", target: Target = ""
) -> None:
    """Has attribution try again what was set aside: all that is named, by its ids or by the options.

    What succeeds is gone from the list within seconds; what fails again stays, with one try more.
    """
    from reengage.attribution.v1 import quarantine_pb2
    from services.cli.connections import with_attribution
    from services.cli.quarantine import filter_of
    from services.cli.tables import console

    request = quarantine_pb2.RetryQuarantinedRequest(filter=filter_of(item_ids or (), app_id, work, because))
    found = with_attribution(target, lambda stub: stub.RetryQuarantined(request))
    console.print(f"{found.found_count} to be tried again")


@app.command("drop")
def drop_quarantined(
    reason: Annotated[str, typer.Option(help="Why; attribution's log keeps it.")],
    item_ids: Ids = None,
    app_id: App = "",
    work: Work = "",
    because: Reason = "",
    target: Target = "",
) -> None:
    """Gives up what was set aside, for good: it will never be processed. An erasure is never given up."""
    from reengage.attribution.v1 import quarantine_pb2
    from services.cli.connections import with_attribution
    from services.cli.quarantine import filter_of
    from services.cli.tables import console

    request = quarantine_pb2.DropQuarantinedRequest(
        filter=filter_of(item_ids or (), app_id, work, because), reason=reason
    )
    console.print(f"{with_attribution(target, lambda stub: stub.DropQuarantined(request)).dropped_count} dropped")
