"""Reads the plain values of a scenario, key by key, and notes everything that does not fit."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from libs.domain.device_ids import KINDS
from libs.domain.event_names import SESSION_BEGIN
from libs.domain.setting_ranges import DURATIONS, WINDOWS
from services.attribution.decision.model import Claim, ClientHints, DeviceType, EngagementKind, TrackerType, WindowKind
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
from services.attribution.decision.traffic import TrafficRules
from services.attribution.simulator.scenario import OUTPUT_KEYS, ConversionRecord, EngagementRecord, Scenario
from services.attribution.simulator.values import (
    MisfitError,
    Parser,
    duration_in,
    known_id,
    new_id,
    one_of,
    parse_amount,
    parse_count,
    parse_country,
    parse_flag,
    parse_id,
    parse_ip,
    parse_text,
    parse_time,
    parse_version,
    plain,
)

_OFF: Mapping[str, int] = {"off": DISABLED, "0s": DISABLED}
_RECORD_KINDS = ("click", "impression", "install", "session", "event")
_CLAIM_WINDOWS = {
    "post_engagement_window": WindowKind.POST_ENGAGEMENT,
    "post_view_window": WindowKind.POST_VIEW,
}


class Misfit(NamedTuple):
    """A part that does not fit: the item `key` of a dict or list, or, `of_key`, the key; without a key the whole."""

    container: Any
    key: Any
    message: str
    of_key: bool = False


class _Shape:
    """The keys of an object, how each is read, and which must be there; they are read in this order."""

    __slots__ = ("parsers", "required")

    def __init__(self, required: Mapping[str, Parser], optional: Mapping[str, Parser]) -> None:
        self.required = frozenset(required)
        self.parsers = {**required, **optional}


class ScenarioReader:
    """Reader of the values of one file, which notes every misfit on the way.

    The keys of an object are read in the order of the tables here whatever their order in the file, so that what refers
    to a network or a tracker is read after it.
    """

    def __init__(self) -> None:
        self.misfits: list[Misfit] = []
        self._networks: set[str] = set()
        self._self_attributing: set[str] = set()
        self._trackers: set[str] = set()
        self._defaults: set[tuple[str, TrackerType, str]] = set()
        self._definitions: set[str] = set()
        self._engagements: set[str] = set()
        self._conversions: set[str] = set()
        self._latest_us = 0
        # What a timeline repeats thousands of times is made once.
        self._record_shape = _Shape(
            {"at": parse_time},
            {
                "received_at": parse_time,
                "click": self._engagement({"click_id": parse_text, "ping": parse_flag}),
                "impression": self._engagement({"completed_view": parse_flag, "ping": parse_flag}),
                "install": self._conversion({}, {}),
                "session": self._conversion({}, {}),
                "event": self._conversion({"name": parse_id}, {"amount": parse_amount}),
            },
        )

    def read(self, root: Any) -> Scenario | None:
        """Returns the scenario, None when it is not whole; `misfits` tells why."""
        try:
            return self._scenario(root)
        except MisfitError as misfit:
            if misfit.args:
                self.misfits.append(Misfit(root, None, str(misfit)))
        return None

    def _scenario(self, value: Any) -> Scenario:
        optional = {
            "scenario": parse_text,
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
        found = self._object(value, {"app_id": parse_id}, {"platform": one_of(Platform), "settings": self._settings})
        return App(app_id=found["app_id"], platform=found.get("platform", Platform.IOS), **found.get("settings", {}))

    def _settings(self, value: Any) -> dict[str, Any]:
        optional = {
            "windows": self._windows,
            "device_attribution": one_of(DeviceAttribution),
            "modeled_level": one_of(ModeledLevel),
            "omit_os_minor": parse_flag,
            "allow_reengagement_impressions": parse_flag,
            "prioritize_completed_view": parse_flag,
            "limit_ad_tracking_fallback": parse_flag,
            "install_reprocessing_window": duration_in(DURATIONS["install_reprocessing_window"], {"off": None}),
            "late_window": duration_in(DURATIONS["late_window"], {"off": 0}),
            "inactivity_window": duration_in(DURATIONS["inactivity_window"], {"off": 0}),
        }
        return _renamed(
            self._object(value, {}, optional),
            {
                "install_reprocessing_window": "install_reprocessing_window_us",
                "late_window": "late_window_us",
                "inactivity_window": "inactivity_window_us",
            },
        )

    def _windows(self, value: Any) -> dict[WindowKind, int]:
        parsers: dict[str, Parser] = {name: duration_in(allowed.range, _OFF) for name, allowed in WINDOWS.items()}
        parsers["event_association"] = duration_in(
            WINDOWS["event_association"].range, {"off": DISABLED, "unlimited": UNLIMITED}
        )
        return {WindowKind[name.upper()]: window_us for name, window_us in self._object(value, {}, parsers).items()}

    def _network(self, value: Any) -> Network:
        optional = {
            "self_attributing": parse_flag,
            "supports_impressions": parse_flag,
            "windows": self._windows,
            "granular_data_policy": one_of(GranularDataPolicy),
            "late_pings": duration_in(DURATIONS["late_pings"], {"off": 0}),
        }
        found = self._object(value, {"network_id": new_id(self._networks, "network")}, optional)
        network = Network(**_renamed(found, {"late_pings": "late_pings_us"}))
        if network.self_attributing:
            self._self_attributing.add(network.network_id)
        return network

    def _tracker(self, value: Any) -> Tracker:
        required = {"tracker_id": new_id(self._trackers, "tracker"), "network": known_id(self._networks, "network")}
        optional = {
            "campaign": parse_text,
            "segment": parse_text,
            "type": one_of(TrackerType),
            "events": self._list(parse_id),
            "windows": self._windows,
            "status": one_of(("LIVE", "ARCHIVED")),
            "default_tracker": parse_flag,
            **{name: duration_in(DURATIONS[name], _OFF) for name in _CLAIM_WINDOWS},
            "max_conversions_per_engagement": parse_count,
            "create_time": parse_time,
            "traffic_rules": self._traffic_rules,
        }
        found = self._object(value, required, optional)
        windows = found.pop("windows", {})
        windows |= {kind: found[name] for name, kind in _CLAIM_WINDOWS.items() if name in found}
        engagement_us, view_us = (windows.get(kind, BUILT_IN_WINDOWS[kind]) for kind in _CLAIM_WINDOWS.values())
        if view_us > engagement_us:
            raise MisfitError("post_view_window is longer than post_engagement_window (B4)")
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
            traffic_rules=found.get("traffic_rules"),
        )
        if tracker.default_tracker and tracker.live:
            # An acquisition tracker selects nothing, and one without events is the default one of nothing else.
            selected = {(tracker.network_id, tracker.type, event_name) for event_name in tracker.events or {""}}
            if selected & self._defaults:
                raise MisfitError(f"a second default tracker of {tracker.network_id}, type and event (E3)")
            self._defaults |= selected
        return tracker

    def _traffic_rules(self, value: Any) -> TrafficRules:
        optional = {
            "start_time": parse_time,
            "end_time": parse_time,
            "allowed_os": self._list(one_of(Platform)),
            "min_os_version": parse_version,
            "max_os_version": parse_version,
            "allowed_device_types": self._list(one_of(DeviceType)),
            "allowed_countries": self._list(parse_country),
            "blocked_countries": self._list(parse_country),
        }
        found = self._object(value, {}, optional)
        return TrafficRules(
            start_us=found.get("start_time"),
            end_us=found.get("end_time"),
            operating_systems=frozenset(platform.os for platform in found.get("allowed_os", ())),
            min_os_version=found.get("min_os_version", ()),
            max_os_version=found.get("max_os_version", ()),
            device_types=frozenset(found.get("allowed_device_types", ())),
            allowed_countries=frozenset(found.get("allowed_countries", ())),
            blocked_countries=frozenset(found.get("blocked_countries", ())),
        )

    def _definition(self, value: Any) -> EventDefinition:
        optional = {
            "mtr": duration_in(DURATIONS["min_time_to_reengagement"], {"off": 0}),
            "reengagement_period": duration_in(DURATIONS["reengagement_period"], {"unlimited": UNLIMITED}),
        }
        found = self._object(value, {"event_name": new_id(self._definitions, "event")}, optional)
        return EventDefinition(**_renamed(found, {"mtr": "mtr_us", "reengagement_period": "reengagement_period_us"}))

    def _record(self, value: Any) -> EngagementRecord | ConversionRecord:
        found = self._fit(value, self._record_shape)
        named = [kind for kind in _RECORD_KINDS if value.get(kind) is not None]
        if len(named) != 1:
            raise MisfitError(f"needs exactly one of {', '.join(_RECORD_KINDS)}")
        kind = named[0]
        if kind not in found:
            raise MisfitError
        self._latest_us = max(self._latest_us, found["at"], found.get("received_at", 0))
        times = {"time_us": found["at"], "receive_time_us": found.get("received_at", self._latest_us)}
        match kind:
            case "click" | "impression":
                is_ping = found[kind].pop("ping", False)
                return EngagementRecord(kind=EngagementKind[kind.upper()], is_ping=is_ping, **times, **found[kind])
            case _:
                if kind == "session":
                    found[kind] |= {"name": SESSION_BEGIN, "is_session_start": True}
                is_refund = found[kind].pop("amount", 0) < 0
                return ConversionRecord(is_refund=is_refund, **times, **found[kind])

    def _engagement(self, more: Mapping[str, Parser]) -> Parser:
        required = {
            "id": new_id(self._engagements, "click or impression"),
            "tracker": known_id(self._trackers, "tracker"),
        }
        shape = _Shape(required, {**self._sender(), "prefetch": parse_flag, **more})
        return lambda value: _renamed(self._fit(value, shape), {"prefetch": "is_prefetch"})

    def _conversion(self, required: Mapping[str, Parser], more: Mapping[str, Parser]) -> Parser:
        optional = {"click": parse_text, "limit_ad_tracking": parse_flag, "claims": self._list(self._claim), **more}
        id_and_more = {"id": new_id(self._conversions, "install or event"), **required}
        shape = _Shape(id_and_more, {**self._sender(), **optional})
        return lambda value: self._fit(value, shape)

    def _sender(self) -> dict[str, Parser]:
        """Returns the keys that tell of the device that sent a record."""
        ids = _Shape({}, dict.fromkeys(KINDS, parse_text))
        return {
            "device": lambda value: self._fit(value, ids),
            "ip": parse_ip,
            "ua": parse_text,
            "client_hints": self._client_hints,
            "country": parse_country,
        }

    def _client_hints(self, value: Any) -> ClientHints:
        return ClientHints(**self._object(value, {}, dict.fromkeys(ClientHints._fields, parse_text)))

    def _claim(self, value: Any) -> Claim:
        required = {"network": known_id(self._self_attributing, "self-attributing network"), "at": parse_time}
        optional = {
            "engagement": one_of(("CLICK", "VIEW")),
            "campaign_name": parse_text,
            "granular_data_allowed": parse_flag,
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
        shape = _Shape({}, dict.fromkeys(OUTPUT_KEYS, plain))
        if not isinstance(value, dict):
            raise MisfitError("should be an object: keys and values")
        expected = {}
        for key, child in value.items():
            if key not in self._conversions:
                self.misfits.append(Misfit(value, key, f"there is no install or event {key!r}", of_key=True))
            try:
                expected[key] = self._fit(child, shape, nulls=True)
            except MisfitError as misfit:
                self._note(value, key, misfit)
        return expected

    def _list(self, item: Parser) -> Parser:
        def parse(value: Any) -> tuple[Any, ...]:
            if not isinstance(value, list):
                raise MisfitError("should be a list")
            items = []
            for at, child in enumerate(value):
                try:
                    items.append(item(child))
                except MisfitError as misfit:
                    self._note(value, at, misfit)
            return tuple(items)

        return parse

    def _object(self, value: Any, required: Mapping[str, Parser], optional: Mapping[str, Parser]) -> dict[str, Any]:
        return self._fit(value, _Shape(required, optional))

    def _fit(self, value: Any, shape: _Shape, nulls: bool = False) -> dict[str, Any]:
        """Returns the values of the keys that are there and fit; a null is as good as no key, unless `nulls` is set."""
        if not isinstance(value, dict):
            raise MisfitError("should be an object: keys and values")
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
            except MisfitError as misfit:
                self._note(value, name, misfit, f"{name}: ")
        if known < len(value):
            self._note_unknown(value, shape)
        if not found.keys() >= shape.required:
            missing = (name for name in shape.required if value.get(name) is None)
            self.misfits += [Misfit(value, None, f"key {name!r} is missing") for name in missing]
            raise MisfitError
        return found

    def _note_unknown(self, value: Mapping[str, Any], shape: _Shape) -> None:
        known_here = ", ".join(shape.parsers)
        for name in value.keys() - shape.parsers.keys():
            self.misfits.append(Misfit(value, name, f"unknown key {name!r}; known here: {known_here}", of_key=True))

    def _note(self, container: Any, key: Any, misfit: MisfitError, prefix: str = "") -> None:
        if misfit.args:
            self.misfits.append(Misfit(container, key, f"{prefix}{misfit}"))


def _renamed(found: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(name, name): value for name, value in found.items()}
