"""The table `rejected`: refused records with their reasons."""

from collections.abc import Sequence

from libs.db import Pool, columns, rows_affected
from libs.parts import PART_BYTES, page_of
from services.ingest.model import Refusal
from services.ingest.storage.failures import log_unavailable


class RejectedStore:
    """Refused records. While the database is away, callers get `Unavailable` `LOG_UNAVAILABLE`."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def keep(self, refusals: Sequence[Refusal]) -> None:
        """Stores refusals; one that is stored already changes nothing."""
        with log_unavailable():
            await self._pool.execute(
                """
                INSERT INTO rejected (app_id, reject_time_us, rejected_id, record_id, refusal)
                SELECT app_id, reject_time_us, rejected_id, record_id, refusal
                FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::text[], $5::bytea[])
                    AS new (app_id, reject_time_us, rejected_id, record_id, refusal)
                ON CONFLICT DO NOTHING
                """,
                *columns(refusals, len(Refusal._fields)),
            )

    async def read_page(self, app_id: str, *, before: tuple[int, int], size: int) -> tuple[list[Refusal], bool]:
        """Returns refusals of an app, newest first, and whether there are more.

        Up to `size` of those that sort before (reject_time_us, rejected_id), and of at most PART_BYTES.
        """
        with log_unavailable():
            rows = await self._pool.fetch(
                """
                SELECT app_id, reject_time_us, rejected_id, record_id, refusal
                FROM (
                    SELECT app_id, reject_time_us, rejected_id, record_id, refusal,
                        sum(octet_length(refusal)) OVER (ORDER BY reject_time_us DESC, rejected_id DESC) AS bytes
                    FROM rejected
                    WHERE app_id = $1 AND (reject_time_us, rejected_id) < ($2, $3)
                    ORDER BY reject_time_us DESC, rejected_id DESC LIMIT $4
                ) AS page
                WHERE bytes - octet_length(refusal) <= $5
                ORDER BY reject_time_us DESC, rejected_id DESC
                """,
                app_id,
                *before,
                size + 1,
                PART_BYTES,
            )
        return page_of([Refusal(*row) for row in rows], size, lambda refusal: len(refusal.refusal))

    async def read_of_record(self, app_id: str, record_id: str, *, size: int) -> list[Refusal]:
        """Returns the newest refusals of a record, newest first."""
        with log_unavailable():
            rows = await self._pool.fetch(
                """
                SELECT app_id, reject_time_us, rejected_id, record_id, refusal FROM rejected
                WHERE app_id = $1 AND record_id = $2
                ORDER BY reject_time_us DESC LIMIT $3
                """,
                app_id,
                record_id,
                size,
            )
        return [Refusal(*row) for row in rows]

    async def erase(self, app_id: str, refusals: Sequence[Refusal]) -> int:
        """Deletes refusals of an app, and returns how many."""
        with log_unavailable():
            tag = await self._pool.execute(
                """
                DELETE FROM rejected
                WHERE app_id = $1
                    AND (reject_time_us, rejected_id) IN (
                        SELECT time_us, id FROM unnest($2::bigint[], $3::bigint[]) AS erased (time_us, id)
                    )
                """,
                app_id,
                [refusal.reject_time_us for refusal in refusals],
                [refusal.rejected_id for refusal in refusals],
            )
        return rows_affected(tag)

    async def purge(self, *, before_us: int, size: int) -> int:
        """Deletes up to `size` refusals that are older than that, and returns how many."""
        tag = await self._pool.execute(
            """
            DELETE FROM rejected
            WHERE (app_id, reject_time_us, rejected_id) IN (
                SELECT app_id, reject_time_us, rejected_id FROM rejected
                WHERE reject_time_us < $1 ORDER BY reject_time_us LIMIT $2
            )
            """,
            before_us,
            size,
        )
        return rows_affected(tag)
