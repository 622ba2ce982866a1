"""Validation of resources: every rule from both sides of its edge, through the RPCs."""

import itertools
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from deploy.local.embedded import EmbeddedPostgres
from libs.messages import message_class
from reengage.tracker.v1 import (
    app_pb2,
    campaign_pb2,
    event_definition_pb2,
    network_settings_pb2,
    segment_pb2,
)
from reengage.tracker.v1.app_pb2 import PLATFORM_ANDROID, PLATFORM_IOS
from reengage.tracker.v1.network_pb2 import Network, PostbackNeed
from reengage.tracker.v1.network_settings_pb2 import NetworkSettings
from reengage.tracker.v1.tracker_pb2 import Tracker, TrafficRules
from reengage.tracker.v1.windows_pb2 import Window, Windows
from tests.conftest import TEMPLATE, Database
from tests.tracker import samples
from tests.tracker.conftest import running
from tests.tracker.samples import (
    DAY,
    HOUR,
    MINUTE,
    Stub,
    acquisition,
    android_app,
    app,
    campaign,
    create_parents,
    event,
    lasting,
    network,
    reengagement,
    san,
    san_reengagement,
    seconds,
    segment,
    wrong_fields,
)

DISABLED = Window(disabled=True)
UNLIMITED = Window(unlimited=True)


async def create(tracker: Stub, resource: Message) -> Any:
    """Creates a resource, or changes a network's settings to it."""
    if isinstance(resource, NetworkSettings):
        mask = FieldMask(paths=["windows", "granular_data_policy", "late_pings"])
        request = network_settings_pb2.UpdateNetworkSettingsRequest(network_settings=resource, update_mask=mask)
        return await tracker.UpdateNetworkSettings(request)
    kind = type(resource).__name__
    field = {"EventDefinition": "event_definition", "SanAccount": "san_account"}.get(kind, kind.lower())
    created = message_class(f"reengage.tracker.v1.Create{kind}Request")(**{field: resource})
    return await getattr(tracker, f"Create{kind}")(created)


def app_settings(**fields: Any) -> app_pb2.App:
    return app(app_id="new", name="New", settings=fields)


def link_settings(**fields: Any) -> NetworkSettings:
    return NetworkSettings(**{"app_id": "kodemo1", "network_id": "acme-ios"} | fields)


def windows(**named: Window) -> Windows:
    return samples.windows(**named)


CLICKS = ("click_device", "click_modeled", "click_equalizer", "click_ip")
IMPRESSIONS = ("impression_device", "impression_modeled", "impression_ip")
LAYERS: dict[str, Callable[[Windows], Message]] = {
    "app.settings": lambda layer: app_settings(windows=layer),
    "network_settings": lambda layer: link_settings(windows=layer),
    "tracker": lambda layer: acquisition(windows=layer),
}

GOOD_WINDOWS: list[tuple[str, Window]] = [
    *((name, lasting(MINUTE)) for name in (*CLICKS, *IMPRESSIONS)),
    *((name, lasting(30 * DAY)) for name in CLICKS),
    *((name, lasting(DAY)) for name in IMPRESSIONS),
    *((name, DISABLED) for name in (*CLICKS, *IMPRESSIONS)),
    ("event_association", lasting(MINUTE)),
    ("event_association", lasting(3650 * DAY)),
    ("event_association", UNLIMITED),
]
WRONG_WINDOWS: list[tuple[str, Window, str, str]] = [
    *((name, lasting(MINUTE - 1), ".duration", "OUT_OF_RANGE") for name in (*CLICKS, *IMPRESSIONS)),
    *((name, lasting(30 * DAY + 1), ".duration", "OUT_OF_RANGE") for name in CLICKS),
    *((name, lasting(DAY + 1), ".duration", "OUT_OF_RANGE") for name in IMPRESSIONS),
    *((name, UNLIMITED, ".unlimited", "NOT_ALLOWED") for name in (*CLICKS, *IMPRESSIONS)),
    ("click_ip", lasting(HOUR, nanos=1), ".duration", "OUT_OF_RANGE"),
    ("click_ip", lasting(-HOUR), ".duration", "OUT_OF_RANGE"),
    ("click_ip", Window(), "", "REQUIRED"),
    ("click_ip", Window(disabled=False), "", "REQUIRED"),
    ("event_association", Window(unlimited=False), "", "REQUIRED"),
    ("event_association", lasting(MINUTE - 1), ".duration", "OUT_OF_RANGE"),
    ("event_association", lasting(3650 * DAY + 1), ".duration", "OUT_OF_RANGE"),
    ("event_association", DISABLED, ".disabled", "NOT_ALLOWED"),
]


