"""The trace of records that the gateway itself refuses: they are in no log of ingest's."""

import asyncio
from collections import Counter

import prometheus_client
import structlog

from libs.errors import ServiceError
from services.gateway.asgi import Refused

_SAID_EVERY_S = 1.0

_refused = prometheus_client.Counter(
    "gateway_records_refused_total",
    "Records refused before they reached ingest, by reason (of the first wrong field, if there is one) and status.",
    ["reason", "status"],
)
_log = structlog.get_logger()


class Refusals:
    """Counts refused records, and says how many in at most one line a second for each reason and status."""

    def __init__(self) -> None:
        self._unsaid: Counter[tuple[str, int]] = Counter()

    def note(self, error: Refused | ServiceError, records: int = 1) -> None:
        """Count records that were refused alike. Reasons are words of our code, so that there are few."""
        refused = error if isinstance(error, Refused) else Refused.by(error)
        reason = refused.fields[0].reason if refused.fields else refused.code
        key = reason, refused.status
        _refused.labels(reason, str(refused.status)).inc(records)
        if key not in self._unsaid:
            asyncio.get_running_loop().call_later(_SAID_EVERY_S, self._say, key)
        self._unsaid[key] += records

    def _say(self, key: tuple[str, int]) -> None:
        reason, status = key
        _log.warning("records.refused", reason=reason, status=status, count=self._unsaid.pop(key))
