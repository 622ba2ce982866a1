"""The resource methods: create, get, list, update and archive, once for every kind of resource."""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from libs.errors import Aborted, AlreadyExists, FailedPrecondition, NotFound, PermissionDenied, ServiceError, Violations
from libs.messages import take_unknown_fields
from libs.pages import decode_token, encode_token, page_size
from libs.parts import page_of
from libs.vault import Vault
from reengage.tracker.v1.api_key_pb2 import ApiKey
from reengage.tracker.v1.app_pb2 import App
from reengage.tracker.v1.event_definition_pb2 import EventDefinition
from reengage.tracker.v1.status_pb2 import STATUS_ARCHIVED, STATUS_LIVE
from reengage.tracker.v1.tracker_pb2 import Tracker
from services.tracker import access, masks, validation
from services.tracker.kinds import (
    APP,
    EVENT_DEFINITION,
    SAN_ACCOUNT,
    SET_BY_SERVICE,
    TRACKER,
    Key,
    Kind,
)
from services.tracker.revisions import Revisions
from services.tracker.storage.store import Store
from services.tracker.storage.views import Change, Condition, View
from services.tracker.validation import Parents

MAX_REGISTERED_EVENTS = 1000
M = TypeVar("M", bound=Message)
T = TypeVar("T")


class PageRequest(Protocol):
    """The fields that every list request has."""

    @property
    def page_size(self) -> int: ...
    @property
    def page_token(self) -> str: ...
    @property
    def show_archived(self) -> bool: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Obstacle:
    """An error that stands against creating a resource, and the field of the resource that leads to it."""

    field: str
    error: ServiceError


