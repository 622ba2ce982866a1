"""A running tracker for the sample."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.conftest import Database
from tests.support.processes import tracker_process


@pytest.fixture
async def tracker_target(database: Database, process_logs: Path) -> AsyncIterator[str]:
    """Yields a tracker process of the test's own, as what it loads is whose ids others may use, too."""
    process = tracker_process(process_logs / "tracker_of_sample.log", dsn=database.dsn("tracker"))
    await process.start()
    yield process.target
    await process.stop()
