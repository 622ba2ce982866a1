"""What a second pair of eyes found: each test failed before its repair."""

import asyncio
import random
import re
import uuid
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection
from types import SimpleNamespace
from typing import Any, cast

import asyncpg
import grpc
import pytest
from prometheus_client import REGISTRY

from libs.db import Connection, Pool
from libs.domain.lanes import LANES, lane_of
from libs.periods import Periods
from reengage.attribution.v1 import decision_pb2, device_pb2
from reengage.ingest.v1 import record_batch_pb2, record_pb2
from reengage.tracker.v1 import app_pb2, snapshot_pb2, status_pb2
from services.attribution.decision.model import DAY_US
from services.attribution.live import candidates as candidates_module
from services.attribution.live.identities import MAX_IDS
from services.attribution.storage.decisions import already_decided, count_wins, list_decisions, read_outbox
from services.attribution.storage.engagements import AskedKey, find_engagements, find_records, find_repeats, heads_text
from services.attribution.storage.lanes import (
    advance_decided,
    advance_indexed,
    advance_relayed,
    release_lanes,
    renew_lanes,
)
from services.attribution.storage.replay import (
    FIRST_DEVICE,
    Period,
    estimate,
    find_conversions,
    find_devices,
    find_wins,
)
from tests.attribution.conftest import (
    APP,
    RE_TRACKER,
    World,
    click,
    device,
    event,
    record,
    tracker_resource,
)
from tests.conftest import Database

HOUR = 3600
REENGAGED = decision_pb2.OUTCOME_REENGAGED


async def test_a_tab_in_a_user_agent_stops_nobody(world: World) -> None:
    """Agents are stored tab-separated: a tab in a model made every later conversion of that address fail, for ever."""
    agent = "Mozilla/5.0 (Linux; Android 10; SM\tG960F Build/QP1A) AppleWebKit/537.36 Chrome/80 Mobile"
    async with world.worker():
        await world.send(click(0, record_id="k1", user_agent=agent))
        await world.send(event(10, device(1), record_id="e1", user_agent=agent.replace("\t", " ")))
        (e1,) = await world.decided("e1")
    assert (e1.outcome, e1.matched_by) == (REENGAGED, decision_pb2.MATCH_KIND_MODELED)


