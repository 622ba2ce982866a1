"""The ways into ingest's log, while ingest is away."""

import asyncio
from pathlib import Path

from structlog.testing import capture_logs

from libs.channels import open_channel
from libs.worker import keep_running
from services.gateway.ingest_log import EngagementLog, IngestLog
from services.gateway.spool import Spool
from tests.support.eventually import until


async def test_resending_that_waits_for_ingest_says_so_in_a_line(tmp_path: Path) -> None:
    async with (
        open_channel("unix:" + str(tmp_path / "nobody.sock")) as channel,
        Spool(tmp_path / "spool", max_bytes=1 << 20) as spool,
    ):
        await spool.append([b"x"])
        log = EngagementLog(IngestLog(channel), spool, patience_s=1)
        with capture_logs() as lines:
            resending = asyncio.create_task(keep_running("resending", log.resend))
            await until(lambda: len(lines) >= 2)
            resending.cancel()
    for line in lines:
        assert line.pop("log_level") in ("info", "warning")
        assert line == {"event": "worker.waiting", "worker": "resending", "error": "LOG_UNAVAILABLE"}
