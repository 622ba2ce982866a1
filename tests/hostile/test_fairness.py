"""One app's flood, and its poison, leave the others their turns.

Counted in decisions, not in seconds: how many of the hostile app are made before those of the others that came after.
"""

import asyncio

import pytest

from libs.domain.lanes import LANES, lane_of
from reengage.ingest.v1 import log_pb2, record_batch_pb2, record_pb2
from reengage.tracker.v1 import app_pb2, snapshot_pb2, status_pb2
from services.attribution.decision.decide import decide
from services.attribution.live.turns import MAX_SHARE, Turns
from tests.attribution.conftest import World, click, device, event, tracker_resource
from tests.attribution.held_log import HeldLog
from tests.support.eventually import eventually

HOSTILE = "hostile"
QUIET = [f"quiet-{n}" for n in range(200) if lane_of(f"quiet-{n}") != lane_of(HOSTILE)][:9]
FLOOD, EACH = 3_000, 3


async def _with_apps(world: World) -> None:
    apps = (
        app_pb2.App(
            app_id=app_id,
            platform=app_pb2.PLATFORM_ANDROID,
            status=status_pb2.STATUS_LIVE,
            settings=app_pb2.AppSettings(records_per_second=0),  # what passes the limits is what this is about
        )
        for app_id in (HOSTILE, *QUIET)
    )
    await world.settings.reached(await world.feed.publish(*(snapshot_pb2.Resource(app=app) for app in apps)))


def _event(app_id: str, number: int, record_id: str) -> record_pb2.Record:
    made = event(number % 3_600, device(number), "View", record_id=record_id)
    made.app_id = app_id
    return made


async def _send(world: World, *records: record_pb2.Record) -> None:
    for start in range(0, len(records), 500):
        request = record_batch_pb2.RecordBatchRequest(records=records[start : start + 500])
        while (await world.ingest.RecordBatch(request)).results[0].violations:
            await asyncio.sleep(0.01)  # until ingest has heard of the app


async def _send_quiet(world: World, mark: str) -> None:
    await _send(world, *(_event(each, n, f"{each}-{mark}-{n}") for n in range(EACH) for each in QUIET))


async def _decided(world: World, app_id: str) -> int:
    count: int = await world.pool.fetchval(
        """
        SELECT (SELECT count(*) FROM decisions WHERE app_id LIKE $1) + (SELECT count(*) FROM quarantined
                WHERE app_id LIKE $1)
        """,
        app_id,
    )
    return count


async def _are_all_decided(world: World, count: int) -> bool:
    return await _decided(world, "quiet-%") == count


@pytest.mark.parametrize("is_poison", [False, True], ids=["a flood", "a flood of poison"])
async def test_nine_apps_wait_for_turns_and_not_for_the_flood_of_the_tenth(
    world: World, is_poison: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def may_fail(conversion, *args, **options):  # type: ignore[no-untyped-def]
        if is_poison and conversion.conversion_id.startswith("flood") and conversion.conversion_id.endswith("77"):
            raise ValueError("poison")
        return decide(conversion, *args, **options)

    monkeypatch.setattr("services.attribution.live.batch.decide", may_fail)
    await _with_apps(world)
    await _send(world, *(_event(HOSTILE, n, f"flood-{n}") for n in range(FLOOD)))
    await _send_quiet(world, "behind")
    async with world.worker():
        await eventually(lambda: _are_all_decided(world, len(QUIET) * EACH))
        before_quiet = await _decided(world, HOSTILE)
        await _send_quiet(world, "while")  # while the flood is still decided
        await eventually(lambda: _are_all_decided(world, 2 * len(QUIET) * EACH))
        await eventually(lambda: _is_decided(world))
        await _send(world, _event(HOSTILE, 1, "after"), _event(QUIET[0], 1, "after"))
        await eventually(lambda: _are_all_decided(world, 2 * len(QUIET) * EACH + 1))
        await eventually(lambda: _is_decided(world, 1))
    assert before_quiet <= FLOOD / 2, "a few turns of the hostile app, not all of it"
    rows = await world.pool.fetchval("SELECT count(*) FROM quarantined")
    assert rows == (FLOOD // 100 if is_poison else 0)


async def test_nine_apps_do_not_wait_until_the_clicks_of_the_tenth_are_indexed(world: World) -> None:
    """Counted at its worst: nothing of the flood is ever indexed, while the nine send and are decided."""
    await _with_apps(world)
    flood = [click(n % 3_600, device(n), record_id=f"flood-{n}") for n in range(FLOOD)]
    for each in flood:
        each.app_id, each.click.tracker_id = HOSTILE, "flood"
    tracker = tracker_resource("flood", network_id="acme", events=["Purchase"])
    tracker.tracker.app_id = HOSTILE
    await world.settings.reached(await world.feed.publish(tracker))
    await _send(world, *flood)
    held = HeldLog(world.ingest)
    async with world.worker(ingest=held):  # type: ignore[arg-type]
        for number in range(4):
            await _send_quiet(world, str(number))
            await eventually(lambda: _are_all_decided(world, (number + 1) * len(QUIET) * EACH))  # noqa: B023
        held.gate.set()
        await _send(world, _event(HOSTILE, 1, "mine"))
        await eventually(lambda: _has_decided_its_own(world))


async def _has_decided_its_own(world: World) -> bool:
    return await _decided(world, HOSTILE) == 1


async def _is_decided(world: World, more: int = 0) -> bool:
    return await _decided(world, HOSTILE) == FLOOD + more


def _entries(*homes: int) -> list[log_pb2.LogEntry]:
    """Returns entries of home lanes, alternately in two lanes of the log."""
    return [
        log_pb2.LogEntry(lane=place % 2, position=place // 2, app_lane=home, record=b"r")
        for place, home in enumerate(homes)
    ]


def test_a_lane_gets_its_share_of_a_page_and_goes_on_behind_it() -> None:
    turns = Turns({5: [0] * LANES, 6: [0] * LANES})
    page = _entries(*[5] * (MAX_SHARE + 4), 6, 6)
    shares = turns.shares(page, are_others=True)
    assert [entry.app_lane for entry in shares.entries] == [5] * MAX_SHARE + [6, 6]
    assert shares.beyond[5][:3] == [MAX_SHARE // 2, MAX_SHARE // 2, 0]
    turns.apart[5] = shares.beyond[5]
    turns.move({0: 103, 1: 103})
    assert not turns.rejoin(5)
    assert turns.shares(_entries(5, 5), are_others=True).entries == [], "it is read apart"
    turns.apart[5] = [103, 104, *[0] * (LANES - 2)]
    assert turns.rejoin(5)
    late = log_pb2.LogEntry(lane=1, position=103, app_lane=5), log_pb2.LogEntry(lane=1, position=104, app_lane=5)
    assert turns.shares(late, are_others=True).entries == [late[1]], "the first was decided apart"


def test_nobody_is_read_apart_who_has_nobody_to_hold_up() -> None:
    turns = Turns({5: [0] * LANES})
    shares = turns.shares(_entries(*[5] * 900), are_others=False)
    assert (len(shares.entries), shares.beyond) == (900, {})


def test_a_lane_that_is_far_behind_begins_apart() -> None:
    """Else all others are read again from where it is."""
    turns = Turns({5: [10] * LANES, 6: [9_000] * LANES, 7: [8_999] * LANES})
    assert turns.apart == {5: [10] * LANES}
    assert (turns.together[0], turns.decided(6)[0]) == (8_999, 9_000)
