"""Stories: what a person's devices and ads send to a suite that runs, as senders send it, and what it says of that.

The texts of a step may hold words in angle brackets, which the story fills in: `<adid>` is the person's advertising id,
`<click>` the record id of the step of that name; `<-60>` is the time a minute before the story begins, in seconds since
1970, `<-60 json>` the same as JSON has it, `<-60 ms>` as postbacks have it, and `<-60 utc>` as sentences have it.
"""

import asyncio
import hashlib
import itertools
import json
import os
import re
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import parse_qs, urlsplit

import aiohttp
import grpc
from google.protobuf.json_format import ParseDict
from google.protobuf.timestamp_pb2 import Timestamp

from deploy.local.network import LocalNetwork
from deploy.local.suite import HOST, Suite
from deploy.local.x_network import Conduct, attribution, hashed
from libs.channels import open_channel
from reengage.attribution.v1 import explanation_pb2
from reengage.attribution.v1.service_pb2_grpc import AttributionServiceStub
from reengage.ingest.v1 import record_batch_pb2, record_pb2
from reengage.ingest.v1.service_pb2_grpc import IngestServiceStub
from reengage.postback.v1 import delivery_pb2
from reengage.postback.v1.service_pb2_grpc import PostbackServiceStub
from reengage.tracker.v1 import snapshot_pb2
from reengage.tracker.v1.service_pb2_grpc import TrackerConfigServiceStub
from tests.support.eventually import eventually

REENGAGE = Path(sys.executable).with_name("reengage")
PIXEL = (
    "Mozilla/5.0 (Linux; Android 14; Pixel 8) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Mobile "
    "Safari/537.36"
)
SERVER = "Go-http-client/2.0"
OWN_IDS: Mapping[str, str] = {"adid": "<adid>"}

Explanation = explanation_pb2.ExplainDecisionResponse
Step: TypeAlias = "Callable[[Story], Awaitable[None]]"

_WORD = re.compile(r"<(-?\d+)(?: (json|ms|utc))?>|<(\w+)>")
_FORMS = {"json": "%Y-%m-%dT%H:%M:%SZ", "ms": "%Y-%m-%dT%H:%M:%S.000Z", "utc": "%Y-%m-%d %H:%M:%S UTC"}
_OPEN = (Explanation.STATE_WAITING, Explanation.STATE_WAITING_FOR_CLAIMS)


class Teller:
    """The teller of stories to one suite, who asks it and its networks what became of them."""

    def __init__(
        self,
        suite: Suite,
        network: LocalNetwork,
        directory: Path,
        http: aiohttp.ClientSession,
        channels: Mapping[str, grpc.aio.Channel],
    ) -> None:
        self.network, self.http = network, http
        self._suite, self._directory = suite, directory
        self.gateway, self.networks = (f"http://{suite.ports.address(name)}" for name in ("gateway", "network"))
        self.ingest = IngestServiceStub(channels["ingest"])
        self.attribution = AttributionServiceStub(channels["attribution"])
        self.postback = PostbackServiceStub(channels["postback"])
        self.numbers = itertools.count(1)

    async def explain(self, app_id: str, record_id: str) -> Explanation | None:
        """Returns what is said of a record, None while it is not known."""
        request = explanation_pb2.ExplainDecisionRequest(app_id=app_id, conversion_id=record_id)
        try:
            return await self.attribution.ExplainDecision(request)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return None
            raise

    async def tell(self, app_id: str, steps: Iterable[Step]) -> "Story":
        """Returns a story that has been told: each step waits until the one before is taken."""
        story = Story(self, app_id)
        for step in steps:
            await step(story)
        return story

    async def settings_arrive(self) -> None:
        """Waits until every service has the settings that tracker has."""
        async with open_channel(self._suite.ports.address("tracker"), key=self._suite.admin_key) as channel:
            parts = TrackerConfigServiceStub(channel).GetSnapshot(snapshot_pb2.GetSnapshotRequest())
            revision = max([part.revision async for part in parts])
        for service in ("gateway", "ingest", "attribution"):
            url = f"http://{HOST}:{self._suite.ports.metrics_of(service)}/metrics"

            async def follows(url: str = url) -> bool:
                async with self.http.get(url) as answer:
                    found = re.search(r"^settings_revision (\S+)$", await answer.text(), re.MULTILINE)
                return found is not None and float(found[1]) >= revision

            await eventually(follows)

    async def reengage(self, *arguments: str) -> str:
        """Returns what the command writes; it must do well."""
        environment = os.environ | {"REENGAGE_DATA": str(self._directory)}
        process = await asyncio.create_subprocess_exec(
            REENGAGE, *arguments, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        output, errors = await process.communicate()
        assert process.returncode == 0, output.decode() + errors.decode()
        return output.decode()

    async def deliveries(self, app_id: str, conversion_id: str) -> list[delivery_pb2.Delivery]:
        """Returns what networks were told of a conversion, with every attempt."""
        wanted = delivery_pb2.ListDeliveriesRequest(app_id=app_id, conversion_id=conversion_id)
        listed = (await self.postback.ListDeliveries(wanted)).deliveries
        asked = (delivery_pb2.GetDeliveryRequest(delivery_id=each.delivery_id) for each in listed)
        return [(await self.postback.GetDelivery(each)).delivery for each in asked]


@asynccontextmanager
async def teller_of(suite: Suite, network: LocalNetwork, directory: Path) -> AsyncIterator[Teller]:
    """Yields a suite with its data in `directory` and channels that stay open."""
    ports = suite.ports
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as http,
        open_channel(ports.address("ingest")) as ingest,
        open_channel(ports.address("attribution")) as to_attribution,
        open_channel(ports.address("postback")) as postback,
    ):
        channels = {"ingest": ingest, "attribution": to_attribution, "postback": postback}
        yield Teller(suite, network, directory, http, channels)