def told(value: object) -> str | None:
    """Returns a window for the id of a case, as `30 days` or `disabled`."""
    if not isinstance(value, Window):
        return None
    match value.WhichOneof("limit"):
        case "duration":
            return f"{value.duration.ToJsonString()}"
        case None:
            return "nothing"
        case limit:
            return limit if getattr(value, limit) else f"not {limit}"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def shared(postgres: EmbeddedPostgres) -> AsyncIterator[Stub]:
    """Yields a tracker for many cases, which leave nothing behind or have an id of their own."""
    await postgres.create_database("validation", template=TEMPLATE)
    async with running(Database(postgres=postgres, name="validation")) as stub:
        await create_all_parents(stub)
        yield stub


_numbers = itertools.count()


@pytest.mark.parametrize(("name", "window"), GOOD_WINDOWS, ids=told)
@pytest.mark.asyncio(loop_scope="session")
async def test_windows_within_their_ranges(shared: Stub, name: str, window: Window) -> None:
    """B2, on every layer."""
    layer, number = windows(**{name: window}), next(_numbers)
    made = (await create(shared, app(app_id=f"a{number}", name=f"A{number}", settings={"windows": layer}))).app
    assert made.settings.windows == layer
    made = (await create(shared, link_settings(windows=layer))).network_settings
    assert made.windows == layer
    made = (await create(shared, acquisition(tracker_id=f"t{number}", name=f"T{number}", windows=layer))).tracker
    assert made.windows == layer


@pytest.mark.parametrize("path", LAYERS)
@pytest.mark.parametrize(("name", "window", "at", "reason"), WRONG_WINDOWS, ids=told)
@pytest.mark.asyncio(loop_scope="session")
async def test_windows_beyond_their_ranges(
    shared: Stub, path: str, name: str, window: Window, at: str, reason: str
) -> None:
    """B2, on every layer."""
    refused = create(shared, LAYERS[path](windows(**{name: window})))
    assert await wrong_fields(refused) == {(f"{path}.windows.{name}{at}", reason)}


GOOD: dict[str, Message] = {
    "app name of 128": app(app_id="new", name="é" * 128),
    "app id of 64": app(app_id="Az09._-" + "x" * 57, name="New"),
    "app with everything": app(
        app_id="new",
        name="New",
        bundle_id="com.example.demo",
        store_app_id="id123",
        time_zone="America/Argentina/Buenos_Aires",
        currency_code="JPY",
        url_schemes=["demo", "com.example+demo.1-x"],
        sandbox=True,
    ),
    "auth keys": app(app_id="new", name="New", auth_keys={"!~" * 64: "s" * 8, "k": "s" * 256}),
    "strict": app(app_id="new", name="New", auth_keys={"k": "s" * 8}, settings={"strict_authentication": True}),
    "origins": app_settings(
        allowed_origins=["https://shop.example", "http://localhost:8000", "https://[::1]:1", "https://a"]
    ),
    "every origin": app_settings(allowed_origins=["*"]),
    "64 origins": app_settings(allowed_origins=[f"https://{number}.example" for number in range(64)]),
    "shortest settings": app_settings(
        install_reprocessing_window=seconds(DAY),
        late_window=seconds(0),
        inactivity_window=seconds(0),
        max_record_age=seconds(HOUR),
        max_record_lead=seconds(0),
        retention=seconds(60 * DAY),
    ),
    "longest settings": app_settings(
        install_reprocessing_window=seconds(365 * DAY),
        late_window=seconds(7 * DAY),
        inactivity_window=seconds(90 * DAY),
        max_record_age=seconds(31 * DAY),
        max_record_lead=seconds(DAY),
        records_per_second=2**31 - 1,
        retention=seconds(760 * DAY),
    ),
    "network name of 128": network(network_id="new", name="x" * 128),
    "redact": link_settings(granular_data_policy=NetworkSettings.GRANULAR_DATA_POLICY_REDACT),
    "late pings off": link_settings(late_pings=seconds(0)),
    "latest pings": link_settings(late_pings=seconds(12 * HOUR)),
    "MTR off": event(min_time_to_reengagement=seconds(0)),
    "longest MTR": event(min_time_to_reengagement=seconds(365 * DAY)),
    "shortest period": event(reengagement_period=seconds(MINUTE)),
    "longest period": event(reengagement_period=seconds(3650 * DAY)),
    "event name of 128": event(event_name="x" * 128),
    "event name with spaces": event(event_name="Level 3 – fertig"),
    "http install URL with port": acquisition(install_url="http://apps.example:8080/x?y={z}#f"),
    "deep link of the app": acquisition(deep_link="demo://item/{id}?q=1"),
    "places to lead to, and what says who may open links": app(
        app_id="kodemo9",
        name="Demo 9",
        bundle_id="com.demo",
        fallback_url="https://demo.example/app?x=1",
        link_domains=["go.demo.example", "demo-1.example"],
        apple_team_id="ABCDE12345",
    ),
    "fingerprints": android_app(
        app_id="kodemo9", name="Demo 9", certificate_fingerprints=[":".join(["0A"] * 32), ":".join(["FF"] * 32)]
    ),
    "blocklist": app(
        app_id="kodemo9",
        name="Demo 9",
        settings=app_pb2.AppSettings(
            blocklist=[
                app_pb2.BlocklistEntry(site_id="s", reason="a farm"),
                app_pb2.BlocklistEntry(ip_range="203.0.113.7", reason="a farm"),
                app_pb2.BlocklistEntry(ip_range="2001:db8::/48", reason="a farm"),
                app_pb2.BlocklistEntry(device_id="d", reason="a farm"),
            ]
        ),
    ),
    "https deep link": acquisition(deep_link="https://apps.example/item"),
    "landing page": acquisition(destination_type=Tracker.DESTINATION_TYPE_LANDING_PAGE),
    "64 custom parameters": acquisition(custom_parameters={f"k{number}": "v" for number in range(64)}),
    "shortest click key": acquisition(click_validation_key="k" * 16),
    "longest click key": acquisition(click_validation_key="k" * 256),
    "engagements spent at once": acquisition(max_conversions_per_engagement=1),
    "several events": reengagement(events=["SessionBegin", "Purchase", "Login"]),
    "SAN without URL": san_reengagement(),
    "SAN acquisition": san_reengagement(type=Tracker.TYPE_ACQUISITION, events=[]),
    "SAN windows empty": san_reengagement(windows=Windows()),
    "SAN view of 14 days by the default": san_reengagement(post_view_window=seconds(14 * DAY)),
}
GOOD |= {
    f"SAN engagement {days} days": san_reengagement(post_engagement_window=seconds(days * DAY))
    for days in (1, 7, 14, 30)
}
GOOD |= {
    f"SAN view {days} days": san_reengagement(
        post_engagement_window=seconds(30 * DAY), post_view_window=seconds(days * DAY)
    )
    for days in (0, 1, 7, 14, 30)
}

