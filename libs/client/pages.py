"""Lists, over all their pages."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from google.protobuf.message import Message

MAX_PAGE_SIZE = 1000


async def items(method: Callable[[Any], Awaitable[Any]], request: Message) -> AsyncIterator[Any]:
    """Yields what a List method returns, from every page, which it asks for as it is needed.

        tracker = TrackerConfigServiceStub(channel)
        async for app in items(tracker.ListApps, ListAppsRequest()):
            print(app.name)

    Pages have the `page_size` of the request, or else the largest there is. The request is left as it is.
    """
    asked: Any = type(request)()
    asked.CopyFrom(request)
    asked.page_size = asked.page_size or MAX_PAGE_SIZE
    while True:
        page = await method(asked)
        for item in getattr(page, _list_field(page)):
            yield item
        asked.page_token = page.next_page_token
        if not asked.page_token:
            return


async def first(method: Callable[[Any], Awaitable[Any]], request: Message, limit: int) -> tuple[list[Any], bool]:
    """Returns the first `limit` of what a List method returns, and whether there are more."""
    asked: Any = type(request)()
    asked.CopyFrom(request)
    asked.page_size = min(limit + 1, MAX_PAGE_SIZE)
    found: list[Any] = []
    async for item in items(method, asked):
        if len(found) == limit:
            return found, True
        found.append(item)
    return found, False


def _list_field(page: Message) -> str:
    """Returns the name of the field that holds the list."""
    return next(field.name for field in page.DESCRIPTOR.fields if field.is_repeated)
