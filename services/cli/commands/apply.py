"""The command `reengage apply`: brings an app to the state of a settings file.

File and plan are checked by tracker's own rules, so that a file that does not fit changes nothing. Then each change is
made by a call of its own, under the etag that the plan saw. Whatever stops it, applying again goes on from there.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import grpc
import typer

from libs.errors import Violations, from_rpc_error
from services.cli.calls import CallError, describe_failure
from services.cli.fields import Difference, Problem, differences
from services.cli.resource_tables import changes_json, print_changes
from services.cli.resources import Settings, connected
from services.cli.settings_file import (
    KEPT,
    SettingsFile,
    SettingsFileError,
    Wanted,
    called,
    read_settings_file,
    write_settings_file,
)
from services.tracker import validation
from services.tracker.kinds import (
    AGENCY,
    APP,
    CAMPAIGN,
    EVENT_DEFINITION,
    KINDS,
    NETWORK,
    NETWORK_SETTINGS,
    SAN_ACCOUNT,
    SEGMENT,
    TRACKER,
    Key,
    Kind,
)
from services.tracker.validation import Parents

DONE, FAILED, BROKEN = 0, 1, 2
"""Exit codes."""
_CHILDREN: tuple[Kind[Any], ...] = (CAMPAIGN, SEGMENT, TRACKER, EVENT_DEFINITION, SAN_ACCOUNT)


class Action(StrEnum):
    """What a step does."""

    CREATE = "create"
    UPDATE = "update"
    ARCHIVE = "archive"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One change. `resource` is what it shall be, with the etag that it is to have until then."""

    action: Action
    kind: Kind[Any]
    resource: Any
    fields: tuple[Difference, ...]
    wanted: Wanted | None = None

    @property
    def name(self) -> str:
        """The resource as people call it."""
        return called(self.kind, self.kind.key_of(self.resource))


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What is there: by kind and key, archived ones too, that which a file may name, change or archive."""

    held: Mapping[str, Mapping[Key, Any]]

    def get(self, kind: Kind[Any], key: Key) -> Any | None:
        """One of them."""
        return self.held.get(kind.name, {}).get(key)

    def live(self, kind: Kind[Any]) -> Iterator[Any]:
        """Those of a kind that are not archived."""
        return (resource for resource in self.held.get(kind.name, {}).values() if not kind.is_archived(resource))


def run(path: Path, agreed: Callable[[], bool], *, plan_only: bool, as_json: bool, target: str) -> int:
    """Shows what a file changes, and changes it if that is `agreed`; returns the exit code.

    The plan goes to standard output, what is wrong with the file to the error stream. Raises CallError.
    """
    try:
        file = read_settings_file(path.read_text(encoding="utf-8"))
        return asyncio.run(_apply(path, file, agreed, plan_only=plan_only, as_json=as_json, target=target))
    except OSError as error:
        return _broken(f"{path}: {error.strerror}")
    except UnicodeDecodeError as error:
        return _broken(f"{path}: byte {error.start} is not UTF-8")
    except SettingsFileError as error:
        return _broken(*(f"{path}:{line}: {message}" for line, message in error.problems))


async def _apply(
    path: Path, file: SettingsFile, agreed: Callable[[], bool], *, plan_only: bool, as_json: bool, target: str
) -> int:
    async with connected(target) as settings:
        steps = plan(file, await look(settings, file))
        if as_json:
            typer.echo(changes_json(file.app.resource.app_id, _rows(steps)))
        else:
            _print(file, steps)
        if not steps or plan_only:
            return DONE
        if not agreed():
            typer.echo("Nothing was changed.", err=True)
            return FAILED
        await _carry_out(settings, path, steps)
    typer.echo("Applied.", err=as_json)
    return DONE


async def look(settings: Settings, file: SettingsFile) -> World:
    """What there is of the app, and what its file refers to."""
    app_id = file.app.resource.app_id
    networks = await settings.all(NETWORK, show_archived=True)
    listed = {NETWORK.name: networks}
    if any(tracker.resource.agency_id for tracker in file.of(TRACKER)):
        listed[AGENCY.name] = await settings.all(AGENCY, show_archived=True)
    app = await settings.get(APP, app_id)
    if app is not None:
        listed[APP.name] = [app]
        for kind in _CHILDREN:
            listed[kind.name] = await settings.all(kind, app_id=app_id, show_archived=True)
        if NETWORK_SETTINGS in file.kinds:
            listed[NETWORK_SETTINGS.name] = await _network_settings(settings, app, networks)
    return World(
        held={name: {KINDS[name].key_of(resource): resource for resource in found} for name, found in listed.items()}
    )


async def export(settings: Settings, app_id: str) -> str | None:
    """A file that an app is as; None when there is no such app."""
    app = await settings.get(APP, app_id)
    if app is None:
        return None
    held = {kind.name: await settings.all(kind, app_id=app_id) for kind in _CHILDREN}
    networks = await settings.all(NETWORK, show_archived=True)
    held[NETWORK_SETTINGS.name] = await _network_settings(settings, app, networks)
    return write_settings_file(app, held)


async def _network_settings(settings: Settings, app: Any, networks: Iterable[Any]) -> list[Any]:
    """Those of every network that the app can have, empty ones too."""
    return [
        await settings.get(NETWORK_SETTINGS, app.app_id, network.network_id)
        for network in networks
        if network.platform == app.platform
    ]


def plan(file: SettingsFile, world: World) -> list[Step]:
    """What is to be done, in order. Raises SettingsFileError with everything that stands against it."""
    problems: list[Problem] = []
    for wanted in file.resources:
        _keep(wanted, world.get(wanted.kind, wanted.key))
    siblings = {
        "san_accounts": {one.san_account_id: one for one in _present(SAN_ACCOUNT, file, world)},
        "disabled_events": frozenset(
            event.event_name for event in _present(EVENT_DEFINITION, file, world) if event.disabled
        ),
    }
    for wanted in file.resources:
        problems.extend(_misfits(wanted, file.app.resource, world, siblings))
    if problems:
        raise SettingsFileError(problems)
    gone = {kind.name: list(_gone(kind, file, world)) for kind in file.kinds}
    # What leaves gives its name free for what comes, users before what they use; but events and accounts with
    # self-attributing networks are in use until the trackers that stay are changed.
    steps = [step for kind in (TRACKER, SEGMENT, CAMPAIGN) for step in gone.get(kind.name, ())]
    for kind in file.kinds:
        changes = [step for wanted in file.of(kind) if (step := _change(wanted, world)) is not None]
        names = {getattr(held, "name", ""): kind.key_of(held) for held in world.live(kind)}
        steps.extend(sorted(changes, key=lambda step: _waits(step, names)))
    return steps + [
        step for kind in (NETWORK_SETTINGS, EVENT_DEFINITION, SAN_ACCOUNT) for step in gone.get(kind.name, ())
    ]


def _keep(wanted: Wanted, held: Any | None) -> None:
    """Takes over what stays as it is when the file leaves it out."""
    for name in KEPT.get(wanted.kind.name, ()):
        if held is not None and not wanted.gives(name) and getattr(held, name):
            setattr(wanted.resource, name, getattr(held, name))


def _misfits(wanted: Wanted, app: Any, world: World, siblings: Mapping[str, Any]) -> Iterator[Problem]:
    """What is wrong with a resource in view of what is there, and of the `siblings` that its rules look at."""
    kind, resource, held = wanted.kind, wanted.resource, world.get(wanted.kind, wanted.key)
    name = called(kind, wanted.key)
    if held is not None and kind.is_archived(held):
        if not kind.named_by_caller:
            yield Problem(wanted.line, f"{name} is archived and stays so; take another id")
            return
        held = None
    if held is not None:
        for path, before, after in differences(held, resource, kind.output_only):
            if path in kind.immutable:
                text = f"{name}: {path} is {before or 'not set'} and cannot become {after or 'empty'}; take another id"
                yield Problem(wanted.line_of(path), text)
    parents: dict[str, Any] = {"app": app, "before": held}
    for parent, path in ((NETWORK, "network_id"), (AGENCY, "agency_id")):
        parent_id = getattr(resource, path, "")
        found = parents[parent.name] = world.get(parent, (parent_id,))
        if parent_id and validation.is_id(parent_id) and (found is None or parent.is_archived(found)):
            state = "is archived" if found is not None else "does not exist"
            yield Problem(wanted.line_of(path), f"{name}: {path}: {called(parent, (parent_id,))} {state}")
    violations = Violations()
    kind.check_fit(resource, Parents(**parents, **siblings), violations)
    yield from wanted.problems(violations)


def _present(kind: Kind[Any], file: SettingsFile, world: World) -> Iterator[Any]:
    """The resources of a kind once the file is applied: its own, if it answers for them, or those that are there."""
    return (one.resource for one in file.of(kind)) if kind in file.kinds else world.live(kind)


def _change(wanted: Wanted, world: World) -> Step | None:
    """The step that makes a resource what the file says, if it is not."""
    kind, resource = wanted.kind, wanted.resource
    held: Any = world.get(kind, wanted.key)
    if held is None and kind.always_there:
        held = kind.with_key(wanted.key)
    is_new = held is None or kind.is_archived(held)
    fields = tuple(differences(kind.with_key(wanted.key) if is_new else held, resource, kind.output_only))
    if is_new:
        return Step(action=Action.CREATE, kind=kind, resource=resource, fields=fields, wanted=wanted)
    if not fields:
        return None
    resource.etag = held.etag
    return Step(action=Action.UPDATE, kind=kind, resource=resource, fields=fields, wanted=wanted)


def _waits(step: Step, names: Mapping[str, Key]) -> tuple[bool, bool]:
    """A key to sort steps by: one that takes a name of `names`, those there are, comes after the one that frees it.

    One that turns a default tracker on comes after the one that turns the other off; tracker would do that, too, and
    the other's etag would not hold.
    """
    key = step.kind.key_of(step.resource)
    is_taken = names.get(getattr(step.resource, "name", ""), key) != key
    return is_taken, getattr(step.resource, "default_tracker", False)


def _gone(kind: Kind[Any], file: SettingsFile, world: World) -> Iterator[Step]:
    """The steps for what is there and does not stand in the file."""
    named = {wanted.key for wanted in file.of(kind)}
    for held in world.live(kind):
        if kind.key_of(held) in named or kind is APP:
            continue
        empty = kind.with_key(kind.key_of(held))
        empty.etag = held.etag
        kind.complete(empty)
        fields = differences(held, empty, kind.output_only)
        if kind.always_there:
            if fields:
                yield Step(action=Action.UPDATE, kind=kind, resource=empty, fields=tuple(fields))
        # An event that nobody created comes of itself when it is seen.
        elif fields or not getattr(held, "registered", False):
            yield Step(action=Action.ARCHIVE, kind=kind, resource=held, fields=())


async def _carry_out(settings: Settings, path: Path, steps: list[Step]) -> None:
    """Makes the changes. Raises CallError that names the one that failed, and says how far it came."""
    for number, step in enumerate(steps):
        try:
            match step.action:
                case Action.CREATE:
                    await settings.create(step.kind, step.resource)
                case Action.UPDATE:
                    await settings.update(step.kind, step.resource, [field.path for field in step.fields])
                case Action.ARCHIVE:
                    await settings.archive(step.kind, step.resource)
        except grpc.aio.AioRpcError as error:
            raise CallError(_failure(error, settings, path, steps, number)) from error


def _failure(error: grpc.aio.AioRpcError, settings: Settings, path: Path, steps: list[Step], number: int) -> str:
    step = steps[number]
    lines = [f"{step.action} {step.name}: {describe_failure(error, 'tracker', settings.address)}"]
    if step.wanted is not None:
        wrong = [wrong.field.removeprefix(f"{step.kind.name}.") for wrong in from_rpc_error(error).violations]
        at = min(map(step.wanted.line_of, wrong), default=step.wanted.line)
        lines[0] = f"{path}:{at}: {lines[0]}"
    if error.code() is grpc.StatusCode.ABORTED:
        lines.append("Somebody changed it after the plan was made.")
    lines.append(f"{number} of {len(steps)} changes were made before that; applying again goes on from there.")
    return "\n".join(lines)


def _rows(steps: Iterable[Step]) -> list[tuple[str, str, tuple[Difference, ...]]]:
    return [(step.action.value, step.name, step.fields) for step in steps]


def _print(file: SettingsFile, steps: list[Step]) -> None:
    app_id = file.app.resource.app_id
    if not steps:
        typer.echo(f"{app_id} is as the file says: nothing to do.")
        return
    print_changes(f"Plan for {app_id}", _rows(steps))
    counts = Counter(step.action for step in steps)
    typer.echo(", ".join(f"{counts[action]} to {action}" for action in Action))


def _broken(*problems: str) -> int:
    for problem in problems:
        typer.echo(problem, err=True)
    return BROKEN
