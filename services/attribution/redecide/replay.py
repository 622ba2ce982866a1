"""Decides an app's stored conversions again (G4), with the code and from the inputs of the first time.

Device by device, in the order of their ids: each conversion at the place where it was first decided, with the history
that the earlier ones, decided again, make; with the engagements below the heads it was decided at, and the ids its
device was known by. It reads the database and writes nothing.
"""

import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping

from libs.db import Connection, Pool
from libs.domain.event_names import INSTALL
from reengage.attribution.v1 import decision_pb2
from services.attribution.decision.decide import decide, eligibility
from services.attribution.decision.history import DeviceHistory, merge
from services.attribution.decision.model import Conversion, Decision, Engagement, Reason
from services.attribution.decision.rules import AppRules
from services.attribution.redecide.families import Family, read_families
from services.attribution.redecide.inputs import InputReader, Inputs
from services.attribution.redecide.replayed import Changed, Page, Replayed
from services.attribution.redecide.stored_conversions import history_after, outline
from services.attribution.storage.replay import FIRST_DEVICE, Merge, Period, Stored, Win, find_devices
from services.attribution.wire.decisions import says
from services.attribution.wire.records import claims_of

_MAY_BE_ELIGIBLE = frozenset(
    {
        decision_pb2.REASON_UNSPECIFIED,
        decision_pb2.REASON_NO_CANDIDATE,
        decision_pb2.REASON_NO_WINNER,
        decision_pb2.REASON_EVENT_NOT_SELECTED,
    }
)
_ELIGIBLE = frozenset({Reason.NO_CANDIDATE, Reason.NO_WINNER})
"""The reasons of conversions that could have been won; those that were won have none."""
_NOTHING = DeviceHistory()


