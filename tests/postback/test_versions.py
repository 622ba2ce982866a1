"""Newer versions of decisions (D12): who won and was not told is told, nobody twice, and the ledger says who lost."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from aiohttp import web
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from deploy.local.x_network import PATH, LocalX
from libs.errors import from_rpc_error
from reengage.attribution.v1 import decision_pb2
from reengage.postback.v1 import configuration_pb2, conversion_pb2, delivery_pb2
from services.postback.delivery import handed_over, renewed
from services.postback.model import Configuration, LeaseRequest, State, Superseded
from services.postback.selection import superseded
from tests.conftest import Database
from tests.postback.conftest import Answer, Endpoint, Running, purchase, running, until_ended, word
from tests.postback.test_claims import CLICK, HASHED, ask, decided, fields, late, offered, undecided
from tests.postback.test_deliveries import answer
from tests.postback.test_queue import settled
from tests.postback.test_selection import ALL, CLICKS_ONLY, NETWORK_ONLY, NONE
from tests.support.eventually import eventually

Delivery = delivery_pb2.Delivery
ONLY = configuration_pb2.Configuration.DELIVERY_METHOD_NETWORK_ONLY
LATER = Duration(seconds=600)
CONTINUED, DUPLICATE = decision_pb2.OUTCOME_CONTINUED, decision_pb2.OUTCOME_DUPLICATE
NO_CONVERSION, OTHER_WINNER, NO_CLICK = Superseded.NO_CONVERSION, Superseded.OTHER_WINNER, Superseded.NO_CLICK


def won_by(network_id: str, version: int, conversion_id: str = "c1", **decision: Any) -> conversion_pb2.Conversion:
    return purchase(conversion_id, network_id=network_id, version=version, **decision)


async def configure(service: Running, endpoint: Endpoint, *names: str, **fields: Any) -> None:
    """Makes a configuration for each network, which tells at a path of its name what it wins, and by which version."""
    for name in names:
        url = endpoint.url(f"/{name}?winner={{network_id}}")
        given = {"delivery_method": ONLY, **fields}
        await service.configure(configuration_id=name, network_id=name, template={"url": url}, **given)


async def ledger(service: Running) -> dict[str, tuple[str, str, int, list[tuple[str, int]]]]:
    """Returns by configuration the state, why its network would not be told, the version, and attempts with theirs."""
    found = {}
    for listed in await service.list():
        one = await service.get(listed.delivery_id)
        assert (one.state, one.superseded) == (listed.state, listed.superseded)
        assert one.HasField("end_time") is (one.state != Delivery.STATE_PENDING)
        found[one.configuration_id] = (
            Delivery.State.Name(one.state).removeprefix("STATE_"),
            Delivery.Superseded.Name(one.superseded).removeprefix("SUPERSEDED_"),
            one.decision_version,
            [(word(attempt), attempt.decision_version) for attempt in one.attempts],
        )
    return found


def told(endpoint: Endpoint) -> list[tuple[str, str]]:
    """Returns the path of each request, and who won by it."""
    return sorted((one.path, one.query["winner"]) for one in endpoint.received)


def answering_when(release: asyncio.Event, status: int) -> Answer:
    async def handle(request: web.Request) -> web.Response:
        await release.wait()
        return web.Response(status=status, headers={"Retry-After": "3600"})

    return handle


async def under_way(endpoint: Endpoint) -> None:
    async def received() -> bool:
        return bool(endpoint.received)

    await eventually(received)


@pytest.fixture
async def patient(database: Database, endpoint: Endpoint, tmp_path: Path) -> Any:
    """Yields a service that waits between its tries as long as it may."""
    async with running(database, tmp_path / "p.sock", allowed=endpoint.host, jitter=lambda: 0.999) as one:
        yield one


async def test_before_it_was_sent(service: Running, endpoint: Endpoint) -> None:
    await configure(service, endpoint, "acme", delivery_delay=LATER)
    await configure(service, endpoint, "bolt")
    assert await service.enqueue(won_by("acme", 1)) == 1
    assert await service.enqueue(won_by("bolt", 2)) == 1
    await until_ended(service, 2)
    await service.due_now()
    assert await ledger(service) == {
        "acme": ("SUPERSEDED", "OTHER_WINNER", 2, []),
        "bolt": ("DELIVERED", "UNSPECIFIED", 2, [("DELIVERED", 2)]),
    }
    assert told(endpoint) == [("/bolt", "bolt")]


async def test_after_it_was_sent(service: Running, endpoint: Endpoint) -> None:
    await configure(service, endpoint, "acme", "bolt")
    await service.enqueue(won_by("acme", 1))
    await until_ended(service)
    assert await service.enqueue(won_by("bolt", 2)) == 1
    await until_ended(service, 2)
    assert await ledger(service) == {
        "acme": ("DELIVERED", "OTHER_WINNER", 2, [("DELIVERED", 1)]),
        "bolt": ("DELIVERED", "UNSPECIFIED", 2, [("DELIVERED", 2)]),
    }
    assert told(endpoint) == [("/acme", "acme"), ("/bolt", "bolt")]


@pytest.mark.parametrize("delay", [Duration(), LATER], ids=["after it was sent", "before"])
async def test_versions_that_are_handed_over_again_change_nothing(
    service: Running, endpoint: Endpoint, delay: Duration
) -> None:
    """The outbox is read again from anywhere, in calls of any size."""
    await configure(service, endpoint, "acme", delivery_delay=delay)
    await configure(service, endpoint, "bolt")
    one, two = won_by("acme", 1), won_by("bolt", 2)
    await service.enqueue(one)
    if not delay.seconds:
        await until_ended(service)
    await service.enqueue(two)
    await until_ended(service, 2)
    before = await ledger(service)
    for call in ([one], [two], [one, two], [two, one], [one]):
        assert await service.enqueue(*call) == 0
    await service.due_now()
    assert await ledger(service) == before
    assert len(endpoint.at("/acme")) == (0 if delay.seconds else 1)
    assert len(endpoint.at("/bolt")) == 1


async def test_both_versions_in_one_call(service: Running, endpoint: Endpoint) -> None:
    """Nobody can be told by the older one in between, nor when it comes once more by itself."""
    await configure(service, endpoint, "acme", "bolt")
    await service.enqueue(won_by("bolt", 2), won_by("acme", 1))
    assert await service.enqueue(won_by("acme", 1)) == 0
    await until_ended(service, 2)
    assert {name: each[:3] for name, each in (await ledger(service)).items()} == {
        "acme": ("SUPERSEDED", "OTHER_WINNER", 2),
        "bolt": ("DELIVERED", "UNSPECIFIED", 2),
    }
    assert told(endpoint) == [("/bolt", "bolt")]


async def test_an_older_version_makes_nothing_that_was_not_made_in_its_time(
    service: Running, endpoint: Endpoint
) -> None:
    await configure(service, endpoint, "bolt")
    await service.enqueue(won_by("bolt", 2))
    await until_ended(service)
    await configure(service, endpoint, "acme", "cargo")
    assert await service.enqueue(won_by("acme", 1)) == 0
    assert await service.enqueue(won_by("cargo", 3)) == 1
    await until_ended(service, 2)
    assert told(endpoint) == [("/bolt", "bolt"), ("/cargo", "cargo")]


async def test_who_hears_of_every_conversion_hears_once_and_the_newest(service: Running, endpoint: Endpoint) -> None:
    method = configuration_pb2.Configuration.DELIVERY_METHOD_ALL
    await configure(service, endpoint, "early", delivery_method=method)
    await configure(service, endpoint, "late", delivery_method=method, delivery_delay=LATER)
    await service.enqueue(won_by("acme", 1))
    await until_ended(service)
    assert await service.enqueue(won_by("bolt", 2)) == 0
    await service.due_now()
    await until_ended(service, 2)
    assert told(endpoint) == [("/early", "acme"), ("/late", "bolt")]
    assert await ledger(service) == {
        "early": ("DELIVERED", "UNSPECIFIED", 2, [("DELIVERED", 1)]),
        "late": ("DELIVERED", "UNSPECIFIED", 2, [("DELIVERED", 2)]),
    }


async def test_while_it_waited_for_another_try(patient: Running, endpoint: Endpoint) -> None:
    endpoint.answers["/acme"] = answer(503)
    await configure(patient, endpoint, "acme")
    await patient.enqueue(won_by("acme", 1))

    async def attempted() -> bool:
        return bool((await patient.only()).attempts)

    await eventually(attempted)
    await patient.enqueue(won_by("bolt", 2))
    assert await ledger(patient) == {"acme": ("SUPERSEDED", "OTHER_WINNER", 2, [("HTTP_STATUS", 1)])}


@pytest.mark.parametrize(
    ("status", "state", "attempts"),
    [
        pytest.param(200, "DELIVERED", [("DELIVERED", 1)], id="and told"),
        pytest.param(404, "REFUSED", [("HTTP_STATUS", 1)], id="and refused"),
        # The other try is an hour away, but there is none: it is only to end.
        pytest.param(503, "SUPERSEDED", [("HTTP_STATUS", 1), ("SUPERSEDED", 0)], id="and to be tried again"),
    ],
)
async def test_while_it_was_under_way(
    patient: Running, endpoint: Endpoint, status: int, state: str, attempts: list[tuple[str, int]]
) -> None:
    release = asyncio.Event()
    endpoint.answers["/acme"] = answering_when(release, status)
    await configure(patient, endpoint, "acme", retry_attempts=10)
    await patient.enqueue(won_by("acme", 1))
    await under_way(endpoint)
    await patient.enqueue(won_by("bolt", 2))
    assert await ledger(patient) == {"acme": ("PENDING", "OTHER_WINNER", 2, [])}
    release.set()
    await until_ended(patient)
    assert await ledger(patient) == {"acme": (state, "OTHER_WINNER", 2, attempts)}
    assert len(endpoint.received) == 1


async def test_a_network_that_wins_it_back_before_it_was_told_is_told_once(
    service: Running, endpoint: Endpoint
) -> None:
    await configure(service, endpoint, "acme", delivery_delay=LATER)
    await service.enqueue(won_by("acme", 1))
    await service.enqueue(won_by("bolt", 2))
    assert (await ledger(service))["acme"][0] == "SUPERSEDED"
    assert await service.enqueue(won_by("acme", 3)) == 1
    assert await service.enqueue(won_by("acme", 3), won_by("bolt", 2)) == 0
    (waiting,) = await service.list()
    assert waiting.next_attempt_time.seconds - waiting.create_time.seconds >= LATER.seconds, "its delay is kept"
    await service.due_now()
    await until_ended(service)
    assert await ledger(service) == {"acme": ("DELIVERED", "UNSPECIFIED", 3, [("DELIVERED", 3)])}
    assert len(endpoint.received) == 1


async def test_a_network_that_wins_it_back_after_it_was_told_is_told_nothing(
    service: Running, endpoint: Endpoint
) -> None:
    await configure(service, endpoint, "acme")
    await service.enqueue(won_by("acme", 1))
    await until_ended(service)
    await service.enqueue(won_by("bolt", 2))
    await service.enqueue(won_by("acme", 3))
    assert await service.enqueue(won_by("bolt", 2)) == 0
    assert await ledger(service) == {"acme": ("DELIVERED", "UNSPECIFIED", 3, [("DELIVERED", 1)])}
    assert len(endpoint.received) == 1


async def test_a_network_that_wins_it_back_while_it_is_under_way_is_told_once(
    patient: Running, endpoint: Endpoint
) -> None:
    release = asyncio.Event()
    endpoint.answers["/acme"] = answering_when(release, 200)
    await configure(patient, endpoint, "acme")
    await patient.enqueue(won_by("acme", 1))
    await under_way(endpoint)
    await patient.enqueue(won_by("bolt", 2), won_by("acme", 3))
    release.set()
    await until_ended(patient)
    assert await ledger(patient) == {"acme": ("DELIVERED", "UNSPECIFIED", 3, [("DELIVERED", 1)])}
    assert len(endpoint.received) == 1


async def test_what_is_won_back_has_all_its_tries(service: Running, endpoint: Endpoint) -> None:
    """The end that was not sent is none of them."""
    release = asyncio.Event()
    endpoint.answers["/acme"] = answering_when(release, 503)
    await configure(service, endpoint, "acme", retry_attempts=2)
    await service.enqueue(won_by("acme", 1))
    await under_way(endpoint)
    await service.enqueue(won_by("bolt", 2))
    release.set()
    await until_ended(service)
    endpoint.answers["/acme"] = answer(503)
    assert await service.enqueue(won_by("acme", 3)) == 1
    await until_ended(service)
    state, _, _, attempts = (await ledger(service))["acme"]
    http_status = [("HTTP_STATUS", version) for version in (1, 3, 3)]
    assert (state, attempts) == ("EXHAUSTED", [http_status[0], ("SUPERSEDED", 0), *http_status[1:]])


async def test_an_end_that_a_yet_newer_version_forbids_is_none(
    database: Database, endpoint: Endpoint, tmp_path: Path
) -> None:
    """Leased to be ended without a word, and meanwhile its network won it back: when the lease is over it is sent."""
    over_at_once = [LeaseRequest(configuration_id="acme", room=1, length_us=0)]
    async with running(database, tmp_path / "idle.sock", allowed=endpoint.host, works=False) as idle:
        await configure(idle, endpoint, "acme")
        await idle.enqueue(won_by("acme", 1))
        assert len(await idle.queue.lease(over_at_once, limit=1, retries=False)) == 1
        await idle.enqueue(won_by("bolt", 2))
        (ending,) = await idle.queue.lease(over_at_once, limit=1, retries=True)
        assert ending.is_superseded
        await idle.enqueue(won_by("acme", 3))
        await idle.queue.settle([settled(ending, State.SUPERSEDED)])
        assert (await ledger(idle))["acme"][:3] == ("PENDING", "UNSPECIFIED", 3)
    async with running(database, tmp_path / "p.sock", allowed=endpoint.host) as service:
        await until_ended(service)
        assert (await ledger(service))["acme"][:3] == ("DELIVERED", "UNSPECIFIED", 3)
    assert told(endpoint) == [("/acme", "acme")]


async def test_a_paused_configuration_is_not_told_what_it_wins_back(service: Running, endpoint: Endpoint) -> None:
    """Nor is anything new made for it; what waits for it is superseded all the same."""
    await configure(service, endpoint, "acme", delivery_delay=LATER)
    await service.enqueue(won_by("acme", 1))
    paused = configuration_pb2.Configuration(
        configuration_id="acme", status=configuration_pb2.Configuration.STATUS_PAUSED
    )
    await service.configs.UpdateConfiguration(
        configuration_pb2.UpdateConfigurationRequest(configuration=paused, update_mask=FieldMask(paths=["status"]))
    )
    await service.enqueue(won_by("bolt", 2))
    assert await service.enqueue(won_by("acme", 3)) == 0
    assert await ledger(service) == {"acme": ("SUPERSEDED", "OTHER_WINNER", 2, [])}


@pytest.mark.parametrize(
    ("event_name", "outcome"), [("SessionBegin", CONTINUED), ("_install", DUPLICATE)], ids=["session", "install"]
)
async def test_of_what_is_no_conversion_any_more_nobody_is_told(
    service: Running, endpoint: Endpoint, event_name: str, outcome: int
) -> None:
    """Neither who would hear of every conversion, nor anybody new; who was told is told nothing."""
    method = configuration_pb2.Configuration.DELIVERY_METHOD_ALL
    await configure(service, endpoint, "told", trigger=event_name, delivery_method=method)
    await configure(service, endpoint, "waits", trigger=event_name, delivery_method=method, delivery_delay=LATER)
    await service.enqueue(won_by("acme", 1, event_name=event_name))
    await until_ended(service)
    await configure(service, endpoint, "new", trigger=event_name, delivery_method=method)
    gone = won_by("", 2, event_name=event_name, outcome=outcome, attribution_type=0)
    assert await service.enqueue(gone) == 0
    assert await service.enqueue(gone) == 0
    await service.due_now()
    assert await ledger(service) == {
        "told": ("DELIVERED", "NO_CONVERSION", 2, [("DELIVERED", 1)]),
        "waits": ("SUPERSEDED", "NO_CONVERSION", 2, []),
    }
    assert told(endpoint) == [("/told", "acme")]


async def test_what_is_superseded_is_not_sent_by_hand_either(service: Running, endpoint: Endpoint) -> None:
    """A request for all leaves it out, one for itself says it."""
    endpoint.answers["/acme"] = answer(404)
    await configure(service, endpoint, "acme")
    await service.enqueue(won_by("acme", 1), won_by("acme", 1, "c2"))
    lost, _ = sorted(await until_ended(service, 2), key=lambda one: one.conversion_id)
    await service.enqueue(won_by("bolt", 2))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await service.deliveries.Redeliver(
            delivery_pb2.RedeliverRequest(delivery_id=lost.delivery_id, request_id="one")
        )
    assert from_rpc_error(caught.value).reason == "DELIVERY_SUPERSEDED"
    request = delivery_pb2.RedeliverRequest(app_id="app", request_id="all")
    assert (await service.deliveries.Redeliver(request)).redelivered_count == 1
    await until_ended(service, 2)
    assert (await service.get(lost.delivery_id)).redelivery_count == 0
    assert len(endpoint.received) == 3


async def test_a_redelivery_of_what_was_told_tells_the_newest_version(service: Running, endpoint: Endpoint) -> None:
    await configure(service, endpoint, "all", delivery_method=configuration_pb2.Configuration.DELIVERY_METHOD_ALL)
    await service.enqueue(won_by("acme", 1))
    (delivered,) = await until_ended(service)
    await service.enqueue(won_by("bolt", 2))
    request = delivery_pb2.RedeliverRequest(delivery_id=delivered.delivery_id, request_id="r")
    assert (await service.deliveries.Redeliver(request)).redelivered_count == 1
    await until_ended(service)
    assert await ledger(service) == {"all": ("DELIVERED", "UNSPECIFIED", 2, [("DELIVERED", 1), ("DELIVERED", 2)])}


async def test_lists_are_filtered_by_it(service: Running, endpoint: Endpoint) -> None:
    await configure(service, endpoint, "acme", delivery_delay=LATER)
    await service.enqueue(won_by("acme", 1), won_by("acme", 1, "c2"))
    await service.enqueue(won_by("bolt", 2))
    found = await service.list(states=[Delivery.STATE_SUPERSEDED])
    assert [one.conversion_id for one in found] == ["c1"]


async def test_what_was_superseded_is_offered_to_who_would_win_it_back(service: Running, endpoint: Endpoint) -> None:
    await configure(service, endpoint, "acme", "bolt", delivery_delay=LATER)
    await service.enqueue(won_by("acme", 1))
    await service.enqueue(won_by("bolt", 2))
    assert await offered(service, won_by("acme", 3)) == [("c1", "acme", "WOULD_BE_SENT"), ("c1", "bolt", "WAS_SENT")]
    assert await offered(service, won_by("cargo", 3)) == [("c1", "bolt", "WAS_SENT")]


# Sessions, of which a NETWORK_ONLY postback tells one in 24 hours.


def session(
    conversion_id: str, hours: float, version: int = 1, network_id: str = "acme", **decision: Any
) -> conversion_pb2.Conversion:
    at = Timestamp(seconds=1_767_200_000 + int(hours * 3600))
    return won_by(network_id, version, conversion_id, event_name="SessionBegin", conversion_time=at, **decision)


async def test_a_session_that_is_not_told_holds_no_other_back(service: Running, endpoint: Endpoint) -> None:
    await configure(service, endpoint, "acme", trigger="SessionBegin", delivery_delay=LATER)
    first, gone = session("s1", 24), session("s1", 24, 2, outcome=CONTINUED)
    assert await service.enqueue(session("s0", 0), first) == 2
    assert await service.enqueue(gone) == 0
    assert await service.enqueue(first, gone) == 0, "repeats take no hold again"
    assert await service.enqueue(first) == 0
    assert await service.enqueue(session("early", 23)) == 0, "s0 is told, and less than a day before"
    assert await service.enqueue(session("s2", 25)) == 1
    assert await service.enqueue(session("s3", 48)) == 0


async def test_a_session_that_was_told_holds_others_back_though_it_is_lost(
    service: Running, endpoint: Endpoint
) -> None:
    await configure(service, endpoint, "acme", trigger="SessionBegin")
    await service.enqueue(session("s1", 0))
    await until_ended(service)
    await service.enqueue(session("s1", 0, 2, "bolt"))
    assert await service.enqueue(session("s2", 1)) == 0


async def test_a_session_that_is_won_back_is_told_unless_another_was_meanwhile(
    service: Running, endpoint: Endpoint
) -> None:
    await configure(service, endpoint, "acme", trigger="SessionBegin", delivery_delay=LATER)
    for conversion_id, hours in (("s1", 0), ("s9", 240)):
        await service.enqueue(session(conversion_id, hours))
        await service.enqueue(session(conversion_id, hours, 2, "bolt"))
    assert await service.enqueue(session("s2", 241)) == 1
    assert await service.enqueue(session("s9", 240, 3)) == 0
    assert await service.enqueue(session("s9", 240, 3)) == 0
    states = {one.conversion_id: one.state for one in await service.list()}
    assert states["s9"] == Delivery.STATE_SUPERSEDED
    await configure(service, endpoint, "other", trigger="SessionBegin", delivery_delay=LATER)
    assert await service.enqueue(session("o1", 0, 1, "other", device_id="o")) == 1
    assert await service.enqueue(session("o1", 0, 2, "bolt", device_id="o")) == 0
    assert await service.enqueue(session("o1", 0, 3, "other", device_id="o")) == 1
    assert await service.enqueue(session("o2", 1, 1, "other", device_id="o")) == 0, "held back by o1 again"


# Claims: the request that asks is also the postback (E1).


@pytest.fixture
def x(endpoint: Endpoint) -> LocalX:
    """Returns X, at the test's endpoint."""
    network = LocalX()
    endpoint.answers[PATH] = network.handle
    return network


