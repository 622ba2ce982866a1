"""Identity: ids that turn out to belong to one device (D7), and names tied to a device (F3)."""

import asyncio
import random
import uuid
from collections import defaultdict
from typing import Any

import pytest

from reengage.attribution.v1 import decision_pb2, device_pb2
from reengage.ingest.v1 import record_pb2
from services.attribution.decision.grouping import MAX_IDS
from services.attribution.decision.matching import device_key
from services.attribution.storage.devices import find_devices_of_keys
from tests.attribution.conftest import (
    APP,
    RE_TRACKER,
    UA_TRACKER,
    StartWorld,
    World,
    click,
    device,
    die,
    event,
    install,
    record,
)
from tests.conftest import Database

HOUR = 3600
REENGAGED = decision_pb2.OUTCOME_REENGAGED
ONE, OTHER = {"adid": device(1)}, {"android_id": "b2"}
BOTH = {**ONE, **OTHER}


async def attribution(world: World, device_id: str) -> device_pb2.GetDeviceAttributionResponse:
    request = device_pb2.GetDeviceAttributionRequest(app_id=APP, device_id=device_id)
    return await world.attribution.GetDeviceAttribution(request)


async def decisions(world: World) -> dict[str, list[bytes]]:
    """Returns all decisions, by conversion, in their order."""
    found = defaultdict(list)
    for row in await world.pool.fetch("SELECT conversion_id, decision FROM decisions ORDER BY lane, sequence"):
        found[row["conversion_id"]].append(bytes(row["decision"]))
    return found


def link(at_s: int, who: dict[str, str], **fields: Any) -> record_pb2.Record:
    identities = fields.pop("identities", {"email": "a@example.com"})
    return record(at_s, who, identity_link=record_pb2.IdentityLink(identities=identities), **fields)


@pytest.mark.parametrize("known_first", ["the older install's", "the younger install's"])
async def test_the_older_install_wins_and_both_histories_stay(world: World, known_first: str) -> None:
    """Whichever of the two devices is known longer, and so keeps its id."""
    installs = [install(60, ONE, record_id="older"), install(2 * HOUR, OTHER, record_id="younger")]
    async with world.worker():
        await world.send(click(0, ONE, UA_TRACKER, record_id="k1"))
        for each in installs if known_first == "the older install's" else reversed(installs):
            await world.send(each)
        await world.send(click(4 * HOUR, OTHER, record_id="k2"), event(5 * HOUR, OTHER, record_id="won"))
        older, younger, won = await world.decided("older", "younger", "won")
        before = await decisions(world)
        await world.send(event(6 * HOUR, BOTH, "Login", record_id="meet"))
        await world.send(event(HOUR, OTHER, "View", record_id="late"), install(7 * HOUR, OTHER, record_id="third"))
        meet, late, third = await world.decided("meet", "late", "third")
        while late.version == 1:
            (late,) = await world.decided("late")
        after = await decisions(world)
        shown = [await attribution(world, each) for each in (device(1), "b2", older.device_id, younger.device_id)]
    assert older.outcome == decision_pb2.OUTCOME_ATTRIBUTED
    assert younger.outcome == decision_pb2.OUTCOME_ORGANIC, "it stays an install of its own"
    assert {each: after[each] for each in before} == before, "no decision changes"
    assert {each for each, versions in after.items() if len(versions) > 1} == {"late"}
    first = older if known_first == "the older install's" else younger
    assert {meet.device_id, late.device_id, third.device_id} == {first.device_id}
    for answer in shown:
        assert answer.device_id == first.device_id
        assert (answer.install.conversion_id, answer.install.tracker_id) == ("older", UA_TRACKER)
        assert (answer.current.conversion_id, answer.current.tracker_id) == ("won", RE_TRACKER)
        assert [each.conversion_id for each in answer.history] == ["older", "younger", "won"]
    assert won.outcome == decision_pb2.OUTCOME_REENGAGED
    assert late.outcome == decision_pb2.OUTCOME_UNATTRIBUTED, "at its own time nobody knew of the other device (D12)"
    assert third.outcome == decision_pb2.OUTCOME_DUPLICATE


