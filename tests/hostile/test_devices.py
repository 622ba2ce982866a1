"""Devices that somebody made: with many ids, many engagements, many others merged into them, many late records.

Anyone may send a record with any ids. What one device costs others is bounded, whatever is known of it.
"""

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from libs.db import MAX_ROWS, Pool
from libs.domain.device_ids import HASH_METHODS, KINDS, RAW_KINDS
from libs.domain.lanes import lane_of
from reengage.attribution.v1 import decision_pb2
from reengage.ingest.v1 import log_pb2, record_pb2
from services.attribution.decision.matching import MAX_SOUGHT_IDS, id_forms
from services.attribution.decision.model import MINUTE_US, EngagementKind, TrackerType
from services.attribution.decision.rules import App, EventDefinition, Network, Platform, Tracker, compile_rules
from services.attribution.live.batch import decide_batch
from services.attribution.live.candidates import MAX_CANDIDATES, MAX_CONSIDERED, MAX_KEYS_LOOKED_THROUGH
from services.attribution.simulator.scenario import ConversionRecord, EngagementRecord, Scenario
from services.attribution.simulator.simulation import simulate
from services.attribution.storage.engagements import EngagementIndex
from services.attribution.storage.hashed_ids import HashedKind, note_hashed_kinds
from services.attribution.wire.records import Logged, index_rows, parse
from tests.attribution.conftest import APP, RE_TRACKER, World, click, device, event
from tests.attribution.naive import decide_all
from tests.attribution.stories import owning, story_of
from tests.support.eventually import eventually
from tests.support.statements import Statements, counting

NETWORKS, EVENTS = (Network(network_id="acme"),), (EventDefinition(event_name="Purchase", mtr_us=0),)
TRACKERS = (
    Tracker(tracker_id=RE_TRACKER, network_id="acme", type=TrackerType.REENGAGEMENT, events=frozenset({"Purchase"})),
)
RULES = compile_rules(
    app=App(app_id=APP, platform=Platform.ANDROID), networks=NETWORKS, trackers=TRACKERS, events=EVENTS
)
HOUR = 3600


def ids(number: int) -> dict[str, str]:
    """Returns an id of each raw kind."""
    return {kind: f"{place:08x}-0000-4000-8000-{number:012x}" for place, kind in enumerate(RAW_KINDS)}


def chained(count: int) -> Iterable[record_pb2.Record]:
    """Yields events that make one device of so many ids of each kind; none was met with enough to be shared (A8)."""
    for number in range(count):
        yield event(number, ids(number), "View", record_id=f"made-{number}")
        if number:
            both = {"custom": ids(number - 1)["custom"], "android_id": ids(number)["android_id"]}
            yield event(number, both, "View", record_id=f"joined-{number}")


class Log:
    """A log of records, and a store that it is indexed and decided in."""

    def __init__(self, pool: Pool) -> None:
        self._pool, self._position, self._sequence = pool, 0, 0

    def _logged(self, records: Iterable[record_pb2.Record]) -> list[Logged]:
        entries = []
        for each in records:
            self._position += 1
            entries.append(
                log_pb2.LogEntry(
                    lane=0,
                    position=self._position,
                    app_lane=lane_of(APP),
                    receive_time_us=each.event_time.ToMicroseconds() + MINUTE_US + self._position,
                    record=each.SerializeToString(),
                )
            )
        return parse(entries)

    async def know_hashes(self) -> None:
        """Has engagements of the app carry hashes of every method."""
        kinds = [HashedKind(APP, f"adid_{method}", lane_of(APP)) for method in HASH_METHODS]
        async with self._pool.acquire() as connection:
            await note_hashed_kinds(connection, kinds, is_on_conversions=False)

    async def index(self, *records: record_pb2.Record) -> Statements:
        rows = index_rows(self._logged(records), {APP: RULES}, {APP: HASH_METHODS.values()})
        async with self._pool.acquire() as connection, counting(connection) as statements:
            await EngagementIndex(self._pool).insert(connection, rows)
        return statements

    async def decide(self, *records: record_pb2.Record) -> tuple[list[decision_pb2.Decision], Statements]:
        """Decides records in one batch."""
        async with owning(self._pool) as lanes, lanes.fenced() as connection, counting(connection) as statements:
            changes = await decide_batch(
                connection,
                self._logged(records),
                apps={APP: RULES},
                next_sequences=lanes.next_sequences,
                new_id=uuid.uuid4,
                now_us=0,
            )
            await lanes.append(connection, changes, lanes=[lane_of(APP)])
        return [decision_pb2.Decision.FromString(row.decision) for row in changes.decisions], statements


