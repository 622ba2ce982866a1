"""Follows which conversions claims are requested for (E1)."""

import asyncio
from collections.abc import Iterable, Mapping

from libs.broadcast import within
from libs.db import Pool, transactions
from libs.worker import keep_running
from reengage.postback.v1 import claim_pb2
from reengage.postback.v1 import service_pb2_grpc as postback_grpc
from services.attribution.live.pending import Asking
from services.attribution.storage import claim_triggers
from services.attribution.storage.claim_triggers import Trigger

_FIRST_LIST_WAIT_S = 3.0


class ClaimTriggers:
    """The conversions that claims are requested for, as postback says; without postback as it said last.

    `wait_s`: so long a conversion waits for its claims at most, counted from when it was first taken up.
    """

    def __init__(self, pool: Pool, postback: postback_grpc.PostbackServiceStub, *, wait_s: float) -> None:
        self._pool, self._postback, self.wait_s = pool, postback, wait_s
        self._networks: Mapping[tuple[str, str], tuple[str, ...]] = {}
        self._app_ids: frozenset[str] = frozenset()
        self._loaded, self._heard = asyncio.Event(), asyncio.Event()

    def asking(self, pending_app_ids: frozenset[str], now_us: int) -> Asking:
        """Returns who is asked about what is taken up now."""
        return Asking(
            networks=self._networks,
            app_ids=self._app_ids | pending_app_ids,
            deadline_us=now_us + round(self.wait_s * 1e6),
        )

    async def ready(self) -> None:
        """Waits for the list: postback's, or after a few seconds without one that of last time."""
        await self._loaded.wait()
        await within(self._heard, _FIRST_LIST_WAIT_S)

    async def run(self) -> None:
        """Follows postback until cancelled."""
        await keep_running("claim_triggers", self._follow)

    async def _follow(self) -> None:
        if not self._loaded.is_set():
            self._use(await claim_triggers.read(self._pool))
            self._loaded.set()
        call = self._postback.WatchClaimTriggers(claim_pb2.WatchClaimTriggersRequest())
        try:
            async for response in call:
                triggers = {(each.app_id, each.event_name, each.network_id) for each in response.triggers}
                self._use(triggers)
                self._heard.set()
                async for attempt in transactions(self._pool):
                    async with attempt as connection:
                        await claim_triggers.replace(connection, triggers)
        finally:
            call.cancel()

    def _use(self, triggers: Iterable[Trigger]) -> None:
        networks: dict[tuple[str, str], tuple[str, ...]] = {}
        for app_id, event_name, network_id in sorted(triggers):
            networks[app_id, event_name] = (*networks.get((app_id, event_name), ()), network_id)
        self._networks, self._app_ids = networks, frozenset(app_id for app_id, _ in networks)
