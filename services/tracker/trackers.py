"""Trackers beyond the resource methods: several at once, with their parents, as copies, as files, and resolved."""

import hashlib
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from libs.errors import Aborted, FailedPrecondition, InvalidArgument, ServiceError, Violation, Violations
from reengage.tracker.v1 import status_pb2, tracker_edit_pb2, tracker_pb2
from reengage.tracker.v1.change_pb2 import Change as ChangeMessage
from reengage.tracker.v1.event_definition_pb2 import EventDefinition
from reengage.tracker.v1.postback_draft_pb2 import PostbackDraft
from reengage.tracker.v1.resolve_pb2 import ResolvedSetting
from reengage.tracker.v1.status_pb2 import STATUS_ARCHIVED
from reengage.tracker.v1.tracker_edit_pb2 import TrackerChange
from reengage.tracker.v1.tracker_pb2 import Tracker, TrackerFilter, TrackerLinks
from services.tracker import masks, tracker_files, validation
from services.tracker.differences import field_changes
from services.tracker.effective_settings import event_settings, tracker_settings
from services.tracker.kinds import (
    APP,
    CAMPAIGN,
    EVENT_DEFINITION,
    NETWORK,
    NETWORK_SETTINGS,
    SAN_ACCOUNT,
    SEGMENT,
    TRACKER,
    Kind,
)
from services.tracker.links import tracker_links
from services.tracker.postback_drafts import postback_drafts
from services.tracker.resources import ResourceMethods, check, check_key, check_mask, copied, existing, shown
from services.tracker.storage.store import Store
from services.tracker.storage.views import Change, Condition, Remembering, View
from services.tracker.tracker_files import Row

MAX_TRACKERS = 5000
"""The trackers of one change, so few that watchers need no whole snapshot after it."""
MAX_FILE_BYTES = 8 * 1024 * 1024
MAX_RESOLVED_EVENTS = 1000
_PAGE = 1000
_MUTABLE = frozenset(field.name for field in Tracker.DESCRIPTOR.fields) - {
    *TRACKER.key, *TRACKER.immutable, *TRACKER.output_only,
}  # fmt: skip
_FIXED = ("segment_id", "campaign_id", "app_id", "network_id", "type")


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """A tracker that changes: as it was, None when it is new, and as it will be. `line` is that of the file."""

    before: Tracker | None
    after: Tracker
    line: int = 0

    @property
    def action(self) -> ChangeMessage.Action.ValueType:
        """Returns the action of this edit."""
        if self.before is None:
            return ChangeMessage.ACTION_CREATED
        archives = self.after.status == STATUS_ARCHIVED != self.before.status
        return ChangeMessage.ACTION_ARCHIVED if archives else ChangeMessage.ACTION_UPDATED


