"""Channels to other services: retries, keepalive and message bounds in one place."""

from __future__ import annotations  # grpcio's own classes are generic to mypy only

import json
from collections.abc import Iterable
from typing import Any

import grpc

from libs.auth import bearer
from libs.call_context import outgoing, remaining_s
from libs.parts import MAX_MESSAGE_BYTES

# Only UNAVAILABLE is repeated, and every RPC of ours is safe to repeat.
_SERVICE_CONFIG = json.dumps(
    {
        "loadBalancingConfig": [{"round_robin": {}}],
        "methodConfig": [
            {
                "name": [{}],
                "retryPolicy": {
                    "maxAttempts": 4,
                    "initialBackoff": "0.1s",
                    "maxBackoff": "1s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ],
    }
)


def open_channel(
    target: str, *, timeout_s: float = 10.0, key: str = "", interceptors: Iterable[grpc.aio.ClientInterceptor] = ()
) -> grpc.aio.Channel:
    """Returns a channel to `host:port` (or `dns:///name:port`). Close it with `async with`.

    Unary calls get `timeout_s`; calls that send one request carry the API key, if there is one. `interceptors` are
    nearest to the caller.
    """
    carried = bearer(key)
    return grpc.aio.insecure_channel(
        target,
        options=[
            ("grpc.service_config", _SERVICE_CONFIG),
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            # A service that is away for a minute must be found within a second of its return.
            ("grpc.max_reconnect_backoff_ms", 1_000),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
        ],
        interceptors=[
            *interceptors,
            UnaryClientInterceptor(timeout_s, carried),
            *([StreamClientInterceptor(carried)] if carried else []),
        ],
    )


class UnaryClientInterceptor(grpc.aio.UnaryUnaryClientInterceptor):
    """Interceptor that gives every unary call a request id, a deadline (default `timeout_s`) and `metadata`."""

    def __init__(self, timeout_s: float, metadata: Iterable[tuple[str, str]] = ()) -> None:
        self._timeout_s, self._metadata = timeout_s, tuple(metadata)

    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        """Completes the details of the call and goes on."""
        details = client_call_details._replace(
            metadata=grpc.aio.Metadata(*outgoing(client_call_details.metadata), *self._metadata),
            timeout=client_call_details.timeout or remaining_s(self._timeout_s),
        )
        return await continuation(details, request)


class StreamClientInterceptor(grpc.aio.UnaryStreamClientInterceptor):
    """Interceptor that gives every call with a stream of responses `metadata`."""

    def __init__(self, metadata: Iterable[tuple[str, str]]) -> None:
        self._metadata = tuple(metadata)

    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        """Completes the details of the call and goes on."""
        metadata = grpc.aio.Metadata(*(client_call_details.metadata or ()), *self._metadata)
        return await continuation(client_call_details._replace(metadata=metadata), request)
