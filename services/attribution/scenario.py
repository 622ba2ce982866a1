"""Reads a scenario: a small story in YAML or JSON, of settings and of what was received, in order of receipt.

Every problem of a file is named with its line. What a scenario may say stands in the methods of `_Reader`.
OURS: what the format does not show but the rules speak of is read too: claims on installs (F1), `limit_ad_tracking` on
events (A4). A time without an offset is UTC.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import yaml

from services.attribution.matching import DEVICE_ID_KINDS, normalise_ip
from services.attribution.model import (
    DAY_US,
    HOUR_US,
    MINUTE_US,
    SECOND_US,
    Claim,
    EngagementKind,
    TrackerType,
    WindowKind,
)
from services.attribution.rules import (
    BUILT_IN_WINDOWS,
    DISABLED,
    UNLIMITED,
    App,
    DeviceAttribution,
    EventDefinition,
    GranularDataPolicy,
    ModeledLevel,
    Network,
    Platform,
    Tracker,
)

OUTPUT_KEYS = (
    "id",
    "kind",
    "outcome",
    "attribution_type",
    "tracker",
    "network",
    "engagement",
    "matched_by",
    "level",
    "lookback_s",
    "reason",
    "install_known",
    "custom_dimensions",
    "candidates",
)
"""Of a line of the simulator's output, in order; `expect` may name any of them."""


class Problem(NamedTuple):
    """What does not fit, and on which line of the file (counted from 1)."""

    line: int
    message: str


class ScenarioError(Exception):
    """A file that is no scenario; `problems` are all that were found, in the order of their lines."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(f"line {line}: {message}" for line, message in problems))
        self.problems = problems


@dataclass(frozen=True, slots=True, kw_only=True)
class EngagementRecord:
    """A click or an impression as it was received."""

    id: str
    kind: EngagementKind
    time_us: int
    tracker: str
    device: Mapping[str, str] = field(default_factory=dict)
    ip: str = ""
    ua: str = ""
    click_id: str = ""
    completed_view: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionRecord:
    """An install, or an event with its `name` ("" for an install), as received. `click` is our click id, come back."""

    id: str
    time_us: int
    name: str = ""
    device: Mapping[str, str] = field(default_factory=dict)
    ip: str = ""
    ua: str = ""
    click: str = ""
    limit_ad_tracking: bool = False
    claims: tuple[Claim, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A story: settings, what was received in order of receipt, and what is expected of it by conversion id."""

    text: str
    app: App
    networks: tuple[Network, ...]
    trackers: tuple[Tracker, ...]
    events: tuple[EventDefinition, ...]
    timeline: tuple[EngagementRecord | ConversionRecord, ...]
    expect: Mapping[str, Mapping[str, Any]]


def read_scenario(text: str) -> Scenario:
    """Reads the text of a scenario file, YAML or JSON. Raises ScenarioError with every problem found."""
    return _Reader().read(_compose(text))


_Parse = Callable[[yaml.Node], Any]

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NULL, _BOOL, _INT = "tag:yaml.org,2002:null", "tag:yaml.org,2002:bool", "tag:yaml.org,2002:int"
_SURROGATES = re.compile(r"\\u(d[89ab][0-9a-f]{2})\\u(d[c-f][0-9a-f]{2})", re.IGNORECASE)
_DURATION = re.compile(r"(\d{1,9})([smhd])")
_DECIMAL = re.compile(r"-?(0|[1-9]\d{0,17})")
_UNITS_US = {"s": SECOND_US, "m": MINUTE_US, "h": HOUR_US, "d": DAY_US}
_OFF: Mapping[str, int] = {"off": DISABLED, "0s": DISABLED}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_CLICK_RANGE, _IMPRESSION_RANGE = (MINUTE_US, 30 * DAY_US), (MINUTE_US, DAY_US)
_CLAIM_WINDOWS = {
    "post_engagement_window": WindowKind.POST_ENGAGEMENT,
    "post_view_window": WindowKind.POST_VIEW,
}
_WINDOW_RANGES = {
    WindowKind.CLICK_DEVICE: _CLICK_RANGE,
    WindowKind.CLICK_EQUALIZER: _CLICK_RANGE,
    WindowKind.CLICK_MODELED: _CLICK_RANGE,
    WindowKind.CLICK_IP: _CLICK_RANGE,
    WindowKind.IMPRESSION_DEVICE: _IMPRESSION_RANGE,
    WindowKind.IMPRESSION_MODELED: _IMPRESSION_RANGE,
    WindowKind.IMPRESSION_IP: _IMPRESSION_RANGE,
}


