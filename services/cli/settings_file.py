"""Settings files: an app and all that belongs to it, as YAML. `reengage apply --help` tells their format.

The reader makes messages of them and finds what is no value at all; every other rule is the services', which name what
is wrong by the index of the resource. `SettingsFile.located` gives each problem its line back.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import yaml
from google.protobuf.message import Message

from libs.errors import MORE, Violation
from libs.yaml_lines import Problem, YamlError, is_null, line_of, read_yaml
from reengage.tracker.v1 import resource_kind_pb2, settings_file_pb2, snapshot_pb2
from services.cli.field_reader import Fields, pairs_in, text_in
from services.cli.fields import MisfitError, leaves, nearest, plain
from services.cli.kinds import (
    APP,
    CAMPAIGN,
    CONFIGURATION,
    EVENT_DEFINITION,
    NETWORK_SETTINGS,
    SAN_ACCOUNT,
    SEGMENT,
    TRACKER,
    Kind,
)

_INDEX = re.compile(r"resources\[(\d+)\]\.?(.*)")


class Section(NamedTuple):
    """The part of a file that holds resources of a kind: an object, whose keys are the values of `id_field`."""

    name: str
    kind: Kind
    id_field: str


SECTIONS = (
    Section("network_settings", NETWORK_SETTINGS, "network_id"),
    Section("san_accounts", SAN_ACCOUNT, "san_account_id"),
    Section("events", EVENT_DEFINITION, "event_name"),
    Section("campaigns", CAMPAIGN, "campaign_id"),
    Section("postbacks", CONFIGURATION, "configuration_id"),
)
"""Beside the app."""
_WITHIN = {
    CAMPAIGN.name: Section("segments", SEGMENT, "segment_id"),
    SEGMENT.name: Section("trackers", TRACKER, "tracker_id"),
}
_UNSAID: Mapping[str, frozenset[str]] = {
    APP.name: frozenset({"account_id", "auth_keys"}),
    SAN_ACCOUNT.name: frozenset({"credentials", "verified"}),
    TRACKER.name: frozenset({"click_validation_key"}),
    CONFIGURATION.name: frozenset({"secrets"}),
}
"""Fields that an export leaves out: they stay as they are when a file is applied that does not say them."""
_NOT_IN_FILES = {
    "auth_keys": "do not belong in a file: set them by `reengage apps edit ID auth_keys=@FILE`",
    "credentials": "do not belong in a file: set them by `reengage san-accounts edit ID credentials=@FILE`",
    "secrets": "do not belong in a file: set them by `reengage postbacks edit ID secrets=@FILE`",
    "verified": "is not for a file: it says that the network has taken the credentials",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A resource as the file has it. `line` is that of its id, `lines` those of its fields, by path."""

    kind: Kind
    resource: Any
    line: int
    lines: Mapping[str, int]

    @property
    def name(self) -> str:
        """Returns the resource as people call it."""
        return called(self.kind.name, self.kind.key_of(self.resource)[-1])

    def line_of(self, path: str) -> int:
        """Returns the line of a field, or of the nearest that holds it."""
        while path and path not in self.lines:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return self.lines.get(path, self.line)

    def problem(self, path: str, description: str) -> Problem:
        """Returns what is wrong with a field, or with the whole if there is no path, with its line."""
        return Problem(self.line_of(path), f"{self.name}: {f'{path}: ' if path else ''}{description}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingsFile:
    """The wishes of a file: `resources` of tracker, the app first, and configurations of `postbacks`, if any."""

    app_id: str
    resources: tuple[Wanted, ...]
    complete_kinds: tuple[Kind, ...]
    """The kinds of tracker of which the file lists everything that shall be live."""
    postbacks: tuple[Wanted, ...] | None

    def to_message(self) -> settings_file_pb2.WantedSettings:
        """Returns what tracker is to plan for."""
        return settings_file_pb2.WantedSettings(
            app_id=self.app_id,
            resources=[snapshot_pb2.Resource(**{each.kind.name: each.resource}) for each in self.resources],
            complete_kinds=[
                resource_kind_pb2.ResourceKind.Value(f"RESOURCE_KIND_{kind.name.upper()}")
                for kind in self.complete_kinds
            ],
        )

    def located(self, violations: Iterable[Violation]) -> list[Problem] | None:
        """Returns what tracker says of the file, with the lines; None when it speaks of something else."""
        found: list[Problem] = []
        for violation in violations:
            if violation.reason == MORE:
                found.append(Problem(max(line for line, _ in found), violation.description))
                continue
            match = _INDEX.search(violation.field)
            if match is None or int(match[1]) >= len(self.resources):
                return None
            wanted = self.resources[int(match[1])]
            path = match[2].removeprefix(wanted.kind.name).removeprefix(".")
            found.append(wanted.problem(path, violation.description))
        return sorted(found) or None


class SettingsFileError(Exception):
    """A file that does not fit; `problems` are all that were found, in the order of their lines."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = sorted(problems)
        super().__init__("; ".join(f"line {line}: {message}" for line, message in self.problems))


def read_settings_file(text: str) -> SettingsFile:
    """Returns the settings that a YAML text holds. Raises SettingsFileError with everything that does not fit."""
    try:
        document = read_yaml(text)
    except YamlError as error:
        raise SettingsFileError([error.problem]) from error
    reader = _Reader(problems=list(document.problems))
    file = reader.read(document.root)
    if file is None or reader.problems:
        raise SettingsFileError(reader.problems)
    return file


def write_settings_file(app: Any, held: Mapping[str, Iterable[Any]]) -> str:
    """Returns the file of an app as it is, without secrets; `held` are its live resources by the names of their kinds.

    A kind that is not among them gets no section.
    """
    held = {name: list(resources) for name, resources in held.items()}

    def section(of: Section, parent_key: str, parent_id: str) -> dict[str, Any]:
        made = {}
        for resource in held.get(of.kind.name, ()):
            if getattr(resource, parent_key) != parent_id:
                continue
            fields = _written(of.kind, resource)
            if not fields and (of.kind is NETWORK_SETTINGS or getattr(resource, "registered", False)):
                continue  # it says nothing, and is there without a file
            made[getattr(resource, of.id_field)] = fields
            if (inner := _WITHIN.get(of.kind.name)) is not None:
                fields[inner.name] = section(inner, of.id_field, getattr(resource, of.id_field))
        return made

    file = {"app": {"app_id": app.app_id, **_written(APP, app)}}
    file |= {of.name: section(of, "app_id", app.app_id) for of in SECTIONS if of.kind.name in held}
    return yaml.safe_dump(file, sort_keys=False, allow_unicode=True, width=120, default_flow_style=None)


def _written(kind: Kind, resource: Any) -> dict[str, Any]:
    """Returns the fields of a resource that a file holds."""
    defaults = _defaults(kind, resource)
    unsaid = {*kind.output_only, *_UNSAID.get(kind.name, ()), *kind.key, "app_id", "campaign_id", "segment_id"}
    made: dict[str, Any] = {}
    for path, field_, value in leaves(resource):
        *parents, name = path.split(".")
        if path.partition(".")[0] not in unsaid and defaults.get(path) != plain(field_, value):
            within = made
            for parent in parents:
                within = within.setdefault(parent, {})
            within[name] = plain(field_, value)
    return made


def _defaults(kind: Kind, resource: Any) -> dict[str, Any]:
    """Returns what the services fill in where nothing was said, by path; a file need not say it."""
    match kind.name:
        case "app":
            return {"time_zone": "UTC", "currency_code": "USD"}
        case "event_definition":
            return {"display_name": resource.event_name}
        case "tracker":
            return {
                "name": resource.tracker_id,
                "type": "ACQUISITION",
                "share_with_publisher": True,
                "destination_type": "CUSTOM",
            }
        case "configuration":
            return {"status": "LIVE", "delivery_method": "ALL"}
        case _:
            return {}


@dataclass(slots=True)
class _Reader:
    """Reader of the nodes of one file, which notes every problem on the way."""

    problems: list[Problem]
    resources: dict[tuple[str, tuple[str, ...]], Wanted] = field(default_factory=dict)

    def read(self, root: yaml.Node) -> SettingsFile | None:
        """Returns what the file wants, or None when it cannot be told."""
        names = ("app", *(section.name for section in SECTIONS))
        parts: dict[str, yaml.Node] = {}
        with self._noting(root):
            for key, value in _pairs(root):
                with self._noting(key):
                    name = text_in(key)
                    if name not in names:
                        raise MisfitError(
                            f"there is no {name!r} here; there are {', '.join(names)}{nearest(name, names)}"
                        )
                    parts.setdefault(name, value)
            if "app" not in parts:
                raise MisfitError("app is missing: the app that this is about, with its app_id")
        app = self._app(parts["app"]) if "app" in parts else None
        if app is None:
            return None
        for section in SECTIONS:
            if section.name in parts:
                self._section(section, parts[section.name], {"app_id": app.resource.app_id})
        given = [section.kind for section in SECTIONS if section.name in parts]
        found = list(self.resources.values())
        return SettingsFile(
            app_id=app.resource.app_id,
            resources=tuple(each for each in found if each.kind is not CONFIGURATION),
            complete_kinds=(
                *(kind for kind in given if kind is not CONFIGURATION),
                *((SEGMENT, TRACKER) if CAMPAIGN in given else ()),
            ),
            postbacks=tuple(each for each in found if each.kind is CONFIGURATION) if CONFIGURATION in given else None,
        )

    def _app(self, node: yaml.Node) -> Wanted | None:
        with self._noting(node, "app: "):
            pairs = _pairs(node)
            if all(key.value != "app_id" for key, _ in pairs):
                raise MisfitError("app_id is missing: which app is this about?")
            return self._resource(APP, line_of(node), pairs, {})
        return None

    def _section(self, section: Section, node: yaml.Node, parents: Mapping[str, str]) -> None:
        """Reads an object of resources; `parents` are the ids of what they belong to."""
        if is_null(node):
            return
        with self._noting(node, f"{section.name}: "):
            for key, value in _pairs(node):
                with self._noting(key, f"{section.name}: "):
                    ids = {**parents, section.id_field: text_in(key)}
                    with self._noting(value, f"{key.value}: "):
                        self._one(section.kind, line_of(key), [] if is_null(value) else _pairs(value), ids)

    def _one(self, kind: Kind, line: int, pairs: list[tuple[yaml.Node, yaml.Node]], ids: Mapping[str, str]) -> None:
        """Reads a resource and what it holds."""
        inner = _WITHIN.get(kind.name)
        nested = [pair for pair in pairs if inner is not None and pair[0].value == inner.name]
        self._resource(kind, line, [pair for pair in pairs if pair not in nested], ids)
        if inner is not None and nested:
            self._section(inner, nested[0][1], ids)

    def _resource(
        self, kind: Kind, line: int, pairs: list[tuple[yaml.Node, yaml.Node]], ids: Mapping[str, str]
    ) -> Wanted:
        message: Message = kind.message(**ids)
        closed = dict.fromkeys(kind.output_only, "is set by the service")
        closed |= dict.fromkeys(ids, "is said by its place in the file")
        closed |= {name: why for name, why in _NOT_IN_FILES.items() if name in _UNSAID.get(kind.name, ())}
        fields = Fields(message, closed)
        fields.read(pairs)
        wanted = Wanted(kind=kind, resource=message, line=line, lines=fields.lines)
        self.problems.extend(Problem(at, f"{wanted.name}: {text}") for at, text in fields.problems)
        before = self.resources.setdefault((kind.name, kind.key_of(message)), wanted)
        if before is not wanted:
            self.problems.append(Problem(line, f"{wanted.name} stands on line {before.line} already"))
        return wanted

    @contextmanager
    def _noting(self, node: yaml.Node, prefix: str = "") -> Iterator[None]:
        """Notes what does not fit in here and goes on after it."""
        try:
            yield
        except MisfitError as misfit:
            self.problems.append(Problem(line_of(node), f"{prefix}{misfit}"))


def _pairs(node: yaml.Node) -> list[tuple[yaml.Node, yaml.Node]]:
    """Returns keys and values of an object, of a repeated key the first. Keys that are no texts were noted already."""
    seen: dict[str, tuple[yaml.Node, yaml.Node]] = {}
    for key, value in pairs_in(node):
        if isinstance(key, yaml.ScalarNode):
            seen.setdefault(key.value, (key, value))
    return list(seen.values())


def called(kind_name: str, resource_id: str) -> str:
    """Returns a resource as people call it: `tracker ios-spring`, `event definition Purchase`."""
    name = "postback" if kind_name == CONFIGURATION.name else kind_name.replace("_", " ")
    return f"{name} {resource_id}"
