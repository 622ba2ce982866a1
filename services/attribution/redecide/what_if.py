"""What would be decided under other settings (G4): reads, decides, answers; writes nothing."""

import uuid
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence

from libs.db import Pool
from libs.domain.snapshots import Follower
from libs.errors import NotFound, ResourceExhausted
from libs.pages import encode_token
from reengage.attribution.v1 import what_if_pb2
from reengage.tracker.v1 import snapshot_pb2
from services.attribution.jobs.pace import Pace
from services.attribution.redecide.overrides import rules_with
from services.attribution.redecide.replay import Replay
from services.attribution.redecide.replayed import Page
from services.attribution.redecide.totals import Totals
from services.attribution.storage.replay import FIRST_DEVICE, Period, estimate
from services.attribution.wire.rulebook import Rulebook

_MOST_AT_ONCE = 2
"""They share the process and its connections with live work."""
_RETRY_S = 10.0
_PAGE = 1000
_PART_BYTES = 1_000_000


class WhatIfs:
    """Decides stored conversions again under changed settings, a few callers at a time."""

    def __init__(self, pool: Pool, settings: Follower[Rulebook], pace: Pace, now_us: Callable[[], int]) -> None:
        self._pool, self._settings, self._pace, self._now_us = pool, settings, pace, now_us
        self._running = 0

    async def run(
        self, period: Period, overrides: Sequence[snapshot_pb2.Resource], resume: tuple[uuid.UUID, int] | None
    ) -> AsyncGenerator[what_if_pb2.WhatIfResponse, None]:
        """The answer, part by part; `resume` is what the token of a part held: its last device, and the estimate.

        Raises NotFound, InvalidArgument naming every wrong change, and ResourceExhausted.
        """
        settings = self._settings.current
        if period.app_id not in settings.apps:
            raise NotFound("APP_NOT_FOUND", "there is no such app")
        rules = rules_with(settings, period.app_id, overrides)
        if self._running >= _MOST_AT_ONCE:
            raise ResourceExhausted("TOO_MANY_REPLAYS", "others are answered just now", retry_after_s=_RETRY_S)
        self._running += 1
        try:
            with self._pace.guest() as guest:
                replay = Replay(self._pool, period, rules, guest.turn)
                after: uuid.UUID | None
                after, total = resume or (FIRST_DEVICE, await self._estimate(period))
                while after is not None:
                    page = await replay.page(after, _PAGE)
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
        """The page as messages that are not too large; a part's token leads to the first device not yet complete."""
        part, totals, size = what_if_pb2.WhatIfResponse(estimated_total_count=total), Totals(), 0
        for replayed in page.replayed:
            for changed in replayed.changed:
                if size > _PART_BYTES:
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