class _MisfitError(Exception):
    """What is wrong with a node; without a message it is noted already."""


class _Reader:
    """Reads the nodes of one file and notes every problem on the way.

    The keys of an object are read in the order of the tables here whatever their order in the file, so that what refers
    to a network or a tracker is read after it.
    """

    def __init__(self) -> None:
        self._problems: list[Problem] = []
        self._networks: set[str] = set()
        self._self_attributing: set[str] = set()
        self._trackers: set[str] = set()
        self._defaults: set[tuple[str, TrackerType]] = set()
        self._definitions: set[str] = set()
        self._engagements: set[str] = set()
        self._conversions: set[str] = set()

    def read(self, root: yaml.Node) -> Scenario:
        scenario = None
        with self._noting(root):
            scenario = self._scenario(root)
        if scenario is None or self._problems:
            raise ScenarioError(sorted(self._problems))
        return scenario

    def _scenario(self, node: yaml.Node) -> Scenario:
        optional = {
            "scenario": _text,
            "networks": self._list(self._network),
            "trackers": self._list(self._tracker),
            "events": self._list(self._definition),
            "timeline": self._list(self._record),
            "expect": self._expect,
        }
        found = self._object(node, {"app": self._app}, optional)
        return Scenario(
            text=found.get("scenario", ""),
            app=found["app"],
            networks=found.get("networks", ()),
            trackers=found.get("trackers", ()),
            events=found.get("events", ()),
            timeline=found.get("timeline", ()),
            expect=found.get("expect", {}),
        )

    def _app(self, node: yaml.Node) -> App:
        found = self._object(node, {"app_id": _id}, {"platform": _choice(Platform), "settings": self._settings})
        return App(app_id=found["app_id"], platform=found.get("platform", Platform.IOS), **found.get("settings", {}))

    def _settings(self, node: yaml.Node) -> dict[str, Any]:
        optional = {
            "windows": self._windows,
            "device_attribution": _choice(DeviceAttribution),
            "modeled_level": _choice(ModeledLevel),
            "omit_os_minor": _flag,
            "allow_reengagement_impressions": _flag,
            "prioritize_completed_view": _flag,
            "limit_ad_tracking_fallback": _flag,
            "install_reprocessing_window": _duration((DAY_US, 365 * DAY_US), {"off": None}),
        }
        return _renamed(
            self._object(node, {}, optional), {"install_reprocessing_window": "install_reprocessing_window_us"}
        )

    def _windows(self, node: yaml.Node) -> dict[WindowKind, int]:
        parsers: dict[str, _Parse] = {
            kind.name.lower(): _duration(limits, _OFF) for kind, limits in _WINDOW_RANGES.items()
        }
        parsers["event_association"] = _duration((0, UNLIMITED), {"off": DISABLED, "unlimited": UNLIMITED})
        return {WindowKind[name.upper()]: window_us for name, window_us in self._object(node, {}, parsers).items()}

    def _network(self, node: yaml.Node) -> Network:
        optional = {
            "self_attributing": _flag,
            "supports_impressions": _flag,
            "windows": self._windows,
            "granular_data_policy": _choice(GranularDataPolicy),
        }
        network = Network(**self._object(node, {"network_id": _new(self._networks, "network")}, optional))
        if network.self_attributing:
            self._self_attributing.add(network.network_id)
        return network

    def _tracker(self, node: yaml.Node) -> Tracker:
        required = {"tracker_id": _new(self._trackers, "tracker"), "network": _known(self._networks, "network")}
        optional = {
            "campaign": _text,
            "segment": _text,
            "type": _choice(TrackerType),
            "events": self._list(_id),
            "windows": self._windows,
            "status": _choice(("LIVE", "ARCHIVED")),
            "default_tracker": _flag,
            **dict.fromkeys(_CLAIM_WINDOWS, _duration(_CLICK_RANGE, _OFF)),
            "max_conversions_per_engagement": _count,
            "create_time": _time,
        }
        found = self._object(node, required, optional)
        windows = found.pop("windows", {})
        windows |= {kind: found[name] for name, kind in _CLAIM_WINDOWS.items() if name in found}
        engagement_us, view_us = (windows.get(kind, BUILT_IN_WINDOWS[kind]) for kind in _CLAIM_WINDOWS.values())
        if view_us > engagement_us:
            raise _MisfitError("post_view_window is longer than post_engagement_window (B4)")
        tracker = Tracker(
            tracker_id=found["tracker_id"],
            network_id=found["network"],
            type=found.get("type", TrackerType.REENGAGEMENT),
            campaign=found.get("campaign", ""),
            segment=found.get("segment", ""),
            events=frozenset(found.get("events", ())),
            windows=windows,
            live=found.get("status", "LIVE") == "LIVE",
            default_tracker=found.get("default_tracker", False),
            max_conversions_per_engagement=found.get("max_conversions_per_engagement", 0),
            create_time_us=found.get("create_time", len(self._trackers)),
        )
        if tracker.default_tracker and tracker.live:
            if (tracker.network_id, tracker.type) in self._defaults:
                raise _MisfitError(f"a second default tracker of {tracker.network_id} and type {tracker.type} (E3)")
            self._defaults.add((tracker.network_id, tracker.type))
        return tracker

    def _definition(self, node: yaml.Node) -> EventDefinition:
        optional = {
            "mtr": _duration((0, 365 * DAY_US), {"off": 0}),
            "reengagement_period": _duration((0, UNLIMITED), {"unlimited": UNLIMITED}),
        }
        found = self._object(node, {"event_name": _new(self._definitions, "event")}, optional)
        return EventDefinition(**_renamed(found, {"mtr": "mtr_us", "reengagement_period": "reengagement_period_us"}))

    def _record(self, node: yaml.Node) -> EngagementRecord | ConversionRecord:
        kinds = {
            "click": self._engagement({"click_id": _text}),
            "impression": self._engagement({"completed_view": _flag}),
            "install": self._conversion({}),
            "event": self._conversion({"name": _id}),
        }
        found = self._object(node, {"at": _time}, {"received_at": _time, **kinds})
        named = [key.value for key, _ in node.value if key.value in kinds]
        if len(named) != 1:
            raise _MisfitError(f"needs exactly one of {', '.join(kinds)}")
        if named[0] not in found:
            raise _MisfitError
        record = found[named[0]]
        match named[0]:
            case "click":
                return EngagementRecord(kind=EngagementKind.CLICK, time_us=found["at"], **record)
            case "impression":
                return EngagementRecord(kind=EngagementKind.IMPRESSION, time_us=found["at"], **record)
            case _:
                return ConversionRecord(time_us=found["at"], **record)

    def _engagement(self, more: Mapping[str, _Parse]) -> _Parse:
        required = {"id": _new(self._engagements, "click or impression"), "tracker": _known(self._trackers, "tracker")}
        return lambda node: self._object(node, required, {**self._sender(), **more})

    def _conversion(self, required: Mapping[str, _Parse]) -> _Parse:
        optional = {"click": _text, "limit_ad_tracking": _flag, "claims": self._list(self._claim)}
        id_and_more = {"id": _new(self._conversions, "install or event"), **required}
        return lambda node: self._object(node, id_and_more, {**self._sender(), **optional})

    def _sender(self) -> dict[str, _Parse]:
        """What every record tells of the device that sent it."""
        ids = dict.fromkeys(DEVICE_ID_KINDS, _text)
        return {"device": lambda node: self._object(node, {}, ids), "ip": _ip, "ua": _text}

    def _claim(self, node: yaml.Node) -> Claim:
        required = {"network": _known(self._self_attributing, "self-attributing network"), "at": _time}
        optional = {
            "engagement": _choice(("CLICK", "VIEW")),
            "campaign_name": _text,
            "granular_data_allowed": _flag,
        }
        found = self._object(node, required, optional)
        return Claim(
            network_id=found["network"],
            kind=EngagementKind.CLICK if found.get("engagement", "CLICK") == "CLICK" else EngagementKind.IMPRESSION,
            time_us=found["at"],
            campaign_name=found.get("campaign_name", ""),
            granular_data_allowed=found.get("granular_data_allowed", True),
        )

    def _expect(self, node: yaml.Node) -> dict[str, dict[str, Any]]:
        parsers = dict.fromkeys(OUTPUT_KEYS, _plain)
        known = _known(self._conversions, "install or event")
        expected = {}
        for key, value in self._pairs(node):
            with self._noting(key):
                known(key)
            with self._noting(value):
                expected[key.value] = self._object(value, {}, parsers, nulls=True)
        return expected

    def _list(self, item: _Parse) -> _Parse:
        def parse(node: yaml.Node) -> tuple[Any, ...]:
            if not isinstance(node, yaml.SequenceNode):
                raise _MisfitError("should be a list")
            items = []
            for child in node.value:
                with self._noting(child):
                    items.append(item(child))
            return tuple(items)

        return parse

    def _object(
        self, node: yaml.Node, required: Mapping[str, _Parse], optional: Mapping[str, _Parse], nulls: bool = False
    ) -> dict[str, Any]:
        """The values of the keys that are there and fit; a null is as good as no key, unless `nulls` mean something."""
        parsers = {**required, **optional}
        children: dict[str, yaml.Node] = {}
        for key, value in self._pairs(node):
            with self._noting(key):
                if key.value not in parsers:
                    raise _MisfitError(f"unknown key {key.value!r}; known here: {', '.join(parsers)}")
                if key.value in children:
                    raise _MisfitError(f"key {key.value!r} stands here twice")
                children[key.value] = value
        found = {}
        for name, parse in parsers.items():
            child = children.get(name)
            if child is not None and (nulls or child.tag != _NULL):
                with self._noting(child, f"{name}: "):
                    found[name] = parse(child)
            elif name in required:
                with self._noting(node):
                    raise _MisfitError(f"key {name!r} is missing")
        if not required.keys() <= found.keys():
            raise _MisfitError
        return found

    def _pairs(self, node: yaml.Node) -> list[tuple[yaml.Node, yaml.Node]]:
        if not isinstance(node, yaml.MappingNode):
            raise _MisfitError("should be an object: keys and values")
        for key, _ in node.value:
            _text(key)
        return list(node.value)

    @contextmanager
    def _noting(self, node: yaml.Node, prefix: str = "") -> Iterator[None]:
        """Notes what does not fit in here and goes on after it."""
        try:
            yield
        except _MisfitError as misfit:
            if misfit.args:
                self._problems.append(Problem(node.start_mark.line + 1, f"{prefix}{misfit}"))


