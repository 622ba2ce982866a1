"""WatchDecisions: every decision once and in order, from any point on, whoever restarts."""

import asyncio
import itertools
import random
import signal
from collections import Counter, defaultdict
from collections.abc import Awaitable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import pytest

from libs.channels import open_channel
from libs.domain.lanes import lane_of
from libs.errors import ResourceExhausted, from_rpc_error
from reengage.attribution.v1 import decision_pb2
from reengage.attribution.v1 import service_pb2_grpc as attribution_grpc
from reengage.ingest.v1 import record_pb2
from reengage.tracker.v1 import app_pb2, snapshot_pb2, status_pb2
from services.attribution.pace import Pace
from services.attribution.queries.following import Filters, Following, FollowingConfig
from services.attribution.storage import PLANNER
from services.attribution.storage.following import READ_ALL, READ_APP
from tests.attribution.conftest import (
    APP,
    OTHER_RE_TRACKER,
    RE_TRACKER,
    World,
    click,
    device,
    event,
    sample_settings,
)
from tests.conftest import Database
from tests.support.feed import serve_settings
from tests.support.processes import attribution_process

OTHER_APP = "news"
INVALID_ARGUMENT = grpc.StatusCode.INVALID_ARGUMENT
Seen = tuple[int, str, int]
"""Sign, conversion id, version."""


def seen(fact: decision_pb2.Fact) -> Seen:
    return fact.sign, fact.decision.conversion_id, fact.decision.version


async def watch(world: World, count: int, **fields: Any) -> tuple[list[Seen], str]:
    """Returns the first so many facts (or a few more), and the token after them."""
    facts: list[Seen] = []
    token = ""
    call = world.attribution.WatchDecisions(decision_pb2.WatchDecisionsRequest(**fields))
    async with asyncio.timeout(30):
        async for response in call:
            facts += map(seen, response.facts)
            token = response.resume_token
            if len(facts) >= count:
                break
    call.cancel()
    return facts, token


async def failure(call: Awaitable[object]) -> tuple[grpc.StatusCode, str, float | None]:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    details = from_rpc_error(raised.value)
    return details.code, details.reason, details.retry_after_s


async def decide(world: World, *records: record_pb2.Record) -> list[str]:
    """Has records decided; returns their ids."""
    async with world.worker():
        ids = await world.send(*records)
        apps = {record.app_id for record in records}
        while await world.pool.fetchval(
            "SELECT count(*) FROM decisions WHERE conversion_id = ANY($1) AND app_id = ANY($2)", ids, list(apps)
        ) < len(ids):
            await asyncio.sleep(0.01)
    return ids


async def add_version(world: World, conversion_id: str, **fields: Any) -> None:
    """Adds a newer version of a decision, as a re-attribution writes it."""
    row = await world.pool.fetchrow(
        "SELECT * FROM decisions WHERE conversion_id = $1 ORDER BY version DESC LIMIT 1", conversion_id
    )
    assert row is not None
    newer = decision_pb2.Decision.FromString(row["decision"])
    newer.MergeFrom(decision_pb2.Decision(version=newer.version + 1, **fields))
    async with world.pool.acquire() as connection, connection.transaction():
        sequence = await connection.fetchval(
            "UPDATE lanes SET next_sequence = next_sequence + 1 WHERE lane = $1 RETURNING next_sequence - 1",
            row["lane"],
        )
        changed = {
            **row,
            "sequence": sequence,
            "version": newer.version,
            "tracker_id": newer.tracker_id,
            "decision": newer.SerializeToString(),
        }
        columns = ", ".join(changed)
        places = ", ".join(f"${number + 1}" for number in range(len(changed)))
        await connection.execute(f"INSERT INTO decisions ({columns}) VALUES ({places})", *changed.values())


def views(*numbers: int, app_id: str = APP) -> list[record_pb2.Record]:
    made = [event(number, device(number), "View", record_id=f"v{number}") for number in numbers]
    for each in made:
        each.app_id = app_id
    return made


