"""Reads and writes settings files: an app and what belongs to it. `reengage apply --help` tells their format.

Every problem of a file is named with its line.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import yaml
from google.protobuf.message import Message

from libs.errors import Violations
from services.cli.fields import Fields, MisfitError, Problem, leaves, line_of, pairs_in, plain, text_in
from services.tracker import validation
from services.tracker.kinds import (
    APP,
    CAMPAIGN,
    EVENT_DEFINITION,
    NETWORK_SETTINGS,
    SAN_ACCOUNT,
    SEGMENT,
    TRACKER,
    Kind,
)

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NULL = "tag:yaml.org,2002:null"


class Section(NamedTuple):
    """Where a file holds resources of a kind: an object, whose keys are the values of the field `id_field`."""

    name: str
    kind: Kind[Any]
    id_field: str


SECTIONS = (
    Section("network_settings", NETWORK_SETTINGS, "network_id"),
    Section("san_accounts", SAN_ACCOUNT, "san_account_id"),
    Section("events", EVENT_DEFINITION, "event_name"),
    Section("campaigns", CAMPAIGN, "campaign_id"),
)
"""Beside the app, in the order in which they are brought about."""
_WITHIN = {
    CAMPAIGN.name: Section("segments", SEGMENT, "segment_id"),
    SEGMENT.name: Section("trackers", TRACKER, "tracker_id"),
}

KEPT: Mapping[str, frozenset[str]] = {
    APP.name: frozenset({"account_id"}),
    SAN_ACCOUNT.name: frozenset({"credentials", "verified"}),
    TRACKER.name: frozenset({"click_validation_key"}),
}
"""Fields that stay as they are when a file leaves them out: owners, secrets, and what is known of these."""
_NAMED_WITHIN = {
    SAN_ACCOUNT.name: "app_id",
    CAMPAIGN.name: "app_id",
    SEGMENT.name: "campaign_id",
    TRACKER.name: "app_id",
}
_NOT_IN_FILES = {
    "credentials": "do not belong in a file: set them by `reengage call tracker/UpdateSanAccount`",
    "verified": "is not for a file: it says that the network has taken the credentials",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A resource as the file has it, with the defaults filled in.

    `line` is that of its id, `lines` those of its fields, by path.
    """

    kind: Kind[Any]
    resource: Any
    line: int
    lines: Mapping[str, int]

    @property
    def key(self) -> tuple[str, ...]:
        """What names it."""
        return self.kind.key_of(self.resource)

    def line_of(self, path: str) -> int:
        """The line of a field, or of the nearest that holds it."""
        while path and path not in self.lines:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return self.lines.get(path, self.line)

    def problems(self, violations: Violations) -> list[Problem]:
        """What tracker's rules say of the resource, with the lines."""
        found = [(violation.field.removeprefix(f"{self.kind.name}."), violation) for violation in violations.found]
        name = called(self.kind, self.key)
        return [Problem(self.line_of(path), f"{name}: {path}: {wrong.description}") for path, wrong in found]

    def gives(self, field: str) -> bool:
        """Whether the file says anything of a field."""
        return field in self.lines


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingsFile:
    """`resources` are the app and what it holds; `kinds` those that the file answers for, users after what they use."""

    app: Wanted
    resources: tuple[Wanted, ...]
    kinds: tuple[Kind[Any], ...]

    def of(self, kind: Kind[Any]) -> list[Wanted]:
        """The resources of one kind, in the order of the file."""
        return [wanted for wanted in self.resources if wanted.kind is kind]