REQUIRED, TOO_LONG, NOT_ALLOWED, DUPLICATE = "REQUIRED", "TOO_LONG", "NOT_ALLOWED", "DUPLICATE"
OUT_OF_RANGE, UNKNOWN_VALUE, INVALID_ID, INVALID_URL = "OUT_OF_RANGE", "UNKNOWN_VALUE", "INVALID_ID", "INVALID_URL"
INVALID_SCHEME, INVALID_TEXT, TOO_MANY = "INVALID_SCHEME", "INVALID_TEXT", "TOO_MANY"
MACRO_IN_TARGET = "MACRO_IN_TARGET"
MISMATCH = "PLATFORM_MISMATCH"

WRONG: dict[str, tuple[Message, set[tuple[str, str]]]] = {
    "places to lead to": (
        app(
            fallback_url="https://demo.example/{x}",
            link_domains=[
                "Go.demo.example",
                "demo",
                "a.example",
                "a.example",
                "a.example/b",
                "-a.example",
                "a.example:80",
            ],
            apple_team_id="abcde12345",
            certificate_fingerprints=[":".join(["0A"] * 32)],
        ),
        {
            ("app.fallback_url", NOT_ALLOWED),
            *((f"app.link_domains[{index}]", INVALID_TEXT) for index in (0, 1, 4, 5, 6)),
            ("app.link_domains[3]", DUPLICATE),
            ("app.apple_team_id", INVALID_ID),
            ("app.certificate_fingerprints", NOT_ALLOWED),
        },
    ),
    "places to lead to on Android": (
        android_app(
            fallback_url="demo://x",
            link_domains=[f"a{number}.example" for number in range(17)],
            apple_team_id="ABCDE12345",
            certificate_fingerprints=["0A", ":".join(["0a"] * 32)],
        ),
        {
            ("app.fallback_url", INVALID_SCHEME),
            ("app.link_domains", TOO_MANY),
            ("app.apple_team_id", NOT_ALLOWED),
            ("app.certificate_fingerprints[0]", INVALID_TEXT),
            ("app.certificate_fingerprints[1]", INVALID_TEXT),
        },
    ),
    "blocklist": (
        app(
            settings=app_pb2.AppSettings(
                blocklist=[
                    app_pb2.BlocklistEntry(reason="nothing"),
                    app_pb2.BlocklistEntry(site_id="", reason="nothing"),
                    app_pb2.BlocklistEntry(site_id="s"),
                    app_pb2.BlocklistEntry(ip_range="here", reason="x" * 129),
                    app_pb2.BlocklistEntry(device_id="x" * 257, reason="x"),
                ]
            )
        ),
        {
            ("app.settings.blocklist[0]", REQUIRED),
            ("app.settings.blocklist[1]", REQUIRED),
            ("app.settings.blocklist[2].reason", REQUIRED),
            ("app.settings.blocklist[3].reason", TOO_LONG),
            ("app.settings.blocklist[3].ip_range", "INVALID_IP_ADDRESS"),
            ("app.settings.blocklist[4].device_id", TOO_LONG),
        },
    ),
    "a long blocklist": (
        app(settings=app_pb2.AppSettings(blocklist=[app_pb2.BlocklistEntry(site_id="s", reason="x")] * 201)),
        {("app.settings.blocklist", TOO_MANY)},
    ),
    "intent on iOS": (
        acquisition(deep_link="intent://p#Intent;scheme=demo;end"),
        {("tracker.deep_link", NOT_ALLOWED)},
    ),
    "auth keys": (
        app(app_id="new", name="New", auth_keys={"": "s" * 8, "a b": "s" * 8, "k": "s" * 7}),
        {("app.auth_keys", TOO_MANY), ("app.auth_keys", INVALID_ID), ("app.auth_keys[k]", OUT_OF_RANGE)},
    ),
    "auth keys beyond": (
        app(app_id="new", name="New", auth_keys={"k" * 129: "s" * 8, "k": "s" * 257}),
        {("app.auth_keys", INVALID_ID), ("app.auth_keys[k]", OUT_OF_RANGE)},
    ),
    "strict without a key": (
        app_settings(strict_authentication=True),
        {("app.settings.strict_authentication", NOT_ALLOWED)},
    ),
    "origins": (
        app_settings(
            allowed_origins=[
                "shop.example",
                "https://shop.example/",
                "https://Shop.example",
                "https://a.example:443",
                "http://a.example:80",
                "ftp://a.example",
                "https://a.example",
                "https://a.example",
                "*",
                "null",
                "",
                "https://u@a.example",
                "https://a.example?q",
            ]
        ),
        {
            *(
                (f"app.settings.allowed_origins[{index}]", "INVALID_ORIGIN")
                for index in (0, 1, 2, 3, 4, 5, 9, 10, 11, 12)
            ),
            ("app.settings.allowed_origins[7]", DUPLICATE),
            ("app.settings.allowed_origins[8]", NOT_ALLOWED),
        },
    ),
    "65 origins": (
        app_settings(allowed_origins=[f"https://{number}.example" for number in range(65)]),
        {("app.settings.allowed_origins", TOO_MANY)},
    ),
    "empty app": (app_pb2.App(), {("app.name", REQUIRED), ("app.platform", REQUIRED)}),
    "everything at once": (
        app_pb2.App(
            app_id="a b",
            name="x" * 129,
            time_zone="Mars/Base",
            currency_code="usd",
            url_schemes=["Demo", "https", "demo", "demo", "1x", "javascript"],
            settings=app_pb2.AppSettings(
                windows=windows(click_ip=lasting(1), event_association=DISABLED),
                install_reprocessing_window=seconds(DAY - 1),
                late_window=seconds(-1),
                inactivity_window=seconds(-1),
                max_record_age=seconds(HOUR - 1),
                max_record_lead=seconds(-1),
                records_per_second=-1,
                retention=seconds(61 * DAY),
            ),
        ),
        {
            ("app.app_id", INVALID_ID),
            ("app.name", TOO_LONG),
            ("app.platform", REQUIRED),
            ("app.time_zone", UNKNOWN_VALUE),
            ("app.currency_code", UNKNOWN_VALUE),
            ("app.url_schemes[0]", INVALID_SCHEME),
            ("app.url_schemes[1]", NOT_ALLOWED),
            ("app.url_schemes[3]", DUPLICATE),
            ("app.url_schemes[4]", INVALID_SCHEME),
            ("app.url_schemes[5]", NOT_ALLOWED),
            ("app.settings.windows.click_ip.duration", OUT_OF_RANGE),
            ("app.settings.windows.event_association.disabled", NOT_ALLOWED),
            ("app.settings.install_reprocessing_window", OUT_OF_RANGE),
            ("app.settings.late_window", OUT_OF_RANGE),
            ("app.settings.inactivity_window", OUT_OF_RANGE),
            ("app.settings.max_record_age", OUT_OF_RANGE),
            ("app.settings.max_record_lead", OUT_OF_RANGE),
            ("app.settings.records_per_second", OUT_OF_RANGE),
            ("app.settings.retention", OUT_OF_RANGE),
        },
    ),
    "settings beyond": (
        app_settings(
            install_reprocessing_window=seconds(365 * DAY + 1),
            late_window=seconds(7 * DAY + 1),
            inactivity_window=seconds(90 * DAY + 1),
            max_record_age=seconds(31 * DAY + 1),
            max_record_lead=seconds(DAY + 1),
        ),
        {
            ("app.settings.install_reprocessing_window", OUT_OF_RANGE),
            ("app.settings.late_window", OUT_OF_RANGE),
            ("app.settings.inactivity_window", OUT_OF_RANGE),
            ("app.settings.max_record_age", OUT_OF_RANGE),
            ("app.settings.max_record_lead", OUT_OF_RANGE),
        },
    ),
    "late window in parts of a second": (
        app_settings(late_window=seconds(HOUR, nanos=1)),
        {("app.settings.late_window", OUT_OF_RANGE)},
    ),
    "pings too late": (
        link_settings(late_pings=seconds(12 * HOUR + 1)),
        {("network_settings.late_pings", OUT_OF_RANGE)},
    ),
    "pings before their time": (
        link_settings(late_pings=seconds(-1)),
        {("network_settings.late_pings", OUT_OF_RANGE)},
    ),
    "enums of a later version": (
        app(platform=9, settings={"device_attribution": 9, "modeled_level": 9}),
        {
            ("app.platform", UNKNOWN_VALUE),
            ("app.settings.device_attribution", UNKNOWN_VALUE),
            ("app.settings.modeled_level", UNKNOWN_VALUE),
        },
    ),
    "id of 65": (app(app_id="x" * 65), {("app.app_id", INVALID_ID)}),
    "time zone beyond its folder": (app(time_zone="../UTC"), {("app.time_zone", UNKNOWN_VALUE)}),
    "too large": (app(bundle_id="x" * 16_000), {("app", "TOO_LARGE")}),
    "control character": (app(name="De\nmo"), {("app.name", INVALID_TEXT)}),
    "empty network": (Network(), {("network.name", REQUIRED), ("network.platform", REQUIRED)}),
    "empty campaign": (
        campaign_pb2.Campaign(),
        {("campaign.app_id", REQUIRED), ("campaign.name", REQUIRED)},
    ),
    "campaign of what cannot be": (campaign(app_id="null\x00"), {("campaign.app_id", INVALID_ID)}),
    "empty segment": (
        segment_pb2.Segment(),
        {("segment.campaign_id", REQUIRED), ("segment.name", REQUIRED)},
    ),
    "segment of what cannot be": (segment(campaign_id="/"), {("segment.campaign_id", INVALID_ID)}),
    "empty event": (
        event_definition_pb2.EventDefinition(),
        {("event_definition.app_id", REQUIRED), ("event_definition.event_name", REQUIRED)},
    ),
    "event beyond": (
        event(
            event_name="x" * 129,
            min_time_to_reengagement=seconds(365 * DAY + 1),
            reengagement_period=seconds(MINUTE - 1),
        ),
        {
            ("event_definition.event_name", TOO_LONG),
            ("event_definition.min_time_to_reengagement", OUT_OF_RANGE),
            ("event_definition.reengagement_period", OUT_OF_RANGE),
        },
    ),
    "event below": (
        event(min_time_to_reengagement=seconds(-1), reengagement_period=seconds(3650 * DAY + 1)),
        {
            ("event_definition.min_time_to_reengagement", OUT_OF_RANGE),
            ("event_definition.reengagement_period", OUT_OF_RANGE),
        },
    ),
    "network settings of another platform": (
        link_settings(network_id="acme-android"),
        {("network_settings.network_id", MISMATCH)},
    ),
    "policy of a later version": (
        link_settings(granular_data_policy=9),
        {("network_settings.granular_data_policy", UNKNOWN_VALUE)},
    ),
    "empty tracker": (
        Tracker(),
        {("tracker.segment_id", REQUIRED), ("tracker.network_id", REQUIRED)},
    ),
    "tracker without URL": (acquisition(install_url=""), {("tracker.install_url", REQUIRED)}),
    "tracker of another platform": (acquisition(network_id="acme-android"), {("tracker.network_id", MISMATCH)}),
    "acquisition with events": (acquisition(events=["Purchase"]), {("tracker.events", NOT_ALLOWED)}),
    "reengagement without events": (reengagement(events=[]), {("tracker.events", REQUIRED)}),
    "events twice and wrong": (
        reengagement(events=["Purchase", "Purchase", "", "x" * 129]),
        {("tracker.events[1]", DUPLICATE), ("tracker.events[2]", REQUIRED), ("tracker.events[3]", TOO_LONG)},
    ),
    "SAN with two events": (
        san_reengagement(events=["Purchase", "Login"]),
        {("tracker.events", TOO_MANY)},
    ),
    "SAN with windows": (
        san_reengagement(windows=windows(click_device=lasting(DAY))),
        {("tracker.windows", NOT_ALLOWED)},
    ),
    "SAN settings of a link-based network": (
        acquisition(post_engagement_window=seconds(7 * DAY), post_view_window=seconds(DAY), default_tracker=True),
        {
            ("tracker.post_engagement_window", NOT_ALLOWED),
            ("tracker.post_view_window", NOT_ALLOWED),
            ("tracker.default_tracker", NOT_ALLOWED),
        },
    ),
    "referrer on iOS": (
        acquisition(
            destination_type=Tracker.DESTINATION_TYPE_GOOGLE_REFERRER, install_url="market://details?id=com.example"
        ),
        {("tracker.destination_type", NOT_ALLOWED)},
    ),
    "tracker enums of a later version": (
        acquisition(type=9, destination_type=9),
        {("tracker.type", UNKNOWN_VALUE), ("tracker.destination_type", UNKNOWN_VALUE)},
    ),
    "numbers below": (
        acquisition(max_conversions_per_engagement=-1, click_validation_key="k" * 15),
        {
            ("tracker.max_conversions_per_engagement", OUT_OF_RANGE),
            ("tracker.click_validation_key", OUT_OF_RANGE),
        },
    ),
    "click key beyond": (acquisition(click_validation_key="k" * 257), {("tracker.click_validation_key", OUT_OF_RANGE)}),
    "custom parameters beyond": (
        acquisition(custom_parameters={"": "v"} | {f"k{number}": "v" for number in range(64)}),
        {("tracker.custom_parameters", TOO_MANY), ("tracker.custom_parameters", REQUIRED)},
    ),
    "view window above engagement window": (
        san_reengagement(post_engagement_window=seconds(7 * DAY), post_view_window=seconds(14 * DAY)),
        {("tracker.post_view_window", OUT_OF_RANGE)},
    ),
    "view window above the default engagement window": (
        san_reengagement(post_view_window=seconds(30 * DAY)),
        {("tracker.post_view_window", OUT_OF_RANGE)},
    ),
}
WRONG |= {
    f"SAN engagement {text}": (
        san_reengagement(post_engagement_window=window),
        {("tracker.post_engagement_window", OUT_OF_RANGE)},
    )
    for text, window in {
        "0": seconds(0),
        "2 days": seconds(2 * DAY),
        "a nanosecond over": seconds(7 * DAY, nanos=1),
        "-1 day": seconds(-DAY),
    }.items()
}
WRONG |= {
    f"SAN view {text}": (san_reengagement(post_view_window=window), {("tracker.post_view_window", OUT_OF_RANGE)})
    for text, window in {"3 days": seconds(3 * DAY), "1 second": seconds(1)}.items()
}
WRONG |= {
    f"install URL {url!r}": (acquisition(install_url=url), {("tracker.install_url", reason)})
    for url, reason in {
        "apps.example/x": INVALID_SCHEME,
        "//apps.example/x": INVALID_SCHEME,
        "demo://x": INVALID_SCHEME,
        "javascript:alert(1)": INVALID_SCHEME,
        "https:///x": INVALID_URL,
        "https://": INVALID_URL,
        "https://[::1": INVALID_URL,
        "https://a:99999/": INVALID_URL,
        "https://a.example/a b": INVALID_URL,
        "https://a.example/\r\nSet-Cookie: x": INVALID_URL,
        "https://a.example\\b": INVALID_URL,
        "{url}": MACRO_IN_TARGET,
        "{scheme}://a.example/": MACRO_IN_TARGET,
        "https://{host}/": MACRO_IN_TARGET,
        "https://{shop}.example/": MACRO_IN_TARGET,
        "https://a.example:{port}/": MACRO_IN_TARGET,
        "https://{user}@a.example/": MACRO_IN_TARGET,
        "https://a.example{path}": MACRO_IN_TARGET,
    }.items()
}
WRONG |= {
    f"deep link {url!r}": (acquisition(deep_link=url), {("tracker.deep_link", reason)})
    for url, reason in {
        "http://apps.example/x": INVALID_SCHEME,
        "other://x": INVALID_SCHEME,
        "javascript:alert(1)": INVALID_SCHEME,
        "item/1": INVALID_SCHEME,
        "https:x": INVALID_URL,
        "{link}": MACRO_IN_TARGET,
        "demo://{page}/x": MACRO_IN_TARGET,
        "demo:/{a}/{b}": MACRO_IN_TARGET,
    }.items()
}
# Fields of the seeds: traffic rules, accounts, target event, agency, networks
RULES = "tracker.traffic_rules"


