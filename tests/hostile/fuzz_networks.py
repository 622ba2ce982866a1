"""The networks of the fuzz, which take, refuse and misbehave, and the settings and configurations that lead to them."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
from aiohttp import web
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct

from deploy.local.suite import HOST, Suite
from deploy.local.x_network import PATH, SECRETS
from libs.channels import open_channel
from reengage.postback.v1 import configuration_pb2
from reengage.postback.v1 import service_pb2_grpc as postback_grpc
from reengage.tracker.v1 import (
    app_pb2,
    campaign_pb2,
    event_definition_pb2,
    network_pb2,
    segment_pb2,
    service_pb2_grpc,
    tracker_pb2,
)
from tests.hostile.fuzz_records import ANDROID, IOS

_DAY_S = 86_400

TEMPLATES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "query": ("Purchase", {"url": "?x={x}&{y}={y}&r={revenue}{currency}&ua={device_ua}&c={click_id}&sum={sum}"}),
    "json": (
        "Purchase",
        {
            "method": "POST", "url": "/{event_name}/{x}",
            "body": '{"x": {x}, "y": "{y}", "n": {quantity}, "ua": "{device_ua}", "cp": [{cp_0}, "{sku}"], "t": '
            '"{event_time}", "id": "{device_id}", "r": {revenue}, "v": "{app_version}"}',
            "headers": {"X-Odd": "{x}", "X-Site": "a {site_id}"},
        },
    ),
    "form": (
        "Subscribe",
        {
            "method": "POST", "url": "", "headers": {"Content-Type": "application/x-www-form-urlencoded"},
            "body": "x={x}&y={y}&price={price}&country={country}",
        },
    ),
    "xml": (
        "View",
        {
            "method": "POST", "url": "", "headers": {"Content-Type": "application/xml"},
            "body": "<e x='{x}' s=\"{creative_id}\">{y}{currency}</e>",
        },
    ),
    "install": ("_install", {"url": "?r={referrer}&click={click_id}&campaign={campaign}&att={att_status}"}),
    "text": (
        "_Deeplink",
        {"method": "POST", "url": "", "headers": {"Content-Type": "text/plain"}, "body": "{x} {uri} {os_version}"},
    ),
    "session": ("SessionBegin", {"url": "?by={matched_by}&l={lookback}&i={install_time}"}),
}  # fmt: skip
"""Templates by the name of their configuration, each with its trigger; `url` follows the endpoint's address."""


