"""Shared ids (A8): an id that came with more than 5 advertising ids is nobody's from then on."""

import asyncio
from collections.abc import Mapping

import grpc
import pytest
from prometheus_client import REGISTRY

from libs.errors import from_rpc_error
from libs.pages import encode_token
from reengage.attribution.v1 import decision_pb2, device_pb2, erasure_pb2, explanation_pb2, shared_id_pb2
from reengage.ingest.v1 import record_pb2
from services.attribution.decision.matching import device_key
from services.attribution.decision.shared_ids import MAX_COUNTED, count_of, forgetting, is_shared, meeting
from services.attribution.jobs.erasure import Eraser, EraserConfig
from tests.attribution.conftest import APP, World, click, device, die, event, install, record
from tests.conftest import Database
from tests.traces import all_rows, places, traces

HOUR = 3600
GUEST = {"custom": "guest"}
KEYS = [device_key(APP, device(number)) for number in range(1, 200)]


def test_an_advertising_id_counts_once() -> None:
    met = b""
    for number, key in enumerate(KEYS[:6], start=1):
        assert not is_shared(met)
        met = meeting(meeting(met, [key]), [key, KEYS[0]])
        assert count_of(met) == number
    assert is_shared(met)
    assert count_of(forgetting(met, [KEYS[0], KEYS[99]])) == 5


def test_what_is_kept_of_an_id_is_bounded() -> None:
    met = meeting(b"", KEYS)
    assert count_of(met) == MAX_COUNTED
    assert meeting(met, KEYS[MAX_COUNTED:]) == met
    assert len(met) == 8 * MAX_COUNTED


async def shared_ids(world: World, *, app_id: str = APP, size: int = 100) -> list[tuple[str, str, int]]:
    """Returns all shared ids that are listed, page by page."""
    found: list[tuple[str, str, int]] = []
    token = ""
    while True:
        request = shared_id_pb2.ListSharedIdsRequest(app_id=app_id, page_size=size, page_token=token)
        page = await world.attribution.ListSharedIds(request)
        assert len(page.shared_ids) <= size
        found += [(each.kind, each.value, each.advertising_id_count) for each in page.shared_ids]
        if not (token := page.next_page_token):
            return found


async def crowd(world: World, people: range, ids: Mapping[str, str] = GUEST) -> list[decision_pb2.Decision]:
    """Has people use an app that sends the same ids for all of them, one after the other."""
    names = [f"{'-'.join(ids)}-{number}" for number in people]
    for number, name in zip(people, names, strict=True):
        await world.send(event(number, {**ids, "adid": device(number)}, "View", record_id=name))
    return await world.decided(*names)


def eraser_of(world: World) -> Eraser:
    config = EraserConfig(calls_end_s=0, look_interval_s=0.02, wait_interval_s=0.02)
    return Eraser(pool=world.pool, ingest=world.ingest, postback=world.postback, config=config)


async def forget(world: World, device_id: str) -> None:
    """Has a device forgotten, and waits until it is."""
    begun = await world.attribution.ForgetDevice(erasure_pb2.ForgetDeviceRequest(app_id=APP, device_id=device_id))
    wanted = erasure_pb2.GetErasureRequest(app_id=APP, erasure_id=begun.erasure.erasure_id)
    while (await world.attribution.GetErasure(wanted)).erasure.state != erasure_pb2.Erasure.STATE_DONE:
        await asyncio.sleep(0.01)


async def test_an_id_of_many_is_nobodys_from_the_sixth_on(world: World) -> None:
    before = REGISTRY.get_sample_value("attribution_shared_ids_total", {"kind": "custom"}) or 0
    async with world.worker():
        await world.send(click(0, GUEST, record_id="kg"), click(0, device(6), record_id="k6"))
        first = await crowd(world, range(1, 6))
        assert await shared_ids(world) == []
        known_by_guest = await world.send(event(HOUR, GUEST, record_id="by-guest"))
        (won,) = await world.decided(*known_by_guest)
        rest = await crowd(world, range(6, 9))
        elsewhere = {"ip_address": "198.51.100.9"}
        await world.send(event(2 * HOUR, GUEST, record_id="alone", **elsewhere))
        await world.send(event(2 * HOUR, device(6), record_id="by-6", **elsewhere))
        await world.send(event(2 * HOUR, device(1), "View", record_id="v1"))
        await world.send(event(2 * HOUR, device(5), "View", record_id="v5"))
        alone, by_6, one, five = await world.decided("alone", "by-6", "v1", "v5")
        listed = await shared_ids(world)
        explained = await world.attribution.ExplainDecision(
            explanation_pb2.ExplainDecisionRequest(app_id=APP, conversion_id="custom-8")
        )
    assert {each.device_id for each in first} == {won.device_id}
    assert (won.engagement_id, len(won.shared_ids)) == ("kg", 0)
    assert len({each.device_id for each in (*first[:1], *rest, alone)}) == 5, "it joins no devices"
    assert alone.reason == decision_pb2.REASON_NO_CANDIDATE, "it matches nothing"
    assert by_6.engagement_id == "k6", "the others of its records are used"
    assert one.device_id == five.device_id == won.device_id, "what was joined stays joined"
    assert [(each.kind, each.advertising_id_count) for each in rest[-1].shared_ids] == [("custom", 8)]
    assert [(each.kind, each.advertising_id_count) for each in alone.shared_ids] == [("custom", 8)]
    assert explained.sentences == ["Its device id of kind custom is shared by 8 advertising ids, so it was not used."]
    assert listed == [("custom", "guest", 8)]
    assert REGISTRY.get_sample_value("attribution_shared_ids_total", {"kind": "custom"}) == before + 1