class Trackers:
    """The work on trackers for the caller of the call being served, as ResourceMethods is for resources of any kind."""

    def __init__(self, resources: ResourceMethods, store: Store) -> None:
        self._resources, self._store = resources, store

    async def create(self, request: tracker_pb2.CreateTrackerRequest) -> Tracker:
        """Returns the tracker, created after the campaign and segment given with it, in one revision.

        Raises InvalidArgument with every wrong field of all three.
        """
        tracker, parents = self._with_parents(request)
        return await self._resources.change(
            lambda change: self._create(change, tracker, parents, request.request_id),
            validate_only=request.validate_only,
        )

    async def _create(
        self, change: Change, tracker: Tracker, parents: Sequence[tuple[Kind[Any], Any]], request_id: str
    ) -> Tracker:
        if request_id and await change.made_by(TRACKER, request_id):
            return await self._resources.create_in(change, TRACKER, tracker, request_id)
        made: list[tuple[Kind[Any], Any]] = []
        wrong: list[Violation] = []
        for kind, wanted in (*parents, (TRACKER, tracker)):
            resource = copied(wanted)
            try:
                if wrong:  # its parent was not made, so neither is it
                    await check(change, kind, resource, Violations(), new_parents=made)
                else:
                    resource = await self._resources.create_in(
                        change, kind, wanted, request_id if kind is TRACKER else "", new_parents=made
                    )
            except InvalidArgument as error:
                wrong += error.violations
            made.append((kind, resource))
        if wrong:
            raise InvalidArgument(wrong)
        created: Tracker = made[-1][1]
        return created

    def _with_parents(self, request: tracker_pb2.CreateTrackerRequest) -> tuple[Tracker, list[tuple[Kind[Any], Any]]]:
        """Returns the tracker and what to create before it, each with its id and referring to the one before."""
        tracker = self._resources.named(TRACKER, request.tracker)
        parents: list[tuple[Kind[Any], Any]] = []
        violations = Violations()
        validation.check_request_id(request.request_id, violations)
        if request.HasField("campaign"):
            parents.append((CAMPAIGN, self._resources.named(CAMPAIGN, request.campaign)))
            if not request.HasField("segment"):
                violations.add("segment", "REQUIRED", "must be set with a campaign")
        if request.HasField("segment"):
            segment = self._resources.named(SEGMENT, request.segment)
            if parents:
                _refer("segment.campaign_id", segment, parents[0][1], "campaign_id", violations)
            _refer("tracker.segment_id", tracker, segment, "segment_id", violations)
            parents.append((SEGMENT, segment))
        violations.check()
        return tracker, parents

    async def copy(self, request: tracker_pb2.CopyTrackerRequest) -> Tracker:
        """Returns a new tracker like another, apart from the fields of the mask."""
        check_key(TRACKER, (request.source_tracker_id,))
        paths = list(request.update_mask.paths)
        violations = Violations()
        if paths:
            masks.check_paths(
                Tracker,
                paths,
                immutable=frozenset(TRACKER.key),
                output_only=TRACKER.output_only,
                violations=violations,
            )
        violations.check()
        tracker_id = self._resources.named(TRACKER, request.tracker).tracker_id
        return await self._resources.change(lambda change: self._copied(change, request, tracker_id))

    async def _copied(self, change: Change, request: tracker_pb2.CopyTrackerRequest, tracker_id: str) -> Tracker:
        paths = list(request.update_mask.paths)
        source = await self._resources.readable(change, TRACKER, (request.source_tracker_id,))
        copy = masks.apply(copied(source, without=TRACKER.output_only), request.tracker, paths)
        copy.tracker_id = tracker_id
        copy.default_tracker = False
        if "name" not in paths:
            there = await change.get(TRACKER, (tracker_id,)) if validation.is_id(tracker_id) else None
            copy.name = there.name if there is not None else await _name_of_copy(change, source)
        return await self._resources.create_in(change, TRACKER, copy, request.request_id)

    async def bulk_edit(
        self, request: tracker_edit_pb2.BulkEditTrackersRequest
    ) -> tracker_edit_pb2.BulkEditTrackersResponse:
        """Changes the fields of the mask in all of these trackers, or in none."""
        violations = Violations()
        validation.check_id("app_id", request.app_id, violations)
        check_mask(TRACKER, request.update_mask, violations)
        if bool(request.tracker_ids) == request.HasField("filter"):
            violations.add("tracker_ids", "REQUIRED", "give tracker_ids, or a filter")
        if len(request.tracker_ids) > MAX_TRACKERS:
            violations.add("tracker_ids", "TOO_MANY", f"must be at most {MAX_TRACKERS}")
        for index, tracker_id in enumerate(request.tracker_ids[:MAX_TRACKERS]):
            validation.check_id(f"tracker_ids[{index}]", tracker_id, violations)
        wanted = filter_conditions(request.filter, violations)
        violations.check()

        edits, unchanged, revision = await self._resources.change(
            lambda change: self._bulk_edited(change, request, wanted), validate_only=request.validate_only
        )
        return tracker_edit_pb2.BulkEditTrackersResponse(
            changes=_changes(sorted(edits, key=lambda edit: edit.after.tracker_id)),
            unchanged_count=unchanged,
            revision=revision - 1 if request.validate_only and edits else revision,
        )

    async def _bulk_edited(
        self, change: Change, request: tracker_edit_pb2.BulkEditTrackersRequest, wanted: Sequence[Condition]
    ) -> tuple[list[Edit], int, int]:
        """Returns the edits made, how many trackers were so already, and the revision."""
        narrowed = await self._resources.visible(change, TRACKER, request.app_id, wanted)
        found = await self._chosen(change, request, narrowed)
        edits = await self._edited(change, found, request)
        await self._apply(change, edits)
        return edits, len(found) - len(edits), change.revision

    async def _edited(
        self, change: Change, found: Sequence[Tracker], request: tracker_edit_pb2.BulkEditTrackersRequest
    ) -> list[Edit]:
        """Returns the edits of those trackers that change. Raises InvalidArgument with what is wrong in any of them."""
        view = Remembering(change)
        wrong: list[Violation] = []
        edits: list[Edit] = []
        for before in found:
            try:
                after = await self._resources.changed(
                    view, TRACKER, before, request.tracker, list(request.update_mask.paths)
                )
                if after != before:
                    edits.append(Edit(before=before, after=after))
            except InvalidArgument as error:
                wrong += _under(f"trackers[{before.tracker_id}].", error.violations)
        wrong += _two_defaults((f"trackers[{edit.after.tracker_id}].", edit.after) for edit in edits)
        _check(wrong)
        return edits

    async def export(self, request: tracker_edit_pb2.ExportTrackersRequest) -> AsyncGenerator[bytes, None]:
        """Yields the file in pieces of whole lines."""
        violations = Violations()
        validation.check_id("app_id", request.app_id, violations)
        wanted = filter_conditions(request.filter, violations)
        violations.check()
        after, first = "", True
        while first or after:
            page = await self._page(request.app_id, wanted, after)
            yield tracker_files.write(map(shown, page), request.format, first=first)
            first = False
            after = page[-1].tracker_id if len(page) == _PAGE else ""

    async def import_file(
        self, request: tracker_edit_pb2.ImportTrackersRequest
    ) -> tracker_edit_pb2.ImportTrackersResponse:
        """Returns what the file changes, after changing it if the etag is that of these changes."""
        violations = Violations()
        validation.check_id("app_id", request.app_id, violations)
        rows: list[Row] = []
        if len(request.content) > MAX_FILE_BYTES:
            violations.add("content", "TOO_LARGE", "must be at most 8 MB")
        else:
            rows = tracker_files.read(request.content, request.format, violations)
        if len(rows) > MAX_TRACKERS:
            violations.add("content", "TOO_MANY", f"must be at most {MAX_TRACKERS} trackers")
        violations.check()
        new_ids = [self._resources.named(TRACKER, row.tracker).tracker_id for row in rows]

        edits, unchanged, revision = await self._resources.change(
            lambda change: self._imported(change, request, rows, new_ids), validate_only=not request.etag
        )
        return tracker_edit_pb2.ImportTrackersResponse(
            changes=_changes(edits),
            unchanged_count=unchanged,
            etag=_etag_of(edits),
            revision=revision if request.etag and edits else 0,
        )

    async def _imported(
        self,
        change: Change,
        request: tracker_edit_pb2.ImportTrackersRequest,
        rows: Sequence[Row],
        new_ids: Sequence[str],
    ) -> tuple[list[Edit], int, int]:
        """Returns the edits made, how many rows change nothing, and the revision."""
        narrowed = await self._resources.visible(change, TRACKER, request.app_id, ())
        edits, unchanged = await self._edits_of(change, request.app_id, narrowed, rows, new_ids)
        if request.etag and edits and request.etag != _etag_of(edits):
            raise Aborted("ETAG_MISMATCH", "something else would change now; look at the changes again")
        await self._apply(change, edits)
        return edits, unchanged, change.revision

    async def drafts(self, tracker: Tracker) -> list[PostbackDraft]:
        """Returns the postback configurations that the tracker wants."""

        async def read(view: View) -> list[PostbackDraft]:
            return postback_drafts(
                tracker,
                await existing(view, APP, (tracker.app_id,)),
                await existing(view, NETWORK, (tracker.network_id,)),
                await view.definitions_of(tracker.app_id, tracker.events),
                await view.many(SAN_ACCOUNT, tracker.san_account_ids),
            )

        return await self._store.read(read)

    async def links(self, tracker: Tracker) -> TrackerLinks:
        """Returns the links of the tracker."""
        return tracker_links(
            tracker, await self._store.read(lambda view: existing(view, NETWORK, (tracker.network_id,)))
        )

    async def settings(self, tracker_id: str) -> tuple[list[ResolvedSetting], int]:
        """Returns every effective setting of the tracker, and the revision they are of."""
        check_key(TRACKER, (tracker_id,))

        async def read(view: View) -> tuple[list[ResolvedSetting], int]:
            tracker = await self._resources.readable(view, TRACKER, (tracker_id,))
            settings = tracker_settings(
                tracker,
                await existing(view, APP, (tracker.app_id,)),
                await existing(view, NETWORK, (tracker.network_id,)),
                await existing(view, NETWORK_SETTINGS, (tracker.app_id, tracker.network_id)),
                _live(await view.definitions_of(tracker.app_id, tracker.events)),
            )
            return settings, await view.newest_revision()

        return await self._store.read(read, isolation="repeatable_read")

    async def settings_of_events(self, app_id: str, names: Sequence[str]) -> tuple[list[ResolvedSetting], int]:
        """Returns every effective setting of these events, and the revision they are of."""
        violations = Violations()
        validation.check_id("app_id", app_id, violations)
        if not 1 <= len(names) <= MAX_RESOLVED_EVENTS:
            violations.add("event_names", "OUT_OF_RANGE", f"must be 1 to {MAX_RESOLVED_EVENTS:,}")
        for index, name in enumerate(names[:MAX_RESOLVED_EVENTS]):
            validation.check_name(f"event_names[{index}]", name, violations)
        violations.check()

        async def read(view: View) -> tuple[list[ResolvedSetting], int]:
            await self._resources.visible(view, EVENT_DEFINITION, app_id, ())
            settings = event_settings(names, _live(await view.definitions_of(app_id, names)))
            return settings, await view.newest_revision()

        return await self._store.read(read, isolation="repeatable_read")

    async def _page(self, app_id: str, wanted: Sequence[Condition], after: str) -> list[Tracker]:
        async def read(view: View) -> list[Tracker]:
            narrowed = await self._resources.visible(view, TRACKER, app_id, wanted)
            return await view.page(TRACKER, narrowed, after=after, with_archived=False, max_count=_PAGE)

        return await self._store.read(read)

    async def _chosen(
        self, change: Change, request: tracker_edit_pb2.BulkEditTrackersRequest, narrowed: Sequence[Condition]
    ) -> list[Tracker]:
        if request.HasField("filter"):
            found = await change.page(TRACKER, narrowed, after="", with_archived=False, max_count=MAX_TRACKERS + 1)
            if len(found) > MAX_TRACKERS:
                raise FailedPrecondition("TOO_MANY", f"more than {MAX_TRACKERS} trackers match; narrow the filter")
            return found
        ids = sorted(set(request.tracker_ids))
        chosen = [*narrowed, ("tracker_id = ANY({})", ids)]
        found = await change.page(TRACKER, chosen, after="", with_archived=True, max_count=MAX_TRACKERS)
        for tracker_id in sorted(set(ids) - {tracker.tracker_id for tracker in found}):
            await self._resources.readable(change, TRACKER, (tracker_id,))  # says so, if there is none
            violations = Violations()
            violations.add("tracker_ids", "OTHER_APP", f"{tracker_id} is no tracker of {request.app_id}")
            violations.check()
        return found

    async def _edits_of(
        self,
        change: Change,
        app_id: str,
        narrowed: Sequence[Condition],
        rows: Sequence[Row],
        new_ids: Sequence[str],
    ) -> tuple[list[Edit], int]:
        """Returns what the rows change, checked, and how many rows change nothing."""
        view = Remembering(change)
        by_id, by_name = await _named(change, narrowed, rows)
        wrong: list[Violation] = []
        edits: list[Edit] = []
        seen: set[str] = set()
        for row, new_id in zip(rows, new_ids, strict=True):
            before = by_id.get(row.tracker.tracker_id) if row.tracker.tracker_id else by_name.get(row.tracker.name)
            try:
                name = before.tracker_id if before is not None else new_id
                if name in seen:
                    _fail("tracker_id", "DUPLICATE", "an earlier line is of the same tracker")
                seen.add(name)
                after = await self._row_applied(view, app_id, row, before, new_id)
                if after != before:
                    edits.append(Edit(before=before, after=after, line=row.line))
            except InvalidArgument as error:
                wrong += _under(f"line {row.line}: ", error.violations)
            except ServiceError as error:
                wrong.append(Violation(field=f"line {row.line}", reason=error.reason, description=error.message))
        wrong += _two_defaults((f"line {edit.line}: ", edit.after) for edit in edits)
        _check(wrong)
        return edits, len(rows) - len(edits)

    async def _row_applied(self, view: View, app_id: str, row: Row, before: Tracker | None, new_id: str) -> Tracker:
        """Returns the tracker as the row has it."""
        if before is None:
            return await self._row_created(view, app_id, row, new_id)
        given = row.tracker
        for name in _FIXED:
            value = getattr(given, name)
            if name in row.paths and value and value != getattr(before, name):
                _fail(name, "IMMUTABLE", "cannot be changed")
        if given.status == STATUS_ARCHIVED or TRACKER.is_archived(before):
            if given.status != STATUS_ARCHIVED and "status" in row.paths:
                _fail("status", "ARCHIVED", "it is archived and stays as it is")
            after = copied(before)
            after.status = STATUS_ARCHIVED
            return after
        paths = [path for path in row.paths if path.split(".")[0] in _MUTABLE]
        return await self._resources.changed(view, TRACKER, before, given, paths)

    async def _row_created(self, view: View, app_id: str, row: Row, new_id: str) -> Tracker:
        tracker = copied(row.tracker, without=TRACKER.output_only)
        if not tracker.tracker_id and not tracker.name:
            _fail("name", "REQUIRED", "a new tracker needs a name or an id, so that the file can be imported again")
        tracker.tracker_id = new_id
        obstacles = await check(view, TRACKER, tracker, Violations())
        if obstacles:
            raise obstacles[0].error
        if tracker.app_id != app_id:
            _fail("segment_id", "OTHER_APP", f"must be a segment of {app_id}")
        if row.tracker.status == STATUS_ARCHIVED:
            _fail("status", "NOT_FOUND", "there is no such tracker to archive")
        tracker.status = status_pb2.STATUS_LIVE
        return tracker

    async def _apply(self, change: Change, edits: Sequence[Edit]) -> None:
        """Writes the edits: defaults last, each by itself, as turning one on turns another off (E3)."""
        plain: list[Edit] = []
        defaults: list[Edit] = []
        for edit in edits:
            (defaults if edit.after.default_tracker and edit.after.status != STATUS_ARCHIVED else plain).append(edit)
        await self._resources.put_all(change, TRACKER, [copied(edit.after) for edit in plain])
        for edit in defaults:
            await self._resources.put(change, TRACKER, copied(edit.after))


