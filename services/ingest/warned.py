"""Records that something was left out of: counted, and the newest kept for whoever wonders."""

import asyncio
import random
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Sequence

from prometheus_client import Counter

from libs.domain.device_ids import KNOWN_KINDS
from libs.time import to_timestamp
from reengage.ingest.v1 import record_pb2, warned_record_pb2
from services.ingest.model import Warned, WarnedRow

KEEP_INTERVAL_S = 0.2
_MAX_WAITING_OF_APP = 20

_counted = Counter(
    "ingest_warnings_total",
    "Wrong fields that accepted records were kept without, by app, field (`other` where a sender names one of his own) "
    "and code.",
    ["app_id", "field", "code"],
)

_CODES = frozenset(
    {
        "TOO_LONG", "TOO_MANY", "INVALID_TEXT", "INVALID_TYPE", "INVALID_VALUE", "INVALID_BOOLEAN", "INVALID_NUMBER",
        "INVALID_TIME", "INVALID_AMOUNT", "INVALID_CURRENCY", "INVALID_IP_ADDRESS", "NOT_FLAT", "RESERVED_NAME",
        "UNKNOWN_DEVICE_ID", "NO_DEVICE_ID", "TRACKING_NOT_AUTHORIZED", "REQUIRED", "MORE",
    }
)  # fmt: skip
"""The codes of FieldWarning. A sender may give any text."""
# What senders of JSON call their fields, where that is not the name of a field of Record.
_WIRE_NAMES = frozenset(
    {
        "data", "usertime", "origination_ip", "device_ua", "device_ver", "device_limit_tracking", "app_ver",
        "app_tracking_transparency", "gdpr_privacy_consent", "install_referrer", "state", "currency", "device_id",
        "event_name", "event_data",
    }
)  # fmt: skip


def _fields_of_record() -> frozenset[str]:
    fields = record_pb2.Record.DESCRIPTOR.fields
    parts = [(field.name, field.message_type.fields) for field in fields if field.message_type is not None]
    return frozenset({f"{name}.{inner.name}" for name, part in parts for inner in part} | {one.name for one in fields})


_FIELDS = _fields_of_record() | _WIRE_NAMES


class WarnedRecords:
    """A queue that takes records at once, and every `KEEP_INTERVAL_S` writes the newest 20 at most of each app.

    All are counted. `keep` stores rows; to store one twice changes nothing.
    """

    def __init__(self, keep: Callable[[Sequence[WarnedRow]], Awaitable[None]]) -> None:
        self._keep = keep
        self._waiting: defaultdict[str, deque[WarnedRow]] = defaultdict(lambda: deque(maxlen=_MAX_WAITING_OF_APP))

    def add(self, record_id: str, warned: Warned, now_us: int) -> None:
        """Notes a record that was accepted."""
        warnings = [*warned.given, *warned.found]
        for warning in warnings:
            code = warning.code if warning.code in _CODES else "other"
            _counted.labels(warned.app_id, counted_field(warning.field), code).inc()
        row = warned_record_pb2.WarnedRecord(
            accept_time=to_timestamp(now_us), record_id=record_id, kind=warned.kind, warnings=warnings
        )
        self._waiting[warned.app_id].append(
            WarnedRow(warned.app_id, now_us, random.getrandbits(63), record_id, row.SerializeToString())
        )

    async def run(self) -> None:
        """Writes until cancelled. Raises what keeps it from writing; begun anew, it goes on where it was."""
        while True:
            await asyncio.sleep(KEEP_INTERVAL_S)
            rows = [row for waiting in self._waiting.values() for row in waiting]
            if rows:
                await self._keep(rows)
                self._forget({row.warned_id for row in rows})

    def _forget(self, written: set[int]) -> None:
        for app_id, waiting in list(self._waiting.items()):
            left = [row for row in waiting if row.warned_id not in written]
            waiting.clear()
            waiting.extend(left)
            if not left:
                del self._waiting[app_id]


def counted_field(path: str) -> str:
    """Returns a field's path without the names that senders choose: of those there is no end."""
    first, _, rest = path.removeprefix("data.").partition(".")
    second = rest.partition(".")[0]
    nested = f"{first}.{second}"
    if nested in _FIELDS or (first == "device_ids" and second in KNOWN_KINDS):
        return nested
    return first if first in _FIELDS else "other"