class Story:
    """The story of one person, who has a device and an address that nobody else has."""

    def __init__(self, teller: Teller, app_id: str) -> None:
        number, adid = next(teller.numbers), str(uuid.uuid4())
        self.teller, self.app_id, self.now_s = teller, app_id, int(time.time())
        self.words = {
            "adid": adid,
            "idfa": adid.upper(),
            "tail": adid[1:],
            "custom": f"person-{adid}",
            "build": uuid.uuid4().hex[:16],
            "md5": hashlib.md5(adid.upper().encode()).hexdigest(),
            "sha256": hashlib.sha256(adid.encode()).hexdigest(),
            "ip": f"203.0.113.{number}",
            "prefix": f"2001:db8:{number:x}:1",
        }

    def fill(self, value: Any) -> Any:
        """Returns a text, or a value of JSON, with its words filled in."""
        return json.loads(_WORD.sub(self._word, json.dumps(value)))

    def time_s(self, ago_s: float) -> float:
        """Returns the time so many seconds before the story begins."""
        return self.now_s - ago_s

    async def explain(self, name: str) -> Explanation | None:
        """Returns what is said of the record of a step, None while it is not known."""
        return await self.teller.explain(self.app_id, self.words[name])

    async def taken(self, name: str, record_id: str) -> None:
        """Waits until a step is in the log and, if it is a conversion, decided."""
        self.words[name] = record_id

        async def is_taken() -> bool:
            explained = await self.explain(name)
            return explained is not None and explained.state not in _OPEN

        await eventually(is_taken)

    async def follow(self, name: str, path: str, query: Mapping[str, str], headers: Mapping[str, str]) -> None:
        """Follows an ad link, which must redirect."""
        url, query, headers = self.teller.gateway + path, self.fill(dict(query)), self.fill(dict(headers))
        async with self.teller.http.get(url, params=query, headers=headers, allow_redirects=False) as answer:
            assert answer.status == 302, await answer.text()
            (click_id,) = parse_qs(urlsplit(answer.headers["Location"]).query)["ko_click_id"]
        await self.taken(name, click_id)

    async def send(self, name: str, action: str, ago_s: float | None, data: Mapping[str, Any], **root: Any) -> None:
        """Sends a record as a server does, over HTTP."""
        record_id = f"{name}-{self.words['adid']}"
        if ago_s is not None:
            data = {"usertime": int(self.time_s(ago_s)), **data}
        body = {"action": action, "kochava_app_id": self.app_id, "record_id": record_id, "data": data, **root}
        async with self.teller.http.post(f"{self.teller.gateway}/track/json", json=self.fill(body)) as answer:
            assert (answer.status, await answer.json()) == (200, {"success": 1}), await answer.text()
        await self.taken(name, record_id)

    async def record(self, name: str, ago_s: float, **kind: Any) -> None:
        """Sends a record over gRPC, whose time the sender vouches for."""
        time_ = Timestamp()
        time_.FromMilliseconds(round(self.time_s(ago_s) * 1000))
        record = ParseDict(self.fill({"device_ids": OWN_IDS, **kind}), record_pb2.Record())
        record.app_id, record.record_id = self.app_id, f"{name}-{self.words['adid']}"
        record.event_time.CopyFrom(time_)
        answer = await self.teller.ingest.RecordBatch(record_batch_pb2.RecordBatchRequest(records=[record]))
        assert answer.results[0].status == record_batch_pb2.RecordResult.STATUS_ACCEPTED, answer
        await self.taken(name, record.record_id)

    def _word(self, found: re.Match[str]) -> str:
        if found[3]:
            return self.words.get(found[3], found[0])
        seconds = self.now_s + int(found[1])
        return datetime.fromtimestamp(seconds, UTC).strftime(_FORMS[found[2]]) if found[2] else str(seconds)