def filter_conditions(wanted: TrackerFilter, violations: Violations) -> list[Condition]:
    """Returns the conditions of a filter on the table of trackers."""
    conditions: list[Condition] = []
    for name in ("campaign_id", "segment_id", "network_id", "agency_id"):
        value = getattr(wanted, name)
        if value:
            validation.check_id(f"filter.{name}", value, violations)
            conditions.append((f"{name} = {{}}", value))
    if wanted.type:
        if wanted.type not in Tracker.Type.values():
            violations.add("filter.type", "UNKNOWN_VALUE", "must be a value of Type")
        else:
            conditions.append(("type = {}", wanted.type))
    if wanted.event_name:
        validation.check_name("filter.event_name", wanted.event_name, violations)
        conditions.append(("{} = ANY(events)", wanted.event_name))
    return conditions


async def _named(
    view: View, narrowed: Sequence[Condition], rows: Sequence[Row]
) -> tuple[dict[str, Tracker], dict[str, Tracker]]:
    """Returns the trackers that rows name: by id, archived or not, and the live ones by name."""
    ids = [row.tracker.tracker_id for row in rows if validation.is_id(row.tracker.tracker_id)]
    names = [row.tracker.name for row in rows if not row.tracker.tracker_id and row.tracker.name.isprintable()]
    by_id = [*narrowed, ("tracker_id = ANY({})", ids)]
    by_name = [*narrowed, ("name = ANY({})", names)]
    held = await view.page(TRACKER, by_id, after="", with_archived=True, max_count=MAX_TRACKERS)
    called = await view.page(TRACKER, by_name, after="", with_archived=False, max_count=MAX_TRACKERS)
    return {tracker.tracker_id: tracker for tracker in held}, {tracker.name: tracker for tracker in called}


