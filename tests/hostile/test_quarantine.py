"""Tests that what cannot be processed is set aside with its reason, listed and retryable, and the rest goes on."""

from collections.abc import Callable, Sequence
from typing import Any

import asyncpg
import grpc
import pytest
from prometheus_client import REGISTRY

from libs.db import Pool
from libs.domain.record_sizes import MAX_STORED_RECORD_BYTES
from reengage.attribution.v1 import decision_pb2, erasure_pb2, quarantine_pb2, reattribution_pb2
from services.attribution.decision.decide import decide
from services.attribution.live import indexer
from services.attribution.live.quarantine import MAX_TIMEOUTS, in_halves, is_circumstance
from services.attribution.redecide.replay import Replay
from services.attribution.storage import erasures
from services.attribution.wire import records
from services.attribution.wiring import slow_jobs
from tests.attribution.conftest import APP, World, claimed, click, device, event, install
from tests.support.eventually import eventually

HOUR = 3600
Q = quarantine_pb2


class Poison:
    """A poison: whatever names `poison` fails until it is healed."""

    def __init__(self) -> None:
        self.is_healed = False
        self.error: Exception = ValueError("poison\0" + "x" * 1_000)

    def check(self, *names: str) -> None:
        if not self.is_healed and any(name.startswith("poison") for name in names):
            raise self.error


@pytest.fixture
def poison() -> Poison:
    return Poison()


@pytest.fixture
def poisoned_deciding(poison: Poison, monkeypatch: pytest.MonkeyPatch) -> Poison:
    """Has deciding a conversion fail."""

    def fails(conversion: Any, *args: Any, **options: Any) -> Any:
        poison.check(conversion.conversion_id)
        return decide(conversion, *args, **options)

    monkeypatch.setattr("services.attribution.live.batch.decide", fails)
    return poison


async def listed(world: World, **filters: Any) -> list[Q.QuarantinedItem]:
    response = await world.attribution.ListQuarantined(Q.ListQuarantinedRequest(**filters))
    return list(response.items)


async def until_listed(world: World, count: int = 1, tries: int = 1) -> list[Q.QuarantinedItem]:
    async def are_there() -> list[Q.QuarantinedItem] | None:
        found = await listed(world)
        return found if len(found) == count and all(each.try_count == tries for each in found) else None

    found = await eventually(are_there)
    assert found is not None
    return found


async def retry(world: World, **wanted: Any) -> None:
    await world.attribution.RetryQuarantined(Q.RetryQuarantinedRequest(filter=Q.QuarantineFilter(**wanted)))


async def until_none_is_listed(world: World) -> None:
    async def is_none() -> bool:
        return not await listed(world)

    await eventually(is_none)


async def test_a_conversion_that_cannot_be_decided_is_set_aside_alone(world: World, poisoned_deciding: Poison) -> None:
    counted = {"work": "DECIDE", "reason": "FAILED"}
    before = REGISTRY.get_sample_value("attribution_quarantined_total", counted) or 0.0
    many = [event(n, device(n), "View", record_id="poison-7" if n == 7 else f"e{n}") for n in range(40)]
    async with world.worker():
        ids = await world.send(*many)
        await world.decided(*(each for each in ids if each != "poison-7"))
        (item,) = await until_listed(world)
        assert (item.app_id, item.record_id, item.work) == (APP, "poison-7", Q.QUARANTINE_WORK_DECIDE)
        assert (item.reason, item.error[:18], len(item.error)) == (
            Q.QUARANTINE_REASON_FAILED,
            "ValueError: poison",
            500,
        )
        await retry(world, item_ids=[item.item_id])
        (again,) = await until_listed(world, tries=2)
        assert (again.item_id, again.retrying) == (item.item_id, False)
        poisoned_deciding.is_healed = True
        await retry(world, app_id=APP, work=Q.QUARANTINE_WORK_DECIDE)
        await world.decided("poison-7")
        await until_none_is_listed(world)
        await eventually(lambda: _told(world, 40))
    assert await world.pool.fetchval("SELECT count(*) FROM decisions") == 40
    assert REGISTRY.get_sample_value("attribution_quarantined_total", counted) == before + 1


async def _told(world: World, count: int) -> bool:
    return len(world.received.conversions) == count


async def test_a_late_install_out_of_quarantine_decides_again_what_came_after_it(
    world: World, poisoned_deciding: Poison
) -> None:
    """As any install that is late (D12)."""
    async with world.worker():
        await world.send(click(0, device(1), "ua", record_id="k1"))
        await world.send(install(60, device(1), record_id="poison"), event(120, device(1), "View", record_id="e1"))
        (e1,) = await world.decided("e1")
        assert not e1.install_known
        await until_listed(world)
        poisoned_deciding.is_healed = True
        await retry(world, app_id=APP)

        async def is_decided_again() -> bool:
            (newest,) = await world.decided("e1")
            return newest.because == decision_pb2.BECAUSE_LATE_INSTALL and newest.install_known

        await eventually(is_decided_again)
        (poison,) = await world.decided("poison")
    assert poison.tracker_id == "ua"


