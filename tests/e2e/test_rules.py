"""Rules that hold in the wild: what senders send, and what explain says of it, one case a row, through one suite."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import unquote

import asyncpg
import pytest
import pytest_asyncio
from google.protobuf.json_format import MessageToDict

from deploy.local.network import LocalNetwork
from deploy.local.suite import HOST, Suite, running_suite
from deploy.local.x_network import SECRETS
from libs.channels import open_channel
from libs.messages import short_name
from reengage.attribution.v1 import decision_pb2, shared_id_pb2
from reengage.postback.v1.delivery_pb2 import Delivery
from reengage.tracker.v1 import agency_pb2, network_pb2, service_pb2_grpc
from reengage.tracker.v1.app_pb2 import Platform
from tests.support.eventually import eventually
from tests.support.geoip import write_geoip_database
from tests.support.ports import suite_ports
from tests.support.stories import (
    PIXEL,
    Explanation,
    Step,
    Story,
    Teller,
    click,
    event,
    install,
    ping,
    sent,
    session,
    spooled,
    teller_of,
    thief_pings,
    x_claims,
)

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

MINUTE, HOUR, DAY = 60, 3600, 86400
ANDROID, IOS, QUIET = "wild-android", "wild-ios", "wild-quiet"
NETWORKS = {"acme": "ANDROID", "trusted": "ANDROID", "thief": "ANDROID", "acme-ios": "IOS", "x-ios": "IOS"}
GERMAN, FRENCH = "198.51.100.7", "198.51.100.200"


def _back(network_id: str, *events: str, **fields: Any) -> dict[str, Any]:
    """Returns a tracker that reengages by these events, or else by a purchase or a session."""
    url = {} if network_id == "x-ios" else {"install_url": "https://shop.example/"}
    events = events or ("Purchase", "SessionBegin")
    return {"network_id": network_id, "type": "REENGAGEMENT", "events": events} | url | fields


def _postback(network_id: str, trigger: str, path: str, method: str = "NETWORK_ONLY") -> dict[str, Any]:
    template = {"adapter": "template", "adapter_fields": {"url": f"http://ADDRESS/postbacks/{path}"}}
    return {"network_id": network_id, "trigger": trigger, "delivery_method": method} | template


TRACKERS = {
    ANDROID: {
        "new": {"network_id": "acme", "install_url": "https://shop.example/"},
        "back": _back("acme"),
        "trusted": _back("trusted"),
        "thief": _back("thief"),
        "level": _back("acme", "LevelUp", agency_id="reach", custom_parameters={"cp_1": "tracker"}),
        "ended": _back("acme", traffic_rules={"end_time": "2020-01-01T00:00:00Z"}),
        "androids": _back("acme", traffic_rules={"allowed_os": ["ANDROID"]}),
        "recent": _back("acme", traffic_rules={"min_os_version": "14"}),
        "phones": _back("acme", traffic_rules={"allowed_device_types": ["PHONE"]}),
        "germans": _back("acme", traffic_rules={"allowed_countries": ["DE"]}),
    },
    QUIET: {"quiet": _back("acme")},
    IOS: {"back-ios": _back("acme-ios"), "x-purchase": _back("x-ios", "Purchase"), "x-view": _back("x-ios", "View")},
}
POSTBACKS = {
    ANDROID: {
        "acme-install": _postback("acme", "_install", "acme-install?{conversion_id}"),
        "acme-purchase": _postback("acme", "Purchase", "acme-purchase?{conversion_id}"),
        "acme-level": _postback("acme", "LevelUp", "acme-level?{install_time}/{agency}/{cp_0}/{cp_1}"),
        "trusted": _postback("trusted", "Purchase", "trusted?{conversion_id}"),
        "thief": _postback("thief", "Purchase", "thief?adid={adid}&at={event_timestamp}", "ALL"),
    },
    QUIET: {},
    IOS: {
        "x": _postback("x-ios", "Purchase", "", "ALL") | {
            "adapter": "x", "retry_attempts": 0,
            "adapter_fields": {"app_id": "1234567890", "conversion_type": "PURCHASE", "base_url": "http://ADDRESS/x"},
        }
    },
}  # fmt: skip

FROZEN = (
    "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Mobile Safari/537.36"
)
HINTS = {"Sec-CH-UA-Model": '"Pixel 8"', "Sec-CH-UA-Platform": '"Android"', "Sec-CH-UA-Platform-Version": '"14.0.0"'}
DALVIK = "Dalvik/2.1.0 (Linux; U; Android 14; Pixel 8 Build/AP2A.240805.005)"
SAFARI = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.5 "
    "Mobile/15E148 Safari/604.1"
)
FROZEN_SAFARI = SAFARI.replace("17_5", "18_6").replace("Version/17.5", "Version/26.0")
GALAXY_TAB = "Mozilla/5.0 (Linux; Android 14; SM-X710) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0"
ANDROID_12 = "Mozilla/5.0 (Linux; Android 12; Pixel 5) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Mobile"
GOOGLEBOT = "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)"
NO_IDS: Mapping[str, str] = {}
IDFA = {"idfa": "<idfa>"}
GIVEN_BACK = {"ko_click_id": "<click>"}


class Case(NamedTuple):
    """A story, and what must be said of its step `event`: what was decided, and the reason if nobody won."""

    name: str
    story: Sequence[Step]
    decided: str
    verdicts: Mapping[str, str] = MappingProxyType({})
    """By step, or by the id of a claim."""
    says: str = ""
    """A part of the summary or of a sentence; `…` stands for anything."""
    facts: Mapping[str, Any] = MappingProxyType({})
    """Fields of the decision, as JSON; None for one that is left out."""
    told: Mapping[str, Mapping[str, str]] = MappingProxyType({})
    """The deliveries by step and configuration, as `says`: the state of each, and its URL."""
    app_id: str = ANDROID


ONCE = {"acme-purchase": "DELIVERED", "thief": "DELIVERED"}
"""The networks told of a purchase that acme is credited with: acme, and thief, who hears of every one."""
SHARED = [
    *(event("View", name=f"view{n}", ids={"adid": f"{n}<tail>", "android_id": "<build>"}) for n in range(6)),
    click("back", ids={"android_id": "<build>"}, ip="<prefix>::1"),
    event("Purchase", ids={"adid": "6<tail>", "android_id": "<build>"}),
]
NO_CANDIDATE = "no click or impression received before it, and no claim, matched this device"

CASES = [
    Case(
        "D12-click-out-of-a-spool",
        [event("Purchase", ago_s=5 * MINUTE), spooled("back", ago_s=6 * MINUTE)],
        "REENGAGED", {"click": "WON"},
        "decided again as version 2 … because click <click> arrived … after it. Version 1 was UNATTRIBUTED",
        facts={"because": "BECAUSE_LATE_ENGAGEMENT", "late_record_id": "<click>"}, told={"event": ONCE},
    ),
    Case(
        "D12-install-behind-its-first-event",
        [
            ping("new", name="ad", ago_s=HOUR),
            ping("back", ago_s=20 * MINUTE),
            event("Purchase", ago_s=10 * MINUTE),
            install(30 * MINUTE),
        ],
        "CREDITED MTR_NOT_MET", {},
        "decided again as version 2 … because install <install> arrived … Version 1 was REENGAGED to tracker back",
        facts={"because": "BECAUSE_LATE_INSTALL", "source_conversion_id": "<install>", "tracker_id": "new"},
        told={"event": ONCE, "install": {"acme-install": "DELIVERED"}},
    ),
    Case(
        "D12-ping-of-a-trusted-network",
        [event("Purchase"), ping("trusted", ago_s=1)],
        "REENGAGED", {"click": "WON"}, "because click <click> arrived",
        facts={"because": "BECAUSE_LATE_ENGAGEMENT", "tracker_id": "trusted"},
        told={"event": {"trusted": "DELIVERED", "thief": "DELIVERED"}},
    ),
    Case(
        "D12-thief-pings-for-every-postback",
        [event("Purchase"), thief_pings("thief", path="/postbacks/thief")],
        "UNATTRIBUTED NO_CANDIDATE", {"click": "REPORTED_LATE"},
        "Click <click> on tracker thief of thief … reported … after the conversion; late_pings of thief is 0.",
        told={"event": {"thief": "DELIVERED"}},
    ),
    Case(
        "D12-thief-beside-a-late-click",
        [event("Purchase"), thief_pings("thief", path="/postbacks/thief"), spooled("back", name="late", ago_s=MINUTE)],
        "REENGAGED", {"click": "REPORTED_LATE", "late": "WON"},
        "Click <click> on tracker thief of thief … reported … after the conversion; late_pings of thief is 0.",
        facts={"because": "BECAUSE_LATE_ENGAGEMENT", "late_record_id": "<late>"}, told={"event": ONCE},
    ),
    Case(
        "D12-session-behind-what-it-goes-on-with",
        [install(3 * DAY), click("back"), session(), event("View", name="view", ago_s=10 * MINUTE)],
        "CONTINUED", {}, "is no event: its session goes on … because View <view> arrived … Version 1 was REENGAGED",
        facts={"because": "BECAUSE_LATE_EVENT", "late_record_id": "<view>"},
    ),
    Case(
        "B1-same-second-and-click-id",
        [ping("back", ago_s=9.76, ids=NO_IDS), event("Purchase", ago_s=10, event_data=GIVEN_BACK)],
        "REENGAGED", {"click": "WON"}, "which gave it back, whatever the clocks say",
        facts={"lookback": "0s", "matched_by": "MATCH_KIND_CLICK_ID", "custom_dimensions": None},
    ),
    Case(
        "B1-event-dated-early-with-click-id",
        [ping("back", ago_s=10), event("Purchase", ago_s=310, event_data=GIVEN_BACK)],
        "REENGAGED", {"click": "WON"}, "which gave it back, whatever the clocks say",
        facts={"lookback": "0s", "custom_dimensions": {"clock_skew": "300"}},
    ),
    Case(
        "B1-event-dated-early-without-click-id",
        [ping("back", ago_s=10), event("Purchase", ago_s=310)],
        "UNATTRIBUTED NO_WINNER", {"click": "AFTER_CONVERSION"}, "Click <click> … came 5 min after the conversion.",
    ),
    *(
        Case(
            f"A2-A7-{name}",
            [
                click("back", ids={"adid": no_id}, ip="<prefix>::1"),
                event("Purchase", ids={"adid": no_id, "custom": "<custom>"}),
            ],
            "UNATTRIBUTED NO_CANDIDATE", {}, NO_CANDIDATE,
        )
        for name, no_id in (
            ("undefined", "undefined"), ("macro", "${gaid}"), ("zeros", "00000000-0000-0000-0000-000000000000")
        )
    ),
    Case(
        "A7-brackets-in-a-value",
        [click("back", site_id="{site}", creative_id="[US] Retarget [v2]"), event("Purchase")],
        "REENGAGED", {"click": "WON"}, "reengaged the device for tracker back",
        facts={"creative_id": "[US] Retarget [v2]", "site_id": None},
    ),
    Case(
        "A8-id-of-a-build", SHARED, "UNATTRIBUTED NO_CANDIDATE", {},
        "Its device id of kind android_id is shared by 7 advertising ids, so it was not used.",
    ),
    Case(
        "A3-hash-alone",
        [install(3 * DAY), click("back"), event("Purchase", ids={"adid_md5": "<md5>"})],
        "REENGAGED", {"click": "WON"}, "matched by device id", facts={"install_time": "<-259200 json>"},
    ),
    Case(
        "A3-identity-link-by-hash",
        [
            event("View", name="view"),
            sent(
                "identityLink", name="event", ids={"adid": "<sha256>"}, root={"device_hash_method": {"adid": "sha256"}},
                email="person@example.com",
            ),
        ],
        "LINKED", {}, "The identity link … tied its identities to the device",
    ),
    Case(
        "A5-frozen-chrome",
        [click("back", agent=FROZEN, ids=NO_IDS), event("Purchase", agent=DALVIK)],
        "REENGAGED", {"click": "WON"}, "matched by IP address alone",
    ),
    Case(
        "A5-frozen-chrome-with-hints",
        [click("back", agent=FROZEN, ids=NO_IDS, headers=HINTS), event("Purchase", agent=DALVIK)],
        "REENGAGED", {"click": "WON"}, "modeled from IP address and user agent",
    ),
    Case(
        "A5-frozen-chrome-with-hints-of-another-phone",
        [
            click("back", agent=FROZEN, ids=NO_IDS, headers=HINTS | {"Sec-CH-UA-Model": '"Pixel 5"'}),
            event("Purchase", agent=DALVIK),
        ],
        "REENGAGED", {"click": "WON"}, "matched by IP address alone",
    ),
    Case(
        "A5-app-agent",
        [
            click("back-ios", agent=SAFARI, ids=NO_IDS),
            event("Purchase", agent="Shop/12 CFNetwork/1496.0.7 Darwin/23.5.0", ids=IDFA),
        ],
        "REENGAGED", {"click": "WON"}, "modeled from IP address and user agent", app_id=IOS,
    ),
    Case(
        "A5-frozen-safari",
        [
            click("back-ios", agent=FROZEN_SAFARI, ids=NO_IDS),
            event("Purchase", agent="Shop/12 CFNetwork/3860.100.1 Darwin/25.0.0", ids=IDFA),
        ],
        "REENGAGED", {"click": "WON"}, "modeled from IP address and user agent", app_id=IOS,
    ),
    Case(
        "A5-same-64-bits",
        [click("back", ip="<prefix>::1", ids=NO_IDS), event("Purchase", ip="<prefix>:ffff::9")],
        "REENGAGED", {"click": "WON"}, "modeled from IP address and user agent",
    ),
    Case(
        "A5-private-address",
        [click("back", ip="192.168.1.20", ids=NO_IDS), event("Purchase", ip="192.168.1.20")],
        "UNATTRIBUTED NO_CANDIDATE", {}, NO_CANDIDATE,
    ),
    Case(
        "A9-crawler",
        [click("back", agent=GOOGLEBOT), event("Purchase")],
        "UNATTRIBUTED NO_WINNER", {"click": "BOT"},
        "Click <click> … was refused: the search engine's crawler Googlebot made it, no person.",
    ),
    Case(
        "A9-prefetch",
        [click("back", headers={"Sec-Purpose": "prefetch;prerender"}), event("Purchase")],
        "UNATTRIBUTED NO_WINNER", {"click": "PREFETCH"},
        "Click <click> … was refused: a browser fetched it beforehand, no person made it.",
    ),
    Case(
        "D4-session-of-a-returning-user",
        [install(3 * DAY), click("back"), session()],
        "REENGAGED", {"click": "WON"}, "SessionBegin … reengaged the device for tracker back",
    ),
    Case(
        "D4-session-that-goes-on",
        [install(3 * DAY), event("View", name="view", ago_s=29 * MINUTE), click("back"), session()],
        "NOT_A_CONVERSION", {},
        "a session that goes on with what the device did in the 30 minutes before, so nothing is decided about it",
    ),
    Case(
        "D11-refund",
        [
            ping("new", name="ad", ago_s=HOUR),
            install(30 * MINUTE),
            click("back"),
            event("Purchase", event_data={"sum": "-19.90", "currency": "EUR"}),
            event("Purchase", name="other"),
        ],
        "CREDITED REFUND", {}, "credited to … the install of tracker new … a refund reengages nobody",
        facts={"revenue": {"amount_micros": "-19900000", "currency_code": "EUR"}, "source_conversion_id": "<install>"},
        told={"other": ONCE, "event": {}},
    ),
    Case(
        "D13-active-device",
        [event("View", name="view", ago_s=DAY), click("quiet"), event("Purchase")],
        "UNATTRIBUTED NO_WINNER", {"click": "DEVICE_ACTIVE"},
        "Click <click> … the device was last active 1 day… before, at <-86400 utc>; inactivity_window of the app is 7 "
        "days.",
        app_id=QUIET,
    ),
    *(
        Case(
            f"G2-traffic-rule-of-{tracker_id}",
            [click(tracker_id, agent=agent, ip=ip), event("Purchase")],
            "UNATTRIBUTED NO_WINNER", {"click": "TRAFFIC_RULE"},
            f"Click <click> … was refused: its tracker's traffic rules do not take {words}.",
        )
        for tracker_id, agent, ip, words in (
            ("ended", PIXEL, "<ip>", "that time"),
            ("androids", SAFARI, "<ip>", "its operating system"),
            ("recent", ANDROID_12, "<ip>", "its version of the operating system"),
            ("phones", GALAXY_TAB, "<ip>", "its type of device"),
            ("germans", PIXEL, FRENCH, "its country, FR"),
        )
    ),
    Case(
        "E3-claim-goes-to-the-tracker-that-selects-the-event",
        [x_claims(ago_s=HOUR), event("Purchase", ids=IDFA)],
        "REENGAGED", {"claim:x-ios": "WON"}, "The click that x-ios claims on tracker x-purchase of x-ios", app_id=IOS,
        facts={"tracker_id": "x-purchase"}, told={"event": {"x": "DELIVERED"}},
    ),
    Case(
        "E4-nothing-could-be-sent",
        [event("Purchase", ids={"idfv": "<idfa>"})],
        "UNATTRIBUTED NO_CANDIDATE", {},
        "x-ios was not asked: the request could not be made (no IDFA or advertising id, which X knows devices by); see "
        "delivery … This was decided without its answer.",
        app_id=IOS, facts={"claims_unavailable": ["x-ios"]},
    ),
    Case(
        "G1-what-a-reengagement-holds",
        [
            ping("back", ago_s=60, site_id="site-7", creative_id="banner-3"),
            event("Purchase", ago_s=30, ip=GERMAN, app_version="3.1", event_data={"sum": 19.9, "currency": "EUR"}),
        ],
        "REENGAGED", {"click": "WON"}, "reengaged the device for tracker back",
        facts={
            "source_conversion_id": "<event>", "source_time": "<-30 json>", "source_engagement_id": "<click>",
            "revenue": {"amount_micros": "19900000", "currency_code": "EUR"}, "site_id": "site-7",
            "creative_id": "banner-3", "country": "DE", "os": "android", "os_version": "14.0", "app_version": "3.1",
        },
    ),
    Case(
        "G1-what-a-later-event-holds",
        [
            ping("back", ago_s=60, site_id="site-7", creative_id="banner-3"),
            event("Purchase", name="source", ago_s=30),
            event("Order", event_data={"price": "5"}),
        ],
        "CREDITED EVENT_NOT_SELECTED", {}, "the reengagement of tracker back of acme",
        facts={
            "source_conversion_id": "<source>", "source_time": "<-30 json>", "source_engagement_id": "<click>",
            "revenue": {"amount_micros": "5000000", "currency_code": "USD"}, "site_id": "site-7",
            "creative_id": "banner-3", "engagement_id": None,
        },
    ),
    Case(
        "G1-what-a-postback-tells",
        [install(3 * DAY), click("level", cp_0="link"), event("LevelUp")],
        "REENGAGED", {"click": "WON"}, "reengaged the device for tracker level",
        facts={"install_time": "<-259200 json>"},
        told={"event": {"acme-level": "DELIVERED …?<-259200 ms>/Reach/link/tracker"}},
    ),
]  # fmt: skip


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def teller(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Teller]:
    """Yields the suite with the settings of this file, and a local network that takes every postback."""
    directory, ports, network = tmp_path_factory.mktemp("rules"), suite_ports(), LocalNetwork()
    write_geoip_database(directory / "countries.mmdb", {"198.51.100.0/25": "DE", "198.51.100.128/25": "FR"})
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("REENGAGE_GEOIP_DATABASE", str(directory / "countries.mmdb"))
        environment.setenv("REENGAGE_TRUSTED_PROXIES", HOST)
        async with (
            running_suite(directory / "data", ports, announce=lambda _: None, durable=False) as suite,
            network.serving(HOST, ports.network),
            teller_of(suite, network, directory / "data") as teller,
        ):
            await _load(suite, teller, directory)
            yield teller


async def _load(suite: Suite, teller: Teller, directory: Path) -> None:
    """Has the settings made as operators make them, and waits until every service has them."""
    async with open_channel(suite.ports.address("tracker"), key=suite.admin_key) as channel:
        tracker = service_pb2_grpc.TrackerConfigServiceStub(channel)
        agency = agency_pb2.Agency(agency_id="reach", name="Reach")
        await tracker.CreateAgency(agency_pb2.CreateAgencyRequest(agency=agency))
        for network_id, platform in NETWORKS.items():
            network = network_pb2.Network(
                network_id=network_id, name=network_id, platform=Platform.Value(f"PLATFORM_{platform}"),
                self_attributing=network_id == "x-ios",
            )  # fmt: skip
            await tracker.CreateNetwork(network_pb2.CreateNetworkRequest(network=network))
    for app_id in TRACKERS:
        (directory / app_id).write_text(_settings_of(app_id, suite.ports.address("network")))
    await asyncio.gather(*(teller.reengage("apply", str(directory / app_id), "--yes") for app_id in TRACKERS))
    (directory / "secrets").write_text(json.dumps(SECRETS))
    await teller.reengage("postbacks", "edit", "x", f"secrets=@{directory / 'secrets'}")
    await teller.settings_arrive()
    database = await asyncpg.connect(suite.postgres.admin_dsn())
    await eventually(lambda: database.fetchval("SELECT count(*) FROM attribution.claim_triggers"))
    await database.close()


def _settings_of(app_id: str, network: str) -> str:
    """Returns the file of an app's settings, in JSON, which is YAML; `network` is the address of all networks."""
    app = {"app_id": app_id, "name": app_id, "platform": "IOS" if app_id == IOS else "ANDROID"}
    segments = {app_id: {"name": "All", "trackers": TRACKERS[app_id]}}
    wanted = {
        "app": app | ({"settings": {"inactivity_window": "7d"}} if app_id == QUIET else {}),
        "network_settings": {"trusted": {"late_pings": "1m"}} if app_id == ANDROID else {},
        "campaigns": {app_id: {"name": app_id, "segments": segments}},
        "postbacks": POSTBACKS[app_id],
    }
    return json.dumps(wanted).replace("ADDRESS", network)