async def test_a_reengagement_leaves_the_installs_own_attribution(world: World) -> None:
    """D7, before and after devices meet."""
    async with world.worker():
        await world.send(click(0, ONE, UA_TRACKER), install(60, ONE, record_id="i1"))
        await world.send(click(2 * HOUR, ONE), event(3 * HOUR, ONE, record_id="e1"))
        await world.decided("i1", "e1")
        before = await attribution(world, device(1))
        await world.send(event(4 * HOUR, BOTH, "Login", record_id="meet"))
        await world.decided("meet")
        after = await attribution(world, "b2")
    assert before == after
    assert (after.install.tracker_id, after.current.tracker_id) == (UA_TRACKER, RE_TRACKER)


def meetings(seed: int) -> list[record_pb2.Record]:
    """Returns traffic of 12 people with 4 ids each, in an order in which devices meet in chains and late."""
    pick = random.Random(seed)
    records = []
    for number in range(160):
        person = pick.randrange(12)
        kinds = pick.sample(("adid", "android_id", "idfv", "custom"), pick.choice((1, 1, 1, 2, 3)))
        ids = {kind: device(1000 * person + len(kind)) for kind in kinds}
        at_s = pick.randrange(20 * HOUR)
        made = pick.choice(
            (
                install(at_s, ids),
                click(at_s, ids),
                click(at_s, ids),
                event(at_s, ids),
                event(at_s, ids),
                event(at_s, ids, "View"),
                link(at_s, ids, identities={"n": str(number)}),
            )
        )
        made.record_id = f"r{number}"
        records.append(made)
    return records


OF_A_VERSION = ("version", "because", "late_record_id", "candidates")
"""The fields that depend on when a version was decided (D12)."""


