"""Holding what senders hand in to the rates of their apps: one app's flood is not taken at the others' cost."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from libs.errors import ResourceExhausted
from libs.rates import RATE_LIMITED, Rates
from libs.time import to_duration
from reengage.ingest.v1 import record_batch_pb2, record_pb2
from services.ingest.model import Entry, IngestSettings

_STATUS = record_batch_pb2.RecordResult.STATUS_RATE_LIMITED
_RateCheck = record_batch_pb2.RecordBatchRequest.RateCheck


class AppRates:
    """The rates of apps, counted in records: refused ones and repeats cost as much, as they are looked at, too."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._rates = Rates(now_s)

    def hold(
        self,
        records: Sequence[record_pb2.Record],
        settings: IngestSettings,
        rate_check: _RateCheck.ValueType,
    ) -> Mapping[str, record_batch_pb2.RecordResult]:
        """Takes records from the rates of their apps; returns the apps over theirs, with the result of their records.

        Only apps that are known have a rate; records of others are refused for that.
        """
        if rate_check == _RateCheck.RATE_CHECK_WITHIN:
            return {}
        over: dict[str, record_batch_pb2.RecordResult] = {}
        for app_id, count in Counter(record.app_id for record in records).items():
            if (app := settings.apps.get(app_id)) is None:
                continue
            if rate_check == _RateCheck.RATE_CHECK_OVER:
                over[app_id] = _limited("over the rate of the app at a gateway", None)
                continue
            try:
                self._rates.take(app_id, app.records_per_second, count)
            except ResourceExhausted as error:
                over[app_id] = _limited(error.message, error.retry_after_s)
        return over


def check_some_taken(results: Sequence[record_batch_pb2.RecordResult | Entry]) -> None:
    """Raises ResourceExhausted `RATE_LIMITED` if these are the results of records that are all over their rates."""
    wait_s = 0.0
    for result in results:
        if isinstance(result, Entry) or result.status != _STATUS:
            return
        wait_s = max(wait_s, result.retry_delay.ToNanoseconds() / 1e9)
    raise ResourceExhausted(RATE_LIMITED, "every record is over the rate of its app", retry_after_s=wait_s)


def _limited(description: str, retry_after_s: float | None) -> record_batch_pb2.RecordResult:
    return record_batch_pb2.RecordResult(
        status=_STATUS,
        violations=[record_batch_pb2.FieldViolation(field="record", reason=RATE_LIMITED, description=description)],
        retry_delay=to_duration(round(retry_after_s * 1e6)) if retry_after_s is not None else None,
    )
