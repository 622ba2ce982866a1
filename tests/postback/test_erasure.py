"""Erasure of conversions and devices, and of nothing else."""

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from libs.errors import from_rpc_error
from reengage.postback.v1 import configuration_pb2, conversion_pb2
from tests.postback.conftest import Endpoint, Running, purchase, until_ended


async def test_of_what_is_erased_nothing_stays(service: Running, endpoint: Endpoint) -> None:
    await service.configure(template={"url": endpoint.url("/x")})
    await service.configure(template={"url": endpoint.url("/y")}, delivery_delay=Duration(seconds=600))
    await service.configure(
        template={"url": endpoint.url("/x")},
        trigger="SessionBegin",
        delivery_method=configuration_pb2.Configuration.DELIVERY_METHOD_NETWORK_ONLY,
    )
    session = purchase("session", event_name="SessionBegin", device_id="d1")
    others_session = purchase("other session", event_name="SessionBegin", device_id="d2")
    await service.enqueue(purchase("c1", device_id="d1"), purchase("c2", device_id="d2"), session, others_session)
    await until_ended(service, 4)
    gone = {"conversion_ids": ["c1", "session", "never was"], "device_ids": ["d1"]}
    assert await service.erase(app_id="other", **gone) == {"deliveries": 0, "attempts": 0, "session_holds": 0}
    assert await service.erase(**gone) == {"deliveries": 3, "attempts": 2, "session_holds": 1}
    assert await service.erase(**gone) == {"deliveries": 0, "attempts": 0, "session_holds": 0}
    assert {one.conversion_id for one in await service.list()} == {"c2", "other session"}
    await service.due_now()
    await until_ended(service, 3)
    assert len(endpoint.at("/y")) == 1  # what was pending of c1 is never sent
    left = await service.pool.fetchrow(
        "SELECT (SELECT count(*) FROM attempts) AS attempts, (SELECT count(*) FROM session_holds) AS holds"
    )
    assert left is not None
    assert tuple(left) == (3, 1)


async def test_of_a_stripped_conversion_only_the_engagement_goes(service: Running, endpoint: Endpoint) -> None:
    """Its winner was a click of a device that is erased; the conversion is another's."""
    await service.configure(template={"url": endpoint.url("/x?click={click_id}")}, delivery_delay=Duration(seconds=600))
    await service.enqueue(purchase("c1"), purchase("c2"))
    before = {one.conversion_id: one for one in await service.list()}
    others = await service.erase(app_id="other", stripped_conversion_ids=["c2"])
    assert await service.erase(stripped_conversion_ids=["c1", "never was"]) == others
    assert {one.conversion_id: one for one in await service.list()} == before
    rows = await service.pool.fetch("SELECT conversion_id, conversion FROM deliveries")
    kept = {row["conversion_id"]: conversion_pb2.Conversion.FromString(row["conversion"]) for row in rows}
    assert purchase("c1").HasField("engagement")
    assert not kept["c1"].HasField("engagement")
    assert kept["c1"].record == purchase("c1").record
    assert kept["c2"].engagement == purchase("c2").engagement
    await service.due_now()
    await until_ended(service, 2)
    assert sorted(one.query["click"] for one in endpoint.at("/x")) == ["", purchase("c2").engagement.click.click_id]


async def test_erasing_says_what_is_wrong(service: Running) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await service.erase(app_id="", conversion_ids=["a\0"], device_ids=["d"] * 1001)
    details = from_rpc_error(caught.value)
    assert [f"{found.field} {found.reason}" for found in details.violations] == [
        "app_id REQUIRED",
        "conversion_ids[0] INVALID_TEXT",
        "device_ids BATCH_TOO_LARGE",
    ]
