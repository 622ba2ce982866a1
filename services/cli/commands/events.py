"""`reengage events`: what holds for the events of an app."""

from typing import TYPE_CHECKING, Any

import typer

from services.cli.console import lists_json
from services.cli.groups import new_group
from services.cli.kinds import EVENT_DEFINITION
from services.cli.options import Archived, Fields, Json, Limit, Target
from services.cli.resource_commands import fail_unknown, fill, print_result, with_resources

if TYPE_CHECKING:
    from services.cli.resources import Resources

app = new_group("Lists, shows, sets and archives what holds for an app's events.")
_MAX_RESOLVED = 1000


@app.command("list")
def list_events(
    app_id: str, archived: Archived = False, limit: Limit = 100, as_json: Json = False, target: Target = ""
) -> None:
    """Lists the known events of an app, with the effective settings of each and the layer that each comes from."""

    async def list_them(resources: "Resources") -> tuple[list[Any], bool, list[Any]]:
        found, has_more = await resources.some(EVENT_DEFINITION, limit, app_id=app_id, show_archived=archived)
        return found, has_more, await _resolve(resources, app_id, [event.event_name for event in found])

    found, has_more, settings = with_resources(EVENT_DEFINITION, target, list_them)
    if as_json:
        typer.echo(lists_json(event_definitions=found, settings=settings))
    else:
        from services.cli.resource_tables import print_events

        print_events(app_id, found, settings)
    if has_more:
        typer.echo(f"There are more than {limit}; --limit shows them.", err=True)


@app.command("get")
def get_event(app_id: str, event_name: str, as_json: Json = False, target: Target = "") -> None:
    """Shows an event's settings: those that were set, and the effective ones."""
    from services.cli.resource_tables import print_resolved

    async def get_it(resources: "Resources") -> tuple[Any | None, list[Any]]:
        found = await resources.get(EVENT_DEFINITION, app_id, event_name)
        if found is None:
            await fail_unknown(resources, EVENT_DEFINITION, app_id, event_name)
        return found, [] if as_json else await _resolve(resources, app_id, [event_name])

    found, settings = with_resources(EVENT_DEFINITION, target, get_it)
    print_result("", EVENT_DEFINITION, found, as_json)
    if settings:
        print_resolved(f"Effective settings of {event_name}", settings)


@app.command("set")
def set_event(app_id: str, event_name: str, fields: Fields, as_json: Json = False, target: Target = "") -> None:
    """Sets fields of an event, as min_time_to_reengagement=12h or revenue=true; one without settings gets them."""
    event, paths = fill(EVENT_DEFINITION, fields, app_id, event_name)

    async def set_it(resources: "Resources") -> Any:
        from reengage.tracker.v1.status_pb2 import STATUS_ARCHIVED

        held = await resources.get(EVENT_DEFINITION, app_id, event_name)
        if held is None or held.status == STATUS_ARCHIVED:
            return await resources.create(EVENT_DEFINITION, event)
        return await resources.update(EVENT_DEFINITION, event, paths)

    print_result("Set", EVENT_DEFINITION, with_resources(EVENT_DEFINITION, target, set_it), as_json)


@app.command("archive")
def archive_event(app_id: str, event_name: str, as_json: Json = False, target: Target = "") -> None:
    """Archives the settings of an event: it has the built-in ones again."""

    async def archive_it(resources: "Resources") -> Any:
        if await resources.get(EVENT_DEFINITION, app_id, event_name) is None:
            await fail_unknown(resources, EVENT_DEFINITION, app_id, event_name)
        return await resources.archive(EVENT_DEFINITION, app_id, event_name)

    print_result("Archived", EVENT_DEFINITION, with_resources(EVENT_DEFINITION, target, archive_it), as_json)


async def _resolve(resources: "Resources", app_id: str, names: list[str]) -> list[Any]:
    """Returns the effective settings of events, in the order of the names."""
    from reengage.tracker.v1 import resolve_pb2

    settings: list[Any] = []
    for start in range(0, len(names), _MAX_RESOLVED):
        request = resolve_pb2.ResolveSettingsRequest(app_id=app_id, event_names=names[start : start + _MAX_RESOLVED])
        settings.extend((await resources.stub.ResolveSettings(request)).settings)
    return settings
