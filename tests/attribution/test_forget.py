"""ForgetDevice: nothing of a person is left in any table, nothing of others is touched, whatever crashes on the way."""

import asyncio
import contextlib
import hashlib
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import grpc
import pytest

from libs.db import Connection
from libs.domain.lanes import lane_of
from libs.errors import from_rpc_error
from libs.pages import encode_token
from reengage.attribution.v1 import decision_pb2, device_pb2, erasure_pb2, offer_pb2, reattribution_pb2
from reengage.ingest.v1 import record_batch_pb2, record_pb2
from reengage.postback.v1 import conversion_pb2
from reengage.postback.v1 import service_pb2_grpc as postback_grpc
from reengage.tracker.v1 import app_pb2, snapshot_pb2, status_pb2
from services.attribution.decision.matching import own_key
from services.attribution.jobs.erasure import Eraser, EraserConfig
from services.attribution.jobs.reattribution import Reattributor
from services.attribution.live.worker import Loop
from services.attribution.storage import erasures
from services.attribution.storage.erasures import Erasure
from tests.attribution.conftest import (
    APP,
    RE_TRACKER,
    UA_TRACKER,
    World,
    click,
    device,
    event,
    install,
    not_claimed,
    pending,
    record,
    tracker_resource,
)
from tests.conftest import Database
from tests.traces import all_rows, places, traces

HOUR = 3600
ADID, ANDROID_ID, CUSTOM = device(1), "a1b2c3d4e5f6", "Person-17"
HASHED = hashlib.md5(b"somebody", usedforsecurity=False).hexdigest()
DONE = erasure_pb2.Erasure.STATE_DONE
DONE_AGAIN = reattribution_pb2.Reattribution.STATE_DONE
KEPT = (
    "decisions",
    "devices",
    "engagements",
    "hashed_ids",
    "identifiers",
    "network_clicks",
    "pending_conversions",
    "log",
    "dedupe",
    "rejected",
)
"""Tables that hold what was received."""
AT_ONCE = EraserConfig(calls_end_s=0, look_interval_s=0.02, wait_interval_s=0.02)
"""Without the waits for what other processes may have under way: there are none."""


@asynccontextmanager
async def working(world: World, config: EraserConfig = AT_ONCE, **jobs: Loop) -> AsyncIterator[None]:
    """Runs a worker that erases, and does these jobs."""
    eraser = Eraser(pool=world.pool, ingest=world.ingest, postback=world.postback, config=config)
    async with world.worker(jobs={"eraser": eraser.run, **jobs}):
        yield


async def begin(world: World, device_id: str, app_id: str = APP) -> str:
    request = erasure_pb2.ForgetDeviceRequest(app_id=app_id, device_id=device_id)
    erasure = (await world.attribution.ForgetDevice(request)).erasure
    assert erasure.state == erasure_pb2.Erasure.STATE_RUNNING
    return erasure.erasure_id


async def proof(world: World, erasure_id: str, app_id: str = APP) -> erasure_pb2.Erasure:
    """Returns the erasure, once it is done."""
    request = erasure_pb2.GetErasureRequest(app_id=app_id, erasure_id=erasure_id)
    while (erasure := (await world.attribution.GetErasure(request)).erasure).state != DONE:
        await asyncio.sleep(0.01)
    return erasure


async def forget(world: World, device_id: str) -> erasure_pb2.Erasure:
    return await proof(world, await begin(world, device_id))


def sha1(text: str) -> str:
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


async def others_come(world: World) -> None:
    """Sends all kinds of records of two others from the same address, clicks that match by IP alone, a refused one."""
    for number in (101, 102):
        other = device(number)
        await world.send(
            click(0, other, UA_TRACKER, record_id=f"o-k1-{number}", click={"click_id": f"net-{number}"}),
            install(60, other, record_id=f"o-i-{number}"),
            click(HOUR, other, record_id=f"o-k2-{number}"),
            event(2 * HOUR, other, record_id=f"o-e-{number}"),
            record(3 * HOUR, other, impression=record_pb2.Impression(tracker_id=RE_TRACKER), record_id=f"o-m-{number}"),
            record(4 * HOUR, device(number + 100), identity_link=_link("o"), record_id=f"o-l-{number}"),
        )
    await world.send(click(10, record_id="o-by-ip"), click(11, sha1(device(101)), record_id="o-k3"))
    # What comes by a hash (A3), so that hashes are indexed before the person comes.
    by_hash = {"adid_md5": hashlib.md5(b"other", usedforsecurity=False).hexdigest(), "custom_sha256": "c" * 64}
    await world.send(event(5 * HOUR, by_hash, record_id="o-h"))
    await refuse(world, event(0, device(101), "", record_id="o-refused"))
    await world.decided("o-e-101", "o-e-102", "o-l-101", "o-l-102", "o-h")
    while await world.pool.fetchval("SELECT count(DISTINCT engagement_id) FROM engagements") < 8:
        await asyncio.sleep(0.01)
    while await world.pool.fetchval("SELECT count(*) FROM hashed_kinds WHERE is_indexed") < 3:
        await asyncio.sleep(0.01)