async def test_who_was_asked_is_not_asked_again_and_has_lost_nothing(
    service: Running, endpoint: Endpoint, x: LocalX
) -> None:
    """It was asked about the conversion, whoever wins that: first X, then another."""
    await service.configure(**fields(endpoint))
    await ask(service, undecided())
    await service.enqueue(decided(network_id="x-ios"))
    assert (await ledger(service))["k"][2] == 1
    assert await service.enqueue(decided(network_id="acme", version=2)) == 0
    assert await service.enqueue(decided(network_id="x-ios", version=3)) == 0
    assert await ledger(service) == {"k": ("DELIVERED", "UNSPECIFIED", 3, [("DELIVERED", 0)])}
    assert len(x.received) == 1


async def test_who_did_not_answer_is_asked_on_with_what_is_known_by_now(
    patient: Running, endpoint: Endpoint, x: LocalX
) -> None:
    endpoint.answers[PATH] = answer(503)
    await patient.configure(**fields(endpoint))
    await ask(patient, undecided(), wait_s=0)
    await under_way(endpoint)
    assert await patient.enqueue(decided(network_id="acme", claims_unavailable=["x-ios"])) == 0
    assert await patient.enqueue(decided(network_id="bolt", version=2)) == 0
    endpoint.answers[PATH] = x.handle
    await patient.due_now()
    await until_ended(patient)
    state, why, version, attempts = (await ledger(patient))["k"]
    assert (state, why, version, attempts[-1]) == ("DELIVERED", "UNSPECIFIED", 2, ("DELIVERED", 2))
    assert len(x.received) == 1


