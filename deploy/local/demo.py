"""`make demo`: plays the sample's traffic through a suite of its own, shows and checks what became of it."""

import asyncio
import json
import re
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
import grpc
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from deploy.local.network import LocalNetwork, fails_first, limits_first, refuses
from deploy.local.player import Answers, Player
from deploy.local.sample.generate import EXPECTED, TRAFFIC
from deploy.local.sample.stories import EXPLAINED, LAST
from deploy.local.suite import HOST, Ports, Suite, free_ports, running_suite
from deploy.local.up import load_sample, told
from deploy.local.x_network import LocalX
from libs.channels import open_channel
from libs.domain.lanes import LANES
from libs.messages import short_name
from reengage.attribution.v1 import decision_pb2, explanation_pb2
from reengage.attribution.v1 import service_pb2_grpc as attribution_grpc
from reengage.ingest.v1 import log_pb2, record_pb2
from reengage.ingest.v1.service_pb2_grpc import IngestServiceStub
from reengage.postback.v1 import delivery_pb2
from reengage.postback.v1 import service_pb2_grpc as postback_grpc
from services.cli.decision_tables import print_explanation
from services.cli.delivery_tables import state_name
from services.cli.places import DATA
from services.cli.tables import console, table

MAX_S = 120.0
"""However slow the machine: by then it has ended, or failed."""


class NotSettledError(Exception):
    """An expectation that did not come true in time; the message names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The outcome of the traffic, as counters of the same keys that expected.json has."""

    logged: Counter[str]
    refused: Counter[str]
    decisions: Counter[str]
    deliveries: Counter[str]
    attempts: Counter[str]
    """Attempts made, by configuration."""


async def run() -> int:
    """Returns 0 when every number is as the sample must give it, else 1."""
    directory = DATA / f"demo-{time.time_ns() // 1_000_000}"
    ports = free_ports()
    network = LocalNetwork({"bravo": fails_first, "viewly": limits_first, "closed": refuses})
    began = time.monotonic()
    holds = False
    try:
        async with (
            asyncio.timeout(MAX_S),
            running_suite(directory, ports, announce=told(console)) as suite,
            network.serving(HOST, ports.network),
            _clients(ports) as clients,
        ):
            holds = await clients.play_and_check(suite, network)
    except (NotSettledError, TimeoutError) as error:
        console.print(f"[red]{escape(str(error) or f'not done within {MAX_S:g} s')}[/]")
    finally:
        shutil.rmtree(directory / "postgres", ignore_errors=True)
        if holds:
            shutil.rmtree(directory, ignore_errors=True)
        else:
            console.print(f"The logs of the services are in {directory / 'logs'}")
    verdict = "[bold green]The demo holds[/]" if holds else "[bold red]The demo does not hold[/]"
    console.print(f"{verdict}, after {time.monotonic() - began:.0f} s")
    return 0 if holds else 1


@asynccontextmanager
async def _clients(ports: Ports) -> "AsyncIterator[_Demo]":
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session,
        open_channel(ports.address("ingest"), timeout_s=30) as ingest,
        open_channel(ports.address("attribution")) as attribution,
        open_channel(ports.address("postback")) as postback,
    ):
        yield _Demo(
            ports,
            session,
            IngestServiceStub(ingest),
            attribution_grpc.AttributionServiceStub(attribution),
            postback_grpc.PostbackServiceStub(postback),
        )


