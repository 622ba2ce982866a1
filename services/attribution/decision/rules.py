"""An app's settings, resolved once per revision: what every decision under that revision reads.

`compile_rules` is called when settings change; `AppRules` gives in constant time what a decision asks for.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from services.attribution.decision.model import DAY_US, Layer, TrackerType, WindowKind
from services.attribution.decision.traffic import TrafficRules

DISABLED = 0
"""A window that matches nothing: no lookback is above 0 and below 0 (B1)."""
UNLIMITED = 1 << 62
RETENTION_DAYS = 400
DEFAULT_MTR_US = DAY_US
DEFAULT_LATE_WINDOW_US = DAY_US

BUILT_IN_WINDOWS: Mapping[WindowKind, int] = {
    WindowKind.CLICK_DEVICE: 30 * DAY_US,
    WindowKind.CLICK_EQUALIZER: DISABLED,
    WindowKind.CLICK_MODELED: 7 * DAY_US,
    WindowKind.CLICK_IP: 7 * DAY_US,
    WindowKind.IMPRESSION_DEVICE: DAY_US,
    WindowKind.IMPRESSION_MODELED: DAY_US,
    WindowKind.IMPRESSION_IP: DAY_US,
    WindowKind.EVENT_ASSOCIATION: UNLIMITED,
    WindowKind.POST_ENGAGEMENT: 14 * DAY_US,
    WindowKind.POST_VIEW: DISABLED,
}
"""B2, and for claims B4."""
_CLAIM_WINDOWS = (WindowKind.POST_ENGAGEMENT, WindowKind.POST_VIEW)

Waterfall = tuple[frozenset[WindowKind], ...]

WATERFALL: Waterfall = (
    frozenset({WindowKind.CLICK_DEVICE, WindowKind.CLICK_EQUALIZER, WindowKind.POST_ENGAGEMENT}),
    frozenset({WindowKind.CLICK_MODELED}),
    frozenset({WindowKind.CLICK_IP}),
    frozenset({WindowKind.IMPRESSION_DEVICE, WindowKind.POST_VIEW}),
    frozenset({WindowKind.IMPRESSION_MODELED}),
    frozenset({WindowKind.IMPRESSION_IP}),
)
"""C1: a level is the set of windows whose candidates compete on it; level 1 is the first."""


class Platform(StrEnum):
    IOS = "IOS"
    ANDROID = "ANDROID"

    @property
    def os(self) -> str:
        """Returns its operating system, as user agents name it."""
        return "iOS" if self is Platform.IOS else "Android"


class DeviceAttribution(StrEnum):
    """The choice whether an engagement with a device id may also match by less than that id (A4)."""

    STANDARD = "STANDARD"
    INCLUSIVE = "INCLUSIVE"


class ModeledLevel(StrEnum):
    """The parts that a MODELED match compares (A5): the two coarser levels ignore the user agent."""

    IP_AND_UA = "IP_AND_UA"
    IP_ONLY = "IP_ONLY"
    IP_RANGE = "IP_RANGE"


class GranularDataPolicy(StrEnum):
    """The treatment of a claim whose user asked not to share (E2)."""

    REJECT = "REJECT"
    REDACT = "REDACT"


@dataclass(frozen=True, slots=True, kw_only=True)
class App:
    """An app and its switches. `windows` holds only what is set at this layer. No reprocessing window: None (F2).

    `late_window_us`: so long after its receipt a conversion is decided again for what arrives late; 0 is off (D12).
    `inactivity_window_us`: so long before an engagement its device must not have been active; 0 is off (D13).
    """

    app_id: str
    platform: Platform
    windows: Mapping[WindowKind, int] = field(default_factory=dict)
    device_attribution: DeviceAttribution = DeviceAttribution.STANDARD
    modeled_level: ModeledLevel = ModeledLevel.IP_AND_UA
    omit_os_minor: bool = False
    allow_reengagement_impressions: bool = True
    prioritize_completed_view: bool = False
    limit_ad_tracking_fallback: bool = False
    install_reprocessing_window_us: int | None = None
    late_window_us: int = DEFAULT_LATE_WINDOW_US
    inactivity_window_us: int = 0
    retention_days: int = RETENTION_DAYS
    waterfall: Waterfall = WATERFALL


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A network as the app uses it. `late_pings_us`: so long after a conversion its pings may still win it (D12)."""

    network_id: str
    self_attributing: bool = False
    supports_impressions: bool = True
    granular_data_policy: GranularDataPolicy = GranularDataPolicy.REJECT
    windows: Mapping[WindowKind, int] = field(default_factory=dict)
    late_pings_us: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracker:
    """A tracker of the app. `windows` may hold POST_ENGAGEMENT and POST_VIEW (B4). No limit of conversions: 0 (D5).

    Without rules on its traffic: None.
    """

    tracker_id: str
    network_id: str
    type: TrackerType
    campaign: str = ""
    segment: str = ""
    events: frozenset[str] = frozenset()
    windows: Mapping[WindowKind, int] = field(default_factory=dict)
    live: bool = True
    default_tracker: bool = False
    max_conversions_per_engagement: int = 0
    create_time_us: int = 0
    traffic_rules: TrafficRules | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EventDefinition:
    """The way in which an event reengages. An MTR of 0 is off (D3)."""

    event_name: str
    mtr_us: int = DEFAULT_MTR_US
    reengagement_period_us: int = UNLIMITED


