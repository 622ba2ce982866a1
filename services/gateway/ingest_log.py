"""The ways into ingest's log: straight, or for clicks and impressions over the spool when ingest is slow."""

import asyncio
import errno
from collections.abc import Sequence
from typing import TypeAlias

import grpc
import structlog
from prometheus_client import Counter, Gauge

from libs.call_context import REQUEST_ID_HEADER
from libs.domain.record_sizes import MAX_RECORD_BYTES
from libs.errors import ResourceExhausted, ServiceError, Unavailable, from_rpc_error
from reengage.ingest.v1 import record_batch_pb2
from services.gateway.batches import Outcome
from services.gateway.spool import Spool, SpoolFullError

_RecordBatch: TypeAlias = "grpc.aio.UnaryUnaryMultiCallable[bytes, record_batch_pb2.RecordBatchResponse]"
_METHOD = "/reengage.ingest.v1.IngestService/RecordBatch"
_REJECTED = record_batch_pb2.RecordResult.STATUS_REJECTED
_RateCheck = record_batch_pb2.RecordBatchRequest.RateCheck
_LOST_LOG_INTERVAL_S = 5.0
_LOST_RETRY_S = 5.0
_RESEND_PATIENCE_S = 10.0

_lost = Counter("gateway_engagements_lost_total", "Clicks and impressions that could be kept nowhere.")
_refused = Counter("gateway_engagements_refused_total", "Clicks and impressions that ingest refused.")
_spooled = Counter("gateway_engagements_spooled_total", "Clicks and impressions that went over the spool.")
_spool_refused = Counter(
    "gateway_spool_refused_total",
    "Groups of clicks and impressions that the spool did not take: SpoolFull, or the system's name of the error.",
    ["because"],
)
_spool_bytes = Gauge("gateway_spool_bytes", "Bytes waiting in the spool.")
_log = structlog.get_logger()


