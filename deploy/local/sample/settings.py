"""The sample's settings: two apps, their networks, trackers, events, windows and postbacks.

Creating them is repeat-safe, and what someone has changed since is left as he wants it.
"""

from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from yarl import URL

from deploy.local.x_network import SECRETS
from reengage.postback.v1 import configuration_pb2
from reengage.postback.v1 import service_pb2_grpc as postback_grpc
from reengage.tracker.v1 import (
    app_pb2,
    campaign_pb2,
    event_definition_pb2,
    network_pb2,
    network_settings_pb2,
    san_account_pb2,
    segment_pb2,
    service_pb2_grpc,
    snapshot_pb2,
    tracker_pb2,
)
from reengage.tracker.v1.app_pb2 import PLATFORM_ANDROID, PLATFORM_IOS, App, AppSettings
from reengage.tracker.v1.campaign_pb2 import Campaign
from reengage.tracker.v1.event_definition_pb2 import EventDefinition
from reengage.tracker.v1.network_pb2 import Network
from reengage.tracker.v1.network_settings_pb2 import NetworkSettings
from reengage.tracker.v1.san_account_pb2 import SanAccount
from reengage.tracker.v1.segment_pb2 import Segment
from reengage.tracker.v1.tracker_pb2 import Tracker
from reengage.tracker.v1.windows_pb2 import Window, Windows

IOS, ANDROID = "shop-ios", "shop-android"
MINUTE, HOUR, DAY = 60, 3600, 86400

_ARCHIVED = configuration_pb2.Configuration.STATUS_ARCHIVED

# What may be there already, in a form that someone wanted otherwise.
_LEFT_ALONE = (grpc.StatusCode.ALREADY_EXISTS, grpc.StatusCode.FAILED_PRECONDITION)


def _window(seconds: int) -> Window:
    return Window(duration=Duration(seconds=seconds))


APPS = (
    App(
        app_id=IOS,
        name="Sample Shop iOS",
        platform=PLATFORM_IOS,
        bundle_id="com.example.shop",
        store_app_id="id1234567890",
        time_zone="Europe/Berlin",
        currency_code="EUR",
        url_schemes=["sampleshop"],
        fallback_url="https://shop.example/",
        # The app's layer: a mere IP says little after a day.
        settings=AppSettings(windows=Windows(click_ip=_window(DAY))),
    ),
    App(
        app_id=ANDROID,
        name="Sample Shop Android",
        platform=PLATFORM_ANDROID,
        bundle_id="com.example.shop",
        store_app_id="com.example.shop",
        currency_code="USD",
        url_schemes=["sampleshop"],
        fallback_url="https://shop.example/",
        settings=AppSettings(install_reprocessing_window=Duration(seconds=20 * DAY), prioritize_completed_view=True),
    ),
)

NETWORKS = (
    Network(network_id="acme-ios", name="Acme Ads iOS", platform=PLATFORM_IOS),
    Network(network_id="bravo-ios", name="Bravo Media iOS", platform=PLATFORM_IOS, supports_impressions=False),
    Network(network_id="x-ios", name="X iOS", platform=PLATFORM_IOS, self_attributing=True),
    Network(network_id="acme-android", name="Acme Ads Android", platform=PLATFORM_ANDROID),
    Network(network_id="viewly-android", name="Viewly Video Android", platform=PLATFORM_ANDROID),
)

# The network's layer, for one app.
NETWORK_SETTINGS = (
    NetworkSettings(app_id=IOS, network_id="bravo-ios", windows=Windows(click_device=_window(7 * DAY))),
    NetworkSettings(app_id=ANDROID, network_id="viewly-android", windows=Windows(impression_device=_window(6 * HOUR))),
)

SAN_ACCOUNTS = (
    SanAccount(
        san_account_id="x-shop", app_id=IOS, network_id="x-ios", name="Our X", credentials=SECRETS, verified=True
    ),
)

