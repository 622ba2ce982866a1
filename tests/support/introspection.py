"""PostgreSQL's own types, asked for once.

asyncpg asks each connection for the array types it meets. Planning that question takes PostgreSQL longer than most of a
test's own queries together, and tests open thousands of connections.
"""

from collections.abc import Collection
from typing import Any

import asyncpg

FIRST_OWN_TYPE = 16_384
"""Types with a lower oid are PostgreSQL's, the same in every database."""


def ask_for_types_once() -> None:
    """Has all connections of this process share the answers."""
    ask: Any = asyncpg.Connection._introspect_types  # type: ignore[attr-defined]
    known: dict[frozenset[int], Any] = {}

    async def remember(connection: Any, oids: Collection[int], timeout: float | None) -> Any:
        if max(oids) >= FIRST_OWN_TYPE:
            return await ask(connection, oids, timeout)
        asked = frozenset(oids)
        if asked not in known:
            known[asked] = await ask(connection, oids, timeout)
        return known[asked]

    asyncpg.Connection._introspect_types = remember  # type: ignore[attr-defined]
