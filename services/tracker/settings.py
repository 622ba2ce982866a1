"""The standard methods, once for every kind of resource."""

from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from libs.errors import AlreadyExists, FailedPrecondition, NotFound, ServiceError, Violations
from libs.pages import decode_token, encode_token, page_size
from reengage.tracker.v1.tracker_pb2 import STATUS_ARCHIVED, STATUS_LIVE, Tracker
from services.tracker import masks, validation
from services.tracker.kinds import APP, SET_BY_SERVICE, TRACKER, Key, Kind
from services.tracker.revisions import Revisions
from services.tracker.store import Change, Store, View
from services.tracker.validation import Parents

M = TypeVar("M", bound=Message)
T = TypeVar("T")


class PageRequest(Protocol):
    """What every list request has."""

    @property
    def page_size(self) -> int: ...
    @property
    def page_token(self) -> str: ...
    @property
    def show_archived(self) -> bool: ...


class Settings:
    """Creates, reads, updates and archives resources. `new_id` makes the id of one that was created without.

    Errors are those of TrackerConfigService: InvalidArgument with every wrong field, NotFound, AlreadyExists,
    FailedPrecondition.
    """

    def __init__(self, store: Store, revisions: Revisions, *, new_id: Callable[[], str]) -> None:
        self._store, self._revisions, self._new_id = store, revisions, new_id

    async def create(self, kind: Kind[M], given: M, request_id: str) -> M:
        """The new resource, or the one there is, if this repeats the call that made it."""
        wanted = _copy(given, without=kind.output_only)
        if not kind.named_by_caller and kind.key_of(wanted) == ("",):
            # Here and not below, so that a second run after a lost connection finds what the first one made.
            setattr(wanted, kind.key[0], self._new_id())

        async def work(change: Change) -> M:
            violations = Violations()
            validation.check_request_id(request_id, violations)
            made = await change.made_by(kind, request_id) if request_id and not violations.found else None
            if made is not None:
                return await _existing(change, kind, made)
            resource = _copy(wanted)
            problems = await _check(change, kind, resource, violations)
            existing = await change.get(kind, kind.key_of(resource))
            if existing is not None and not (kind.named_by_caller and kind.is_archived(existing)):
                if _copy(existing, without=frozenset(SET_BY_SERVICE)) == resource:
                    return existing
                key = kind.key_of(resource)
                raise AlreadyExists(f"{kind.name.upper()}_EXISTS", f"there is {_call(kind, key)} with other content")
            if problems:
                raise problems[0]
            _set_status(resource, STATUS_LIVE)
            await _put(change, kind, resource)
            if request_id:
                await change.remember(kind, request_id, kind.key_of(resource))
            return resource

        return await self._change(work)

    async def get(self, kind: Kind[M], *key: str) -> M:
        """One resource, archived or not."""
        _check_key(kind, key)
        return await self._store.read(lambda view: _existing(view, kind, key))

    async def page(self, kind: Kind[M], request: PageRequest, app_id: str | None = None) -> tuple[list[M], str]:
        """A page of an app's resources, or of all, and the token of the next one."""
        violations = Violations()
        size = page_size(request.page_size, violations)
        if app_id is not None:
            validation.check_id("app_id", app_id, violations)
        token = decode_token(request.page_token, (str,), violations)
        after = str(token[0]) if token else ""
        if not after.isprintable():
            violations.add("page_token", "INVALID_TOKEN", "must be the next_page_token of an earlier answer")
        violations.check()

        async def work(view: View) -> list[M]:
            if app_id is not None:
                await _existing(view, APP, (app_id,))
            return await view.page(kind, app_id=app_id, after=after, archived_too=request.show_archived, size=size + 1)

        found = await self._store.read(work)
        more = len(found) > size
        return found[:size], encode_token(kind.key_of(found[size - 1])[-1]) if more else ""

    async def update(self, kind: Kind[M], given: M, mask: FieldMask) -> M:
        """The resource with the fields of the mask as given."""
        key = kind.key_of(given)
        violations = Violations()
        validation.check_key(f"{kind.name}.", kind.key, key, violations)
        masks.check_paths(
            kind.message,
            mask.paths,
            immutable=frozenset((*kind.key, *kind.immutable)) - kind.output_only,
            output_only=kind.output_only,
            violations=violations,
        )
        violations.check()

        async def work(change: Change) -> M:
            current = await _existing(change, kind, key)
            if kind.is_archived(current):
                raise FailedPrecondition("ARCHIVED", f"{_call(kind, key)} is archived and stays as it is")
            changed = masks.apply(current, given, mask.paths)
            problems = await _check(change, kind, changed, Violations())
            if problems and _is_new(current):
                raise problems[0]
            if changed == current:
                return current
            await _put(change, kind, changed)
            return changed

        return await self._change(work)

    async def archive(self, kind: Kind[M], *key: str) -> M:
        """The resource, archived now or before."""
        _check_key(kind, key)

        async def work(change: Change) -> M:
            resource = await _existing(change, kind, key)
            if kind.is_archived(resource):
                return resource
            users = await change.users(kind, key)
            if users:
                named = ", ".join(users)
                raise FailedPrecondition("IN_USE", f"{_call(kind, key)} is used by live trackers: {named}", users=named)
            _set_status(resource, STATUS_ARCHIVED)
            await change.put(kind, resource)
            return resource

        return await self._change(work)

    async def _change(self, work: Callable[[Change], Awaitable[T]]) -> T:
        result, revision = await self._store.change(work)
        self._revisions.reached(revision)
        return result


