"""The table `warned`: the newest records of each app that something was left out of."""

from collections.abc import Collection, Sequence

from libs.db import Pool, columns, rows_affected
from libs.parts import page_of
from services.ingest.model import WarnedRow
from services.ingest.storage.failures import log_unavailable


class WarnedStore:
    """Records with warnings. While the database is away, callers get `Unavailable` `LOG_UNAVAILABLE`."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def keep(self, rows: Sequence[WarnedRow]) -> None:
        """Stores rows; one that is stored already changes nothing."""
        with log_unavailable():
            await self._pool.execute(
                """
                INSERT INTO warned (app_id, warn_time_us, warned_id, record_id, warned)
                SELECT app_id, warn_time_us, warned_id, record_id, warned
                FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::text[], $5::bytea[])
                    AS new (app_id, warn_time_us, warned_id, record_id, warned)
                ON CONFLICT DO NOTHING
                """,
                *columns(rows, len(WarnedRow._fields)),
            )

    async def read_page(self, app_id: str, *, before: tuple[int, int], size: int) -> tuple[list[WarnedRow], bool]:
        """Returns rows of an app, newest first, and whether there are more.

        Up to `size` of those that sort before (warn_time_us, warned_id), and of at most PART_BYTES.
        """
        with log_unavailable():
            rows = await self._pool.fetch(
                """
                SELECT app_id, warn_time_us, warned_id, record_id, warned FROM warned
                WHERE app_id = $1 AND (warn_time_us, warned_id) < ($2, $3)
                ORDER BY warn_time_us DESC, warned_id DESC LIMIT $4
                """,
                app_id,
                *before,
                size + 1,  # of at most 32 KB each
            )
        return page_of([WarnedRow(*row) for row in rows], size, lambda row: len(row.warned))

    async def erase(self, app_id: str, record_ids: Collection[str]) -> int:
        """Deletes the rows of records of an app, and returns how many."""
        with log_unavailable():
            tag = await self._pool.execute(
                """
                DELETE FROM warned WHERE app_id = $1 AND record_id = ANY($2::text[])
                """,
                app_id,
                list(record_ids),
            )
        return rows_affected(tag)

    async def purge(self, *, before_us: int, kept: int, size: int) -> int:
        """Deletes up to `size` rows, older than that or not among the newest `kept` of their app; returns how many."""
        tag = await self._pool.execute(
            """
            DELETE FROM warned
            WHERE (app_id, warn_time_us, warned_id) IN (
                SELECT app_id, warn_time_us, warned_id
                FROM (
                    SELECT app_id, warn_time_us, warned_id,
                        row_number() OVER (PARTITION BY app_id ORDER BY warn_time_us DESC, warned_id DESC) AS place
                    FROM warned
                ) AS placed
                WHERE place > $1 OR warn_time_us < $2 LIMIT $3
            )
            """,
            kept,
            before_us,
            size,
        )
        return rows_affected(tag)