async def test_from_the_first_kept_and_then_what_comes(world: World) -> None:
    ids = await decide(world, *views(*range(20)))
    call = world.attribution.WatchDecisions(decision_pb2.WatchDecisionsRequest())
    responses = aiter(call)
    first = await anext(responses)
    assert (len(first.facts), bool(first.resume_token)) == (0, True), "the first comes at once"
    facts = [seen(fact) for fact in (await anext(responses)).facts]
    assert facts == [(1, conversion_id, 1) for conversion_id in ids]
    more = await decide(world, *views(50, 51))
    facts = []
    while len(facts) < 2:
        facts += [seen(fact) for fact in (await anext(responses)).facts]
    assert facts == [(1, conversion_id, 1) for conversion_id in more]
    call.cancel()


async def test_from_now_leaves_out_what_was(world: World) -> None:
    await decide(world, *views(*range(5)))
    call = world.attribution.WatchDecisions(decision_pb2.WatchDecisionsRequest(from_now=True))
    token = (await anext(aiter(call))).resume_token
    call.cancel()
    await decide(world, *views(7))
    assert (await watch(world, 1, resume_token=token))[0] == [(1, "v7", 1)], "its first token is that of its beginning"


@pytest.mark.parametrize(
    "following_config", [pytest.param(FollowingConfig(max_response_bytes=500), id="small responses")]
)
async def test_going_on_with_any_token_loses_and_doubles_nothing(world: World) -> None:
    """Two apps in two lanes, cut into responses of about two facts, left after any of them."""
    await second_app(world)
    assert lane_of(APP) != lane_of(OTHER_APP)
    expected = [(1, each, 1) for each in await decide(world, *views(*range(40)), *views(*range(40), app_id=OTHER_APP))]
    facts: list[Seen] = []
    token = ""
    while len(facts) < len(expected):
        some, token = await watch(world, random.randint(1, 5), resume_token=token)
        facts += some
    assert Counter(facts) == Counter(expected)
    await decide(world, *views(99))
    assert (await watch(world, 1, resume_token=token))[0] == [(1, "v99", 1)]


@pytest.mark.parametrize(
    "following_config",
    [pytest.param(FollowingConfig(max_decisions=4, min_decisions_per_lane=4), id="small looks")],
)
async def test_filters(world: World, subtests: pytest.Subtests) -> None:
    await second_app(world)
    async with world.worker():
        await world.send(click(0, device(1), RE_TRACKER), click(0, device(2), OTHER_RE_TRACKER))
    await decide(world, *views(*range(100, 120)), *views(*range(200, 220), app_id=OTHER_APP))
    await decide(world, event(10, device(1), record_id="re"), event(10, device(2), record_id="other"))
    await decide(world, *views(*range(120, 140)))
    before, after = [f"v{number}" for number in range(100, 120)], [f"v{number}" for number in range(120, 140)]
    for fields, expected in (
        ({"app_id": APP}, [*before, "re", "other", *after]),
        ({"app_id": OTHER_APP}, [f"v{number}" for number in range(200, 220)]),
        ({"network_id": "acme"}, ["re"]),
        ({"tracker_id": OTHER_RE_TRACKER}, ["other"]),
        ({"app_id": APP, "network_id": "bolt"}, ["other"]),
    ):
        with subtests.test(**fields):
            assert [each for _, each, _ in (await watch(world, len(expected), **fields))[0]] == expected


async def test_when_all_is_filtered_out_a_token_comes_now_and_then(world: World) -> None:
    await decide(world, *views(*range(5)))
    quiet = Following(world.pool, world.pace, FollowingConfig(quiet_s=0.05))
    filters = Filters(tracker_id="nobody's")
    running = asyncio.ensure_future(quiet.run())
    async with aclosing(quiet.follow(filters, quiet.first(filters))) as responses:
        first, second = await anext(responses), await anext(responses)
    running.cancel()
    assert not first.facts
    assert not second.facts
    assert second.resume_token != first.resume_token, "what was looked through need not be again"