def _compose(text: str) -> yaml.Node:
    """The nodes of a YAML or JSON text. JSON is YAML but for tabs between tokens and for escaped surrogate pairs."""
    if text.lstrip().startswith("{"):
        text = _SURROGATES.sub(_escaped_character, text.replace("\t", " "))
    try:
        node = yaml.compose(text, Loader=_LOADER)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ScenarioError([Problem(line, f"not YAML or JSON: {error.problem or error.context}")]) from error
    except (yaml.YAMLError, RecursionError) as error:
        raise ScenarioError([Problem(1, f"not YAML or JSON: {error}")]) from error
    if node is None:
        raise ScenarioError([Problem(1, "the file is empty")])
    return node


def _escaped_character(pair: re.Match[str]) -> str:
    high, low = (int(half, 16) for half in pair.groups())
    return f"\\U{0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00):08X}"


def _renamed(found: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(name, name): value for name, value in found.items()}


def _text(node: yaml.Node) -> str:
    if not isinstance(node, yaml.ScalarNode) or node.tag == _NULL:
        raise _MisfitError("should be a text")
    return str(node.value)


def _id(node: yaml.Node) -> str:
    if not (text := _text(node)):
        raise _MisfitError("should not be empty")
    return text


def _new(ids: set[str], what: str) -> _Parse:
    """An id that stands for one thing only."""

    def parse(node: yaml.Node) -> str:
        text = _id(node)
        if text in ids:
            raise _MisfitError(f"{what} {text!r} is there already")
        ids.add(text)
        return text

    return parse


