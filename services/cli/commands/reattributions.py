"""`reengage what-if` and `reengage reattribute`: deciding stored conversions again, to see or for good."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from google.protobuf.timestamp_pb2 import Timestamp

    from reengage.attribution.v1 import reattribution_pb2, what_if_pb2
    from reengage.tracker.v1 import snapshot_pb2

Target = Annotated[str, typer.Option(help="host:port of the service. Default: the suite that runs here.")]
Start = Annotated[
    str,
    typer.Option(
        "--from", metavar="TIME", help="Required: conversions then or later; 2026-03-01T00:00:00Z, or the day."
    ),
]
End = Annotated[str, typer.Option("--to", metavar="TIME", help="Conversions before that. Default: now.")]
INTERRUPTED = 130
WRONG = 2
_LOOK_S = 0.3


def what_if(
    app_id: str,
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE.yaml]", help="As for apply. Default: settings as they are.")
    ] = None,
    start: Start = "",
    end: End = "",
    keep: Annotated[bool, typer.Option("--keep", help="What the file does not name stays as it is.")] = False,
    limit: Annotated[int, typer.Option(min=0, help="Show so many of the decisions that would change.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Every part of the answer as JSON, one a line.")] = False,
    target: Target = "",
) -> None:
    """Decides stored conversions again as if a settings file had been applied, and shows what would change.

    Nothing is written. Whatever `reengage apply FILE.yaml` would change is changed here, archiving included.
    """
    from services.cli import calls
    from services.cli.settings_file import SettingsFileError

    period = _period(start, end)
    try:
        text = None if file is None else file.read_text(encoding="utf-8")
        asyncio.run(_what_if(app_id, text, period, keep, limit, as_json, target))
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except calls.CallError as error:
        _fail(str(error))
    except (OSError, UnicodeDecodeError) as error:
        _fail(f"{file}: {error}", code=WRONG)
    except SettingsFileError as error:
        _fail("\n".join(f"{file}:{line}: {message}" for line, message in error.problems), code=WRONG)


def reattribute(
    app_id: str,
    start: Start = "",
    end: End = "",
    reattribution_id: Annotated[str, typer.Option("--id", help="A name for it. Default: the time.")] = "",
    send_postbacks: Annotated[
        bool, typer.Option("--send-postbacks", help="Send the postbacks it calls for. Default: only offer them.")
    ] = False,
    show: Annotated[str, typer.Option(metavar="ID", help="Instead: follow an earlier one.")] = "",
    cancel: Annotated[str, typer.Option(metavar="ID", help="Instead: stop one; what it has written stays.")] = "",
    offered: Annotated[str, typer.Option(metavar="ID", help="Instead: list the postbacks that one calls for.")] = "",
    send: Annotated[str, typer.Option(metavar="ID", help="Instead: send those of them not sent yet.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Answer as JSON.")] = False,
    target: Target = "",
) -> None:
    """Decides stored conversions again under the settings as they are, and writes a new version of what changes.

    The work is done by the services: Ctrl-C leaves it going, and --show follows it again.
    """
    from services.cli import calls

    instead = [each for each in (show, cancel, offered, send) if each]
    if len(instead) > 1 or (instead and (start or end or reattribution_id or send_postbacks)):
        _fail("Give a period, or one of --show, --cancel, --offered and --send.", code=WRONG)
    try:
        if cancel:
            _print_job(asyncio.run(_cancel(app_id, cancel, target)), as_json)
        elif offered:
            asyncio.run(_offered(app_id, offered, as_json, target))
        elif send:
            asyncio.run(_send(app_id, send, as_json, target))
        elif show:
            _print_job(asyncio.run(_follow(app_id, show, target)), as_json)
        else:
            name = reattribution_id or f"{datetime.now(UTC):%Y-%m-%dT%H.%M.%SZ}"
            _print_job(asyncio.run(_reattribute(app_id, name, _period(start, end), send_postbacks, target)), as_json)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except calls.CallError as error:
        _fail(str(error))


# What if.


async def _what_if(
    app_id: str,
    file: str | None,
    period: "tuple[Timestamp, Timestamp]",
    keep: bool,
    limit: int,
    as_json: bool,
    target: str,
) -> None:
    from rich.console import Console

    from reengage.attribution.v1 import credit_total_pb2, what_if_pb2
    from services.cli.calls import to_json
    from services.cli.tables import print_changed, print_totals

    changes = [] if file is None else await _changes(app_id, file, keep)
    request = what_if_pb2.WhatIfRequest(app_id=app_id, start_time=period[0], end_time=period[1], overrides=changes)
    count = changed_count = 0
    totals: list[credit_total_pb2.CreditTotal] = []
    shown: list[what_if_pb2.ChangedDecision] = []
    with Console(stderr=True).status("Deciding again") as status:
        async for part in _parts(request, target):
            if as_json:
                typer.echo(to_json(part))
            count, changed_count = count + part.conversion_count, changed_count + len(part.changed)
            totals.extend(part.totals)
            shown += part.changed[: limit - len(shown)]
            status.update(f"{count:,} of about {part.estimated_total_count:,} decided again, {changed_count:,} change")
    if not as_json:
        print_totals(totals)
        print_changed(shown)
        more = f", of which {len(shown)} are shown" if changed_count > len(shown) else ""
        typer.echo(f"{changed_count:,} of {count:,} decisions would change{more}. Nothing was written.")


async def _parts(request: "what_if_pb2.WhatIfRequest", target: str) -> "AsyncIterator[what_if_pb2.WhatIfResponse]":
    """The answer; broken off, it goes on where it was. Raises CallError when nobody is there to begin with."""
    from reengage.attribution.v1 import reattribution_pb2, what_if_pb2
    from services.cli import calls

    # Who has never answered is not waited for, and the answer's first part may take long.
    named = reattribution_pb2.ListReattributionsRequest(app_id=request.app_id, page_size=1)
    await calls.ask("attribution/ListReattributions", named, target=target)
    service, method = calls.find_method("attribution/WhatIf")
    is_last = False
    while not is_last:
        try:
            async for part in calls.call(service, method, request, target=target):
                assert isinstance(part, what_if_pb2.WhatIfResponse)
                request.resume_token = part.resume_token
                is_last = not part.resume_token
                yield part
        except calls.CallError as error:
            if not calls.is_away(error):
                raise
            await asyncio.sleep(calls.RETRY_S)


async def _changes(app_id: str, text: str, keep: bool) -> "list[snapshot_pb2.Resource]":
    """What applying a settings file would leave of each resource that it changes."""
    from reengage.tracker.v1 import snapshot_pb2, status_pb2
    from services.cli.commands.apply import Action, look, plan
    from services.cli.resources import connected
    from services.cli.settings_file import read_settings_file
    from services.tracker import masks
    from services.tracker.kinds import SAN_ACCOUNT

    file = read_settings_file(text)
    if file.app.resource.app_id != app_id:
        _fail(f"The file is about {file.app.resource.app_id}, not {app_id}.", code=WRONG)
    async with connected("") as settings:
        world = await look(settings, file)
    changes = []
    for step in plan(file, world):
        if step.kind is SAN_ACCOUNT or (keep and step.wanted is None):
            continue
        resource, held = step.resource, world.get(step.kind, step.kind.key_of(step.resource))
        if step.action is Action.UPDATE:
            resource = masks.apply(held, resource, [field.path for field in step.fields])
        elif step.action is Action.ARCHIVE:
            resource.status = status_pb2.STATUS_ARCHIVED
        changes.append(snapshot_pb2.Resource(**{step.kind.name: resource}))
    return changes


# For good.


async def _reattribute(
    app_id: str, name: str, period: "tuple[Timestamp, Timestamp]", send_postbacks: bool, target: str
) -> "reattribution_pb2.Reattribution":
    """Start one and follow it to its end."""
    from reengage.attribution.v1 import reattribution_pb2
    from services.cli import calls

    request = reattribution_pb2.ReattributeRequest(
        app_id=app_id,
        reattribution_id=name,
        start_time=period[0],
        end_time=period[1],
        send_postbacks=send_postbacks,
    )
    await calls.ask("attribution/Reattribute", request, target=target)
    return await _follow(app_id, name, target)


async def _follow(app_id: str, name: str, target: str) -> "reattribution_pb2.Reattribution":
    """One as it is when it has ended."""
    from rich.console import Console

    from reengage.attribution.v1 import reattribution_pb2
    from services.cli import calls

    console = Console(stderr=True)
    named = reattribution_pb2.GetReattributionRequest(app_id=app_id, reattribution_id=name)
    with console.status("Deciding again") as status:
        try:
            while True:
                try:
                    found = await calls.ask("attribution/GetReattribution", named, target=target)
                except calls.CallError as error:
                    if not calls.is_away(error):
                        raise
                    status.update("The service is away; what it has begun goes on when it is back")
                else:
                    assert isinstance(found, reattribution_pb2.GetReattributionResponse)
                    job = found.reattribution
                    if job.state != reattribution_pb2.Reattribution.STATE_RUNNING:
                        return job
                    status.update(
                        f"{job.conversion_count:,} of about {job.estimated_total_count:,} decided again, "
                        f"{job.changed_count:,} changed"
                    )
                await asyncio.sleep(_LOOK_S)
        except asyncio.CancelledError:
            console.print(f"It goes on. To stop it: reengage reattribute {app_id} --cancel {name}")
            raise


async def _cancel(app_id: str, name: str, target: str) -> "reattribution_pb2.Reattribution":
    from reengage.attribution.v1 import reattribution_pb2
    from services.cli import calls

    request = reattribution_pb2.CancelReattributionRequest(app_id=app_id, reattribution_id=name)
    answer = await calls.ask("attribution/CancelReattribution", request, target=target)
    assert isinstance(answer, reattribution_pb2.CancelReattributionResponse)
    return answer.reattribution


async def _offered(app_id: str, name: str, as_json: bool, target: str) -> None:
    from reengage.attribution.v1 import offer_pb2
    from services.cli import calls
    from services.cli.tables import print_offered

    request = offer_pb2.ListOfferedPostbacksRequest(app_id=app_id, reattribution_id=name, page_size=1000)
    found: list[offer_pb2.OfferedPostback] = []
    while True:
        answer = await calls.ask("attribution/ListOfferedPostbacks", request, target=target)
        assert isinstance(answer, offer_pb2.ListOfferedPostbacksResponse)
        found.extend(answer.postbacks)
        request.page_token = answer.next_page_token
        if not request.page_token:
            break
    _print_json(found) if as_json else print_offered(app_id, name, found)


async def _send(app_id: str, name: str, as_json: bool, target: str) -> None:
    from reengage.attribution.v1 import offer_pb2
    from services.cli import calls

    request = offer_pb2.SendOfferedPostbacksRequest(app_id=app_id, reattribution_id=name)
    answer = await calls.ask("attribution/SendOfferedPostbacks", request, target=target)
    assert isinstance(answer, offer_pb2.SendOfferedPostbacksResponse)
    if as_json:
        _print_json([answer])
    elif answer.created_count:
        typer.echo(f"{answer.created_count:,} postbacks are on their way.")
    else:
        typer.echo(f"{name} has no postback left to send.")


def _print_job(job: "reattribution_pb2.Reattribution", as_json: bool) -> None:
    from reengage.attribution.v1 import reattribution_pb2
    from services.cli.calls import to_json
    from services.cli.tables import print_totals

    if as_json:
        typer.echo(to_json(job, indent=2))
        return
    print_totals(job.totals)
    state = reattribution_pb2.Reattribution.State.Name(job.state).removeprefix("STATE_").lower()
    typer.echo(
        f"Re-attribution {job.reattribution_id} of {job.app_id} is {state}: {job.changed_count:,} of "
        f"{job.conversion_count:,} decisions have a new version."
    )
    if job.changed_count and not job.send_postbacks:
        typer.echo(f"Its postbacks: reengage reattribute {job.app_id} --offered {job.reattribution_id}")


def _print_json(messages: "Iterable[Message]") -> None:
    from services.cli.calls import to_json

    for message in messages:
        typer.echo(to_json(message))


def _period(start: str, end: str) -> "tuple[Timestamp, Timestamp]":
    from services.cli.fields import MisfitError, read_time

    if not start:
        _fail("--from is missing: since when conversions are decided again.", code=WRONG)
    found = []
    for name, text in (("--from", start), ("--to", end or datetime.now(UTC).isoformat())):
        try:
            found.append(read_time(text))
        except MisfitError as misfit:
            _fail(f"{name} {misfit}", code=WRONG)
    return found[0], found[1]


def _fail(message: str, *, code: int = 1) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(code)
