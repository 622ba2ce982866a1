"""`reengage apply`: brings an app to the state of a settings file."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli.console import FAILED, WRONG, confirmed, read
from services.cli.groups import single
from services.cli.options import Json, PlanOnly, Target, Yes

if TYPE_CHECKING:
    from services.cli.settings_plan import Plan

app = single()
DONE = 0
"""Exit code."""


@app.command()
def apply(
    file: Annotated[Path, typer.Argument(metavar="FILE.yaml", help="What the app shall be.")],
    yes: Yes = False,
    plan_only: PlanOnly = False,
    as_json: Json = False,
    target: Target = "",
    postback_target: Annotated[str, typer.Option(help="host:port of postback.")] = "",
) -> None:
    """Brings an app to the state of a file: shows a plan, asks, and creates, updates and archives.

    Keep the file in git and apply it after each change. When nothing is left to do it says so.
    A file that does not fit changes nothing; each problem is named with its line (exit code 2).
    `reengage apps export APP_ID` writes such a file of what is there; a whole sample is
    deploy/local/sample/shop-ios.yaml. In short, with the fields of the protos:

    \b
    app:                            # required
      app_id: shop-ios              # created if it is not there
      name: Sample Shop iOS
      platform: IOS
      settings:
        windows: {click_ip: 1d}     # 90s, 30m, 6h, 30d, disabled, unlimited
    network_settings:               # by network
      bravo-ios: {windows: {click_device: 7d}}
    san_accounts:                   # by id, without their credentials
      x-main: {network_id: x-ios, name: Main}
    events:                         # by name
      Purchase: {min_time_to_reengagement: 24h, revenue: true}
    campaigns:                      # by id, as segments and trackers
      ios-return:
        name: Come back
        segments:
          ios-return-all:
            name: Everybody
            trackers:
              ios-acme-return:
                network_id: acme-ios
                type: REENGAGEMENT
                install_url: https://apps.apple.com/app/id1234567890
                events: [Purchase]
    postbacks:                      # by id, without their secrets
      acme-purchase: {network_id: acme-ios, trigger: Purchase, template: {url: "https://acme.example/?id={click_id}"}}

    What a section does not name is archived; a section that is left out stays as it is.
    What is archived never comes back under its id, but for events.
    A field that is left out has its default, but an app's owner, a tracker's click_validation_key,
    credentials and secrets stay as they are. Events that nobody created are left alone.
    Networks and agencies are of no app: create them first.
    Settings change all at once or not at all, then postbacks one by one.
    """

    def agreed() -> bool:
        return yes or confirmed("Apply?")

    raise typer.Exit(
        run(file, agreed, plan_only=plan_only, as_json=as_json, target=target, postback_target=postback_target)
    )


def run(
    path: Path,
    agreed: Callable[[], bool],
    *,
    plan_only: bool = False,
    as_json: bool = False,
    target: str = "",
    postback_target: str = "",
) -> int:
    """Shows what a file changes, and changes it if that is `agreed`; returns the exit code.

    The plan goes to standard output, what is wrong with the file to the error stream.
    """
    from services.cli import connections
    from services.cli.settings_file import SettingsFileError, read_settings_file
    from services.cli.settings_plan import Planner

    async def main() -> int:
        file = read_settings_file(text)
        async with Planner(target, postback_target) as planner:
            plan = await planner.plan(file)
            _print(file.app_id, plan, as_json)
            if not plan.rows() or plan_only:
                return DONE
            if not agreed():
                typer.echo("Nothing was changed.", err=True)
                return FAILED
            await planner.apply(plan)
        typer.echo("Applied.", err=as_json)
        return DONE

    text = read(path)
    try:
        return connections.run(main())
    except SettingsFileError as error:
        for line, message in error.problems:
            typer.echo(f"{path}:{line}: {message}", err=True)
        return WRONG


def _print(app_id: str, plan: "Plan", as_json: bool) -> None:
    from services.cli.resource_tables import changes_json, print_changes
    from services.cli.settings_plan import Action

    rows = plan.rows()
    if as_json:
        typer.echo(changes_json(app_id, rows))
    elif not rows:
        typer.echo(f"{app_id} is as the file says: nothing to do.")
    else:
        print_changes(f"Plan for {app_id}", rows)
        counts = Counter(action for action, _, _ in rows)
        typer.echo(", ".join(f"{counts[action]} to {action}" for action in Action))