def _known(ids: set[str], what: str) -> _Parse:
    """An id of a thing that the file holds."""

    def parse(node: yaml.Node) -> str:
        if (text := _id(node)) not in ids:
            raise _MisfitError(f"there is no {what} {text!r}")
        return text

    return parse


def _flag(node: yaml.Node) -> bool:
    if node.tag != _BOOL:
        raise _MisfitError("should be true or false")
    return str(node.value).lower() in ("true", "yes", "on")


def _count(node: yaml.Node) -> int:
    text = _text(node)
    if not re.fullmatch(r"\d{1,9}", text):
        raise _MisfitError("should be a whole number, 0 or more")
    return int(text)


def _choice(choices: Iterable[str]) -> _Parse:
    by_name: dict[str, str] = {str(choice): choice for choice in choices}

    def parse(node: yaml.Node) -> str:
        if (text := _text(node)) not in by_name:
            raise _MisfitError(f"should be one of {', '.join(by_name)}")
        return by_name[text]

    return parse


def _ip(node: yaml.Node) -> str:
    if not (text := _text(node)):
        return ""
    try:
        return normalise_ip(text)
    except ValueError:
        raise _MisfitError(f"{text!r} is not an IP address") from None


def _time(node: yaml.Node) -> int:
    text = _text(node)
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise _MisfitError(f"{text!r} is not an ISO 8601 time such as 2026-03-01T09:00:00Z") from None
    return ((time if time.tzinfo else time.replace(tzinfo=UTC)) - _EPOCH) // timedelta(microseconds=1)


