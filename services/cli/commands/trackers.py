"""The commands `reengage trackers`, `apps`, `events` and `apply`: settings, read and changed from the command line.

Fields are written FIELD=VALUE, with the names of the protos; `deploy/local/fields.py` says how values are written.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from reengage.tracker.v1 import resolve_pb2, tracker_edit_pb2, tracker_pb2
    from services.cli.resources import Settings
    from services.tracker.kinds import Kind

T = TypeVar("T")
WRONG = 2
"""Exit code of a command line that does not fit."""

Json = Annotated[bool, typer.Option("--json", help="Answer as JSON.")]
Target = Annotated[str, typer.Option(help="host:port of tracker. Default: the suite that runs here.")]
Archived = Annotated[bool, typer.Option("--archived", help="Archived ones too.")]
Limit = Annotated[int, typer.Option(min=1, max=100_000, help="How many, by id.")]
Fields = Annotated[
    list[str],
    typer.Argument(
        metavar="FIELD=VALUE",
        help="As name=Spring, events=Purchase,Login, windows.click_device=7d, custom_parameters=sku=home. "
        "Nothing behind = clears the field. A name that is none is told which there are.",
    ),
]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
PlanOnly = Annotated[bool, typer.Option("--plan-only", help="Show what would change, and change nothing.")]
Campaign = Annotated[str, typer.Option(help="Only those of this campaign.")]
Segment = Annotated[str, typer.Option(help="Only those of this segment.")]
Network = Annotated[str, typer.Option(help="Only those of this network.")]
Agency = Annotated[str, typer.Option(help="Only those that this agency runs.")]
Type = Annotated[str, typer.Option("--type", help="ACQUISITION or REENGAGEMENT.")]
Event = Annotated[str, typer.Option(help="Only those that select this event.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="A file. Default: standard output.")]
Format = Annotated[str, typer.Option("--format", help="csv or ndjson. Default: as the file is called, else csv.")]

trackers = typer.Typer(no_args_is_help=True, help="Lists, shows, creates, edits, exports and imports trackers.")
apps = typer.Typer(no_args_is_help=True, help="Lists, shows, creates, edits and exports apps.")
events = typer.Typer(no_args_is_help=True, help="Lists, shows and sets what holds for an app's events.")


@trackers.command("list")
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
    from services.tracker.kinds import TRACKER

    _list(
        TRACKER, f"Trackers of {app_id}", limit, as_json, target,
        ("tracker_id", "name", "type", "network_id", "campaign_id", "segment_id", "agency_id", "events", "status"),
        app_id=app_id,
        filter=_filter(campaign, segment, network, agency, kind, event),
        show_archived=archived,
    )  # fmt: skip


@trackers.command("get")
def get_tracker(
    tracker_id: str,
    resolved: Annotated[
        bool, typer.Option("--resolved", help="What holds for it, setting by setting, and the layer that says so.")
    ] = False,
    as_json: Json = False,
    target: Target = "",
) -> None:
    """Shows a tracker, or with --resolved the effective value of every setting."""
    from reengage.tracker.v1 import resolve_pb2
    from services.cli.calls import to_json
    from services.cli.resource_tables import print_resolved
    from services.tracker.kinds import TRACKER

    if not resolved:
        _get(TRACKER, as_json, target, tracker_id)
        return

    async def work(settings: "Settings") -> "resolve_pb2.ResolveSettingsResponse":
        request = resolve_pb2.ResolveSettingsRequest(tracker_id=tracker_id)
        answer: resolve_pb2.ResolveSettingsResponse = await settings.stub.ResolveSettings(request)
        return answer

    answer = _with_tracker(target, work)
    typer.echo(to_json(answer, indent=2)) if as_json else print_resolved(tracker_id, answer)


@trackers.command("create")
def create_tracker(
    fields: Fields,
    new_segment: Annotated[str, typer.Option(help="Create a segment of this name for it.")] = "",
    campaign: Annotated[str, typer.Option(help="With --new-segment: the campaign that it is of.")] = "",
    new_campaign: Annotated[str, typer.Option(help="With --new-segment: create a campaign of this name, too.")] = "",
    app: Annotated[str, typer.Option(help="With --new-campaign: the app that it is of.")] = "",
    draft_postbacks: Annotated[
        bool, typer.Option("--draft-postbacks", help="Answer the postback configurations to fill in, too, as JSON.")
    ] = False,
    as_json: Json = False,
    target: Target = "",
) -> None:
    """Creates a tracker, and, if they are given, the segment and the campaign it is to belong to."""
    from reengage.tracker.v1 import campaign_pb2, segment_pb2, tracker_pb2
    from services.cli.calls import to_json
    from services.cli.resource_tables import print_resource
    from services.tracker.kinds import TRACKER

    tracker, _ = _fill(TRACKER, fields)
    request = tracker_pb2.CreateTrackerRequest(tracker=tracker, draft_postbacks=draft_postbacks)
    if new_segment:
        request.segment.CopyFrom(segment_pb2.Segment(name=new_segment, campaign_id=campaign))
    if new_campaign:
        request.campaign.CopyFrom(campaign_pb2.Campaign(name=new_campaign, app_id=app))

    async def work(settings: "Settings") -> "tracker_pb2.CreateTrackerResponse":
        answer: tracker_pb2.CreateTrackerResponse = await settings.stub.CreateTracker(request)
        return answer

    answer = _with_tracker(target, work)
    if as_json or draft_postbacks:
        typer.echo(to_json(answer, indent=2))
    else:
        print_resource(f"Created tracker {answer.tracker.tracker_id}", answer.tracker)


@trackers.command("edit")
def edit_trackers(
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="TRACKER_ID|FIELD=VALUE",
            help="Which trackers, and what they get, as name=Spring, agency_id=blue, windows.click_device=7d. "
            "Nothing behind = clears the field.",
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
    from reengage.tracker.v1 import tracker_edit_pb2, tracker_pb2
    from services.tracker.kinds import TRACKER

    ids = [one for one in what if "=" not in one]
    chosen = _filter(campaign, segment, network, agency, kind, event)
    fields = [one for one in what if "=" in one]
    if bool(ids) == bool(app) or (ids and chosen.ByteSize()) or not fields:
        _fail("Give the ids of trackers, or --app and what they must match; and each FIELD=VALUE.", code=WRONG)
    if len(ids) == 1 and not plan_only:
        _edit(TRACKER, fields, as_json, target, ids[0])
        return
    tracker, paths = _fill(TRACKER, fields)
    request = tracker_edit_pb2.BulkEditTrackersRequest(app_id=app, tracker_ids=ids, tracker=tracker)
    request.update_mask.paths.extend(paths)
    if app:
        request.filter.CopyFrom(chosen)

    async def edit(settings: "Settings", dry_run: bool) -> "tracker_edit_pb2.BulkEditTrackersResponse":
        if not request.app_id:
            named = tracker_pb2.GetTrackerRequest(tracker_id=ids[0])
            request.app_id = (await settings.stub.GetTracker(named)).tracker.app_id
        request.validate_only = dry_run
        answer: tracker_edit_pb2.BulkEditTrackersResponse = await settings.stub.BulkEditTrackers(request)
        return answer

    planned = _with_tracker(target, lambda settings: edit(settings, True))
    if _agreed(f"Trackers of {request.app_id}", planned, yes, plan_only, as_json):
        _with_tracker(target, lambda settings: edit(settings, False))
        typer.echo("Changed.", err=as_json)


@trackers.command("export")
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

    async def work(settings: "Settings") -> bytes:
        return b"".join([part.content async for part in settings.stub.ExportTrackers(request)])

    _write(output, _with_tracker(target, work))


@trackers.command("import")
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

    try:
        content = file.read_bytes()
    except OSError as error:
        _fail(f"{file}: {error.strerror}", code=WRONG)
    request = tracker_edit_pb2.ImportTrackersRequest(
        app_id=app_id, format=_file_format(file_format, file), content=content
    )

    async def send(settings: "Settings") -> "tracker_edit_pb2.ImportTrackersResponse":
        answer: tracker_edit_pb2.ImportTrackersResponse = await settings.stub.ImportTrackers(request)
        return answer

    planned = _with_tracker(target, send)
    if _agreed(f"Trackers of {app_id}", planned, yes, plan_only, as_json):
        request.etag = planned.etag
        _with_tracker(target, send)
        typer.echo("Imported.", err=as_json)


@apps.command("list")
def list_apps(archived: Archived = False, limit: Limit = 100, as_json: Json = False, target: Target = "") -> None:
    """Lists the apps."""
    from services.tracker.kinds import APP

    _list(
        APP, "Apps", limit, as_json, target,
        ("app_id", "name", "platform", "account_id", "bundle_id", "time_zone", "currency_code", "sandbox", "status"),
        show_archived=archived,
    )  # fmt: skip


@apps.command("get")
def get_app(app_id: str, as_json: Json = False, target: Target = "") -> None:
    """Shows an app."""
    from services.tracker.kinds import APP

    _get(APP, as_json, target, app_id)


@apps.command("create")
def create_app(fields: Fields, as_json: Json = False, target: Target = "") -> None:
    """Creates an app: at least name=NAME and platform=IOS or ANDROID."""
    from services.tracker.kinds import APP

    app, _ = _fill(APP, fields)
    _show("Created", APP, _with_tracker(target, lambda settings: settings.create(APP, app)), as_json)


@apps.command("edit")
def edit_app(app_id: str, fields: Fields, as_json: Json = False, target: Target = "") -> None:
    """Changes fields of an app, as currency_code=EUR or settings.windows.click_ip=1d."""
    from services.tracker.kinds import APP

    _edit(APP, fields, as_json, target, app_id)


@apps.command("export")
def export_app(app_id: str, output: Output = None, target: Target = "") -> None:
    """Writes an app and all that belongs to it to a file for `reengage apply`, without secrets."""
    from services.cli.commands.apply import export

    text = _with_tracker(target, lambda settings: export(settings, app_id))
    if text is None:
        _fail(f"There is no app {app_id}.")
    _write(output, text.encode())


@events.command("list")
def list_events(
    app_id: str, archived: Archived = False, limit: Limit = 100, as_json: Json = False, target: Target = ""
) -> None:
    """Lists the events of an app that have settings."""
    from services.tracker.kinds import EVENT_DEFINITION

    _list(
        EVENT_DEFINITION, f"Events of {app_id}", limit, as_json, target,
        (
            "event_name", "display_name", "min_time_to_reengagement", "reengagement_period", "revenue", "disabled",
            "registered", "status",
        ),
        app_id=app_id,
        show_archived=archived,
    )  # fmt: skip


@events.command("get")
def get_event(app_id: str, event_name: str, as_json: Json = False, target: Target = "") -> None:
    """Shows an event's settings."""
    from services.tracker.kinds import EVENT_DEFINITION

    _get(EVENT_DEFINITION, as_json, target, app_id, event_name)


