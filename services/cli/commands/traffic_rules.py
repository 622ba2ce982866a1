"""`reengage traffic-rules`: which traffic of a tracker counts."""

from typing import Any

import typer

from services.cli.console import print_json
from services.cli.groups import new_group
from services.cli.kinds import TRACKER
from services.cli.options import Fields, Json, Target
from services.cli.resource_commands import existing, fill, with_resources

app = new_group("Shows, sets and clears which traffic of a tracker counts.")


@app.command("get")
def get_rules(tracker_id: str, as_json: Json = False, target: Target = "") -> None:
    """Shows the traffic rules of a tracker."""
    _print(existing(TRACKER, target, tracker_id), as_json)


@app.command("set")
def set_rules(tracker_id: str, fields: Fields, as_json: Json = False, target: Target = "") -> None:
    """Sets rules and leaves the others, as start_time=2026-03-01, min_os_version=16, allowed_countries=DE,FR."""
    _update(tracker_id, [f"traffic_rules.{each}" for each in fields], as_json, target)


@app.command("clear")
def clear_rules(tracker_id: str, as_json: Json = False, target: Target = "") -> None:
    """Clears all rules: all traffic of the tracker counts."""
    _update(tracker_id, ["traffic_rules="], as_json, target)


def _update(tracker_id: str, assignments: list[str], as_json: bool, target: str) -> None:
    tracker, paths = fill(TRACKER, assignments, tracker_id)

    async def update_it(resources: Any) -> Any:
        return await resources.update(TRACKER, tracker, paths)

    _print(with_resources(TRACKER, target, update_it), as_json)


def _print(tracker: Any, as_json: bool) -> None:
    from services.cli.resource_tables import print_resource

    if as_json:
        print_json(tracker.traffic_rules)
    elif tracker.HasField("traffic_rules"):
        print_resource(f"Traffic rules of {tracker.tracker_id}", tracker.traffic_rules)
    else:
        typer.echo(f"{tracker.tracker_id} has no traffic rules: all of its traffic counts.")
