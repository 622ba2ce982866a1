"""Channels whose failed calls raise typed errors."""

from __future__ import annotations  # grpcio's own classes are generic to mypy only

from collections.abc import AsyncIterator
from typing import Any

import grpc

from libs.channels import open_channel
from libs.client.errors import to_service_error


def connect(target: str, *, key: str = "", timeout_s: float = 10.0) -> grpc.aio.Channel:
    """Returns a channel to the service at `host:port`; close it with `async with`.

        async with connect("localhost:7101", key=key) as channel:
            tracker = TrackerConfigServiceStub(channel)
            app = (await tracker.GetApp(GetAppRequest(app_id="shop"))).app

    Every call carries the API key, if there is one. A unary call takes `timeout_s` at most; one that finds nobody is
    made again up to three times, which is safe: each of our RPCs may be repeated. A call that fails raises a
    ServiceError; one that takes a stream of requests raises grpc.aio.AioRpcError instead.
    """
    return open_channel(target, timeout_s=timeout_s, key=key, interceptors=[_UnaryErrors(), _StreamErrors()])


class _UnaryErrors(grpc.aio.UnaryUnaryClientInterceptor):
    """Interceptor that raises the failure of a unary call as a ServiceError."""

    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        """Makes the call."""
        call = await continuation(client_call_details, request)
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise to_service_error(error) from error


class _StreamErrors(grpc.aio.UnaryStreamClientInterceptor):
    """Interceptor that raises the failure of a call that returns a stream as a ServiceError."""

    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        """Makes the call."""
        return _typed(await continuation(client_call_details, request))


async def _typed(responses: AsyncIterator[Any]) -> AsyncIterator[Any]:
    try:
        async for response in responses:
            yield response
    except grpc.aio.AioRpcError as error:
        raise to_service_error(error) from error