def ruled(**rules: Any) -> Tracker:
    return acquisition(traffic_rules=TrafficRules(**rules))


def at(moment_s: int) -> Timestamp:
    return Timestamp(seconds=moment_s)


def countries(number: int) -> list[str]:
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return [first + second for first in letters for second in letters][:number]


GOOD |= {
    "all traffic rules": ruled(
        start_time=at(1), end_time=at(2), min_os_version="9", max_os_version="17.4.1", allowed_countries=countries(250)
    ),
    "blocked countries": ruled(blocked_countries=["DE"]),
    "operating systems and types of devices": ruled(
        allowed_os=[PLATFORM_ANDROID, PLATFORM_IOS], allowed_device_types=[TrafficRules.DEVICE_TYPE_TV]
    ),
    "the highest version includes the lowest": ruled(min_os_version="17.4", max_os_version="17"),
    "target event": san_reengagement(target_event="x" * 128, bundle_id="b" * 128),
    "not shared": acquisition(share_with_publisher=False),
    "SAN network's windows": san(
        network_id="new", name="New", post_engagement_windows=[seconds(DAY), seconds(90 * DAY)],
        post_view_windows=[seconds(0), seconds(90 * DAY)],
    ),
    "event's own name": event(display_name="x" * 128, revenue=True, disabled=True),
    "needs": network(network_id="new", name="New", postback_needs=[PostbackNeed(name=f"n{n}") for n in range(16)]),
}  # fmt: skip
WRONG |= {
    "end at the start": (ruled(start_time=at(5), end_time=at(5)), {(f"{RULES}.end_time", OUT_OF_RANGE)}),
    "end beyond time": (ruled(end_time=at(253_402_300_800)), {(f"{RULES}.end_time", OUT_OF_RANGE)}),
    "versions": (
        ruled(min_os_version="17.x", max_os_version="1.2.3.4"),
        {(f"{RULES}.min_os_version", "INVALID_VERSION"), (f"{RULES}.max_os_version", "INVALID_VERSION")},
    ),
    "operating systems": (
        ruled(allowed_os=[0, PLATFORM_IOS, PLATFORM_IOS]),
        {(f"{RULES}.allowed_os[0]", "UNKNOWN_VALUE"), (f"{RULES}.allowed_os[2]", "DUPLICATE")},
    ),
    "a type of device nobody knows": (
        ruled(allowed_device_types=[9]), {(f"{RULES}.allowed_device_types[0]", "UNKNOWN_VALUE")},
    ),
    "highest version below lowest": (
        ruled(min_os_version="17.5", max_os_version="17.4"), {(f"{RULES}.max_os_version", OUT_OF_RANGE)},
    ),
    "countries": (
        ruled(allowed_countries=["de", "AT", "AT"]),
        {(f"{RULES}.allowed_countries[0]", "UNKNOWN_VALUE"), (f"{RULES}.allowed_countries[2]", "DUPLICATE")},
    ),
    "both lists of countries": (
        ruled(allowed_countries=["DE"], blocked_countries=["AT"]), {(f"{RULES}.blocked_countries", "NOT_ALLOWED")},
    ),
    "251 countries": (ruled(blocked_countries=countries(251)), {(f"{RULES}.blocked_countries", "TOO_MANY")}),
    "what only self-attributing networks have": (
        acquisition(target_event="PURCHASE", san_account_ids=["x1"], bundle_id="b"),
        {(f"tracker.{name}", "NOT_ALLOWED") for name in ("target_event", "san_account_ids", "bundle_id")},
    ),
    "long texts of a SAN's tracker": (
        san_reengagement(target_event="x" * 129, bundle_id="b\n"),
        {("tracker.target_event", "TOO_LONG"), ("tracker.bundle_id", "INVALID_TEXT")},
    ),
    "agency that cannot be": (acquisition(agency_id="no id"), {("tracker.agency_id", "INVALID_ID")}),
    "network's windows": (
        san(
            network_id="new", name="New", post_engagement_windows=[seconds(0), seconds(91 * DAY)],
            post_view_windows=[seconds(DAY + 1), seconds(-DAY)],
        ),
        {(f"network.post_{kind}_windows[{at}]", OUT_OF_RANGE) for kind in ("engagement", "view") for at in (0, 1)},
    ),
    "link-based network's windows": (
        network(network_id="new", name="New", post_view_windows=[seconds(0)]),
        {("network.post_view_windows", "NOT_ALLOWED")},
    ),
    "needs of a network": (
        network(network_id="new", name="New", postback_needs=[PostbackNeed(name="No", description="x" * 257)] * 17),
        {("network.postback_needs", "TOO_MANY")}
        | {(f"network.postback_needs[{at}].name", "INVALID_ID") for at in range(17)}
        | {(f"network.postback_needs[{at}].description", "TOO_LONG") for at in range(17)},
    ),
    "event's long name": (event(display_name="x" * 129), {("event_definition.display_name", "TOO_LONG")}),
    "SAN account": (
        samples.san_account(name="", external_id="x" * 129, credentials={"a b": "x", "empty": "", "long": "x" * 4097}),
        {
            ("san_account.name", "REQUIRED"),
            ("san_account.external_id", "TOO_LONG"),
            ("san_account.credentials", "INVALID_ID"),
            ("san_account.credentials[empty]", OUT_OF_RANGE),
            ("san_account.credentials[long]", OUT_OF_RANGE),
        },
    ),
    "SAN account with a link-based network": (
        samples.san_account(network_id="acme-ios"), {("san_account.network_id", "NOT_ALLOWED")},
    ),
    "SAN account on another platform": (
        samples.san_account(network_id="x-android"), {("san_account.network_id", "PLATFORM_MISMATCH")},
    ),
    "account without a name": (samples.account(name=""), {("account.name", "REQUIRED")}),
    "agency without a name": (samples.agency(name=""), {("agency.name", "REQUIRED")}),
}  # fmt: skip


