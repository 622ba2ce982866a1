"""Times, positions and page sizes from the ends of their ranges: refused or served, at once."""

from typing import Any

import grpc
import pytest

from libs.db import Pool
from libs.domain.lanes import LANES
from libs.errors import from_rpc_error
from libs.pages import encode_token
from libs.periods import Periods
from reengage.attribution.v1 import decision_pb2, offer_pb2, reattribution_pb2, shared_id_pb2, what_if_pb2
from reengage.ingest.v1 import log_pb2, record_erasure_pb2, rejected_record_pb2
from reengage.postback.v1 import claim_pb2, conversion_pb2, delivery_pb2
from services.attribution.queries.following import Filters
from tests.attribution.conftest import (  # noqa: F401, its fixtures
    APP,
    World,
    following_config,
    hand_over_s,
    start_world,
    what_if_config,
    world,
)
from tests.ingest.conftest import Ingest, ingest, start_ingest  # noqa: F401, its fixtures
from tests.postback.conftest import Endpoint, Running, endpoint, purchase, service, template  # noqa: F401, its fixtures

MIN, MAX = -(2**63), 2**63 - 1
YEAR_1, YEAR_9999 = {"seconds": -62_135_596_800}, {"seconds": 253_402_300_799, "nanos": 999_999_999}
PATIENCE_S = 30


async def outcome(call: Any) -> str:
    """Returns how a call ends: OK, or the reason it is refused for. A stream is left after its first response."""
    try:
        if hasattr(call, "__aiter__"):
            async for _ in call:
                break
            call.cancel()
        else:
            await call
    except grpc.aio.AioRpcError as error:
        return from_rpc_error(error).reason
    return "OK"


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (YEAR_1, YEAR_9999, "OK"),
        ({"seconds": MIN}, {"seconds": MAX}, "INVALID_ARGUMENT"),
        ({"seconds": 0, "nanos": 2**31 - 1}, YEAR_9999, "INVALID_ARGUMENT"),
        (YEAR_9999, YEAR_1, "INVALID_ARGUMENT"),
    ],
    ids=["years 1 to 9999", "the ends of the numbers", "too many nanoseconds", "backwards"],
)
async def test_periods_from_the_ends_of_time(
    world: World,  # noqa: F811
    start: dict[str, int],
    end: dict[str, int],
    expected: str,
) -> None:
    period = {"app_id": APP, "start_time": start, "end_time": end}
    stub = world.attribution
    what_if = what_if_pb2.WhatIfRequest(**period)  # type: ignore[arg-type]
    again = reattribution_pb2.ReattributeRequest(reattribution_id="r", **period)  # type: ignore[arg-type]
    assert await outcome(stub.WhatIf(what_if, timeout=PATIENCE_S)) == expected
    assert await outcome(stub.Reattribute(again, timeout=PATIENCE_S)) == expected


@pytest.mark.parametrize("time", [YEAR_1, YEAR_9999], ids=["year 1", "year 9999"])
async def test_decisions_are_followed_from_the_ends_of_time(world: World, time: dict[str, int]) -> None:  # noqa: F811
    request = decision_pb2.WatchDecisionsRequest(start_time=time)  # type: ignore[arg-type]
    assert await outcome(world.attribution.WatchDecisions(request, timeout=PATIENCE_S)) == "OK"


@pytest.mark.parametrize("position", [MAX, 2**62, 1], ids=["the last number", "far", "beyond the end"])
async def test_a_place_in_the_decisions_that_is_made_up_is_refused(world: World, position: int) -> None:  # noqa: F811
    token = encode_token(Filters().checksum, 0, *[position] * LANES)
    request = decision_pb2.WatchDecisionsRequest(resume_token=token)
    assert await outcome(world.attribution.WatchDecisions(request, timeout=PATIENCE_S)) == "INVALID_ARGUMENT"


@pytest.mark.parametrize("page_size", [-1, -(2**31), 1_001, 2**31 - 1])
async def test_pages_of_any_size_are_refused_by_attribution(world: World, page_size: int) -> None:  # noqa: F811
    stub = world.attribution
    for call in (
        stub.ListDecisions(decision_pb2.ListDecisionsRequest(app_id=APP, page_size=page_size)),
        stub.ListSharedIds(shared_id_pb2.ListSharedIdsRequest(app_id=APP, page_size=page_size)),
        stub.ListReattributions(reattribution_pb2.ListReattributionsRequest(app_id=APP, page_size=page_size)),
        stub.ListOfferedPostbacks(
            offer_pb2.ListOfferedPostbacksRequest(app_id=APP, reattribution_id="r", page_size=page_size)
        ),
    ):
        assert await outcome(call) == "INVALID_ARGUMENT"


