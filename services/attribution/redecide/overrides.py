"""Overrides: the settings that a what-if puts in place of stored ones.

Decisions would read what tracker refuses, so the same is refused here.
"""

from collections.abc import Sequence
from dataclasses import replace

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from libs.domain.setting_ranges import check_ranges
from libs.domain.traffic_rules import check_traffic_rules
from libs.errors import Violations
from libs.time import is_timestamp
from reengage.tracker.v1 import (
    app_pb2,
    event_definition_pb2,
    network_pb2,
    network_settings_pb2,
    snapshot_pb2,
    status_pb2,
    tracker_pb2,
)
from services.attribution.decision.rules import AppRules
from services.attribution.wire.rulebook import Rulebook, Sources, compile_sources

_MAX_CHARACTERS = 256
_KINDS = ("app", "network", "network_settings", "campaign", "segment", "tracker", "event_definition")
"""The kinds of resources that decisions read."""


def rules_with(rulebook: Rulebook, app_id: str, overrides: Sequence[snapshot_pb2.Resource]) -> AppRules:
    """Returns the rules of a known app with these resources in place of those of the same id, or added.

    A status left out is LIVE; a tracker that is added counts as set up now (E3). Raises InvalidArgument with every
    resource that is of another app, that is on an unknown network, or that decisions do not read, and with every field
    that tracker would refuse.
    """
    _check(rulebook.sources[app_id], app_id, overrides)
    held = rulebook.sources[app_id]
    sources = _copy(held)
    for override in overrides:
        sources = _with(sources, getattr(override, override.WhichOneof("resource") or ""))
    return compile_sources(sources, rulebook.revision, (held, rulebook.apps[app_id]))


def _check(held: Sources, app_id: str, overrides: Sequence[snapshot_pb2.Resource]) -> None:
    violations = Violations()
    network_ids = held.networks.keys() | {each.network.network_id for each in overrides if each.HasField("network")}
    for number, override in enumerate(overrides):
        kind = override.WhichOneof("resource")
        field = f"overrides[{number}].{kind or 'resource'}"
        if kind not in _KINDS:
            violations.add(field, "NOT_ALLOWED", f"decisions read {', '.join(_KINDS)}, and nothing else")
            continue
        resource = getattr(override, kind)
        if kind != "network" and resource.app_id != app_id:
            violations.add(f"{field}.app_id", "OTHER_APP", f"must be {app_id}")
        if kind in ("tracker", "network_settings") and resource.network_id not in network_ids:
            violations.add(f"{field}.network_id", "NOT_FOUND", "there is no such network")
        _check_texts_and_times(field, resource, violations)
        check_ranges(field, resource, violations)
        if kind == "tracker":
            check_traffic_rules(f"{field}.traffic_rules", resource.traffic_rules, violations)
    violations.check()


def _check_texts_and_times(path: str, resource: Message, violations: Violations) -> None:
    """Notes every text and every time of a resource at `path`, at any depth, that tracker would refuse."""
    for described, value in resource.ListFields():
        inner = f"{path}.{described.name}"
        if described.type == FieldDescriptor.TYPE_STRING:
            # Links and the like may be longer, and nothing is decided by them.
            is_id = described.name.endswith("_id") or described.name in ("event_name", "events")
            texts = {f"{inner}[{n}]": text for n, text in enumerate(value)} if described.is_repeated else {inner: value}
            for place, text in texts.items():
                violations.check_text(place, text, max_characters=_MAX_CHARACTERS if is_id else len(text))
        elif described.message_type is None or described.is_repeated:
            continue
        elif isinstance(value, Timestamp):
            if not is_timestamp(value):
                violations.add(inner, "INVALID_TIME", "seconds or nanos are out of range")
        else:
            _check_texts_and_times(inner, value, violations)


def _copy(sources: Sources) -> Sources:
    return replace(
        sources,
        networks=dict(sources.networks),
        network_settings=dict(sources.network_settings),
        trackers=dict(sources.trackers),
        events=dict(sources.events),
    )


def _with(sources: Sources, resource: Message) -> Sources:
    """Returns the sources, whose mappings are the caller's own, with a resource in its place."""
    match resource:
        case app_pb2.App():
            return replace(sources, app=resource)
        case network_pb2.Network():
            sources.networks[resource.network_id] = resource
        case network_settings_pb2.NetworkSettings():
            sources.network_settings[resource.network_id] = resource
        case tracker_pb2.Tracker():
            sources.trackers[resource.tracker_id] = _completed(resource, sources.trackers.get(resource.tracker_id))
        case event_definition_pb2.EventDefinition() if resource.status == status_pb2.STATUS_ARCHIVED:
            sources.events.pop(resource.event_name, None)
        case event_definition_pb2.EventDefinition():
            sources.events[resource.event_name] = resource
        case _:  # campaigns and segments are but names to a decision
            pass
    return sources


def _completed(given: tracker_pb2.Tracker, before: tracker_pb2.Tracker | None) -> tracker_pb2.Tracker:
    """Returns a tracker with the fields that tracker itself would have filled in."""
    tracker = tracker_pb2.Tracker()
    tracker.CopyFrom(given)
    tracker.status = tracker.status or status_pb2.STATUS_LIVE
    if before is not None and not tracker.HasField("create_time"):
        tracker.create_time.CopyFrom(before.create_time)
    elif not tracker.HasField("create_time"):
        tracker.create_time.GetCurrentTime()
    return tracker