@pytest.mark.parametrize("case", CASES, ids=attrgetter("name"))
async def test_what_is_said_of(teller: Teller, case: Case) -> None:
    story = await teller.tell(case.app_id, case.story)
    explained = await _explained(story, case)
    assert _decided(explained) == case.decided
    assert _verdicts(explained, story, case.verdicts) == case.verdicts
    texts = [explained.summary, *explained.sentences]
    assert any(_says(text, story.fill(case.says)) for text in texts), texts
    decision = MessageToDict(explained.decision, preserving_proto_field_name=True)
    assert {name: decision.get(name) for name in case.facts} == story.fill(dict(case.facts))
    for step, ends in case.told.items():
        version = explained.decision.version if step == "event" else 1
        found = await _deliveries(story, step, len(ends), version)
        assert found.keys() == ends.keys()
        assert [end for name, end in ends.items() if not _says(found[name], story.fill(end))] == [], found


async def test_shared_ids_are_listed_for_programs_and_for_people(teller: Teller) -> None:
    story = await teller.tell(ANDROID, SHARED)
    request = shared_id_pb2.ListSharedIdsRequest(app_id=ANDROID)
    listed = (await teller.attribution.ListSharedIds(request)).shared_ids
    build = story.words["build"]
    assert [(each.kind, each.advertising_id_count) for each in listed if each.value == build] == [("android_id", 7)]
    assert build in await teller.reengage("shared-ids", ANDROID)
    assert "is shared by 7 advertising ids" in await teller.reengage("explain", ANDROID, story.words["event"])