@events.command("set")
def set_event(app_id: str, event_name: str, fields: Fields, as_json: Json = False, target: Target = "") -> None:
    """Sets fields of an event, as min_time_to_reengagement=12h or revenue=true; one without settings gets them."""
    from services.tracker.kinds import EVENT_DEFINITION

    event, paths = _fill(EVENT_DEFINITION, fields, app_id, event_name)

    async def work(settings: "Settings") -> Any:
        held = await settings.get(EVENT_DEFINITION, app_id, event_name)
        if held is None or EVENT_DEFINITION.is_archived(held):
            return await settings.create(EVENT_DEFINITION, event)
        return await settings.update(EVENT_DEFINITION, event, paths)

    _show("Set", EVENT_DEFINITION, _with_tracker(target, work), as_json)


def apply(
    file: Annotated[Path, typer.Argument(metavar="FILE.yaml", help="What the app shall be.")],
    yes: Yes = False,
    plan_only: PlanOnly = False,
    as_json: Json = False,
    target: Target = "",
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

    What a section does not name is archived; a section that is left out stays as it is.
    What is archived never comes back under its id, but for events.
    A field that is left out has its default, but an app's owner, a tracker's click_validation_key
    and a SAN account's credentials stay as they are. Events that nobody created are left alone.
    Networks and agencies are of no app: create them first.
    """
    from services.cli.calls import CallError
    from services.cli.commands.apply import run

    def agreed() -> bool:
        return yes or _confirmed("Apply?")

    try:
        raise typer.Exit(run(file, agreed, plan_only=plan_only, as_json=as_json, target=target))
    except CallError as error:
        _fail(str(error))


def _with_tracker(target: str, work: "Callable[[Settings], Awaitable[T]]") -> T:
    """What `work` makes of tracker; a call that fails ends the command."""
    from services.cli.calls import CallError
    from services.cli.resources import connected

    async def main() -> T:
        async with connected(target) as settings:
            return await work(settings)

    try:
        return asyncio.run(main())
    except CallError as error:
        _fail(str(error))


def _fill(kind: "Kind[Any]", assignments: list[str], *key: str) -> "tuple[Any, list[str]]":
    """A resource with the fields of the command line, and their paths. Ends the command naming all that do not fit."""
    from services.cli.fields import Fields as Reader

    resource = kind.message(**dict(zip(kind.key, key, strict=False)))
    closed = dict.fromkeys(kind.output_only, "is set by the service")
    if key:
        closed |= dict.fromkeys(kind.key, "says which one it is, and never changes")
    reader = Reader(resource, closed)
    problems = [f"{one!r} should be FIELD=VALUE" for one in assignments if "=" not in one]
    given = [one.partition("=") for one in assignments if "=" in one]
    for path, _, text in given:
        reader.assign(path, text)
    problems += [problem.message for problem in reader.problems]
    if problems:
        _fail("\n".join(problems), code=WRONG)
    return resource, [path for path, _, _ in given]


def _filter(
    campaign: str, segment: str, network: str, agency: str, kind: str, event: str
) -> "tracker_pb2.TrackerFilter":
    from reengage.tracker.v1 import tracker_pb2
    from services.cli.fields import MisfitError, read_choice

    try:
        number = read_choice(tracker_pb2.Tracker.Type.DESCRIPTOR, kind) if kind else 0
    except MisfitError as misfit:
        _fail(f"--type {misfit}", code=WRONG)
    return tracker_pb2.TrackerFilter(
        campaign_id=campaign,
        segment_id=segment,
        network_id=network,
        agency_id=agency,
        type=tracker_pb2.Tracker.Type.ValueType(number),
        event_name=event,
    )


def _list(
    kind: "Kind[Any]", title: str, limit: int, as_json: bool, target: str, columns: tuple[str, ...], **request: Any
) -> None:
    from services.cli.resource_tables import print_resources, resources_json

    found, more = _with_tracker(target, lambda settings: settings.some(kind, limit, **request))
    if as_json:
        typer.echo(resources_json(kind, found))
    else:
        print_resources(title, found, *columns)
    if more:
        typer.echo(f"There are more than {limit}; --limit shows them.", err=True)


def _get(kind: "Kind[Any]", as_json: bool, target: str, *key: str) -> None:
    found = _with_tracker(target, lambda settings: settings.get(kind, *key))
    if found is None:
        _fail(f"There is no {kind.name.replace('_', ' ')} {'/'.join(key)}.")
    _show("", kind, found, as_json)


def _agreed(
    title: str,
    planned: "tracker_edit_pb2.BulkEditTrackersResponse | tracker_edit_pb2.ImportTrackersResponse",
    yes: bool,
    plan_only: bool,
    as_json: bool,
) -> bool:
    """Shows what would change; whether it shall. Ends the command when the answer is no."""
    from services.cli.calls import to_json
    from services.cli.resource_tables import print_changes, tracker_rows

    if as_json:
        typer.echo(to_json(planned, indent=2))
    elif planned.changes:
        print_changes(title, tracker_rows(planned.changes))
    else:
        typer.echo("Nothing to do.")
    if not planned.changes or plan_only:
        return False
    if not yes and not _confirmed(f"Change {len(planned.changes)}?"):
        _fail("Nothing was changed.")
    return True


def _confirmed(question: str) -> bool:
    try:
        return typer.confirm(question, err=True)
    except typer.Abort:
        _fail("\nNothing was changed: nobody answered. --yes does not ask.")


def _write(output: Path | None, content: bytes) -> None:
    if output is None:
        typer.echo(content, nl=False)
        return
    try:
        output.write_bytes(content)
    except OSError as error:
        _fail(f"{output}: {error.strerror}")


def _file_format(given: str, file: Path | None) -> "tracker_edit_pb2.FileFormat.ValueType":
    """The format by its name, else by the name of the file, else CSV."""
    from reengage.tracker.v1 import tracker_edit_pb2

    name = given.lower() or (file.suffix.lower().lstrip(".") if file is not None else "")
    if given and name not in ("csv", "ndjson"):
        _fail(f"--format should be csv or ndjson, not {given}", code=WRONG)
    is_json = name in ("ndjson", "jsonl", "json")
    return tracker_edit_pb2.FILE_FORMAT_NDJSON if is_json else tracker_edit_pb2.FILE_FORMAT_CSV


def _edit(kind: "Kind[Any]", assignments: list[str], as_json: bool, target: str, *key: str) -> None:
    resource, paths = _fill(kind, assignments, *key)
    _show("Changed", kind, _with_tracker(target, lambda settings: settings.update(kind, resource, paths)), as_json)


def _show(done: str, kind: "Kind[Any]", resource: "Message", as_json: bool) -> None:
    from services.cli.calls import to_json
    from services.cli.resource_tables import print_resource

    name = f"{kind.name.replace('_', ' ')} {'/'.join(kind.key_of(resource))}"
    if as_json:
        typer.echo(to_json(resource, indent=2))
    else:
        print_resource(f"{done} {name}".strip(), resource)


def _fail(message: str, *, code: int = 1) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(code)
