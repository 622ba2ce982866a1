"""Conversions of any size, on their way from the log to networks and to people: each costs itself alone."""

from collections import Counter

import asyncpg
import pytest
from prometheus_client import REGISTRY

from libs.domain.lanes import lane_of
from libs.parts import MAX_MESSAGE_BYTES, PART_BYTES
from libs.periods import Periods
from reengage.attribution.v1 import decision_pb2, explanation_pb2
from reengage.ingest.v1 import record_pb2
from reengage.postback.v1 import claim_pb2
from reengage.tracker.v1 import network_pb2, snapshot_pb2
from services.attribution.storage.decisions import read_outbox
from tests.attribution.conftest import (  # noqa: F401, its fixtures
    APP,
    World,
    click,
    device,
    event,
    following_config,
    hand_over_s,
    install,
    start_world,
    tracker_resource,
    what_if_config,
    world,
)
from tests.conftest import Database
from tests.support.eventually import eventually

HOUR = 3600
LARGE = {f"k{number:02}": "x" * 4_080 for number in range(63)}
"""257 KB of event data: the most that it may have, nearly."""


def set_aside(reason: str, *works: str) -> float:
    return sum(
        REGISTRY.get_sample_value("attribution_quarantined_total", {"work": work, "reason": reason}) or 0
        for work in works
    )


async def told(world: World, *conversion_ids: str) -> None:  # noqa: F811
    async def all_told() -> bool:
        return set(conversion_ids) <= set(world.received.conversions)

    await eventually(all_told)


async def test_a_large_click_and_the_install_that_names_it_are_told_of(world: World) -> None:  # noqa: F811
    wide = {f"{number:02}{'é' * 254}": "x" * 4_096 for number in range(64)}
    async with world.worker():
        await world.send(click(0, device(1), "ua", record_id="k1", click={"ad": {"custom_parameters": wide}}))
        (i1,) = await world.send(
            install(HOUR, device(1), record_id="i1", install={"click_record_id": "k1"}, user_agent="x" * 4_096)
        )
        await told(world, i1)
    conversion = world.received.conversions[i1]
    assert dict(conversion.engagement.click.ad.custom_parameters) == wide


async def test_conversions_that_large_clicks_win_are_stored_with_them(world: World) -> None:  # noqa: F811
    """40 of 257 KB are more than is read at once."""
    engagement = {"ad": {"custom_parameters": LARGE, "site_id": "site"}}
    for start in range(0, 40, 20):
        await world.send(
            *(click(0, device(number), record_id=f"k{number}", click=engagement) for number in range(start, start + 20))
        )
    await world.send(*(event(HOUR, device(number), record_id=f"e{number}") for number in range(50)))
    async with world.worker():
        decisions = await world.decided(*(f"e{number}" for number in range(50)))
        await told(world, *(f"e{number}" for number in range(50)))
    assert [each.site_id for each in decisions] == ["site"] * 40 + [""] * 10
    for number in range(40):
        assert dict(world.received.conversions[f"e{number}"].engagement.click.ad.custom_parameters) == LARGE


async def test_many_large_conversions_all_get_their_claims(world: World) -> None:  # noqa: F811
    """120 of 257 KB are more than a call may hold: none of them got a claim."""
    network = network_pb2.Network(network_id="x", self_attributing=True)
    revision = await world.feed.publish(
        snapshot_pb2.Resource(network=network), tracker_resource("x-re", network_id="x", events=["Purchase"])
    )
    await world.settings.reached(revision)
    await world.received.trigger(("Purchase", "x"))
    ids = [f"e{number}" for number in range(120)]
    for start in range(0, 120, 20):
        await world.send(
            *(
                event(number, device(number), record_id=ids[number], event={"event_data": LARGE})
                for number in range(start, start + 20)
            )
        )
    async with world.worker():
        await world.decided(*ids)
    rows = await world.pool.fetch("SELECT claims FROM decisions WHERE claims IS NOT NULL")
    states = Counter(
        answer.state for row in rows for answer in claim_pb2.ConversionClaims.FromString(row["claims"]).answers
    )
    assert states == {claim_pb2.ClaimAnswer.STATE_NOT_CLAIMED: 120}


@pytest.mark.parametrize(
    ("planted", "reason"),
    [("repeat('x', 16777214)", "TOO_LARGE"), (r"'\x0b'", "UNPARSABLE")],
    ids=["16 MB", "unparsable"],
)
async def test_an_entry_of_an_older_version_is_set_aside(
    world: World,  # noqa: F811
    database: Database,
    planted: str,
    reason: str,
) -> None:
    """In every lane, an engagement and a conversion of everybody: what comes behind them is indexed and decided."""
    await world.send(event(0, device(1), record_id="e0"))
    before = set_aside(reason, "INDEX", "DECIDE")
    connection = await asyncpg.connect(database.admin_dsn)
    await connection.execute(
        f"""
        INSERT INTO ingest.log (lane, app_lane, is_engagement, position, receive_time_us, record)
        SELECT lane, (SELECT app_lane FROM ingest.log LIMIT 1), NULL, next_position, last_receive_time_us + 1,
            {planted}::bytea
        FROM ingest.lanes WHERE lane % 16 = 0
        """
    )
    await connection.execute(
        """
        UPDATE ingest.lanes SET next_position = next_position + 1, last_receive_time_us = last_receive_time_us + 1
        WHERE lane % 16 = 0
        """
    )
    await connection.close()
    async with world.worker():
        await world.send(*(click(HOUR, device(number), record_id=f"k{number}") for number in range(2, 40)))
        await world.send(*(event(2 * HOUR, device(number), record_id=f"e{number}") for number in range(2, 40)))
        decisions = await world.decided("e0", *(f"e{number}" for number in range(2, 40)))
    assert all(each.tracker_id for each in decisions[1:])
    assert set_aside(reason, "INDEX", "DECIDE") - before == 8  # four lanes, each for the indexer and for the decider


