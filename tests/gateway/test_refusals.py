"""The trace of records that the gateway itself refuses."""

from structlog.testing import capture_logs

from libs.errors import InvalidArgument, Violation
from services.gateway.errors import Refused
from services.gateway.refusals import RefusalTrace
from tests.support.eventually import until


async def test_refusals_are_logged_once_an_interval_with_their_number() -> None:
    time_wrong = InvalidArgument([Violation(field="usertime", reason="INVALID_TIME", description="d")])
    with capture_logs() as lines:
        trace = RefusalTrace(log_interval_s=0.01)
        for _ in range(100):
            trace.note(time_wrong)
        trace.note(Refused(415, "UNSUPPORTED_ENCODING", "m"), 7)
        await until(lambda: len(lines) >= 2)
    line = {"event": "records.refused", "log_level": "warning"}
    assert lines == [
        {**line, "reason": "INVALID_TIME", "status": 400, "count": 100},
        {**line, "reason": "UNSUPPORTED_ENCODING", "status": 415, "count": 7},
    ]