async def _explained(story: Story, case: Case) -> Explanation:
    """Returns what is said of a case once a late record has made its version, and every candidate is known."""

    async def ask() -> Explanation | None:
        explained = await story.explain("event")
        assert explained is not None
        is_newest = "because" not in case.facts or explained.decision.version > 1
        knows_all = _verdicts(explained, story, case.verdicts).keys() == case.verdicts.keys()
        return explained if is_newest and knows_all else None

    explained = await eventually(ask)
    assert explained is not None
    return explained


async def _deliveries(story: Story, step: str, count: int, version: int) -> dict[str, str]:
    """Returns how the deliveries of a step ended, by configuration, once they know this version; each is told once."""
    found: list[Delivery] = []

    async def settled() -> bool:
        nonlocal found
        found = await story.teller.deliveries(story.app_id, story.words[step])
        ended = [each for each in found if each.HasField("end_time") and each.decision_version >= version]
        return len(ended) == len(found) >= count

    await eventually(settled)
    assert [each.configuration_id for each in found if each.attempt_count != 1] == []
    heard = {delivery_id: times for (_, delivery_id), times in story.teller.network.attempts.items()}
    assert [each.configuration_id for each in found if heard[each.delivery_id] != 1] == []
    return {
        each.configuration_id: f"{short_name(Delivery.State.DESCRIPTOR, each.state)} {unquote(each.attempts[0].url)}"
        for each in found
    }


def _decided(explained: Explanation) -> str:
    decision = explained.decision
    if explained.state != Explanation.STATE_DECIDED:
        return short_name(Explanation.State.DESCRIPTOR, explained.state)
    outcome = short_name(decision_pb2.Outcome.DESCRIPTOR, decision.outcome)
    return f"{outcome} {short_name(decision_pb2.Reason.DESCRIPTOR, decision.reason)}".strip()


def _verdicts(explained: Explanation, story: Story, names: Mapping[str, str]) -> dict[str, str]:
    """Returns the verdicts on the candidates of these names."""
    found = {
        each.engagement_id: short_name(decision_pb2.Verdict.DESCRIPTOR, each.verdict)
        for each in (*explained.decision.candidates, *explained.late_pings)
    }
    ids = {name: story.words.get(name, name) for name in names}
    return {name: found[engagement_id] for name, engagement_id in ids.items() if engagement_id in found}


def _says(text: str, part: str) -> bool:
    return re.search(re.escape(part).replace("…", ".*"), text) is not None