@pytest.mark.parametrize(
    "fields",
    [
        {"max_entries": -1},
        {"max_entries": 2**31 - 1},
        {"app_lanes": [64]},
        {"app_lanes": [-1]},
        {"selection": 99},
        {"from": [log_pb2.LanePosition(lane=64)]},
        {"from": [log_pb2.LanePosition(lane=-1)]},
        {"from": [log_pb2.LanePosition(position=-1)]},
        {"from": [log_pb2.LanePosition(), log_pb2.LanePosition()]},
    ],
    ids=str,
)
async def test_a_place_in_the_log_that_is_none_is_refused(ingest: Ingest, fields: dict[str, Any]) -> None:  # noqa: F811
    request = log_pb2.ReadLogRequest(**{"from": [log_pb2.LanePosition(position=MAX)], **fields})
    assert await outcome(ingest.stub.ReadLog(request, timeout=PATIENCE_S)) == "INVALID_ARGUMENT"


@pytest.mark.parametrize("place", [(64, 0), (-1, 0), (0, -1), (0, MIN)], ids=str)
async def test_erasing_below_a_place_that_is_none_is_refused(ingest: Ingest, place: tuple[int, int]) -> None:  # noqa: F811
    request = record_erasure_pb2.EraseRecordsRequest(app_id="shop", device_ids=["x"])
    request.below.add(lane=place[0], position=place[1])
    assert await outcome(ingest.stub.EraseRecords(request, timeout=PATIENCE_S)) == "INVALID_ARGUMENT"


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        (encode_token(MAX, MAX), "OK"),
        (encode_token(-MAX, -MAX), "OK"),
        (encode_token(2**63, 0), "INVALID_ARGUMENT"),
        (encode_token("a", 0), "INVALID_ARGUMENT"),
    ],
    ids=["last", "first", "no bigint", "no number"],
)
async def test_refusals_are_listed_from_any_place(ingest: Ingest, token: str, expected: str) -> None:  # noqa: F811
    request = rejected_record_pb2.ListRejectedRequest(app_id="shop", page_token=token)
    assert await outcome(ingest.stub.ListRejected(request)) == expected


@pytest.mark.parametrize(
    ("time", "days"),
    [
        (YEAR_1, 400),
        (YEAR_9999, 400),
        ({"seconds": MIN}, 400),
        ({"seconds": MAX}, 400),
        ({"seconds": -1}, 400),
        ({"seconds": 1_767_270_896}, -1),
        ({"seconds": 1_767_270_896}, 2**31 - 1),
        ({"seconds": 1_767_270_896}, 399),
    ],
    ids=["year 1", "year 9999", "first number", "last number", "before 1970", "negative days", "many days", "odd days"],
)
async def test_a_conversion_makes_no_table_for_a_time_that_nothing_happens_at(
    service: Running,  # noqa: F811
    endpoint: Endpoint,  # noqa: F811
    time: dict[str, int],
    days: int,
) -> None:
    """One of the year 9999 ended the dropping of what is past for good."""
    await service.configure(template=template(endpoint))
    conversion = purchase()
    conversion.decision.conversion_time.CopyFrom(type(conversion.decision.conversion_time)(**time))
    conversion.names.retention_days = days
    for call in (
        service.deliveries.EnqueueConversions(conversion_pb2.EnqueueConversionsRequest(conversions=[conversion])),
        service.deliveries.RequestClaims(claim_pb2.RequestClaimsRequest(conversions=[conversion])),
    ):
        assert await outcome(call) == "INVALID_ARGUMENT"
    await Periods(service.pool).drop_past()


@pytest.mark.parametrize(
    "wait", [{"seconds": -1}, {"seconds": 315_576_000_000}, {"seconds": MAX}, {"nanos": -1}], ids=str
)
async def test_claims_are_not_waited_for_without_end(service: Running, wait: dict[str, int]) -> None:  # noqa: F811
    request = claim_pb2.RequestClaimsRequest(conversions=[purchase()], wait=wait)  # type: ignore[arg-type]
    assert await outcome(service.deliveries.RequestClaims(request, timeout=PATIENCE_S)) == "INVALID_ARGUMENT"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"page_size": -1}, "INVALID_ARGUMENT"),
        ({"page_size": 2**31 - 1}, "INVALID_ARGUMENT"),
        ({"page_token": encode_token(MAX, "x")}, "INVALID_ARGUMENT"),
        ({"page_token": encode_token(-MAX, "00000000-0000-0000-0000-000000000000")}, "OK"),
        ({"states": [99]}, "INVALID_ARGUMENT"),
    ],
    ids=["negative page", "huge page", "no delivery", "before all", "no state"],
)
async def test_deliveries_are_listed_from_any_place(
    service: Running,  # noqa: F811
    fields: dict[str, Any],
    expected: str,
) -> None:
    request = delivery_pb2.ListDeliveriesRequest(app_id="app", **fields)
    assert await outcome(service.deliveries.ListDeliveries(request)) == expected


async def test_a_period_of_the_last_year_keeps_no_other_from_being_dropped(world: World) -> None:  # noqa: F811
    pool: Pool = world.pool
    await pool.execute("SELECT make_period('9999-12-01', 400::smallint), make_period('1970-01-01', 60::smallint)")
    await Periods(pool).drop_past()
    left = {row[0] for row in await pool.fetch("SELECT relname FROM pg_class WHERE relname LIKE 'decisions_%_%'")}
    assert "decisions_999912_400" in left
    assert "decisions_197001_60" not in left
