"""Settings files: the changes that bring an app and what belongs to it to a wanted state, planned and applied."""

import asyncio
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from libs.errors import Aborted, InvalidArgument, NotFound, Violation, Violations
from reengage.tracker.v1 import settings_file_pb2
from reengage.tracker.v1.app_pb2 import App
from reengage.tracker.v1.change_pb2 import Change as ChangeMessage
from reengage.tracker.v1.change_pb2 import FieldChange
from reengage.tracker.v1.settings_file_pb2 import PlannedChange, WantedSettings
from reengage.tracker.v1.status_pb2 import STATUS_ARCHIVED, STATUS_LIVE
from services.tracker import masks, validation
from services.tracker.differences import field_changes, shown_value
from services.tracker.kinds import (
    APP,
    BY_NUMBER,
    CAMPAIGN,
    EVENT_DEFINITION,
    NETWORK_SETTINGS,
    SAN_ACCOUNT,
    SEGMENT,
    TRACKER,
    Key,
    Kind,
)
from services.tracker.resources import (
    ResourceMethods,
    call,
    copied,
    existing,
    forget_verification,
    not_found,
    note_wrong_fields,
    set_status,
)
from services.tracker.storage.store import Store
from services.tracker.storage.views import Change, Planned

MAX_RESOURCES = 10_000
_ORDER: tuple[Kind[Any], ...] = (
    APP, NETWORK_SETTINGS, SAN_ACCOUNT, EVENT_DEFINITION, CAMPAIGN, SEGMENT, TRACKER,
)  # fmt: skip
_KEPT: Mapping[str, tuple[str, ...]] = {
    APP.name: ("account_id", "auth_keys"),
    SAN_ACCOUNT.name: ("credentials", "verified"),
    TRACKER.name: ("click_validation_key",),
}
"""Fields that stay as they are when they are left out: owners, secrets, and what is known of these."""
_NAMED_WITHIN = {
    SAN_ACCOUNT.name: "app_id",
    CAMPAIGN.name: "app_id",
    SEGMENT.name: "campaign_id",
    TRACKER.name: "app_id",
}
"""The field within whose value the live names of a kind are unique."""

Id = tuple[str, Key]
"""A resource by the name of its kind and its key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A resource as it shall be, and its index in the request."""

    kind: Kind[Any]
    resource: Any
    index: int

    @property
    def id(self) -> Id:
        """Returns its kind and key."""
        return self.kind.name, self.kind.key_of(self.resource)

    @property
    def path(self) -> str:
        """Returns its path in the request, as `resources[3].tracker`."""
        return f"resources[{self.index}].{self.kind.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One change. `before` is None for a new resource; `index` is None for one that the request does not list."""

    action: ChangeMessage.Action.ValueType
    kind: Kind[Any]
    before: Any
    after: Any
    fields: tuple[FieldChange, ...] = ()
    index: int | None = None

    @property
    def planned(self) -> PlannedChange:
        """Returns the step as a message."""
        return PlannedChange(
            action=self.action,
            kind=self.kind.number,
            resource_id="/".join(self.kind.key_of(self.after)),
            fields=self.fields,
            resource_index=self.index,
        )


