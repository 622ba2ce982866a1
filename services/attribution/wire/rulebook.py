"""Builds the rules of every app from tracker's settings, once per revision: what did not change is not made again."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from libs.domain.snapshots import Resources
from reengage.postback.v1 import conversion_pb2
from reengage.tracker.v1 import (
    app_pb2,
    event_definition_pb2,
    network_pb2,
    network_settings_pb2,
    san_account_pb2,
    status_pb2,
    tracker_pb2,
    windows_pb2,
)
from services.attribution.decision.model import DeviceType, TrackerType, WindowKind
from services.attribution.decision.rules import (
    DEFAULT_LATE_WINDOW_US,
    DEFAULT_MTR_US,
    DISABLED,
    RETENTION_DAYS,
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
from services.attribution.decision.traffic import TrafficRules

_DEVICE_TYPES = {
    tracker_pb2.TrafficRules.DEVICE_TYPE_PHONE: DeviceType.PHONE,
    tracker_pb2.TrafficRules.DEVICE_TYPE_TABLET: DeviceType.TABLET,
    tracker_pb2.TrafficRules.DEVICE_TYPE_TV: DeviceType.TV,
    tracker_pb2.TrafficRules.DEVICE_TYPE_DESKTOP: DeviceType.DESKTOP,
}
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
class Rulebook:
    """The rules of every app at one settings revision, what they were made of, and names, by tracker and by app.

    `san_accounts` are the live accounts with self-attributing networks, with the revision of each.
    """

    revision: int
    apps: Mapping[str, AppRules]
    sources: "Mapping[str, Sources]"
    tracker_names: Mapping[str, conversion_pb2.Names]
    app_names: Mapping[str, conversion_pb2.Names]
    san_accounts: Mapping[str, int]


class TrackerNames(Mapping[str, conversion_pb2.Names]):
    """The names of each tracker and of all around it; put together when asked, as most trackers never are."""

    def __init__(self, resources: Resources, app_names: Mapping[str, conversion_pb2.Names]) -> None:
        # Copies: `resources` changes with the next revision.
        self._trackers = cast("dict[tuple[str, ...], tracker_pb2.Tracker]", dict(resources["tracker"]))
        self._named: dict[str, dict[tuple[str, ...], Any]] = {
            kind: dict(resources[kind]) for kind in ("campaign", "segment", "network", "agency")
        }
        self._app_names = app_names

    def __getitem__(self, tracker_id: str) -> conversion_pb2.Names:
        tracker = self._trackers[tracker_id,]
        names = conversion_pb2.Names(
            tracker=tracker.name,
            campaign=self._name("campaign", tracker.campaign_id),
            segment=self._name("segment", tracker.segment_id),
            network=self._name("network", tracker.network_id),
            agency=self._name("agency", tracker.agency_id),
            custom_parameters=tracker.custom_parameters,
        )
        names.MergeFrom(self._app_names[tracker.app_id])
        return names

    def __iter__(self) -> Iterator[str]:
        return (tracker_id for (tracker_id,) in self._trackers)

    def __len__(self) -> int:
        return len(self._trackers)

    def _name(self, kind: str, key: str) -> str:
        found = self._named[kind].get((key,))
        return found.name if found is not None else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """The resources that an app's rules are made of. Comparing is fast: a message that stays is the same object."""

    app: app_pb2.App
    networks: dict[str, network_pb2.Network]
    network_settings: dict[str, network_settings_pb2.NetworkSettings]
    trackers: dict[str, tracker_pb2.Tracker]
    events: dict[str, event_definition_pb2.EventDefinition]


class RulebookBuilder:
    """A builder of rulebooks, which after a change makes anew only what changed; the `build` of one Follower.

    The rules of an app whose settings are the same are kept, and so is the reading of a tracker that is the same.
    """

    def __init__(self) -> None:
        self._made: dict[str, tuple[Sources, AppRules]] = {}

    def __call__(self, resources: Resources, revision: int) -> Rulebook:
        """Returns the rules of every app, archived ones too: what was accepted before is still decided."""
        self._made = {
            app_id: (sources, compile_sources(sources, revision, self._made.get(app_id)))
            for app_id, sources in _sources(resources).items()
        }
        app_names = {app_id: _app_names(sources.app) for app_id, (sources, _) in self._made.items()}
        return Rulebook(
            revision=revision,
            apps={app_id: rules for app_id, (_, rules) in self._made.items()},
            sources={app_id: sources for app_id, (sources, _) in self._made.items()},
            tracker_names=TrackerNames(resources, app_names),
            app_names=app_names,
            san_accounts={
                account.san_account_id: account.revision
                for account in cast("list[san_account_pb2.SanAccount]", list(resources["san_account"].values()))
                if account.status == status_pb2.STATUS_LIVE
            },
        )


def build_rulebook(resources: Resources, revision: int) -> Rulebook:
    """Returns a rulebook, built once and anew."""
    return RulebookBuilder()(resources, revision)