async def test_nobody_is_asked_on_about_what_is_no_conversion_any_more(patient: Running, endpoint: Endpoint) -> None:
    endpoint.answers[PATH] = answer(503)
    await patient.configure(**fields(endpoint))
    await ask(patient, undecided(), wait_s=0)

    async def attempted() -> bool:
        one = await patient.only()
        return bool(one.attempts) and one.HasField("next_attempt_time")

    await eventually(attempted)
    await patient.enqueue(decided(outcome=CONTINUED, version=2))
    assert {name: each[:3] for name, each in (await ledger(patient)).items()} == {
        "k": ("SUPERSEDED", "NO_CONVERSION", 2)
    }
    ((claim,),) = [claims.answers for claims in await ask(patient, undecided(), wait_s=0)]
    assert (claim.state, claim.reason) == (claim.STATE_UNAVAILABLE, claim.REASON_SUPERSEDED)


async def test_a_claim_is_late_after_a_newer_version_too(service: Running, endpoint: Endpoint, x: LocalX) -> None:
    """The older one was none that postback is told of: a duplicate install."""
    await service.configure(**fields(endpoint))
    x.conducts[HASHED] = replace(CLICK, delay_s=0.5)
    before = late()
    await ask(service, undecided(), wait_s=0)
    await service.enqueue(decided(version=2, claims_unavailable=["x-ios"]))
    await until_ended(service)
    assert late() == before + 1