class ResourceMethods:
    """The methods that every kind of resource has, for the caller of the call being served.

    `new_id` makes the id of a resource that is created without one; `vault` encrypts secrets, which are never returned.
    Errors are those of TrackerConfigService: InvalidArgument with every wrong field, NotFound, AlreadyExists,
    FailedPrecondition, Aborted, PermissionDenied. A method with `validate_only` does everything and undoes it.
    """

    def __init__(self, store: Store, revisions: Revisions, vault: Vault, *, new_id: Callable[[], str]) -> None:
        self._store, self._revisions, self._vault, self._new_id = store, revisions, vault, new_id

    async def change(self, work: Callable[[Change], Awaitable[T]], *, validate_only: bool = False) -> T:
        """Returns what `work` returns: all it puts gets one revision, in the caller's name; it may run more than once.

        With `validate_only` all it put is undone.
        """
        result, revision = await self._store.change(work, actor=access.caller().actor, validate_only=validate_only)
        self._revisions.reached(revision)
        return result

    async def create(self, kind: Kind[M], given: M, request_id: str, *, validate_only: bool = False) -> M:
        """Returns the new resource, or the one that an earlier, equal call made."""
        wanted = self.named(kind, given)
        return await self.change(
            lambda change: self.create_in(change, kind, wanted, request_id), validate_only=validate_only
        )

    def named(self, kind: Kind[M], given: M) -> M:
        """Returns a resource to create: without the fields that callers cannot set, and with an id.

        Called before the change begins, so that a second attempt, after a lost connection, has the id of the first.
        """
        wanted = copied(given, without=kind.output_only)
        if not kind.named_by_caller and kind.key_of(wanted) == ("",):
            setattr(wanted, kind.key[0], self._new_id())
        return wanted

    async def create_in(
        self,
        change: Change,
        kind: Kind[M],
        wanted: M,
        request_id: str,
        *,
        new_parents: Sequence[tuple[Kind[Any], Any]] = (),
    ) -> M:
        """Creates a resource in a change under way. `new_parents` were created in it just before."""
        violations = Violations()
        validation.check_request_id(request_id, violations)
        made = await change.made_by(kind, request_id) if request_id and not violations.found else None
        if made is not None:
            return shown(await self.readable(change, kind, made))
        resource = copied(wanted)
        obstacles = await check(change, kind, resource, violations, new_parents=new_parents)
        there = await change.get(kind, kind.key_of(resource))
        if there is not None:
            there = await self.with_sealed(change, kind, there)
        if there is not None and not kind.gives_way(there):
            # Of what lies outside of the caller's scope nothing is told but that the id is taken.
            if await self._may_change(change, kind, there) and _content(kind, there) == _content(kind, resource):
                return shown(_unsealed(kind, there))
            key = kind.key_of(resource)
            raise AlreadyExists(f"{kind.name.upper()}_EXISTS", f"there is {call(kind, key)} with other content")
        if obstacles:
            raise obstacles[0].error
        await self.permit(change, kind, resource)
        set_status(resource, STATUS_LIVE)
        await self.put(change, kind, resource)
        if request_id:
            await change.remember(kind, request_id, kind.key_of(resource))
        return shown(resource)

    async def get(self, kind: Kind[M], *key: str) -> M:
        """Returns one resource, archived or not."""
        check_key(kind, key)
        return shown(await self._store.read(lambda view: self.readable(view, kind, key)))

    async def get_with_secrets(self, kind: Kind[M], *key: str) -> M:
        """Returns a live resource with its secrets. Raises NotFound."""
        check_key(kind, key)

        async def read(view: View) -> M:
            resource = await self.readable(view, kind, key)
            if kind.is_archived(resource):
                raise not_found(kind, key)
            return await self.with_sealed(view, kind, resource)

        return await self._store.read(read)

    async def page(
        self,
        kind: Kind[M],
        request: PageRequest,
        app_id: str | None = None,
        conditions: Sequence[Condition] = (),
        *,
        with_built_in: bool = True,
    ) -> tuple[list[M], str]:
        """Returns a page of the resources that the caller sees and that meet the conditions, and the next page's token.

        They are those of an app, or of all where `app_id` is None.
        """
        violations = Violations()
        size = page_size(request.page_size, violations)
        if app_id is not None:
            validation.check_id("app_id", app_id, violations)
        token = decode_token(request.page_token, (str,), violations)
        after = str(token[0]) if token else ""
        if not after.isprintable():
            violations.add("page_token", "INVALID_TOKEN", "must be the next_page_token of an earlier response")
        violations.check()

        async def read(view: View) -> list[M]:
            narrowed = await self.visible(view, kind, app_id, conditions)
            found = await view.page(
                kind, narrowed, after=after, with_archived=request.show_archived, max_count=size + 1
            )
            return await _with_built_in(view, kind, found, after) if kind.built_in and with_built_in else found

        page, is_more = page_of(await self._store.read(read), size, lambda one: one.ByteSize())
        return [shown(one) for one in page], encode_token(kind.key_of(page[-1])[-1]) if is_more else ""

    async def visible(
        self, view: View, kind: Kind[Any], app_id: str | None, conditions: Sequence[Condition]
    ) -> list[Condition]:
        """Returns the conditions, and those that leave what the caller sees of the app, or of all.

        Raises NotFound for an app that the caller does not see.
        """
        narrowed = [*conditions, *access.conditions(access.caller(), kind.name)]
        if app_id is not None:
            app = await existing(view, APP, (app_id,))
            if not access.may_change(access.caller(), app, app.account_id):
                raise not_found(APP, (app_id,))
            narrowed.append(("app_id = {}", app_id))
        return narrowed

    async def update(self, kind: Kind[M], given: M, mask: FieldMask, *, validate_only: bool = False) -> M:
        """Returns the resource with the fields of the mask as given. An etag in `given` must be the present one."""
        key = kind.key_of(given)
        violations = Violations()
        validation.check_key(f"{kind.name}.", kind.key, key, violations)
        check_mask(kind, mask, violations)
        violations.check()
        return await self.change(
            lambda change: self._updated(change, kind, given, list(mask.paths)), validate_only=validate_only
        )

    async def _updated(self, change: Change, kind: Kind[M], given: M, paths: list[str]) -> M:
        held = await self.with_sealed(change, kind, await self.readable(change, kind, kind.key_of(given)))
        await self.permit(change, kind, held)
        changed = await self.changed(change, kind, held, given, paths)
        if changed != held:
            _check_etag(kind, held, getattr(given, "etag", ""))
            await self.put(change, kind, changed)
        return shown(_unsealed(kind, changed))

    async def changed(self, view: View, kind: Kind[M], held: M, given: M, paths: list[str]) -> M:
        """Returns the held resource with these fields as given, checked."""
        if kind.is_archived(held):
            raise FailedPrecondition("ARCHIVED", f"{call(kind, kind.key_of(held))} is archived and stays as it is")
        changed = masks.apply(held, given, paths)
        if kind is SAN_ACCOUNT and "verified" not in paths:
            forget_verification(held, changed)
        if kind is APP:
            keep_secrets(held, changed)
        obstacles = await check(view, kind, changed, Violations(), before=held)
        for one in obstacles:
            # What it has belonged to since before may have been archived meanwhile.
            if _is_new(held) or getattr(changed, one.field) != getattr(held, one.field):
                raise one.error
        return changed

    async def archive(self, kind: Kind[M], *key: str, etag: str = "", validate_only: bool = False) -> M:
        """Returns the resource, archived now or before. A given etag must be the present one."""
        check_key(kind, key)
        return await self.change(lambda change: self._archived(change, kind, key, etag), validate_only=validate_only)

    async def _archived(self, change: Change, kind: Kind[M], key: Key, etag: str) -> M:
        resource = await self.readable(change, kind, key)
        await self.permit(change, kind, resource)
        if not kind.is_archived(resource):
            _check_etag(kind, resource, etag)
            await self.archive_in(change, kind, resource)
        return shown(resource)

    async def archive_in(self, change: Change, kind: Kind[M], resource: M) -> None:
        """Archives a live resource in a change under way."""
        users, ids = await change.users(kind, kind.key_of(resource))
        if ids:
            text = f"{call(kind, kind.key_of(resource))} is used by live {users}: {', '.join(ids)}"
            raise FailedPrecondition("IN_USE", text, users=", ".join(ids))
        set_status(resource, STATUS_ARCHIVED)
        await change.put(kind, resource)

    async def register_events(self, app_id: str, names: Sequence[str]) -> int:
        """Defines those events that have no definition, archived or not; returns how many these were."""
        violations = Violations()
        validation.check_id("app_id", app_id, violations)
        if not 1 <= len(names) <= MAX_REGISTERED_EVENTS:
            violations.add("event_names", "OUT_OF_RANGE", f"must be 1 to {MAX_REGISTERED_EVENTS}")
        for index, name in enumerate(names[:MAX_REGISTERED_EVENTS]):
            validation.check_name(f"event_names[{index}]", name, violations)
        violations.check()
        return await self.change(lambda change: self._register_events(change, app_id, names))

    async def _register_events(self, change: Change, app_id: str, names: Sequence[str]) -> int:
        app = await existing(change, APP, (app_id,))
        await self.permit(change, EVENT_DEFINITION, EventDefinition(app_id=app_id))
        if APP.is_archived(app):
            raise FailedPrecondition("PARENT_ARCHIVED", f"{call(APP, (app_id,))} is archived")
        new = sorted(set(names) - set(await change.definitions_of(app_id, names)))
        await change.put(EVENT_DEFINITION, *(_registered(app_id, name) for name in new))
        return len(new)

    async def readable(self, view: View, kind: Kind[M], key: Key) -> M:
        """Returns the resource if the caller sees it. Raises NotFound."""
        resource = await existing(view, kind, key)
        for parent in kind.parents if kind.always_there else ():
            if not await _in_scope(view, parent, await existing(view, parent, parent.key_of(resource))):
                raise not_found(parent, parent.key_of(resource))
        if not access.may_see(access.caller(), kind.name, resource, await _account_of(view, kind, resource)):
            raise not_found(kind, key)
        return resource

    async def put(self, change: Change, kind: Kind[Any], resource: Message) -> None:
        """Writes a checked resource, with what must change together with it."""
        for parent in kind.parents:
            await _store_built_in(change, parent, parent.key_of(resource))
        if isinstance(resource, Tracker) and resource.default_tracker:
            # Off before on, for the constraint that there is one; both in the same revision (E3).
            for other in await change.other_default_trackers(resource):
                other.default_tracker = False
                await change.put(TRACKER, other)
        if kind.sealed:
            values = dict(getattr(resource, kind.sealed))
            await change.seal(kind, kind.key_of(resource), self._vault.seal(values))
            _unsealed(kind, resource)
        await change.put(kind, resource)

    async def put_all(self, change: Change, kind: Kind[M], resources: Sequence[M]) -> None:
        """Writes checked resources, none of which needs more to change together with it than its parents."""
        parents = {(parent.name, parent.key_of(resource)): parent for resource in resources for parent in kind.parents}
        for (_, key), parent in parents.items():
            await _store_built_in(change, parent, key)
        await change.put(kind, *resources)

    async def with_sealed(self, view: View, kind: Kind[M], resource: M) -> M:
        """Returns the resource together with its secrets."""
        if kind.sealed:
            sealed = await view.sealed(kind, kind.key_of(resource))
            if sealed is not None:
                getattr(resource, kind.sealed).update(self._vault.open(sealed))
        return resource

    async def permit(self, view: View, kind: Kind[Any], resource: Message) -> None:
        """Raises NotFound or PermissionDenied unless the caller may write such a resource."""
        if await self._may_change(view, kind, resource):
            return
        app_id = "" if kind is APP else getattr(resource, "app_id", "")
        if app_id:
            raise not_found(APP, (app_id,))
        raise PermissionDenied(
            "SCOPE_NOT_ALLOWED", f"{call(kind, kind.key_of(resource))} is outside of what this key may change"
        )

    async def _may_change(self, view: View, kind: Kind[Any], resource: Message) -> bool:
        return access.may_change(access.caller(), resource, await _account_of(view, kind, resource))