def _duration(limits: tuple[int, int], words: Mapping[str, int | None]) -> _Parse:
    """Microseconds of a duration within the limits, both included, or what one of the words stands for."""
    least_us, most_us = limits

    def parse(node: yaml.Node) -> int | None:
        text = _text(node)
        if text in words:
            return words[text]
        match = _DURATION.fullmatch(text)
        if match is None:
            raise _MisfitError(f"{text!r} is not a duration such as {', '.join(('30s', '15m', '24h', '7d', *words))}")
        duration_us = int(match[1]) * _UNITS_US[match[2]]
        if not least_us <= duration_us <= most_us:
            raise _MisfitError(f"{text} is out of range: {_spoken(least_us)} to {_spoken(most_us)}")
        return duration_us

    return parse


def _spoken(duration_us: int) -> str:
    unit = next((unit for unit in "dhm" if duration_us and duration_us % _UNITS_US[unit] == 0), "s")
    return f"{duration_us // _UNITS_US[unit]}{unit}"


def _plain(node: yaml.Node) -> Any:
    """What the node says, as JSON would have it: a time or a word that YAML knows otherwise stays a text."""
    if isinstance(node, yaml.SequenceNode):
        return [_plain(child) for child in node.value]
    if isinstance(node, yaml.MappingNode):
        return {_text(key): _plain(value) for key, value in node.value}
    if node.tag == _NULL:
        return None
    if node.tag == _BOOL:
        return _flag(node)
    if node.tag == _INT and _DECIMAL.fullmatch(node.value):
        return int(node.value)
    return node.value
