"""Reads a scenario: a small story in YAML or JSON, of settings and of what was received, in order of receipt.

Every problem of a file is named with its line. What a scenario may say stands in the methods of `_Reader`, which reads
plain values. JSON is parsed as JSON, which is fast. Only YAML knows the lines of its values, so what does not fit is
read again as YAML.
OURS: what the format does not show but the rules speak of is read too: claims on installs (F1), `limit_ad_tracking` on
events (A4). A time without an offset is UTC.
"""

import gc
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import yaml

from libs.domain.device_ids import PRIMARY_KINDS
from services.attribution.decision.matching import normalise_ip
from services.attribution.decision.model import (
    DAY_US,
    HOUR_US,
    MINUTE_US,
    SECOND_US,
    Claim,
    EngagementKind,
    TrackerType,
    WindowKind,
)
from services.attribution.decision.rules import (
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
    with collector_paused():
        try:
            values = _parse_json(text)
        except (ValueError, RecursionError):
            return _read_yaml(text)
        reader = _Reader()
        scenario = reader.read(values)
        return _read_yaml(text) if scenario is None or reader.misfits else scenario


@contextmanager
def collector_paused() -> Iterator[None]:
    """While a story grows the collector would look through all of it again and again: most of the time of reading."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _read_yaml(text: str) -> Scenario:
    source = _YamlSource(text)
    reader = _Reader()
    scenario = reader.read(source.root)
    problems = source.problems + [Problem(source.line(misfit), misfit.message) for misfit in reader.misfits]
    if scenario is None or problems:
        raise ScenarioError(sorted(problems))
    return scenario


class _Plain(str):
    """A scalar without quotes, which may stand for more than its text: a number, `true`, `off`."""

    __slots__ = ()


class _Misfit(NamedTuple):
    """What does not fit: the item `key` of a dict or list, or, `of_key`, the key itself; without a key the whole."""

    container: Any
    key: Any
    message: str
    of_key: bool = False


_Parse = Callable[[Any], Any]
"""Takes a plain value: a dict, a list, a str (_Plain where it had no quotes), a bool or None."""

_LOADER = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
_NULLS = frozenset(("", "~", "null", "Null", "NULL"))
_FLAGS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_SURROGATES = re.compile(r"\\u(d[89ab][0-9a-f]{2})\\u(d[c-f][0-9a-f]{2})", re.IGNORECASE)
_DURATION = re.compile(r"(\d{1,9})([smhd])")
_DECIMAL = re.compile(r"-?(0|[1-9]\d{0,17})")
_UNITS_US = {"s": SECOND_US, "m": MINUTE_US, "h": HOUR_US, "d": DAY_US}
_OFF: Mapping[str, int] = {"off": DISABLED, "0s": DISABLED}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_RECORD_KINDS = ("click", "impression", "install", "event")
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
    """What is wrong with a value; without a message it is noted already."""


class _Shape:
    """The keys of an object, how each is read, and which must be there; they are read in this order."""

    __slots__ = ("parsers", "required")

    def __init__(self, required: Mapping[str, _Parse], optional: Mapping[str, _Parse]) -> None:
        self.required = frozenset(required)
        self.parsers = {**required, **optional}


class _Reader:
    """Reads the values of one file and notes every misfit on the way.

    The keys of an object are read in the order of the tables here whatever their order in the file, so that what refers
    to a network or a tracker is read after it.
    """

    def __init__(self) -> None:
        self.misfits: list[_Misfit] = []
        self._networks: set[str] = set()
        self._self_attributing: set[str] = set()
        self._trackers: set[str] = set()
        self._defaults: set[tuple[str, TrackerType]] = set()
        self._definitions: set[str] = set()
        self._engagements: set[str] = set()
        self._conversions: set[str] = set()
        # What a timeline repeats thousands of times is made once.
        self._record_shape = _Shape(
            {"at": _time},
            {
                "received_at": _time,
                "click": self._engagement({"click_id": _text}),
                "impression": self._engagement({"completed_view": _flag}),
                "install": self._conversion({}),
                "event": self._conversion({"name": _id}),
            },
        )

    def read(self, root: Any) -> Scenario | None:
        """The scenario, None when it is not whole; what does not fit is in `misfits` then."""
        try:
            return self._scenario(root)
        except _MisfitError as misfit:
            if misfit.args:
                self.misfits.append(_Misfit(root, None, str(misfit)))
        return None

    def _scenario(self, value: Any) -> Scenario:
        optional = {
            "scenario": _text,
            "networks": self._list(self._network),
            "trackers": self._list(self._tracker),
            "events": self._list(self._definition),
            "timeline": self._list(self._record),
            "expect": self._expect,
        }
        found = self._object(value, {"app": self._app}, optional)
        return Scenario(
            text=found.get("scenario", ""),
            app=found["app"],
            networks=found.get("networks", ()),
            trackers=found.get("trackers", ()),
            events=found.get("events", ()),
            timeline=found.get("timeline", ()),
            expect=found.get("expect", {}),
        )

    def _app(self, value: Any) -> App:
        found = self._object(value, {"app_id": _id}, {"platform": _choice(Platform), "settings": self._settings})
        return App(app_id=found["app_id"], platform=found.get("platform", Platform.IOS), **found.get("settings", {}))

    def _settings(self, value: Any) -> dict[str, Any]:
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
            self._object(value, {}, optional), {"install_reprocessing_window": "install_reprocessing_window_us"}
        )

    def _windows(self, value: Any) -> dict[WindowKind, int]:
        parsers: dict[str, _Parse] = {
            kind.name.lower(): _duration(limits, _OFF) for kind, limits in _WINDOW_RANGES.items()
        }
        parsers["event_association"] = _duration((0, UNLIMITED), {"off": DISABLED, "unlimited": UNLIMITED})
        return {WindowKind[name.upper()]: window_us for name, window_us in self._object(value, {}, parsers).items()}

    def _network(self, value: Any) -> Network:
        optional = {
            "self_attributing": _flag,
            "supports_impressions": _flag,
            "windows": self._windows,
            "granular_data_policy": _choice(GranularDataPolicy),
        }
        network = Network(**self._object(value, {"network_id": _new(self._networks, "network")}, optional))
        if network.self_attributing:
            self._self_attributing.add(network.network_id)
        return network

    def _tracker(self, value: Any) -> Tracker:
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
        found = self._object(value, required, optional)
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

    def _definition(self, value: Any) -> EventDefinition:
        optional = {
            "mtr": _duration((0, 365 * DAY_US), {"off": 0}),
            "reengagement_period": _duration((0, UNLIMITED), {"unlimited": UNLIMITED}),
        }
        found = self._object(value, {"event_name": _new(self._definitions, "event")}, optional)
        return EventDefinition(**_renamed(found, {"mtr": "mtr_us", "reengagement_period": "reengagement_period_us"}))

    def _record(self, value: Any) -> EngagementRecord | ConversionRecord:
        found = self._fit(value, self._record_shape)
        named = [kind for kind in _RECORD_KINDS if value.get(kind) is not None]
        if len(named) != 1:
            raise _MisfitError(f"needs exactly one of {', '.join(_RECORD_KINDS)}")
        kind = named[0]
        if kind not in found:
            raise _MisfitError
        match kind:
            case "click":
                return EngagementRecord(kind=EngagementKind.CLICK, time_us=found["at"], **found[kind])
            case "impression":
                return EngagementRecord(kind=EngagementKind.IMPRESSION, time_us=found["at"], **found[kind])
            case _:
                return ConversionRecord(time_us=found["at"], **found[kind])

    def _engagement(self, more: Mapping[str, _Parse]) -> _Parse:
        required = {"id": _new(self._engagements, "click or impression"), "tracker": _known(self._trackers, "tracker")}
        shape = _Shape(required, {**self._sender(), **more})
        return lambda value: self._fit(value, shape)

    def _conversion(self, required: Mapping[str, _Parse]) -> _Parse:
        optional = {"click": _text, "limit_ad_tracking": _flag, "claims": self._list(self._claim)}
        id_and_more = {"id": _new(self._conversions, "install or event"), **required}
        shape = _Shape(id_and_more, {**self._sender(), **optional})
        return lambda value: self._fit(value, shape)

    def _sender(self) -> dict[str, _Parse]:
        """What every record tells of the device that sent it."""
        ids = _Shape({}, dict.fromkeys(PRIMARY_KINDS, _text))
        return {"device": lambda value: self._fit(value, ids), "ip": _ip, "ua": _text}

    def _claim(self, value: Any) -> Claim:
        required = {"network": _known(self._self_attributing, "self-attributing network"), "at": _time}
        optional = {
            "engagement": _choice(("CLICK", "VIEW")),
            "campaign_name": _text,
            "granular_data_allowed": _flag,
        }
        found = self._object(value, required, optional)
        return Claim(
            network_id=found["network"],
            kind=EngagementKind.CLICK if found.get("engagement", "CLICK") == "CLICK" else EngagementKind.IMPRESSION,
            time_us=found["at"],
            campaign_name=found.get("campaign_name", ""),
            granular_data_allowed=found.get("granular_data_allowed", True),
        )

    def _expect(self, value: Any) -> dict[str, dict[str, Any]]:
        shape = _Shape({}, dict.fromkeys(OUTPUT_KEYS, _plain))
        if not isinstance(value, dict):
            raise _MisfitError("should be an object: keys and values")
        expected = {}
        for key, child in value.items():
            if key not in self._conversions:
                self.misfits.append(_Misfit(value, key, f"there is no install or event {key!r}", of_key=True))
            try:
                expected[key] = self._fit(child, shape, nulls=True)
            except _MisfitError as misfit:
                self._note(value, key, misfit)
        return expected

    def _list(self, item: _Parse) -> _Parse:
        def parse(value: Any) -> tuple[Any, ...]:
            if not isinstance(value, list):
                raise _MisfitError("should be a list")
            items = []
            for at, child in enumerate(value):
                try:
                    items.append(item(child))
                except _MisfitError as misfit:
                    self._note(value, at, misfit)
            return tuple(items)

        return parse

    def _object(self, value: Any, required: Mapping[str, _Parse], optional: Mapping[str, _Parse]) -> dict[str, Any]:
        return self._fit(value, _Shape(required, optional))

    def _fit(self, value: Any, shape: _Shape, nulls: bool = False) -> dict[str, Any]:
        """The values of the keys that are there and fit; a null is as good as no key, unless `nulls` mean something."""
        if not isinstance(value, dict):
            raise _MisfitError("should be an object: keys and values")
        found = {}
        known = 0
        for name, parse in shape.parsers.items():
            if name not in value:
                continue
            known += 1
            child = value[name]
            if child is None and not nulls:
                continue
            try:
                found[name] = parse(child)
            except _MisfitError as misfit:
                self._note(value, name, misfit, f"{name}: ")
        if known < len(value):
            self._note_unknown(value, shape)
        if not found.keys() >= shape.required:
            missing = (name for name in shape.required if value.get(name) is None)
            self.misfits += [_Misfit(value, None, f"key {name!r} is missing") for name in missing]
            raise _MisfitError
        return found

    def _note_unknown(self, value: Mapping[str, Any], shape: _Shape) -> None:
        known_here = ", ".join(shape.parsers)
        for name in value.keys() - shape.parsers.keys():
            self.misfits.append(_Misfit(value, name, f"unknown key {name!r}; known here: {known_here}", of_key=True))

    def _note(self, container: Any, key: Any, misfit: _MisfitError, prefix: str = "") -> None:
        if misfit.args:
            self.misfits.append(_Misfit(container, key, f"{prefix}{misfit}"))


def _parse_json(text: str) -> Any:
    """The plain values of a JSON text. Raises ValueError when it is none, or needs a closer look."""
    if not text.lstrip().startswith("{") or _ESCAPED_SURROGATE.search(text):
        raise ValueError
    return json.loads(text, object_pairs_hook=_unrepeated, parse_int=_Plain, parse_float=_Plain, parse_constant=_Plain)


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError
    return found


class _YamlSource:
    """The plain values of a YAML text, each found again by the line it stands on.

    Raises ScenarioError when the text is no YAML. `problems` are those of keys, which plain values cannot show.
    """

    def __init__(self, text: str) -> None:
        self.problems: list[Problem] = []
        self._values: dict[int, Any] = {}
        self._nodes: dict[int, yaml.Node] = {}
        self._root_node = _compose(text)
        try:
            self.root = self._value(self._root_node)
        except RecursionError as error:
            raise ScenarioError([Problem(1, "not YAML or JSON: nested too deeply")]) from error

    def line(self, misfit: _Misfit) -> int:
        node = self._nodes.get(id(misfit.container), self._root_node)
        if misfit.key is not None and isinstance(node, yaml.SequenceNode):
            node = node.value[misfit.key]
        elif misfit.key is not None:
            node = next(pair[not misfit.of_key] for pair in node.value if pair[0].value == misfit.key)
        return int(node.start_mark.line) + 1

    def _value(self, node: yaml.Node) -> Any:
        if isinstance(node, yaml.ScalarNode):
            if node.style:
                return node.value
            return None if node.value in _NULLS else _Plain(node.value)
        if id(node) in self._values:  # an alias of what has been read
            return self._values[id(node)]
        found: Any
        if isinstance(node, yaml.SequenceNode):
            found = [self._value(child) for child in node.value]
        else:
            found = {}
            for key, child in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    self.problems.append(Problem(key.start_mark.line + 1, "a key should be a text"))
                elif key.value in found:
                    self.problems.append(Problem(key.start_mark.line + 1, f"key {key.value!r} stands here twice"))
                else:
                    found[key.value] = self._value(child)
        self._values[id(node)] = found
        self._nodes[id(found)] = node
        return found


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


def _text(value: Any) -> str:
    if isinstance(value, str):
        return str(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    raise _MisfitError("should be a text")


def _id(value: Any) -> str:
    if not (text := _text(value)):
        raise _MisfitError("should not be empty")
    return text


def _new(ids: set[str], what: str) -> _Parse:
    """An id that stands for one thing only."""

    def parse(value: Any) -> str:
        text = _id(value)
        if text in ids:
            raise _MisfitError(f"{what} {text!r} is there already")
        ids.add(text)
        return text

    return parse


def _known(ids: set[str], what: str) -> _Parse:
    """An id of a thing that the file holds."""

    def parse(value: Any) -> str:
        if (text := _id(value)) not in ids:
            raise _MisfitError(f"there is no {what} {text!r}")
        return text

    return parse


def _flag(value: Any) -> bool:
    flag = _FLAGS.get(value.lower()) if isinstance(value, _Plain) else value
    if not isinstance(flag, bool):
        raise _MisfitError("should be true or false")
    return flag


def _count(value: Any) -> int:
    text = _text(value)
    if not re.fullmatch(r"\d{1,9}", text):
        raise _MisfitError("should be a whole number, 0 or more")
    return int(text)


def _choice(choices: Iterable[str]) -> _Parse:
    by_name: dict[str, str] = {str(choice): choice for choice in choices}

    def parse(value: Any) -> str:
        if (text := _text(value)) not in by_name:
            raise _MisfitError(f"should be one of {', '.join(by_name)}")
        return by_name[text]

    return parse


def _ip(value: Any) -> str:
    if not (text := _text(value)):
        return ""
    try:
        return normalise_ip(text)
    except ValueError:
        raise _MisfitError(f"{text!r} is not an IP address") from None


def _time(value: Any) -> int:
    text = _text(value)
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise _MisfitError(f"{text!r} is not an ISO 8601 time such as 2026-03-01T09:00:00Z") from None
    return ((time if time.tzinfo else time.replace(tzinfo=UTC)) - _EPOCH) // timedelta(microseconds=1)


def _duration(limits: tuple[int, int], words: Mapping[str, int | None]) -> _Parse:
    """Microseconds of a duration within the limits, both included, or what one of the words stands for."""
    least_us, most_us = limits

    def parse(value: Any) -> int | None:
        text = _text(value)
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


def _plain(value: Any) -> Any:
    """What the value says, as JSON would have it: a time or a word that YAML knows otherwise stays a text."""
    if isinstance(value, list):
        return [_plain(child) for child in value]
    if isinstance(value, dict):
        return {key: _plain(child) for key, child in value.items()}
    if isinstance(value, _Plain):
        if value.lower() in _FLAGS:
            return _FLAGS[value.lower()]
        return int(value) if _DECIMAL.fullmatch(value) else str(value)
    return value