def check_key(kind: Kind[Any], key: Key) -> None:
    """Raises InvalidArgument unless these can be the ids of a resource of this kind."""
    violations = Violations()
    validation.check_key("", kind.key, key, violations)
    violations.check()


def check_mask(kind: Kind[Any], mask: FieldMask, violations: Violations) -> None:
    """Notes paths that cannot be changed. Raises PermissionDenied when the caller may not change one."""
    masks.check_paths(
        kind.message,
        mask.paths,
        immutable=frozenset((*kind.key, *kind.immutable)) - kind.output_only,
        output_only=kind.output_only,
        violations=violations,
    )
    if kind is TRACKER:
        access.check_fields(access.caller(), list(mask.paths))


async def existing(view: View, kind: Kind[M], key: Key) -> M:
    """Returns the resource, stored, built in or always there. Raises NotFound."""
    found = await _held(view, kind, key)
    if found is not None:
        return found
    if not kind.always_there:
        raise not_found(kind, key)
    empty = kind.with_key(key)
    for parent in kind.parents:
        await existing(view, parent, parent.key_of(empty))
    return empty


async def check(
    view: View,
    kind: Kind[M],
    resource: M,
    violations: Violations,
    *,
    before: M | None = None,
    new_parents: Sequence[tuple[Kind[Any], Any]] = (),
) -> list[Obstacle]:
    """Completes the resource and raises InvalidArgument with every wrong field; returns what else stands against it.

    `before` is the resource as it was; `new_parents` are not stored yet.
    """
    obstacles = await note_wrong_fields(view, kind, resource, violations, before=before, new_parents=new_parents)
    violations.check()
    return obstacles