async def the_person_comes(world: World) -> list[str]:
    """Sends everything that can be received of one; returns the conversions that are decided."""
    start = record_pb2.Session(state=record_pb2.Session.STATE_START)
    stop = record_pb2.Session(state=record_pb2.Session.STATE_STOP)
    await world.send(record(0, ADID, identity_link=_link("too early"), record_id="p-l0"))
    await world.send(
        click(0, ADID, UA_TRACKER, record_id="p-k1", click={"click_id": "net-p"}),
        click(1, sha1(ADID).upper(), UA_TRACKER, record_id="p-k2"),
        click(2, sha1(hashlib.md5(ADID.encode(), usedforsecurity=False).hexdigest()), record_id="p-k3"),
        click(3, {"adid": ADID.upper(), "oaid": "another-id-of-the-click"}, record_id="p-k4", ip_address="2001:db8::7"),
        click(4, {}, record_id="p-web"),
        record(5, {"adid_md5": HASHED}, impression=record_pb2.Impression(tracker_id=RE_TRACKER), record_id="p-m1"),
    )
    await world.send(install(60, ADID, record_id="p-i1", install={"click_record_id": "p-web"}))
    await world.send(
        record(61, ADID, session=start, record_id="p-s1"), record(62, ADID, session=stop, record_id="p-s2")
    )
    await world.send(record(70, ADID, identity_link=_link("person@example.com"), record_id="p-l1"))
    await world.send(event(80, {"android_id": ANDROID_ID, "custom": CUSTOM}, "View", record_id="p-v1"))
    await world.send(event(90, {"adid": ADID, "android_id": ANDROID_ID}, "View", record_id="p-v2"))
    await world.send(event(95, {"adid": ADID, "adid_md5": HASHED}, "View", record_id="p-v3"))
    # Known by a hash only, of an id that the device is known by (A3).
    await world.send(
        event(96, {"custom_sha256": hashlib.sha256(CUSTOM.encode()).hexdigest()}, "View", record_id="p-v4")
    )
    await world.send(click(HOUR, {"custom": CUSTOM}, record_id="p-k5"))
    await world.send(event(2 * HOUR, ADID, record_id="p-e1"))
    opened = record_pb2.DeepLinkOpen(uri="https://shop.example/sale", tracker_id=RE_TRACKER)
    await world.send(record(3 * HOUR, ADID, deep_link_open=opened, record_id="p-o1"))
    await refuse(world, event(0, ADID, "", record_id="p-refused"))
    decided = ["p-l0", "p-i1", "p-s1", "p-l1", "p-v1", "p-v2", "p-v3", "p-v4", "p-e1", "p-o1"]
    await world.decided(*decided)
    await world.received.trigger(("Order", "acme"))
    await asyncio.sleep(0)
    await world.received.answer("p-w1", pending("acme"))
    while not await world.pool.fetchval("SELECT count(*) FROM claim_triggers"):
        await asyncio.sleep(0.01)
    await world.send(event(4 * HOUR, ADID, "Order", record_id="p-w1"))
    while not await world.pool.fetchval("SELECT count(*) FROM pending_conversions"):
        await asyncio.sleep(0.01)
    return decided


def _link(name: str) -> record_pb2.IdentityLink:
    return record_pb2.IdentityLink(identities={"email": name})


async def refuse(world: World, refused: record_pb2.Record) -> None:
    """Sends a record that is refused, and waits until it is listed."""
    await world.ingest.RecordBatch(record_batch_pb2.RecordBatchRequest(records=[refused]))
    while not await world.log_pool.fetchval("SELECT count(*) FROM rejected WHERE record_id = $1", refused.record_id):
        await asyncio.sleep(0.01)