async def test_from_a_time_on_holes_or_not(world: World, subtests: pytest.Subtests) -> None:
    ids = await decide(world, *views(*range(30)))
    for number, conversion_id in enumerate(ids):
        # As if one had been decided every minute; the clock of one of the workers is 5 s behind.
        found = await world.pool.fetchrow(
            "SELECT lane, sequence, decision FROM decisions WHERE conversion_id = $1", conversion_id
        )
        assert found is not None
        decision = decision_pb2.Decision.FromString(found["decision"])
        decision.decide_time.FromSeconds(1_800_000_000 + number * 60 - (number % 2) * 5)
        await world.pool.execute(
            "UPDATE decisions SET decision = $3 WHERE lane = $1 AND sequence = $2",
            found["lane"],
            found["sequence"],
            decision.SerializeToString(),
        )
    await world.pool.execute(
        "DELETE FROM decisions WHERE conversion_id = ANY($1)", [f"v{n}" for n in (0, 1, 2, 9, 10, 14)]
    )
    left = [number for number in range(30) if number not in (0, 1, 2, 9, 10, 14)]
    for minute in (-5, 0, 3, 8, 9, 10, 13, 20, 29):
        expected = [(1, f"v{number}", 1) for number in left if number * 60 - (number % 2) * 5 >= minute * 60]
        request: dict[str, Any] = {"start_time": {"seconds": 1_800_000_000 + minute * 60}}
        with subtests.test(minute=minute):
            facts, token = await watch(world, max(1, len(expected)) if expected else 0, **request)
            assert facts == expected
            assert token


async def test_holes_at_the_end_hold_nobody_up(world: World) -> None:
    ids = await decide(world, *views(*range(10)))
    await world.pool.execute("DELETE FROM decisions WHERE conversion_id = ANY($1)", ids[4:])
    facts, token = await watch(world, 4)
    assert [each for _, each, _ in facts] == ids[:4]
    await decide(world, *views(77))
    assert (await watch(world, 1, resume_token=token))[0] == [(1, "v77", 1)]


async def test_a_newer_version_takes_the_older_one_back(world: World) -> None:
    async with world.worker():
        await world.send(click(0, device(1), RE_TRACKER))
    await decide(world, event(10, device(1), record_id="e1"))
    await add_version(world, "e1", tracker_id=OTHER_RE_TRACKER, network_id="bolt")
    await add_version(world, "e1", tracker_id=OTHER_RE_TRACKER, network_id="bolt")
    assert (await watch(world, 5))[0] == [(1, "e1", 1), (-1, "e1", 1), (1, "e1", 2), (-1, "e1", 2), (1, "e1", 3)]
    assert (await watch(world, 2, tracker_id=RE_TRACKER))[0] == [(1, "e1", 1), (-1, "e1", 1)]
    assert (await watch(world, 3, network_id="bolt"))[0] == [(1, "e1", 2), (-1, "e1", 2), (1, "e1", 3)]


async def test_who_catches_up_rests_while_live_work_is_busy(world: World) -> None:
    """After every look that leaves more to come, and not at the end."""
    await decide(world, *views(*range(10)))
    rests: list[float] = []

    class Busy(Pace):
        def pause_s(self, worked_s: float) -> float:
            rests.append(worked_s)
            return 0.001

    catching_up = Following(world.pool, Busy(), FollowingConfig(max_decisions=4))
    filters = Filters(app_id=APP)
    facts: list[Seen] = []
    async with aclosing(catching_up.follow(filters, catching_up.first(filters))) as responses:
        while len(facts) < 10:
            facts += map(seen, (await anext(responses)).facts)
    assert len(rests) == 1, "8 and then 2"
    assert rests[0] > 0


