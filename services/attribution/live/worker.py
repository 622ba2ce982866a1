"""The worker: owns lanes, and runs its loops on them for as long as the set of owned lanes stays the same.

Each loop rebuilds all it holds from the database, so a crash needs no cleanup. Every transaction of theirs is fenced by
the lanes' owner.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import structlog
from prometheus_client import Gauge

from libs.db import Pool, transactions
from libs.domain.lanes import LANES
from libs.worker import keep_running
from services.attribution.live.owned_lanes import OwnedLanes
from services.attribution.storage.hashed_ids import read_hashed_kinds
from services.attribution.storage.lanes import (
    LanesLostError,
    forget_worker,
    read_indexed,
    read_owned_lanes,
    release_lanes,
    renew_lanes,
    see_worker,
    take_lanes,
)
from services.attribution.storage.pending import pending_app_ids

_log = structlog.get_logger()

_lanes_owned = Gauge("attribution_lanes_owned", "Lanes this worker owns.")

Loop: TypeAlias = Callable[[OwnedLanes], Awaitable[None]]
"""A loop on owned lanes. It writes inside of `OwnedLanes.fenced`, and starts from the database each time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """`lease_s`: after this long without a sign of life a worker's lanes go to others."""

    worker_id: str
    lease_s: float = 5.0


class Worker:
    """One attribution worker; several share the lanes. `ready` is awaited before it takes any."""

    def __init__(
        self, config: WorkerConfig, pool: Pool, loops: Mapping[str, Loop], *, ready: Callable[[], Awaitable[object]]
    ) -> None:
        self._config, self._pool, self._loops, self._ready = config, pool, loops, ready

    async def run(self) -> None:
        """Works until cancelled, then gives the lanes back."""
        await self._ready()
        try:
            await keep_running("ownership", self._own)
        finally:
            with contextlib.suppress(Exception):  # the leases end by themselves
                await forget_worker(self._pool, self._config.worker_id)

    async def _own(self) -> None:
        """Holds a fair share of the lanes and works on them; anew whenever the share changes."""
        owned: frozenset[int] = frozenset()
        work: asyncio.Task[None] | None = None
        try:
            while True:
                share = await self._balance(owned)
                if share != owned or (work is not None and work.done()):
                    await _stop(work)
                    if surplus := owned - share:
                        await release_lanes(self._pool, self._config.worker_id, surplus)
                    owned = share
                    work = asyncio.ensure_future(self._work(owned)) if owned else None
                    _lanes_owned.set(len(owned))
                    _log.info("lanes.owned", count=len(owned))
                beat_s = min(1.0, self._config.lease_s / 5)
                if work is None:
                    await asyncio.sleep(beat_s)
                else:
                    await asyncio.wait([work], timeout=beat_s)
        finally:
            await _stop(work)
            _lanes_owned.set(0)

    async def _balance(self, owned: frozenset[int]) -> frozenset[int]:
        """Renews the leases, takes what is free up to the fair share, and returns what to own from now on."""
        worker_id, lease_s = self._config.worker_id, self._config.lease_s
        share = owned
        async for attempt in transactions(self._pool):
            async with attempt as connection:
                workers = await see_worker(connection, worker_id, lease_s)
                mine = await renew_lanes(connection, worker_id, lease_s)
                fair = -(-LANES // workers)
                if len(mine) < fair:
                    mine |= await take_lanes(connection, worker_id, fair - len(mine), lease_s)
                # Keep what is already being worked on; a lane given away goes to a worker that has too few.
                share = frozenset(sorted(mine, key=lambda lane: (lane not in owned, lane))[:fair])
                if idle := mine - share - owned:  # left over from a run that failed: nobody works on them
                    await release_lanes(connection, worker_id, idle)
        return share

    async def _work(self, owned: frozenset[int]) -> None:
        """Runs the loops until cancelled, or until the owned lanes turn out to be lost."""
        lanes = OwnedLanes(
            self._pool,
            self._config.worker_id,
            await read_owned_lanes(self._pool, self._config.worker_id, owned),
            indexed=await read_indexed(self._pool),
            pending_app_ids=await pending_app_ids(self._pool, owned),
            hashed=await read_hashed_kinds(self._pool, owned),
        )
        try:
            async with asyncio.TaskGroup() as group:
                for name, loop in self._loops.items():
                    group.create_task(_until_lanes_lost(name, partial(loop, lanes)))
        except* LanesLostError:  # the next beat says which lanes are left
            pass


async def _until_lanes_lost(name: str, body: Callable[[], Awaitable[None]]) -> None:
    """Keeps a loop running through every failure but one: who lost lanes must stop, not try again."""
    lost = asyncio.Event()

    async def guarded() -> None:
        try:
            await body()
        except LanesLostError:
            lost.set()
            raise asyncio.CancelledError from None

    try:
        await keep_running(name, guarded)
    except asyncio.CancelledError:
        if lost.is_set():
            raise LanesLostError from None
        raise


async def _stop(task: asyncio.Task[None] | None) -> None:
    """Cancels a task and waits for its end; how it ended does not matter any more."""
    if task is not None:
        task.cancel()
        await asyncio.wait([task])
