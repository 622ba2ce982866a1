"""Tables kept by period: a row goes with its whole partition when its time is over, never by a DELETE.

A schema that keeps tables so has them PARTITION BY RANGE of the time in microseconds, by month, and each month by LIST
(retention_days). Two functions of every schema (`schema.sql`) run as its owner, as its service may not change tables:
`make_period(month, days)` gives each of these tables a partition, `drop_partition(name)` takes one away. A partition is
called after its table, month and days: `decisions_202611_400`.
"""

import asyncio
from calendar import monthrange
from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache

import structlog
from prometheus_client import Counter

from libs.db import Pool, transactions
from libs.time import DAY_US, now_us

ROUND_INTERVAL_S = 600.0
_EPOCH = date(1970, 1, 1)

_made = Counter("periods_made_total", "Months and retentions that tables were given partitions for.")
_dropped = Counter("partitions_dropped_total", "Partitions dropped as past their time.", ["table"])
_log = structlog.get_logger()


class Periods:
    """The periods that the tables of one schema have partitions for."""

    def __init__(self, pool: Pool, now_us: Callable[[], int] = now_us) -> None:
        self._pool, self._now_us = pool, now_us
        self._made: set[tuple[date, int]] = set()

    async def ensure(self, rows: Iterable[tuple[int, int]]) -> None:
        """Makes the partitions that rows (time in microseconds, days they are kept) need and that are not there.

        Over a connection of its own, so that they are there for good, whatever becomes of the caller's transaction.
        """
        by_day = {(time_us // DAY_US, days) for time_us, days in rows}
        # Of what is past by now another process may drop the partitions any moment: for that it is asked every time.
        for month, days in sorted({(_month(day), days) for day, days in by_day}):
            if (month, days) in self._made and not self._is_past(month, days):
                continue
            if await self._pool.fetchval("SELECT make_period($1, $2)", month, days):
                _made.inc()
            self._made.add((month, days))

    async def drop_past(self) -> None:
        """Drops every partition of which nothing is to be kept any more."""
        rows = await self._pool.fetch(
            """
            SELECT relname FROM pg_class
            WHERE relnamespace = current_schema()::regnamespace AND relkind = 'r' AND relispartition
            ORDER BY relname
            """
        )
        for (name,) in rows:
            table, month, days = name.rsplit("_", 2)
            if self._is_past(date(int(month[:4]), int(month[4:]), 1), int(days)):
                # Who uses the table waits for the lock of the drop, so that waits only a moment, and is tried again.
                async for attempt in transactions(self._pool):
                    async with attempt as connection:
                        await connection.execute("SELECT drop_partition($1)", name)
                _dropped.labels(table).inc()
                _log.info("partition.dropped", table=table, month=month, days=int(days))

    async def run(self) -> None:
        """Drops what is past every ten minutes, until cancelled."""
        while True:
            await self.drop_past()
            await asyncio.sleep(ROUND_INTERVAL_S)

    def _is_past(self, month: date, days: int) -> bool:
        # As numbers of days: no date is later than the year 9999.
        next_month = month.toordinal() + monthrange(month.year, month.month)[1]
        return next_month + days <= datetime.fromtimestamp(self._now_us() / 1e6, UTC).toordinal()


@lru_cache(maxsize=4096)
def _month(day: int) -> date:
    """Returns the first day of the month of a day since 1970."""
    return (_EPOCH + timedelta(days=day)).replace(day=1)