def _check_key(kind: Kind[Any], key: Key) -> None:
    violations = Violations()
    validation.check_key("", kind.key, key, violations)
    violations.check()


async def _existing(view: View, kind: Kind[M], key: Key) -> M:
    found = await view.get(kind, key)
    if found is not None:
        return found
    if not kind.always_there:
        raise _not_found(kind, key)
    empty = kind.with_key(key)
    for parent in kind.parents:
        await _existing(view, parent, parent.key_of(empty))
    return empty


async def _check(view: View, kind: Kind[M], resource: M, violations: Violations) -> list[ServiceError]:
    """Completes the resource and raises every wrong field; answers what else stands against creating it."""
    problems: list[ServiceError] = []
    found: dict[str, Any] = {}
    for parent in kind.parents:
        key = parent.key_of(resource)
        # What cannot be an id is a wrong field of the resource, and no text for the database.
        held = await view.get(parent, key) if all(map(validation.is_id, key)) else None
        if held is None:
            problems.append(_not_found(parent, key))
            continue
        if parent.is_archived(held):
            problems.append(FailedPrecondition("PARENT_ARCHIVED", f"{_call(parent, key)} is archived"))
        found[parent.name] = held
        for name in kind.inherited:
            if name in parent.message.DESCRIPTOR.fields_by_name:
                setattr(resource, name, getattr(held, name))
    kind.complete(resource)
    validation.check_key(f"{kind.name}.", kind.key, kind.key_of(resource), violations)
    validation.check_message(kind.name, resource, violations)
    kind.check(resource, violations)
    kind.check_fit(resource, Parents(**found), violations)
    violations.check()
    return problems


async def _put(change: Change, kind: Kind[Any], resource: Message) -> None:
    if isinstance(resource, Tracker) and resource.default_tracker:
        # Off before on, for the constraint that there is one; both in the same revision (E3).
        for other in await change.other_default_trackers(resource):
            other.default_tracker = False
            await change.put(TRACKER, other)
    await change.put(kind, resource)


def _copy(message: M, without: frozenset[str] = frozenset()) -> M:
    copied = type(message)()
    copied.CopyFrom(message)
    for name in without:
        if name in copied.DESCRIPTOR.fields_by_name:
            copied.ClearField(name)
    return copied


def _set_status(resource: Any, status: int) -> None:
    resource.status = status


def _is_new(resource: Any) -> bool:
    return not resource.revision


def _not_found(kind: Kind[Any], key: Key) -> NotFound:
    return NotFound(f"{kind.name.upper()}_NOT_FOUND", f"there is no {_call(kind, key)}")


def _call(kind: Kind[Any], key: Key) -> str:
    """A resource as people call it: `event definition kodemo1/Purchase`."""
    return f"{kind.name.replace('_', ' ')} {'/'.join(key)}"
