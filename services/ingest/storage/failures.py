"""The error that callers get while the database is away."""

import contextlib
from collections.abc import Iterator

import asyncpg

from libs.db import DATABASE_AWAY
from libs.errors import Unavailable

_AWAY = (
    *DATABASE_AWAY,
    OSError,
    asyncpg.InterfaceError,  # a connection or pool that is closed already
)


@contextlib.contextmanager
def log_unavailable() -> Iterator[None]:
    """Raises `Unavailable` `LOG_UNAVAILABLE` in place of what asyncpg raises while the database is away."""
    try:
        yield
    except _AWAY as error:
        raise Unavailable("LOG_UNAVAILABLE", "the log cannot be reached, try again", retry_after_s=1.0) from error