CAMPAIGNS = (
    Campaign(campaign_id="ios-spring", app_id=IOS, name="Spring launch"),
    Campaign(campaign_id="ios-return", app_id=IOS, name="Come back"),
    Campaign(campaign_id="android-spring", app_id=ANDROID, name="Spring launch"),
    Campaign(campaign_id="android-return", app_id=ANDROID, name="Come back"),
)

SEGMENTS = tuple(
    Segment(segment_id=f"{campaign.campaign_id}-all", campaign_id=campaign.campaign_id, name="Everybody")
    for campaign in CAMPAIGNS
)


def _tracker(
    tracker_id: str,
    network_id: str,
    *events: str,
    windows: Windows | None = None,
    destination_type: Tracker.DestinationType.ValueType = Tracker.DESTINATION_TYPE_CUSTOM,
    max_conversions_per_engagement: int = 0,
) -> Tracker:
    """Returns a tracker of the campaign that its id begins with: for reengagement when it has events."""
    platform = tracker_id.partition("-")[0]
    play = "https://play.google.com/store/apps/details?id=com.example.shop"
    store = "https://apps.apple.com/app/id1234567890" if platform == "ios" else play
    return Tracker(
        tracker_id=tracker_id,
        segment_id=f"{platform}-{'return' if events else 'spring'}-all",
        network_id=network_id,
        name=tracker_id,
        type=Tracker.TYPE_REENGAGEMENT if events else Tracker.TYPE_ACQUISITION,
        destination_type=destination_type,
        install_url=store,
        # A dynamic deep link: the click's `sku` says which product.
        deep_link="sampleshop://product/{sku}" if events else "",
        custom_parameters={"sku": "home"} if events else {},
        events=events,
        windows=windows,
        max_conversions_per_engagement=max_conversions_per_engagement,
    )


TRACKERS = (
    _tracker("ios-acme-spring", "acme-ios"),
    _tracker("ios-bravo-spring", "bravo-ios"),
    _tracker("ios-acme-return", "acme-ios", "Purchase", "AddToCart", "Subscribe"),
    _tracker("ios-bravo-return", "bravo-ios", "Purchase", "SessionBegin"),
    _tracker("ios-acme-retired", "acme-ios"),
    Tracker(
        tracker_id="ios-x-return",
        segment_id="ios-return-all",
        network_id="x-ios",
        name="ios-x-return",
        type=Tracker.TYPE_REENGAGEMENT,
        events=["Subscribe"],
        default_tracker=True,
        post_engagement_window=Duration(seconds=14 * DAY),
        san_account_ids=["x-shop"],
    ),
    _tracker(
        "android-acme-spring", "acme-android", destination_type=Tracker.DESTINATION_TYPE_GOOGLE_REFERRER
    ),
    _tracker("android-viewly-spring", "viewly-android"),
    _tracker("android-acme-return", "acme-android", "Purchase", "LevelUp"),
    # The tracker's layer, and a limit on what one click may win.
    _tracker(
        "android-acme-flash", "acme-android", "AddToCart",
        windows=Windows(click_device=_window(2 * HOUR)), max_conversions_per_engagement=1,
    ),
    _tracker("android-viewly-return", "viewly-android", "Purchase", "SessionBegin"),
    _tracker("android-acme-retired", "acme-android", "Purchase"),
)  # fmt: skip
ARCHIVED = ("ios-acme-retired", "android-acme-retired")


def _event(app_id: str, name: str, mtr: int, period: int = 0) -> EventDefinition:
    return EventDefinition(
        app_id=app_id,
        event_name=name,
        min_time_to_reengagement=Duration(seconds=mtr),
        reengagement_period=Duration(seconds=period) if period else None,
    )


