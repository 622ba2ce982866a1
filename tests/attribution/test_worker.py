"""From the log to decisions and postback, by one worker."""

import asyncio
import random
from typing import Any

import grpc
import pytest
from prometheus_client import REGISTRY

from reengage.attribution.v1 import decision_pb2
from reengage.ingest.v1 import record_batch_pb2, record_pb2
from tests.attribution.conftest import (
    APP,
    RE_TRACKER,
    UA_TRACKER,
    World,
    click,
    device,
    event,
    install,
    record,
)

HOUR = 3600
REENGAGED, CREDITED = decision_pb2.OUTCOME_REENGAGED, decision_pb2.OUTCOME_CREDITED


async def test_a_click_an_install_a_click_and_an_event(world: World) -> None:
    a = device(1)
    async with world.worker():
        await world.send(click(0, a, UA_TRACKER, record_id="k1"))
        await world.send(install(60, a, record_id="i1"))
        await world.send(event(120, a, record_id="e1"), click(HOUR, a, record_id="k2"))
        await world.send(event(2 * HOUR, a, record_id="e2"), event(2 * HOUR + 1, a, "View", record_id="e3"))
        i1, e1, e2, e3 = await world.decided("i1", "e1", "e2", "e3")
        while len(world.received.conversions) < 4:
            await asyncio.sleep(0.01)
    assert (i1.outcome, i1.tracker_id, i1.engagement_id) == (decision_pb2.OUTCOME_ATTRIBUTED, UA_TRACKER, "k1")
    assert (e1.outcome, e1.reason, dict(e1.custom_dimensions)) == (
        CREDITED,
        decision_pb2.REASON_MTR_NOT_MET,
        {"mtr_rejected": "3600"},
    )
    assert (e2.outcome, e2.tracker_id, e2.engagement_id) == (REENGAGED, RE_TRACKER, "k2")
    assert (e2.campaign_id, e2.lookback.seconds, e2.level) == ("c1", HOUR, 1)
    assert (e3.outcome, e3.tracker_id, e3.reason) == (CREDITED, RE_TRACKER, decision_pb2.REASON_EVENT_NOT_SELECTED)
    handed = world.received.conversions
    assert (handed["e2"].engagement.record_id, handed["e2"].names.network) == ("k2", "Acme")
    assert handed["e3"].engagement.record_id == "k2", "a credited event carries the click of its source"
    assert handed["e1"].record.event.event_name == "Purchase"


async def test_the_first_session_of_an_install_fires_session_begin_once(world: World) -> None:
    start = record_pb2.Session(state=record_pb2.Session.STATE_START)
    stop = record_pb2.Session(state=record_pb2.Session.STATE_STOP)
    async with world.worker():
        await world.send(install(0, device(1), record_id="i1"), record(1, device(1), session=start, record_id="s1"))
        await world.send(record(2, device(1), session=stop), record(3, device(1), session=start, record_id="s2"))
        await world.send(event(4, device(1), "Other", record_id="end"))
        (s1, _) = await world.decided("s1", "end")
        with pytest.raises(grpc.aio.AioRpcError) as missing:
            await world.attribution.GetDecision(decision_pb2.GetDecisionRequest(app_id=APP, conversion_id="s2"))
    assert s1.event_name == "SessionBegin"
    assert missing.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_record_id_that_comes_back_after_it_was_forgotten_is_decided_once(world: World) -> None:
    async with world.worker():
        await world.send(event(0, device(1), "View", record_id="e1"))
        await world.decided("e1")
        before = await world.pool.fetchval("SELECT count(*) FROM decisions")
        # As a sender's retry after more than 7 days: ingest takes it as new.
        await world.log_pool.execute("DELETE FROM dedupe")
        await world.send(event(0, device(1), "View", record_id="e1"), event(5, device(1), "View", record_id="e2"))
        await world.decided("e2")
        after = await world.pool.fetchval("SELECT count(*) FROM decisions")
    assert (before, after) == (1, 2)


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