async def test_a_conversion_that_waited_keeps_its_answers(world: World, poisoned_deciding: Poison) -> None:
    await world.received.trigger(("Purchase", "acme"))
    for conversion_id in ("poison", "e2"):
        await world.received.answer(conversion_id, claimed("acme", HOUR - 60))
    async with world.worker():
        await world.send(event(HOUR, device(1), record_id="poison"), event(HOUR, device(2), record_id="e2"))
        await world.decided("e2")
        await until_listed(world)
        await world.received.answer("poison")
        poisoned_deciding.is_healed = True
        await retry(world, app_id=APP)
        (decided,) = await world.decided("poison")
    assert decided.network_id == "acme"
    assert not await world.pool.fetchval("SELECT count(*) FROM pending_conversions")


async def test_an_engagement_that_cannot_be_indexed_wins_once_it_can(
    world: World, poison: Poison, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = records.index_rows

    def fails(logged: Any, *args: Any, **options: Any) -> Any:
        poison.check(*(each.record.record_id for each in logged))
        return rows(logged, *args, **options)

    monkeypatch.setattr(indexer, "index_rows", fails)
    async with world.worker():
        await world.send(*(click(n, device(n), record_id=f"k{n}") for n in range(30)))
        await world.send(click(30, device(31), record_id="poison"))
        await world.send(*(event(HOUR, device(n), record_id=f"e{n}") for n in (3, 31)))
        e3, e31 = await world.decided("e3", "e31")
        assert (e3.engagement_id, e31.engagement_id) == ("k3", "")
        (item,) = await until_listed(world)
        assert item.work == Q.QUARANTINE_WORK_INDEX
        await retry(world, reason=Q.QUARANTINE_REASON_FAILED)

        async def has_won() -> bool:
            (newest,) = await world.decided("e31")
            return newest.engagement_id == "poison"

        await eventually(has_won)
        await until_none_is_listed(world)


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (b"\xff\xff\xff", Q.QUARANTINE_REASON_UNPARSABLE),
        (bytes(MAX_STORED_RECORD_BYTES + 1), Q.QUARANTINE_REASON_TOO_LARGE),
    ],
    ids=["no record", "too large a record"],
)
async def test_an_entry_without_a_record_is_set_aside(
    world: World, broken: bytes, reason: Q.QuarantineReason.ValueType
) -> None:
    await world.send(click(0, device(1), record_id="k0"), event(0, device(2), "View", record_id="e0"))
    await world.log_pool.execute("UPDATE log SET record = $1", broken)
    await world.send(click(1, device(1), record_id="k1"), event(HOUR, device(1), record_id="e1"))
    async with world.worker():
        (e1,) = await world.decided("e1")
        found = await until_listed(world, 2)
    assert e1.engagement_id == "k1"
    assert {each.work for each in found} == {Q.QUARANTINE_WORK_INDEX, Q.QUARANTINE_WORK_DECIDE}
    assert {each.reason for each in found} == {reason}


@pytest.mark.parametrize(
    "code", [grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.INTERNAL], ids=lambda code: code.name
)
async def test_a_decision_that_postback_refuses_holds_up_no_other(world: World, code: grpc.StatusCode) -> None:
    world.received.refused["poison"] = code
    async with world.worker():
        await world.send(*(event(n, device(n), "View", record_id="poison" if n == 3 else f"e{n}") for n in range(9)))
        (item,) = await until_listed(world)
        assert (item.work, item.reason) == (Q.QUARANTINE_WORK_RELAY, Q.QUARANTINE_REASON_REFUSED)
        await world.send(event(99, device(1), "View", record_id="last"))
        await eventually(lambda: _told(world, 9))
        await retry(world, item_ids=[item.item_id])
        await until_listed(world, tries=2)
        world.received.refused.clear()
        await retry(world, item_ids=[item.item_id])
        await eventually(lambda: _told(world, 10))
        await until_none_is_listed(world)


async def test_one_conversion_that_nobody_can_be_asked_about_leaves_the_others_their_claims(world: World) -> None:
    world.received.refused["poison"] = grpc.StatusCode.INTERNAL
    await world.received.trigger(("Purchase", "acme"))
    names = [f"e{n}" for n in range(8)]
    for name in (*names, "poison"):
        await world.received.answer(name, claimed("acme", HOUR - 60))
    async with world.worker(claim_wait_s=3.0):
        world.received.refused["poison"] = grpc.StatusCode.INTERNAL
        sent = (event(HOUR, device(n), record_id=name) for n, name in enumerate((*names, "poison")))
        await world.send(*sent)
        decisions = await world.decided(*names)
        world.received.refused.clear()  # so that postback takes the decision
        (poison,) = await world.decided("poison")
    assert [each.network_id for each in decisions] == ["acme"] * 8
    assert poison.outcome