class SettingsPlans:
    """Plans of settings, and their application, for the caller of the call being served."""

    def __init__(self, resources: ResourceMethods, store: Store) -> None:
        self._resources, self._store = resources, store

    async def plan(self, wanted: WantedSettings) -> settings_file_pb2.PlanSettingsResponse:
        """Returns the changes that lead to the wanted state: they are made, which tries them, and undone."""
        given, complete = _read(wanted)
        steps, _ = await self._resources.change(
            lambda change: self._carry_out(change, wanted.app_id, given, complete, etag=None), validate_only=True
        )
        return settings_file_pb2.PlanSettingsResponse(changes=[step.planned for step in steps], etag=_etag_of(steps))

    async def apply(self, wanted: WantedSettings, etag: str) -> settings_file_pb2.ApplySettingsResponse:
        """Makes the changes that lead to the wanted state. Raises Aborted unless they are those of the etag."""
        given, complete = _read(wanted)
        if not etag:
            raise InvalidArgument(
                [Violation(field="etag", reason="REQUIRED", description="must be the etag of the plan")]
            )
        steps, revision = await self._resources.change(
            lambda change: self._carry_out(change, wanted.app_id, given, complete, etag=etag)
        )
        return settings_file_pb2.ApplySettingsResponse(
            changes=[step.planned for step in steps], revision=revision if steps else 0
        )

    async def _carry_out(
        self, change: Change, app_id: str, given: Sequence[Wanted], complete: frozenset[str], *, etag: str | None
    ) -> tuple[list[Step], int]:
        """Makes the steps, if they are those of the etag; returns them and the revision."""
        steps = await self._steps(change, app_id, given, complete)
        if etag is not None and steps and etag != _etag_of(steps):
            raise Aborted("ETAG_MISMATCH", "the settings have changed since the plan was made; plan again")
        await self._make(change, steps)
        return steps, change.revision

    async def _steps(
        self, change: Change, app_id: str, given: Sequence[Wanted], complete: frozenset[str]
    ) -> list[Step]:
        """Returns the steps in their order. Raises InvalidArgument with everything that stands against them."""
        held = await self._held(change, app_id, given, complete)
        every = [Wanted(kind=one.kind, resource=_prepared(one, held.get(one.id)), index=one.index) for one in given]
        listed = {one.id for one in every}
        if (APP.name, (app_id,)) not in held and (APP.name, (app_id,)) not in listed:
            raise not_found(APP, (app_id,))
        gone = [step for kind in _ORDER if kind.name in complete for step in _gone(kind, held, listed)]
        view = Planned(
            change,
            {
                **{(step.kind.name, step.kind.key_of(step.after)): step.after for step in gone},
                **{one.id: one.resource for one in every},
            },
        )
        violations = Violations()
        for number, one in enumerate(every):
            await self._check(view, app_id, one, held.get(one.id), violations)
            if number % 100 == 0:
                await asyncio.sleep(0)  # thousands of resources must not hold up other calls
        leaving = {(step.kind.name, step.kind.key_of(step.after)): step for step in gone}
        _check_rivals(every, violations)
        _check_names(every, held, listed | leaving.keys(), violations)
        _check_uses(every, leaving, violations)
        violations.check()
        await self._check_scope(view, await existing(view, APP, (app_id,)), held)
        return _ordered(every, held, gone, listed, violations)

    async def _held(
        self, change: Change, app_id: str, given: Sequence[Wanted], complete: frozenset[str]
    ) -> dict[Id, Any]:
        """Returns what there is of the app, archived resources too, and what of other apps has the ids given."""
        found: dict[Id, Any] = {}
        app = await change.get(APP, (app_id,))
        if app is not None:
            await self._resources.visible(change, APP, app_id, ())
            found[APP.name, (app_id,)] = app
        for kind in _ORDER:
            ids = [key for one in given if one.kind is kind for key in one.id[1]]
            if kind is APP or not (ids or kind.name in complete):
                continue
            for resource in await change.of_app(kind, app_id):
                found[kind.name, kind.key_of(resource)] = await self._resources.with_sealed(change, kind, resource)
            if len(kind.key) == 1:
                others = await change.many(kind, [name for name in ids if validation.is_id(name)])
                for name, resource in others.items():
                    found.setdefault((kind.name, (name,)), resource)
        return found

    async def _check(self, view: Planned, app_id: str, one: Wanted, held: Any, violations: Violations) -> None:
        """Notes everything that is wrong with one resource, in view of what there is and what will be."""
        kind, resource = one.kind, one.resource
        if held is not None and kind is not APP and held.app_id != app_id:
            violations.add(one.path, "OTHER_APP", "its id is taken in another app; take another id")
            return
        if held is not None and kind.is_archived(held) and not kind.named_by_caller:
            violations.add(one.path, "ARCHIVED", "is archived and stays so; take another id")
            return
        before = None if held is None or kind.is_archived(held) else held
        found = Violations()
        obstacles = await note_wrong_fields(view, kind, resource, found, before=before)
        for wrong in found.found:
            violations.add(f"resources[{one.index}].{wrong.field}", wrong.reason, wrong.description)
        for obstacle in obstacles:
            # What is inherited is said at the parent that it is inherited from; what is no id is said above.
            if obstacle.field not in kind.inherited and validation.is_id(getattr(resource, obstacle.field)):
                reason = "NOT_FOUND" if isinstance(obstacle.error, NotFound) else "ARCHIVED"
                violations.add(f"{one.path}.{obstacle.field}", reason, obstacle.error.message)
        if getattr(resource, "app_id", app_id) not in ("", app_id):
            violations.add(one.path, "OTHER_APP", f"must belong to {app_id}")
        if before is not None:
            _check_immutable(one, before, violations)
        if kind is APP and resource.name.isprintable() and resource.account_id.isprintable():
            named = [("name = {}", resource.name), ("coalesce(account_id, '') = {}", resource.account_id)]
            live = await view.page(APP, named, after="", with_archived=False, max_count=2)
            if any(other.app_id != app_id for other in live):
                violations.add(f"{one.path}.name", "NAME_TAKEN", f"another live app has the name {resource.name!r}")

    async def _check_scope(self, view: Planned, app: App, held: Mapping[Id, Any]) -> None:
        """Raises unless the caller may create the app, where it is new; one that is there was looked up in scope."""
        if (APP.name, (app.app_id,)) not in held:
            await self._resources.permit(view, APP, app)

    async def _make(self, change: Change, steps: Sequence[Step]) -> None:
        """Makes the changes in their order, in the change under way."""
        batch: list[Step] = []
        for step in (*steps, None):
            if batch and (step is None or step.kind is not batch[0].kind or not _may_be_batched(step)):
                await self._resources.put_all(change, batch[0].kind, [copied(one.after) for one in batch])
                batch = []
            if step is None:
                break
            if _may_be_batched(step):
                batch.append(step)
            elif step.action == ChangeMessage.ACTION_ARCHIVED:
                await self._resources.archive_in(change, step.kind, copied(step.before, without=(step.kind.sealed,)))
            else:
                await self._resources.put(change, step.kind, copied(step.after))