async def test_a_network_that_was_never_asked_is_when_it_is_told_of_a_newer_version(
    service: Running, endpoint: Endpoint, x: LocalX
) -> None:
    await service.enqueue(decided(network_id="acme"))
    await service.configure(**fields(endpoint))
    assert await service.enqueue(decided(network_id="acme", version=2)) == 1
    await until_ended(service)
    assert len(x.received) == 1


# The decisions


@pytest.mark.parametrize(
    ("configuration", "decision", "expected"),
    [
        pytest.param(ALL, {"network_id": "other"}, None, id="all: another winner"),
        pytest.param(ALL, NONE, None, id="all: no winner"),
        pytest.param(ALL, {"outcome": CONTINUED}, NO_CONVERSION, id="all: a session that went on"),
        pytest.param(ALL, {"outcome": DUPLICATE}, NO_CONVERSION, id="all: a second install"),
        pytest.param(NETWORK_ONLY, {}, None, id="its own"),
        pytest.param(NETWORK_ONLY, {"network_id": "other"}, OTHER_WINNER, id="another winner"),
        pytest.param(NETWORK_ONLY, NONE, OTHER_WINNER, id="no winner"),
        pytest.param(CLICKS_ONLY, {}, None, id="a click"),
        pytest.param(NETWORK_ONLY, {"outcome": CONTINUED, **NONE}, NO_CONVERSION, id="what it is goes first"),
    ],
)
def test_why_a_delivery_is_superseded(
    configuration: Configuration, decision: dict[str, Any], expected: Superseded | None
) -> None:
    assert superseded(configuration, purchase(**decision)) is expected


