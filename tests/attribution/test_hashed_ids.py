"""Conversions that carry only hashed ids (A3): their devices and their engagements, whichever came first."""

import asyncio
import hashlib
from typing import Any

import pytest

from reengage.attribution.v1 import decision_pb2, device_pb2, explanation_pb2, what_if_pb2
from reengage.ingest.v1 import record_pb2
from services.attribution.decision.matching import device_key
from services.attribution.live.owned_lanes import OwnedLanes
from services.attribution.storage.devices import find_devices_of_keys
from services.gateway.model import App, Platform
from services.gateway.translation.record import translate
from tests.attribution.conftest import (
    APP,
    StartWorld,
    World,
    click,
    device,
    die,
    event,
    install,
    record,
)
from tests.attribution.test_shared_ids import crowd, eraser_of, forget, shared_ids
from tests.conftest import Database
from tests.traces import all_rows, places, traces

HOUR = 3600
REENGAGED = decision_pb2.OUTCOME_REENGAGED
ELSEWHERE = {"ip_address": "198.51.100.9"}
"""So that nothing is found by its address."""


def hashed(text: str, method: str = "md5", kind: str = "adid") -> dict[str, str]:
    return {f"{kind}_{method}": hashlib.new(method, text.encode(), usedforsecurity=False).hexdigest()}


async def at_rest(lanes: OwnedLanes) -> None:  # as a loop is called
    """Waits for ever."""
    await asyncio.Event().wait()


def link(at_s: int, who: dict[str, str], **fields: Any) -> record_pb2.Record:
    return record(at_s, who, identity_link=record_pb2.IdentityLink(identities={"email": "a@example.com"}), **fields)


@pytest.mark.parametrize("method", ["md5", "sha1", "sha256"])
@pytest.mark.parametrize("spell", [str.lower, str.upper], ids=["lower", "upper"])
async def test_a_hash_belongs_to_the_device_of_its_raw_id(world: World, method: str, spell: Any) -> None:
    """Whichever comes first; an identity link by a hash ties its names to that device (F3)."""
    early, late = hashed(spell(device(1)), method), hashed(spell(device(2)), method)
    async with world.worker():
        await world.send(event(0, early, "View", record_id="hash-first"))
        await world.send(install(10, device(1), record_id="i1"), install(10, device(2), record_id="i2"))
        await world.send(event(20, early, "View", record_id="again"), link(30, late, record_id="linked"))
        first, i1, i2, again, linked = await world.decided("hash-first", "i1", "i2", "again", "linked")
        request = device_pb2.GetDeviceAttributionRequest(app_id=APP, device_id=device(2))
        shown = await world.attribution.GetDeviceAttribution(request)
    assert first.device_id == i1.device_id == again.device_id
    assert again.install_known
    assert (linked.outcome, linked.device_id) == (decision_pb2.OUTCOME_LINKED, i2.device_id)
    assert dict(shown.identities) == {"email": "a@example.com"}
    assert i1.device_id != i2.device_id


async def test_an_identity_link_says_how_its_id_is_hashed(world: World) -> None:
    """As a server sends it, in Kochava's shape."""
    body = {
        "action": "identityLink",
        "kochava_app_id": APP,
        "device_id": {"adid": hashed(device(1).upper(), "sha256")["adid_sha256"].upper()},
        "device_hash_method": {"adid": "SHA-256"},
        "data": {"email": "a@example.com"},
    }
    linked = translate(body, {APP: App(app_id=APP, platform=Platform.ANDROID)}.get).record
    linked.record_id = "l1"
    async with world.worker():
        await world.send(install(0, device(1), record_id="i1"))
        await world.send(linked)
        i1, l1 = await world.decided("i1", "l1")
    assert (l1.outcome, l1.device_id) == (decision_pb2.OUTCOME_LINKED, i1.device_id)


