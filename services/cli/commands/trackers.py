"""`reengage trackers`: the ad links of an app."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.cli.console import WRONG, confirmed, fail, print_json, read_bytes, write
from services.cli.groups import new_group
from services.cli.kinds import EVENT_DEFINITION, TRACKER
from services.cli.options import Archived, Fields, Json, Limit, Output, PlanOnly, Target, Yes
from services.cli.resource_commands import (
    add_archive,
    edit_resource,
    fail_unknown,
    fill,
    list_resources,
    print_result,
    show_resource,
    with_resources,
)

if TYPE_CHECKING:
    from reengage.tracker.v1 import tracker_edit_pb2, tracker_pb2
    from services.cli.resources import Resources

Campaign = Annotated[str, typer.Option(help="Only those of this campaign.")]
Segment = Annotated[str, typer.Option(help="Only those of this segment.")]
Network = Annotated[str, typer.Option(help="Only those of this network.")]
Agency = Annotated[str, typer.Option(help="Only those that this agency runs.")]
Type = Annotated[str, typer.Option("--type", help="ACQUISITION or REENGAGEMENT.")]
Event = Annotated[str, typer.Option(help="Only those that select this event.")]
Format = Annotated[str, typer.Option("--format", help="csv or ndjson. Default: by the name of the file, else csv.")]

app = new_group("Lists, shows, creates, edits, archives, exports and imports trackers.")
add_archive(app, TRACKER)


@app.command("list")
def list_trackers(
    app_id: str,
    campaign: Campaign = "",
    segment: Segment = "",
    network: Network = "",
    agency: Agency = "",
    kind: Type = "",
    event: Event = "",
    archived: Archived = False,
    limit: Limit = 100,
    as_json: Json = False,
    target: Target = "",
) -> None:
    """Lists an app's trackers: all, or those that match every option."""
    found = list_resources(
        TRACKER,
        f"Trackers of {app_id}",
        limit,
        as_json,
        target,
        app_id=app_id,
        filter=_filter(campaign, segment, network, agency, kind, event),
        show_archived=archived,
    )
    if event and not found:
        _warn_of_unknown(app_id, [event], target)


@app.command("get")
def get_tracker(
    tracker_id: str,
    resolved: Annotated[
        bool, typer.Option("--resolved", help="Only the effective values, with the layer of each.")
    ] = False,
    as_json: Json = False,
    target: Target = "",
) -> None:
    """Shows a tracker: what is set, its links, and the effective value of every setting with the layer it is from.

    With --json only the tracker, or with --resolved only the effective values.
    """
    from reengage.tracker.v1 import resolve_pb2, tracker_pb2
    from services.cli.resource_tables import print_resolved

    if as_json and not resolved:
        show_resource(TRACKER, as_json, target, tracker_id)
        return

    async def get_it(resources: "Resources") -> tuple[Any, Any]:
        if await resources.get(TRACKER, tracker_id) is None:
            await fail_unknown(resources, TRACKER, tracker_id)
        return (
            await resources.stub.GetTracker(tracker_pb2.GetTrackerRequest(tracker_id=tracker_id)),
            await resources.stub.ResolveSettings(resolve_pb2.ResolveSettingsRequest(tracker_id=tracker_id)),
        )

    shown, effective = with_resources(TRACKER, target, get_it)
    if as_json:
        print_json(effective)
        return
    if not resolved:
        print_result("", TRACKER, shown.tracker, as_json)
        _print_links(shown.links)
        typer.echo()
    print_resolved(f"Effective settings of {tracker_id}, revision {effective.revision}", effective.settings)