@pytest.fixture
def log(pool: Pool) -> Log:
    return Log(pool)


def purchases(count: int, start: int, **ids_: Any) -> Sequence[record_pb2.Record]:
    ids_ = ids_ or {"android_id": ids(3)["android_id"]}
    return [event(HOUR + start + n, ids_, record_id=f"e{start + n}") for n in range(count)]


async def test_a_batch_costs_at_most_as_its_records(log: Log) -> None:
    """20 ids of 13 kinds were 22,000 keys for each event: 100 of them held up every app for minutes."""
    await log.know_hashes()
    await log.index(click(0, device(1), record_id="k1"))
    await log.decide(*chained(20))
    costs = []
    for count, start in ((25, 0), (100, 100), (400, 1_000)):
        _, statements = await log.decide(*purchases(count, start))
        costs.append(statements)
        assert max(statements.values) <= 25 * MAX_ROWS, "of a row of at most 25 columns"
    first, second, third = costs
    assert second.total <= 4 * first.total
    assert third.total <= 4 * second.total
    assert third.count <= first.count + 8
    assert third.total <= 200_000


async def test_what_only_a_click_with_the_latest_ids_carries_is_found(log: Log) -> None:
    await log.decide(*chained(20))
    await log.index(
        click(HOUR - 9, {"mac": ids(19)["mac"]}, record_id="latest", ip_address="198.51.100.1"),
        click(HOUR - 8, {"mac": ids(0)["mac"]}, record_id="oldest", ip_address="198.51.100.1"),
        click(HOUR - 7, {"android_id": ids(3)["android_id"]}, record_id="own", ip_address="198.51.100.1"),
    )
    (by_own,), _ = await log.decide(*purchases(1, 0))
    (by_latest,), _ = await log.decide(*purchases(1, 10, custom=ids(19)["custom"]))
    assert (by_own.engagement_id, {c.engagement_id for c in by_own.candidates}) == ("own", {"own", "latest"})
    assert by_latest.engagement_id == "latest"


async def test_clicks_with_every_form_of_every_id_hide_none_that_can_win(log: Log) -> None:
    """Each form is a key, and under each key the nearest 40 count: a decision with 88,000 candidates, else."""
    await log.know_hashes()
    await log.decide(*chained(3))
    forms = sorted({form for number in range(3) for each in ids(number).values() for form in id_forms(each)})
    clicks = [dict(zip(KINDS, forms[at : at + len(KINDS)], strict=False)) for at in range(0, len(forms), len(KINDS))]
    honest = click(0, {"android_id": ids(0)["android_id"]}, record_id="honest", ip_address="198.51.100.1")
    await log.index(honest)
    for number in range(6):
        flood = (
            click(60 + number, some, "ua", record_id=f"{number}-{at}", ip_address="198.51.100.1")
            for at, some in enumerate(clicks)
        )
        statements = await log.index(*flood)
        assert max(statements.values) <= 25 * MAX_ROWS
    decisions, statements = await log.decide(*purchases(20, 0, android_id=ids(0)["android_id"]))
    assert {each.engagement_id for each in decisions} == {"honest"}
    most = 2 * MAX_CANDIDATES + MAX_CONSIDERED * MAX_KEYS_LOOKED_THROUGH
    assert MAX_CANDIDATES <= max(len(each.candidates) for each in decisions) <= most
    assert statements.total <= 20 * 50_000