@pytest.mark.parametrize("carried", ["raw", "the same hash", "the hash in capitals"])
@pytest.mark.parametrize("raw_comes", ["never", "before", "after"])
async def test_a_hash_finds_clicks_that_carry_the_id(world: World, carried: str, raw_comes: str) -> None:
    same = hashed(device(1))["adid_md5"]
    ids = {"raw": device(1), "the same hash": same, "the hash in capitals": same.upper()}[carried]
    other = event(5, device(1), "View")
    async with world.worker():
        await world.send(click(0, ids, record_id="k1"), click(0, device(2), record_id="of-another"))
        if raw_comes == "before":
            await world.send(other)
        await world.send(event(60, hashed(device(1)), record_id="e1", **ELSEWHERE))
        if raw_comes == "after":
            await world.send(other)
        (e1,) = await world.decided("e1")
    assert (e1.outcome, e1.engagement_id, e1.matched_by) == (REENGAGED, "k1", decision_pb2.MATCH_KIND_DEVICE_ID)
    assert [each.engagement_id for each in e1.candidates] == ["k1"]


async def test_clicks_are_found_that_come_after_the_first_hash(world: World) -> None:
    """They are indexed under their hashes as they come, once the app is known to have some."""
    async with world.worker():
        await world.send(event(0, hashed(device(9)), "View", record_id="first"))
        await world.decided("first")
        await world.send(click(10, device(1), record_id="k1"), click(11, device(1).upper(), record_id="k2"))
        await world.send(event(60, hashed(device(1)), record_id="e1", **ELSEWHERE))
        (e1,) = await world.decided("e1")
    assert [each.engagement_id for each in e1.candidates] == ["k1", "k2"]


async def test_an_app_without_hashed_conversions_has_nothing_indexed_for_them(world: World) -> None:
    async with world.worker():
        await world.send(click(0, device(1)), event(1, {"adid": device(1), "idfv": "V"}, "View", record_id="v1"))
        await world.send(event(2, {"adid_md5": "no hash at all"}, "View", record_id="v2"))
        await world.decided("v1", "v2")
        rows = [await world.pool.fetchval(f"SELECT count(*) FROM {name}") for name in ("hashed_ids", "hashed_kinds")]
        kinds = await world.pool.fetch("SELECT kind FROM identifiers ORDER BY kind")
    assert rows == [0, 0]
    assert [kind for (kind,) in kinds] == ["adid", "adid_md5", "idfv"]


async def test_a_kind_of_hash_is_compared_with_its_own_kind_of_id(world: World) -> None:
    """And a hash of another length with none: its sender calls it what it is not."""
    sha1 = hashed(device(1), "sha1")["adid_sha1"]
    async with world.worker():
        await world.send(install(0, {"adid": device(1)}, record_id="i1"))
        await world.send(event(1, hashed(device(1), kind="idfa"), "View", record_id="other-kind"))
        await world.send(event(2, {"adid_md5": sha1}, "View", record_id="other-length"))
        await world.send(event(3, hashed(device(1)), "View", record_id="same"))
        i1, kind, length, same = await world.decided("i1", "other-kind", "other-length", "same")
    assert same.device_id == i1.device_id
    assert len({i1.device_id, kind.device_id, length.device_id}) == 3


async def test_devices_that_meet_by_a_hash_are_joined(world: World) -> None:
    async with world.worker():
        await world.send(install(0, {"idfv": "V"}, record_id="i1"))
        await world.send(event(1, device(1), "View", record_id="v1"))
        await world.send(event(2, {"idfv": "V", **hashed(device(1))}, "View", record_id="meet"))
        i1, v1, meet = await world.decided("i1", "v1", "meet")
        await world.send(event(3, device(1), "View", record_id="v2"))
        (v2,) = await world.decided("v2")
    assert v1.device_id != i1.device_id
    assert meet.device_id == v2.device_id == i1.device_id
    assert v2.install_known