@pytest.mark.parametrize(
    ("planted", "reason"),
    [("repeat('x', 9 * 1024 * 1024)", "TOO_LARGE"), (r"'\x0b'", "UNPARSABLE")],
    ids=["9 MB and 9 MB", "unparsable"],
)
async def test_a_decision_that_cannot_be_handed_over_is_set_aside(
    world: World,  # noqa: F811
    planted: str,
    reason: str,
) -> None:
    before = set_aside(reason, "RELAY")
    world.received.failing = True
    async with world.worker():
        await world.send(click(0, device(1), record_id="k1"), event(HOUR, device(1), record_id="stuck"))
        await world.decided("stuck")
    await world.pool.execute(
        f"""
        UPDATE decisions SET record = {planted}::bytea, engagement = {planted}::bytea WHERE conversion_id = 'stuck'
        """
    )
    world.received.failing = False
    async with world.worker():
        await world.send(event(2 * HOUR, device(2), record_id="after"))
        await told(world, "after")
    assert "stuck" not in world.received.conversions
    assert set_aside(reason, "RELAY") - before == 1


async def test_the_outbox_is_read_by_bytes_and_loses_none(world: World) -> None:  # noqa: F811
    """Several lanes: a lane that is full of large ones holds up no other."""
    await Periods(world.pool).ensure([(0, 400)])
    await world.pool.execute(
        """
        INSERT INTO decisions (
            lane, sequence, app_id, conversion_id, version, device_id, outcome, conversion_time_us, receive_time_us,
            decision, record, retention_days
        )
        SELECT lane, sequence, 'app', lane || '-' || sequence, 1, gen_random_uuid(), 1, sequence, sequence, 'x',
            convert_to(repeat('x', CASE lane WHEN 1 THEN 500000 ELSE 10 END), 'UTF8'), 400
        FROM generate_series(1, 3) AS lane, generate_series(0, 59) AS sequence
        """
    )
    spans = {lane: range(60) for lane in (1, 2, 3)}
    seen: list[tuple[int, int]] = []
    reads = 0
    while any(spans.values()):
        rows, moved = await read_outbox(world.pool, spans, 50)
        assert sum(row.size for row in rows) < PART_BYTES + 600_000
        if not reads:
            assert {row.lane for row in rows} == {1, 2, 3}
        seen += [(row.lane, row.sequence) for row in rows]
        spans |= {lane: range(at, 60) for lane, at in moved.items()}
        reads += 1
    assert sorted(seen) == [(lane, sequence) for lane in (1, 2, 3) for sequence in range(60)]
    assert len(set(seen)) == len(seen)


async def plant_decisions(world: World, *, count: int, size: int) -> None:  # noqa: F811
    """Stores decisions of the sample app, as large as an app that has many candidates."""
    await Periods(world.pool).ensure([(0, 400)])
    for number in range(count):
        decision = decision_pb2.Decision(app_id=APP, conversion_id=f"c{number}", version=1)
        decision.custom_dimensions["large"] = "x" * size
        await world.pool.execute(
            """
            INSERT INTO decisions (
                lane, sequence, app_id, conversion_id, version, device_id, outcome, conversion_time_us,
                receive_time_us, decision, record, retention_days
            )
            VALUES ($1, $2, $3, $4, 1, gen_random_uuid(), 1, $2, $2, $5, 'x', 400)
            """,
            lane_of(APP),
            number,
            APP,
            f"c{number}",
            decision.SerializeToString(),
        )
    await world.pool.execute("UPDATE lanes SET next_sequence = $2 WHERE lane = $1", lane_of(APP), count)


async def test_large_decisions_are_listed_and_followed(world: World) -> None:  # noqa: F811
    await plant_decisions(world, count=40, size=1_000_000)
    listed: list[str] = []
    token = ""
    while token or not listed:
        request = decision_pb2.ListDecisionsRequest(app_id=APP, page_size=1_000, page_token=token)
        response = await world.attribution.ListDecisions(request)
        assert response.ByteSize() < MAX_MESSAGE_BYTES * 3 / 4
        listed += [each.conversion_id for each in response.decisions]
        token = response.next_page_token
    assert listed == [f"c{number}" for number in reversed(range(40))]
    followed: list[str] = []
    call = world.attribution.WatchDecisions(decision_pb2.WatchDecisionsRequest(app_id=APP))
    async for part in call:
        followed += [fact.decision.conversion_id for fact in part.facts]
        if len(followed) >= 40:
            break
    call.cancel()
    assert followed == [f"c{number}" for number in range(40)]


async def test_a_decision_with_many_large_candidates_is_explained(world: World) -> None:  # noqa: F811
    """Those whose verdicts are told by their records: 40 of a match key, 257 KB each."""
    engagement = {"ad": {"custom_parameters": LARGE}, "visitor": record_pb2.VISITOR_BOT}
    async with world.worker():
        for start in range(0, 45, 15):
            await world.send(
                *(
                    click(number, device(1), record_id=f"k{number}", user_agent="WhatsApp/2", click=engagement)
                    for number in range(start, start + 15)
                )
            )
        await world.send(event(HOUR, device(1), record_id="e1"))
        (e1,) = await world.decided("e1")
    assert len(e1.candidates) >= 40
    request = explanation_pb2.ExplainDecisionRequest(app_id=APP, conversion_id="e1")
    response = await world.attribution.ExplainDecision(request)
    assert len(response.sentences) >= len(e1.candidates)
    assert all("WhatsApp" in sentence for sentence in response.sentences[: len(e1.candidates)])
