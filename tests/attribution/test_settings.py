"""The effect of each setting on a decision, from tracker's message to the verdict.

The rules themselves are told elsewhere: here a setting is changed, and the same conversion comes out differently.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from libs.domain.snapshots import Resources
from reengage.tracker.v1.app_pb2 import PLATFORM_ANDROID, PLATFORM_IOS, App, AppSettings
from reengage.tracker.v1.event_definition_pb2 import EventDefinition
from reengage.tracker.v1.network_pb2 import Network
from reengage.tracker.v1.network_settings_pb2 import NetworkSettings
from reengage.tracker.v1.status_pb2 import STATUS_ARCHIVED, STATUS_LIVE
from reengage.tracker.v1.tracker_pb2 import Tracker, TrafficRules
from reengage.tracker.v1.windows_pb2 import Window, Windows
from services.attribution.decision.decide import decide
from services.attribution.decision.history import Attribution, DeviceHistory
from services.attribution.decision.model import (
    DAY_US,
    HOUR_US,
    MINUTE_US,
    SECOND_US,
    AttributionType,
    Claim,
    Conversion,
    ConversionKind,
    Decision,
    Engagement,
    EngagementKind,
)
from services.attribution.decision.user_agents import parse_user_agent
from services.attribution.wire.rulebook import build_rulebook

NOW = 1_000 * DAY_US
KEY, OTHER_KEY = b"device", b"another"
HERE, NEAR_HERE = "203.0.113.7", "203.0.113.8"
IPHONE = parse_user_agent("Mozilla/5.0 (iPhone; CPU iPhone OS 17_4 like Mac OS X)")
OLDER_IPHONE = parse_user_agent("Mozilla/5.0 (iPhone; CPU iPhone OS 17_1 like Mac OS X)")
OFF = Window(disabled=True)

SETTINGS: tuple[Message, ...] = (
    App(app_id="app", platform=PLATFORM_IOS),
    Network(network_id="net"),
    Network(network_id="x", self_attributing=True),
    NetworkSettings(app_id="app", network_id="net"),
    NetworkSettings(app_id="app", network_id="x"),
    EventDefinition(app_id="app", event_name="Buy", status=STATUS_LIVE),
    Tracker(
        tracker_id="re", app_id="app", network_id="net", type=Tracker.TYPE_REENGAGEMENT, events=["Buy"],
        status=STATUS_LIVE, campaign_id="Spring", segment_id="A",
    ),
    *(
        Tracker(
            tracker_id=tracker_id, app_id="app", network_id="x", type=Tracker.TYPE_REENGAGEMENT, events=["Buy"],
            status=STATUS_LIVE,
        )
        for tracker_id in ("x1", "x2")
    ),
)  # fmt: skip
_KEYS: dict[type[Message], tuple[str, tuple[str, ...]]] = {
    App: ("app", ("app_id",)),
    Network: ("network", ("network_id",)),
    NetworkSettings: ("network_settings", ("app_id", "network_id")),
    EventDefinition: ("event_definition", ("app_id", "event_name")),
    Tracker: ("tracker", ("tracker_id",)),
}


class Told(NamedTuple):
    """A conversion of a device, and all that may have led to it."""

    conversion: Conversion
    engagements: tuple[Engagement, ...] = ()
    claims: tuple[Claim, ...] = ()
    history: DeviceHistory = DeviceHistory()


def click(engagement_id: str = "k", *, age_us: int = HOUR_US, **fields: Any) -> Engagement:
    given: dict[str, Any] = {
        "kind": EngagementKind.CLICK,
        "tracker_id": "re",
        "device_keys": (KEY,),
        "receive_time_us": NOW - age_us,
    }
    return Engagement(engagement_id=engagement_id, time_us=NOW - age_us, **given | fields)


def view(engagement_id: str = "v", **fields: Any) -> Engagement:
    return click(engagement_id, kind=EngagementKind.IMPRESSION, **fields)


def claim(*, age_us: int = HOUR_US, **fields: Any) -> Claim:
    return Claim(**{"network_id": "x", "kind": EngagementKind.CLICK, "time_us": NOW - age_us, **fields})


def event(
    *engagements: Engagement, claims: Iterable[Claim] = (), since: DeviceHistory | None = None, **fields: Any
) -> Told:
    given: dict[str, Any] = {"kind": ConversionKind.EVENT, "event_name": "Buy", "device_keys": frozenset((KEY,))}
    conversion = Conversion(conversion_id="c", time_us=NOW, receive_time_us=NOW, **given | fields)
    return Told(conversion, engagements, tuple(claims), since or DeviceHistory())


def install(*engagements: Engagement, **more: Any) -> Told:
    return event(*engagements, kind=ConversionKind.INSTALL, event_name="", **more)


def credited(age_us: int, event_name: str = "", kind: ConversionKind = ConversionKind.EVENT) -> DeviceHistory:
    """Returns the history of a device that a tracker reengaged, or whose install it won, so long ago."""
    source = Attribution(
        NOW - age_us, NOW - age_us, "before", kind, AttributionType.REENGAGEMENT, event_name, "re", "net", "k0"
    )
    return DeviceHistory(attributions=(source,))


def installed(age_us: int) -> DeviceHistory:
    return credited(age_us, kind=ConversionKind.INSTALL)


def decided(told: Told, *changed: Message) -> Decision:
    """Decides a conversion under settings of which some are changed."""
    held: Resources = {
        "app": {}, "network": {}, "network_settings": {}, "event_definition": {}, "tracker": {},
        "campaign": {}, "segment": {}, "agency": {}, "san_account": {},
    }  # fmt: skip
    for message in (*SETTINGS, *changed):
        kind, names = _KEYS[type(message)]
        key = tuple(getattr(message, name) for name in names)
        merged = type(message)()
        merged.CopyFrom(held[kind].get(key, merged))
        merged.MergeFrom(message)
        held[kind][key] = merged
    rules = build_rulebook(held, 1).apps["app"]
    return decide(
        told.conversion, told.history, rules, candidates=told.engagements, wins={"spent": 1}, claims=told.claims
    )


def said(told: Told, *changed: Message) -> str:
    """Returns what is said of every candidate, or of the conversion where there is none."""
    decision = decided(told, *changed)
    if not decision.candidates:
        return " ".join(filter(None, (decision.outcome, decision.reason, decision.tracker_id)))
    return ", ".join(
        f"{each.engagement_id}: {each.verdict} {each.matched_by} {each.level}"
        + (f" {each.traffic_rule}" if each.traffic_rule else "")
        + (f" of {each.tracker_id}" if each.matched_by == "CLAIM" else "")
        for each in decision.candidates
    )


def of_app(**settings: Any) -> App:
    return App(app_id="app", settings=AppSettings(**settings))


def of_event(**fields: Any) -> EventDefinition:
    return EventDefinition(app_id="app", event_name="Buy", **fields)


def of_network(**fields: Any) -> NetworkSettings:
    return NetworkSettings(app_id="app", network_id="net", **fields)


def of_tracker(tracker_id: str = "re", **fields: Any) -> Tracker:
    return Tracker(tracker_id=tracker_id, **fields)


def ruled(**rules: Any) -> Tracker:
    return of_tracker(traffic_rules=TrafficRules(**rules))


def lasting(us: int) -> Duration:
    return Duration(seconds=us // SECOND_US)


def by_address(*, age_us: int = HOUR_US, **fields: Any) -> Engagement:
    return click(age_us=age_us, **{"device_keys": (), "ip": HERE, **fields})


MODELED = event(by_address(user_agent=IPHONE), ip=HERE, user_agent=IPHONE)
BY_ADDRESS = event(by_address(), ip=HERE)
WINDOWS = {
    "click_device": (event(click()), "k: WON DEVICE_ID 1", "k: WINDOW_DISABLED DEVICE_ID 1"),
    "click_modeled": (MODELED, "k: WON MODELED 2", "k: WINDOW_DISABLED MODELED 2"),
    "click_ip": (BY_ADDRESS, "k: WON IP 3", "k: WINDOW_DISABLED IP 3"),
    "impression_device": (event(view()), "v: WON DEVICE_ID 4", "v: WINDOW_DISABLED DEVICE_ID 4"),
    "impression_modeled": (
        event(view(device_keys=(), ip=HERE, user_agent=IPHONE), ip=HERE, user_agent=IPHONE),
        "v: WON MODELED 5",
        "v: WINDOW_DISABLED MODELED 5",
    ),
    "impression_ip": (
        event(view(device_keys=(), ip=HERE), ip=HERE),
        "v: WON IP 6",
        "v: WINDOW_DISABLED IP 6",
    ),
}


@pytest.mark.parametrize("name", WINDOWS)
@pytest.mark.parametrize(
    "layer",
    [
        pytest.param(lambda windows: of_app(windows=windows), id="app"),
        pytest.param(lambda windows: of_network(windows=windows), id="network"),
        pytest.param(lambda windows: of_tracker(windows=windows), id="tracker"),
    ],
)
def test_a_window_that_is_disabled_matches_nothing(layer: Any, name: str) -> None:
    """B2, B3: each at every layer."""
    told, without, with_it = WINDOWS[name]
    assert (said(told), said(told, layer(Windows(**{name: OFF})))) == (without, with_it)


@pytest.mark.parametrize(
    ("told", "without", "changed", "with_it"),
    [
        pytest.param(
            event(click(age_us=2 * HOUR_US)),
            "k: WON DEVICE_ID 1",
            of_app(windows=Windows(click_device=Window(duration=lasting(HOUR_US)))),
            "k: OUTSIDE_WINDOW DEVICE_ID 1",
            id="windows.click_device.duration",
        ),
        pytest.param(
            MODELED,
            "k: WON MODELED 2",
            of_app(windows=Windows(click_equalizer=Window(duration=lasting(2 * HOUR_US)))),
            "k: WON MODELED 1",
            id="windows.click_equalizer",
        ),
        pytest.param(
            event(event_name="View", since=credited(2 * HOUR_US)),
            "CREDITED EVENT_NOT_SELECTED re",
            of_app(windows=Windows(event_association=Window(duration=lasting(HOUR_US)))),
            "UNATTRIBUTED EVENT_NOT_SELECTED",
            id="windows.event_association",
        ),
        pytest.param(
            event(by_address(device_keys=(OTHER_KEY,)), ip=HERE),
            "k: MATCH_KIND_NOT_ALLOWED IP 3",
            of_app(device_attribution=AppSettings.DEVICE_ATTRIBUTION_INCLUSIVE),
            "k: WON IP 3",
            id="device_attribution",
        ),
        pytest.param(
            BY_ADDRESS,
            "k: WON IP 3",
            of_app(modeled_level=AppSettings.MODELED_LEVEL_IP_ONLY),
            "k: WON MODELED 2",
            id="modeled_level=IP_ONLY",
        ),
        pytest.param(
            event(by_address(ip=NEAR_HERE), ip=HERE),
            "UNATTRIBUTED NO_CANDIDATE",
            of_app(modeled_level=AppSettings.MODELED_LEVEL_IP_RANGE),
            "k: WON MODELED 2",
            id="modeled_level=IP_RANGE",
        ),
        pytest.param(
            event(by_address(user_agent=OLDER_IPHONE), ip=HERE, user_agent=IPHONE),
            "k: WON IP 3",
            of_app(omit_os_minor=True),
            "k: WON MODELED 2",
            id="omit_os_minor",
        ),
        pytest.param(
            event(view()),
            "v: WON DEVICE_ID 4",
            of_app(allow_reengagement_impressions=False),
            "v: IMPRESSIONS_NOT_ALLOWED DEVICE_ID 4",
            id="allow_reengagement_impressions",
        ),
        pytest.param(
            event(view("seen", age_us=2 * HOUR_US, completed_view=True), view("begun")),
            "begun: WON DEVICE_ID 4, seen: LOST_TO_MORE_RECENT DEVICE_ID 4",
            of_app(prioritize_completed_view=True),
            "begun: LOST_TO_COMPLETED_VIEW DEVICE_ID 4, seen: WON DEVICE_ID 4",
            id="prioritize_completed_view",
        ),
        pytest.param(
            event(by_address(device_keys=(OTHER_KEY,)), ip=HERE, limit_ad_tracking=True),
            "k: MATCH_KIND_NOT_ALLOWED IP 3",
            of_app(limit_ad_tracking_fallback=True),
            "k: WON IP 3",
            id="limit_ad_tracking_fallback",
        ),
        pytest.param(
            install(click(), since=installed(2 * DAY_US)),
            "DUPLICATE DUPLICATE_INSTALL",
            of_app(install_reprocessing_window=lasting(DAY_US)),
            "k: WON DEVICE_ID 1",
            id="install_reprocessing_window",
        ),
        pytest.param(
            event(click(receive_time_us=NOW + MINUTE_US)),
            "k: WON DEVICE_ID 1",
            of_app(late_window=Duration()),
            "UNATTRIBUTED NO_CANDIDATE",
            id="late_window",
        ),
        pytest.param(
            event(click(), since=installed(2 * DAY_US)),
            "k: WON DEVICE_ID 1",
            of_app(inactivity_window=lasting(3 * DAY_US)),
            "k: DEVICE_ACTIVE DEVICE_ID 1",
            id="inactivity_window",
        ),
    ],
)
def test_settings_of_an_app(told: Told, without: str, changed: Message, with_it: str) -> None:
    assert (said(told), said(told, changed)) == (without, with_it)


def test_a_window_may_have_no_limit_where_the_app_sets_one() -> None:
    told = event(event_name="View", since=credited(2 * HOUR_US))
    ends = of_app(windows=Windows(event_association=Window(duration=lasting(HOUR_US))))
    unlimited = of_tracker(windows=Windows(event_association=Window(unlimited=True)))
    assert (said(told, ends), said(told, ends, unlimited)) == (
        "UNATTRIBUTED EVENT_NOT_SELECTED",
        "CREDITED EVENT_NOT_SELECTED re",
    )


@pytest.mark.parametrize(("platform", "verdict"), [(PLATFORM_IOS, "WON"), (PLATFORM_ANDROID, "MATCH_KIND_NOT_ALLOWED")])
def test_limit_ad_tracking_falls_back_on_ios_alone(platform: Any, verdict: str) -> None:
    """A4."""
    told = event(by_address(device_keys=(OTHER_KEY,)), ip=HERE, limit_ad_tracking=True)
    assert (
        said(told, of_app(limit_ad_tracking_fallback=True), App(app_id="app", platform=platform))
        == f"k: {verdict} IP 3"
    )


PING = event(click(is_ping=True, receive_time_us=NOW + MINUTE_US))


@pytest.mark.parametrize(
    ("told", "without", "changed", "with_it"),
    [
        pytest.param(
            event(view()),
            "v: WON DEVICE_ID 4",
            Network(network_id="net", supports_impressions=False),
            "v: IMPRESSIONS_NOT_ALLOWED DEVICE_ID 4",
            id="supports_impressions",
        ),
        pytest.param(
            event(claims=[claim(granular_data_allowed=False)]),
            "claim:x: GRANULAR_DATA_NOT_ALLOWED CLAIM 1 of x2",
            NetworkSettings(
                app_id="app", network_id="x", granular_data_policy=NetworkSettings.GRANULAR_DATA_POLICY_REDACT
            ),
            "claim:x: WON CLAIM 1 of x2",
            id="granular_data_policy",
        ),
        pytest.param(
            PING,
            "k: REPORTED_LATE DEVICE_ID 1",
            of_network(late_pings=lasting(HOUR_US)),
            "k: WON DEVICE_ID 1",
            id="late_pings",
        ),
    ],
)
def test_settings_of_a_network(told: Told, without: str, changed: Message, with_it: str) -> None:
    assert (said(told), said(told, changed)) == (without, with_it)


def test_a_tracker_of_a_self_attributing_network_overrides_no_window() -> None:
    """B3."""
    told, off = event(click()), of_tracker(windows=Windows(click_device=OFF))
    assert said(told, off) == "k: WINDOW_DISABLED DEVICE_ID 1"
    assert said(told, off, Network(network_id="net", self_attributing=True)) == "k: WON DEVICE_ID 1"


ON_IPHONE = event(click(user_agent=IPHONE, country="DE"))


@pytest.mark.parametrize(
    ("told", "without", "changed", "with_it"),
    [
        pytest.param(
            event(click()),
            "k: WON DEVICE_ID 1",
            of_tracker(type=Tracker.TYPE_ACQUISITION),
            "k: WRONG_TRACKER_TYPE DEVICE_ID 1",
            id="type",
        ),
        pytest.param(
            event(click(), event_name="View"),
            "UNATTRIBUTED EVENT_NOT_SELECTED",
            of_tracker(events=["View"]),
            "k: WON DEVICE_ID 1",
            id="events",
        ),
        pytest.param(
            event(click()),
            "k: WON DEVICE_ID 1",
            of_tracker(status=STATUS_ARCHIVED),
            "k: TRACKER_ARCHIVED DEVICE_ID 1",
            id="status",
        ),
        pytest.param(
            event(claims=[claim(age_us=8 * DAY_US)]),
            "claim:x: WON CLAIM 1 of x2",
            of_tracker("x2", post_engagement_window=lasting(7 * DAY_US)),
            "claim:x: OUTSIDE_WINDOW CLAIM 1 of x2",
            id="post_engagement_window",
        ),
        pytest.param(
            event(claims=[claim(kind=EngagementKind.IMPRESSION)]),
            "claim:x: VIEW_WINDOW_ZERO CLAIM 4 of x2",
            of_tracker("x2", post_view_window=lasting(DAY_US)),
            "claim:x: WON CLAIM 4 of x2",
            id="post_view_window",
        ),
        pytest.param(
            event(claims=[claim()]),
            "claim:x: WON CLAIM 1 of x2",
            of_tracker("x1", default_tracker=True),
            "claim:x: WON CLAIM 1 of x1",
            id="default_tracker",
        ),
        pytest.param(
            event(claims=[claim()]),
            "claim:x: WON CLAIM 1 of x2",
            of_tracker("x1", create_time=Timestamp(seconds=5)),
            "claim:x: WON CLAIM 1 of x1",
            id="create_time",
        ),
        pytest.param(
            event(claims=[claim(campaign_name="spring x1")]),
            "claim:x: WON CLAIM 1 of x1",
            of_tracker("x1", status=STATUS_ARCHIVED),
            "claim:x: WON CLAIM 1 of x2",
            id="tracker_id in the name of a campaign",
        ),
        pytest.param(
            event(click("spent")),
            "spent: WON DEVICE_ID 1",
            of_tracker(max_conversions_per_engagement=1),
            "spent: ENGAGEMENT_SPENT DEVICE_ID 1",
            id="max_conversions_per_engagement",
        ),
        *(
            pytest.param(
                ON_IPHONE, "k: WON DEVICE_ID 1", ruled(**rules), f"k: TRAFFIC_RULE DEVICE_ID 1 {rule}", id=name
            )
            for name, rules, rule in (
                ("start_time", {"start_time": Timestamp(seconds=NOW // SECOND_US)}, "DATES"),
                ("end_time", {"end_time": Timestamp(seconds=1)}, "DATES"),
                ("min_os_version", {"min_os_version": "17.5"}, "OS_VERSION"),
                ("max_os_version", {"max_os_version": "16"}, "OS_VERSION"),
                ("allowed_os", {"allowed_os": [PLATFORM_ANDROID]}, "OS"),
                ("allowed_device_types", {"allowed_device_types": [TrafficRules.DEVICE_TYPE_TABLET]}, "DEVICE_TYPE"),
                ("allowed_countries", {"allowed_countries": ["FR"]}, "COUNTRY"),
                ("blocked_countries", {"blocked_countries": ["DE"]}, "COUNTRY"),
            )
        ),
    ],
)
def test_settings_of_a_tracker(told: Told, without: str, changed: Message, with_it: str) -> None:
    assert (said(told), said(told, changed)) == (without, with_it)


@pytest.mark.parametrize(
    ("told", "without", "changed", "with_it"),
    [
        pytest.param(
            event(click(), since=installed(2 * HOUR_US)),
            "CREDITED MTR_NOT_MET re",
            of_event(min_time_to_reengagement=lasting(HOUR_US)),
            "k: WON DEVICE_ID 1",
            id="min_time_to_reengagement",
        ),
        pytest.param(
            event(event_name="View", since=credited(2 * HOUR_US, "Buy")),
            "CREDITED EVENT_NOT_SELECTED re",
            of_event(reengagement_period=lasting(HOUR_US)),
            "UNATTRIBUTED EVENT_NOT_SELECTED",
            id="reengagement_period",
        ),
    ],
)
def test_settings_of_an_event(told: Told, without: str, changed: Message, with_it: str) -> None:
    assert (said(told), said(told, changed)) == (without, with_it)


def test_an_archived_event_has_the_built_in_settings() -> None:
    told, off = event(click(), since=installed(2 * HOUR_US)), of_event(min_time_to_reengagement=Duration())
    assert said(told, off) == "k: WON DEVICE_ID 1"
    assert said(told, off, of_event(status=STATUS_ARCHIVED)) == "CREDITED MTR_NOT_MET re"


def test_a_decision_names_campaign_and_segment_of_its_tracker() -> None:
    decision = decided(event(click()))
    assert (decision.network_id, decision.campaign, decision.segment) == ("net", "Spring", "A")