APPS = (
    app_pb2.App(
        app_id=ANDROID,
        name="Fuzz Android",
        platform=app_pb2.PLATFORM_ANDROID,
        settings=app_pb2.AppSettings(
            device_attribution=app_pb2.AppSettings.DEVICE_ATTRIBUTION_INCLUSIVE,
            late_window=Duration(seconds=7 * _DAY_S),
            install_reprocessing_window=Duration(seconds=_DAY_S),
            retention=Duration(seconds=60 * _DAY_S),
        ),
    ),
    app_pb2.App(
        app_id=IOS,
        name="Fuzz iOS",
        platform=app_pb2.PLATFORM_IOS,
        settings=app_pb2.AppSettings(inactivity_window=Duration(seconds=_DAY_S // 24)),
    ),
)


class Endpoint:
    """Every network: it takes, refuses and misbehaves, by the id of the delivery; X claims the impossible, too."""

    def __init__(self, seed: int) -> None:
        self.problems: list[str] = []
        self._seed = seed
        self._seen: Counter[str] = Counter()

    @asynccontextmanager
    async def serving(self, port: int) -> AsyncIterator[None]:
        """Serves on a port of this machine, whatever the length of a request."""
        app = web.Application(client_max_size=1 << 22)
        app.router.add_post(f"/x{PATH}", self._claim)
        app.router.add_route("*", "/take/{name}{rest:.*}", self._take)
        runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, shutdown_timeout=1, max_line_size=1 << 20,
            max_field_size=1 << 20,
        )  # fmt: skip
        await runner.setup()
        try:
            await web.TCPSite(runner, HOST, port).start()
            yield
        finally:
            await runner.cleanup()

    async def _take(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        if request.content_type == "application/json" and body:
            try:
                orjson.loads(body)
            except ValueError:
                self._note(f"a body is no JSON: {body[:200]!r}")
        delivery_id = request.headers["Idempotency-Key"]
        self._seen[delivery_id] += 1
        match random.Random(f"{self._seed}{delivery_id}").randrange(40):
            case 0:
                return web.Response(status=400, body=b"\xff\0{" * 1000)
            case 1 if self._seen[delivery_id] == 1:
                return web.Response(status=500, headers={"Retry-After": "1"})
            case 2:
                return web.Response(status=302, headers={"Location": "http://169.254.169.254/"})
            case 3:
                return web.Response(status=422, headers={f"X-{n}": "h" * 500 for n in range(50)})
            case _:
                return web.Response(text="ok")

    async def _claim(self, request: web.Request) -> web.StreamResponse:
        device = request.query.get("hashed_device_id", "")
        chosen = random.Random(f"{self._seed}{device}{request.query.get('conversion_time')}")
        match chosen.randrange(12):
            case 0:
                return web.Response(status=chosen.choice((400, 404, 500)))
            case 1:
                await asyncio.sleep(3)
            case _:
                pass
        body = chosen.choice(ANSWERS_OF_X)
        return web.Response(text=body, content_type="application/json")

    def _note(self, problem: str) -> None:
        if len(self.problems) < 20:
            self.problems.append(problem)


def _claimed(engagement_time: object, **changes: Any) -> str:
    engagement = {"engagement_type": "CLICK", "engagement_time": engagement_time, **changes}
    return json.dumps({"data": {"twitter_attribution": engagement}})


def _ago(**length: float) -> str:
    return (datetime.now(UTC) - timedelta(**length)).isoformat()


ANSWERS_OF_X = (
    *(_claimed(_ago(minutes=minutes)) for minutes in (1, 90, 3000)),
    _claimed(_ago(hours=1), engagement_type="VIEW"),
    _claimed(_ago(hours=-20)),
    _claimed(_ago(hours=2), promoted_properties={"campaign_name": "x " * 5000}, is_granular_data_sharing_allowed=False),
    _claimed(_ago(hours=2), promoted_properties={"campaign_name": "a\0b\u202e"}),
    *map(_claimed, ("9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z", "1969-12-31T00:00:00Z", "", "NaN", 2**62, None)),
    '{"data": {}}', '{"data": null}', '{"data": {"twitter_attribution": null}}', '{"data": NaN}',
    "[" * 20_000, "", "\0",
    '{"data": {"twitter_attribution": [[]]}}', "x" * 300_000,
)  # fmt: skip


async def configure(suite: Suite) -> None:
    """Makes both apps with their networks and trackers, and a configuration for every way of rendering."""
    async with (
        open_channel(suite.ports.address("tracker"), key=suite.admin_key) as to_tracker,
        open_channel(suite.ports.address("postback")) as to_postback,
    ):
        for app in APPS:
            await _create_app(service_pb2_grpc.TrackerConfigServiceStub(to_tracker), app)
        postback = postback_grpc.PostbackConfigServiceStub(to_postback)
        for made in configurations(f"http://{HOST}:{suite.ports.network}"):
            await postback.CreateConfiguration(configuration_pb2.CreateConfigurationRequest(configuration=made))


async def _create_app(stub: service_pb2_grpc.TrackerConfigServiceStub, app: app_pb2.App) -> None:
    platform, app_id = app.app_id.removeprefix("fuzz-"), app.app_id
    await stub.CreateApp(app_pb2.CreateAppRequest(app=app))
    for name, is_x in ((f"net-{platform}", False), ("x-ios", True)):
        if platform == "ios" or not is_x:
            network = network_pb2.Network(network_id=name, name=name, platform=app.platform, self_attributing=is_x)
            await stub.CreateNetwork(network_pb2.CreateNetworkRequest(network=network))
    campaign = campaign_pb2.Campaign(campaign_id=f"c-{platform}", app_id=app_id, name="Campaign")
    await stub.CreateCampaign(campaign_pb2.CreateCampaignRequest(campaign=campaign))
    segment = segment_pb2.Segment(segment_id=f"s-{platform}", campaign_id=campaign.campaign_id, name="Segment")
    await stub.CreateSegment(segment_pb2.CreateSegmentRequest(segment=segment))
    for event_name in ("Purchase", "Subscribe", "View", "SessionBegin"):
        event = event_definition_pb2.EventDefinition(app_id=app_id, event_name=event_name)
        event.min_time_to_reengagement.FromSeconds(0 if event_name == "Purchase" else 3600)
        await stub.CreateEventDefinition(event_definition_pb2.CreateEventDefinitionRequest(event_definition=event))
    for tracker in _trackers(platform):
        tracker.segment_id = segment.segment_id
        await stub.CreateTracker(tracker_pb2.CreateTrackerRequest(tracker=tracker))


def _trackers(platform: str) -> Iterator[tracker_pb2.Tracker]:
    kinds = tracker_pb2.Tracker
    common: dict[str, Any] = {"network_id": f"net-{platform}", "install_url": "https://example.com/app"}
    events = ["Purchase", "SessionBegin", "View"]
    yield kinds(
        tracker_id=f"{platform}-re",
        type=kinds.TYPE_REENGAGEMENT,
        events=events,
        custom_parameters={"sku": "7"},
        **common,
    )
    yield kinds(tracker_id=f"{platform}-ua", type=kinds.TYPE_ACQUISITION, **common)
    if platform == "android":
        yield kinds(
            tracker_id="android-flash",
            type=kinds.TYPE_REENGAGEMENT,
            events=["Purchase"],
            max_conversions_per_engagement=1,
            **common,
        )
    else:
        for event_name in ("Purchase", "Subscribe"):
            yield kinds(
                tracker_id=f"ios-x-{event_name.lower()}",
                network_id="x-ios",
                type=kinds.TYPE_REENGAGEMENT,
                events=[event_name],
                post_view_window=Duration(seconds=_DAY_S),
            )
        yield kinds(tracker_id="ios-x-ua", network_id="x-ios", type=kinds.TYPE_ACQUISITION)


def configurations(endpoint: str) -> Iterator[configuration_pb2.Configuration]:
    """Yields every configuration; those of templates tell each conversion, but the one of sessions."""
    methods = configuration_pb2.Configuration
    for app in APPS:
        platform = app.app_id.removeprefix("fuzz-")
        for name, (trigger, template) in TEMPLATES.items():
            fields = {**template, "url": f"{endpoint}/take/{platform}-{name}{template['url']}"}
            yield methods(
                configuration_id=f"{platform}-{name}",
                app_id=app.app_id,
                network_id=f"net-{platform}",
                trigger=trigger,
                adapter="template",
                adapter_fields=ParseDict(fields, Struct()),
                delivery_method=(
                    methods.DELIVERY_METHOD_NETWORK_ONLY if name == "session" else methods.DELIVERY_METHOD_ALL
                ),
                is_revenue=True,
                retry_attempts=1,
            )
    for trigger in ("_install", "Purchase", "Subscribe"):
        fields = {"app_id": "1", "conversion_type": "PURCHASE", "base_url": f"{endpoint}/x"}
        yield methods(
            configuration_id=f"ios-x-{trigger.strip('_').lower()}",
            app_id=IOS,
            network_id="x-ios",
            trigger=trigger,
            adapter="x",
            adapter_fields=ParseDict(fields, Struct()),
            secrets=SECRETS,
            attempt_timeout=Duration(seconds=1),
            retry_attempts=0,
            is_revenue=True,
        )
