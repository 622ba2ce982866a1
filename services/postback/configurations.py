"""Every configuration, in memory: no query stands between a conversion and those who want it."""

import asyncio

from libs.vault import Vault
from libs.worker import keep_running
from services.postback.model import Configuration, Status
from services.postback.store import Store
from services.postback.wire import compiled, from_stored

POLL_S = 1.0


class Catalog:
    """The configurations as they are stored: at once after a write of this process, within a second after others'."""

    def __init__(self, store: Store, vault: Vault) -> None:
        self._store, self._vault = store, vault
        self._revision = 0
        self._by_id: dict[str, Configuration] = {}
        self._by_trigger: dict[tuple[str, str], tuple[Configuration, ...]] = {}
        self._changed = asyncio.Event()
        self._reading = asyncio.Lock()

    def get(self, configuration_id: str) -> Configuration | None:
        """A configuration by its id, archived ones too."""
        return self._by_id.get(configuration_id)

    def triggered(self, app_id: str, trigger: str) -> tuple[Configuration, ...]:
        """An app's configurations for `_install` or an event, of every status, by id."""
        return self._by_trigger.get((app_id, trigger), ())

    def claim_triggers(self) -> list[tuple[str, str, str]]:
        """Every app, trigger and network with a live claim-capable configuration, in order."""
        return sorted(
            {
                (one.app_id, one.trigger, one.network_id)
                for one in self._by_id.values()
                if one.status is Status.LIVE and one.adapter.is_claim_capable
            }
        )

    def next_change(self) -> asyncio.Event:
        """Set when any configuration has changed from what it is now."""
        return self._changed

    def sendable(self) -> list[Configuration]:
        """Those whose deliveries may be sent: all but the paused ones."""
        return [one for one in self._by_id.values() if one.status is not Status.PAUSED]

    async def refresh(self) -> None:
        """Read what was written since. Raises ValueError when secrets fit none of the keys."""
        async with self._reading:
            revision, changed = await self._store.configurations_since(self._revision)
            if not changed:
                return
            by_id = dict(self._by_id)
            for stored in changed:
                by_id[stored.configuration_id] = compiled(from_stored(stored, self._vault))
            by_trigger: dict[tuple[str, str], list[Configuration]] = {}
            for one in sorted(by_id.values(), key=lambda one: one.configuration_id):
                by_trigger.setdefault((one.app_id, one.trigger), []).append(one)
            self._by_id, self._by_trigger = by_id, {key: tuple(those) for key, those in by_trigger.items()}
            self._revision = revision
            self._changed.set()
            self._changed = asyncio.Event()

    async def run(self) -> None:
        """Follow what other processes write, until cancelled."""
        await keep_running("configurations", self._poll)

    async def _poll(self) -> None:
        await asyncio.sleep(POLL_S)
        await self.refresh()