async def outcome(world: World) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Returns every decision and every device, without what differs from run to run: our ids, and times of receipt."""
    made = {}
    for row in await world.pool.fetch("SELECT decision FROM newest_decisions ORDER BY lane, sequence"):
        decision = decision_pb2.Decision.FromString(row["decision"])
        for name in ("device_id", "receive_time", "decide_time", "settings_revision", *OF_A_VERSION):
            decision.ClearField(name)  # type: ignore[arg-type]
        assert decision.conversion_id not in made, "decided twice"
        made[decision.conversion_id] = decision.SerializeToString(deterministic=True)
    devices = {}
    for row in await world.pool.fetch("SELECT ids, history, identities FROM devices WHERE merged_into IS NULL"):
        ids = sorted((kind, value) for kind, values in row["ids"].items() for value in set(values))
        for attribution in row["history"]["attributions"]:
            attribution[1] = None  # when it was received
        devices[str(ids)] = (row["history"], row["identities"])
    return made, devices


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.slow
async def test_devices_that_meet_lose_and_double_nothing_however_records_come(
    start_world: StartWorld, database: Database, seed: int
) -> None:
    """One by one, all in one batch, or with workers that die: the same decisions, the same devices."""
    records = meetings(seed)
    to_decide = [each.record_id for each in records if each.WhichOneof("kind") != "click"]
    results = []
    for way in ("one by one", "at once", "dying"):
        name = f"{database.name}_{way.replace(' ', '_')}"
        await database.postgres.create_database(name, template=database.name)
        async with start_world(Database(postgres=database.postgres, name=name)) as world:
            # Clicks first: what was received before a conversion depends on the way otherwise.
            await world.send(*(each for each in records if each.WhichOneof("kind") == "click"))
            conversions = [each for each in records if each.WhichOneof("kind") != "click"]
            if way == "one by one":
                async with world.worker():
                    for each in conversions:
                        await world.send(each)
                        await world.decided(each.record_id)
                    await settled(world)
            elif way == "at once":
                await world.send(*conversions)
                async with world.worker():
                    await world.decided(*to_decide)
                    await settled(world)
            else:
                sending = asyncio.ensure_future(_send_slowly(world, conversions))
                for _ in range(4):
                    async with world.worker(lease_s=0.5) as worker:
                        seen = await world.pool.fetchval("SELECT count(*) FROM decisions")
                        while (
                            await world.pool.fetchval("SELECT count(*) FROM decisions") == seen and not sending.done()
                        ):
                            await asyncio.sleep(0.002)
                        die(worker)
                await sending
                async with world.worker(lease_s=0.5):
                    await world.decided(*to_decide)
                    await settled(world)
            results.append(await outcome(world))
            assert await world.pool.fetchval("SELECT count(*) > 3 FROM devices WHERE merged_into IS NOT NULL")
    assert sorted(results[0][0]) == sorted(to_decide)
    assert results[1] == results[0]
    assert results[2] == results[0]


async def settled(world: World) -> None:
    """Waits until what late records change is decided again (D12)."""
    while await world.pool.fetchval("SELECT count(*) FROM late_arrivals"):
        await asyncio.sleep(0.01)


async def _send_slowly(world: World, records: list[record_pb2.Record]) -> None:
    for start in range(0, len(records), 5):
        await world.send(*records[start : start + 5])
        await asyncio.sleep(0)


async def test_a_link_needs_a_device_that_came_before_it(world: World) -> None:
    """Refused stays refused, whatever comes later, in the same batch or another (F3). Clicks make no device."""
    await world.send(click(0, ONE))
    await world.send(
        link(1, ONE, record_id="too-early"),
        event(2, ONE, "View", record_id="v1"),
        link(3, ONE, record_id="after-an-event", identities={"phone": "1"}),
        link(4, OTHER, record_id="unknown"),
    )
    async with world.worker():
        await world.send(install(5, OTHER, record_id="i1"), link(6, OTHER, record_id="after-an-install"))
        early, after_event, unknown, after_install = await world.decided(
            "too-early", "after-an-event", "unknown", "after-an-install"
        )
        one, other = await attribution(world, device(1)), await attribution(world, "b2")
    for refused in (early, unknown):
        assert (refused.outcome, refused.reason) == (decision_pb2.OUTCOME_REFUSED, decision_pb2.REASON_DEVICE_NOT_KNOWN)
    assert after_event.outcome == after_install.outcome == decision_pb2.OUTCOME_LINKED
    assert dict(one.identities) == {"phone": "1"}
    assert dict(other.identities) == {"email": "a@example.com"}


async def test_identities_of_devices_that_meet_are_joined(world: World) -> None:
    """By a link that names both, too. Of one name that of the device known longer stays; a later link replaces it."""
    async with world.worker():
        await world.send(install(0, ONE), install(1, OTHER))
        await world.send(link(2, ONE, identities={"email": "one", "a": "1"}, record_id="l1"))
        await world.send(link(3, OTHER, identities={"email": "other", "b": "2"}, record_id="l2"))
        await world.decided("l1", "l2")
        await world.send(link(4, BOTH, identities={"c": "3"}, record_id="l3"))
        await world.decided("l3")
        joined = await attribution(world, "b2")
        await world.send(link(5, OTHER, identities={"email": "new"}, record_id="l4"))
        await world.decided("l4")
        replaced = await attribution(world, device(1))
    assert dict(joined.identities) == {"email": "one", "a": "1", "b": "2", "c": "3"}
    assert dict(replaced.identities) == {"email": "new", "a": "1", "b": "2", "c": "3"}


async def test_ids_that_meet_later_make_one_device(world: World) -> None:
    """Two lanes: the install is known by one id, a click by another, and a third record ties them together."""
    first, second = {"adid": device(1)}, {"android_id": "a1b2c3"}
    async with world.worker():
        await world.send(install(0, first, record_id="i1"), event(10, second, "Other", record_id="o1"))
        await world.send(event(20, {**first, **second}, "Login", record_id="o2"))
        await world.send(click(HOUR, first, record_id="k1"))
        await world.send(event(2 * HOUR, second, record_id="e1"))
        i1, o1, o2, e1 = await world.decided("i1", "o1", "o2", "e1")
        answer = await world.attribution.GetDeviceAttribution(
            device_pb2.GetDeviceAttributionRequest(app_id=APP, device_id="a1b2c3")
        )
    assert i1.device_id != o1.device_id
    assert o2.device_id == e1.device_id == i1.device_id == answer.device_id
    assert (e1.outcome, e1.engagement_id, e1.install_known) == (REENGAGED, "k1", True)
    assert (answer.install.conversion_id, answer.current.conversion_id) == ("i1", "e1")


async def test_identity_links_need_a_known_device(world: World) -> None:
    def link(at_s: int, who: str, **fields: Any) -> record_pb2.Record:
        return record(at_s, who, identity_link=record_pb2.IdentityLink(identities={"email": "x"}), **fields)

    async with world.worker():
        await world.send(link(0, device(1), record_id="l1"))
        await world.send(install(1, device(1), record_id="i1"))
        await world.send(link(2, device(1), record_id="l2"))
        l1, l2 = await world.decided("l1", "l2")
        answer = await world.attribution.GetDeviceAttribution(
            device_pb2.GetDeviceAttributionRequest(app_id=APP, device_id=device(1))
        )
    assert (l1.outcome, l1.reason) == (decision_pb2.OUTCOME_REFUSED, decision_pb2.REASON_DEVICE_NOT_KNOWN)
    assert l2.outcome == decision_pb2.OUTCOME_LINKED
    assert dict(answer.identities) == {"email": "x"}


async def test_an_event_that_is_called_like_an_identity_link_is_an_event(world: World) -> None:
    async with world.worker():
        await world.send(event(0, device(1), "_identity_link", record_id="e1"))
        await world.send(event(1, device(1), "Other", record_id="e2"))
        e1, e2 = await world.decided("e1", "e2")
    assert (e1.outcome, e1.reason) == (decision_pb2.OUTCOME_UNATTRIBUTED, decision_pb2.REASON_EVENT_NOT_SELECTED)
    assert e1.device_id == e2.device_id


@pytest.mark.parametrize(("kind", "value"), [("imei", "490154203237518"), ("mac_sha1", "a" * 40), ("oaid", " 0F-1 ")])
async def test_a_device_is_found_by_any_id_it_is_known_by(world: World, kind: str, value: str) -> None:
    async with world.worker():
        await world.send(event(0, {kind: value}, "View", record_id="e1"))
        await world.send(event(1, {kind: value.strip()}, "View", record_id="e2"))
        e1, e2 = await world.decided("e1", "e2")
        request = device_pb2.GetDeviceAttributionRequest(app_id=APP, device_id=value.strip())
        answer = await world.attribution.GetDeviceAttribution(request)
    assert answer.device_id == e1.device_id == e2.device_id


async def test_the_devices_that_an_engagement_names_are_found_by_its_keys(world: World) -> None:
    """Whatever the kind that an id came under; merged ones as what they became; nobody's keys lead nowhere."""
    async with world.worker():
        await world.send(event(0, ONE, "View", record_id="e1"), event(1, OTHER, "View", record_id="e2"))
        await world.send(event(2, {"idfa": device(1).upper()}, "View", record_id="e3"))
        one, other, third = (each.device_id for each in await world.decided("e1", "e2", "e3"))

        async def found(*values: str, app_id: str = APP) -> dict[str, set[str]]:
            keys = {device_key(app_id, value): value for value in values}
            async with world.pool.acquire() as connection:
                devices = await find_devices_of_keys(connection, keys)
            return {keys[key]: {str(each) for each in ids} for key, ids in devices.items()}

        assert await found(device(1), "b2", device(9)) == {device(1): {one, third}, "b2": {other}}
        assert await found("b2", app_id="other") == await found() == {}
        await world.send(event(3, BOTH, "View", record_id="meet"))
        await world.decided("meet")
        assert await found("b2") == {"b2": {one}}


