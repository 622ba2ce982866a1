"""Events are registered on first sight, and records never wait or fail for that."""

from collections.abc import AsyncIterable, Collection

import pytest
from prometheus_client import REGISTRY

from libs.errors import Unavailable
from reengage.ingest.v1 import record_batch_pb2
from reengage.tracker.v1 import app_pb2, event_definition_pb2, snapshot_pb2
from services.ingest.registrations import FORGET_S, MAX_NAMES, Registrations
from tests.conftest import Database
from tests.ingest.conftest import APP, STRICT_APP, StartIngest, click, event
from tests.tracker.conftest import running
from tests.tracker.samples import app

ACCEPTED, REPEATED = record_batch_pb2.RecordResult.STATUS_ACCEPTED, record_batch_pb2.RecordResult.STATUS_REPEATED
NONE = frozenset[str]()


class Tracker:
    """A tracker that keeps what it is told, or is away."""

    def __init__(self) -> None:
        self.told: list[tuple[str, set[str]]] = []
        self.is_away = False
        self.now_s = 0.0

    async def register(self, app_id: str, event_names: Collection[str]) -> None:
        if self.is_away:
            raise Unavailable("AWAY", "tracker is away")
        self.told.append((app_id, set(event_names)))


@pytest.fixture
def tracker() -> Tracker:
    return Tracker()


@pytest.fixture
def registrations(tracker: Tracker) -> Registrations:
    return Registrations(tracker.register, lambda: tracker.now_s)


def dropped() -> float:
    return REGISTRY.get_sample_value("ingest_events_unregistered_total") or 0.0


async def test_first_sight_of_an_accepted_event_registers_it_once(
    start_ingest: StartIngest, database: Database, tracker: Tracker
) -> None:
    async with start_ingest(database, register=tracker.register) as ingest:
        await ingest.send(
            click(), event("Level 1"), event("Level 1"), event("Level 2"), event("Level 2", app_id=STRICT_APP)
        )
        await ingest.send(event("Refused", ip_address="", device_ids={}), event("Refused", app_id="unknown"))
        await ingest.registrations.hand_over()
        assert tracker.told == [(APP, {"Level 1", "Level 2"}), (STRICT_APP, {"Level 2"})]
        await ingest.send(event("Level 1"), event("Level 3"))
        await ingest.registrations.hand_over()
        assert tracker.told[2:] == [(APP, {"Level 3"})]


async def test_events_with_a_definition_archived_or_not_are_known(
    start_ingest: StartIngest, database: Database, tracker: Tracker
) -> None:
    async with start_ingest(database, register=tracker.register) as ingest:
        await ingest.send(event("Login"), event("Old login"), event("Login", app_id=STRICT_APP))
        await ingest.registrations.hand_over()
    assert tracker.told == [(STRICT_APP, {"Login"})]


async def test_while_tracker_is_away_records_are_accepted_and_events_register_later(
    start_ingest: StartIngest, database: Database, tracker: Tracker, registrations: Registrations
) -> None:
    tracker.is_away = True
    async with start_ingest(database, register=tracker.register) as ingest:
        assert [result.status for result in await ingest.send(event(record_id="r"))] == [ACCEPTED]
        with pytest.raises(Unavailable):
            await ingest.registrations.hand_over()
        assert [result.status for result in await ingest.send(event(record_id="r"))] == [REPEATED]

    registrations.add(APP, "Purchase", NONE)
    with pytest.raises(Unavailable):
        await registrations.hand_over()
    tracker.is_away = False
    registrations.add(APP, "Purchase", NONE)
    await registrations.hand_over()
    assert tracker.told == [], "not twice in a minute"
    tracker.now_s = FORGET_S
    await registrations.hand_over()
    registrations.add(APP, "Purchase", NONE)
    await registrations.hand_over()
    assert tracker.told == [(APP, {"Purchase"})]


async def test_what_fails_for_one_app_keeps_no_other_waiting(tracker: Tracker, registrations: Registrations) -> None:
    tracker.is_away = True
    registrations.add(APP, "Purchase", NONE)
    registrations.add(STRICT_APP, "Purchase", NONE)
    with pytest.raises(Unavailable):
        await registrations.hand_over()
    tracker.is_away = False
    await registrations.hand_over()
    assert tracker.told == [(STRICT_APP, {"Purchase"})]


async def test_made_up_names_are_bounded_in_memory_and_in_settings(
    tracker: Tracker, registrations: Registrations
) -> None:
    before = dropped()
    for number in range(MAX_NAMES + 5):
        registrations.add(f"app {number % 10}", f"e{number}", NONE)
    assert dropped() - before == 5
    await registrations.hand_over()
    assert sum(len(names) for _, names in tracker.told) == MAX_NAMES
    registrations.add(APP, "Purchase", NONE)
    assert dropped() - before == 6, "those handed over are remembered, and count"

    tracker.told, tracker.now_s = [], FORGET_S
    await registrations.hand_over()
    defined = frozenset(f"e{number}" for number in range(MAX_NAMES - 1))
    registrations.add(APP, "the last", defined)
    registrations.add(APP, "one more", defined)
    await registrations.hand_over()
    assert tracker.told == [(APP, {"the last"})]


async def test_what_waits_when_names_are_forgotten_is_handed_over_once(
    tracker: Tracker, registrations: Registrations
) -> None:
    registrations.add(APP, "Purchase", NONE)
    tracker.now_s = FORGET_S
    await registrations.hand_over()
    registrations.add(APP, "Purchase", NONE)
    await registrations.hand_over()
    assert tracker.told == [(APP, {"Purchase"})]


async def test_tracker_itself_registers_them_and_then_they_are_known(
    start_ingest: StartIngest, database: Database
) -> None:
    calls: list[set[str]] = []
    async with running(database) as stub:
        await stub.CreateApp(app_pb2.CreateAppRequest(app=app(app_id=APP)))

        def watch(at: int) -> AsyncIterable[snapshot_pb2.WatchSnapshotResponse]:
            return stub.WatchSnapshot(snapshot_pb2.WatchSnapshotRequest(revision=at))

        async def register(app_id: str, event_names: Collection[str]) -> None:
            calls.append(set(event_names))
            await stub.RegisterEvents(
                event_definition_pb2.RegisterEventsRequest(app_id=app_id, event_names=event_names)
            )

        # Tracker would refuse the second, and with it those it came with.
        events = [event("Level 1"), event("Level\n2"), event("x" * 128), event("Привет")]
        async with start_ingest(database, watch=watch, register=register) as ingest:
            assert [result.status for result in await ingest.send(*events)] == [ACCEPTED] * 4
            await ingest.registrations.hand_over()
        listed = await stub.ListEventDefinitions(event_definition_pb2.ListEventDefinitionsRequest(app_id=APP))
        names = {one.event_name for one in listed.event_definitions if one.registered}
        assert names == {"Level 1", "x" * 128, "Привет"}
        async with start_ingest(database, watch=watch, register=register) as another:
            await another.send(*events)
            await another.registrations.hand_over()
    assert calls == [names]