def _read(wanted: WantedSettings) -> tuple[list[Wanted], frozenset[str]]:
    """Returns the resources and the names of the complete kinds. Raises InvalidArgument when they make no sense."""
    violations = Violations()
    validation.check_id("app_id", wanted.app_id, violations)
    if not 1 <= len(wanted.resources) <= MAX_RESOURCES:
        violations.add("resources", "OUT_OF_RANGE", f"must be 1 to {MAX_RESOURCES:,}")
    given: dict[Id, Wanted] = {}
    for index, resource in enumerate(wanted.resources[:MAX_RESOURCES]):
        name = resource.WhichOneof("resource")
        kind = next((kind for kind in _ORDER if kind.name == name), None)
        if kind is None:
            reason = "REQUIRED" if name is None else "NOT_ALLOWED"
            violations.add(f"resources[{index}]", reason, f"must be one of {', '.join(kind.name for kind in _ORDER)}")
            continue
        one = Wanted(kind=kind, resource=getattr(resource, kind.name), index=index)
        first = given.setdefault(one.id, one)
        if first is not one:
            violations.add(one.path, "DUPLICATE", f"{call(*_called(one))} stands at {first.path} already")
        if "app_id" not in kind.inherited and one.resource.app_id != wanted.app_id:
            violations.add(f"{one.path}.app_id", "OTHER_APP", f"must be {wanted.app_id}")
    complete = set[str]()
    for index, number in enumerate(wanted.complete_kinds):
        kind = BY_NUMBER.get(number)
        if kind is None or kind is APP or kind not in _ORDER:
            violations.add(f"complete_kinds[{index}]", "NOT_ALLOWED", "must be a kind of what belongs to an app")
        else:
            complete.add(kind.name)
    violations.check()
    return sorted(given.values(), key=lambda one: _ORDER.index(one.kind)), frozenset(complete)


def _prepared(one: Wanted, held: Any) -> Any:
    """Returns the resource with what it keeps of the one that is there, and complete."""
    kind = one.kind
    output_only = [name for name in kind.output_only if name in one.resource.DESCRIPTOR.fields_by_name]
    resource = copied(one.resource, without=output_only)
    if held is not None and not kind.is_archived(held):
        resource = masks.apply(resource, held, output_only)
        left_out = [name for name in _KEPT.get(kind.name, ()) if not getattr(resource, name)]
        resource = masks.apply(resource, held, left_out)
        if kind is SAN_ACCOUNT and not one.resource.verified:
            forget_verification(held, resource)
    elif not kind.always_there:
        set_status(resource, STATUS_LIVE)
    kind.complete(resource)
    return resource


def _check_immutable(one: Wanted, before: Any, violations: Violations) -> None:
    for name in one.kind.immutable:
        held, wanted = getattr(before, name), getattr(one.resource, name)
        if held != wanted:
            was, is_now = (shown_value(one.resource, name, value) for value in (held, wanted))
            text = f"is {was or 'not set'} and cannot become {is_now or 'empty'}; take another id"
            violations.add(f"{one.path}.{name}", "IMMUTABLE", text)


