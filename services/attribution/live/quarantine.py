"""Sets aside what cannot be processed, so that the rest goes on.

What fails on a batch is tried again in halves, until the one that fails alone is found. Whether something failed
because of what it is, or because a neighbour is away, the error says.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import asyncpg
import grpc
import structlog
from google.protobuf.message import DecodeError
from prometheus_client import Counter, Gauge

from libs.db import DATABASE_AWAY
from libs.errors import ResourceExhausted, Unavailable
from libs.messages import short_name
from reengage.attribution.v1 import quarantine_pb2
from reengage.ingest.v1 import log_pb2, record_pb2
from services.attribution.live.log_reader import LogShorterError
from services.attribution.storage.lanes import LanesLostError
from services.attribution.storage.quarantine import MAX_ERROR, SetAside
from services.attribution.wire.records import RecordTooLargeError

_log = structlog.get_logger()
_set_aside = Counter(
    "attribution_quarantined_total",
    "Things that could not be processed and were set aside, by work and reason.",
    ["work", "reason"],
)
lying = Gauge(
    "attribution_quarantined_waiting", "Things that lie set aside, in the lanes of this worker, by work.", ["work"]
)

MAX_TIMEOUTS = 3
"""So often a thing that takes too long alone is tried before it is set aside: the database may have been busy."""

REFUSING = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DATA_LOSS,
    }
)
"""What postback may say of a decision; all else says that it cannot be reached, or not now."""

_OF_THE_DATA = (
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.CardinalityViolationError,
    asyncpg.ProgramLimitExceededError,
)
_CIRCUMSTANCES = (
    *DATABASE_AWAY,
    asyncpg.InterfaceError,
    grpc.RpcError,
    LanesLostError,
    LogShorterError,
    OSError,
    ResourceExhausted,
    Unavailable,
)
_WORK = quarantine_pb2.QuarantineWork.DESCRIPTOR
_REASON = quarantine_pb2.QuarantineReason.DESCRIPTOR


def is_circumstance(error: Exception) -> bool:
    """Returns whether an error says nothing against what was processed: the same may succeed a little later."""
    if isinstance(error, TimeoutError):  # a statement that took too long: a smaller one may not
        return False
    if isinstance(error, asyncpg.PostgresError):
        return not isinstance(error, _OF_THE_DATA)
    return isinstance(error, _CIRCUMSTANCES)


async def in_halves(
    count: int,
    process: Callable[[range], Awaitable[None]],
    set_aside: Callable[[int, Exception], Awaitable[None]],
    is_circumstance: Callable[[Exception], bool] = is_circumstance,
) -> None:
    """Processes things, given by their places, in their order; a batch that fails in halves.

    What fails alone is set aside. Raises an error that is a circumstance.
    """
    waiting = [range(count)] if count else []
    timeouts = 0
    while waiting:
        some = waiting.pop()
        try:
            await process(some)
        except Exception as error:
            if is_circumstance(error):
                raise
            if len(some) > 1:
                waiting += [some[len(some) // 2 :], some[: len(some) // 2]]
                continue
            if isinstance(error, TimeoutError) and timeouts + 1 < MAX_TIMEOUTS:
                timeouts += 1
                waiting.append(some)
                continue
            await set_aside(some[0], error)
        timeouts = 0
        await asyncio.sleep(0)


def reason_of(error: Exception) -> quarantine_pb2.QuarantineReason.ValueType:
    """Returns why something that failed is set aside."""
    match error:
        case RecordTooLargeError():
            return quarantine_pb2.QUARANTINE_REASON_TOO_LARGE
        case DecodeError():
            return quarantine_pb2.QUARANTINE_REASON_UNPARSABLE
        case TimeoutError():
            return quarantine_pb2.QUARANTINE_REASON_TIMED_OUT
        case grpc.RpcError():
            return quarantine_pb2.QUARANTINE_REASON_REFUSED
        case _:
            return quarantine_pb2.QUARANTINE_REASON_FAILED


def text_of(error: Exception) -> str:
    """Returns the bounded text of an error; NUL can be stored nowhere."""
    said = error.details() if isinstance(error, grpc.aio.AioRpcError) else str(error)
    return f"{type(error).__name__}: {said}".replace("\0", "")[:MAX_ERROR]


def entry_set_aside(
    entry: log_pb2.LogEntry, work: quarantine_pb2.QuarantineWork.ValueType, error: Exception
) -> SetAside:
    """Returns the row of a log entry that could not be processed."""
    try:
        record = record_pb2.Record.FromString(entry.record)
    except DecodeError:
        record = record_pb2.Record()
    return SetAside(
        lane=entry.app_lane,
        work=work,
        app_id=record.app_id,
        place=f"{entry.lane}:{entry.position}",
        record_id=record.record_id,
        reason=reason_of(error),
        error=text_of(error),
        log_lane=entry.lane,
        position=entry.position,
        receive_time_us=entry.receive_time_us,
        record=entry.record,
    )


def count_set_aside(rows: Sequence[SetAside]) -> None:
    """Counts and logs what was set aside; the log names nobody."""
    for row in rows:
        work, reason = short_name(_WORK, row.work), short_name(_REASON, row.reason)
        _set_aside.labels(work, reason).inc()
        _log.warning("quarantine.set_aside", work=work, reason=reason, app_id=row.app_id)
