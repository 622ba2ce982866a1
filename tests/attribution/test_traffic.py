"""Traffic rules of a tracker: which of them an engagement breaks, from the user agent on."""

from typing import Any

import pytest

from reengage.tracker.v1.app_pb2 import PLATFORM_IOS, App
from reengage.tracker.v1.network_pb2 import Network
from reengage.tracker.v1.tracker_pb2 import Tracker
from reengage.tracker.v1.tracker_pb2 import TrafficRules as Message
from services.attribution.decision.model import DeviceType, TrafficRule
from services.attribution.decision.traffic import TrafficRules, broken_rule
from services.attribution.decision.user_agents import parse_user_agent
from services.attribution.wire.rulebook import build_rulebook

WEBKIT = "AppleWebKit/605.1.15 (KHTML, like Gecko)"
IPHONE = "Mozilla/5.0 (iPhone; CPU iPhone OS {} like Mac OS X)"
DATES, OS, OS_VERSION, DEVICE_TYPE, COUNTRY = TrafficRule


@pytest.mark.parametrize(
    ("rules", "time_us", "user_agent", "country", "broken"),
    [
        pytest.param({}, 0, "", "", None, id="no rules"),
        pytest.param({"start_us": 10}, 9, "", "", DATES, id="before the start"),
        pytest.param({"start_us": 10}, 10, "", "", None, id="at the start"),
        pytest.param({"end_us": 10}, 9, "", "", None, id="before the end"),
        pytest.param({"end_us": 10}, 10, "", "", DATES, id="at the end"),
        pytest.param({"operating_systems": {"iOS"}}, 0, IPHONE.format("17_4"), "", None, id="the OS"),
        pytest.param({"operating_systems": {"iOS"}}, 0, "Mozilla/5.0 (Linux; Android 14; Pixel 8)", "", OS, id="other"),
        pytest.param({"operating_systems": {"iOS"}}, 0, "", "", OS, id="an OS that is not known"),
        pytest.param({"min_os_version": (17,)}, 0, IPHONE.format("16_9"), "", OS_VERSION, id="lower"),
        pytest.param({"min_os_version": (17,)}, 0, IPHONE.format("17_0"), "", None, id="the lowest"),
        pytest.param({"min_os_version": (17, 4)}, 0, IPHONE.format("17_3"), "", OS_VERSION, id="a lower minor"),
        pytest.param({"min_os_version": (17, 4, 1)}, 0, IPHONE.format("17_4"), "", None, id="no patch is known"),
        pytest.param({"min_os_version": (9,)}, 0, IPHONE.format("10_0"), "", None, id="numbers, not texts"),
        pytest.param({"max_os_version": (17,)}, 0, IPHONE.format("17_9"), "", None, id="the highest includes minors"),
        pytest.param({"max_os_version": (17, 4)}, 0, IPHONE.format("17_5"), "", OS_VERSION, id="a higher minor"),
        pytest.param({"max_os_version": (17,)}, 0, IPHONE.format("18_0"), "", OS_VERSION, id="higher"),
        pytest.param(
            {"min_os_version": (26,)}, 0, f"{IPHONE.format('18_6')} {WEBKIT}", "", None, id="a hidden version"
        ),
        pytest.param(
            {"max_os_version": (17,)}, 0, "Mozilla/5.0 (Linux; Android 99; Pixel)", "", None, id="another OS's"
        ),
        pytest.param({"min_os_version": (17,)}, 0, "", "", None, id="a version that is not known"),
        pytest.param({"device_types": {DeviceType.TABLET}}, 0, IPHONE.format("17_4"), "", DEVICE_TYPE, id="a phone"),
        pytest.param({"device_types": {DeviceType.PHONE}}, 0, IPHONE.format("17_4"), "", None, id="the type"),
        pytest.param({"device_types": {DeviceType.PHONE}}, 0, "curl/8", "", DEVICE_TYPE, id="a type that is not known"),
        pytest.param({"allowed_countries": {"DE"}}, 0, "", "DE", None, id="allowed"),
        pytest.param({"allowed_countries": {"DE"}}, 0, "", "FR", COUNTRY, id="not allowed"),
        pytest.param({"allowed_countries": {"DE"}}, 0, "", "", COUNTRY, id="not known to be allowed"),
        pytest.param({"blocked_countries": {"DE"}}, 0, "", "DE", COUNTRY, id="blocked"),
        pytest.param({"blocked_countries": {"DE"}}, 0, "", "", None, id="not known to be blocked"),
        pytest.param({"start_us": 1, "blocked_countries": {"DE"}}, 0, "", "DE", DATES, id="the first of several"),
    ],
)
def test_the_rule_that_is_broken(
    rules: dict[str, Any], time_us: int, user_agent: str, country: str, broken: TrafficRule | None
) -> None:
    assert broken_rule(TrafficRules(**rules), "iOS", time_us, parse_user_agent(user_agent), country) is broken


