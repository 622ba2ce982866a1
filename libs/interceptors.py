"""The interceptor of every call that is served: request id, deadline, bounds, errors, one log line and one metric.

The request id comes in as `x-request-id` metadata (or is made), is bound to the log context, and goes out on every call
made while serving. What is left of the caller's deadline goes out the same way.
"""

from __future__ import annotations  # grpcio's own classes are generic to mypy only

import asyncio
import contextlib
import inspect
import time
from collections import Counter as Counts
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import grpc
import structlog
from google.protobuf.message import DecodeError, Message
from grpc_status import rpc_status
from prometheus_client import Counter, Gauge, Histogram

from libs.call_context import REQUEST_ID_HEADER, deadline_s, new_request_id
from libs.call_context import request_id as current_request_id
from libs.db import DATABASE_AWAY
from libs.errors import InvalidArgument, ResourceExhausted, ServiceError, Unavailable, Violation, to_status
from libs.logs import REQUEST_ID_KEY
from libs.messages import is_bomb

Method = TypeVar("Method", bound=Callable[..., Any])

_MAX_REQUEST_ID = 64
_SMALL_BYTES = 64 * 1024
"""Up to so many a request is not counted: all that are served at once take little."""
MAX_HELD_BYTES = 24 * 1024 * 1024
"""The bytes of larger requests that each kind of call serves at once; parsed they take about five times as much."""
_UNPARSABLE = object()
"""Stands for a request that cannot be parsed, until it can be refused as any other that is wrong."""
_BOMB, _NO_ROOM = object(), object()
"""Stand for one that holds too many messages, and for one that there is no memory for now."""

_calls = Counter("rpc_calls_total", "Calls served, by method and status code.", ["method", "code"])
_seconds = Histogram("rpc_seconds", "Time to serve a unary call.", ["method"])
_in_flight = Gauge("rpc_in_flight", "Calls being served.", ["kind"])

_log = structlog.get_logger()


def salvaged_by(salvage: Callable[[bytes], Message]) -> Callable[[Method], Method]:
    """Returns a decorator of a servicer's method: requests that cannot be parsed become what `salvage` makes of them.

    It raises DecodeError when that is nothing. Then, as of a method without it, the call ends as INVALID_ARGUMENT
    `UNPARSABLE_REQUEST`.
    """

    def decorate(method: Method) -> Method:
        method.salvage = salvage  # type: ignore[attr-defined]
        return method

    return decorate


