"""Long work of a service, followed to its end."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from rich.console import Console

from libs.errors import Unavailable

T = TypeVar("T")
_LOOK_INTERVAL_S = 0.3


async def follow(
    doing: str,
    read: Callable[[], Awaitable[T]],
    *,
    has_ended: Callable[[T], bool],
    progress: Callable[[T], str],
    if_left: str,
) -> T:
    """Returns the work once it has ended; shows on the error stream how far it is. Raises ServiceError.

    `read` asks how far it is; while the service is away it is asked again. Whoever leaves is told `if_left`.
    """
    console = Console(stderr=True)
    with console.status(doing) as status:
        try:
            while True:
                try:
                    found = await read()
                except Unavailable:
                    status.update("The service is away; what it has begun goes on when it is back")
                else:
                    if has_ended(found):
                        return found
                    status.update(progress(found))
                await asyncio.sleep(_LOOK_INTERVAL_S)
        except asyncio.CancelledError:
            console.print(if_left)
            raise