async def test_hashed_clicks_lead_to_devices_of_raw_ids(world: World) -> None:
    """Engagements with hashes are enough for that: what comes late concerns these devices."""

    async def devices_of(value: str) -> set[str]:
        async with world.pool.acquire() as connection:
            found = await find_devices_of_keys(connection, [device_key(APP, value)])
        return {str(each) for ids in found.values() for each in ids}

    md5 = [hashed(device(number))["adid_md5"] for number in range(3)]
    async with world.worker():
        await world.send(event(0, device(1), "View", record_id="before"))
        (before,) = await world.decided("before")
        assert await devices_of(md5[1]) == set()
        await world.send(click(1, {"adid": md5[0]}))  # as a network sends it that calls it an id
        while not await devices_of(md5[1]):
            await asyncio.sleep(0.01)
        await world.send(event(2, device(2), "View", record_id="after"))
        (after,) = await world.decided("after")
        assert await devices_of(md5[1]) == {before.device_id}
        assert await devices_of(md5[2]) == {after.device_id}
        assert not await world.pool.fetchval("SELECT count(*) FROM hashed_ids")


async def test_the_first_hash_waits_and_says_so(world: World) -> None:
    async with world.worker(jobs={"hash_indexer": at_rest}):
        await world.send(
            event(0, hashed(device(1)), "View", record_id="e1"), event(1, device(1), "View", record_id="v1")
        )
        await world.decided("v1")
        asked = explanation_pb2.ExplainDecisionRequest(app_id=APP, conversion_id="e1")
        waiting = await world.attribution.ExplainDecision(asked)
        await world.send(event(0, hashed(device(1)), "View", record_id="e1"))  # a repeat
        await world.send(event(2, device(1), "View", record_id="v2"))
        await world.decided("v2")
    async with world.worker():
        (e1,) = await world.decided("e1")
    assert waiting.state == explanation_pb2.ExplainDecisionResponse.STATE_WAITING
    assert "the first of its kind that came from this app" in waiting.summary
    assert e1.outcome == decision_pb2.OUTCOME_UNATTRIBUTED


async def test_a_shared_id_is_nobodys_by_its_hash_too(world: World) -> None:
    """Whether its hashes came before, after, or with it (A8)."""
    guest, by_hash = {"custom": "guest"}, hashed("guest", kind="custom")
    async with world.worker():
        await world.send(event(0, by_hash, "View", record_id="before"))
        (before,) = await world.decided("before")
        await crowd(world, range(1, 9), guest)
        await world.send(event(50, by_hash, "View", record_id="after"))
        await world.send(event(51, hashed("guest", "sha1", "custom"), "View", record_id="other-hash"))
        await world.send(event(52, {**guest, **by_hash}, "View", record_id="both"))
        after, other, both = await world.decided("after", "other-hash", "both")
        assert await shared_ids(world) == [("custom", "guest", 8)]
    assert len({each.device_id for each in (before, after, other, both)}) == 4
    said = [{each.kind: each.advertising_id_count for each in made.shared_ids} for made in (before, after, other, both)]
    assert said == [{}, {"custom_md5": 8}, {"custom_sha1": 8}, {"custom": 8, "custom_md5": 8}]


async def test_what_if_finds_what_was_found(world: World) -> None:
    async with world.worker():
        await world.send(click(0, device(1), record_id="k1"), click(0, device(2), record_id="k2"))
        await world.send(event(60, hashed(device(1)), record_id="e1", **ELSEWHERE))
        await world.send(event(70, {**hashed(device(2)), "idfv": "V"}, "View", record_id="v2"))
        e1, _ = await world.decided("e1", "v2")
        await world.send(event(80, {"idfv": "V"}, record_id="e2", **ELSEWHERE))
        (e2,) = await world.decided("e2")
    assert (e1.engagement_id, e2.engagement_id) == ("k1", "k2")
    request = what_if_pb2.WhatIfRequest(app_id=APP)
    request.start_time.FromSeconds(0)
    request.end_time.FromSeconds(2**33)
    parts = [part async for part in world.attribution.WhatIf(request)]
    assert sum(part.conversion_count for part in parts) == 3
    assert not [changed for part in parts for changed in part.changed]


