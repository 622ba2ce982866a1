"""`reengage deliveries`: what the networks were told."""

from typing import Annotated

import typer

from services.cli.console import fail, print_json
from services.cli.groups import single
from services.cli.options import Json, Target

app = single()


@app.command()
def deliveries(
    app_id: str,
    delivery_id: Annotated[str, typer.Argument(help="Show this one, with every attempt.")] = "",
    conversion: Annotated[str, typer.Option(help="Only those of this conversion.")] = "",
    configuration: Annotated[str, typer.Option(help="Only those of this postback configuration.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many, newest first.")] = 50,
    as_json: Json = False,
    target: Target = "",
) -> None:
    """Lists an app's postbacks, newest first, or shows one with every attempt."""
    from reengage.postback.v1 import delivery_pb2
    from reengage.postback.v1.service_pb2_grpc import PostbackServiceStub
    from services.cli.connections import connected, run
    from services.cli.delivery_tables import print_deliveries, print_delivery

    async def get() -> delivery_pb2.GetDeliveryResponse:
        async with connected("postback", target) as channel:
            request = delivery_pb2.GetDeliveryRequest(delivery_id=delivery_id)
            return await PostbackServiceStub(channel).GetDelivery(request)

    async def list_them() -> delivery_pb2.ListDeliveriesResponse:
        async with connected("postback", target) as channel:
            request = delivery_pb2.ListDeliveriesRequest(
                app_id=app_id, conversion_id=conversion, configuration_id=configuration, page_size=limit
            )
            return await PostbackServiceStub(channel).ListDeliveries(request)

    if not delivery_id:
        listed = run(list_them())
        print_json(listed) if as_json else print_deliveries(app_id, listed.deliveries)
        return
    found = run(get())
    if found.delivery.app_id != app_id:
        fail(f"Delivery {delivery_id} belongs to app {found.delivery.app_id}.")
    print_json(found) if as_json else print_delivery(found.delivery)
