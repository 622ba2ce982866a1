"""Builds the rules of every app from tracker's settings, once per revision."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from libs.snapshots import Resources
from reengage.postback.v1 import postback_pb2
from reengage.tracker.v1 import tracker_pb2
from services.attribution.model import TrackerType, WindowKind
from services.attribution.rules import (
    DEFAULT_MTR_US,
    DISABLED,
    UNLIMITED,
    App,
    AppRules,
    DeviceAttribution,
    EventDefinition,
    GranularDataPolicy,
    ModeledLevel,
    Network,
    Platform,
    Tracker,
    compile_rules,
)

_WINDOWS = {
    "click_device": WindowKind.CLICK_DEVICE,
    "click_modeled": WindowKind.CLICK_MODELED,
    "click_equalizer": WindowKind.CLICK_EQUALIZER,
    "click_ip": WindowKind.CLICK_IP,
    "impression_device": WindowKind.IMPRESSION_DEVICE,
    "impression_modeled": WindowKind.IMPRESSION_MODELED,
    "impression_ip": WindowKind.IMPRESSION_IP,
    "event_association": WindowKind.EVENT_ASSOCIATION,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings of one revision: rules by app, and what things are called, by tracker and by app."""

    revision: int
    apps: Mapping[str, AppRules]
    tracker_names: Mapping[str, postback_pb2.Names]
    app_names: Mapping[str, postback_pb2.Names]


def build_settings(resources: Resources, revision: int) -> Settings:
    """The rules of every app, archived ones too: what was accepted before is still decided."""
    apps = {app.app_id: app for app in cast("list[tracker_pb2.App]", list(resources["app"].values()))}
    networks = cast("list[tracker_pb2.Network]", list(resources["network"].values()))
    by_app: dict[str, list[tracker_pb2.Tracker]] = {app_id: [] for app_id in apps}
    for tracker in cast("list[tracker_pb2.Tracker]", list(resources["tracker"].values())):
        by_app[tracker.app_id].append(tracker)
    events: dict[str, list[EventDefinition]] = {app_id: [] for app_id in apps}
    for event in cast("list[tracker_pb2.EventDefinition]", list(resources["event_definition"].values())):
        if event.status == tracker_pb2.STATUS_LIVE:
            events[event.app_id].append(_event(event))
    app_names = {app_id: _app_names(app) for app_id, app in apps.items()}
    return Settings(
        revision=revision,
        apps={
            app_id: compile_rules(
                app=_app(app),
                networks=[_network(network, resources, app_id) for network in networks],
                trackers=[_tracker(tracker) for tracker in by_app[app_id]],
                events=events[app_id],
                revision=revision,
            )
            for app_id, app in apps.items()
        },
        tracker_names={
            tracker.tracker_id: _tracker_names(tracker, resources, app_names[app_id])
            for app_id, trackers in by_app.items()
            for tracker in trackers
        },
        app_names=app_names,
    )


def _windows(windows: tracker_pb2.Windows) -> dict[WindowKind, int]:
    """The windows set at one layer, in microseconds."""
    found = {}
    for name, kind in _WINDOWS.items():
        if not windows.HasField(name):  # type: ignore[arg-type]  # all names are fields
            continue
        window: tracker_pb2.Window = getattr(windows, name)
        match window.WhichOneof("limit"):
            case "duration":
                found[kind] = window.duration.ToMicroseconds()
            case "disabled":
                found[kind] = DISABLED
            case "unlimited":
                found[kind] = UNLIMITED
            case None:
                pass  # nothing set: falls through to the next layer
    return found