class Window(NamedTuple):
    """A resolved window and the layer its value came from (B3)."""

    us: int
    layer: Layer


class TrackerRules(NamedTuple):
    """A tracker with its network, and every window resolved; `windows` is indexed by WindowKind."""

    tracker: Tracker
    network: Network
    windows: tuple[Window, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimTrackers:
    """The live trackers of one network and type that select one event, as E3 asks for them.

    By name, else the one for all the rest. For an install the event is "", and all trackers of the type count.
    """

    by_name: tuple[TrackerRules, ...]
    otherwise: TrackerRules


@dataclass(frozen=True, slots=True, kw_only=True)
class AppRules:
    """The settings of one app, as far as decisions on its conversions need them. Made by `compile_rules`.

    They are the same at all revisions from `since_revision` to `revision`, and may be so at earlier ones.

    `levels` is indexed by WindowKind: the level a candidate judged by that window competes on (C1). `self_attributing`
    are the networks with live trackers that answer claim requests. `lifts_clicks`: a tracker has an equalizer window.
    `limited_trackers` are those whose engagements can win only so often (D5).
    """

    revision: int
    since_revision: int = field(compare=False)
    app: App
    trackers: Mapping[str, TrackerRules]
    events: Mapping[str, EventDefinition]
    reengaging_events: frozenset[str]
    claim_trackers: Mapping[tuple[str, TrackerType, str], ClaimTrackers]
    self_attributing: tuple[str, ...]
    levels: tuple[int, ...]
    lifts_clicks: bool
    limited_trackers: frozenset[str]

    def mtr_us(self, event_name: str) -> int:
        """Returns the MTR (D3); an event nobody defined has the default."""
        definition = self.events.get(event_name)
        return DEFAULT_MTR_US if definition is None else definition.mtr_us

    def reengagement_period_us(self, event_name: str) -> int:
        """Returns the period (D6); an event nobody defined, and a reprocessed install, have no end."""
        definition = self.events.get(event_name)
        return UNLIMITED if definition is None else definition.reengagement_period_us

    def tracker_for_claim(
        self, network_id: str, campaign_name: str, needed: TrackerType, event_name: str
    ) -> TrackerRules | None:
        """Returns the tracker that a claim is bucketed to (E3), None when the network has no live one that fits.

        `event_name` is what the tracker must select, "" for an install. OURS: of several ids that the campaign name
        contains the longest is meant.
        """
        trackers = self.claim_trackers.get((network_id, needed, event_name))
        if trackers is None:
            return None
        named = (rules for rules in trackers.by_name if _is_word_of(campaign_name, rules.tracker.tracker_id))
        return next(named, trackers.otherwise)


def compile_rules(
    *,
    app: App,
    networks: Iterable[Network],
    trackers: Iterable[Tracker],
    events: Iterable[EventDefinition],
    revision: int = 0,
) -> AppRules:
    """Resolves an app's settings. `trackers` are those of this app, archived ones included; each names a given network.

    Raises ValueError when the app's waterfall is not an order of all levels' windows.
    """
    level_of = {kind: level for level, kinds in enumerate(app.waterfall, start=1) for kind in kinds}
    if level_of.keys() != frozenset().union(*WATERFALL):
        raise ValueError(f"the waterfall of app {app.app_id} does not hold each window of the built-in one")
    by_network = {network.network_id: (network, _windows_below(app, network)) for network in networks}
    compiled = {tracker.tracker_id: _compile_tracker(*by_network[tracker.network_id], tracker) for tracker in trackers}
    live = [rules for rules in compiled.values() if rules.tracker.live]
    groups: dict[tuple[str, TrackerType, str], list[TrackerRules]] = {}
    for rules in live:
        for event_name in ("", *rules.tracker.events):
            groups.setdefault((rules.tracker.network_id, rules.tracker.type, event_name), []).append(rules)
    return AppRules(
        revision=revision,
        since_revision=revision,
        app=app,
        trackers=compiled,
        events={event.event_name: event for event in events},
        reengaging_events=frozenset(
            name for rules in live if rules.tracker.type is TrackerType.REENGAGEMENT for name in rules.tracker.events
        ),
        claim_trackers={key: _claim_trackers(group) for key, group in groups.items()},
        self_attributing=tuple(sorted({r.network.network_id for r in live if r.network.self_attributing})),
        levels=tuple(level_of.get(kind, 0) for kind in WindowKind),
        limited_trackers=frozenset(
            tracker_id for tracker_id, each in compiled.items() if each.tracker.max_conversions_per_engagement
        ),
        lifts_clicks=any(rules.windows[WindowKind.CLICK_EQUALIZER].us for rules in live),
    )


def _compile_tracker(network: Network, below: tuple[Window, ...], tracker: Tracker) -> TrackerRules:
    """Applies B3. A SAN's tracker sets only the windows of its claims (B4). Trackers that set none share one tuple."""
    if not tracker.windows:
        return TrackerRules(tracker, network, below)
    windows = list(below)
    for kind, us in tracker.windows.items():
        if kind in _CLAIM_WINDOWS or not network.self_attributing:
            windows[kind] = Window(us, Layer.TRACKER)
    return TrackerRules(tracker, network, tuple(windows))


def _windows_below(app: App, network: Network) -> tuple[Window, ...]:
    """Applies B3 below the tracker, for every WindowKind: no layer here sets the windows of claims (B4)."""

    def window(kind: WindowKind) -> Window:
        if kind not in _CLAIM_WINDOWS:
            if kind in network.windows:
                return Window(network.windows[kind], Layer.NETWORK)
            if kind in app.windows:
                return Window(app.windows[kind], Layer.APP)
        return Window(BUILT_IN_WINDOWS[kind], Layer.BUILT_IN)

    return tuple(window(kind) for kind in WindowKind)


def _claim_trackers(group: list[TrackerRules]) -> ClaimTrackers:
    """Applies E3: the default tracker, else the most recently set up (OURS: at equal times the higher id)."""
    return ClaimTrackers(
        by_name=tuple(sorted(group, key=lambda rules: (-len(rules.tracker.tracker_id), rules.tracker.tracker_id))),
        otherwise=max(
            group,
            key=lambda rules: (rules.tracker.default_tracker, rules.tracker.create_time_us, rules.tracker.tracker_id),
        ),
    )


def _is_word_of(text: str, tracker_id: str) -> bool:
    """Returns whether a text contains an id as a whole word: with no letter or digit before or behind it (E3)."""
    at = text.find(tracker_id)
    while at >= 0:
        end = at + len(tracker_id)
        if not text[at - 1 : at].isalnum() and not text[end : end + 1].isalnum():
            return True
        at = text.find(tracker_id, at + 1)
    return False