PERSON = traces(APP, ADID, ANDROID_ID, CUSTOM, HASHED)
LEFT_BY_THE_PERSON = {
    *(f"attribution.decisions.{column}" for column in ("record", "engagement", "known_ids")),
    *(f"attribution.engagements.{column}" for column in ("match_key", "device_keys", "record")),
    "attribution.devices.ids",
    "attribution.hashed_ids.raw_key",
    "attribution.identifiers.id_key",
    "attribution.pending_conversions.record",
    "ingest.log.record",
    "ingest.rejected.refusal",
}


@pytest.mark.slow
async def test_nothing_of_a_person_is_left_and_nothing_of_others_is_touched(world: World, database: Database) -> None:
    async with working(world):
        await others_come(world)
        before = await all_rows(database.admin_dsn)
        decided = await the_person_comes(world)
        made = await world.pool.fetchval("SELECT max(sequence) + 1 FROM decisions")
        while not await erasures.relayed(world.pool, lane_of(APP), made):
            await asyncio.sleep(0.01)
        handed = [conversion_id for conversion_id in world.received.conversions if conversion_id.startswith("p-")]
        during = await all_rows(database.admin_dsn)
        assert places(during, PERSON) >= LEFT_BY_THE_PERSON, "the search finds what there is"
        our_ids = {row["device_id"] for row in during["attribution.devices"]} - {
            row["device_id"] for row in before["attribution.devices"]
        }
        assert len(our_ids) == 2, "two that turned out to be one"

        erasure = await forget(world, ANDROID_ID.upper())
        after = await all_rows(database.admin_dsn)

    ours = {form for each in our_ids for form in (each.bytes, each.hex.encode())}
    mine = {b"p-", b"net-p", b"person@example.com", b"another-id-of-the-click", *PERSON, *ours}
    mine |= {
        own_key(APP, row["engagement_id"])
        for row in during["attribution.engagements"]
        if row["engagement_id"].startswith("p-")
    }
    # The ids of records are no ids of devices; what else begins so is looked at as it is.
    assert (
        places({name: rows for name, rows in after.items() if name != "ingest.schema_migrations"}, mine - {b"p-"})
        == set()
    )
    for table in KEPT:
        [name] = [name for name in after if name.endswith(f".{table}")]
        assert set(after[name]) == set(before[name]), table

    # The proof counts every row.
    gone = {name: len(during[name]) - len(after[name]) for name in during if name.rpartition(".")[2] in KEPT}
    counted = {name: count for name, count in erasure.erased_counts.items() if not name.startswith("postback.")}
    counted.pop("attribution.late_arrivals", None)  # of those some were dealt with meanwhile
    assert counted == {name: count for name, count in gone.items() if count}
    assert erasure.erased_counts["postback.deliveries"] == len(handed)
    assert {*decided, "p-w1"} - {"p-l0"} <= set(world.received.erased)
    assert not world.received.conversions.keys() & {*decided, "p-w1"}
    assert erasure.finish_time.ToDatetime() >= erasure.request_time.ToDatetime()


@pytest.mark.slow
async def test_a_forgotten_device_starts_anew(world: World) -> None:
    a, first = device(1), [click(0, device(1), UA_TRACKER, record_id="k1"), install(60, device(1), record_id="i1")]
    async with working(world):
        await world.send(*first)
        (before,) = await world.decided("i1")
        await forget(world, a)
        await world.send(install(120, a, record_id="i2"))
        (anew,) = await world.decided("i2")
        assert (anew.outcome, len(anew.candidates)) == (decision_pb2.OUTCOME_ORGANIC, 0)
        assert anew.device_id != before.device_id
        await forget(world, a)
        # The very same records, sent again.
        await world.send(*first)
        (again,) = await world.decided("i1")
        assert (again.outcome, again.engagement_id) == (decision_pb2.OUTCOME_ATTRIBUTED, "k1")
        answer = await world.attribution.GetDeviceAttribution(
            device_pb2.GetDeviceAttributionRequest(app_id=APP, device_id=a)
        )
    assert answer.device_id == again.device_id not in (before.device_id, anew.device_id)