def _app(app: tracker_pb2.App) -> App:
    settings = app.settings
    return App(
        app_id=app.app_id,
        platform=Platform.IOS if app.platform == tracker_pb2.PLATFORM_IOS else Platform.ANDROID,
        windows=_windows(settings.windows),
        device_attribution=(
            DeviceAttribution.INCLUSIVE
            if settings.device_attribution == tracker_pb2.AppSettings.DEVICE_ATTRIBUTION_INCLUSIVE
            else DeviceAttribution.STANDARD
        ),
        modeled_level={
            tracker_pb2.AppSettings.MODELED_LEVEL_IP_ONLY: ModeledLevel.IP_ONLY,
            tracker_pb2.AppSettings.MODELED_LEVEL_IP_RANGE: ModeledLevel.IP_RANGE,
        }.get(settings.modeled_level, ModeledLevel.IP_AND_UA),
        omit_os_minor=settings.omit_os_minor,
        allow_reengagement_impressions=(
            not settings.HasField("allow_reengagement_impressions") or settings.allow_reengagement_impressions
        ),
        prioritize_completed_view=settings.prioritize_completed_view,
        limit_ad_tracking_fallback=settings.limit_ad_tracking_fallback,
        install_reprocessing_window_us=(
            settings.install_reprocessing_window.ToMicroseconds()
            if settings.HasField("install_reprocessing_window")
            else None
        ),
    )


def _network(network: tracker_pb2.Network, resources: Resources, app_id: str) -> Network:
    found = resources["network_settings"].get((app_id, network.network_id))
    settings = cast("tracker_pb2.NetworkSettings", found) if found else tracker_pb2.NetworkSettings()
    redacts = settings.granular_data_policy == tracker_pb2.NetworkSettings.GRANULAR_DATA_POLICY_REDACT
    return Network(
        network_id=network.network_id,
        self_attributing=network.self_attributing,
        supports_impressions=not network.HasField("supports_impressions") or network.supports_impressions,
        granular_data_policy=GranularDataPolicy.REDACT if redacts else GranularDataPolicy.REJECT,
        windows=_windows(settings.windows),
    )


def _tracker(tracker: tracker_pb2.Tracker) -> Tracker:
    windows = _windows(tracker.windows)
    if tracker.HasField("post_engagement_window"):
        windows[WindowKind.POST_ENGAGEMENT] = tracker.post_engagement_window.ToMicroseconds()
    if tracker.HasField("post_view_window"):
        windows[WindowKind.POST_VIEW] = tracker.post_view_window.ToMicroseconds()
    is_reengagement = tracker.type == tracker_pb2.Tracker.TYPE_REENGAGEMENT
    return Tracker(
        tracker_id=tracker.tracker_id,
        network_id=tracker.network_id,
        type=TrackerType.REENGAGEMENT if is_reengagement else TrackerType.ACQUISITION,
        campaign=tracker.campaign_id,
        segment=tracker.segment_id,
        events=frozenset(tracker.events),
        windows=windows,
        live=tracker.status == tracker_pb2.STATUS_LIVE,
        default_tracker=tracker.default_tracker,
        max_conversions_per_engagement=tracker.max_conversions_per_engagement,
        create_time_us=tracker.create_time.ToMicroseconds(),
    )


def _event(event: tracker_pb2.EventDefinition) -> EventDefinition:
    return EventDefinition(
        event_name=event.event_name,
        mtr_us=(
            event.min_time_to_reengagement.ToMicroseconds()
            if event.HasField("min_time_to_reengagement")
            else DEFAULT_MTR_US
        ),
        reengagement_period_us=(
            event.reengagement_period.ToMicroseconds() if event.HasField("reengagement_period") else UNLIMITED
        ),
    )


def _app_names(app: tracker_pb2.App) -> postback_pb2.Names:
    return postback_pb2.Names(
        bundle_id=app.bundle_id,
        store_app_id=app.store_app_id,
        platform="IOS" if app.platform == tracker_pb2.PLATFORM_IOS else "ANDROID",
        sandbox=app.sandbox,
    )


def _tracker_names(
    tracker: tracker_pb2.Tracker, resources: Resources, app_names: postback_pb2.Names
) -> postback_pb2.Names:
    def name(kind: str, key: str) -> str:
        found = resources[kind].get((key,))
        return str(found.name) if found is not None else ""  # type: ignore[attr-defined]  # each of them has a name

    names = postback_pb2.Names(
        tracker=tracker.name,
        campaign=name("campaign", tracker.campaign_id),
        segment=name("segment", tracker.segment_id),
        network=name("network", tracker.network_id),
    )
    names.MergeFrom(app_names)
    return names