class SettingsFileError(Exception):
    """A file that does not fit; `problems` are all that were found, in the order of their lines."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(f"line {line}: {message}" for line, message in problems))
        self.problems = sorted(problems)


def read_settings_file(text: str) -> SettingsFile:
    """The settings that a YAML text holds. Raises SettingsFileError with everything that does not fit."""
    return _Reader().read(_compose(text))


def write_settings_file(app: Any, held: Mapping[str, Iterable[Any]]) -> str:
    """The file of an app as it is, without secrets; `held` are its live resources by the names of their kinds."""
    held = {name: list(resources) for name, resources in held.items()}

    def section(of: Section, parent_key: str, parent_id: str) -> dict[str, Any]:
        made = {}
        for resource in held.get(of.kind.name, ()):
            if getattr(resource, parent_key) != parent_id:
                continue
            fields = _written(of.kind, resource)
            if not fields and (of.kind.always_there or getattr(resource, "registered", False)):
                continue  # it says nothing, and is there without a file
            made[getattr(resource, of.id_field)] = fields
            if (inner := _WITHIN.get(of.kind.name)) is not None:
                fields[inner.name] = section(inner, of.id_field, getattr(resource, of.id_field))
        return made

    file = {"app": {"app_id": app.app_id, **_written(APP, app)}}
    file |= {of.name: section(of, "app_id", app.app_id) for of in SECTIONS}
    return yaml.safe_dump(file, sort_keys=False, allow_unicode=True, width=120, default_flow_style=None)


def _written(kind: Kind[Any], resource: Any) -> dict[str, Any]:
    """The fields of a resource that a file holds."""
    empty = kind.with_key(kind.key_of(resource))
    kind.complete(empty)
    defaults = {path: value for path, _, value in leaves(empty)}
    unsaid = {*kind.output_only, *KEPT.get(kind.name, ()), *kind.key, "app_id", "campaign_id", "segment_id"}
    made: dict[str, Any] = {}
    for path, field, value in leaves(resource):
        *parents, name = path.split(".")
        if path.partition(".")[0] not in unsaid and defaults.get(path) != value:
            within = made
            for parent in parents:
                within = within.setdefault(parent, {})
            within[name] = plain(field, value)
    return made


class _Reader:
    """Reads the nodes of one file and notes every problem on the way."""

    def __init__(self) -> None:
        self._problems: list[Problem] = []
        self._resources: dict[tuple[str, tuple[str, ...]], Wanted] = {}

    def read(self, root: yaml.Node) -> SettingsFile:
        names = ("app", *(section.name for section in SECTIONS))
        parts: dict[str, yaml.Node] = {}
        with self._noting(root):
            for key, value in pairs_in(root):
                with self._noting(key):
                    name = text_in(key)
                    _refuse(name not in names, f"there is no {name!r} here; there are {', '.join(names)}")
                    _refuse(name in parts, f"{name} stands here twice")
                    parts[name] = value
            _refuse("app" not in parts, "app is missing: the app that this is about, with its app_id")
        app = self._app(parts["app"]) if "app" in parts else None
        if app is not None:
            for section in SECTIONS:
                if section.name in parts:
                    self._section(section, parts[section.name], {"app_id": app.resource.app_id})
        self._check_rivals()
        if app is None or self._problems:
            raise SettingsFileError(self._problems)
        kinds = [APP, *(section.kind for section in SECTIONS if section.name in parts)]
        if CAMPAIGN in kinds:
            kinds += [SEGMENT, TRACKER]
        return SettingsFile(app=app, resources=tuple(self._resources.values()), kinds=tuple(kinds))

    def _app(self, node: yaml.Node) -> Wanted | None:
        with self._noting(node, "app: "):
            pairs = pairs_in(node)
            _refuse(all(key.value != "app_id" for key, _ in pairs), "app_id is missing: which app is this about?")
            return self._resource(APP, line_of(node), pairs, {})
        return None

    def _section(self, section: Section, node: yaml.Node, parents: Mapping[str, str]) -> None:
        """Reads an object of resources; `parents` are the ids of what they belong to."""
        if node.tag == _NULL:
            return
        with self._noting(node, f"{section.name}: "):
            for key, value in pairs_in(node):
                with self._noting(key, f"{section.name}: "):
                    ids = {**parents, section.id_field: text_in(key)}
                    with self._noting(value, f"{key.value}: "):
                        pairs = [] if value.tag == _NULL else pairs_in(value)
                        self._one(section.kind, line_of(key), pairs, ids)

    def _one(
        self, kind: Kind[Any], line: int, pairs: list[tuple[yaml.Node, yaml.Node]], ids: Mapping[str, str]
    ) -> None:
        """Reads a resource and what it holds."""
        inner = _WITHIN.get(kind.name)
        nested = [pair for pair in pairs if inner is not None and pair[0].value == inner.name]
        self._resource(kind, line, [pair for pair in pairs if pair not in nested], ids)
        if inner is None or not nested:
            return
        self._section(inner, nested[0][1], ids)
        for key, _ in nested[1:]:
            self._problems.append(Problem(line_of(key), f"{inner.name} stands here twice"))

    def _resource(
        self, kind: Kind[Any], line: int, pairs: list[tuple[yaml.Node, yaml.Node]], ids: Mapping[str, str]
    ) -> Wanted:
        message: Message = kind.message(**ids)
        closed = dict.fromkeys(kind.output_only, "is set by the service")
        closed |= dict.fromkeys(ids, "is said by its place in the file")
        closed |= {name: why for name, why in _NOT_IN_FILES.items() if name in KEPT.get(kind.name, ())}
        fields = Fields(message, closed)
        fields.read(pairs)
        kind.complete(message)
        wanted = Wanted(kind=kind, resource=message, line=line, lines=fields.lines)
        self._problems.extend(Problem(at, f"{called(kind, wanted.key)}: {text}") for at, text in fields.problems)
        if not fields.problems:
            self._check(wanted)
        before = self._resources.setdefault((kind.name, wanted.key), wanted)
        if before is not wanted:
            self._problems.append(Problem(line, f"{called(kind, wanted.key)} stands on line {before.line} already"))
        return wanted

    def _check(self, wanted: Wanted) -> None:
        """Notes what breaks the rules of tracker, whatever is there."""
        kind, resource = wanted.kind, wanted.resource
        violations = Violations()
        validation.check_key(f"{kind.name}.", kind.key, wanted.key, violations)
        validation.check_message(kind.name, resource, violations)
        kind.check(resource, violations)
        self._problems.extend(wanted.problems(violations))

    def _check_rivals(self) -> None:
        """Notes what may be there once only, and stands here twice."""
        seen: dict[tuple[str, ...], Wanted] = {}
        for wanted in self._resources.values():
            one, kind = wanted.resource, wanted.kind
            if (scope := _NAMED_WITHIN.get(kind.name)) and one.name:
                other = seen.setdefault((kind.name, getattr(one, scope), one.name), wanted)
                if other is not wanted:
                    text = f"{called(kind, wanted.key)}: name: {one.name!r} is that of {other.key[-1]}, too"
                    self._problems.append(Problem(wanted.line_of("name"), text))
            if kind is TRACKER and one.default_tracker:
                other = seen.setdefault(("default_tracker", one.network_id, str(one.type)), wanted)
                if other is not wanted:
                    text = f"{called(kind, wanted.key)}: default_tracker: {other.key[-1]} is the default already"
                    self._problems.append(Problem(wanted.line_of("default_tracker"), text))

    @contextmanager
    def _noting(self, node: yaml.Node, prefix: str = "") -> Iterator[None]:
        """Notes what does not fit in here and goes on after it."""
        try:
            yield
        except MisfitError as misfit:
            self._problems.append(Problem(line_of(node), f"{prefix}{misfit}"))


def called(kind: Kind[Any], key: tuple[str, ...]) -> str:
    """A resource as people call it: `tracker ios-spring`, `event definition Purchase`."""
    return f"{kind.name.replace('_', ' ')} {key[-1]}"


def _refuse(wrong: bool, message: str) -> None:
    if wrong:
        raise MisfitError(message)


def _compose(text: str) -> yaml.Node:
    try:
        node = yaml.compose(text, Loader=_LOADER)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise SettingsFileError([Problem(line, f"this is no YAML: {error.problem or error.context}")]) from error
    except (yaml.YAMLError, RecursionError) as error:
        raise SettingsFileError([Problem(1, f"this is no YAML: {error}")]) from error
    if node is None:
        raise SettingsFileError([Problem(1, "the file is empty")])
    return node
