"""The effective value of every setting of a tracker or an event, and the layer it comes from (B3). Pure."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from libs.domain.setting_ranges import (
    DAY_S,
    DEFAULT_POST_ENGAGEMENT_DAYS,
    DEFAULT_POST_VIEW_DAYS,
    DEFAULT_RECORDS_PER_SECOND,
)
from reengage.tracker.v1.app_pb2 import App, AppSettings
from reengage.tracker.v1.event_definition_pb2 import EventDefinition
from reengage.tracker.v1.network_pb2 import Network
from reengage.tracker.v1.network_settings_pb2 import NetworkSettings
from reengage.tracker.v1.resolve_pb2 import ResolvedSetting
from reengage.tracker.v1.tracker_pb2 import Tracker
from reengage.tracker.v1.windows_pb2 import Window, Windows

_HOUR, _DAY = 3600, DAY_S
TRACKER, NETWORK_SETTINGS = ResolvedSetting.LAYER_TRACKER, ResolvedSetting.LAYER_NETWORK_SETTINGS
NETWORK, EVENT = ResolvedSetting.LAYER_NETWORK, ResolvedSetting.LAYER_EVENT
APP, BUILT_IN = ResolvedSetting.LAYER_APP, ResolvedSetting.LAYER_BUILT_IN
Layer = tuple[int, Message]
"""A layer, and the message that may hold its value."""

DEFAULT_ENGAGEMENT_WINDOW = Duration(seconds=DEFAULT_POST_ENGAGEMENT_DAYS * _DAY)
DEFAULT_VIEW_WINDOW = Duration(seconds=DEFAULT_POST_VIEW_DAYS * _DAY)
_DEFAULT_MTR = Duration(seconds=_DAY)


def _lasting(seconds: int) -> Window:
    return Window(duration=Duration(seconds=seconds))


_BUILT_IN_WINDOWS = Windows(  # B2, D8
    click_device=_lasting(30 * _DAY),
    click_modeled=_lasting(7 * _DAY),
    click_equalizer=Window(disabled=True),
    click_ip=_lasting(7 * _DAY),
    impression_device=_lasting(_DAY),
    impression_modeled=_lasting(_DAY),
    impression_ip=_lasting(_DAY),
    event_association=Window(unlimited=True),
)


def tracker_settings(
    tracker: Tracker,
    app: App,
    network: Network,
    network_settings: NetworkSettings,
    definitions: Mapping[str, EventDefinition],
) -> list[ResolvedSetting]:
    """Returns all settings of a tracker by name. `definitions` are the live ones of its events."""
    settings = [
        *_windows(tracker, app, network, network_settings),
        *_switches(app, network, network_settings),
        *_of_tracker(tracker, network),
    ]
    settings += event_settings(tracker.events, definitions)
    return sorted(settings, key=lambda setting: setting.name)


def event_settings(events: Iterable[str], definitions: Mapping[str, EventDefinition]) -> list[ResolvedSetting]:
    """Returns all settings of events by name. `definitions` are the live ones; an event needs none."""
    names = dict.fromkeys(events)
    settings = [one for event in names for one in _of_event(event, definitions.get(event, EventDefinition()))]
    return sorted(settings, key=lambda setting: setting.name)


def _windows(tracker: Tracker, app: App, network: Network, network_settings: NetworkSettings) -> list[ResolvedSetting]:
    """Returns each window by itself (B3). A self-attributing network's tracker overrides none."""
    layers: list[Layer] = [
        *([] if network.self_attributing else [(TRACKER, tracker.windows)]),
        (NETWORK_SETTINGS, network_settings.windows),
        (APP, app.settings.windows),
        (BUILT_IN, _BUILT_IN_WINDOWS),
    ]
    names = [field.name for field in Windows.DESCRIPTOR.fields]
    rules = {"event_association": "D8"}
    return [_first(f"windows.{name}", rules.get(name, "B3"), "window", name, layers) for name in names]


