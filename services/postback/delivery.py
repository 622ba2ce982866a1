"""A delivery: its id, and the request it makes."""

from uuid import UUID, uuid5

from reengage.postback.v1 import postback_pb2
from services.postback.macros import MASK, SECRET_PREFIX, Values
from services.postback.model import Configuration
from services.postback.template import Request, render

# Never changes: with another namespace, conversions handed over again would be told again.
_NAMESPACE = UUID("6a3f2f0e-3b0c-5d57-9d0b-1a1f5c1f7e55")


def delivery_id(configuration_id: str, app_id: str, conversion_id: str) -> UUID:
    """The id of the one delivery of a conversion to a configuration; a re-attributed conversion keeps it."""
    # With lengths, as any character may stand in an id.
    return uuid5(_NAMESPACE, f"{len(configuration_id)}:{configuration_id}{len(app_id)}:{app_id}{conversion_id}")


def requests(
    configuration: Configuration, conversion: postback_pb2.Conversion, delivery_id: UUID
) -> tuple[Request, Request]:
    """The request of a delivery, and the same with its secrets masked, to be kept and shown."""
    values = Values(conversion, delivery_id=str(delivery_id), is_revenue=configuration.is_revenue)

    def plain(name: str) -> str:
        if name.startswith(SECRET_PREFIX):
            return configuration.secrets.get(name.removeprefix(SECRET_PREFIX), "")
        return values.get(name)

    def masked(name: str) -> str:
        return MASK if name.startswith(SECRET_PREFIX) and plain(name) else values.get(name)

    request = _identified(render(configuration.template, plain), delivery_id)
    if not configuration.secrets:
        return request, request
    return request, _identified(render(configuration.template, masked), delivery_id)


def _identified(request: Request, delivery_id: UUID) -> Request:
    request.headers["Idempotency-Key"] = request.headers["webhook-id"] = str(delivery_id)
    return request