async def create_all_parents(tracker: Stub) -> None:
    await create_parents(tracker)
    await create(tracker, android_app())
    await create(tracker, network(network_id="acme-android", name="Acme Android", platform=PLATFORM_ANDROID))


@pytest.mark.parametrize("resource", GOOD.values(), ids=GOOD.keys())
async def test_right(tracker: Stub, resource: Message) -> None:
    await create_all_parents(tracker)
    await create(tracker, resource)


@pytest.mark.parametrize(("resource", "wrong"), WRONG.values(), ids=WRONG.keys())
@pytest.mark.asyncio(loop_scope="session")
async def test_wrong(shared: Stub, resource: Message, wrong: set[tuple[str, str]]) -> None:
    assert await wrong_fields(create(shared, resource)) == wrong


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"install_url": "https://play.google.com/store/apps/details?id=com.example"}, None),
        ({"install_url": "market://details?id=com.example"}, None),
        ({"install_url": "https://shop.example/details?id=com.example"}, NOT_ALLOWED),
        ({"install_url": "https://play.google.com.evil.example/store/apps/details?id=x"}, NOT_ALLOWED),
        ({"install_url": "market://search?q=x"}, NOT_ALLOWED),
        ({"install_url": "demo://x"}, INVALID_SCHEME),
        ({"destination_type": 0, "install_url": "market://details?id=com.example"}, INVALID_SCHEME),
    ],
)
async def test_referrer_on_android(tracker: Stub, fields: dict[str, Any], wrong: str | None) -> None:
    await create_android(tracker)
    referrer = {"destination_type": Tracker.DESTINATION_TYPE_GOOGLE_REFERRER, **fields}
    made = acquisition(segment_id="s2", network_id="acme-android", **referrer)
    if wrong is None:
        assert (await create(tracker, made)).tracker.app_id == "kodemo2"
    else:
        assert await wrong_fields(create(tracker, made)) == {("tracker.install_url", wrong)}