@app.command("create")
def create_tracker(
    fields: Fields,
    new_segment: Annotated[str, typer.Option(help="Create a segment of this name for it.")] = "",
    campaign: Annotated[str, typer.Option(help="With --new-segment: the campaign that it is of.")] = "",
    new_campaign: Annotated[str, typer.Option(help="With --new-segment: create a campaign of this name, too.")] = "",
    app: Annotated[str, typer.Option(help="With --new-campaign: the app that it is of.")] = "",
    draft_postbacks: Annotated[
        bool, typer.Option("--draft-postbacks", help="The postback configurations to fill in, too, as JSON.")
    ] = False,
    as_json: Json = False,
    target: Target = "",
) -> None:
    """Creates a tracker, and, if they are given, the segment and the campaign it is to belong to.

    Prints the links to hand to the network, with that network's macros filled in. They begin with REENGAGE_GATEWAY_URL.
    """
    from reengage.tracker.v1 import campaign_pb2, segment_pb2, tracker_pb2
    from services.cli.resource_tables import print_resource

    tracker, _ = fill(TRACKER, fields)
    request = tracker_pb2.CreateTrackerRequest(tracker=tracker, draft_postbacks=draft_postbacks)
    if new_segment:
        request.segment.CopyFrom(segment_pb2.Segment(name=new_segment, campaign_id=campaign))
    if new_campaign:
        request.campaign.CopyFrom(campaign_pb2.Campaign(name=new_campaign, app_id=app))

    async def create_it(resources: "Resources") -> Any:
        return await resources.stub.CreateTracker(request)

    response = with_resources(TRACKER, target, create_it)
    if as_json or draft_postbacks:
        print_json(response)
    else:
        print_resource(f"Created tracker {response.tracker.tracker_id}", response.tracker)
        _print_links(response.links)
    _warn_of_unknown(response.tracker.app_id, list(response.tracker.events), target)


@app.command("edit")
def edit_trackers(
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="TRACKER_ID|FIELD=VALUE",
            help="Which trackers, and what they get, as name=Spring, agency_id=blue, windows.click_device=7d. "
            "Nothing after the = clears the field.",
        ),
    ],
    app: Annotated[str, typer.Option(help="Instead of ids: all live trackers of this app that match the rest.")] = "",
    campaign: Campaign = "",
    segment: Segment = "",
    network: Network = "",
    agency: Agency = "",
    kind: Type = "",
    event: Event = "",
    yes: Yes = False,
    plan_only: PlanOnly = False,
    as_json: Json = False,
    target: Target = "",
) -> None:
    """Changes fields of a tracker; of many trackers at once: all of them or none, after showing what would change."""
    from reengage.tracker.v1 import tracker_edit_pb2

    ids = [each for each in what if "=" not in each]
    chosen = _filter(campaign, segment, network, agency, kind, event)
    fields = [each for each in what if "=" in each]
    if bool(ids) == bool(app) or (ids and chosen.ByteSize()) or not fields:
        fail("Give the ids of trackers, or --app and what they must match; and each FIELD=VALUE.", code=WRONG)
    if len(ids) == 1 and not plan_only:
        changed = edit_resource(TRACKER, fields, as_json, target, ids[0])
        if any(field.startswith("events=") for field in fields):
            _warn_of_unknown(changed.app_id, list(changed.events), target)
        return
    tracker, paths = fill(TRACKER, fields)
    request = tracker_edit_pb2.BulkEditTrackersRequest(app_id=app, tracker_ids=ids, tracker=tracker)
    request.update_mask.paths.extend(paths)
    if app:
        request.filter.CopyFrom(chosen)

    async def plan(resources: "Resources") -> Any:
        request.app_id = request.app_id or (await resources.existing(TRACKER, ids[0])).app_id
        request.validate_only = True
        return await resources.stub.BulkEditTrackers(request)

    async def edit(resources: "Resources") -> Any:
        request.validate_only = False
        return await resources.stub.BulkEditTrackers(request)

    planned = with_resources(TRACKER, target, plan)
    if _agreed(f"Trackers of {request.app_id}", planned, yes, plan_only, as_json):
        with_resources(TRACKER, target, edit)
        typer.echo("Changed.", err=as_json)


@app.command("export")
def export_trackers(
    app_id: str,
    output: Output = None,
    file_format: Format = "",
    campaign: Campaign = "",
    segment: Segment = "",
    network: Network = "",
    agency: Agency = "",
    kind: Type = "",
    event: Event = "",
    target: Target = "",
) -> None:
    """Writes an app's live trackers, or those that match every option, to a file that can be edited and imported."""
    from reengage.tracker.v1 import tracker_edit_pb2

    request = tracker_edit_pb2.ExportTrackersRequest(
        app_id=app_id,
        filter=_filter(campaign, segment, network, agency, kind, event),
        format=_file_format(file_format, output),
    )

    async def export(resources: "Resources") -> bytes:
        return b"".join([part.content async for part in resources.stub.ExportTrackers(request)])

    write(output, with_resources(TRACKER, target, export))