def _check_rivals(every: Iterable[Wanted], violations: Violations) -> None:
    """Notes names and default trackers (E3) of which there can be one only, and which stand here twice."""
    seen: dict[tuple[str, ...], Wanted] = {}
    for one in every:
        resource, key = one.resource, _name_of(one.kind, one.resource)
        if key is not None:
            other = seen.setdefault(key, one)
            if other is not one:
                violations.add(f"{one.path}.name", "DUPLICATE", f"{resource.name!r} is that of {other.id[1][-1]}, too")
        if one.kind is TRACKER and resource.default_tracker:
            other = seen.setdefault(("default_tracker", *_default_of(resource)), one)
            if other is not one:
                text = f"{other.id[1][-1]} is the default already"
                violations.add(f"{one.path}.default_tracker", "DUPLICATE", text)


def _check_names(every: Iterable[Wanted], held: Mapping[Id, Any], known: set[Id], violations: Violations) -> None:
    """Notes names that live resources have which stay as they are."""
    kinds = {kind.name: kind for kind in _ORDER}
    taken = {
        _name_of(kinds[name], resource): key[-1]
        for (name, key), resource in held.items()
        if (name, key) not in known and not kinds[name].is_archived(resource)
    }
    for one in every:
        key = _name_of(one.kind, one.resource)
        if key is not None and key in taken:
            violations.add(f"{one.path}.name", "NAME_TAKEN", f"{one.resource.name!r} is that of {taken[key]}")


def _check_uses(every: Iterable[Wanted], leaving: Mapping[Id, Step], violations: Violations) -> None:
    """Notes what trackers name although the same plan archives it."""
    for one in every:
        if one.kind is not TRACKER:
            continue
        uses: list[tuple[str, Kind[Any], Key]] = [
            *(
                (f"events[{at}]", EVENT_DEFINITION, (one.resource.app_id, name))
                for at, name in _numbered(one, "events")
            ),
            *((f"san_account_ids[{at}]", SAN_ACCOUNT, (name,)) for at, name in _numbered(one, "san_account_ids")),
        ]
        for path, kind, key in uses:
            if (kind.name, key) in leaving:
                text = f"{call(kind, key[-1:])} is not listed and would be archived"
                violations.add(f"{one.path}.{path}", "ARCHIVED", text)


def _numbered(one: Wanted, name: str) -> Iterator[tuple[int, str]]:
    return enumerate(getattr(one.resource, name))


def _gone(kind: Kind[Any], held: Mapping[Id, Any], listed: set[Id]) -> Iterator[Step]:
    """Yields the steps for live resources of a complete kind that are not listed."""
    for (name, key), before in held.items():
        if name != kind.name or (name, key) in listed or kind.is_archived(before):
            continue
        empty = kind.with_key(key)
        kind.complete(empty)
        fields = _fields(kind, before, empty)
        if kind.always_there:
            if fields:
                yield Step(action=ChangeMessage.ACTION_UPDATED, kind=kind, before=before, after=empty, fields=fields)
        # An event that nobody created comes of itself when it is seen.
        elif fields or not getattr(before, "registered", False):
            after = copied(before)
            set_status(after, STATUS_ARCHIVED)
            yield Step(action=ChangeMessage.ACTION_ARCHIVED, kind=kind, before=before, after=after)


def _ordered(
    every: Sequence[Wanted], held: Mapping[Id, Any], gone: Sequence[Step], listed: set[Id], violations: Violations
) -> list[Step]:
    """Returns all steps: what leaves gives its name free for what comes, and users go before what they use.

    Events and accounts with self-attributing networks are in use until the trackers that stay are changed.
    """
    leave_first = [step for kind in (TRACKER, SEGMENT, CAMPAIGN) for step in gone if step.kind is kind]
    leave_last = [
        step for kind in (NETWORK_SETTINGS, EVENT_DEFINITION, SAN_ACCOUNT) for step in gone if step.kind is kind
    ]
    gone_ids = {(step.kind.name, step.kind.key_of(step.after)) for step in gone}
    steps = list(leave_first)
    for kind in _ORDER:
        changes = [step for one in every if one.kind is kind and (step := _change(one, held.get(one.id))) is not None]
        if kind is TRACKER:
            changes = [*_defaults_off(every, held, listed | gone_ids), *changes]
        steps += _in_turn(changes, violations)
    violations.check()
    return steps + leave_last