class ServerInterceptor(grpc.aio.ServerInterceptor):
    """Interceptor that wraps every method of a server.

    `max_calls` unary and, apart from them, `max_streams` streaming calls are served at once; one more ends with
    RESOURCE_EXHAUSTED `OVERLOADED` with RetryInfo (grpc.aio does not honour maximum_concurrent_rpcs). So does one whose
    request is large, while the requests being served fill the memory that they may. A request that holds so many tiny
    messages that parsing it would fill the memory ends as INVALID_ARGUMENT `UNPARSABLE_REQUEST`.
    """

    def __init__(self, *, max_calls: int = 256, max_streams: int = 256) -> None:
        self._room = {"unary": max_calls, "stream": max_streams}
        self._held_bytes: Counts[str] = Counts()
        self._steps: set[asyncio.Task[Any]] = set()
        self._stopping = False

    def end_watches(self) -> None:
        """Ends the calls that only send, perhaps for ever, as UNAVAILABLE `STOPPING`: their callers go on elsewhere."""
        self._stopping = True
        for step in self._steps:
            step.cancel()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Returns the handler of the method called, wrapped."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        given = dict(handler_call_details.invocation_metadata or ()).get(REQUEST_ID_HEADER)
        request_id = given[:_MAX_REQUEST_ID] if isinstance(given, str) and given.isprintable() else new_request_id()
        # The four kinds of handlers differ in the attribute that serves and in the function that makes them.
        arity = "_".join("stream" if s else "unary" for s in (handler.request_streaming, handler.response_streaming))
        wrap = {"unary_stream": self._watch, "stream_stream": self._stream}.get(arity, self._unary)
        serve = getattr(handler, arity)
        held = _Held(self._held_bytes, arity)
        wrapped: grpc.RpcMethodHandler[Any, Any] = getattr(grpc, f"{arity}_rpc_method_handler")(
            wrap(method, request_id, serve, held),
            request_deserializer=_parse_or_mark(handler.request_deserializer, getattr(serve, "salvage", None), held),
            response_serializer=handler.response_serializer,
        )
        return wrapped

    def _unary(self, method: str, request_id: str, serve: Any, held: _Held) -> Any:
        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            async with _Served(self._room, "unary", method, request_id, context, held):
                return await serve(_parsed(request), context)

        return call

    def _stream(self, method: str, request_id: str, serve: Any, held: _Held) -> Any:
        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            async with _Served(self._room, "stream", method, request_id, context, held):
                async for response in serve(_each_parsed(request), context):
                    yield response

        return call

    def _watch(self, method: str, request_id: str, serve: Any, held: _Held) -> Any:
        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            async with (
                _Served(self._room, "stream", method, request_id, context, held),
                contextlib.aclosing(serve(_parsed(request), context)) as responses,
            ):
                while True:
                    try:
                        response = await self._step(anext(responses))
                    except StopAsyncIteration:
                        return
                    yield response

        async def write(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
            async with _Served(self._room, "stream", method, request_id, context, held):
                await self._step(serve(_parsed(request), context))

        # Health.Watch writes to the context; all others are generators.
        return write if inspect.iscoroutinefunction(serve) else call

    async def _step(self, step: Awaitable[Any]) -> Any:
        # A task apart, as grpc loses the status of a call that is cancelled itself while it sends a response.
        task = asyncio.ensure_future(step)
        self._steps.add(task)
        task.add_done_callback(self._steps.discard)
        if self._stopping:
            task.cancel()
        try:
            return await task
        except asyncio.CancelledError:
            if self._stopping:
                raise Unavailable("STOPPING", "the server stops; go on at another") from None
            raise


class _Held:
    """The bytes of the large request that a call is at, beside those of all others of its kind in `held_bytes`."""

    def __init__(self, held_bytes: Counts[str], kind: str) -> None:
        self._held_bytes, self._kind = held_bytes, kind
        self._size = 0

    def take(self, size: int) -> bool:
        """Notes a request in place of the call's last one; returns whether there is room for it."""
        self.release()
        if size <= _SMALL_BYTES:
            return True
        if self._held_bytes[self._kind] + size > MAX_HELD_BYTES:
            return False
        self._size = size
        self._held_bytes[self._kind] += size
        return True

    def release(self) -> None:
        """Notes that the call is done with its last request."""
        self._held_bytes[self._kind] -= self._size
        self._size = 0


def _parse_or_mark(parse: Any, salvage: Callable[[bytes], Message] | None, held: _Held) -> Callable[[bytes], Any]:
    # What a deserializer raises ends the call as INTERNAL, outside of the interceptor.
    kind = getattr(getattr(parse, "__self__", None), "DESCRIPTOR", None)

    def deserialize(content: bytes) -> Any:
        if not held.take(len(content)):
            return _NO_ROOM
        if len(content) > _SMALL_BYTES and kind is not None and is_bomb(content, kind):
            return _BOMB
        try:
            return parse(content)
        except DecodeError:
            with contextlib.suppress(DecodeError):
                if salvage is not None:
                    return salvage(content)
            return _UNPARSABLE

    return deserialize


def _parsed(request: Any) -> Any:
    """Returns a request. Raises what ends the call in place of one that could not, or cannot now, be parsed."""
    if request is _NO_ROOM:
        raise ResourceExhausted("OVERLOADED", "too many large requests at once", retry_after_s=0.5)
    if request is _BOMB:
        wrong = Violation(field="", reason="TOO_MANY", description="must hold fewer messages that say nothing")
        raise InvalidArgument([wrong], reason="UNPARSABLE_REQUEST")
    if request is _UNPARSABLE:
        wrong = Violation(
            field="", reason="UNPARSABLE", description="must be a serialised request, with texts in UTF-8"
        )
        raise InvalidArgument([wrong], reason="UNPARSABLE_REQUEST")
    return request


async def _each_parsed(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield _parsed(request)


class _Served:
    """One call being served: it takes its room, binds its context, and ends with a status, a line and a metric."""

    def __init__(
        self,
        room: dict[str, int],
        kind: str,
        method: str,
        request_id: str,
        context: grpc.aio.ServicerContext[Any, Any],
        held: _Held,
    ) -> None:
        self._room, self._kind, self._method, self._request_id, self._context = room, kind, method, request_id, context
        self._held = held
        self._has_room = False
        self._started = 0.0

    async def __aenter__(self) -> None:
        self._started = time.monotonic()
        structlog.contextvars.bind_contextvars(**{REQUEST_ID_KEY: self._request_id})
        current_request_id.set(self._request_id)
        remaining = self._context.time_remaining()
        # A stream's deadline is its caller's business; only unary calls pass on what is left.
        deadline_s.set(self._started + remaining if remaining is not None and self._kind == "unary" else None)
        if self._room[self._kind] <= 0:
            self._held.release()
            error = ResourceExhausted("OVERLOADED", "too many calls at once", retry_after_s=0.5)
            await self._end(grpc.StatusCode.RESOURCE_EXHAUSTED, error)
        self._room[self._kind] -= 1
        self._has_room = True
        _in_flight.labels(self._kind).inc()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: Any) -> None:
        self._held.release()
        if self._has_room:
            self._room[self._kind] += 1
            _in_flight.labels(self._kind).dec()
        if error is None:
            await self._end(self._context.code() or grpc.StatusCode.OK, None)
        elif isinstance(error, asyncio.CancelledError | GeneratorExit):
            self._note(grpc.StatusCode.CANCELLED, None)
        elif isinstance(error, grpc.aio.AbortError):
            self._note(self._context.code() or grpc.StatusCode.UNKNOWN, None)
        elif isinstance(error, ServiceError):
            await self._end(error.code, error)
        elif isinstance(error, DATABASE_AWAY):
            _log.warning("database.away", method=self._method, error=type(error).__name__)
            away = Unavailable("DATABASE_UNAVAILABLE", "the database does not answer", retry_after_s=1.0)
            await self._end(away.code, away)
        elif isinstance(error, Exception):
            _log.error("rpc.failed", method=self._method, exc_info=error)
            # The text of an unforeseen exception may hold anything; the caller gets the request id to ask with.
            hidden = ServiceError("INTERNAL", "internal error", request_id=self._request_id)
            await self._end(grpc.StatusCode.INTERNAL, hidden)

    async def _end(self, code: grpc.StatusCode, error: ServiceError | None) -> None:
        self._note(code, error.reason if error else None)
        if error is not None:
            await self._context.abort_with_status(rpc_status.to_status(to_status(error)))

    def _note(self, code: Any, reason: str | None) -> None:
        name = code.name if isinstance(code, grpc.StatusCode) else str(code)
        elapsed = time.monotonic() - self._started
        _calls.labels(self._method, name).inc()
        if self._kind == "unary":
            _seconds.labels(self._method).observe(elapsed)
        # Health is asked for every few seconds by everyone; a line each would drown the rest.
        if not self._method.startswith("/grpc.health."):
            level = "warning" if name in ("INTERNAL", "UNKNOWN") else "info"
            getattr(_log, level)(
                "rpc.served", method=self._method, code=name, reason=reason, ms=round(elapsed * 1000, 2)
            )
