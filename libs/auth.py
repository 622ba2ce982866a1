"""API keys on calls: sent as `authorization: Bearer <key>` by clients, read before a method is served."""

from __future__ import annotations  # grpcio's own classes are generic to mypy only

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import grpc

HEADER = "authorization"
_SCHEME = "Bearer "

Admit = Callable[[str, str], Awaitable[None]]
"""`admit(method, key)` of one gRPC service: raises a ServiceError to refuse a call. `method` is the bare name, `key` is
empty when none came. Context variables that it sets hold while the call is served."""


def hash_of(key: str) -> bytes:
    """Returns the hash that a key is kept as. Keys are random, so none is found by trying."""
    return hashlib.sha256(key.encode()).digest()


def bearer(key: str) -> tuple[tuple[str, str], ...]:
    """Returns the metadata that carries a key; none for an empty one."""
    return ((HEADER, _SCHEME + key),) if key else ()


class Admission(grpc.aio.ServerInterceptor):
    """Interceptor that asks `admit` of the gRPC service called, by its full name; one without it serves everybody."""

    def __init__(self, admit: Mapping[str, Admit]) -> None:
        self._admit = admit

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Returns the method's handler, or one that refuses."""
        handler = await continuation(handler_call_details)
        service, _, method = handler_call_details.method.lstrip("/").partition("/")
        admit = self._admit.get(service)
        if handler is None or admit is None:
            return handler
        try:
            await admit(method, _key(handler_call_details.invocation_metadata))
        except Exception as error:  # whatever it is, the outer interceptor makes a status of it
            return _refusing(handler, error)
        return handler


def _key(metadata: Any) -> str:
    given = dict(metadata or ()).get(HEADER, "")
    return given.removeprefix(_SCHEME) if isinstance(given, str) and given.startswith(_SCHEME) else ""


def _refusing(handler: grpc.RpcMethodHandler[Any, Any], error: Exception) -> grpc.RpcMethodHandler[Any, Any]:
    async def refuse(*_: Any) -> Any:
        raise error

    async def refuse_stream(*_: Any) -> AsyncIterator[Any]:
        raise error
        yield

    arity = "_".join("stream" if s else "unary" for s in (handler.request_streaming, handler.response_streaming))
    refusing: grpc.RpcMethodHandler[Any, Any] = getattr(grpc, f"{arity}_rpc_method_handler")(
        refuse_stream if handler.response_streaming else refuse,
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )
    return refusing