async def test_one_watcher_too_many_is_told_when_to_come_again(world: World) -> None:
    narrow = Following(world.pool, world.pace, FollowingConfig(max_followers=1))
    filters = Filters()
    async with aclosing(narrow.follow(filters, narrow.first(filters))) as responses:
        await anext(responses)
        with pytest.raises(ResourceExhausted) as refused:
            await anext(narrow.follow(filters, narrow.first(filters)))
        assert (refused.value.reason, refused.value.retry_after_s) == ("TOO_MANY_WATCHERS", 10.0)
    async with aclosing(narrow.follow(filters, narrow.first(filters))) as responses:
        assert (await anext(responses)).resume_token, "who goes makes room"


@pytest.mark.parametrize("fields", [{"resume_token": "x"}, {"app_id": "a\0"}, {"start_time": {"seconds": 10**15}}])
async def test_a_start_that_is_none_is_refused(world: World, fields: dict[str, Any]) -> None:
    assert (await failure(watch(world, 1, **fields)))[:2] == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT")


async def test_an_app_that_there_is_not_is_not_found(world: World) -> None:
    assert (await failure(watch(world, 1, app_id="shopp")))[:2] == (grpc.StatusCode.NOT_FOUND, "APP_NOT_FOUND")


async def test_an_archived_app_can_be_watched(world: World) -> None:
    await decide(world, *views(1))
    archived = app_pb2.App(app_id=APP, status=status_pb2.STATUS_ARCHIVED)
    await world.settings.reached(await world.feed.publish(snapshot_pb2.Resource(app=archived)))
    assert (await watch(world, 1, app_id=APP))[0] == [(1, "v1", 1)]


async def test_a_token_of_other_filters_or_another_database_is_refused(world: World) -> None:
    await decide(world, *views(1))
    _, token = await watch(world, 1, network_id="")
    _, of_app = await watch(world, 1, app_id=APP)
    assert (await failure(watch(world, 1, resume_token=token, network_id="acme")))[0] is INVALID_ARGUMENT
    assert (await failure(watch(world, 1, resume_token=of_app)))[0] is INVALID_ARGUMENT
    await world.pool.execute("UPDATE lanes SET next_sequence = 0, relayed = 0")  # as from a backup
    assert (await failure(watch(world, 1, resume_token=token)))[0] is INVALID_ARGUMENT


@pytest.mark.slow
async def test_a_look_reads_by_the_index_that_fits(database: Database) -> None:
    connection = await asyncpg.connect(database.admin_dsn)
    await connection.execute("SET search_path = attribution; SET plan_cache_mode = force_generic_plan")
    await connection.execute(
        "SELECT make_period('1970-01-01', 400::smallint), make_period('1970-02-01', 400::smallint)"
    )
    # As on the service's own connections.
    await connection.execute("; ".join(f"SET {name} = {value}" for name, value in PLANNER.items()))
    await connection.execute(
        """
        INSERT INTO decisions (
            lane, sequence, app_id, conversion_id, version, device_id, outcome, conversion_time_us, receive_time_us,
            decision, record, retention_days
        )
        SELECT n % 64, n / 64, CASE WHEN n % 6400 = 7 THEN 'rare' ELSE 'common' END, n::text, 1, gen_random_uuid(),
            1, n, n, 'x', 'x', 400
        FROM generate_series(0, 63999) AS n;
        ANALYZE decisions
        """
    )
    plans = {}
    for name, query, types, values in (("all", READ_ALL, "", ""), ("app", READ_APP, ", text", ", 'rare'")):
        await connection.execute(
            f"PREPARE look_{name} (smallint[], bigint[], bigint[], bigint, text, bigint{types}) AS {query}"
        )
        explain = f"EXPLAIN EXECUTE look_{name} ('{{7}}', '{{0}}', '{{1000}}', 16, NULL, 8000000{values})"
        plans[name] = "\n".join(row[0] for row in await connection.fetch(explain))
    await connection.close()
    assert "using decisions_197001_400_lane_sequence_idx on decisions" in plans["all"]
    assert "using decisions_197001_400_lane_app_id_sequence_idx on decisions" in plans["app"]
    assert not any("Seq Scan on decisions" in plan for plan in plans.values())