@pytest.mark.parametrize(
    ("ids", "is_nobodys"),
    [
        ({"android_id": "build-id"}, True),
        ({"kochava_device_id": "KD"}, True),
        ({"custom_md5": "0123456789abcdef0123456789abcdef"}, True),
        ({"oaid": "one-for-all"}, False),
        ({"idfa_sha1": "a" * 40}, False),
    ],
    ids=str,
)
async def test_an_advertising_id_is_never_shared(world: World, ids: dict[str, str], is_nobodys: bool) -> None:
    async with world.worker():
        made = await crowd(world, range(1, 8), ids)
        listed = await shared_ids(world)
    assert len({each.device_id for each in made}) == (3 if is_nobodys else 1)
    assert [each[:2] for each in listed] == (list(ids.items()) if is_nobodys else [])


async def test_spellings_and_kinds_of_one_advertising_id_count_once(world: World) -> None:
    """An app's id is shared when people differ, not when senders do."""
    ids = [{"adid": device(1)}, {"adid": device(1).upper()}, {"idfa": device(1)}, {"adid": device(1).replace("-", "")}]
    ids += [{"idfv": device(n)} for n in range(2, 9)] + [{"adid_md5": f"{n:032x}"} for n in range(2, 9)]
    async with world.worker():
        await world.send(*(event(0, {**GUEST, **each}, "View", record_id=f"e{n}") for n, each in enumerate(ids)))
        made = await world.decided(*(f"e{n}" for n in range(len(ids))))
        assert await shared_ids(world) == []
    assert len({each.device_id for each in made}) == 1


async def test_clicks_make_no_id_a_shared_one(world: World) -> None:
    """Anyone can make a click."""
    async with world.worker():
        await world.send(*(click(n, {**GUEST, "adid": device(n)}) for n in range(1, 10)))
        await world.send(event(HOUR, GUEST, record_id="e1"))
        (e1,) = await world.decided("e1")
        assert await shared_ids(world) == []
    assert e1.outcome == decision_pb2.OUTCOME_REENGAGED


async def test_an_identity_link_by_a_shared_id_alone_knows_no_device(world: World) -> None:
    link = record_pb2.IdentityLink(identities={"email": "x"})
    async with world.worker():
        await crowd(world, range(1, 6))
        await world.send(record(50, {**GUEST, "adid": device(99)}, identity_link=link, record_id="sixth"))
        await world.send(record(51, GUEST, identity_link=link, record_id="later"))
        sixth, later = await world.decided("sixth", "later")
        assert await shared_ids(world) == [("custom", "guest", 6)]
        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            await world.attribution.GetDeviceAttribution(
                device_pb2.GetDeviceAttributionRequest(app_id=APP, device_id="guest")
            )
    for each in sixth, later:
        assert each.outcome == decision_pb2.OUTCOME_REFUSED
        assert each.reason == decision_pb2.REASON_DEVICE_NOT_KNOWN
    assert from_rpc_error(unknown.value).reason == "DEVICE_NOT_FOUND"
    assert "shared" in from_rpc_error(unknown.value).message


async def test_many_more_are_counted_up_to_a_bound(world: World) -> None:
    async with world.worker():
        await world.send(*(event(n, {**GUEST, "adid": device(n)}, "View", record_id=f"v{n}") for n in range(120)))
        (*_, last) = await world.decided(*(f"v{n}" for n in range(120)))
        listed = await shared_ids(world)
        met = await world.pool.fetchval("SELECT octet_length(met) FROM identifiers WHERE kind = 'custom'")
        explained = await world.attribution.ExplainDecision(
            explanation_pb2.ExplainDecisionRequest(app_id=APP, conversion_id="v119")
        )
    assert listed == [("custom", "guest", MAX_COUNTED)]
    assert last.shared_ids[0].advertising_id_count == MAX_COUNTED
    assert met == 8 * MAX_COUNTED
    assert "100 or more advertising ids" in explained.sentences[0]