class IngestLog:
    """Ingest's `RecordBatch`, for records that are serialised already."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        # A generated stub would want each record as a message.
        self._record_batch: _RecordBatch = channel.unary_unary(
            _METHOD, response_deserializer=record_batch_pb2.RecordBatchResponse.FromString
        )

    async def store(
        self,
        records: Sequence[bytes],
        request_id: str,
        timeout_s: float | None = None,
        rate_check: _RateCheck.ValueType = _RateCheck.RATE_CHECK_WITHIN,
    ) -> Sequence[record_batch_pb2.RecordResult]:
        """Returns one result a record, in order. Raises `Unavailable` or `ResourceExhausted`, to be retried.

        Routes hold records to the rates of their apps before they take them. What was taken is stored, also when the
        spool held it up.
        """
        request = record_batch_pb2.SerialisedRecords(records=records, rate_check=rate_check).SerializeToString()
        try:
            response = await self._record_batch(request, timeout=timeout_s, metadata=((REQUEST_ID_HEADER, request_id),))
        except grpc.aio.AioRpcError as error:
            raise _as_service_error(error) from None
        return response.results

    async def try_to_store(self, records: Sequence[bytes], request_id: str) -> Sequence[Outcome]:
        """Returns the same, with the error as the outcome of every record."""
        return await self._try(records, request_id, _RateCheck.RATE_CHECK_WITHIN)

    async def try_to_list(self, records: Sequence[bytes], request_id: str) -> Sequence[Outcome]:
        """Returns likewise one outcome for each record over the rate of its app: these are listed as refused."""
        return await self._try(records, request_id, _RateCheck.RATE_CHECK_OVER)

    async def _try(
        self, records: Sequence[bytes], request_id: str, rate_check: _RateCheck.ValueType
    ) -> Sequence[Outcome]:
        try:
            return await self.store(records, request_id, rate_check=rate_check)
        except ServiceError as error:
            return [error] * len(records)


class EngagementLog:
    """The keeper of clicks and impressions: in ingest's log if that takes at most `patience_s`, else in the spool.

    After a failure everything goes to the spool at once, until ingest has taken the oldest of it. Whether a record sent
    in vain was stored all the same does not matter: its record id makes the second time a repeat. While the spool takes
    nothing, ingest is tried each time: nobody else would find out that it is back.
    """

    def __init__(self, ingest: IngestLog, spool: Spool, *, patience_s: float) -> None:
        self._ingest, self._spool, self._patience_s = ingest, spool, patience_s
        self._ingest_is_well = True
        self._spool_refuses = False
        self._next_log_s = 0.0
        _spool_bytes.set_function(lambda: spool.size_bytes)

    async def keep(self, records: Sequence[bytes], request_id: str) -> Sequence[Outcome]:
        """Returns one outcome a record: a result once it is durable somewhere, else `Unavailable` `ENGAGEMENT_LOST`."""
        if self._ingest_is_well or self._spool_refuses:
            try:
                results = await self._ingest.store(records, request_id, self._patience_s)
            except ServiceError as error:
                if self._ingest_is_well:
                    _log.warning("ingest.slow", reason=error.reason)
                self._ingest_is_well = False
            else:
                _count_refused(results)
                self._ingest_is_well = self._ingest_is_well or not self._spool.size_bytes
                return results
        try:
            await self._spool.append(records)
        except (SpoolFullError, OSError) as error:
            self._spool_refuses = True
            return self._lose(len(records), error)
        self._spool_refuses = False
        _spooled.inc(len(records))
        return [record_batch_pb2.RecordResult(status=record_batch_pb2.RecordResult.STATUS_ACCEPTED)] * len(records)

    async def resend(self) -> None:
        """Sends on what the spool holds, until cancelled. Raises what keeps it from that; begun anew, it goes on."""
        await self._spool.resend(self._send_on)

    async def _send_on(self, records: Sequence[bytes]) -> None:
        fitting = [record for record in records if len(record) <= MAX_RECORD_BYTES]
        if len(fitting) < len(records):
            # Ingest would refuse them, if the call could be made at all: nothing comes after what cannot be sent.
            _refused.inc(len(records) - len(fitting))
            _log.error("engagement.refused", count=len(records) - len(fitting), reasons=["TOO_LARGE"])
        if fitting:
            _count_refused(await self._ingest.store(fitting, "resending", _RESEND_PATIENCE_S))
        if not self._ingest_is_well:
            self._ingest_is_well = True
            _log.info("ingest.well")

    def _lose(self, count: int, error: Exception) -> Sequence[Outcome]:
        _lost.inc(count)
        because = errno.errorcode.get(error.errno or 0, "OSError") if isinstance(error, OSError) else "SpoolFull"
        _spool_refused.labels(because).inc()
        now_s = asyncio.get_running_loop().time()
        if now_s >= self._next_log_s:
            self._next_log_s = now_s + _LOST_LOG_INTERVAL_S
            _log.error("engagement.lost", count=count, because=because)
        lost = Unavailable("ENGAGEMENT_LOST", "ingest is away and the spool takes no more", retry_after_s=_LOST_RETRY_S)
        return [lost] * count


def _count_refused(results: Sequence[record_batch_pb2.RecordResult]) -> None:
    refused = sum(result.status == _REJECTED for result in results)
    if refused:
        _refused.inc(refused)
        reasons = sorted({violation.reason for result in results for violation in result.violations})
        _log.warning("engagement.refused", count=refused, reasons=reasons)


def _as_service_error(error: grpc.aio.AioRpcError) -> ServiceError:
    found = from_rpc_error(error)
    retry_after_s = found.retry_after_s or 1.0
    if found.code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return ResourceExhausted(found.reason, "too much is waiting to be stored", retry_after_s=retry_after_s)
    if found.code not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        _log.error("ingest.failed", code=found.code.name, reason=found.reason)
    return Unavailable("LOG_UNAVAILABLE", "nothing can be stored just now", retry_after_s=retry_after_s)
