"""Conversions become deliveries, and deliveries reach an endpoint that does not always behave."""

from reengage.postback.v1 import postback_pb2
from tests.postback.conftest import Endpoint, Running, purchase, until_ended

Delivery = postback_pb2.Delivery


async def test_a_conversion_is_told_once(service: Running, endpoint: Endpoint) -> None:
    configuration = await service.configure(template=postback_pb2.Template(url=endpoint.url("/x?click={click_id}")))
    assert await service.enqueue(purchase()) == 1
    assert await service.enqueue(purchase(), purchase()) == 0
    (delivery,) = await until_ended(service)
    assert delivery.state == Delivery.STATE_DELIVERED
    assert delivery.configuration_id == configuration.configuration_id
    (received,) = endpoint.received
    assert received.query == {"click": "their click"}
    assert received.delivery_id == received.headers["webhook-id"] == delivery.delivery_id