async def test_shared_ids_are_listed_in_pages_the_newest_first(world: World) -> None:
    async with world.worker():
        for kind in ("custom", "android_id", "idfv", "imei"):
            await crowd(world, range(1, 7), {kind: "constant"})
        listed = await shared_ids(world, size=1)
        assert await shared_ids(world) == listed
        assert await shared_ids(world, app_id="other") == []
    assert [kind for kind, _, _ in listed] == ["imei", "idfv", "android_id", "custom"]


@pytest.mark.parametrize("token", ["nonsense", encode_token(1), encode_token(1, "no hex", "custom")])
async def test_a_token_of_somebody_else_lists_no_shared_ids(world: World, token: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as wrong:
        await world.attribution.ListSharedIds(shared_id_pb2.ListSharedIdsRequest(app_id=APP, page_token=token))
    assert [(v.field, v.reason) for v in from_rpc_error(wrong.value).violations] == [("page_token", "INVALID_TOKEN")]


@pytest.mark.slow
async def test_workers_that_die_count_nothing_twice_and_forget_nothing(world: World) -> None:
    """Two at a time, one of which is killed again and again while each person comes several times."""
    people = [event(n, {**GUEST, "adid": device(n % 31)}, "View", record_id=f"v{n}") for n in range(93)]

    async def send() -> None:
        for each in people:
            await world.send(each)

    sending = asyncio.ensure_future(send())
    async with world.worker(lease_s=0.5):
        for _ in range(4):
            async with world.worker(lease_s=0.5) as other:
                seen = await world.pool.fetchval("SELECT count(*) FROM decisions")
                while await world.pool.fetchval("SELECT count(*) FROM decisions") == seen and not sending.done():
                    await asyncio.sleep(0.002)
                die(other)
        await sending
        made = await world.decided(*(f"v{n}" for n in range(93)))
        assert await shared_ids(world) == [("custom", "guest", 31)]
    counts = [each.shared_ids[0].advertising_id_count if each.shared_ids else 0 for each in made]
    assert counts == [0] * 5 + list(range(6, 32)) + [31] * 62
    devices = {number: {made[at].device_id for at in range(number, 93, 31)} for number in range(31)}
    assert {len(each) for each in devices.values()} == {1}
    assert len(set.union(*devices.values())) == 27, "the first five became one, and the others none of it"


@pytest.mark.slow
async def test_forgetting_one_of_many_forgets_no_other(world: World, database: Database) -> None:
    """Nobody's id is no trace of anybody; who shares it is not told any more of who is forgotten."""
    async with world.worker(jobs={"eraser": eraser_of(world).run}):
        await crowd(world, range(1, 9))
        await world.send(click(20, {**GUEST, "adid": device(8)}, record_id="k8"), click(21, GUEST, record_id="kg"))
        await world.send(click(22, GUEST, record_id="given-back"))
        await world.send(event(30, {**GUEST, "adid": device(8)}, "View", record_id="v8"))
        await world.send(
            install(31, {**GUEST, "adid": device(8)}, install={"click_record_id": "given-back"}, record_id="i8")
        )
        await world.decided("v8", "i8")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await world.attribution.ForgetDevice(erasure_pb2.ForgetDeviceRequest(app_id=APP, device_id="guest"))
        await forget(world, device(8))
        assert await shared_ids(world) == [("custom", "guest", 7)]
        left = await all_rows(database.admin_dsn)
        again = await crowd(world, range(8, 10), {**GUEST, "idfv": "later"})
    assert [(v.field, v.reason) for v in from_rpc_error(refused.value).violations] == [("device_id", "INVALID_ID")]
    assert places(left, traces(APP, device(8))) == set()
    conversions = {row["conversion_id"] for row in left["attribution.decisions"]}
    assert conversions == {f"custom-{number}" for number in range(1, 8)}
    engagements = {row["engagement_id"] for row in left["attribution.engagements"]}
    assert engagements == {"kg"}, "who gives a click back made it, though it carries nobody's id"
    logged = {record_pb2.Record.FromString(row["record"]).record_id for row in left["ingest.log"]}
    assert logged == conversions | engagements
    assert all(each.shared_ids for each in again), "nobody's stays nobody's"


@pytest.mark.slow
async def test_what_came_by_a_shared_id_alone_goes_with_its_device(world: World, database: Database) -> None:
    """It was of that device before the id was nobody's."""
    async with world.worker(jobs={"eraser": eraser_of(world).run}):
        await crowd(world, range(1, 2))
        await world.send(event(9, GUEST, "View", record_id="by-guest"))
        await world.decided("by-guest")
        await crowd(world, range(2, 9))
        await forget(world, device(1))
        left = await all_rows(database.admin_dsn)
    logged = {record_pb2.Record.FromString(row["record"]).record_id for row in left["ingest.log"]}
    assert logged == {row["conversion_id"] for row in left["attribution.decisions"]}
    assert logged == {"custom-6", "custom-7", "custom-8"}
