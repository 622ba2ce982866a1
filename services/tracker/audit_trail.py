"""The audit trail: who changed what, when, from what to what."""

from typing import Any

from libs.errors import NotFound, PermissionDenied, Violations
from libs.pages import decode_token, encode_token, page_size
from libs.parts import page_of
from libs.time import to_timestamp
from reengage.tracker.v1 import change_pb2
from reengage.tracker.v1.change_pb2 import Change
from services.tracker import access, validation
from services.tracker.differences import field_changes
from services.tracker.kinds import API_KEY, APP, BY_NUMBER
from services.tracker.resources import ResourceMethods
from services.tracker.storage.store import NotedChange, Store
from services.tracker.storage.views import Condition


class AuditTrail:
    """The audit trail, as the caller of the call being served may read it."""

    def __init__(self, resources: ResourceMethods, store: Store) -> None:
        self._resources, self._store = resources, store

    async def page(self, request: change_pb2.ListChangesRequest) -> change_pb2.ListChangesResponse:
        """Returns a page of changes, newest first. Keys of a narrower scope must name an app in it."""
        violations = Violations()
        size = page_size(request.page_size, violations)
        token: Any = decode_token(request.page_token, (int, int, str), violations)
        if token is not None and not (0 <= token[0] < 2**63 and token[1] in BY_NUMBER and token[2].isprintable()):
            violations.add("page_token", "INVALID_TOKEN", "must be the next_page_token of an earlier response")
        conditions = _conditions(request, violations)
        violations.check()
        if request.app_id:
            await self._store.read(lambda view: self._resources.visible(view, APP, request.app_id, ()))
        elif not access.caller().sees_all_apps:
            raise PermissionDenied("SCOPE_NOT_ALLOWED", "this key sees the changes of its apps only; give an app_id")
        if access.caller().role != access.ADMIN:
            conditions.append(("kind <> {}", API_KEY.number))
        found = await self._store.changes(conditions, before=token, max_count=size + 1)
        changes, is_more = page_of(list(map(_shown, found)), size, Change.ByteSize)
        last = found[len(changes) - 1] if is_more else None
        return change_pb2.ListChangesResponse(
            changes=changes,
            next_page_token=encode_token(last.revision, last.kind.number, "/".join(last.key))
            if last is not None
            else "",
        )

    async def check_reached(self, revision: int) -> None:
        """Raises NotFound for a revision that is not reached."""
        if revision > await self._store.revision():
            raise NotFound("REVISION_NOT_FOUND", f"revision {revision} is not reached yet")


def _conditions(request: change_pb2.ListChangesRequest, violations: Violations) -> list[Condition]:
    conditions: list[Condition] = []
    if request.app_id:
        validation.check_id("app_id", request.app_id, violations)
        conditions.append(("app_id = {}", request.app_id))
    kind = BY_NUMBER.get(request.kind)
    if request.kind and kind is None:
        violations.add("kind", "UNKNOWN_VALUE", "must be a value of ResourceKind")
    elif kind is not None:
        conditions.append(("kind = {}", kind.number))
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
    kind = noted.kind
    action = Change.ACTION_UPDATED
    if noted.before is None or (kind.is_archived(noted.before) and not kind.is_archived(noted.after)):
        action = Change.ACTION_CREATED
    elif kind.is_archived(noted.after) and not kind.is_archived(noted.before):
        action = Change.ACTION_ARCHIVED
    return Change(
        revision=noted.revision,
        change_time=to_timestamp(noted.time_us),
        actor=noted.actor,
        kind=kind.number,
        resource_id="/".join(noted.key),
        action=action,
        fields=field_changes(noted.before, noted.after),
    )