def _change(one: Wanted, held: Any) -> Step | None:
    """Returns the step that makes a resource as wanted, None where it is."""
    kind, resource = one.kind, one.resource
    empty = kind.with_key(one.id[1])
    if held is None and kind.always_there:
        held = empty
    is_new = held is None or kind.is_archived(held)
    if held == resource:  # told fast, since most are
        return None
    fields = _fields(kind, empty if is_new else held, resource)
    if is_new:
        return Step(
            action=ChangeMessage.ACTION_CREATED, kind=kind, before=None, after=resource, fields=fields, index=one.index
        )
    if not fields:
        return None
    return Step(
        action=ChangeMessage.ACTION_UPDATED, kind=kind, before=held, after=resource, fields=fields, index=one.index
    )


def _defaults_off(every: Iterable[Wanted], held: Mapping[Id, Any], known: set[Id]) -> Iterator[Step]:
    """Yields the steps that turn default trackers off which are not listed, where another one becomes it (E3)."""
    wanted = {_default_of(one.resource) for one in every if one.kind is TRACKER and one.resource.default_tracker}
    for (name, key), before in held.items():
        if name != TRACKER.name or (name, key) in known or TRACKER.is_archived(before) or not before.default_tracker:
            continue
        if _default_of(before) in wanted:
            after = copied(before, without=("default_tracker",))
            fields = _fields(TRACKER, before, after)
            yield Step(action=ChangeMessage.ACTION_UPDATED, kind=TRACKER, before=before, after=after, fields=fields)


def _in_turn(steps: Sequence[Step], violations: Violations) -> list[Step]:
    """Returns the steps of one kind so that whoever takes a name, or becomes the default, comes after who had it."""
    ordered: list[Step] = []
    pending = list(steps)
    while pending:
        holders = {
            key: step for step in pending if step.before is not None for key in _unique_keys(step.kind, step.before)
        }
        waiting = [step for step in pending if _waits(step, holders)]
        if len(waiting) == len(pending):
            for step in waiting:
                text = f"{step.after.name!r} goes round in a circle; give one of them another name first"
                violations.add(f"resources[{step.index}].{step.kind.name}.name", "NAME_TAKEN", text)
            break
        ordered += [step for step in pending if step not in waiting]
        pending = waiting
    return ordered


def _waits(step: Step, holders: Mapping[tuple[str, ...], Step]) -> bool:
    return any(holders.get(key, step) is not step for key in _unique_keys(step.kind, step.after))


def _unique_keys(kind: Kind[Any], resource: Any) -> Iterator[tuple[str, ...]]:
    """Yields the name of a resource, and its being the default: no two live ones may have the same at any time."""
    name = _name_of(kind, resource)
    if name is not None:
        yield name
    if kind is TRACKER and resource.default_tracker:
        yield ("default_tracker", *_default_of(resource))


def _name_of(kind: Kind[Any], resource: Any) -> tuple[str, ...] | None:
    scope = _NAMED_WITHIN.get(kind.name)
    return (kind.name, getattr(resource, scope), resource.name) if scope is not None and resource.name else None


def _default_of(tracker: Any) -> tuple[str, ...]:
    """Returns what there is one default tracker of in an app (E3): a self-attributing one selects at most one event."""
    return tracker.network_id, str(tracker.type), *tracker.events


def _fields(kind: Kind[Any], before: Any, after: Any) -> tuple[FieldChange, ...]:
    """Returns the fields that differ, of those that callers set."""
    changes = field_changes(before, after)
    return tuple(change for change in changes if change.path.partition(".")[0] not in kind.output_only)


def _may_be_batched(step: Step) -> bool:
    """Returns whether nothing but the row of the resource, and its parents, changes."""
    if step.kind in (APP, SAN_ACCOUNT):
        return False
    if step.action == ChangeMessage.ACTION_ARCHIVED:
        return step.kind is TRACKER
    return not getattr(step.after, "default_tracker", False)


def _called(one: Wanted) -> tuple[Kind[Any], Key]:
    return one.kind, one.id[1]


def _etag_of(steps: Iterable[Step]) -> str:
    """Returns a digest of what changes: which resource, from which state, to which."""
    digest = hashlib.sha256()
    for step in steps:
        before = step.before.etag if step.before is not None else ""
        after = copied(step.after, without=("revision", "etag", "create_time"))
        key = "/".join(step.kind.key_of(step.after))
        digest.update(f"{step.action} {step.kind.name} {key} {before} ".encode())
        digest.update(after.SerializeToString(deterministic=True))
    return digest.hexdigest()[:32]