def _switches(app: App, network: Network, network_settings: NetworkSettings) -> list[ResolvedSetting]:
    settings = app.settings
    built_in = AppSettings(
        device_attribution=AppSettings.DEVICE_ATTRIBUTION_STANDARD,
        modeled_level=AppSettings.MODELED_LEVEL_IP_AND_UA,
        allow_reengagement_impressions=True,
        max_record_age=Duration(seconds=31 * _DAY),
        max_record_lead=Duration(seconds=24 * _HOUR),
        records_per_second=DEFAULT_RECORDS_PER_SECOND,
        retention=Duration(seconds=400 * _DAY),
        late_window=Duration(seconds=_DAY),
        inactivity_window=Duration(),
    )
    layers: list[Layer] = [(APP, settings), (BUILT_IN, built_in)]
    found = [
        _first(name, rule, value, name, layers)
        for name, rule, value in (
            ("device_attribution", "A4", "text"),
            ("limit_ad_tracking_fallback", "A4", "enabled"),
            ("modeled_level", "A5", "text"),
            ("omit_os_minor", "A5", "enabled"),
            ("allow_reengagement_impressions", "B5", "enabled"),
            ("prioritize_completed_view", "C2", "enabled"),
            ("late_window", "D12", "duration"),
            ("inactivity_window", "D13", "duration"),
            ("max_record_age", "", "duration"),
            ("max_record_lead", "", "duration"),
            ("records_per_second", "", "number"),
            ("retention", "", "duration"),
        )
    ]
    if settings.HasField("install_reprocessing_window"):
        found.append(_setting("install_reprocessing_window", "F2", APP, duration=settings.install_reprocessing_window))
    else:
        found.append(_setting("install_reprocessing_window", "F2", BUILT_IN, text="NEVER"))
    impressions: list[Layer] = [(NETWORK, network), (BUILT_IN, Network(supports_impressions=True))]
    found.append(_first("supports_impressions", "B5", "enabled", "supports_impressions", impressions))
    pings: list[Layer] = [(NETWORK_SETTINGS, network_settings), (BUILT_IN, NetworkSettings(late_pings=Duration()))]
    found.append(_first("late_pings", "D12", "duration", "late_pings", pings))
    if network.self_attributing:
        reject = NetworkSettings(granular_data_policy=NetworkSettings.GRANULAR_DATA_POLICY_REJECT)
        policies: list[Layer] = [(NETWORK_SETTINGS, network_settings), (BUILT_IN, reject)]
        found.append(_first("granular_data_policy", "E2", "text", "granular_data_policy", policies))
    return found


def _of_tracker(tracker: Tracker, network: Network) -> list[ResolvedSetting]:
    layers: list[Layer] = [(TRACKER, tracker), (BUILT_IN, Tracker(share_with_publisher=True))]
    found = [
        _first("max_conversions_per_engagement", "D5", "number", "max_conversions_per_engagement", layers),
        _first("share_with_publisher", "", "enabled", "share_with_publisher", layers),
    ]
    if network.self_attributing:
        built_in = Tracker(post_engagement_window=DEFAULT_ENGAGEMENT_WINDOW, post_view_window=DEFAULT_VIEW_WINDOW)
        layers = [(TRACKER, tracker), (BUILT_IN, built_in)]
        found += [
            _first(name, "B4", "duration", name, layers) for name in ("post_engagement_window", "post_view_window")
        ]
        found.append(_first("default_tracker", "E3", "enabled", "default_tracker", layers))
        given = [(name, getattr(tracker, name)) for name in ("target_event", "bundle_id")]
        found += [_setting(name, "", TRACKER, text=text) for name, text in given if text]
    return found


def _of_event(event: str, definition: EventDefinition) -> list[ResolvedSetting]:
    built_in = EventDefinition(min_time_to_reengagement=_DEFAULT_MTR)
    layers: list[Layer] = [(EVENT, definition), (BUILT_IN, built_in)]
    mtr = f"events[{event}].min_time_to_reengagement"
    period = f"events[{event}].reengagement_period"
    found = [_first(mtr, "D3", "duration", "min_time_to_reengagement", layers)]
    if definition.HasField("reengagement_period"):
        found.append(_setting(period, "D6", EVENT, duration=definition.reengagement_period))
    else:
        found.append(_setting(period, "D6", BUILT_IN, window=Window(unlimited=True)))
    found.append(_first(f"events[{event}].disabled", "", "enabled", "disabled", layers))
    found.append(_first(f"events[{event}].revenue", "", "enabled", "revenue", layers))
    return found


def _first(name: str, rule: str, value: str, field_name: str, layers: Sequence[Layer]) -> ResolvedSetting:
    """Returns the setting from the first layer that has the field; from the last one, if none does."""
    layer, holder = next((one for one in layers if _has(one[1], field_name)), layers[-1])
    field = holder.DESCRIPTOR.fields_by_name[field_name]
    held = getattr(holder, field_name)
    if field.enum_type is not None:
        prefix = field.enum_type.values_by_number[0].name.removesuffix("UNSPECIFIED")
        held = field.enum_type.values_by_number[held].name.removeprefix(prefix)
    return _setting(name, rule, layer, **{value: held})


def _has(message: Message, name: str) -> bool:
    if message.DESCRIPTOR.fields_by_name[name].has_presence:
        return message.HasField(name)
    return bool(getattr(message, name))


def _setting(name: str, rule: str, layer: Any, **value: Any) -> ResolvedSetting:
    return ResolvedSetting(name=name, rule=rule, layer=layer, **value)