@pytest.mark.parametrize(
    ("user_agent", "device_type"),
    [
        (IPHONE.format("17_4"), "PHONE"),
        ("Mozilla/5.0 (iPod touch; CPU iPhone OS 15_7 like Mac OS X)", "PHONE"),
        (f"Mozilla/5.0 (iPad; CPU OS 17_4 like Mac OS X) {WEBKIT} Mobile/15E148", "TABLET"),
        ("Shop/1 CFNetwork/1485 Darwin/23.1.0", ""),
        ("Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 Chrome/124.0.0.0 Mobile Safari/537.36", "PHONE"),
        ("Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 Chrome/124.0.0.0 Safari/537.36", "TABLET"),
        ("Mozilla/5.0 (Linux; Android 11; BRAVIA 4K) AppleWebKit/537.36 Chrome/100 Safari/537.36", "TV"),
        ("Mozilla/5.0 (Linux; Android 9; AFTMM) AppleWebKit/537.36 Chrome/100 Mobile Safari/537.36", "TV"),
        ("Dalvik/2.1.0 (Linux; U; Android 13; Pixel 7 Build/TQ3A.230805.001)", ""),
        ("Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 Chrome/120 Safari/537.36", "DESKTOP"),
        (f"Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) {WEBKIT} Version/17.1 Safari/605.1.15", "DESKTOP"),
        ("Mozilla/5.0 (X11; Linux x86_64; rv:120.0) Gecko/20100101 Firefox/120.0", "DESKTOP"),
    ],
)
def test_the_type_of_a_device(user_agent: str, device_type: str) -> None:
    parsed = parse_user_agent(user_agent)
    assert parsed is not None
    assert parsed.device_type == device_type


def test_rules_are_read_as_tracker_has_them() -> None:
    rules = Message(
        min_os_version="17.4.1", max_os_version="18",
        allowed_os=[PLATFORM_IOS], allowed_device_types=[Message.DEVICE_TYPE_PHONE, Message.DEVICE_TYPE_TV],
        blocked_countries=["DE"],
    )  # fmt: skip
    rules.start_time.FromMicroseconds(5)
    rules.end_time.FromMicroseconds(6)
    trackers = [
        Tracker(tracker_id="ruled", app_id="app", network_id="n", traffic_rules=rules),
        Tracker(tracker_id="free", app_id="app", network_id="n"),
    ]
    kinds = ("network_settings", "event_definition", "campaign", "segment", "agency", "san_account")
    rulebook = build_rulebook(
        {
            **{kind: {} for kind in kinds},
            "app": {("app",): App(app_id="app", platform=PLATFORM_IOS)},
            "network": {("n",): Network(network_id="n")},
            "tracker": {(tracker.tracker_id,): tracker for tracker in trackers},
        },
        1,
    )
    made = rulebook.apps["app"].trackers
    assert made["free"].tracker.traffic_rules is None
    assert made["ruled"].tracker.traffic_rules == TrafficRules(
        start_us=5,
        end_us=6,
        operating_systems=frozenset({"iOS"}),
        min_os_version=(17, 4, 1),
        max_os_version=(18,),
        device_types=frozenset({DeviceType.PHONE, DeviceType.TV}),
        blocked_countries=frozenset({"DE"}),
    )