class Reader:
    """A client that goes from service to service, and now and then hangs up by itself."""

    def __init__(self, *targets: str) -> None:
        self.facts: list[decision_pb2.Fact] = []
        self.at = 0
        self.broken = 0
        self._targets = targets

    async def run(self) -> None:
        token = ""
        for number in itertools.cycle(range(len(self._targets))):
            self.at = number
            async with open_channel(self._targets[number]) as channel:
                stub = attribution_grpc.AttributionServiceStub(channel)
                call = stub.WatchDecisions(decision_pb2.WatchDecisionsRequest(resume_token=token))
                patience = random.randint(2, 8)
                try:
                    async for response in call:
                        self.facts += response.facts
                        token = response.resume_token
                        patience -= 1
                        if not patience:
                            break
                except grpc.aio.AioRpcError as error:
                    if error.code() is not grpc.StatusCode.UNAVAILABLE:
                        raise
                    self.broken += 1
                    await asyncio.sleep(0.02)
                call.cancel()


@pytest.mark.crash
@pytest.mark.timeout(180)
async def test_nothing_is_lost_or_doubled_whoever_dies(world: World, database: Database, tmp_path: Path) -> None:
    """Two services decide and are killed in turns; a reader goes on with the token it has, at whichever is there."""
    settings = snapshot_pb2.WatchSnapshotResponse(
        revision=100, reset=True, resources=[*sample_settings(), *second_app_settings()]
    )
    sent: list[tuple[str, str]] = []
    stop = asyncio.Event()

    async def traffic() -> None:
        for number in itertools.takewhile(lambda _: not stop.is_set(), itertools.count()):
            app_id = (APP, OTHER_APP)[number % 2]
            ids = await world.send(*views(*range(number * 10, number * 10 + 10), app_id=app_id))
            sent.extend((app_id, each) for each in ids)
            await asyncio.sleep(0.01)

    async def decided() -> list[Any]:
        return await world.pool.fetch(
            "SELECT lane, sequence, app_id, conversion_id FROM decisions ORDER BY lane, sequence"
        )

    await second_app(world)
    async with serve_settings(settings) as tracker:
        targets = {f"{name}_target": target for name, target in world.targets.items()} | {"tracker_target": tracker}
        dsn = database.dsn("attribution")
        services = [attribution_process(tmp_path / f"log{n}", dsn=dsn, **targets) for n in range(2)]
        await asyncio.gather(*(service.start() for service in services))
        reader = Reader(*(service.target for service in services))
        reading, sending = asyncio.ensure_future(reader.run()), asyncio.ensure_future(traffic())
        for _ in range(4):
            goal = len(reader.facts) + 100
            while len(reader.facts) < goal:
                await asyncio.sleep(0.01)
            killed = services[reader.at]
            await killed.stop(signal.SIGKILL)
            await killed.start()
        stop.set()
        await sending
        while len(await decided()) < len(sent):
            await asyncio.sleep(0.02)
        rows = await decided()
        async with asyncio.timeout(30):
            while len(reader.facts) < len(rows):
                await asyncio.sleep(0.02)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        assert [await service.stop() for service in services] == [0, 0]
    assert len(rows) == len(sent)
    told = defaultdict(list)
    for fact in reader.facts:
        told[lane_of(fact.decision.app_id)].append((fact.decision.app_id, fact.decision.conversion_id))
    made = defaultdict(list)
    for row in rows:
        made[row["lane"]].append((row["app_id"], row["conversion_id"]))
    assert told == made, "each lane's decisions once, in their order"
    assert reader.broken, "it was being told when one died"


async def second_app(world: World) -> None:
    await world.feed.publish(*second_app_settings())


def second_app_settings() -> list[snapshot_pb2.Resource]:
    return [snapshot_pb2.Resource(app=app_pb2.App(app_id=OTHER_APP, status=status_pb2.STATUS_LIVE))]
