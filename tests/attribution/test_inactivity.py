"""D13: of a device that was active within the app's inactivity window nothing is won, wherever its activity stands."""

from typing import Any

import pytest

from reengage.attribution.v1 import decision_pb2, explanation_pb2, what_if_pb2
from reengage.ingest.v1 import record_pb2
from reengage.tracker.v1 import app_pb2, snapshot_pb2, status_pb2
from tests.attribution.conftest import APP, World, click, device, event, install, record
from tests.attribution.test_explain import text_at
from tests.attribution.test_reattribution import what_if, working

HOUR = 3600
NOT_OURS = decision_pb2.VERDICT_MATCH_KIND_NOT_ALLOWED
ACTIVE, WON = decision_pb2.VERDICT_DEVICE_ACTIVE, decision_pb2.VERDICT_WON


def app_resource(window_s: int) -> snapshot_pb2.Resource:
    app = app_pb2.App(app_id=APP, name="Shop", platform=app_pb2.PLATFORM_ANDROID, status=status_pb2.STATUS_LIVE)
    app.settings.inactivity_window.FromSeconds(window_s)
    return snapshot_pb2.Resource(app=app)


def session(at_s: int, device_: str | dict[str, str], **fields: Any) -> record_pb2.Record:
    return record(at_s, device_, session=record_pb2.Session(state=record_pb2.Session.STATE_START), **fields)


def verdicts(decision: decision_pb2.Decision) -> dict[str, int]:
    """Returns the verdicts by engagement, without those of other devices at the same address."""
    return {each.engagement_id: each.verdict for each in decision.candidates if each.verdict != NOT_OURS}


@pytest.fixture
async def ruled(world: World) -> World:
    """Returns a world whose app has a window of 6 hours."""
    await world.settings.reached(await world.feed.publish(app_resource(6 * HOUR)))
    return world


async def test_activity_counts_from_whatever_it_was(ruled: World) -> None:
    """An event, an install, a session, one that went on; and to the second: equal is eligible."""
    a, b, c, d = (device(number) for number in range(4))
    async with ruled.worker():
        await ruled.send(event(0, a, "Login"), install(0, b), session(0, c), session(0, d))
        await ruled.send(session(600, d), event(3000, device(9), record_id="last"))
        await ruled.decided("last")
        for number, name in enumerate((a, b, c, d)):
            since_s = 600 if name == d else 0
            await ruled.send(
                click(since_s + 6 * HOUR - 1, name, record_id=f"early{number}"),
                click(since_s + 6 * HOUR, name, record_id=f"late{number}"),
            )
            await ruled.send(event(7 * HOUR, name, record_id=f"e{number}"))
        decisions = await ruled.decided("e0", "e1", "e2", "e3")
        explained = [
            await ruled.attribution.ExplainDecision(
                explanation_pb2.ExplainDecisionRequest(app_id=APP, conversion_id=decision.conversion_id)
            )
            for decision in decisions
        ]
    for number, (decision, said) in enumerate(zip(decisions, explained, strict=True)):
        assert verdicts(decision) == {f"early{number}": ACTIVE, f"late{number}": WON}
        early, _ = (sentence for sentence in said.sentences if "of its own" not in sentence)
        assert early.endswith(
            f"was refused: the device was last active 5 h 59 min before, at "
            f"{text_at(event(600 if number == 3 else 0, a))}; inactivity_window of the app is 6 h."
        )


async def test_activity_of_the_same_batch_and_of_a_device_that_was_merged_counts(ruled: World) -> None:
    one, other = {"adid": device(1)}, {"android_id": "b2"}
    async with ruled.worker():
        await ruled.send(click(6 * HOUR, one, record_id="k1"), click(6 * HOUR, device(2), record_id="k2"))
        await ruled.send(event(5 * HOUR, other, "Login", record_id="of other"))
        await ruled.decided("of other")
        await ruled.send(event(6 * HOUR + 60, {**one, **other}, "View", record_id="merges"))
        await ruled.decided("merges")
        await ruled.send(event(6 * HOUR + 120, one, record_id="e1"))
        # All of one batch, as nothing is waited for in between.
        await ruled.send(
            event(5 * HOUR, device(2), "Login", record_id="before"), event(6 * HOUR + 60, device(2), record_id="e2")
        )
        e1, e2 = await ruled.decided("e1", "e2")
    assert (verdicts(e1), verdicts(e2)) == ({"k1": ACTIVE}, {"k2": ACTIVE})


async def test_what_came_after_the_click_is_no_activity_before_it(ruled: World) -> None:
    async with ruled.worker():
        await ruled.send(click(0, device(1), record_id="k1"))
        await ruled.send(session(5, device(1)), event(60, device(1), "Login"))
        await ruled.send(event(120, device(1), record_id="e1"))
        (e1,) = await ruled.decided("e1")
    assert verdicts(e1) == {"k1": WON}


async def test_what_happened_in_the_second_of_the_click_hides_nothing_before_it(ruled: World) -> None:
    clicked, same = click(60, device(1), record_id="k1"), event(60, device(1), "Login")
    same.event_time.nanos, clicked.event_time.nanos = 200_000_000, 500_000_000
    async with ruled.worker():
        await ruled.send(event(0, device(1), "Login"), same, clicked)
        await ruled.send(event(61, device(9), record_id="last"))
        await ruled.decided("last")
        await ruled.send(event(120, device(1), record_id="e1"))
        (e1,) = await ruled.decided("e1")
    assert verdicts(e1) == {"k1": ACTIVE}


async def test_an_app_without_a_window_asks_nothing(world: World) -> None:
    async with world.worker():
        await world.send(event(0, device(1), "Login"), click(10, device(1), record_id="k1"))
        await world.send(event(60, device(1), record_id="e1"))
        (e1,) = await world.decided("e1")
    assert verdicts(e1) == {"k1": WON}


async def test_a_what_if_with_another_window_decides_alike(ruled: World) -> None:
    """Off, as it is, and longer: the activity of each device is found again where the first time found it."""
    one, other = {"adid": device(1)}, {"android_id": "b2"}
    devices: list[str | dict[str, str]] = [one, device(2), device(3)]
    async with working(ruled):
        await ruled.send(event(0, other, "Login"), session(0, device(2)), install(0, device(3)))
        await ruled.send(event(60, {**one, **other}, "View"), session(600, device(2), record_id="on"))
        await ruled.send(event(61, device(9), record_id="last"))
        await ruled.decided("last")
        await ruled.send(*(click(5 * HOUR, name, record_id=f"k{n}") for n, name in enumerate(devices)))
        await ruled.send(*(event(8 * HOUR, name, record_id=f"e{n}") for n, name in enumerate(devices)))
        await ruled.decided("e0", "e1", "e2")

    async def changed(window_s: int) -> list[tuple[str, int]]:
        parts = [part async for part in ruled.attribution.WhatIf(what_if(app_resource(window_s)))]
        pairs: list[what_if_pb2.ChangedDecision] = [pair for part in parts for pair in part.changed]
        return sorted((pair.after.conversion_id, pair.after.outcome) for pair in pairs)

    assert await changed(6 * HOUR) == []
    assert await changed(0) == [(f"e{n}", decision_pb2.OUTCOME_REENGAGED) for n in range(3)]
    # 600 s into it device 2 was still there: of it alone the click is less than 5 hours away.
    assert await changed(5 * HOUR - 60) == [(f"e{n}", decision_pb2.OUTCOME_REENGAGED) for n in (0, 2)]