async def test_a_late_record_that_cannot_be_dealt_with_leaves_the_others(
    world: World, poison: Poison, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _with_failing_replay(world, poison, monkeypatch)
    async with world.worker():
        await world.send(event(HOUR, device(1), record_id="e1"), event(HOUR, device(2), record_id="e2"))
        await world.decided("e1", "e2")
        poison_id = str(await world.pool.fetchval("SELECT device_id FROM decisions WHERE conversion_id = 'e1'"))
        _POISONED.add(poison_id)
        await world.send(click(0, device(1), record_id="k1"), click(0, device(2), record_id="k2"))
        # k2 is of the other device, but came from the same address: so it concerns both.
        found = await until_listed(world, 2)
        assert {(each.work, each.record_id) for each in found} == {
            (Q.QUARANTINE_WORK_LATE_ARRIVAL, "k1"),
            (Q.QUARANTINE_WORK_LATE_ARRIVAL, "k2"),
        }

        async def has_won() -> bool:
            (newest,) = await world.decided("e2")
            return newest.engagement_id == "k2"

        await eventually(has_won)
        await retry(world, app_id=APP)
        await until_listed(world, 2, tries=2)
        _POISONED.clear()
        await retry(world, app_id=APP)
        await until_none_is_listed(world)
        (e1,) = await world.decided("e1")
    assert (e1.engagement_id, e1.version) == ("k1", 2)


_POISONED: set[str] = set()


async def _with_failing_replay(world: World, poison: Poison, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has deciding a device again fail."""
    decide = Replay._decide
    _POISONED.clear()

    async def fails(self: Any, family: Any, inputs: Any) -> Any:
        if str(family.device_id) in _POISONED:
            raise poison.error
        return await decide(self, family, inputs)

    monkeypatch.setattr(Replay, "_decide", fails)


async def test_a_reattribution_goes_on_without_a_device_that_cannot_be_decided(
    world: World, poison: Poison, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _with_failing_replay(world, poison, monkeypatch)
    async with world.worker(jobs=slow_jobs(world.ground)):
        ids = await world.send(*(event(HOUR, device(n), record_id=f"e{n}") for n in range(20)))
        await world.decided(*ids)
        one = await world.pool.fetchval("SELECT device_id FROM decisions WHERE conversion_id = 'e5'")
        _POISONED.add(str(one))
        request = reattribution_pb2.ReattributeRequest(app_id=APP, reattribution_id="r1")
        request.start_time.FromSeconds(1)
        request.end_time.FromSeconds(1 << 32)
        await world.attribution.Reattribute(request)

        async def is_done() -> bool:
            asked = reattribution_pb2.GetReattributionRequest(app_id=APP, reattribution_id="r1")
            job = (await world.attribution.GetReattribution(asked)).reattribution
            return job.state == reattribution_pb2.Reattribution.STATE_DONE and job.conversion_count == 19

        await eventually(is_done)
        (item,) = await until_listed(world)
        assert (item.work, item.record_id) == (Q.QUARANTINE_WORK_REATTRIBUTE, "r1")
        _POISONED.clear()
        await retry(world, work=Q.QUARANTINE_WORK_REATTRIBUTE)
        await until_none_is_listed(world)


async def test_an_erasure_that_fails_holds_up_no_other_and_is_never_dropped(
    world: World, monkeypatch: pytest.MonkeyPatch, poisoned_deciding: Poison
) -> None:
    """And what was set aside of a device is forgotten with it."""
    erase_devices, is_failing = erasures.erase_devices, True

    async def fails(connection: Any, app_id: str, devices: Any) -> Any:
        if is_failing and len(devices) == 1:
            raise ValueError(f"device {devices}")
        return await erase_devices(connection, app_id, devices)

    monkeypatch.setattr(erasures, "erase_devices", fails)
    async with world.worker(jobs=slow_jobs(world.ground)):
        await world.send(event(0, device(1), "View", record_id="e1"), event(0, device(2), "View", record_id="poison"))
        await world.decided("e1")
        await until_listed(world)
        forget = [erasure_pb2.ForgetDeviceRequest(app_id=APP, device_id=device(n)) for n in (1, 2)]
        first, second = [(await world.attribution.ForgetDevice(each)).erasure.erasure_id for each in forget]

        async def is_done(erasure_id: str) -> bool:
            asked = erasure_pb2.GetErasureRequest(app_id=APP, erasure_id=erasure_id)
            return (await world.attribution.GetErasure(asked)).erasure.HasField("finish_time")

        await eventually(lambda: is_done(second))
        (item,) = await until_listed(world)
        assert (item.work, item.record_id) == (Q.QUARANTINE_WORK_ERASE, first)
        assert item.error == "ValueError", "its text may name the device"
        request = Q.DropQuarantinedRequest(filter=Q.QuarantineFilter(app_id=APP), reason="away with it")
        assert (await world.attribution.DropQuarantined(request)).dropped_count == 0
        is_failing = False
        await retry(world, item_ids=[item.item_id])
        await eventually(lambda: is_done(first))
        await until_none_is_listed(world)


async def test_what_is_dropped_is_gone_and_pages_show_the_rest(world: World, poisoned_deciding: Poison) -> None:
    async with world.worker():
        await world.send(*(event(n, device(n), "View", record_id=f"poison-{n}") for n in range(5)))
        found = await until_listed(world, 5)
        first = await world.attribution.ListQuarantined(Q.ListQuarantinedRequest(page_size=3))
        second = await world.attribution.ListQuarantined(
            Q.ListQuarantinedRequest(page_size=3, page_token=first.next_page_token)
        )
        assert [*first.items, *second.items] == found
        assert not await listed(world, work=Q.QUARANTINE_WORK_INDEX)
        some = Q.QuarantineFilter(item_ids=[each.item_id for each in found[:2]])
        dropped = await world.attribution.DropQuarantined(Q.DropQuarantinedRequest(filter=some, reason="a test"))
        assert (dropped.dropped_count, await listed(world)) == (2, found[2:])


@pytest.mark.parametrize(
    ("request_", "fields"),
    [
        (Q.RetryQuarantinedRequest(), {"filter"}),
        (Q.DropQuarantinedRequest(), {"filter", "reason"}),
        (Q.RetryQuarantinedRequest(filter=Q.QuarantineFilter(item_ids=["1", "x.1", "1.-1"])), {"filter.item_ids"}),
        (Q.ListQuarantinedRequest(page_size=-1, page_token="x"), {"page_size", "page_token"}),
    ],
    ids=["retry nothing", "drop nothing for nothing", "no ids", "no page"],
)
async def test_wrong_requests(world: World, request_: Any, fields: set[str]) -> None:
    method = getattr(world.attribution, type(request_).__name__.removesuffix("Request"))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await method(request_)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert all(field in (refused.value.details() or "") for field in fields)


async def _halves(count: int, fails: Callable[[Sequence[int]], None]) -> tuple[list[int], list[int], int]:
    done: list[int] = []
    aside: list[int] = []
    tries = 0

    async def process(some: range) -> None:
        nonlocal tries
        tries += 1
        fails(some)
        done.extend(some)

    async def set_aside(place: int, error: Exception) -> None:
        aside.append(place)

    await in_halves(count, process, set_aside)
    return done, aside, tries


@pytest.mark.parametrize("bad", [set(), {0}, {99}, {3, 4, 50}, set(range(100))], ids=lambda bad: f"{len(bad)} bad")
async def test_halves_find_what_fails_alone_in_order(bad: set[int]) -> None:
    def fails(some: Sequence[int]) -> None:
        if not bad.isdisjoint(some):
            raise ValueError

    done, aside, tries = await _halves(100, fails)
    assert (done, aside) == ([n for n in range(100) if n not in bad], sorted(bad))
    assert tries <= 1 + 2 * 7 * max(1, len(bad))


async def test_what_takes_too_long_alone_is_tried_again_first() -> None:
    counts = {7: 0}

    def fails(some: Sequence[int]) -> None:
        if 7 in some:
            counts[7] += len(some) == 1
            if counts[7] < MAX_TIMEOUTS:
                raise TimeoutError

    done, aside, _ = await _halves(10, fails)
    assert (sorted(done), aside) == (list(range(10)), [])


async def test_what_says_nothing_against_a_record_sets_none_aside() -> None:
    def fails(some: Sequence[int]) -> None:
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await _halves(10, fails)


async def test_the_errors_of_a_database_are_told_apart(pool: Pool) -> None:
    async def error_of(sql: str) -> Exception:
        with pytest.raises(asyncpg.PostgresError) as raised:
            await pool.execute(sql)
        return raised.value

    assert not is_circumstance(await error_of("SELECT 1 / 0"))
    assert not is_circumstance(await error_of("INSERT INTO workers (worker_id) VALUES ('a')"))
    assert is_circumstance(await error_of("SELECT * FROM not_there"))
    assert is_circumstance(await error_of("CREATE TABLE not_allowed ()"))