def _sources(resources: Resources) -> dict[str, Sources]:
    networks = {n.network_id: n for n in cast("list[network_pb2.Network]", list(resources["network"].values()))}
    by_app = {
        app.app_id: Sources(app=app, networks=networks, network_settings={}, trackers={}, events={})
        for app in cast("list[app_pb2.App]", list(resources["app"].values()))
    }
    for settings in cast("list[network_settings_pb2.NetworkSettings]", list(resources["network_settings"].values())):
        by_app[settings.app_id].network_settings[settings.network_id] = settings
    for tracker in cast("list[tracker_pb2.Tracker]", list(resources["tracker"].values())):
        by_app[tracker.app_id].trackers[tracker.tracker_id] = tracker
    for event in cast("list[event_definition_pb2.EventDefinition]", list(resources["event_definition"].values())):
        if event.status == status_pb2.STATUS_LIVE:
            by_app[event.app_id].events[event.event_name] = event
    return by_app


def compile_sources(sources: Sources, revision: int, before: tuple[Sources, AppRules] | None) -> AppRules:
    """Returns the rules of an app. `before` are its sources and rules at an earlier revision; what is equal stays."""
    made_of, rules = before or (None, None)
    if rules is not None and made_of == sources:
        return replace(rules, revision=revision)

    def read(tracker: tracker_pb2.Tracker) -> Tracker:
        if made_of and rules and made_of.trackers.get(tracker.tracker_id) is tracker:
            return rules.trackers[tracker.tracker_id].tracker
        return _tracker(tracker)

    unset = network_settings_pb2.NetworkSettings()
    return compile_rules(
        app=_app(sources.app),
        networks=[
            _network(network, sources.network_settings.get(network_id, unset))
            for network_id, network in sources.networks.items()
        ],
        trackers=[read(tracker) for tracker in sources.trackers.values()],
        events=[_event(event) for event in sources.events.values()],
        revision=revision,
    )


def _windows(windows: windows_pb2.Windows) -> dict[WindowKind, int]:
    """Returns the windows set at one layer, in microseconds."""
    found = {}
    for name, kind in _WINDOWS.items():
        if not windows.HasField(name):  # type: ignore[arg-type]  # all names are fields
            continue
        window: windows_pb2.Window = getattr(windows, name)
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


def _app(app: app_pb2.App) -> App:
    settings = app.settings
    return App(
        app_id=app.app_id,
        platform=_platform(app.platform),
        windows=_windows(settings.windows),
        device_attribution=(
            DeviceAttribution.INCLUSIVE
            if settings.device_attribution == app_pb2.AppSettings.DEVICE_ATTRIBUTION_INCLUSIVE
            else DeviceAttribution.STANDARD
        ),
        modeled_level={
            app_pb2.AppSettings.MODELED_LEVEL_IP_ONLY: ModeledLevel.IP_ONLY,
            app_pb2.AppSettings.MODELED_LEVEL_IP_RANGE: ModeledLevel.IP_RANGE,
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
        inactivity_window_us=settings.inactivity_window.ToMicroseconds(),
        late_window_us=(
            settings.late_window.ToMicroseconds() if settings.HasField("late_window") else DEFAULT_LATE_WINDOW_US
        ),
        retention_days=_retention_days(app),
    )


def _network(network: network_pb2.Network, settings: network_settings_pb2.NetworkSettings) -> Network:
    redacts = settings.granular_data_policy == network_settings_pb2.NetworkSettings.GRANULAR_DATA_POLICY_REDACT
    return Network(
        network_id=network.network_id,
        self_attributing=network.self_attributing,
        supports_impressions=not network.HasField("supports_impressions") or network.supports_impressions,
        granular_data_policy=GranularDataPolicy.REDACT if redacts else GranularDataPolicy.REJECT,
        windows=_windows(settings.windows),
        late_pings_us=settings.late_pings.ToMicroseconds(),
    )


def _tracker(tracker: tracker_pb2.Tracker) -> Tracker:
    windows = _windows(tracker.windows) if tracker.HasField("windows") else {}
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
        live=tracker.status == status_pb2.STATUS_LIVE,
        default_tracker=tracker.default_tracker,
        max_conversions_per_engagement=tracker.max_conversions_per_engagement,
        create_time_us=tracker.create_time.ToMicroseconds(),
        traffic_rules=_traffic_rules(tracker.traffic_rules) if tracker.HasField("traffic_rules") else None,
    )


def _traffic_rules(rules: tracker_pb2.TrafficRules) -> TrafficRules:
    return TrafficRules(
        start_us=rules.start_time.ToMicroseconds() if rules.HasField("start_time") else None,
        end_us=rules.end_time.ToMicroseconds() if rules.HasField("end_time") else None,
        operating_systems=frozenset(_platform(number).os for number in rules.allowed_os),
        min_os_version=_version(rules.min_os_version),
        max_os_version=_version(rules.max_os_version),
        device_types=frozenset(_DEVICE_TYPES[number] for number in rules.allowed_device_types),
        allowed_countries=frozenset(rules.allowed_countries),
        blocked_countries=frozenset(rules.blocked_countries),
    )


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")) if text else ()


def _platform(number: app_pb2.Platform.ValueType) -> Platform:
    return Platform.IOS if number == app_pb2.PLATFORM_IOS else Platform.ANDROID


def _event(event: event_definition_pb2.EventDefinition) -> EventDefinition:
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


def _app_names(app: app_pb2.App) -> conversion_pb2.Names:
    return conversion_pb2.Names(
        bundle_id=app.bundle_id,
        store_app_id=app.store_app_id,
        platform=app.platform,
        sandbox=app.sandbox,
        retention_days=_retention_days(app),
    )


def _retention_days(app: app_pb2.App) -> int:
    settings = app.settings
    return settings.retention.ToTimedelta().days if settings.HasField("retention") else RETENTION_DAYS
