"""Looks for what is left of a device: through every column of every table of every schema."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping

import asyncpg

from services.attribution.decision.matching import device_key, id_forms


async def all_rows(admin_dsn: str) -> dict[str, list[asyncpg.Record]]:
    """Returns every row, by `schema.table`."""
    connection = await asyncpg.connect(admin_dsn)
    names = await connection.fetch(
        "SELECT table_schema, table_name FROM information_schema.tables WHERE table_type = 'BASE TABLE'"
        " AND table_schema NOT IN ('pg_catalog', 'information_schema')"
    )
    found = {f"{s}.{t}": list(await connection.fetch(f'SELECT * FROM "{s}"."{t}"')) for s, t in names}
    await connection.close()
    return found


def traces(app_id: str, *ids: str) -> set[bytes]:
    """Returns all that ids of an app's device may have left: their forms (A3) and keys, as bytes and as hex."""
    forms = {form for each in ids for form in id_forms(each)}
    keys = {device_key(app_id, form) for form in forms}
    return {each.encode() for each in (*ids, *forms)} | keys | {key.hex().encode() for key in keys}


def places(rows_by_table: Mapping[str, Iterable[asyncpg.Record]], wanted: Collection[bytes]) -> set[str]:
    """Returns the columns that hold one of these: as it is, or in text but for letter case, dashes and colons."""
    columns = defaultdict[str, list[bytes]](list)
    for table, rows in rows_by_table.items():
        for row in rows:
            for name, value in row.items():
                columns[f"{table}.{name}"].append(value if isinstance(value, bytes) else str(value).encode())
    found = set()
    for column, values in columns.items():
        raw = b"\n".join(values)
        plain = raw.lower().replace(b"-", b"").replace(b":", b"")
        if any(each in raw or each in plain for each in wanted):
            found.add(column)
    return found
