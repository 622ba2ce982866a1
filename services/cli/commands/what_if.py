"""`reengage what-if`: deciding stored conversions again, to see."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli.console import WRONG, fail, print_json, read
from services.cli.groups import single
from services.cli.options import Target
from services.cli.times import End, Start, period

if TYPE_CHECKING:
    from reengage.attribution.v1 import what_if_pb2
    from reengage.tracker.v1 import snapshot_pb2

app = single()


@app.command()
def what_if(
    app_id: str,
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE.yaml]", help="As for apply. Default: settings as they are.")
    ] = None,
    start: Start = "",
    end: End = "",
    keep: Annotated[bool, typer.Option("--keep", help="What the file does not name stays as it is.")] = False,
    limit: Annotated[int, typer.Option(min=0, help="Show so many of the decisions that would change.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Every part of the response as JSON, one a line.")] = False,
    target: Target = "",
) -> None:
    """Decides stored conversions again as if a settings file had been applied, and shows what would change.

    Nothing is written. Whatever settings `reengage apply FILE.yaml` would change are changed here, archiving included.
    """
    from reengage.attribution.v1 import what_if_pb2
    from services.cli.connections import run
    from services.cli.settings_file import SettingsFileError

    text = None if file is None else read(file)
    start_time, end_time = period(app_id, start, end)

    async def main() -> None:
        overrides = [] if text is None else await _overrides(app_id, text, keep)
        request = what_if_pb2.WhatIfRequest(
            app_id=app_id, start_time=start_time, end_time=end_time, overrides=overrides
        )
        await _decide_again(request, limit, as_json, target)

    try:
        run(main())
    except SettingsFileError as error:
        fail(*(f"{file}:{line}: {message}" for line, message in error.problems), code=WRONG)


async def _overrides(app_id: str, text: str, keep: bool) -> "list[snapshot_pb2.Resource]":
    """Returns what applying a settings file would leave of each resource that it changes."""
    from dataclasses import replace

    from services.cli.settings_file import read_settings_file
    from services.cli.settings_plan import Planner

    file = read_settings_file(text)
    if file.app_id != app_id:
        fail(f"The file is about {file.app_id}, not {app_id}.", code=WRONG)
    async with Planner() as planner:
        plan = await planner.plan(replace(file, postbacks=None))
        return await planner.changed_resources(plan, keep=keep)


async def _decide_again(request: "what_if_pb2.WhatIfRequest", limit: int, as_json: bool, target: str) -> None:
    """Prints what would change, with progress on the error stream."""
    from rich.console import Console

    from libs.client import what_if as decide_again
    from reengage.attribution.v1 import credit_total_pb2, what_if_pb2
    from services.cli.connections import connected
    from services.cli.decision_tables import print_changed, print_totals

    count = changed_count = 0
    totals: list[credit_total_pb2.CreditTotal] = []
    shown: list[what_if_pb2.ChangedDecision] = []
    async with connected("attribution", target) as channel:
        with Console(stderr=True).status("Deciding again") as status:
            async for part in decide_again(channel, request):
                if as_json:
                    print_json(part, indent=None)
                count, changed_count = count + part.conversion_count, changed_count + len(part.changed)
                totals.extend(part.totals)
                shown += part.changed[: limit - len(shown)]
                status.update(
                    f"{count:,} of about {part.estimated_total_count:,} decided again, {changed_count:,} change"
                )
    if not as_json:
        print_totals(totals)
        print_changed(shown)
        more = f", of which {len(shown)} are shown" if changed_count > len(shown) else ""
        typer.echo(f"{changed_count:,} of {count:,} decisions would change{more}. Nothing was written.")
