"""Every configuration, in memory: no query stands between a conversion and those who want it."""

import asyncio

import structlog

from libs.broadcast import Broadcast
from libs.vault import Vault
from libs.worker import keep_running
from services.postback.adapters.adapter import ADAPTERS
from services.postback.model import Configuration, Status
from services.postback.storage.configurations import ConfigurationStore, StoredConfiguration
from services.postback.wire import compiled, from_stored

POLL_INTERVAL_S = 1.0

_log = structlog.get_logger()


class Configurations:
    """The configurations as they are stored: at once after a write of this process, soon after others'."""

    def __init__(self, store: ConfigurationStore, vault: Vault, *, poll_interval_s: float = POLL_INTERVAL_S) -> None:
        """`poll_interval_s` is the time after which another process's write is seen."""
        self._store, self._vault, self._poll_interval_s = store, vault, poll_interval_s
        self._revision = 0
        self._by_id: dict[str, Configuration] = {}
        self._by_trigger: dict[tuple[str, str], tuple[Configuration, ...]] = {}
        self._changed = Broadcast()
        self._reading = asyncio.Lock()

    def get(self, configuration_id: str) -> Configuration | None:
        """Returns a configuration by its id, archived ones too."""
        return self._by_id.get(configuration_id)

    def triggered(self, app_id: str, trigger: str) -> tuple[Configuration, ...]:
        """Returns an app's configurations for `_install` or an event, of every status, by id."""
        return self._by_trigger.get((app_id, trigger), ())

    def claim_triggers(self) -> list[tuple[str, str, str]]:
        """Returns every app, trigger and network with a live claim-capable configuration, in order."""
        return sorted(
            {
                (one.app_id, one.trigger, one.network_id)
                for one in self._by_id.values()
                if one.status is Status.LIVE and one.is_claim_capable
            }
        )

    def next_change(self) -> asyncio.Event:
        """Returns an event that is set when any configuration has changed from what it is now."""
        return self._changed.next()

    def sendable(self) -> list[Configuration]:
        """Returns those whose deliveries may be sent: all but the paused ones."""
        return [one for one in self._by_id.values() if one.status is not Status.PAUSED]

    async def refresh(self) -> None:
        """Reads what was written since. Raises ValueError when secrets fit none of the keys."""
        async with self._reading:
            revision, changed = await self._store.since(self._revision)
            if not changed:
                return
            by_id = dict(self._by_id)
            for stored in changed:
                by_id.pop(stored.configuration_id, None)
                if configuration := self._compiled(stored):
                    by_id[stored.configuration_id] = configuration
            by_trigger: dict[tuple[str, str], list[Configuration]] = {}
            for one in sorted(by_id.values(), key=lambda one: one.configuration_id):
                by_trigger.setdefault((one.app_id, one.trigger), []).append(one)
            self._by_id, self._by_trigger = by_id, {key: tuple(ones) for key, ones in by_trigger.items()}
            self._revision = revision
            self._changed.notify()

    async def run(self) -> None:
        """Follows what other processes write, until cancelled."""
        await keep_running("configurations", self._poll)

    async def _poll(self) -> None:
        await asyncio.sleep(self._poll_interval_s)
        await self.refresh()

    def _compiled(self, stored: StoredConfiguration) -> Configuration | None:
        message = from_stored(stored, self._vault)
        if message.adapter not in ADAPTERS:
            # A newer release has written it; its deliveries wait for that.
            _log.warning(
                "configuration.unknown_adapter", configuration_id=stored.configuration_id, adapter=message.adapter
            )
            return None
        return compiled(message)
