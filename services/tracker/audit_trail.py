"""The audit trail: who changed what, when, from what to what."""

from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from libs.errors import NotFound, PermissionDenied, Violations
from libs.pages import decode_token, encode_token, page_size
from reengage.tracker.v1 import change_pb2
from reengage.tracker.v1.change_pb2 import Change
from services.tracker import access, validation
from services.tracker.differences import field_changes
from services.tracker.kinds import APP, BY_NUMBER, KINDS
from services.tracker.resources import ResourceMethods
from services.tracker.store import Condition, NotedChange, Store, View


class Audit:
    """Reads the trail for the caller of the call being served."""

    def __init__(self, resources: ResourceMethods, store: Store) -> None:
        self._resources, self._store = resources, store

    async def page(self, request: change_pb2.ListChangesRequest) -> change_pb2.ListChangesResponse:
        """A page of changes, newest first. Keys of a narrower scope must name an app in it."""
        violations = Violations()
        size = page_size(request.page_size, violations)
        token: Any = decode_token(request.page_token, (int, str, str), violations)
        if token is not None and not (0 <= token[0] < 2**63 and token[1].isprintable() and token[2].isprintable()):
            violations.add("page_token", "INVALID_TOKEN", "must be the next_page_token of an earlier answer")
        conditions = _conditions(request, violations)
        violations.check()
        if request.app_id:
            await self._store.read(self._in_scope(request.app_id))
        elif not access.caller().sees_all_apps:
            raise PermissionDenied("SCOPE_NOT_ALLOWED", "this key sees the changes of its apps only; give an app_id")
        if access.caller().role != access.ADMIN:
            conditions.append(("kind <> {}", "api_key"))
        found = await self._store.changes(conditions, before=token, size=size + 1)
        last = found[size - 1] if len(found) > size else None
        return change_pb2.ListChangesResponse(
            changes=map(_shown, found[:size]),
            next_page_token=encode_token(last.revision, last.kind, "/".join(last.key)) if last is not None else "",
        )

    async def check_reached(self, revision: int) -> None:
        """Raises NotFound for a revision that is not reached."""
        if revision > await self._store.revision():
            raise NotFound("REVISION_NOT_FOUND", f"revision {revision} is not reached yet")

    def _in_scope(self, app_id: str) -> Any:
        async def work(view: View) -> None:
            await self._resources.listed(view, APP, app_id, ())

        return work


def _conditions(request: change_pb2.ListChangesRequest, violations: Violations) -> list[Condition]:
    conditions: list[Condition] = []
    if request.app_id:
        validation.check_id("app_id", request.app_id, violations)
        conditions.append(("app_id = {}", request.app_id))
    kind = BY_NUMBER.get(request.kind)
    if request.kind and kind is None:
        violations.add("kind", "UNKNOWN_VALUE", "must be a value of ResourceKind")
    elif kind is not None:
        conditions.append(("kind = {}", kind.name))
    if request.resource_id and not request.kind:
        violations.add("kind", "REQUIRED", "must say what kind of resource this is")
    elif request.resource_id and kind is not None:
        validation.check_text("resource_id", request.resource_id, 256, violations)
        # Event names may hold slashes; ids of apps cannot.
        parts = request.resource_id.split("/", 1) if len(kind.key) == 2 else [request.resource_id]
        conditions.append(("resource_key = {}", parts))
    if request.actor:
        validation.check_text("actor", request.actor, 128, violations)
        conditions.append(("actor = {}", request.actor))
    return conditions


def _shown(noted: NotedChange) -> Change:
    kind = KINDS[noted.kind]
    action = Change.ACTION_UPDATED
    if noted.before is None or (kind.is_archived(noted.before) and not kind.is_archived(noted.after)):
        action = Change.ACTION_CREATED
    elif kind.is_archived(noted.after) and not kind.is_archived(noted.before):
        action = Change.ACTION_ARCHIVED
    time = Timestamp()
    time.FromDatetime(noted.time)
    return Change(
        revision=noted.revision,
        change_time=time,
        actor=noted.actor,
        kind=kind.number,
        resource_id="/".join(noted.key),
        action=action,
        fields=field_changes(noted.before, noted.after),
    )