def test_a_view_that_won_supersedes_what_is_for_clicks() -> None:
    viewed = purchase()
    viewed.decision.candidates.add(
        verdict=decision_pb2.VERDICT_WON, engagement_kind=decision_pb2.ENGAGEMENT_KIND_IMPRESSION
    )
    assert superseded(CLICKS_ONLY, viewed) is NO_CLICK


WON, LOST = {"network_id": "network"}, {"network_id": "other"}
ENDED = (State.DELIVERED, State.REFUSED, State.EXHAUSTED)


@pytest.mark.parametrize(
    ("state", "decision", "is_under_way", "expected"),
    [
        pytest.param(State.PENDING, WON, False, State.PENDING, id="waits and won"),
        pytest.param(State.PENDING, WON, True, State.PENDING, id="under way and won"),
        pytest.param(State.PENDING, LOST, False, State.SUPERSEDED, id="waits and lost"),
        pytest.param(State.PENDING, LOST, True, State.PENDING, id="under way and lost"),
        pytest.param(State.SUPERSEDED, WON, False, State.PENDING, id="won back"),
        pytest.param(State.SUPERSEDED, LOST, False, State.SUPERSEDED, id="lost again"),
        *(pytest.param(state, WON, False, state, id=f"{state.name} and won") for state in ENDED),
        *(pytest.param(state, LOST, False, state, id=f"{state.name} and lost") for state in ENDED),
    ],
)
def test_what_a_newer_version_makes_of_a_delivery(
    state: State, decision: dict[str, Any], is_under_way: bool, expected: State
) -> None:
    newer = handed_over(purchase(version=2, **decision), NETWORK_ONLY, is_wanted=decision is WON)
    assert renewed(state, newer, is_under_way=is_under_way) is expected
