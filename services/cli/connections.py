"""Connections of commands: where the services are, which key opens them, and failed calls in words for people."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import grpc
import typer

from libs.client import connect
from libs.errors import MORE, ServiceError, Unavailable, Violation
from services.cli.console import INTERRUPTED, fail
from services.cli.places import ADDRESSES, ADMIN_KEY

T = TypeVar("T")
DEFAULT_ADDRESSES = {
    "tracker": "127.0.0.1:7101",
    "ingest": "127.0.0.1:7102",
    "attribution": "127.0.0.1:7103",
    "postback": "127.0.0.1:7104",
    "gateway": "127.0.0.1:8080",
}
_TIMEOUT_S = 60.0  # thousands of trackers at once


class CallError(Exception):
    """A call could not be made, or failed; the message says what to change."""


def run(main: Coroutine[Any, Any, T]) -> T:
    """Returns what a command's calls return. A failed call, or Ctrl-C, ends the command with its exit code."""
    try:
        return asyncio.run(main)
    except CallError as error:
        fail(str(error))
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None


@asynccontextmanager
async def connected(service: str, target: str = "") -> AsyncIterator[grpc.aio.Channel]:
    """Yields a channel to a service, at `target` or where it runs here. A failed call becomes a CallError."""
    address = target or address_of(service)
    async with connect(address, key=_key_of(service), timeout_s=_TIMEOUT_S) as channel:
        try:
            yield channel
        except ServiceError as error:
            raise CallError(describe(error, service, address)) from error


def with_attribution(target: str, work: Callable[[Any], Awaitable[T]]) -> T:
    """Returns what `work` makes of attribution's stub; a call that fails ends the command."""
    from reengage.attribution.v1.service_pb2_grpc import AttributionServiceStub  # others need not wait for it

    async def main() -> T:
        async with connected("attribution", target) as channel:
            return await work(AttributionServiceStub(channel))

    return run(main())


def with_ingest(target: str, work: Callable[[Any], Awaitable[T]]) -> T:
    """Returns what `work` makes of ingest's stub; a call that fails ends the command."""
    from reengage.ingest.v1.service_pb2_grpc import IngestServiceStub

    async def main() -> T:
        async with connected("ingest", target) as channel:
            return await work(IngestServiceStub(channel))

    return run(main())


def address_of(service: str) -> str:
    """Returns where a service is: REENGAGE_<SERVICE>_TARGET, else as `make run` has it here, else its default port."""
    if given := os.environ.get(f"REENGAGE_{service.upper()}_TARGET"):
        return given
    try:
        running: dict[str, str] = json.loads(ADDRESSES.read_text())
    except (OSError, ValueError):
        running = {}
    return running.get(service) or DEFAULT_ADDRESSES[service]


def gateway_url() -> str:
    """Returns the address that ad links begin with: REENGAGE_GATEWAY_URL, else that of the suite that runs here."""
    return (os.environ.get("REENGAGE_GATEWAY_URL") or f"http://{address_of('gateway')}").rstrip("/")


def _key_of(service: str) -> str:
    """Returns the API key for a service, of which only tracker wants one: REENGAGE_API_KEY, else that of `make run`."""
    if service != "tracker":
        return ""
    if given := os.environ.get("REENGAGE_API_KEY"):
        return given
    try:
        return ADMIN_KEY.read_text()
    except OSError:
        return ""


def describe(error: ServiceError, service: str, address: str) -> str:
    """Returns a failed call for people: the reason, every wrong field, and what to do."""
    code = error.code.name
    if isinstance(error, Unavailable) and error.reason == code:
        return (
            f"No {service} answers at {address}. `make run` starts the suite; for another place set "
            f"REENGAGE_{service.upper()}_TARGET or --target."
        )
    named = " ".join(dict.fromkeys((code, error.reason)))
    lines = [named, *map(_line, error.violations)] if error.violations else [f"{named}: {error.message}"]
    if error.retry_after_s is not None:
        lines.append(f"  Try again in {error.retry_after_s:g} s.")
    return "\n".join(lines)


def _line(wrong: Violation) -> str:
    return (
        f"  {wrong.description}" if wrong.reason == MORE else f"  {wrong.field}: {wrong.description} ({wrong.reason})"
    )
