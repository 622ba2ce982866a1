"""Plans of what a settings file would change, asked of the services that would change it, and the changes made."""

import json
from collections.abc import Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from google.protobuf import json_format
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from libs.errors import Aborted, InvalidArgument
from libs.messages import short_name
from reengage.postback.v1 import configuration_pb2
from reengage.tracker.v1 import change_pb2, resource_kind_pb2, settings_file_pb2, snapshot_pb2, status_pb2
from services.cli.fields import Difference, differences
from services.cli.kinds import CONFIGURATION, SAN_ACCOUNT, TRACKER_KINDS, Kind
from services.cli.resource_tables import field_changes
from services.cli.resources import Resources, resources_of
from services.cli.settings_file import SettingsFile, SettingsFileError, Wanted, called

_IMMUTABLE = ("app_id", "network_id", "trigger")


class Action(StrEnum):
    """The act of a step."""

    CREATE = "create"
    UPDATE = "update"
    ARCHIVE = "archive"


ACTIONS = {
    change_pb2.Change.ACTION_CREATED: Action.CREATE,
    change_pb2.Change.ACTION_UPDATED: Action.UPDATE,
    change_pb2.Change.ACTION_ARCHIVED: Action.ARCHIVE,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PostbackStep:
    """One change of a postback configuration, and the fields that it changes."""

    action: Action
    configuration: Any
    fields: tuple[Difference, ...] = ()
    paths: tuple[str, ...] = ()
    """The paths that an update names in its mask."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The changes that a file makes: settings, all in one revision if `etag` still holds, and then postbacks."""

    wanted: settings_file_pb2.WantedSettings
    changes: tuple[settings_file_pb2.PlannedChange, ...]
    etag: str
    postbacks: tuple[PostbackStep, ...]

    def rows(self) -> list[tuple[str, str, list[Difference]]]:
        """Returns every change for people: what is done, to what, and the fields."""
        settings = [
            (
                ACTIONS[change.action].value,
                called(kind_of(change).name, change.resource_id.rpartition("/")[2]),
                field_changes(kind_of(change).message, change.fields),
            )
            for change in self.changes
        ]
        postbacks = [
            (step.action.value, called(CONFIGURATION.name, step.configuration.configuration_id), list(step.fields))
            for step in self.postbacks
        ]
        return settings + postbacks


class Planner:
    """A planner of files, which applies them, too. Open it with `async with`; a failed call becomes a CallError.

    Postback is asked only about files that say something of postbacks.
    """

    def __init__(self, target: str = "", postback_target: str = "") -> None:
        self._targets = {"tracker": target, "postback": postback_target}
        self._stack = AsyncExitStack()
        self._open: dict[str, Resources] = {}

    async def __aenter__(self) -> "Planner":
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._stack.__aexit__(*error)

    async def plan(self, file: SettingsFile) -> Plan:
        """Returns what applying the file would change. Raises SettingsFileError with what the services refuse of it."""
        wanted = file.to_message()
        request = settings_file_pb2.PlanSettingsRequest(wanted=wanted)
        tracker = await self._resources("tracker")
        try:
            planned = await tracker.stub.PlanSettings(request)
        except InvalidArgument as error:
            problems = file.located(error.violations)
            if problems is None:
                raise
            raise SettingsFileError(problems) from error
        postbacks = () if file.postbacks is None else await self._plan_postbacks(file.app_id, file.postbacks)
        return Plan(wanted=wanted, changes=tuple(planned.changes), etag=planned.etag, postbacks=postbacks)

    async def apply(self, plan: Plan) -> None:
        """Makes the changes: those of settings all at once, then those of postbacks one by one."""
        if plan.changes:
            tracker = await self._resources("tracker")
            try:
                await tracker.stub.ApplySettings(
                    settings_file_pb2.ApplySettingsRequest(wanted=plan.wanted, etag=plan.etag)
                )
            except Aborted as error:
                error.message += ". Somebody changed it after the plan was made: nothing was changed; apply again"
                raise
        for step in plan.postbacks:
            await self._apply_postback(step)

    async def changed_resources(self, plan: Plan, *, keep: bool = False) -> list[snapshot_pb2.Resource]:
        """Returns each resource that the settings of a plan change, as it would be; `keep`: but for what it archives.

        Accounts with self-attributing networks decide nothing and are left out.
        """
        found = []
        for change in plan.changes:
            kind, is_named = kind_of(change), change.HasField("resource_index")
            if kind is SAN_ACCOUNT or (keep and not is_named):
                continue
            resource: Any
            if change.action == change_pb2.Change.ACTION_CREATED:
                resource = getattr(plan.wanted.resources[change.resource_index], kind.name)
            else:
                tracker = await self._resources("tracker")
                resource = await tracker.existing(kind, *change.resource_id.split("/"))
            for field in change.fields:
                _set_field(resource, field.path, field.after)
            if change.action == change_pb2.Change.ACTION_ARCHIVED:
                resource.status = status_pb2.STATUS_ARCHIVED
            found.append(snapshot_pb2.Resource(**{kind.name: resource}))
        return found

    async def _resources(self, service: str) -> Resources:
        if service not in self._open:
            self._open[service] = await self._stack.enter_async_context(resources_of(service, self._targets[service]))
        return self._open[service]

    async def _plan_postbacks(self, app_id: str, wanted: Iterable[Wanted]) -> tuple[PostbackStep, ...]:
        """Returns the steps that make an app's configurations those of the file; others are archived."""
        postback = await self._resources("postback")
        held = {
            each.configuration_id: each for each in await postback.all(CONFIGURATION, app_id=app_id, show_archived=True)
        }
        steps, problems = [], []
        for each in wanted:
            before = held.pop(each.resource.configuration_id, None)
            if before is not None and before.status == before.STATUS_ARCHIVED:
                problems.append(each.problem("", "is archived and stays so; take another id"))
                continue
            try:
                step = await self._plan_postback(postback, each.resource, before)
            except InvalidArgument as error:
                paths = [(wrong.field.removeprefix("configuration."), wrong.description) for wrong in error.violations]
                problems.extend(each.problem(path, description) for path, description in paths)
            else:
                steps.extend([step] if step else [])
        if problems:
            raise SettingsFileError(problems)
        gone = [each for each in held.values() if each.status != each.STATUS_ARCHIVED]
        return *steps, *(PostbackStep(action=Action.ARCHIVE, configuration=each) for each in gone)

    async def _plan_postback(self, postback: Resources, wanted: Any, held: Any | None) -> PostbackStep | None:
        """Returns the step to a configuration as the file has it: with the defaults of all that it leaves out."""
        if held is None:
            made = await postback.create(CONFIGURATION, wanted, validate_only=True)
            fields = differences(CONFIGURATION.message(), made, CONFIGURATION.output_only | set(CONFIGURATION.key))
            return PostbackStep(action=Action.CREATE, configuration=wanted, fields=tuple(fields))
        mask = FieldMask(paths=_masked(held, wanted))
        request = configuration_pb2.UpdateConfigurationRequest(
            configuration=wanted, update_mask=mask, validate_only=True
        )
        response = await postback.stub.UpdateConfiguration(request)
        if not response.changed_fields:
            return None
        fields = differences(held, response.configuration, CONFIGURATION.output_only)
        return PostbackStep(
            action=Action.UPDATE, configuration=wanted, fields=tuple(fields), paths=tuple(response.changed_fields)
        )

    async def _apply_postback(self, step: PostbackStep) -> None:
        postback = await self._resources("postback")
        match step.action:
            case Action.CREATE:
                await postback.create(CONFIGURATION, step.configuration)
            case Action.UPDATE:
                await postback.update(CONFIGURATION, step.configuration, step.paths)
            case Action.ARCHIVE:
                await postback.archive(CONFIGURATION, step.configuration.configuration_id)


def kind_of(change: settings_file_pb2.PlannedChange) -> Kind:
    """Returns the kind of resource that a change is about."""
    return TRACKER_KINDS[short_name(resource_kind_pb2.ResourceKind.DESCRIPTOR, change.kind).lower()]


def _set_field(message: Message, path: str, text: str) -> None:
    """Sets the field at a path to a value in JSON; no text clears it."""
    *parents, name = path.split(".")
    inner: Any = message
    for parent in parents:
        inner = getattr(inner, parent)
    inner.ClearField(name)
    if text:
        value = json.loads(text)
        for each in reversed(path.split(".")):
            value = {each: value}
        json_format.ParseDict(value, message, ignore_unknown_fields=True)


def _masked(held: Any, wanted: Any) -> list[str]:
    """Returns the fields that a file says: all but secrets, and but for the status where it is left out.

    What cannot change is among them only if it differs, so that the service refuses it.
    """
    said = {field.name for field, _ in wanted.ListFields()}
    unchanged = {name for name in _IMMUTABLE if getattr(held, name) == getattr(wanted, name)}
    kept = {*CONFIGURATION.key, *CONFIGURATION.output_only, *unchanged, "secrets", *({"status"} - said)}
    return [name for name in wanted.DESCRIPTOR.fields_by_name if name not in kept]