@pytest.mark.slow
async def test_lanes_that_could_not_be_given_away_do_not_lie_idle(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held in the database, worked on by nobody, prolonged with every beat: the barrier waited for them for ever."""
    failures = iter([ConnectionError("the database is away")])

    async def fails_once(connection: "Connection | Pool", worker_id: str, lanes: Collection[int]) -> None:
        for failure in failures:
            raise failure
        await release_lanes(connection, worker_id, lanes)

    monkeypatch.setattr("services.attribution.live.worker.release_lanes", fails_once)
    async with world.worker():
        while await world.pool.fetchval("SELECT count(*) FROM lanes WHERE owner = 'worker-1'") < 64:
            await asyncio.sleep(0.01)
        async with world.worker():
            while await world.pool.fetchval("SELECT count(*) FROM lanes WHERE owner = 'worker-2'") < 32:
                await asyncio.sleep(0.01)
            await world.send(*(click(0, device(n), record_id=f"k{n}") for n in range(50)))
            ids = await world.send(*(event(n, device(n), record_id=f"e{n}") for n in range(50)))
            await world.decided(*ids)


async def test_quiet_lanes_move_along_while_others_are_busy(world: World) -> None:
    """Else who takes them over begins where they last were, weeks ago, and reads all of it again."""
    async with world.worker(flush_interval_s=0.0):
        for number in range(5):
            await world.send(event(number, device(number), "View", record_id=f"e{number}"))
            await world.decided(f"e{number}")
        # Looked at between two decisions: no page without a conversion was needed.
    vectors = await world.pool.fetch("SELECT decided FROM lanes")
    assert len({tuple(row["decided"]) for row in vectors}) == 1


async def test_an_event_that_is_called_like_an_identity_link_is_an_event(world: World) -> None:
    async with world.worker():
        await world.send(event(0, device(1), "_identity_link", record_id="e1"))
        await world.send(event(1, device(1), "Other", record_id="e2"))
        e1, e2 = await world.decided("e1", "e2")
    assert (e1.outcome, e1.reason) == (decision_pb2.OUTCOME_UNATTRIBUTED, decision_pb2.REASON_EVENT_NOT_SELECTED)
    assert e1.device_id == e2.device_id


@pytest.mark.slow
async def test_large_conversions_reach_postback(world: World) -> None:
    """500 of them are more than one message may hold: the relay tried the same ones for ever."""
    data = {f"key{n}": "x" * 4000 for n in range(64)}
    sent: list[str] = []
    world.received.failing = True
    async with world.worker():
        for start in range(0, 100, 10):
            sent += await world.send(
                *(
                    event(n, device(n), "View", record_id=f"e{n}", event={"event_data": data})
                    for n in range(start, start + 10)
                )
            )
        await world.decided(*sent)
        world.received.failing = False
        while len(world.received.conversions) < len(sent):
            await asyncio.sleep(0.01)


async def test_of_an_address_that_thousands_share_the_nearest_engagements_are_considered(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them were read, judged and stored with each conversion; and the device's own click lies further back."""
    monkeypatch.setattr(candidates_module, "MAX_CONSIDERED", 3)
    async with world.worker():
        await world.send(click(0, device(1), record_id="own"))
        await world.send(*(click(10 * n, record_id=f"k{n}") for n in range(1, 11)))
        await world.send(event(55, {"android_id": "ab12"}, record_id="e1"), event(55, device(1), record_id="e2"))
        e1, e2 = await world.decided("e1", "e2")
    nearest = {"k3", "k4", "k5", "k6", "k7", "k8"}
    assert {c.engagement_id for c in e1.candidates} == nearest
    assert (e1.engagement_id, e2.engagement_id) == ("k5", "own")
    assert {c.engagement_id for c in e2.candidates} == nearest | {"own"}


async def test_a_flood_of_clicks_that_cannot_win_hides_none_that_can(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else who floods a device with refused clicks, or an address with others' clicks, takes it from the honest one."""
    monkeypatch.setattr(candidates_module, "MAX_CONSIDERED", 3)
    phone = {"user_agent": "Mozilla/5.0 (Linux; Android 14; Pixel 8) AppleWebKit/537.36"}
    async with world.worker():
        await world.send(click(0, device(1), record_id="honest", ip_address="198.51.100.1"))
        await world.send(*(click(n, device(1), "ua", record_id=f"k{n}") for n in range(1, 11)))
        await world.send(click(0, record_id="same phone", ip_address="198.51.100.2", **phone))
        await world.send(*(click(n, record_id=f"nat{n}", ip_address="198.51.100.2") for n in range(1, 11)))
        await world.send(event(100, device(1), record_id="e1", ip_address="198.51.100.3"))
        await world.send(event(100, device(2), record_id="e2", ip_address="198.51.100.2", **phone))
        e1, e2 = await world.decided("e1", "e2")
    assert (e1.engagement_id, e2.engagement_id) == ("honest", "same phone")


async def test_an_engagement_is_spent_in_its_own_app_only(world: World) -> None:
    """Record ids are unique within an app; two apps may share a home lane."""
    other = next(f"app-{n}" for n in range(1000) if lane_of(f"app-{n}") == lane_of(APP))
    theirs = tracker_resource("theirs", network_id="acme", events=["Purchase"], max_conversions_per_engagement=1)
    theirs.tracker.app_id = other
    app = app_pb2.App(app_id=other, platform=app_pb2.PLATFORM_ANDROID, status=status_pb2.STATUS_LIVE)
    ours = tracker_resource("ours", network_id="acme", events=["Purchase"], max_conversions_per_engagement=1)
    await world.feed.publish(snapshot_pb2.Resource(app=app), theirs, ours)

    def of_other(made: record_pb2.Record) -> record_pb2.Record:
        made.app_id = other
        return made

    async with world.worker():
        known = record_batch_pb2.RecordBatchRequest(records=[of_other(click(0, device(1), "theirs", record_id="k1"))])
        while (await world.ingest.RecordBatch(known)).results[0].violations:
            await asyncio.sleep(0.01)  # until ingest has heard of the app
        await world.send(of_other(event(5, device(1), record_id="e1")))
        await world.send(click(0, device(1), "ours", record_id="k1"))
        await world.send(event(5, device(1), record_id="e2"))
        (e2,) = await world.decided("e2")
    assert (e2.outcome, e2.engagement_id) == (REENGAGED, "k1")


async def test_the_loops_of_a_worker_do_not_deadlock_over_their_lanes(world: World) -> None:
    """They write the same rows, each its own column: every second one was a deadlock, and a second lost."""
    numbers = random.Random(7)
    await world.pool.execute("UPDATE lanes SET owner = 'w'")

    def some() -> list[int]:
        return numbers.sample(range(LANES), numbers.choice((3, 20, 64)))

    async def index(connection: Connection) -> None:
        await advance_indexed(connection, "w", dict.fromkeys(some(), 1))

    async def decide(connection: Connection) -> None:
        lanes = some()
        sequences = dict.fromkeys(lanes, 0)
        await advance_decided(connection, "w", {lane: [0] * LANES for lane in lanes}, sequences, sequences)

    async def relay(_: Connection) -> None:
        await advance_relayed(world.pool, "w", dict.fromkeys(some(), 0))

    async def renew(connection: Connection) -> None:
        await renew_lanes(connection, "w", 5.0)

    async def often(work: Callable[[Connection], Awaitable[None]]) -> None:
        for _ in range(60):
            async with world.pool.acquire() as connection, connection.transaction():
                await work(connection)

    await asyncio.gather(*map(often, (index, decide, relay, renew)))


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("GetDecision", decision_pb2.GetDecisionRequest(app_id=APP, conversion_id="a\0b")),
        ("ListDecisions", decision_pb2.ListDecisionsRequest(app_id="a\0b")),
        ("ListDecisions", decision_pb2.ListDecisionsRequest(app_id=APP, tracker_id="a\0b")),
        ("ListDecisions", decision_pb2.ListDecisionsRequest(app_id=APP, outcomes=[100_000])),  # type: ignore[list-item]
    ],
)
async def test_what_cannot_be_asked_is_the_callers_error(world: World, method: str, request_: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await getattr(world.attribution, method)(request_)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(("kind", "value"), [("imei", "490154203237518"), ("mac_sha1", "a" * 40), ("oaid", " 0F-1 ")])
async def test_a_device_is_found_by_any_id_it_is_known_by(world: World, kind: str, value: str) -> None:
    async with world.worker():
        await world.send(event(0, {kind: value}, "View", record_id="e1"))
        await world.send(event(1, {kind: value.strip()}, "View", record_id="e2"))
        e1, e2 = await world.decided("e1", "e2")
        request = device_pb2.GetDeviceAttributionRequest(app_id=APP, device_id=value.strip())
        answer = await world.attribution.GetDeviceAttribution(request)
    assert answer.device_id == e1.device_id == e2.device_id


async def test_devices_that_share_an_id_do_not_grow_without_end(world: World) -> None:
    """A sender's `guest` ties them all together: each record read, wrote and looked up the ids of all before it."""
    guest = {"custom": "guest"}
    async with world.worker():
        await world.send(event(0, {"oaid": "abc1"}, "View", record_id="older"))
        for n in range(30):
            await world.send(event(n, {**guest, "adid": device(n)}, "View", record_id=f"v{n}"))
        await world.send(click(100, device(0), record_id="k0"))
        await world.send(event(110, guest, record_id="by-guest"), event(111, device(0), record_id="by-itself"))
        await world.send(event(120, {**guest, "oaid": "abc1"}, "View", record_id="merged"))
        await world.send(event(130, device(0), "View", record_id="after"))
        older, *_, by_guest, by_itself, merged, after = await world.decided(
            "older", "v29", "by-guest", "by-itself", "merged", "after"
        )
    assert by_guest.device_id == by_itself.device_id != older.device_id
    assert (by_guest.outcome, by_itself.engagement_id) == (decision_pb2.OUTCOME_UNATTRIBUTED, "k0")
    assert merged.device_id == after.device_id == older.device_id, "an id of old leads on, merged or not"
    ids = await world.pool.fetchval("SELECT ids FROM devices WHERE device_id = $1", uuid.UUID(merged.device_id))
    assert len(ids["adid"]) == MAX_IDS


async def test_a_log_that_lost_its_end_is_not_read_on_as_if_nothing_were(world: World) -> None:
    """After a restore, positions are given out again: records there were skipped without a word."""

    def failures() -> float:
        return REGISTRY.get_sample_value("worker_failures_total", {"worker": "decider"}) or 0.0

    before = failures()
    async with world.worker():
        await world.send(*(event(n, device(n), "View", record_id=f"e{n}") for n in range(300)))
        await world.decided("e299")
        await world.log_pool.execute("DELETE FROM log")
        await world.log_pool.execute("UPDATE lanes SET next_position = 0")
        while failures() == before:
            await asyncio.sleep(0.01)


class _Explaining:
    """Takes queries and keeps their plans."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.plan = ""

    async def fetch(self, sql: str, *values: Any) -> list[Any]:
        explain = "EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF)"
        self.plan = "\n".join(row[0] for row in await self._pool.fetch(f"{explain} {sql}", *values))
        return []

    async def fetchrow(self, sql: str, *values: Any) -> dict[str, int]:
        await self.fetch(sql, *values)
        return defaultdict(int)

    def used(self, table: str) -> set[str]:
        """The partitions of a table that were read, or the indexes they were read by."""
        scans = re.findall(rf"(?<!Heap )Scan (?:Backward )?(?:using (\S+) )?on ({table}_\S+) .*actual", self.plan)
        return {index or partition for index, partition in scans}


@pytest.mark.parametrize("analyzed", [False, True], ids=["without statistics", "analyzed"])
@pytest.mark.slow
async def test_plans_of_hot_queries(world: World, database: Database, analyzed: bool) -> None:
    """One lane, in which one of two apps has nearly all decisions."""
    await Periods(world.pool).ensure((month * 31 * DAY_US, days) for month in range(6) for days in (60, 400))
    await world.pool.execute("INSERT INTO retentions VALUES ('few', 400, 400), ('many', 400, 400)")
    await world.pool.execute(
        """
        INSERT INTO decisions (lane, sequence, app_id, conversion_id, version, round_id, device_id, outcome,
                               conversion_time_us, retention_days, engagement_id, decision, record)
        SELECT 0, n, CASE WHEN n < 5 THEN 'few' ELSE 'many' END, n::text, 1, gen_random_uuid(), gen_random_uuid(), 6,
               n, 400, n::text, '', ''
        FROM generate_series(1, 20000) AS n
        """
    )
    await world.pool.execute(
        """
        INSERT INTO engagements (match_key, time_us, engagement_id, lane, position, is_click, tracker_id, device_keys,
                                 ip, click_id, completed_view, is_valid, retention_days)
        SELECT 'address', n, n::text, 0, n, true, 're', '', '', '', false, true, 400 FROM generate_series(1, 20000) AS n
        """
    )
    await world.pool.execute(
        """
        INSERT INTO network_clicks (click_key, time_us, engagement_id, lane, position, retention_days)
        SELECT 'same', n, n::text, 0, n, 400 FROM generate_series(1, 20000) AS n
        """
    )
    if analyzed:
        admin = await asyncpg.connect(database.admin_dsn)
        await admin.execute("ANALYZE")
        await admin.close()
    explaining, heads = _Explaining(world.pool), heads_text([1 << 40] * LANES)
    pool, connection = cast("Pool", explaining), cast("Connection", explaining)

    await list_decisions(
        pool, 0, "few", tracker_id=None, outcomes=(), start_us=None, end_us=None, before=None, limit=101
    )
    assert "decisions_197001_400_lane_app_id_sequence_idx" in explaining.used("decisions")
    asked = [AskedKey(b"address", 500, "many", 0), AskedKey(b"x", 7, "few", 1)]
    await find_engagements(connection, asked, [heads], span_us=1000, limit=200)
    assert explaining.used("engagements") == {"engagements_197001_400_pkey"}, "one month and retention of many"
    assert "->  Sort (" not in explaining.plan, "not all that lies behind an address is read"
    clicks = [(b"same", 500, "500", 0), (b"x", 7, "7", 0)]
    await find_repeats(connection, clicks, [heads], within_us=1000)
    assert "network_clicks_197001_400_pkey" in explaining.used("network_clicks")
    assert len(explaining.used("network_clicks")) == 2, "of one month those of both retentions"
    await find_records(connection, [(b"address", 500, "many")], span_us=1000)
    assert explaining.used("engagements") == {"engagements_197001_400_pkey"}
    await already_decided(connection, [(0, "700"), (0, "new")])
    assert "decisions_197001_400_pkey" in explaining.used("decisions")
    await read_outbox(pool, {0: range(700, 710)}, 10)
    assert "decisions_197001_400_lane_sequence_idx" in explaining.used("decisions")
    await count_wins(connection, [(0, "700")])
    assert "decisions_197001_400_lane_engagement_id_idx" in explaining.used("decisions")

    period = cast("Period", SimpleNamespace(lane=0, app_id="many", start_us=0, end_us=1 << 40))
    await find_devices(connection, period, FIRST_DEVICE, 1000)
    assert all("lane_app_id_device_id" in index for index in explaining.used("decisions"))
    assert "->  Sort (" not in explaining.plan, "however many there are, a page is read"
    await estimate(connection, period)
    assert all("lane_app_id_device_id" in index for index in explaining.used("decisions"))
    assert "->  Sort (" not in explaining.plan, "nor more than are counted"
    await find_conversions(connection, period, [uuid.uuid4(), uuid.uuid4()])
    assert all("lane_app_id_device_id" in index for index in explaining.used("decisions"))
    await find_wins(connection, period, ["700"])
    assert "decisions_197001_400_lane_engagement_id_idx" in explaining.used("decisions")


@pytest.mark.slow
async def test_whatever_ingest_takes_is_decided(world: World) -> None:
    """One record that cannot be read stops all deciding, for ever: so there must be none."""
    numbers = random.Random(11)
    texts = ["", "x", "a\tb", "ä\u2028\U0001f600", "null", "{id}", "0" * 32, "A" * 40, "'; --", "_install", "_Deeplink"]
    texts += ["_identity_link", "SessionBegin", " padded ", "%00", "\x01\x7f", "long " * 50]
    agents = [f"Mozilla/5.0 (Linux; Android {a}; {b} Build/X) Chrome/80" for a in ("9", "1.2.3", "\t") for b in texts]
    addresses = ["192.0.2.7", "::ffff:192.0.2.7", "0::192.0.2.7", "2001:DB8::1", "1.2.3.04", "fe80::1%1", "::"]

    def text() -> str:
        return numbers.choice(texts)

    def weird() -> record_pb2.Record:
        kinds: list[dict[str, Any]] = [
            {"click": record_pb2.Click(tracker_id=RE_TRACKER, click_id=text())},
            {"impression": record_pb2.Impression(tracker_id=RE_TRACKER, impression_id=text())},
            {"install": record_pb2.Install(click_record_id=text(), referrer=text())},
            {"event": record_pb2.Event(event_name=numbers.choice(["Purchase", text()]), click_record_id=text())},
            {"session": record_pb2.Session(state=numbers.choice([1, 2]))},  # type: ignore[arg-type]
            {"deep_link_open": record_pb2.DeepLinkOpen(uri=text(), tracker_id=text(), click_record_id=text())},
            {"identity_link": record_pb2.IdentityLink(identities={text(): text()})},
        ]
        names = numbers.sample(["adid", "custom", "idfa", "mac", "adid_md5", "idfv_sha1", "oaid_sha256"], 2)
        return record(
            numbers.randrange(-2_000_000, 80_000),
            {name: text() for name in names},
            record_id=numbers.choice([text(), str(numbers.random())]),
            ip_address=numbers.choice(addresses),
            user_agent=numbers.choice(agents + texts),
            **numbers.choice(kinds),
        )

    def failures() -> float:
        return sum(s.value for m in REGISTRY.collect() if m.name == "worker_failures" for s in m.samples)

    before = failures()
    taken = 0
    async with world.worker():
        for number in range(4):
            answer = await world.ingest.RecordBatch(
                record_batch_pb2.RecordBatchRequest(records=[weird() for _ in range(500)])
            )
            taken += sum(not result.violations for result in answer.results)
            await world.send(event(0, device(number), record_id=f"end-{number}"))
            await world.decided(f"end-{number}")
    assert taken > 400
    assert failures() == before
