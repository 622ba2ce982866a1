"""The trace of records that the gateway itself refuses, as ingest never sees them."""

import asyncio
from collections import Counter

import prometheus_client
import structlog

from libs.errors import ServiceError
from services.gateway.errors import Refused

_LOG_INTERVAL_S = 1.0

_refused = prometheus_client.Counter(
    "gateway_records_refused_total",
    "Records refused before they reached ingest, by reason (of the first wrong field, if there is one) and status.",
    ["reason", "status"],
)
_log = structlog.get_logger()


class RefusalTrace:
    """Counts of refused records, logged in at most one line every `log_interval_s` for each reason and status."""

    def __init__(self, *, log_interval_s: float = _LOG_INTERVAL_S) -> None:
        self._log_interval_s = log_interval_s
        self._unlogged: Counter[tuple[str, int]] = Counter()

    def note(self, error: Refused | ServiceError, records: int = 1) -> None:
        """Counts records that were refused alike. Reasons are words of our code, so that there are few."""
        refused = error if isinstance(error, Refused) else Refused.by(error)
        reason = refused.fields[0].reason if refused.fields else refused.code
        key = reason, refused.status
        _refused.labels(reason, str(refused.status)).inc(records)
        if key not in self._unlogged:
            asyncio.get_running_loop().call_later(self._log_interval_s, self._write_line, key)
        self._unlogged[key] += records

    def _write_line(self, key: tuple[str, int]) -> None:
        reason, status = key
        _log.warning("records.refused", reason=reason, status=status, count=self._unlogged.pop(key))
