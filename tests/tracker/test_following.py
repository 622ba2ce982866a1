"""Snapshots, and following changes: nothing is lost, nothing is out of order, and everybody learns within a second."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from libs.channels import open_channel
from libs.db import open_pool
from libs.domain.snapshots import Follower, Resources
from libs.vault import Vault
from reengage.tracker.v1 import (
    app_pb2,
    campaign_pb2,
    event_definition_pb2,
    service_pb2_grpc,
    snapshot_pb2,
    status_pb2,
    tracker_pb2,
)
from reengage.tracker.v1.app_pb2 import App
from reengage.tracker.v1.resource_kind_pb2 import RESOURCE_KIND_TRACKER
from reengage.tracker.v1.snapshot_pb2 import Resource, WatchSnapshotResponse
from reengage.tracker.v1.tracker_pb2 import Tracker
from services.tracker.following import HEARTBEAT_S, watch
from services.tracker.revisions import Revisions
from services.tracker.storage.store import MAX_PART_RESOURCES, Store
from tests.conftest import Database
from tests.support.processes import running, tracker_process
from tests.tracker import samples
from tests.tracker.conftest import ADMIN_KEY, SECRETS_KEY
from tests.tracker.conftest import running as running_tracker
from tests.tracker.samples import Stub, create_parents, create_tracker, failure, wrong_fields

Start = Callable[[], AbstractAsyncContextManager[Stub]]


@asynccontextmanager
async def watching_after(stub: Stub, revision: int) -> AsyncIterator[Callable[[], Any]]:
    """Yields a WatchSnapshot call; what is given reads its next response."""
    call = stub.WatchSnapshot(snapshot_pb2.WatchSnapshotRequest(revision=revision))
    try:
        yield call.read
    finally:
        call.cancel()


async def rename_app(stub: Stub, name: str) -> App:
    request = app_pb2.UpdateAppRequest(app=App(app_id="kodemo1", name=name), update_mask=FieldMask(paths=["name"]))
    app: App = (await stub.UpdateApp(request)).app
    return app


async def create_app(stub: Stub) -> App:
    app: App = (await stub.CreateApp(app_pb2.CreateAppRequest(app=samples.app()))).app
    return app


def ids(resources: Any) -> list[str]:
    """Returns kind and name of each, readable."""
    found = []
    for resource in resources:
        kind = resource.WhichOneof("resource")
        message = getattr(resource, kind)
        found.append(f"{kind} {getattr(message, 'name', '') or message.event_name}")
    return found


async def snapshot(stub: Stub) -> list[snapshot_pb2.GetSnapshotResponse]:
    return [part async for part in stub.GetSnapshot(snapshot_pb2.GetSnapshotRequest())]


# Snapshots


async def test_an_empty_snapshot_is_one_part(tracker: Stub) -> None:
    assert await snapshot(tracker) == [snapshot_pb2.GetSnapshotResponse()]


async def test_a_snapshot_has_everything_parents_first(tracker: Stub) -> None:
    await create_parents(tracker)
    event = await tracker.CreateEventDefinition(
        event_definition_pb2.CreateEventDefinitionRequest(event_definition=samples.event())
    )
    made = await create_tracker(tracker, samples.acquisition())
    archived = await tracker.ArchiveTracker(tracker_pb2.ArchiveTrackerRequest(tracker_id="acq1"))
    [part] = await snapshot(tracker)
    assert part.revision == 8
    assert ids(part.resources) == [
        "app Demo",
        "network Acme iOS",
        "network X iOS",
        "campaign Spring",
        "segment A",
        "tracker acq1",
        "event_definition Purchase",
    ]
    assert part.resources[5].tracker == archived.tracker != made
    assert part.resources[6].event_definition == event.event_definition


async def many_trackers(database: Database, number: int) -> None:
    """Creates trackers, and the change that brought them, as a bulk change would leave them."""
    connection = await asyncpg.connect(database.dsn("tracker"), server_settings={"search_path": "tracker"})
    try:
        revision = await connection.fetchval("UPDATE revision SET revision = revision + 1 RETURNING revision")
        rows = [
            samples.acquisition(
                tracker_id=f"t{index:06}", name=f"t{index:06}", campaign_id="spring", app_id="kodemo1",
                type=Tracker.TYPE_ACQUISITION, revision=revision, status=status_pb2.STATUS_LIVE,
            )
            for index in range(number)
        ]  # fmt: skip
        await connection.execute(
            """
            INSERT INTO trackers (tracker_id, segment_id, campaign_id, app_id, network_id, name, type, events,
                default_tracker, san_account_ids, share_with_publisher, status, resource)
            SELECT tracker_id, 'spring-a', 'spring', 'kodemo1', 'acme-ios', tracker_id, 1, '{}',
                false, '{}', true, 1, resource
            FROM unnest($1::text[], $2::bytea[]) AS given (tracker_id, resource)
            """,
            [row.tracker_id for row in rows], [row.SerializeToString() for row in rows],
        )  # fmt: skip
        await connection.execute(
            """
            INSERT INTO changes (revision, kind, resource_key, change_us, resource, actor)
            SELECT $1, $2, ARRAY[tracker_id], 0, resource, '' FROM trackers
            """,
            revision,
            RESOURCE_KIND_TRACKER,
        )
    finally:
        await connection.close()


async def test_a_large_snapshot_comes_in_parts_of_one_revision(tracker: Stub, database: Database) -> None:
    await create_parents(tracker)
    await many_trackers(database, 2 * MAX_PART_RESOURCES)
    parts = await snapshot(tracker)
    assert [(part.revision, len(part.resources)) for part in parts] == [
        (6, MAX_PART_RESOURCES),
        (6, MAX_PART_RESOURCES),
        (6, 5),
    ]
    async with watching_after(tracker, 0) as read:
        responses = [await read() for _ in parts]
    assert [response.resources for response in responses] == [part.resources for part in parts]
    assert [(response.revision, response.reset, response.partial) for response in responses] == [
        (6, True, True),
        (6, False, True),
        (6, False, False),
    ]


async def test_a_snapshot_ignores_what_changes_while_it_is_read(database: Database, tracker: Stub) -> None:
    await create_parents(tracker)
    await many_trackers(database, MAX_PART_RESOURCES)
    async with open_pool(database.dsn("tracker"), schema="tracker", application_name="test") as pool:
        parts = Store(pool, Vault(SECRETS_KEY)).snapshot()
        async with aclosing(parts):
            first = await anext(parts)
            await create_tracker(tracker, samples.acquisition())
            second = await anext(parts)
    assert (first.revision, second.revision) == (6, 6)
    assert len(first.resources) + len(second.resources) == 5 + MAX_PART_RESOURCES


# Watching


async def test_a_watch_begins_with_everything_and_follows(tracker: Stub) -> None:
    await create_parents(tracker)
    async with watching_after(tracker, 0) as read:
        whole = await read()
        assert (whole.revision, whole.reset, whole.partial) == (5, True, False)
        assert ids(whole.resources) == ["app Demo", "network Acme iOS", "network X iOS", "campaign Spring", "segment A"]
        renamed = await rename_app(tracker, "Renamed")
        delta = await read()
        assert delta == WatchSnapshotResponse(revision=6, resources=[Resource(app=renamed)])


async def test_an_empty_watch_follows_from_the_first_revision(tracker: Stub) -> None:
    async with watching_after(tracker, 0) as read:
        assert await read() == WatchSnapshotResponse(reset=True)
        made = await create_app(tracker)
        assert await read() == WatchSnapshotResponse(revision=1, resources=[Resource(app=made)])


async def test_a_watch_resumes_with_what_came_after(tracker: Stub) -> None:
    await create_parents(tracker)
    async with watching_after(tracker, 3) as read:
        delta = await read()
    assert (delta.revision, delta.reset, delta.partial) == (5, False, False)
    assert ids(delta.resources) == ["campaign Spring", "segment A"]
    assert [delta.resources[0].campaign.revision, delta.resources[1].segment.revision] == [4, 5]


async def test_a_watch_that_is_up_to_date_hears_so_at_once(tracker: Stub) -> None:
    await create_parents(tracker)
    async with watching_after(tracker, 5) as read:
        assert await read() == WatchSnapshotResponse(revision=5)


async def test_a_watch_ahead_of_us_begins_anew(tracker: Stub) -> None:
    await create_app(tracker)
    async with watching_after(tracker, 99) as read:
        whole = await read()
    assert (whole.revision, whole.reset, ids(whole.resources)) == (1, True, ["app Demo"])


async def test_a_watch_far_behind_begins_anew(database: Database) -> None:
    async with running_tracker(database, max_changes=4) as tracker:
        await create_parents(tracker)
        async with watching_after(tracker, 1) as read:
            assert not (await read()).reset
        await rename_app(tracker, "Renamed")
        async with watching_after(tracker, 1) as read:
            assert (await read()).reset


async def test_a_watch_over_a_gap_begins_anew(tracker: Stub, database: Database) -> None:
    """As when old changes were purged."""
    await create_parents(tracker)
    connection = await asyncpg.connect(database.admin_dsn)
    await connection.execute("DELETE FROM tracker.changes WHERE revision <= 3")
    await connection.close()
    async with watching_after(tracker, 2) as read:
        assert (await read()).reset
    async with watching_after(tracker, 3) as read:
        assert not (await read()).reset


async def test_a_watch_hears_of_a_database_gone_back_to_a_backup(database: Database, tracker: Stub) -> None:
    await create_parents(tracker)
    async with open_pool(database.dsn("tracker"), schema="tracker", application_name="test") as pool:
        store = Store(pool, Vault(SECRETS_KEY))
        async with aclosing(watch(store, Revisions(store.revision), 5, heartbeat_s=0.05, max_changes=9)) as responses:
            assert await anext(responses) == WatchSnapshotResponse(revision=5)
            await pool.execute("DELETE FROM changes WHERE revision > 4")
            await pool.execute("UPDATE revision SET revision = 4")
            async for response in responses:
                if response.revision != 5:
                    assert (response.revision, response.reset) == (4, True)
                    break


async def test_a_heartbeat_comes_when_nothing_changes(database: Database, tracker: Stub) -> None:
    await create_app(tracker)
    assert HEARTBEAT_S < 10
    async with open_pool(database.dsn("tracker"), schema="tracker", application_name="test") as pool:
        store = Store(pool, Vault(SECRETS_KEY))
        async with aclosing(watch(store, Revisions(store.revision), 1, heartbeat_s=0.05, max_changes=9)) as responses:
            assert [await anext(responses) for _ in range(3)] == [WatchSnapshotResponse(revision=1)] * 3


async def test_a_negative_revision_is_refused(tracker: Stub) -> None:
    call = tracker.WatchSnapshot(snapshot_pb2.WatchSnapshotRequest(revision=-1))
    assert await wrong_fields(call.read()) == {("revision", "OUT_OF_RANGE")}


async def test_what_was_refused_is_never_seen(tracker: Stub) -> None:
    await create_parents(tracker)
    twin = samples.campaign(campaign_id="twin")
    assert (
        await failure(tracker.CreateCampaign(campaign_pb2.CreateCampaignRequest(campaign=twin)))
    ).reason == "NAME_TAKEN"
    async with watching_after(tracker, 5) as read:
        assert await read() == WatchSnapshotResponse(revision=5)
        await rename_app(tracker, "Renamed")
        assert (await read()).revision == 6


async def test_a_default_tracker_moves_in_one_response(tracker: Stub) -> None:
    await create_parents(tracker)
    await create_tracker(tracker, samples.san_reengagement(default_tracker=True))
    async with watching_after(tracker, 6) as read:
        await read()
        await create_tracker(tracker, samples.san_reengagement(tracker_id="xre2", default_tracker=True))
        delta = await read()
    assert delta.revision == 7
    found = {resource.tracker.tracker_id: resource.tracker for resource in delta.resources}
    assert {tracker_id: held.default_tracker for tracker_id, held in found.items()} == {"xre1": False, "xre2": True}
    assert {held.revision for held in found.values()} == {7}


async def test_a_revision_of_many_changes_is_split_and_says_so(tracker: Stub, database: Database) -> None:
    await create_parents(tracker)
    await many_trackers(database, MAX_PART_RESOURCES + 1)
    await rename_app(tracker, "Renamed")
    async with watching_after(tracker, 4) as read:
        responses = [await read() for _ in range(3)]
    assert [(r.revision, r.reset, r.partial, len(r.resources)) for r in responses] == [
        (5, False, False, 1),
        (6, False, True, MAX_PART_RESOURCES),
        (7, False, False, 2),
    ]


# Writers at once


async def test_revisions_are_dense_and_in_order_under_concurrent_writers(start_tracker: Start) -> None:
    async with start_tracker() as one, start_tracker() as two, watching_after(one, 0) as read:
        await create_parents(one)
        made = await asyncio.gather(
            *(
                create_tracker(stub, samples.acquisition(tracker_id=f"t{number}"))
                for number, stub in enumerate([one, two] * 30)
            )
        )
        assert sorted(tracker.revision for tracker in made) == list(range(6, 66))
        seen: list[int] = []
        while not seen or seen[-1] < 65:
            response = await read()
            for resource in response.resources:
                seen += [getattr(resource, resource.WhichOneof("resource")).revision]
            assert not seen or response.revision == seen[-1]
        assert seen == list(range(1, 66))


async def test_concurrent_creates_of_one_name_make_one(start_tracker: Start) -> None:
    async with start_tracker() as one, start_tracker() as two:
        await create_parents(one)
        outcomes = await asyncio.gather(
            *(
                create_tracker(stub, samples.acquisition(tracker_id=f"t{number}", name="The name"))
                for number, stub in enumerate([one, two] * 5)
            ),
            return_exceptions=True,
        )
        assert sum(isinstance(outcome, Tracker) for outcome in outcomes) == 1


async def test_concurrent_switches_leave_one_default(start_tracker: Start) -> None:
    async with start_tracker() as one, start_tracker() as two:
        await create_parents(one)
        made = await asyncio.gather(
            *(
                create_tracker(stub, samples.san_reengagement(tracker_id=f"t{number}", default_tracker=True))
                for number, stub in enumerate([one, two] * 5)
            )
        )
        [part] = await snapshot(one)
        on = [r.tracker.tracker_id for r in part.resources if r.tracker.default_tracker]
        assert on == [max(made, key=lambda tracker: tracker.revision).tracker_id]


# Replicas and restarts


async def test_replicas_see_each_others_changes_within_a_second(start_tracker: Start) -> None:
    async with start_tracker() as one, start_tracker() as two:
        await create_app(one)
        async with watching_after(one, 1) as read_one, watching_after(two, 1) as read_two:
            await read_one(), await read_two()
            for number in range(3):
                await rename_app(one, f"Name {number}")
                began = time.monotonic()
                assert (await read_one()).revision == number + 2
                assert (await read_two()).revision == number + 2
                assert time.monotonic() - began < 1


def names_of(resources: Resources, revision: int) -> tuple[int, list[str]]:
    """Returns what a service might build from settings."""
    apps = resources["app"].values()
    return revision, [app.name for app in apps if isinstance(app, App)]


@asynccontextmanager
async def following(watch: Callable[[int], Any]) -> AsyncIterator[Follower[tuple[int, list[str]]]]:
    follower = Follower(watch, names_of)
    running = asyncio.ensure_future(follower.run())
    try:
        yield follower
    finally:
        running.cancel()
        await asyncio.wait([running])


async def test_a_follower_has_the_settings_and_keeps_up(tracker: Stub) -> None:
    await create_parents(tracker)

    def watch(revision: int) -> Any:
        return tracker.WatchSnapshot(snapshot_pb2.WatchSnapshotRequest(revision=revision))

    async with following(watch) as follower:
        await follower.ready()
        assert follower.current == (5, ["Demo"])
        await rename_app(tracker, "Renamed")
        await follower.reached(6)
        assert follower.current == (6, ["Renamed"])


@pytest.mark.crash
@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGKILL], ids=lambda ending: ending.name)
async def test_a_follower_goes_on_over_a_restart_of_tracker(
    database: Database, start_tracker: Start, ending: signal.Signals, tmp_path: Path
) -> None:
    asked: list[int] = []
    process = tracker_process(tmp_path / "log", dsn=database.dsn("tracker"), admin_key=ADMIN_KEY)
    async with open_channel(process.target, key=ADMIN_KEY) as channel, start_tracker() as other:
        stub: Stub = service_pb2_grpc.TrackerConfigServiceStub(channel)

        def watch(revision: int) -> Any:
            asked.append(revision)
            return stub.WatchSnapshot(snapshot_pb2.WatchSnapshotRequest(revision=revision), wait_for_ready=True)

        await create_app(other)
        async with following(watch) as follower:
            async with running(process):
                await follower.ready()
                assert follower.current == (1, ["Demo"])
                began = time.monotonic()
                code = await process.stop(ending)
            if ending is signal.SIGTERM:
                assert code == 0
                assert time.monotonic() - began < 10, "a watcher must not use up the grace"
            await rename_app(other, "Changed while it was away")
            assert follower.current == (1, ["Demo"]), "the last settings stay in use"
            async with running(process):
                await follower.reached(2)
                assert follower.current == (2, ["Changed while it was away"])
                await rename_app(stub, "Changed at the new one")
                await follower.reached(3)
    assert asked[0] == 0
    assert 0 not in asked[1:], "it resumed, it did not begin anew"