@pytest.mark.slow
async def test_what_attribution_does_not_know_is_erased_by_what_was_given(world: World, database: Database) -> None:
    """Clicks alone, one of them hashed; by our own id of a device, by a hash, and of a device that nobody knows."""
    async with working(world):
        await world.send(click(0, ADID, record_id="k1"), click(1, sha1(ADID), record_id="k2"))
        erasure = await forget(world, ADID.replace("-", "").upper())
        counts = dict(erasure.erased_counts)
        assert counts.pop("attribution.late_arrivals", 0) in (0, 1, 2), "as far as they were not dealt with"
        assert counts == {"attribution.engagements": 6, "ingest.log": 2, "ingest.dedupe": 2}
        await world.send(event(0, {"adid_md5": HASHED}, "View", record_id="v1"))
        await world.decided("v1")
        erasure = await forget(world, HASHED.upper())
        assert erasure.erased_counts["attribution.devices"] == 1
        await world.send(event(0, ADID, "View", record_id="v2"))
        (v2,) = await world.decided("v2")
        erasure = await forget(world, v2.device_id)
        assert erasure.erased_counts["ingest.log"] == erasure.erased_counts["attribution.devices"] == 1
        assert dict((await forget(world, device(99))).erased_counts) == {}
    assert places(await all_rows(database.admin_dsn), traces(APP, ADID, HASHED, device(99))) == set()


@pytest.mark.slow
async def test_a_click_of_the_person_that_won_for_another_leaves_the_others_decision(
    world: World, database: Database
) -> None:
    """In an INCLUSIVE app a click that carries one device's id can win another's event by its address."""
    app = app_pb2.App(
        app_id=APP,
        status=status_pb2.STATUS_LIVE,
        settings=app_pb2.AppSettings(
            device_attribution=app_pb2.AppSettings.DEVICE_ATTRIBUTION_INCLUSIVE,
            modeled_level=app_pb2.AppSettings.MODELED_LEVEL_IP_RANGE,
        ),
    )
    await world.settings.reached(await world.feed.publish(snapshot_pb2.Resource(app=app)))
    async with working(world):
        await world.send(click(0, ADID, record_id="k1"))
        await world.send(event(10, device(2), record_id="e1"), event(20, device(2), "View", record_id="v1"))
        e1, v1 = await world.decided("e1", "v1")
        assert (e1.engagement_id, v1.outcome) == ("k1", decision_pb2.OUTCOME_CREDITED)
        while len(world.received.conversions) < 2:
            await asyncio.sleep(0.01)
        assert "attribution.decisions.engagement" in places(await all_rows(database.admin_dsn), traces(APP, ADID))
        erasure = await forget(world, ADID)
        assert dict(erasure.erased_counts) == {
            "attribution.engagements": 4,
            "ingest.log": 1,
            "ingest.dedupe": 1,
        }
        assert places(await all_rows(database.admin_dsn), traces(APP, ADID)) == set()
        assert [d.engagement_id for d in await world.decided("e1", "v1")] == [e1.engagement_id, v1.engagement_id]
        assert world.received.stripped == {"e1", "v1"}


@pytest.mark.slow
async def test_what_is_not_yet_handed_over_is_never_sent(world: World) -> None:
    world.received.failing = True
    async with working(world):
        await world.send(*(event(n, device(1 + n % 2), "View", record_id=f"v{n}") for n in range(40)))
        await world.decided("v39")
        while not world.received.calls:
            await asyncio.sleep(0.01)
        erasure_id = await begin(world, device(2))
        # The last decisions of the lane among them: the relay must pass a gap with nothing behind it.
        while await world.pool.fetchval("SELECT count(*) FROM decisions") > 20:
            await asyncio.sleep(0.01)
        world.received.failing = False
        await proof(world, erasure_id)
        await world.send(event(100, device(3), "View", record_id="after"))
        while "after" not in world.received.conversions:
            await asyncio.sleep(0.01)
    assert sorted(world.received.conversions) == sorted(["after", *(f"v{n}" for n in range(0, 40, 2))])


@pytest.mark.slow
async def test_what_was_received_before_the_call_goes_however_late_it_is_taken(
    world: World, database: Database
) -> None:
    """Nobody has read any of it when the device is to be forgotten."""
    for number in range(0, 2000, 500):
        await world.send(*(event(n, ADID, "View", record_id=f"v{n}") for n in range(number, number + 500)))
        ids = ({"custom": CUSTOM, "oaid": f"other-{n}"} for n in range(number, number + 500))
        await world.send(*(click(n, each, record_id=f"k{n}") for n, each in enumerate(ids, start=number)))
    await world.send(event(3000, {"adid": ADID, "custom": CUSTOM}, "View", record_id="v-last"))
    erasure_id = await begin(world, ADID)
    async with working(world):
        erasure = await proof(world, erasure_id)
    assert places(await all_rows(database.admin_dsn), traces(APP, ADID, CUSTOM)) == set()
    assert (erasure.erased_counts["ingest.log"], erasure.erased_counts["attribution.decisions"]) == (4001, 2001)