async def note_wrong_fields(
    view: View,
    kind: Kind[M],
    resource: M,
    violations: Violations,
    *,
    before: M | None = None,
    new_parents: Sequence[tuple[Kind[Any], Any]] = (),
) -> list[Obstacle]:
    """Does as `check`, and leaves it to the caller to raise."""
    found, obstacles = await _parents(view, kind, resource, new_parents)
    if isinstance(resource, Tracker):
        found["san_accounts"] = await view.many(SAN_ACCOUNT, list(filter(validation.is_id, resource.san_account_ids)))
        found["disabled_events"] = await _disabled(view, resource)
    kind.complete(resource)
    validation.check_key(f"{kind.name}.", kind.key, kind.key_of(resource), violations)
    for parent in kind.optional:
        for name in parent.key:
            if getattr(resource, name):
                validation.check_id(f"{kind.name}.{name}", getattr(resource, name), violations)
    # What an update does not touch may hold fields of a later version: they stay.
    if before is None or next(take_unknown_fields(copied(before)), None) is None:
        for path in take_unknown_fields(resource, kind.name):
            violations.add(path, "UNKNOWN_FIELD", "must have no fields but those of the contract")
    validation.check_message(kind.name, resource, violations)
    kind.check(resource, violations)
    kind.check_fit(resource, Parents(**found, before=before), violations)
    return obstacles


async def _parents(
    view: View, kind: Kind[Any], resource: Any, new: Sequence[tuple[Kind[Any], Any]]
) -> tuple[dict[str, Any], list[Obstacle]]:
    """Returns the parents that exist by kind, and what is wrong with them. Copies what the resource inherits."""
    obstacles: list[Obstacle] = []
    found: dict[str, Any] = {}
    for parent in kind.parents:
        key = parent.key_of(resource)
        if parent in kind.optional and key == ("",):
            continue
        # What cannot be an id is a wrong field of the resource, and no text for the database.
        held = next((one for of, one in new if of is parent and of.key_of(one) == key), None)
        if held is None and all(map(validation.is_id, key)):
            held = await _held(view, parent, key)
            if held is not None and not await _in_scope(view, parent, held):
                held = None
        if held is None:
            obstacles.append(Obstacle(field=parent.key[-1], error=not_found(parent, key)))
            continue
        if parent.is_archived(held):
            error = FailedPrecondition("PARENT_ARCHIVED", f"{call(parent, key)} is archived")
            obstacles.append(Obstacle(field=parent.key[-1], error=error))
        found[parent.name] = held
        for name in kind.inherited:
            if name in parent.message.DESCRIPTOR.fields_by_name:
                setattr(resource, name, getattr(held, name))
    return found, obstacles