@pytest.mark.parametrize(
    ("deep_link", "wrong"),
    [
        ("intent://p/{id}?q={q}#Intent;scheme=demo;package=com.demo;S.k={k};end", None),
        ("intent://p#Intent;scheme=https;end", None),
        ("intent://p#Intent;scheme=other;end", INVALID_SCHEME),
        ("intent://p#Intent;package=com.demo;end", INVALID_SCHEME),
        ("intent://p#Intent;scheme={s};end", MACRO_IN_TARGET),
    ],
)
async def test_intents_of_schemes_that_the_app_registered(tracker: Stub, deep_link: str, wrong: str | None) -> None:
    await create_android(tracker)
    made = acquisition(segment_id="s2", network_id="acme-android", deep_link=deep_link)
    if wrong is None:
        assert (await create(tracker, made)).tracker.deep_link == deep_link
    else:
        assert await wrong_fields(create(tracker, made)) == {("tracker.deep_link", wrong)}


async def create_android(tracker: Stub) -> None:
    """Makes what trackers of an Android app hang on."""
    await create_all_parents(tracker)
    await create(tracker, campaign(campaign_id="c2", app_id="kodemo2"))
    await create(tracker, segment(segment_id="s2", campaign_id="c2"))


async def test_defaults_of_texts_and_enums_are_filled_in(tracker: Stub) -> None:
    await create_parents(tracker)
    made = (await create(tracker, app(app_id="new", name="New"))).app
    assert (made.time_zone, made.currency_code, made.HasField("settings")) == ("UTC", "USD", False)
    made = (await create(tracker, acquisition())).tracker
    assert made.type == Tracker.TYPE_ACQUISITION
    assert made.destination_type == Tracker.DESTINATION_TYPE_CUSTOM
    made = (await create(tracker, san(network_id="new", name="New"))).network
    assert not made.HasField("supports_impressions")


async def test_wrong_fields_come_before_missing_parents(tracker: Stub) -> None:
    wrong = acquisition(segment_id="nobody", install_url="ftp://x", max_conversions_per_engagement=-1)
    assert await wrong_fields(create(tracker, wrong)) == {
        ("tracker.install_url", INVALID_SCHEME),
        ("tracker.max_conversions_per_engagement", OUT_OF_RANGE),
    }
