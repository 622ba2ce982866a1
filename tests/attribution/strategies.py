"""Random scenarios of so few words that they meet: ids of one device, addresses, trackers, times at edges of windows.

They are drawn from a seed, not choice by choice: Hypothesis prefers repeats and extremes, and most of what it builds of
this size is decided in the dullest way.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from random import Random
from typing import Any

from hypothesis import strategies as st

from services.attribution.decision.matching import normalise_ip
from services.attribution.decision.model import (
    DAY_US,
    HOUR_US,
    MINUTE_US,
    NO_HINTS,
    SECOND_US,
    Claim,
    ClientHints,
    DeviceType,
    EngagementKind,
    TrackerType,
    WindowKind,
)
from services.attribution.decision.rules import (
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
from services.attribution.simulator.scenario import ConversionRecord, EngagementRecord, Scenario

START_US = 20_000 * DAY_US
ONE, TWO = "cdda802e-fb9c-47ad-9866-0794d394c912", "1B2C078A-0000-4BA4-AE5B-76104861E7DC"
OURS = (
    *({"adid": ONE}, {"adid": ONE}, {"adid": ONE.upper()}, {"adid": ONE, "idfa": TWO}, {"idfa": TWO}, {"idfv": ONE}),
    *({"idfa": TWO, "custom": "guest-7"}, {"custom": "guest-7"}),
)
ID_KINDS = ("adid", "idfa", "custom", "kochava_device_id")
ID_VALUES = (
    *(ONE, ONE.replace("-", ""), TWO, TWO.lower(), "guest-7", "guest-8"),
    *("", "00000000-0000-0000-0000-000000000000", "null", "{idfa}", "%{adid}", "[device]"),
)
_ADDRESSES = (
    *("203.0.113.7",) * 5, "203.0.113.8", "203.0.114.7", "100.64.0.7", "::1",
    "2001:db8:1::1", "2001:db8:1:2::1", "2001:db8:1:2:aaaa::9", "2001:db8:2::1",
)  # fmt: skip
IPS = ("", *map(normalise_ip, _ADDRESSES))
AGENTS: tuple[str, ...] = (
    "",
    "curl/8.5.0",
    *("Mozilla/5.0 (Linux; Android 14; Pixel 8)",) * 5,
    "Mozilla/5.0 (Linux; Android 14.0; Pixel 8)",
    "Mozilla/5.0 (Linux; Android 14.1; Pixel 8)",
    "Mozilla/5.0 (Linux; Android 13; Pixel 8)",
    "Mozilla/5.0 (Linux; Android 14; SM-G991B)",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_2 like Mac OS X)",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_2 like Mac OS X) AppleWebKit/605.1.15 [FBAN/FBIOS;FBDV/iPhone14,2]",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_6 like Mac OS X) AppleWebKit/605.1.15 Version/26.0 Mobile/15E148",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_6 like Mac OS X) AppleWebKit/605.1.15 Mobile/15E148",
    "Shop/1 CFNetwork/1485 Darwin/23.1.0",
    "Shop/1 CFNetwork/3860.100.1 Darwin/25.0.0",
    "WhatsApp/2.23.20.0",
    "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
    "Mozilla/5.0 (Linux; Android 14; Pixel 8) AppleWebKit/537.36 Mobile Safari/537.36 MetaIAB Facebook",
    "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/124.0.0.0 Mobile Safari/537.36",
)
HINTS = (
    *(NO_HINTS,) * 5, *(ClientHints("Pixel 8", "Android", "14.0.0"),) * 2, ClientHints("SM-G991B", "Android", ""),
    ClientHints("", "Android", "14"), ClientHints("", "Android", "13.1.0"), ClientHints("Pixel 8", "", "14.0.0"),
    ClientHints("", "Windows", "14.0.0"),
)  # fmt: skip
CROWD = (ONE, TWO, *(f"{number:08x}-0000-4000-8000-00000000000f" for number in range(1, 10)))
CONSTANTS: tuple[dict[str, str], ...] = (
    *({"custom": "guest-7"},) * 5, {"android_id": "guest-7"}, {"custom": "guest-8"}, {},
)  # fmt: skip
COUNTRIES = ("", "DE", "DE", "FR", "US")
EVENTS = ("Purchase", "Purchase", "SessionBegin", "SessionBegin", "View")
LENGTHS_US = (MINUTE_US, HOUR_US, 2 * HOUR_US, 12 * HOUR_US, DAY_US)
STEPS_US = (0, 0, SECOND_US, MINUTE_US, MINUTE_US, *LENGTHS_US, *LENGTHS_US, *LENGTHS_US, 7 * DAY_US)
ODD_STEPS_US = (DAY_US - 1, HOUR_US + 1, 2 * DAY_US, 7 * DAY_US - 1, 14 * DAY_US, 30 * DAY_US, 31 * DAY_US)
LATE_US = (-1, -MINUTE_US, -HOUR_US, -DAY_US, -2 * DAY_US)
CLICK_WINDOWS = (WindowKind.CLICK_DEVICE, WindowKind.CLICK_EQUALIZER, WindowKind.CLICK_MODELED, WindowKind.CLICK_IP)
IMPRESSION_WINDOWS = (WindowKind.IMPRESSION_DEVICE, WindowKind.IMPRESSION_MODELED, WindowKind.IMPRESSION_IP)
CLAIM_WINDOWS: tuple[dict[WindowKind, int], ...] = (
    {},
    {WindowKind.POST_ENGAGEMENT: 7 * DAY_US, WindowKind.POST_VIEW: DAY_US},
    {WindowKind.POST_ENGAGEMENT: DAY_US, WindowKind.POST_VIEW: DAY_US},
    {WindowKind.POST_ENGAGEMENT: DISABLED},
)


def scenario(random: Random) -> Scenario:
    """Returns settings at all layers and 8 to 30 records, mostly of one person, with nothing expected of them."""
    now_us = receive_time_us = START_US
    timeline: list[EngagementRecord | ConversionRecord] = []
    count = random.randint(8, 30)
    for number in random.sample(range(count), count):
        step_us = random.choice(random.choices((STEPS_US, ODD_STEPS_US, LATE_US), (6, 1, 3))[0])
        tell = random.choice((engagement, conversion))
        # No two are received at once.
        receive_time_us = max(receive_time_us + 1, now_us + max(step_us, 0))
        timeline.append(tell(random, f"r{number}", now_us + step_us, receive_time_us))
        now_us += max(step_us, 0)
    if chance(random, 1 / 5):
        timeline = [replace(record, device=of_a_crowd(random, record.device)) for record in timeline]
    return Scenario(
        text="",
        app=app(random),
        networks=tuple(network(random, network_id) for network_id in ("acme", "bolt", "x", "y")),
        trackers=trackers(random),
        events=tuple(definition(random, event_name) for event_name in ("Purchase", "SessionBegin")),
        timeline=tuple(timeline),
        expect={},
    )


scenarios = st.integers(0, (1 << 64) - 1).map(lambda seed: scenario(Random(seed)))


def without_needless_records(scenario: Scenario, fails: Callable[[Scenario], bool]) -> Scenario:
    """Returns a failing scenario with every record left out that it fails without."""
    for record in scenario.timeline:
        shorter = replace(scenario, timeline=tuple(other for other in scenario.timeline if other is not record))
        if fails(shorter):
            scenario = shorter
    return scenario


def app(random: Random) -> App:
    return App(
        app_id="app",
        platform=random.choice(list(Platform)),
        windows=windows(random),
        device_attribution=random.choice(list(DeviceAttribution)),
        modeled_level=random.choice((ModeledLevel.IP_AND_UA, *ModeledLevel)),
        omit_os_minor=chance(random, 1 / 2),
        allow_reengagement_impressions=chance(random, 5 / 6),
        prioritize_completed_view=chance(random, 1 / 2),
        limit_ad_tracking_fallback=chance(random, 1 / 2),
        install_reprocessing_window_us=random.choice((None, DAY_US, 2 * DAY_US, 7 * DAY_US)),
        inactivity_window_us=random.choice((0, 0, 0, HOUR_US, DAY_US, 2 * DAY_US)),
        late_window_us=random.choice((0, HOUR_US, DAY_US, DAY_US, 7 * DAY_US)),
    )


def network(random: Random, network_id: str) -> Network:
    return Network(
        network_id=network_id,
        self_attributing=network_id in ("x", "y"),
        supports_impressions=chance(random, 5 / 6),
        granular_data_policy=random.choice(list(GranularDataPolicy)),
        windows=windows(random),
        late_pings_us=random.choice((0, 0, HOUR_US, 12 * HOUR_US)),
    )


def trackers(random: Random) -> tuple[Tracker, ...]:
    """Returns both types of each network, and `x12`, which may be the default one of x (at most one may, E3)."""
    networks = {"t1": "acme", "t2": "acme", "t3": "bolt", "x1": "x", "x12": "x", "y1": "y"}
    types = {"t1": TrackerType.REENGAGEMENT, "t2": TrackerType.ACQUISITION}
    return tuple(
        Tracker(
            tracker_id=tracker_id,
            network_id=network_id,
            type=types.get(tracker_id, random.choice(list(TrackerType))),
            events=frozenset(random.sample(EVENTS, random.choice((1, 4, 4, 4)))),
            windows=windows(random) | random.choice(CLAIM_WINDOWS),
            live=chance(random, 11 / 12),
            default_tracker=tracker_id == "x12" and chance(random, 1 / 2),
            max_conversions_per_engagement=random.choice((0, 0, 1, 2)),
            create_time_us=random.randint(0, 2),
            traffic_rules=traffic_rules(random) if chance(random, 1 / 4) else None,
        )
        for tracker_id, network_id in networks.items()
    )


def traffic_rules(random: Random) -> TrafficRules:
    """Draws one rule of a kind, at times two."""
    found: dict[str, Any] = {}
    for _ in range(random.choice((1, 1, 2))):
        found |= random.choice(
            (
                {"start_us": START_US + random.choice(STEPS_US)},
                {"end_us": START_US + 7 * DAY_US + random.choice(STEPS_US)},
                {"operating_systems": frozenset({random.choice(("iOS", "Android"))})},
                {"min_os_version": random.choice(((14,), (14, 1), (14, 0, 1), (17,), (26,)))},
                {"max_os_version": random.choice(((14,), (14, 0), (13, 9, 9), (17, 2), (18,)))},
                {"device_types": frozenset({random.choice((DeviceType.PHONE, DeviceType.TABLET))})},
                {"allowed_countries": frozenset({"DE", "FR"})},
                {"blocked_countries": frozenset({"DE"})},
            )
        )
    return TrafficRules(**found)


def windows(random: Random) -> dict[WindowKind, int]:
    """Draws the windows of one layer, mostly nothing; within the ranges of B2."""
    found = {}
    if chance(random, 1 / 2):
        found[random.choice(CLICK_WINDOWS)] = random.choice((DISABLED, *LENGTHS_US, *LENGTHS_US, 7 * DAY_US))
    if chance(random, 1 / 6):
        found[random.choice(IMPRESSION_WINDOWS)] = random.choice((DISABLED, *LENGTHS_US))
    if chance(random, 1 / 6):
        found[WindowKind.EVENT_ASSOCIATION] = random.choice((DISABLED, HOUR_US, DAY_US, UNLIMITED))
    return found


def definition(random: Random, event_name: str) -> EventDefinition:
    return EventDefinition(
        event_name=event_name,
        mtr_us=random.choice((0, 0, HOUR_US, DAY_US)),
        reengagement_period_us=random.choice((0, HOUR_US, DAY_US, UNLIMITED, UNLIMITED)),
    )


def engagement(random: Random, record_id: str, time_us: int, receive_time_us: int) -> EngagementRecord:
    kind = random.choice(list(EngagementKind))
    is_click = kind is EngagementKind.CLICK
    return EngagementRecord(
        id=record_id,
        kind=kind,
        time_us=time_us,
        receive_time_us=receive_time_us,
        is_ping=chance(random, 1 / 3),
        tracker=random.choice(("t1", "t1", "t1", "t1", "t2", "t2", "t3", "x1")),
        device=random.choice((lambda _: {}, device, device, hashed_device))(random),
        ip=random.choice(IPS),
        ua=random.choice(AGENTS),
        client_hints=random.choice(HINTS),
        click_id=random.choice(("", "", "n1", "n2")) if is_click else "",
        completed_view=not is_click and chance(random, 1 / 2),
        is_prefetch=chance(random, 1 / 16),
        country=random.choice(COUNTRIES),
    )


def conversion(random: Random, record_id: str, time_us: int, receive_time_us: int) -> ConversionRecord:
    name = "" if chance(random, 1 / 5) else random.choice(EVENTS)
    is_session_start = name == "SessionBegin" and chance(random, 3 / 4)
    return ConversionRecord(
        id=record_id,
        time_us=time_us,
        receive_time_us=receive_time_us,
        name=name,
        device=random.choice((device, device, device, device, told_by_hashes))(random),
        ip=random.choice(IPS),
        ua=random.choice(AGENTS),
        client_hints=random.choice(HINTS),
        click=random.choice(("", "", "", "", "r0", "r1", "r2", "r3")),
        limit_ad_tracking=chance(random, 1 / 2),
        claims=tuple(claim(random, network_id, time_us) for network_id in ("x", "y") if chance(random, 1 / 8)),
        is_refund=bool(name) and not is_session_start and chance(random, 1 / 12),  # a session has no amount
        is_session_start=is_session_start,
        country=random.choice(COUNTRIES),
    )


def claim(random: Random, network_id: str, time_us: int) -> Claim:
    return Claim(
        network_id=network_id,
        kind=random.choice(list(EngagementKind)),
        time_us=time_us - random.choice((*STEPS_US, *ODD_STEPS_US, *LATE_US)),
        campaign_name=random.choice(
            ("", "Spring", "x1", "Spring x12", "y1 x1", "t1", "x1-de_x2", "x123", "ax1", "x12ax1 x12")
        ),
        granular_data_allowed=chance(random, 3 / 4),
    )


def device(random: Random) -> dict[str, str]:
    if chance(random, 3 / 4):
        return random.choice(OURS)
    return {random.choice(ID_KINDS): random.choice(ID_VALUES) for _ in range(random.randint(0, 2))}


def of_a_crowd(random: Random, device: Mapping[str, str]) -> Mapping[str, str]:
    """Returns the ids of one of many who send the same constant, or one in place of them (A8)."""
    if chance(random, 1 / 6):
        return device
    if chance(random, 1 / 10):
        return {"custom_md5": md5(random.choice(("guest-7", "GUEST-7", "guest-8")))}
    return random.choice(CONSTANTS) | {random.choice(("adid", "adid", "idfa")): random.choice(CROWD)}


def told_by_hashes(random: Random) -> dict[str, str]:
    """Returns the hash of an id, as a sender has it who does not have the id, or beside another id (A3)."""
    value = either_case(random, random.choice((ONE, TWO, ONE.replace("-", ""))))
    kind, method = random.choice(("adid", "adid", "idfa")), random.choice(("md5", "md5", "sha1", "sha256"))
    hashed = {f"{kind}_{method}": either_case(random, hashlib.new(method, value.encode()).hexdigest())}
    return hashed | random.choice(({}, {}, {"idfv": ONE}, {"custom": "guest-7"}))


def md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def hashed_device(random: Random) -> dict[str, str]:
    """Returns a hash, or a hash of a hash, of an id in any spelling (A3)."""
    digest = random.choice((ONE, TWO))
    digest = random.choice((digest, digest.replace("-", "")))
    for _ in range(random.randint(1, 2)):
        digest = hashlib.new(random.choice(("md5", "sha1", "sha256")), either_case(random, digest).encode()).hexdigest()
    return {"adid": either_case(random, digest)}


def either_case(random: Random, text: str) -> str:
    return random.choice((text.lower(), text.upper()))


def chance(random: Random, probability: float) -> bool:
    return random.random() < probability