def copied(message: M, without: Iterable[str] = ()) -> M:
    """Returns a copy without these fields."""
    copy = type(message)()
    copy.CopyFrom(message)
    for name in without:
        if name in copy.DESCRIPTOR.fields_by_name:
            copy.ClearField(name)
    return copy


def shown(resource: M) -> M:
    """Returns the resource as the caller may see it."""
    if isinstance(resource, Tracker):
        resource.has_click_validation_key = bool(resource.click_validation_key) and not access.caller().is_partner
        resource.click_validation_key = ""
    if isinstance(resource, App):
        resource.ClearField("auth_keys")
    if isinstance(resource, ApiKey):
        resource.ClearField("key_hash")
    return resource


def call(kind: Kind[Any], key: Key) -> str:
    """Returns what people call a resource: `event definition kodemo1/Purchase`."""
    return f"{kind.name.replace('_', ' ')} {'/'.join(key)}"


def not_found(kind: Kind[Any], key: Key) -> NotFound:
    """Returns the error that there is no such resource."""
    return NotFound(f"{kind.name.upper()}_NOT_FOUND", f"there is no {call(kind, key)}")


def forget_verification(held: Any, changed: Any) -> None:
    """Makes an account unverified when it gets other credentials."""
    if changed.credentials != held.credentials:
        changed.verified = False


def keep_secrets(held: Any, changed: Any) -> None:
    """Gives the keys of an app that are named without a secret the one that they have."""
    for name, secret in held.auth_keys.items():
        if changed.auth_keys.get(name) == "":
            changed.auth_keys[name] = secret


def set_status(resource: Any, status: int) -> None:
    """Makes a resource live or archived."""
    resource.status = status


def _registered(app_id: str, name: str) -> EventDefinition:
    return EventDefinition(app_id=app_id, event_name=name, display_name=name, registered=True, status=STATUS_LIVE)


async def _held(view: View, kind: Kind[M], key: Key) -> M | None:
    """Returns the resource, stored or built in; a copy that may be changed."""
    found = await view.get(kind, key)
    if found is None and key in kind.built_in:
        return copied(kind.built_in[key])
    return found


async def _store_built_in(change: Change, kind: Kind[Any], key: Key) -> None:
    """Keeps a built-in resource from its first use on, since the catalogue may change."""
    if key in kind.built_in and await change.get(kind, key) is None:
        await change.put(kind, copied(kind.built_in[key]))


async def _with_built_in(view: View, kind: Kind[M], page: list[M], after: str) -> list[M]:
    """Returns the page together with the built-in resources after `after` that are not stored."""
    stored = await view.stored(kind, (key[0] for key in kind.built_in))
    missing = [copied(kind.built_in[key]) for key in kind.built_in if key[0] > after and key[0] not in stored]
    seen = [one for one in missing if access.may_see(access.caller(), kind.name, one, "")]
    return sorted([*page, *seen], key=kind.key_of)


async def _account_of(view: View, kind: Kind[Any], resource: Any) -> str:
    """Returns the account of the resource, or of its app; looked up only for callers of an account."""
    app_id = "" if kind is APP else getattr(resource, "app_id", "")
    if app_id and access.caller().account_id and not access.caller().app_id:
        app = await view.get(APP, (app_id,))
        return app.account_id if app is not None else ""
    return str(getattr(resource, "account_id", ""))


async def _in_scope(view: View, kind: Kind[Any], resource: Any) -> bool:
    return access.in_scope(access.caller(), kind.name, resource, await _account_of(view, kind, resource))


async def _disabled(view: View, tracker: Tracker) -> frozenset[str]:
    events = [event for event in tracker.events if event.isprintable()]
    if not events or not validation.is_id(tracker.app_id):
        return frozenset()
    definitions: dict[str, EventDefinition] = await view.definitions_of(tracker.app_id, events)
    live = (one for one in definitions.values() if not EVENT_DEFINITION.is_archived(one))
    return frozenset(one.event_name for one in live if one.disabled)


def _content(kind: Kind[M], resource: M) -> M:
    """Returns the fields that callers set, to be compared."""
    content = copied(resource, without=frozenset((*SET_BY_SERVICE, *kind.derived)))
    kind.complete(content)
    return content


def _unsealed(kind: Kind[Any], resource: M) -> M:
    """Returns the resource without its secrets."""
    if kind.sealed:
        resource.ClearField(kind.sealed)
    return resource


def _check_etag(kind: Kind[Any], held: Any, etag: str) -> None:
    if etag and etag != held.etag:
        text = f"{call(kind, kind.key_of(held))} has changed: its etag is {held.etag} now"
        raise Aborted("ETAG_MISMATCH", text, etag=held.etag)


def _is_new(resource: Any) -> bool:
    return not resource.revision