class SlowPostback:
    """A way to postback on which conversions take their time."""

    def __init__(self, stub: postback_grpc.PostbackServiceStub) -> None:
        self._stub = stub
        self.begun, self.let_go = asyncio.Event(), asyncio.Event()

    def __getattr__(self, method: str) -> Any:
        return getattr(self._stub, method)

    async def EnqueueConversions(
        self, request: conversion_pb2.EnqueueConversionsRequest
    ) -> conversion_pb2.EnqueueConversionsResponse:
        self.begun.set()
        await self.let_go.wait()
        return await self._stub.EnqueueConversions(request)


async def test_what_is_on_its_way_to_postback_is_erased_when_it_has_come(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, relayed = asyncio.Semaphore(0), erasures.relayed

    async def looking(*arguments: Any) -> bool:
        looks.release()
        return await relayed(*arguments)

    monkeypatch.setattr(erasures, "relayed", looking)
    slow = SlowPostback(world.postback)
    world.postback = slow  # type: ignore[assignment]  # has its methods
    async with working(world):
        await world.send(event(0, device(1), "View", record_id="v1"))
        await slow.begun.wait()
        erasure_id = await begin(world, device(1))
        for _ in range(3):
            await looks.acquire()
        assert not world.received.erased
        slow.let_go.set()
        erasure = await proof(world, erasure_id)
    assert erasure.erased_counts["postback.deliveries"] == 1
    assert not world.received.conversions


@pytest.mark.slow
async def test_what_comes_while_it_is_erased_is_either_all_gone_or_all_there(world: World, database: Database) -> None:
    """A device that never stops sending: every record is in the log if and only if it is decided, or indexed.

    Two workers, so that one erases what both have stored.
    """
    stop = asyncio.Event()

    async def keep_sending() -> int:
        number = 0
        while not stop.is_set():
            number += 1
            await world.send(
                click(number, ADID, record_id=f"k{number}"), event(number, ADID, "View", record_id=f"v{number}")
            )
        return number

    async with working(world), working(world):
        sending = asyncio.ensure_future(keep_sending())
        for _ in range(4):
            await forget(world, ADID)
        stop.set()
        number = await sending
        await world.send(event(0, ADID, "View", record_id="last"))
        await world.decided("last")
        rows = await all_rows(database.admin_dsn)
    logged = {record_pb2.Record.FromString(row["record"]).record_id for row in rows["ingest.log"]}
    decided = {row["conversion_id"] for row in rows["attribution.decisions"]}
    indexed = {row["engagement_id"] for row in rows["attribution.engagements"]}
    assert decided | indexed == logged
    assert 0 < len(logged) < 2 * number
    assert len(rows["attribution.devices"]) == 1


async def test_what_waits_for_claims_is_never_decided(world: World) -> None:
    await world.received.trigger(("Order", "acme"))
    await world.received.answer("w1", pending("acme"))
    async with working(world, replace(AT_ONCE, calls_end_s=0.5)):
        while not await world.pool.fetchval("SELECT count(*) FROM claim_triggers"):
            await asyncio.sleep(0.01)
        await world.send(event(0, device(1), "Order", record_id="w1"))
        while not world.received.asked["w1"]:
            await asyncio.sleep(0.01)
        erasure = await forget(world, device(1))
        assert erasure.erased_counts["attribution.pending_conversions"] == 1
        assert "w1" in world.received.erased
        await world.received.answer("w1", not_claimed("acme"))
        await world.send(event(1, device(1), "Order", record_id="w2"))
        await world.decided("w2")
        assert await world.pool.fetchval("SELECT count(*) FROM decisions") == 1
        assert not await world.pool.fetchval("SELECT count(*) FROM pending_conversions")


@pytest.mark.slow
async def test_claims_that_are_asked_for_at_the_cut_come_to_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Postback is told to erase when no request can make a delivery any more."""
    claims_ends_us, cut = [], Eraser._cut

    async def noted(self: Eraser, shared: Any, erasure: Erasure) -> None:
        await cut(self, shared, erasure)
        assert erasure.work is not None
        claims_ends_us.append(erasure.work.claims_end_us)

    monkeypatch.setattr(Eraser, "_cut", noted)
    await world.received.trigger(("Order", "acme"))
    await world.received.answer("w1", pending("acme"))
    async with working(world, replace(AT_ONCE, calls_end_s=0.5)):
        while not await world.pool.fetchval("SELECT count(*) FROM claim_triggers"):
            await asyncio.sleep(0.01)
        await world.send(event(0, device(1), "Order", record_id="w1"))
        while not world.received.asked["w1"]:
            await asyncio.sleep(0.01)
        erasure_id = await begin(world, device(1))
        while "w1" not in world.received.erased:
            await asyncio.sleep(0.01)
        assert time.time_ns() // 1000 >= claims_ends_us[0] > 0
        await proof(world, erasure_id)


@pytest.mark.slow
@pytest.mark.parametrize("hand_over_s", [pytest.param(0.8, id="shorter than the erasure waits")])
async def test_what_is_offered_to_postback_at_the_cut_comes_to_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who asked for a re-attribution's postbacks was just handing them over: read before the cut, there after it."""
    reattributor = Reattributor(world.pool, world.settings, world.pace, lambda: time.time_ns() // 1000)
    async with working(world, replace(AT_ONCE, calls_end_s=1.0), reattributor=reattributor.run):
        await world.send(click(0, device(1), record_id="k1"), event(10, device(1), record_id="e1"))
        await world.decided("e1")
        archived = tracker_resource(RE_TRACKER, network_id="acme", events=["Purchase"])
        archived.tracker.status = status_pb2.STATUS_ARCHIVED
        await world.settings.reached(await world.feed.publish(archived))
        again = reattribution_pb2.ReattributeRequest(app_id=APP, reattribution_id="r1")
        again.start_time.FromSeconds(0)
        again.end_time.GetCurrentTime()
        await world.attribution.Reattribute(again)
        named = {"app_id": APP, "reattribution_id": "r1"}
        get = reattribution_pb2.GetReattributionRequest(**named)
        while (await world.attribution.GetReattribution(get)).reattribution.state != DONE_AGAIN:
            await asyncio.sleep(0.01)
        begun, enqueue = asyncio.Event(), world.postback.EnqueueConversions

        async def slow(request: Any, **more: Any) -> Any:
            begun.set()
            await asyncio.sleep(0.6)
            return await enqueue(request, **more)

        monkeypatch.setattr(world.postback, "EnqueueConversions", slow)
        send = offer_pb2.SendOfferedPostbacksRequest(**named)
        sending = asyncio.ensure_future(world.attribution.SendOfferedPostbacks(send))
        await begun.wait()
        await forget(world, device(1))
        await sending
    assert not world.received.conversions


@pytest.mark.parametrize("odd", ["- 0", ": :", "- Person"])
@pytest.mark.slow
async def test_an_id_that_is_hardly_one_holds_up_nobody(world: World, odd: str) -> None:
    """What is left of it without dashes and colons begins with a space, or is nothing."""
    async with working(world):
        await world.send(event(0, {"custom": odd, "adid": ADID}, "View", record_id="v1"))
        await world.decided("v1")
        erasure = await forget(world, ADID)
        assert erasure.erased_counts["ingest.log"] == 1
        await world.send(click(0, {"custom": odd}, record_id="k1"))
        with contextlib.suppress(grpc.aio.AioRpcError):  # it may be refused as none
            await forget(world, odd)
        await forget(world, device(2))
        left = await world.log_pool.fetchval("SELECT count(*) FROM log")
    assert left == (0 if odd == "- Person" else 1), "what is no id names nobody"


@pytest.mark.slow
async def test_a_device_is_forgotten_while_all_is_decided_again(
    world: World, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between what a re-attribution has read and what it writes: it writes nothing of the device."""
    read, step = asyncio.Event(), Reattributor._step
    erased = asyncio.Event()

    async def slow(self: Reattributor, *arguments: Any) -> Any:
        read.set()
        await erased.wait()
        return await step(self, *arguments)

    monkeypatch.setattr(Reattributor, "_step", slow)
    reattributor = Reattributor(world.pool, world.settings, world.pace, lambda: time.time_ns() // 1000)
    async with working(world, reattributor=reattributor.run):
        for number in (1, 2):
            # From addresses of their own: what an erased click was a candidate of is not decided again.
            await world.send(click(0, device(number), record_id=f"k{number}", ip_address=f"192.0.2.{number}"))
            await world.send(event(10, device(number), record_id=f"e{number}", ip_address=f"192.0.2.{number}"))
        await world.decided("e1", "e2")
        archived = tracker_resource(RE_TRACKER, network_id="acme", events=["Purchase"])
        archived.tracker.status = status_pb2.STATUS_ARCHIVED
        await world.settings.reached(await world.feed.publish(archived))
        again = reattribution_pb2.ReattributeRequest(app_id=APP, reattribution_id="r1", send_postbacks=True)
        again.start_time.FromSeconds(0)
        again.end_time.GetCurrentTime()
        await world.attribution.Reattribute(again)
        await read.wait()
        erasure = await forget(world, device(1))
        assert erasure.erased_counts["attribution.decisions"] == 1
        erased.set()
        (e2,) = await world.decided("e2")
        while e2.version == 1:
            (e2,) = await world.decided("e2")
        while await world.pool.fetchval("SELECT count(*) FROM reattributions WHERE finish_time_us IS NULL"):
            await asyncio.sleep(0.01)
    assert places(await all_rows(database.admin_dsn), traces(APP, device(1))) == set()


@pytest.mark.parametrize("committed", [False, True], ids=["before its commit", "after it"])
@pytest.mark.parametrize("number", [1, 2, 3, 30, 66, 67])
@pytest.mark.slow
async def test_a_crash_between_any_two_steps_is_made_good(
    world: World, database: Database, monkeypatch: pytest.MonkeyPatch, number: int, committed: bool
) -> None:
    """The worker dies when the erasure is stored for the n-th time; another one goes on."""
    died = asyncio.Event()
    numbers, saving = itertools.count(1), Eraser._saving

    @asynccontextmanager
    async def dying(self: Eraser, *arguments: Any) -> AsyncIterator[Connection]:
        dies = next(numbers) == number
        if dies and not committed:
            died.set()
            await asyncio.Event().wait()
        async with saving(self, *arguments) as connection:
            yield connection
        if dies:
            died.set()
            await asyncio.Event().wait()

    monkeypatch.setattr(Eraser, "_saving", dying)
    async with working(world):
        await others_come(world)
        before = await all_rows(database.admin_dsn)
        await world.send(click(0, ADID, UA_TRACKER, record_id="p-k1"), install(60, ADID, record_id="p-i1"))
        await world.decided("p-i1")
        erasure_id = await begin(world, ADID)
        await died.wait()
    async with working(world):
        await proof(world, erasure_id)
        after = await all_rows(database.admin_dsn)
    assert places(after, traces(APP, ADID)) == set()
    for table in KEPT:
        [name] = [name for name in after if name.endswith(f".{table}")]
        assert set(after[name]) == set(before[name]), table
    assert set(world.received.erased) >= {"p-i1"}


async def test_neighbours_that_are_away_are_waited_for(world: World, database: Database) -> None:
    async with working(world):
        await world.send(install(0, ADID, record_id="i1"))
        await world.decided("i1")
        while "i1" not in world.received.conversions:
            await asyncio.sleep(0.01)
        world.received.failing = True
        erasure_id = await begin(world, ADID)
        while await world.pool.fetchval("SELECT count(*) FROM devices"):
            await asyncio.sleep(0.01)
        assert "attribution.erasures.work" in places(await all_rows(database.admin_dsn), traces(APP, ADID))
        world.received.failing = False
        await proof(world, erasure_id)
    assert places(await all_rows(database.admin_dsn), traces(APP, ADID)) == set()


@pytest.mark.slow
async def test_a_device_of_very_many_ids_goes_in_several_searches(world: World, database: Database) -> None:
    ids = [device(number) for number in range(1, 36)]
    async with working(world, replace(AT_ONCE, max_device_ids=10, max_conversions=7)):
        await world.send(event(0, {"adid": ids[0], "oaid": "shared"}, "View", record_id="v0"))
        for number, each in enumerate(ids[1:], start=1):
            await world.send(event(number, {"adid": each, "oaid": "shared"}, "View", record_id=f"v{number}"))
        await world.send(*(click(n, each, record_id=f"k{n}") for n, each in enumerate(ids)))
        await world.decided("v34")
        erasure = await forget(world, ids[3])
    assert places(await all_rows(database.admin_dsn), traces(APP, *ids, "shared")) == set()
    assert erasure.erased_counts["ingest.log"] == 70
    assert sorted(world.received.erased) == sorted(f"v{n}" for n in range(35))


async def test_another_app_keeps_its_own(world: World, database: Database) -> None:
    other = app_pb2.App(app_id="other", status=status_pb2.STATUS_LIVE)
    await world.settings.reached(await world.feed.publish(snapshot_pb2.Resource(app=other)))
    async with working(world):
        await world.send(event(0, ADID, "View", record_id="v1"))
        theirs = event(0, ADID, "View", record_id="v1")
        theirs.app_id = "other"
        while (
            (await world.ingest.RecordBatch(record_batch_pb2.RecordBatchRequest(records=[theirs])))
            .results[0]
            .violations
        ):
            await asyncio.sleep(0.01)
        while await world.pool.fetchval("SELECT count(*) FROM decisions") < 2:
            await asyncio.sleep(0.01)
        await forget(world, ADID)
        left = await all_rows(database.admin_dsn)
    assert [row["app_id"] for row in left["attribution.decisions"]] == ["other"]
    assert [row["app_id"] for row in left["attribution.devices"]] == ["other"]
    assert len(left["ingest.log"]) == len(left["attribution.identifiers"]) == 1


@pytest.mark.parametrize(
    ("app_id", "device_id", "expected"),
    [
        ("", "", [("app_id", "REQUIRED"), ("device_id", "REQUIRED")]),
        (APP, "00000000-0000-0000-0000-000000000000", [("device_id", "INVALID_ID")]),
        (APP, "{idfa}", [("device_id", "INVALID_ID")]),
        (APP, "x" * 257, [("device_id", "TOO_LONG")]),
    ],
)
async def test_what_is_no_device_is_named(world: World, app_id: str, device_id: str, expected: object) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as wrong:
        await world.attribution.ForgetDevice(erasure_pb2.ForgetDeviceRequest(app_id=app_id, device_id=device_id))
    assert [(v.field, v.reason) for v in from_rpc_error(wrong.value).violations] == expected


async def test_what_was_refused_of_an_app_that_there_is_not_is_forgotten_too(world: World, database: Database) -> None:
    mistyped = event(0, ADID, record_id="r1")
    mistyped.app_id = "typo"
    async with working(world):
        await refuse(world, mistyped)
        assert "ingest.rejected.refusal" in places(await all_rows(database.admin_dsn), traces("typo", ADID))
        erasure = await proof(world, await begin(world, ADID, app_id="typo"), app_id="typo")
    assert dict(erasure.erased_counts) == {"ingest.rejected": 1}
    assert places(await all_rows(database.admin_dsn), traces("typo", ADID)) == set()


@pytest.mark.parametrize("erasure_id", ["no uuid", "7c9e6679-7425-40de-944b-e07fc1f90ae7"])
async def test_unknown_erasures_are_not_found(world: World, erasure_id: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as erasure:
        await world.attribution.GetErasure(erasure_pb2.GetErasureRequest(app_id=APP, erasure_id=erasure_id))
    assert from_rpc_error(erasure.value).reason == "ERASURE_NOT_FOUND"


async def test_erasures_are_listed_page_by_page_the_newest_first(world: World) -> None:
    begun = [await begin(world, device_id) for device_id in ("one", "two", "three")]
    await begin(world, "one", app_id="another")
    listed: list[str] = []
    token = ""
    while True:
        request = erasure_pb2.ListErasuresRequest(app_id=APP, page_size=2, page_token=token)
        page = await world.attribution.ListErasures(request)
        listed += [erasure.erasure_id for erasure in page.erasures]
        if not (token := page.next_page_token):
            break
    assert listed == begun[::-1]


@pytest.mark.parametrize("token", ["nonsense", encode_token(1), encode_token(1, "no uuid"), encode_token("a", "b")])
async def test_a_token_of_somebody_else_lists_nothing(world: World, token: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as wrong:
        await world.attribution.ListErasures(erasure_pb2.ListErasuresRequest(app_id=APP, page_token=token))
    assert [(v.field, v.reason) for v in from_rpc_error(wrong.value).violations] == [("page_token", "INVALID_TOKEN")]