@pytest.mark.parametrize("is_late", [False, True], ids=["the click comes first", "the click comes late"])
async def test_devices_that_share_an_id_do_not_grow_without_end(world: World, is_late: bool) -> None:
    """A sender's `guest` ties them all together: each record read, wrote and looked up the ids of all before it.

    Nothing tells the devices apart: no advertising id comes with it (A8).
    """
    guest = {"custom": "guest"}
    async with world.worker():
        await world.send(event(0, {"oaid": "abc1"}, "View", record_id="older"))
        for n in range(30):
            await world.send(event(n, {**guest, "idfv": device(n)}, "View", record_id=f"v{n}"))
        oldest = {"idfv": device(0)}
        clicked = click(100, device(0), record_id="k0")
        conversions = [event(110, guest, record_id="by-guest"), event(111, oldest, record_id="by-itself")]
        await world.send(*([] if is_late else [clicked]), *conversions)
        await world.decided("by-guest", "by-itself")
        if is_late:
            await world.send(clicked)
            while (await world.decided("by-itself"))[0].version == 1:
                await asyncio.sleep(0.01)
        await settled(world)
        await world.send(event(120, {**guest, "oaid": "abc1"}, "View", record_id="merged"))
        await world.send(event(130, oldest, "View", record_id="after"))
        older, *_, by_guest, by_itself, merged, after = await world.decided(
            "older", "v29", "by-guest", "by-itself", "merged", "after"
        )
    assert by_guest.device_id == by_itself.device_id != older.device_id
    assert (by_guest.outcome, by_itself.engagement_id) == (decision_pb2.OUTCOME_UNATTRIBUTED, "k0")
    assert merged.device_id == after.device_id == older.device_id, "an id of old leads on, merged or not"
    ids = await world.pool.fetchval("SELECT ids FROM devices WHERE device_id = $1", uuid.UUID(merged.device_id))
    assert len(ids["idfv"]) == MAX_IDS