async def test_a_device_that_many_became_costs_as_one(log: Log) -> None:
    """Each of its conversions was asked for under each of the devices that it was made of."""
    many = 150
    await log.decide(*(event(n, {"custom": f"c-{n:05d}-x"}, "View", record_id=f"a{n}") for n in range(many)))
    meet = {"android_id": "of-them-all-1"}
    await log.decide(*(event(n, {"custom": f"c-{n:05d}-x", **meet}, "View", record_id=f"b{n}") for n in range(many)))
    _, few = await log.decide(*purchases(10, 0, **meet))
    decisions, more = await log.decide(*purchases(100, 100, **meet))
    assert len({each.device_id for each in decisions}) == 1
    assert more.total - few.total <= 90 * 120, "a device that 150 became is asked for as one"


@pytest.mark.parametrize("seed", range(4))
async def test_all_readings_seek_the_same_of_many_ids(pool: Pool, seed: int) -> None:
    """The store, the simulator, and the naive reading of the rules."""
    story = crowded(Random(seed))
    told = simulate(story)
    assert told == decide_all(story)
    clicks = sum(isinstance(each, EngagementRecord) for each in story.timeline)
    assert 0 < max(len(each["candidates"]) for each in told) < clicks, "some are sought no more"
    async with owning(pool) as lanes:
        stored = story_of(story, lanes, pool)
        await stored.live(Random(seed))
        newest = await stored.newest()
    for line in told:
        found = {candidate.engagement_id for candidate in newest[line["id"]].candidates}
        assert found == {candidate["engagement"] for candidate in line["candidates"]}, line["id"]


def crowded(random: Random) -> Scenario:
    """Returns the story of a device that comes to have more ids than it is sought by, with a click for each id."""
    kinds = random.sample([kind for kind in RAW_KINDS if kind not in ("custom", "adid")], 4)
    start_us, at_us = 20_000 * 86_400 * 1_000_000, 0
    timeline: list[EngagementRecord | ConversionRecord] = []
    names: list[dict[str, str]] = []
    for number in range(50):
        at_us += MINUTE_US
        named = {kind: f"{kind}-{random.randrange(99):03d}-of-one" for kind in random.sample(kinds, 1)}
        names.append(named)
        timeline.append(
            ConversionRecord(
                id=f"n{number}",
                name="View",
                time_us=start_us + at_us,
                receive_time_us=start_us + at_us,
                device={"custom": "one-device", **named},
            )
        )
    clicked = {frozenset(each.items()): each for each in names}
    for number, named in enumerate(random.sample(list(clicked.values()), len(clicked))):
        at_us += MINUTE_US
        timeline.append(
            EngagementRecord(
                id=f"k{number}",
                kind=EngagementKind.CLICK,
                time_us=start_us + at_us,
                receive_time_us=start_us + at_us,
                tracker=RE_TRACKER,
                device=named,
            )
        )
    for number in range(6):
        at_us += MINUTE_US
        own = random.choice(names) if number else {}
        timeline.append(
            ConversionRecord(
                id=f"e{number}",
                name="Purchase",
                time_us=start_us + at_us,
                receive_time_us=start_us + at_us,
                device={"custom": "one-device", **own},
            )
        )
    assert len(clicked) > MAX_SOUGHT_IDS
    return Scenario(
        text="",
        app=replace(RULES.app, app_id="app"),
        networks=NETWORKS,
        trackers=TRACKERS,
        events=EVENTS,
        timeline=tuple(timeline),
        expect={},
    )


async def test_late_clicks_of_a_device_decide_it_again_together(world: World) -> None:
    """Each fifty of them decided all of its conversions again."""
    late = 400
    async with world.worker():
        await world.send(*(event(HOUR + n, device(1), record_id=f"e{n}") for n in range(200)))
        await world.decided("e199")
        clicks = (click(n % HOUR, device(1), record_id=f"k{n}") for n in range(late))
        await world.send(*clicks)
        await eventually(lambda: world.pool.fetchval("SELECT max(version) > 1 FROM decisions"))
        await eventually(lambda: world.pool.fetchval("SELECT NOT EXISTS (SELECT FROM late_arrivals)"))
        last = (await world.decided("e0"))[0]
    assert last.engagement_id
    versions = await world.pool.fetchval("SELECT max(version) FROM decisions")
    assert versions <= 6