class Replay:
    """Decides the conversions of one period again under one set of rules.

    `turn` is awaited every few milliseconds of work.
    """

    def __init__(self, pool: Pool, period: Period, rules: AppRules, turn: Callable[[], Awaitable[None]]) -> None:
        self._pool, self._period, self._rules, self._turn = pool, period, rules, turn
        self._limited = frozenset(
            tracker_id for tracker_id, each in rules.trackers.items() if each.tracker.max_conversions_per_engagement
        )
        self._inputs = InputReader(period, rules, self._limited, turn)

    async def page(self, after: uuid.UUID, size: int) -> Page:
        """Returns the devices after one, with about `size` conversions in the period, all as of one moment."""
        async with (
            self._pool.acquire() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            device_ids, is_last = await find_devices(connection, self._period, after, size)
            if not device_ids:
                return Page([], None)
            replayed = await self.devices(connection, device_ids)
        # A device merged with one of a later page comes with that.
        here = sorted(
            (each for each in replayed if each.last_device_id <= device_ids[-1]), key=lambda each: each.last_device_id
        )
        return Page(here, None if is_last else device_ids[-1])

    async def devices(self, connection: Connection, device_ids: Collection[uuid.UUID]) -> list[Replayed]:
        """Returns these devices decided again, each with all that were merged with it, as the transaction sees them."""
        families = await read_families(connection, self._period, device_ids, self._turn)
        inputs = Inputs()
        await self._inputs.read(connection, families, inputs, self._may_be_eligible)
        done, again = await self._decide_all(families, inputs)
        if again:  # decisions that changed have made others winnable: now all of these devices have their candidates
            await self._inputs.read(connection, again, inputs, self._can_be_eligible)
            rest, again = await self._decide_all(again, inputs)
            assert not again, "every conversion that any history leaves winnable has its candidates"
            done += rest
        return done

    async def _decide_all(self, families: Iterable[Family], inputs: Inputs) -> tuple[list[Replayed], list[Family]]:
        """Returns the families decided again, and those that lack candidates of a conversion."""
        done, again = [], []
        for family in families:
            await self._turn()
            replayed = await self._decide(family, inputs)
            if replayed is None:
                again.append(family)
            else:
                done.append(replayed)
        return done, again

    def _may_be_eligible(self, stored: Stored) -> bool:
        """Guesses whether a conversion can be won: as it could before, or because its event is selected now."""
        decision = stored.decision
        if decision.event_name != INSTALL and decision.event_name not in self._rules.reengaging_events:
            return False
        return decision.reason in _MAY_BE_ELIGIBLE

    def _can_be_eligible(self, stored: Stored) -> bool:
        """Returns whether a conversion can be won after any history: the one without attributions leaves most."""
        return eligibility(outline(stored), DeviceHistory(), self._rules) is None

    async def _decide(self, family: Family, inputs: Inputs) -> Replayed | None:
        """Returns a family decided again, None when a conversion can be won and its candidates were not read."""
        histories, wins = dict(family.histories), Counter[str]()
        own_ids = frozenset(stored.conversion_id for stored in family.conversions)
        replayed = Replayed(last_device_id=FIRST_DEVICE, conversion_ids=own_ids, histories=histories)
        merges = [merge_ for merge_ in family.merges if merge_.sequence is not None]
        for stored in family.conversions:
            await self._turn()  # a device may have 100,000: a worker that gives no turns for seconds loses its lanes
            while merges and (merges[0].sequence or 0) <= stored.sequence:
                _join(histories, merges.pop(0))
            before = histories.get(stored.device_id, _NOTHING)
            changed = None
            if stored.record is None or stored.conversion_id in inputs.incomplete:
                histories[stored.device_id] = history_after(before, stored)
                engagement_id: str | None = stored.decision.engagement_id
            else:
                decided = self._decide_one(stored, before, inputs, wins, own_ids)
                if decided is None:
                    return None
                conversion, decision = decided
                histories[stored.device_id] = before.after(conversion, decision)
                engagement_id = decision.engagement_id
                if not says(stored.decision, decision):
                    changed = Changed(stored, conversion, decision)
            if engagement_id:
                wins[engagement_id] += 1
            if stored.record is not None:
                replayed.add(stored, changed)
        for merge_ in merges:
            _join(histories, merge_)
        return replayed

    def _decide_one(
        self,
        stored: Stored,
        history: DeviceHistory,
        inputs: Inputs,
        own_wins: Mapping[str, int],
        own_ids: frozenset[str],
    ) -> tuple[Conversion, Decision] | None:
        found = inputs.candidates.get(stored.conversion_id)
        conversion = outline(stored) if found is None else found.conversion
        candidates: Mapping[str, Engagement] = {} if found is None else found.engagements
        claims, unavailable = claims_of(stored.claims)
        decision = decide(
            conversion,
            history,
            self._rules,
            candidates=candidates.values(),
            wins=self._wins(candidates, stored.sequence, inputs.wins, own_wins, own_ids) if self._limited else {},
            claims=claims,
            claims_unavailable=unavailable,
        )
        if found is None and (decision.reason is None or decision.reason in _ELIGIBLE):
            return None
        return conversion, decision

    def _wins(
        self,
        candidates: Mapping[str, Engagement],
        sequence: int,
        wins: Mapping[str, list[Win]],
        own_wins: Mapping[str, int],
        own_ids: frozenset[str],
    ) -> dict[str, int]:
        """Returns the earlier wins of candidates on limited trackers (D5).

        Those of other devices are as stored, those of its own as they were decided again.
        """
        return {
            engagement_id: own_wins.get(engagement_id, 0)
            + sum(won_at < sequence and by not in own_ids for by, won_at in wins.get(engagement_id, ()))
            for engagement_id, engagement in candidates.items()
            if engagement.tracker_id in self._limited
        }


def _join(histories: dict[uuid.UUID, DeviceHistory], merge_: Merge) -> None:
    other = histories.get(merge_.device_id, _NOTHING)
    histories[merge_.into] = merge(histories.get(merge_.into, _NOTHING), other)
    histories[merge_.device_id] = _NOTHING