@app.command("import")
def import_trackers(
    app_id: str,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="As exported, and edited since.")],
    file_format: Format = "",
    yes: Yes = False,
    plan_only: PlanOnly = False,
    as_json: Json = False,
    target: Target = "",
) -> None:
    """Brings trackers to the state of an exported file: shows what would change, asks, and does all of it or nothing.

    Trackers that the file does not name stay as they are; one whose id is new or missing is created.
    """
    from reengage.tracker.v1 import tracker_edit_pb2

    request = tracker_edit_pb2.ImportTrackersRequest(
        app_id=app_id, format=_file_format(file_format, file), content=read_bytes(file)
    )

    async def send(resources: "Resources") -> Any:
        return await resources.stub.ImportTrackers(request)

    planned = with_resources(TRACKER, target, send)
    if _agreed(f"Trackers of {app_id}", planned, yes, plan_only, as_json):
        request.etag = planned.etag
        with_resources(TRACKER, target, send)
        typer.echo("Imported.", err=as_json)


def _filter(
    campaign: str, segment: str, network: str, agency: str, kind: str, event: str
) -> "tracker_pb2.TrackerFilter":
    from reengage.tracker.v1 import tracker_pb2
    from services.cli.fields import MisfitError, read_choice

    try:
        number = read_choice(tracker_pb2.Tracker.Type.DESCRIPTOR, kind) if kind else 0
    except MisfitError as misfit:
        fail(f"--type {misfit}", code=WRONG)
    return tracker_pb2.TrackerFilter(
        campaign_id=campaign,
        segment_id=segment,
        network_id=network,
        agency_id=agency,
        type=tracker_pb2.Tracker.Type.ValueType(number),
        event_name=event,
    )


def _agreed(
    title: str,
    planned: "tracker_edit_pb2.BulkEditTrackersResponse | tracker_edit_pb2.ImportTrackersResponse",
    yes: bool,
    plan_only: bool,
    as_json: bool,
) -> bool:
    """Shows what would change and returns whether to go on. Ends the command when the person says no."""
    from services.cli.resource_tables import print_changes, tracker_rows

    if as_json:
        print_json(planned)
    elif planned.changes:
        print_changes(title, tracker_rows(planned.changes))
    else:
        typer.echo("Nothing to do.")
    if not planned.changes or plan_only:
        return False
    if not yes and not confirmed(f"Change {len(planned.changes)}?"):
        fail("Nothing was changed.")
    return True


def _print_links(links: "tracker_pb2.TrackerLinks") -> None:
    """Prints the links to hand to the network, whole."""
    from services.cli.connections import gateway_url

    for name, link in (("click", links.click), ("impression", links.impression), ("short", links.short)):
        if link:
            typer.echo(f"{name} link: {gateway_url()}{link}")


def _warn_of_unknown(app_id: str, events: list[str], target: str) -> None:
    """Names, on the error stream, known events that are like those that nobody knows: a typing error wins nothing."""

    from services.cli.fields import nearest

    async def list_them(resources: "Resources") -> list[str]:
        return [event.event_name for event in await resources.all(EVENT_DEFINITION, app_id=app_id)]

    known = with_resources(EVENT_DEFINITION, target, list_them) if events else []
    for event in events:
        if event not in known and (question := nearest(event, known)):
            typer.echo(f"No event {event} of {app_id} is known yet{question}", err=True)


def _file_format(given: str, file: Path | None) -> "tracker_edit_pb2.FileFormat.ValueType":
    """Returns the format by its name, else by the name of the file, else CSV."""
    from reengage.tracker.v1 import tracker_edit_pb2

    name = given.lower() or (file.suffix.lower().lstrip(".") if file is not None else "")
    if given and name not in ("csv", "ndjson"):
        fail(f"--format should be csv or ndjson, not {given}", code=WRONG)
    is_json = name in ("ndjson", "jsonl", "json")
    return tracker_edit_pb2.FILE_FORMAT_NDJSON if is_json else tracker_edit_pb2.FILE_FORMAT_CSV