def click(
    tracker_id: str,
    *,
    name: str = "click",
    agent: str = PIXEL,
    ip: str = "<ip>",
    ids: Mapping[str, str] = OWN_IDS,
    headers: Mapping[str, str] | None = None,
    **query: str,
) -> Step:
    """Returns a step: a browser follows a link. A proxy that the gateway trusts tells its address."""
    given = {"User-Agent": agent, "X-Forwarded-For": ip, **(headers or {})}
    return lambda story: story.follow(name, f"/c/{tracker_id}", {**ids, **query}, given)


def ping(
    tracker_id: str,
    *,
    ago_s: float,
    name: str = "click",
    agent: str = PIXEL,
    ids: Mapping[str, str] = OWN_IDS,
    **query: str,
) -> Step:
    """Returns a step: a network's server reports a click."""

    async def send(story: Story) -> None:
        reported = {"click_time": str(round(story.time_s(ago_s) * 1000)), "ip_address": "<ip>", "device_ua": agent}
        await story.follow(name, f"/c/{tracker_id}", {**ids, **reported, **query}, {"User-Agent": SERVER})

    return send


def spooled(tracker_id: str, *, ago_s: float, name: str = "click") -> Step:
    """Returns a step: the gateway's spool hands on a click that it kept."""
    return lambda story: story.record(name, ago_s, click={"tracker_id": tracker_id})


def sent(
    action: str, *, name: str, ago_s: float | None = None, ids: Mapping[str, str] = OWN_IDS, agent: str = PIXEL,
    ip: str = "<ip>", root: Mapping[str, Any] | None = None, **data: Any,
) -> Step:  # fmt: skip
    """Returns a step: a server sends what the app has told it. Without `ago_s` it happened when it is received."""
    usual = {"device_ids": ids, "origination_ip": ip, "device_ua": agent, "app_tracking_transparency": {"att": True}}
    return lambda story: story.send(name, action, ago_s, {**usual, **data}, **(root or {}))


def event(event_name: str, *, name: str = "event", **fields: Any) -> Step:
    """Returns a step: an event."""
    return sent("event", name=name, event_name=event_name, **fields)


def install(ago_s: float, *, name: str = "install", **fields: Any) -> Step:
    """Returns a step: an install."""
    return sent("install", name=name, ago_s=ago_s, **fields)


def session(*, name: str = "event", **fields: Any) -> Step:
    """Returns a step: a session starts."""
    return sent("session", name=name, state="start", **fields)


def x_claims(*, ago_s: float) -> Step:
    """Returns a step: X makes up its mind to claim what the person does, by a click."""

    async def tell(story: Story) -> None:
        clicked = datetime.fromtimestamp(story.time_s(ago_s), UTC)
        story.teller.network.x.conducts[hashed(story.words["idfa"])] = Conduct(twitter=attribution(clicked))

    return tell


def thief_pings(tracker_id: str, *, path: str, name: str = "click") -> Step:
    """Returns a step: a network that was told of the person by a postback to `path` reports a click a second before it.

    The postback tells the advertising id, and as `at` the time of the conversion, in seconds since 1970.
    """

    async def steal(story: Story) -> None:
        async def heard() -> list[str]:
            async with story.teller.http.get(story.teller.networks) as answer:
                urls = [each["url"] for each in (await answer.json())["newest_first"]]
            return [url for url in urls if url.startswith(path) and story.words["adid"] in url]

        (postback,) = parse_qs(urlsplit((await eventually(heard))[0]).query)["at"]
        before = {"click_time": str(int(postback) - 1), "ip_address": "<ip>"}
        await story.follow(name, f"/c/{tracker_id}", {**OWN_IDS, **before}, {"User-Agent": SERVER})

    return steal
