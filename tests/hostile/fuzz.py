"""A fuzz of ingest, attribution and postback together, as processes: `make fuzz`, or `make fuzz ARGS="5000 --seed 7"`.

Whatever ingest accepts is decided, whatever a configuration wants is rendered and delivered or refused by its endpoint,
nothing is set aside, no service logs a fault, and none needs more memory than its manifest gives it.
"""

import argparse
import asyncio
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import psutil
import yaml
from rich.console import Console

from deploy.local.suite import Suite, running_suite
from libs.channels import open_channel
from libs.time import now_us
from reengage.attribution.v1 import decision_pb2
from reengage.ingest.v1 import record_batch_pb2, record_pb2
from reengage.postback.v1.delivery_pb2 import Attempt, Delivery
from tests.hostile.fuzz_networks import Endpoint, configurations, configure
from tests.hostile.fuzz_records import Records
from tests.support.ports import suite_ports

LONG_COUNT, BATCH, SENDERS = 200_000, 100, 4
STUCK_S = 120.0
"""After so long without progress the fuzz ends: something waits for ever."""
BASE = Path(__file__).parents[2] / "deploy" / "base"
FUZZED = ("ingest", "attribution", "postback")
FAULTS = re.compile(r'Traceback|worker\.failed|rpc\.failed|delivery\.failed|set_aside|unparsable|"level": "error"')

ANSWERED = frozenset({"HTTP_STATUS", "REDIRECT", "BODY_MISMATCH", "TIMEOUT", "CONNECTION_FAILED"})
"""The ends of a delivery that its endpoint gives."""
TOLD = frozenset(
    {
        decision_pb2.OUTCOME_ATTRIBUTED,
        decision_pb2.OUTCOME_ORGANIC,
        decision_pb2.OUTCOME_REPROCESSED,
        decision_pb2.OUTCOME_REPROCESSED_ORGANIC,
        decision_pb2.OUTCOME_REENGAGED,
        decision_pb2.OUTCOME_CREDITED,
        decision_pb2.OUTCOME_UNATTRIBUTED,
    }
)
"""The outcomes that networks are told of."""


@dataclass(slots=True, kw_only=True)
class Found:
    """The findings of a fuzz; without problems it passes."""

    seed: int
    records: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    conversions: set[tuple[str, str]] = field(default_factory=set)
    """App and id of each accepted record that must have a decision."""
    decisions: int = 0
    deliveries: Counter[str] = field(default_factory=Counter)
    peak_bytes: dict[str, int] = field(default_factory=dict)
    limit_bytes: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        """Yields a summary for people."""
        yield f"seed {self.seed}: {self.records:,} records in {self.seconds:.0f} s; {_counts(self.statuses)}"
        yield f"refused for {_counts(self.reasons)}"
        yield f"{len(self.conversions):,} conversions, {self.decisions:,} versions of decisions"
        yield f"deliveries: {_counts(self.deliveries)}"
        for name, peak in self.peak_bytes.items():
            yield f"{name}: at most {peak >> 20} MB of {self.limit_bytes[name] >> 20} MB"
        yield from (f"PROBLEM {problem}" for problem in self.problems)
        yield f"{len(self.problems)} problems"


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counter.most_common(12)) or "nothing"


async def fuzz(directory: Path, *, count: int, seed: int, announce: Callable[[str], None]) -> Found:
    """Sends so many records of a seed to a suite of its own, waits for what they lead to, and judges that."""
    found, began = Found(seed=seed), time.monotonic()
    found.limit_bytes = {name: memory_limit(name) for name in FUZZED}
    ports, endpoint = suite_ports(), Endpoint(seed)
    async with (
        running_suite(directory, ports, announce=lambda _: None, durable=False) as suite,
        endpoint.serving(ports.network),
    ):
        await configure(suite)
        database = await asyncpg.connect(suite.postgres.admin_dsn())
        watching = asyncio.create_task(watch_memory(suite, found.peak_bytes))
        try:
            await send(suite, found, count, announce)
            await until_done(database, found, announce)
            await judge(database, found)
        finally:
            watching.cancel()
            await database.close()
        found.problems += [f"{each.name} ended" for each in suite.services.values() if each.restarts]
    found.problems += endpoint.problems
    found.problems += faults_logged(directory / "logs")
    found.problems += [
        f"{name} took {peak >> 20} MB" for name, peak in found.peak_bytes.items() if peak > found.limit_bytes[name]
    ]
    found.seconds = time.monotonic() - began
    return found


# The load.


