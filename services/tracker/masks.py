"""Field masks: which fields of a resource an update names, and copying exactly these."""

from collections.abc import Iterable
from typing import Any, TypeVar

from google.protobuf.message import Message

from libs.errors import Violations

M = TypeVar("M", bound=Message)


def check_paths(
    resource: type[Message],
    paths: Iterable[str],
    *,
    immutable: frozenset[str],
    output_only: frozenset[str],
    violations: Violations,
) -> None:
    """Notes paths that lead to no field that callers may change; nested paths go through messages only."""
    named = list(paths)
    if not named:
        violations.add("update_mask", "REQUIRED", "must name the fields to change")
    for path in named:
        first = path.split(".")[0]
        if not _exists(resource, path):
            violations.add("update_mask", "UNKNOWN_FIELD", f"there is no field {path!r}")
        elif first in immutable:
            violations.add("update_mask", "IMMUTABLE", f"{first} cannot be changed")
        elif first in output_only:
            violations.add("update_mask", "OUTPUT_ONLY", f"{first} is set by the service")


def apply(current: M, given: M, paths: Iterable[str]) -> M:
    """Returns a copy of `current` with the fields at `paths` as in `given`: one that is not set there is cleared."""
    changed = type(current)()
    changed.CopyFrom(current)
    for path in paths:
        source: Message = given
        target: Message = changed
        *parents, leaf = path.split(".")
        for parent in parents:
            source, target = getattr(source, parent), getattr(target, parent)
        # Each only where it changes something, as both would bring a parent into being that is not set.
        if _is_set(target, leaf):
            target.ClearField(leaf)
        if _is_set(source, leaf):
            field = source.DESCRIPTOR.fields_by_name[leaf]
            if field.message_type is not None or field.is_repeated:
                getattr(target, leaf).MergeFrom(getattr(source, leaf))
            else:
                setattr(target, leaf, getattr(source, leaf))
    return changed


def _exists(resource: type[Message], path: str) -> bool:
    within: Any = resource.DESCRIPTOR
    for name in path.split("."):
        field = within.fields_by_name.get(name) if within is not None else None
        if field is None:
            return False
        within = None if field.is_repeated else field.message_type
    return True


def _is_set(message: Message, name: str) -> bool:
    if message.DESCRIPTOR.fields_by_name[name].has_presence:
        return message.HasField(name)
    return bool(getattr(message, name))