EVENTS = (
    *(_event(app_id, "Purchase", DAY) for app_id in (IOS, ANDROID)),
    *(_event(app_id, "AddToCart", 0) for app_id in (IOS, ANDROID)),
    *(_event(app_id, "SessionBegin", 0) for app_id in (IOS, ANDROID)),
    _event(IOS, "Subscribe", DAY),
    _event(ANDROID, "LevelUp", HOUR, 7 * DAY),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Postback:
    """A postback configuration of the sample; `path` is that of the network's endpoint, of `claims` that of its API."""

    configuration_id: str
    app_id: str
    network_id: str
    trigger: str
    path: str
    network_only: bool = True
    post: bool = False
    claims: bool = False
    """X is asked whether it drove the conversion."""


def _postbacks(app_id: str, network_id: str, path: str, *triggers: str, post: bool = False) -> list[Postback]:
    return [
        Postback(
            configuration_id=f"{network_id}-{trigger.strip('_').lower()}",
            app_id=app_id,
            network_id=network_id,
            trigger=trigger,
            path=path,
            post=post,
        )
        for trigger in triggers
    ]


POSTBACKS = (
    *_postbacks(IOS, "acme-ios", "acme", "_install", "Purchase", "AddToCart", post=True),
    *_postbacks(IOS, "bravo-ios", "bravo", "_install", "Purchase", "SessionBegin"),
    *_postbacks(ANDROID, "acme-android", "acme", "_install", "Purchase", post=True),
    *_postbacks(ANDROID, "viewly-android", "viewly", "_install", "Purchase"),
    # Sent to whoever won: the network learns of every registration.
    *(
        Postback(
            configuration_id=f"{network_id}-registration",
            app_id=app_id,
            network_id=network_id,
            trigger="Registration",
            path=path,
            network_only=False,
        )
        for app_id, network_id, path in ((IOS, "x-ios", "x"), (ANDROID, "acme-android", "closed"))
    ),
    Postback(
        configuration_id="x-ios-subscribe",
        app_id=IOS,
        network_id="x-ios",
        trigger="Subscribe",
        path="x",
        network_only=False,
        claims=True,
    ),
)


_QUERY = "event={event_name}&type={attribution_type}&click={click_id}&campaign={campaign}&value={revenue}{currency}"
_BODY = (
    '{"event": "{event_name}", "type": "{attribution_type}", "click_id": "{click_id}",'
    ' "tracker": "{tracker_id}", "revenue": "{revenue}", "currency": "{currency}",'
    ' "idfa": "{idfa}", "adid": "{adid}"}'
)


def configuration(postback: Postback, endpoint: str) -> configuration_pb2.Configuration:
    """Returns the configuration that sends to `<endpoint>/postbacks/<path>`, or asks `<endpoint>/<path>`."""
    if postback.claims:
        return configuration_pb2.Configuration(
            configuration_id=postback.configuration_id,
            app_id=postback.app_id,
            network_id=postback.network_id,
            trigger=postback.trigger,
            adapter="x",
            adapter_fields=ParseDict(
                {"app_id": "1234567890", "conversion_type": "PURCHASE", "base_url": f"{endpoint}/{postback.path}"},
                Struct(),
            ),
            # Somebody waits for the answer: rather none than a late one.
            attempt_timeout=Duration(seconds=1),
            retry_attempts=1,
        )
    url = f"{endpoint}/postbacks/{postback.path}"
    template: dict[str, Any] = {"url": f"{url}?{_QUERY}"}
    if postback.post:
        template = {"method": "POST", "url": url, "headers": {"Content-Type": "application/json"}, "body": _BODY}
    method = configuration_pb2.Configuration.DELIVERY_METHOD_ALL
    if postback.network_only:
        method = configuration_pb2.Configuration.DELIVERY_METHOD_NETWORK_ONLY
    return configuration_pb2.Configuration(
        configuration_id=postback.configuration_id,
        app_id=postback.app_id,
        network_id=postback.network_id,
        trigger=postback.trigger,
        adapter="template",
        adapter_fields=ParseDict(template, Struct()),
        delivery_method=method,
        is_revenue=postback.trigger == "Purchase",
    )


async def load(
    tracker_channel: grpc.aio.Channel, postback_channel: grpc.aio.Channel, endpoint: str, *, allowed_hosts: str = ""
) -> int:
    """Creates what is missing of the sample, its postbacks going to `endpoint`; returns the settings' revision.

    `allowed_hosts` is what someone has opened for servers of his own: what he has pointed there stays.
    """
    tracker = service_pb2_grpc.TrackerConfigServiceStub(tracker_channel)
    postback = postback_grpc.PostbackConfigServiceStub(postback_channel)
    calls: list[tuple[Any, Message]] = [
        *((tracker.CreateApp, app_pb2.CreateAppRequest(app=app)) for app in APPS),
        *((tracker.CreateNetwork, network_pb2.CreateNetworkRequest(network=network)) for network in NETWORKS),
        *(
            (tracker.CreateSanAccount, san_account_pb2.CreateSanAccountRequest(san_account=account))
            for account in SAN_ACCOUNTS
        ),
        *((tracker.CreateCampaign, campaign_pb2.CreateCampaignRequest(campaign=campaign)) for campaign in CAMPAIGNS),
        *((tracker.CreateSegment, segment_pb2.CreateSegmentRequest(segment=segment)) for segment in SEGMENTS),
        *(
            (tracker.CreateEventDefinition, event_definition_pb2.CreateEventDefinitionRequest(event_definition=event))
            for event in EVENTS
        ),
        *((tracker.CreateTracker, tracker_pb2.CreateTrackerRequest(tracker=made)) for made in TRACKERS),
        *((tracker.ArchiveTracker, tracker_pb2.ArchiveTrackerRequest(tracker_id=old)) for old in ARCHIVED),
        *(
            (
                postback.CreateConfiguration,
                configuration_pb2.CreateConfigurationRequest(configuration=configuration(wanted, endpoint)),
            )
            for wanted in POSTBACKS
        ),
    ]
    for call, request in calls:
        try:
            await call(request)
        except grpc.aio.AioRpcError as error:
            if error.code() not in _LEFT_ALONE:
                raise
    for settings in NETWORK_SETTINGS:
        await _set_windows(tracker, settings)
    for wanted in POSTBACKS:
        await _point(postback, wanted, endpoint, allowed_hosts)
    async for part in tracker.GetSnapshot(snapshot_pb2.GetSnapshotRequest()):
        return part.revision
    return 0


async def _set_windows(tracker: service_pb2_grpc.TrackerConfigServiceStub, settings: NetworkSettings) -> None:
    asked = network_settings_pb2.GetNetworkSettingsRequest(app_id=settings.app_id, network_id=settings.network_id)
    if not (await tracker.GetNetworkSettings(asked)).network_settings.HasField("windows"):
        mask = FieldMask(paths=["windows"])
        await tracker.UpdateNetworkSettings(
            network_settings_pb2.UpdateNetworkSettingsRequest(network_settings=settings, update_mask=mask)
        )


async def _point(
    postback: postback_grpc.PostbackConfigServiceStub, wanted: Postback, endpoint: str, allowed_hosts: str
) -> None:
    """Follows the local endpoint to another port, unless someone has pointed the configuration elsewhere."""
    asked = configuration_pb2.GetConfigurationRequest(configuration_id=wanted.configuration_id)
    stored = (await postback.GetConfiguration(asked)).configuration
    field = "base_url" if wanted.claims else "url"
    url, was = (one.adapter_fields.fields[field].string_value for one in (configuration(wanted, endpoint), stored))
    if was != url and _is_ours(URL(was), URL(url), allowed_hosts) and stored.status != _ARCHIVED:
        stored.adapter_fields[field] = url
        mask = FieldMask(paths=[f"adapter_fields.{field}"])
        await postback.UpdateConfiguration(
            configuration_pb2.UpdateConfigurationRequest(configuration=stored, update_mask=mask)
        )


def _is_ours(was: URL, now: URL, allowed_hosts: str) -> bool:
    """Returns whether it is the sample's own endpoint, on whatever port, and not a server that someone has opened."""
    opened = {entry.strip().lower() for entry in allowed_hosts.split(",")}
    is_opened = bool({was.host, f"{was.host}:{was.port}"} & opened)
    return (was.scheme, was.host, was.path) == (now.scheme, now.host, now.path) and not is_opened
