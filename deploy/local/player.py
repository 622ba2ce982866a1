"""Plays the sample's traffic: its lines over HTTP and gRPC, round by round, and counts what was answered."""

import asyncio
import json
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

import aiohttp
from google.protobuf.json_format import ParseDict
from yarl import URL

from deploy.local.x_network import Conduct, LocalX
from reengage.ingest.v1 import record_batch_pb2, record_pb2
from reengage.ingest.v1.service_pb2_grpc import IngestServiceStub

Json = dict[str, Any]
AT_ONCE = 16

_NUMBER = re.compile(r'"@(-?\d+)( ms)?"')
_TIME = re.compile(r"<(-?\d+)( ms| iso)?>")
_CLICK = re.compile(r"<click ([^>]+)>")
_CLICK_ID = re.compile(r"ko_click_id(?:=|%3D)([0-9a-f]{32})")


@dataclass(slots=True, kw_only=True)
class Answers:
    """The number of records taken, and of those refused, by reason."""

    taken: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    """Answers that say neither, as 503: none are expected."""
    spoken: Counter[str] = field(default_factory=Counter)
    """Records by the way they came."""

    def refuse(self, reasons: list[str]) -> None:
        """Notes a refused record."""
        self.refused["+".join(sorted(set(reasons)))] += 1


class Player:
    """The sender of lines to the gateway at `gateway_url` and to ingest, which tells `x` what to claim.

    `now_s`, in seconds since 1970, is the start.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        ingest: IngestServiceStub,
        x: LocalX,
        gateway_url: str,
        now_s: int,
    ) -> None:
        self.answers = Answers()
        self._session, self._ingest, self._x = session, ingest, x
        self._gateway_url, self._now_s = gateway_url, now_s
        self._clicks: dict[str, str] = {}

    async def play(self, lines: list[str], between: Callable[[int], Awaitable[None]]) -> None:
        """Sends all lines; after each round waits for `between`, which is told how many lines were sent."""
        sent = 0
        for _, round_lines in groupby(lines, key=lambda line: json.loads(line)["round"]):
            waiting = iter(list(round_lines))

            async def work(waiting: Iterator[str] = waiting) -> None:
                nonlocal sent
                for line in waiting:
                    await self._send(json.loads(self._filled(line)))
                    sent += 1

            async with asyncio.TaskGroup() as group:
                for _ in range(AT_ONCE):
                    group.create_task(work())
            await between(sent)

    def _filled(self, line: str) -> str:
        line = _NUMBER.sub(lambda found: str(self._time(int(found[1]), found[2])), line)
        line = _TIME.sub(lambda found: str(self._time(int(found[1]), found[2])), line)
        return _CLICK.sub(lambda found: self._clicks[found[1]], line)

    def _time(self, offset_s: int, form: str | None) -> int | str:
        time_s = self._now_s + offset_s
        match form:
            case " ms":
                return time_s * 1000
            case " iso":
                return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            case _:
                return time_s

    async def _send(self, line: Json) -> None:
        if "x" in line:
            self._x.conducts[line["x"]["device"]] = Conduct(**line["x"]["conduct"])
        elif "get" in line:
            await self._get(line)
        elif "post" in line:
            await self._post(line)
        elif "batch" in line:
            request = record_batch_pb2.RecordBatchRequest(records=map(_record, line["batch"]))
            self._take("RecordBatch", (await self._ingest.RecordBatch(request)).results)
        else:
            requests = [record_batch_pb2.RecordStreamRequest(records=map(_record, part)) for part in line["stream"]]
            async for response in self._ingest.RecordStream(iter(requests)):
                self._take("RecordStream", response.results)

    async def _get(self, line: Json) -> None:
        headers = {"User-Agent": line["agent"]} if "agent" in line else {}
        url = URL(self._gateway_url + line["get"], encoded=True)
        async with self._session.get(url, headers=headers, allow_redirects=False) as answer:
            self.answers.spoken["HTTP link"] += 1
            if answer.status in (200, 204, 302):
                self.answers.taken += 1
            elif answer.status == 404:
                self.answers.refuse(["UNKNOWN_LINK"])
            else:
                self.answers.failed[f"HTTP {answer.status}"] += 1
            # Where an iPhone may have the app or not, a page leads on instead of a redirect.
            led_to = answer.headers.get("Location") or await answer.text()
            if "keep" in line and (found := _CLICK_ID.search(led_to)):
                self._clicks[line["keep"]] = found[1]

    async def _post(self, line: Json) -> None:
        body = line["text"] if "text" in line else json.dumps(line["body"])
        async with self._session.post(self._gateway_url + line["post"], data=body.encode()) as answer:
            answered = await answer.json()
        results = answered.get("results", [answered])
        self.answers.spoken["HTTP array" if "results" in answered else "HTTP JSON"] += len(results)
        for result in results:
            if result["success"]:
                self.answers.taken += 1
            elif answer.status >= 429:
                self.answers.failed[f"HTTP {answer.status}"] += 1
            else:
                error = result["error"]
                self.answers.refuse([wrong["reason"] for wrong in error["fields"]] or [error["code"]])

    def _take(self, way: str, results: "Any") -> None:
        self.answers.spoken[f"gRPC {way}"] += len(results)
        for result in results:
            if result.violations:
                self.answers.refuse([violation.reason for violation in result.violations])
            else:
                self.answers.taken += 1


def _record(value: Json) -> record_pb2.Record:
    return ParseDict(value, record_pb2.Record())