class _Demo:
    def __init__(
        self,
        ports: Ports,
        session: aiohttp.ClientSession,
        ingest: IngestServiceStub,
        attribution: attribution_grpc.AttributionServiceStub,
        postback: postback_grpc.PostbackServiceStub,
    ) -> None:
        self._ports, self._session = ports, session
        self._ingest, self._attribution, self._postback = ingest, attribution, postback

    async def play_and_check(self, suite: Suite, network: LocalNetwork) -> bool:
        """Plays, waits until all is settled, shows and checks."""
        expected = {name: Counter(counts) for name, counts in json.loads(EXPECTED.read_text()).items()}
        lines = TRAFFIC.read_text(encoding="utf-8").splitlines()
        revision = await load_sample(suite)
        columns = (TextColumn("{task.description:<26}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console) as progress:
            waiting = progress.add_task("settings reach everyone", total=1)
            await self._settings_arrive(revision)
            progress.advance(waiting)
            answers = await self._play(lines, network.x, progress)
            await self._settle(expected, progress)
        outcome = await self._collect(answers)
        _show(expected, answers, outcome)
        for title, (app_id, conversion_id) in EXPLAINED.items():
            console.rule(f"Explained: {title}", align="left")
            request = explanation_pb2.ExplainDecisionRequest(app_id=app_id, conversion_id=conversion_id)
            print_explanation(await self._attribution.ExplainDecision(request))
        return _check(expected, answers, outcome, network)

    async def _settings_arrive(self, revision: int) -> None:
        followers = ("gateway", "ingest", "attribution")
        urls = [f"http://{HOST}:{self._ports.metrics_of(name)}/metrics" for name in followers]

        async def arrived() -> bool:
            return all([await self._metric(url, "settings_revision") >= revision for url in urls])

        await _until(arrived, "the settings did not reach every service")

    async def _play(self, lines: list[str], x: LocalX, progress: Progress) -> Answers:
        player = Player(self._session, self._ingest, x, f"http://{self._ports.address('gateway')}", int(time.time()))
        bar = progress.add_task("requests sent", total=len(lines))
        metrics = f"http://{HOST}:{self._ports.metrics_of('gateway')}/metrics"

        async def spool_is_empty() -> bool:
            return await self._metric(metrics, "gateway_spool_bytes") == 0

        async def between(sent: int) -> None:
            progress.update(bar, completed=sent)
            # A click that ingest was too slow for reaches the log from the spool: before the install it leads to.
            await _until(spool_is_empty, "the gateway's spool did not empty")

        await player.play(lines, between)
        return player.answers

    async def _settle(self, expected: dict[str, Counter[str]], progress: Progress) -> None:
        """Waits for facts: the last conversion of each app is decided and told, and no delivery is left to make.

        And as many are decided as must be: those that wait for claims come after the last.
        """
        decided = progress.add_task("conversions decided", total=expected["decisions"].total())
        delivered = progress.add_task("deliveries ended", total=expected["deliveries"].total())

        async def all_decided() -> bool:
            count = len(await self._decisions())
            progress.update(decided, completed=count)
            last = all([await self._is_decided(app_id, last) for app_id, last in LAST.items()])
            return last and count >= expected["decisions"].total()

        async def all_told() -> bool:
            return all([await self._deliveries(app_id, conversion_id=last) for app_id, last in LAST.items()])

        async def all_ended() -> bool:
            deliveries = [delivery for app_id in LAST for delivery in await self._deliveries(app_id)]
            pending = sum(delivery.state == delivery_pb2.Delivery.STATE_PENDING for delivery in deliveries)
            progress.update(delivered, completed=len(deliveries) - pending)
            return pending == 0

        await _until(all_decided, "not every conversion was decided")
        progress.update(decided, completed=len(await self._decisions()))
        await _until(all_told, "not every decision was handed to postback")
        await _until(all_ended, "not every delivery ended")

    async def _collect(self, answers: Answers) -> Outcome:
        configurations = [
            (delivery.configuration_id, state_name(delivery.state), delivery.attempt_count)
            for app_id in LAST
            for delivery in await self._deliveries(app_id)
        ]
        attempts: Counter[str] = Counter()
        for configuration_id, _, count in configurations:
            attempts[configuration_id] += count
        return Outcome(
            logged=await self._logged(),
            refused=answers.refused,
            decisions=Counter(map(_decision_key, await self._decisions())),
            deliveries=Counter(f"{configuration_id} {state}" for configuration_id, state, _ in configurations),
            attempts=attempts,
        )

    async def _logged(self) -> Counter[str]:
        """Returns what the log holds, by kind of record."""
        request = log_pb2.ReadLogRequest()
        getattr(request, "from").extend(log_pb2.LanePosition(lane=lane) for lane in range(LANES))
        counts: Counter[str] = Counter()
        call = self._ingest.ReadLog(request)
        async for response in call:
            for entry in response.entries:
                counts[record_pb2.Record.FromString(entry.record).WhichOneof("kind") or "none"] += 1
            if response.caught_up:
                break
        call.cancel()
        return counts

    async def _decisions(self) -> list[decision_pb2.Decision]:
        found: list[decision_pb2.Decision] = []
        for app_id in LAST:
            request = decision_pb2.ListDecisionsRequest(app_id=app_id, page_size=1000)
            while True:
                page = await self._attribution.ListDecisions(request)
                found.extend(page.decisions)
                request.page_token = page.next_page_token
                if not page.next_page_token:
                    break
        return found

    async def _deliveries(self, app_id: str, conversion_id: str = "") -> list[delivery_pb2.Delivery]:
        found: list[delivery_pb2.Delivery] = []
        request = delivery_pb2.ListDeliveriesRequest(app_id=app_id, conversion_id=conversion_id, page_size=1000)
        while True:
            page = await self._postback.ListDeliveries(request)
            found.extend(page.deliveries)
            request.page_token = page.next_page_token
            if not page.next_page_token:
                return found

    async def _is_decided(self, app_id: str, conversion_id: str) -> bool:
        request = decision_pb2.GetDecisionRequest(app_id=app_id, conversion_id=conversion_id)
        try:
            await self._attribution.GetDecision(request)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return False
            raise
        return True

    async def _metric(self, url: str, name: str) -> float:
        async with self._session.get(url) as answer:
            found = re.search(rf"^{name} (\S+)$", await answer.text(), re.MULTILINE)
        return float(found[1]) if found else -1.0


async def _until(fact: Callable[[], Awaitable[bool]], failure: str, within_s: float = 60.0) -> None:
    deadline = time.monotonic() + within_s
    while not await fact():
        if time.monotonic() > deadline:
            raise NotSettledError(f"After {within_s:g} s {failure}.")
        await asyncio.sleep(0.1)


def _decision_key(decision: decision_pb2.Decision) -> str:
    outcome = decision_pb2.Outcome.Name(decision.outcome).removeprefix("OUTCOME_")
    matched_by = decision_pb2.MatchKind.Name(decision.matched_by).removeprefix("MATCH_KIND_")
    by = matched_by if decision.matched_by else "-"
    reason, tracker = short_name(decision_pb2.Reason.DESCRIPTOR, decision.reason) or "-", decision.tracker_id or "-"
    return f"{decision.app_id} {decision.event_name} {outcome} {reason} {tracker} {by}"


def _show(expected: dict[str, Counter[str]], answers: Answers, outcome: Outcome) -> None:
    rows = table("\nReceived", "kind", "sent", "in the log", numbers=["sent", "in the log"])
    for kind in sorted(expected["sent"]):
        rows.add_row(kind, str(expected["sent"][kind]), str(outcome.logged[kind]))
    rows.add_row("[bold]all[/]", str(expected["sent"].total()), str(outcome.logged.total()))
    console.print(rows)
    repeats = answers.taken - outcome.logged.total()
    console.print(f"{repeats} repeats were recognised, and {answers.refused.total()} records refused. They came as:")
    console.print("  " + ", ".join(f"{count} {way}" for way, count in answers.spoken.most_common()))

    rows = table("\nRefused, and why", "reason", "records", numbers=["records"])
    for reason, count in answers.refused.most_common():
        rows.add_row(reason.replace("+", ", "), str(count))
    console.print(rows)

    for app_id in LAST:
        _show_decisions(app_id, outcome.decisions)

    rows = table("\nDelivered", "configuration", "state", "deliveries", "attempts", numbers=["deliveries", "attempts"])
    for key, count in sorted(outcome.deliveries.items()):
        configuration_id, state = key.split(" ")
        rows.add_row(configuration_id, state, str(count), str(outcome.attempts[configuration_id]))
    console.print(rows)


def _show_decisions(app_id: str, decisions: Counter[str]) -> None:
    counts: Counter[tuple[str, ...]] = Counter()
    for key, count in decisions.items():
        app, event, verdict, reason, tracker, by = key.split(" ")
        if app == app_id:
            what = {"_install": "install", "_identity_link": "identity link"}.get(event, "event")
            # A credited event has a reason for not having reengaged; here its source says enough.
            counts[what, verdict, tracker, by, "-" if verdict == "CREDITED" else reason] += count
    rows = table(
        f"\nDecided, {app_id}", "what", "outcome", "tracker", "matched by", "because", "count", numbers=["count"]
    )
    for cells, count in sorted(counts.items()):
        rows.add_row(*("" if cell == "-" else cell for cell in cells), str(count))
    console.print(rows)


def _check(expected: dict[str, Counter[str]], answers: Answers, outcome: Outcome, network: LocalNetwork) -> bool:
    """Tells every difference to what the stories must give; whether there is none."""
    found = {name: getattr(outcome, name) for name in ("logged", "refused", "decisions", "deliveries")}
    found["answers that say neither yes nor no"] = answers.failed
    differences = [
        f"{name}: {key}: must be {expected.get(name, Counter())[key]}, is {counts[key]}"
        for name, counts in found.items()
        for key in sorted(expected.get(name, Counter()) | counts)
        if expected.get(name, Counter())[key] != counts[key]
    ]
    wanted, seen = expected["deliveries"].total(), len(network.attempts)
    if seen != wanted:
        differences.append(f"the local network was told of {seen} conversions, must be {wanted}")
    console.rule("Check", align="left")
    for difference in differences:
        console.print(f"[red]✗[/] {escape(difference)}", soft_wrap=True)
    if not differences:
        checked = sum(len(expected[name]) for name in ("logged", "refused", "decisions", "deliveries"))
        console.print(f"[bold green]✓ all {checked} numbers are what the sample must give[/]")
    return not differences
