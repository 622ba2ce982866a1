"""The what-ifs: replays under other settings, which write nothing (G4)."""

import uuid
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import dataclass

from libs.db import Pool
from libs.domain.snapshots import Follower
from libs.errors import NotFound, ResourceExhausted
from libs.pages import encode_token
from reengage.attribution.v1 import what_if_pb2
from reengage.tracker.v1 import snapshot_pb2
from services.attribution.pace import Pace
from services.attribution.redecide.overrides import rules_with
from services.attribution.redecide.replay import Replay
from services.attribution.redecide.replayed import Page
from services.attribution.redecide.totals import Totals
from services.attribution.storage.replay import FIRST_DEVICE, Period, estimate
from services.attribution.wire.rulebook import Rulebook

_RETRY_AFTER_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WhatIfConfig:
    """The limits of what-ifs."""

    max_running: int = 2
    """What-ifs at the same time: they share the process and its connections with live work."""
    page_size: int = 1_000
    """About how many conversions are decided again in one transaction."""
    max_response_bytes: int = 1_000_000
    """About the size at which a response is sent."""


class WhatIfs:
    """The what-ifs of a process, a few at a time."""

    def __init__(
        self,
        pool: Pool,
        settings: Follower[Rulebook],
        pace: Pace,
        now_us: Callable[[], int],
        config: WhatIfConfig = WhatIfConfig(),
    ) -> None:
        self._pool, self._settings, self._pace, self._now_us = pool, settings, pace, now_us
        self._config = config
        self._running = 0

    async def run(
        self, period: Period, overrides: Sequence[snapshot_pb2.Resource], resume: tuple[uuid.UUID, int] | None
    ) -> AsyncGenerator[what_if_pb2.WhatIfResponse, None]:
        """Yields the result, part by part. `resume` are the values of a token: the last device, and the estimate.

        Raises NotFound, InvalidArgument with every wrong override, and ResourceExhausted.
        """
        settings = self._settings.current
        if period.app_id not in settings.apps:
            raise NotFound("APP_NOT_FOUND", "there is no such app")
        rules = rules_with(settings, period.app_id, overrides)
        if self._running >= self._config.max_running:
            raise ResourceExhausted("TOO_MANY_REPLAYS", "other what-ifs are running", retry_after_s=_RETRY_AFTER_S)
        self._running += 1
        try:
            with self._pace.guest() as guest:
                replay = Replay(self._pool, period, rules, guest.turn, until_us=self._now_us())
                after: uuid.UUID | None
                after, total = resume or (FIRST_DEVICE, await self._estimate(period))
                while after is not None:
                    page = await replay.page(after, self._config.page_size)
                    for part in self._parts(page, after, total):
                        yield part
                    after = page.last_device_id
                    await guest.turn()
        finally:
            self._running -= 1

    async def _estimate(self, period: Period) -> int:
        async with self._pool.acquire() as connection:
            return await estimate(connection, period)

    def _parts(self, page: Page, after: uuid.UUID, total: int) -> Iterator[what_if_pb2.WhatIfResponse]:
        """Yields a page in responses that are not too large; a token leads to the first device that is not complete."""
        part, totals, size = what_if_pb2.WhatIfResponse(estimated_total_count=total), Totals(), 0
        for replayed in page.replayed:
            for changed in replayed.changed:
                if size > self._config.max_response_bytes:
                    part.totals.extend(totals.messages())
                    part.resume_token = encode_token(str(after), total)
                    yield part
                    part, totals, size = what_if_pb2.WhatIfResponse(estimated_total_count=total), Totals(), 0
                pair = part.changed.add(before=changed.stored.decision, after=changed.message(self._now_us()))
                size += pair.ByteSize()
            part.conversion_count += len(replayed.credits)
            totals.add(replayed.credits)
            after = replayed.last_device_id
        part.totals.extend(totals.messages())
        if page.last_device_id is not None:
            part.resume_token = encode_token(str(page.last_device_id), total)
        yield part