@pytest.mark.slow
async def test_who_is_forgotten_leaves_no_hash(world: World, database: Database) -> None:
    person = traces(APP, device(1), "Tina")
    async with world.worker(jobs={"eraser": eraser_of(world).run}):
        await world.send(click(0, {"adid": device(1), "custom": "Tina"}), install(1, device(1)))
        await world.send(click(2, device(2), record_id="k2"), install(3, device(2), record_id="i2"))
        await world.send(event(4, hashed(device(1)), record_id="e1"), event(4, hashed(device(2)), record_id="e2"))
        await world.send(click(5, {"adid": device(1), "custom": "Tina"}))
        await world.send(event(6, hashed("Tina", kind="custom"), record_id="by-name"))
        await world.decided("e1", "e2", "by-name")
        during = places(await all_rows(database.admin_dsn), person)
        await forget(world, device(1))
        left = await all_rows(database.admin_dsn)
    assert {"attribution.hashed_ids.hash_key", "attribution.hashed_ids.raw_key"} <= during
    assert places(left, traces(APP, device(1))) == set()
    assert {row["conversion_id"] for row in left["attribution.decisions"]} == {"i2", "e2", "by-name"}
    assert places(left, traces(APP, device(2))) >= {"attribution.hashed_ids.raw_key", "attribution.identifiers.id_key"}


@pytest.mark.slow
async def test_what_waits_for_hashes_is_forgotten_with_its_device(world: World, database: Database) -> None:
    async with world.worker(jobs={"eraser": eraser_of(world).run, "hash_indexer": at_rest}):
        await world.send(install(0, device(1)), event(1, hashed(device(1)), record_id="e1"))
        while not await world.pool.fetchval("SELECT count(*) FROM pending_conversions"):
            await asyncio.sleep(0.01)
        forgetting = asyncio.ensure_future(forget(world, device(1)))
        await asyncio.wait([forgetting], timeout=0.3)
        assert not forgetting.done(), "whose it is is not known yet"
        forgetting.cancel()
    async with world.worker(jobs={"eraser": eraser_of(world).run}):
        await forget(world, device(1))
    left = await all_rows(database.admin_dsn)
    assert places(left, traces(APP, device(1))) == set()
    assert not left["attribution.pending_conversions"]


@pytest.mark.slow
@pytest.mark.parametrize("way", ["one worker", "two that die"])
async def test_the_hashes_of_many_are_found_however_workers_end(
    start_world: StartWorld, database: Database, way: str
) -> None:
    """Devices and clicks of before, pages of them, while more come; conversions of all of them by hash alone."""
    count = 120
    async with start_world(database) as world:
        async with world.worker():
            await world.send(*(install(n, {"adid": device(n)}, record_id=f"i{n}") for n in range(0, count, 2)))
            await world.send(*(click(60 + n, device(n).upper(), record_id=f"k{n}") for n in range(count)))
            await world.decided(f"i{count - 2}")
        conversions = [event(HOUR + n, hashed(device(n)), record_id=f"e{n}", **ELSEWHERE) for n in range(count)]

        async def send() -> None:
            for at, each in enumerate(conversions):
                await world.send(each)
                if at % 10 == 0:
                    await world.send(click(2 * HOUR, device(at), record_id=f"late-{at}"))
                    await world.send(install(HOUR + 2 * at, {"adid": device(1000 + at)}))

        sending = asyncio.ensure_future(send())
        if way == "two that die":
            for _ in range(5):
                async with world.worker(lease_s=0.5) as worker, world.worker(lease_s=0.5) as other:
                    await asyncio.wait([sending], timeout=0.15)
                    die(worker)
                    die(other)
        async with world.worker(lease_s=0.5):
            await sending
            made = await world.decided(*(f"e{n}" for n in range(count)))
            installs = await world.decided(*(f"i{n}" for n in range(0, count, 2)))
        waiting = await world.pool.fetchval("SELECT count(*) FROM pending_conversions")
        states = await world.pool.fetch("SELECT is_indexed FROM hashed_kinds")
    assert [(each.outcome, each.engagement_id) for each in made] == [(REENGAGED, f"k{n}") for n in range(count)]
    assert [each.device_id for each in made[::2]] == [each.device_id for each in installs]
    assert [each.install_known for each in made] == [True, False] * (count // 2)
    assert waiting == 0
    assert [state for (state,) in states] == [True]