async def _name_of_copy(view: View, source: Tracker) -> str:
    """Returns `<name> copy`, or the first of `<name> copy 2`, `<name> copy 3`, … that no live tracker has."""
    stem = source.name[:110]
    names = [f"{stem} copy", *(f"{stem} copy {number}" for number in range(2, MAX_TRACKERS))]
    taken = await view.page(
        TRACKER,
        [("app_id = {}", source.app_id), ("name = ANY({})", names)],
        after="",
        with_archived=False,
        max_count=MAX_TRACKERS,
    )
    used = {tracker.name for tracker in taken}
    return next(name for name in names if name not in used)


def _live(definitions: Mapping[str, EventDefinition]) -> dict[str, EventDefinition]:
    return {name: one for name, one in definitions.items() if not EVENT_DEFINITION.is_archived(one)}


def _refer(path: str, child: Any, parent: Any, name: str, violations: Violations) -> None:
    if getattr(child, name) not in ("", getattr(parent, name)):
        violations.add(path, "NOT_ALLOWED", "must be left out, or be that of the one given")
    setattr(child, name, getattr(parent, name))


def _under(prefix: str, violations: Iterable[Violation]) -> list[Violation]:
    """Returns the violations of one of many trackers, under its path."""
    return [
        Violation(
            field=prefix + violation.field.removeprefix("tracker."),
            reason=violation.reason,
            description=violation.description,
        )
        for violation in violations
    ]


