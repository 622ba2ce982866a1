"""The client library: what the command line and every program that calls the services share.

    async with connect("localhost:7101", key=key) as channel:
        tracker = TrackerConfigServiceStub(channel)
        names = [app.name async for app in items(tracker.ListApps, ListAppsRequest())]

Calls that fail raise a `ServiceError` of `libs.errors`: `NotFound`, `InvalidArgument` with its `violations`, and so on.
It holds what the service said: a stable `reason`, a message for people, and `retry_after_s` where waiting helps.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from libs.client.connection import connect
    from libs.client.errors import to_service_error
    from libs.client.pages import first, items
    from libs.client.records import RecordSender, UnsentRecordsError
    from libs.client.streams import watch_decisions, what_if

__all__ = [
    "RecordSender",
    "UnsentRecordsError",
    "connect",
    "first",
    "items",
    "to_service_error",
    "watch_decisions",
    "what_if",
]
_MODULES = {
    "RecordSender": "records",
    "UnsentRecordsError": "records",
    "connect": "connection",
    "first": "pages",
    "items": "pages",
    "to_service_error": "errors",
    "watch_decisions": "streams",
    "what_if": "streams",
}


def __getattr__(name: str) -> Any:
    """Imports the module of a name when the name is first used: commands start quickly."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
