"""The statements of a connection: how many they are, and how much each is given."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from asyncpg.connection import LoggedQuery

from libs.db import Connection


@dataclass(slots=True)
class Statements:
    """The number of values that each statement was given, in their order: an array counts as its elements."""

    values: list[int] = field(default_factory=list)

    @property
    def count(self) -> int:
        return len(self.values)

    @property
    def total(self) -> int:
        return sum(self.values)

    def note(self, logged: LoggedQuery) -> None:
        self.values.append(sum(len(each) if isinstance(each, list | tuple) else 1 for each in logged.args))


@asynccontextmanager
async def counting(connection: Connection) -> AsyncIterator[Statements]:
    """Yields the statements that are sent over a connection meanwhile."""
    statements = Statements()
    with connection.query_logger(statements.note):
        yield statements
        await asyncio.sleep(0)  # asyncpg calls its loggers in the next turn of the loop