async def send(suite: Suite, found: Found, count: int, announce: Callable[[str], None]) -> None:
    """Sends all records, several batches at a time, each until ingest has said what became of it."""
    records = Records(found.seed, now_us(), devices=max(50, count // 20))
    began = time.monotonic()

    async def keep_sending(call: Any) -> None:
        while found.records < count:
            size = min(BATCH, count - found.records)
            found.records += size
            note(found, batch := records.batch(size), await _results(call, batch))
            if found.records % (BATCH * 50) == 0:
                announce(f"{found.records:,} sent, {found.records / (time.monotonic() - began):.0f}/s")

    async with open_channel(suite.ports.address("ingest"), timeout_s=60) as channel, asyncio.TaskGroup() as senders:
        call = channel.unary_unary(
            "/reengage.ingest.v1.IngestService/RecordBatch",
            request_serializer=record_batch_pb2.SerialisedRecords.SerializeToString,
            response_deserializer=record_batch_pb2.RecordBatchResponse.FromString,
        )
        for _ in range(SENDERS):
            senders.create_task(keep_sending(call))


async def _results(call: Any, batch: Sequence[bytes]) -> Sequence[record_batch_pb2.RecordResult]:
    request = record_batch_pb2.SerialisedRecords(records=batch)
    while True:
        try:
            response: record_batch_pb2.RecordBatchResponse = await call(request)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:  # it says: a little later
                raise
            await asyncio.sleep(0.2)
        else:
            return response.results


def note(found: Found, batch: Sequence[bytes], results: Sequence[record_batch_pb2.RecordResult]) -> None:
    """Counts what became of a batch, and notes the conversions among what was accepted."""
    assert len(results) == len(batch)
    for content, result in zip(batch, results, strict=True):
        name = record_batch_pb2.RecordResult.Status.Name(result.status)
        found.statuses[name.removeprefix("STATUS_").lower()] += 1
        found.reasons.update({violation.reason for violation in result.violations})
        if result.status == record_batch_pb2.RecordResult.STATUS_ACCEPTED:
            record = record_pb2.Record.FromString(content)
            # A session that goes on is no conversion (D4), and which one does is decided later.
            if record.WhichOneof("kind") in ("install", "event", "deep_link_open", "identity_link"):
                found.conversions.add((record.app_id, result.record_id))


# What came of it.


async def until_done(database: Any, found: Found, announce: Callable[[str], None]) -> None:
    """Waits until all is decided, handed over and delivered, or nothing has moved for long."""
    moved, last = time.monotonic(), None
    while time.monotonic() - moved < STUCK_S:
        left = dict(await database.fetchrow(_LEFT)) | {"undecided": len(found.conversions - await _decided(database))}
        if not any(left.values()):
            return
        if left != last:
            moved, last = time.monotonic(), left
            announce("left: " + ", ".join(f"{name} {count:,}" for name, count in left.items() if count))
        await asyncio.sleep(1)
    found.problems.append(f"nothing moves any more, and this is left: {last}")


_LEFT = """
    SELECT
        (SELECT coalesce(sum(next_sequence - relayed), 0) FROM attribution.lanes) AS unrelayed,
        (SELECT count(*) FROM attribution.pending_conversions) AS waiting,
        (SELECT count(*) FROM attribution.late_arrivals) AS late,
        (SELECT count(*) FROM postback.deliveries WHERE state = 1) AS undelivered
"""


async def _decided(database: Any) -> set[tuple[str, str]]:
    rows = await database.fetch("SELECT app_id, conversion_id FROM attribution.decisions WHERE version = 1")
    return {(row["app_id"], row["conversion_id"]) for row in rows}


async def judge(database: Any, found: Found) -> None:
    """Notes what is missing, set aside or not delivered for a reason of ours."""
    if missing := found.conversions - await _decided(database):
        found.problems.append(f"{len(missing)} accepted and not decided, as {sorted(missing)[:3]}")
    for row in await database.fetch("SELECT work, reason, error FROM attribution.quarantined"):
        found.problems.append(f"set aside: work {row['work']}, reason {row['reason']}, {row['error']}")
    found.decisions = await database.fetchval("SELECT count(*) FROM attribution.decisions")
    await _judge_deliveries(database, found)
    await _judge_endings(database, found)


async def _judge_deliveries(database: Any, found: Found) -> None:
    """Notes newest versions of decisions that a configuration wants, and that have no delivery."""
    told = {
        (row["configuration_id"], row["conversion_id"])
        for row in await database.fetch("SELECT configuration_id, conversion_id FROM postback.deliveries")
    }
    triggered: dict[tuple[str, str], list[str]] = {}
    for one in configurations(""):
        if one.adapter == "template" and one.delivery_method == one.DELIVERY_METHOD_ALL:
            triggered.setdefault((one.app_id, one.trigger), []).append(one.configuration_id)
    missing: list[tuple[str, str]] = []
    async with database.transaction():
        async for row in database.cursor(_NEWEST):
            decision = decision_pb2.Decision.FromString(row["decision"])
            record = record_pb2.Record.FromString(row["record"])
            if decision.outcome not in TOLD or record.event.revenue.amount_micros < 0:
                continue
            wanted_by = triggered.get((decision.app_id, decision.event_name), ())
            missing += [pair for one in wanted_by if (pair := (one, decision.conversion_id)) not in told]
    if missing:
        found.problems.append(f"{len(missing)} wanted and not made, as {sorted(missing)[:3]}")


_NEWEST = """
    SELECT DISTINCT ON (app_id, conversion_id) decision, record
    FROM attribution.decisions
    ORDER BY app_id, conversion_id, version DESC
"""


async def _judge_endings(database: Any, found: Found) -> None:
    """Counts how deliveries ended, and notes the ends that no endpoint gave."""
    for row in await database.fetch(_ENDINGS):
        verdict = "" if row["verdict"] is None else Attempt.Verdict.Name(row["verdict"]).removeprefix("VERDICT_")
        state = Delivery.State.Name(row["state"]).removeprefix("STATE_")
        found.deliveries[f"{state} {verdict}".lower()] += row["count"]
        detail = Attempt.FromString(row["attempt"] or b"").detail
        # X knows a device by one id alone: what has none is nothing to ask about.
        is_for_lack = verdict == "NOT_RENDERED" and detail.startswith("no IDFA")
        is_of_ours = verdict not in ANSWERED or detail.startswith("could not be handled")
        if state in ("REFUSED", "EXHAUSTED") and is_of_ours and not is_for_lack:
            found.problems.append(f"{row['count']} of {row['configuration_id']} {state}: {verdict} {detail}")


_ENDINGS = """
    SELECT configuration_id, state, verdict, count(*) AS count, min(attempt) AS attempt
    FROM postback.deliveries
    LEFT JOIN LATERAL (
        SELECT verdict, attempt
        FROM postback.attempts
        WHERE attempts.delivery_id = deliveries.delivery_id AND attempts.configuration_id = deliveries.configuration_id
        ORDER BY redelivery_count DESC, number DESC
        LIMIT 1
    ) AS last ON state IN (3, 4) -- REFUSED, EXHAUSTED
    GROUP BY configuration_id, state, verdict, CASE WHEN verdict = 9 THEN attempt END -- NOT_RENDERED
"""


# The services.


def memory_limit(service: str) -> int:
    """Returns the bytes of memory that the manifest of a service gives it."""
    documents = yaml.safe_load_all((BASE / service / "resources.yaml").read_text())
    (deployment,) = [each for each in documents if each["kind"] in ("Deployment", "StatefulSet")]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi)", container["resources"]["limits"]["memory"]).groups()  # type: ignore[union-attr]
    return int(number) << {"Mi": 20, "Gi": 30}[unit]


async def watch_memory(suite: Suite, peaks: dict[str, int]) -> None:
    """Notes the most memory that each service holds, until cancelled."""
    while True:
        for name in FUZZED:
            with suppress(psutil.NoSuchProcess, TypeError):  # it has just ended
                peaks[name] = max(peaks.get(name, 0), psutil.Process(suite.services[name].pid).memory_info().rss)
        await asyncio.sleep(0.2)


def faults_logged(directory: Path) -> Iterator[str]:
    """Yields the kinds of faults in the logs of the services, each with an example."""
    for log in sorted(directory.glob("*.log")):
        faults: dict[str, str] = {}
        counts = Counter[str]()
        for line in log.read_text(errors="replace").splitlines():
            if match := FAULTS.search(line):
                counts[match[0]] += 1
                faults.setdefault(match[0], line.strip()[:400])
        yield from (f"{log.stem} logged {counts[kind]} times {kind}: {line}" for kind, line in faults.items())


def main() -> int:
    """Returns exit code 0, or 1 when there are problems."""
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=LONG_COUNT, help=f"records; default {LONG_COUNT:,}")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32), help="to have the same records again")
    options = parser.parse_args()
    announce = partial(Console(soft_wrap=True).print, markup=False, highlight=False)
    announce(f"{options.count:,} records of seed {options.seed}")
    with tempfile.TemporaryDirectory(prefix="reengage-fuzz-", ignore_cleanup_errors=True) as directory:
        found = asyncio.run(fuzz(Path(directory), count=options.count, seed=options.seed, announce=announce))
    for line in found.lines():
        announce(line)
    return 1 if found.problems else 0


if __name__ == "__main__":
    sys.exit(main())