def _two_defaults(edited: Iterable[tuple[str, Tracker]]) -> list[Violation]:
    """Returns violations where more than one of them becomes the default of a network, type and event (E3)."""
    found: list[Violation] = []
    seen: set[tuple[str, int, tuple[str, ...]]] = set()
    for prefix, tracker in edited:
        if tracker.default_tracker and tracker.status != STATUS_ARCHIVED:
            key = (tracker.network_id, tracker.type, tuple(tracker.events))
            if key in seen:
                text = "another of these is the default tracker of this network, type and event"
                found.append(Violation(field=f"{prefix}default_tracker", reason="DUPLICATE", description=text))
            seen.add(key)
    return found


def _check(wrong: list[Violation]) -> None:
    if wrong:
        raise InvalidArgument(wrong)


def _fail(path: str, reason: str, description: str) -> None:
    raise InvalidArgument([Violation(field=path, reason=reason, description=description)])


def _changes(edits: Iterable[Edit]) -> list[TrackerChange]:
    return [
        TrackerChange(
            tracker_id=edit.after.tracker_id, action=edit.action, fields=field_changes(edit.before, edit.after)
        )
        for edit in edits
    ]


def _etag_of(edits: Sequence[Edit]) -> str:
    """Returns a digest of what changes: which tracker, from which state, to which. Generated ids do not matter."""
    digest = hashlib.sha256()
    for edit in edits:
        after = copied(edit.after, without=("tracker_id", "revision", "etag", "create_time"))
        before = edit.before
        digest.update(f"{edit.line} {before.tracker_id if before else ''} {before.etag if before else ''} ".encode())
        digest.update(after.SerializeToString(deterministic=True))
    return digest.hexdigest()[:32]
