"""Decides an app's stored conversions again (G4, D12), with the code and from the inputs of the first time.

Device by device, in the order of their ids; the conversions of a device in the order of their times, each with the
history that the earlier ones, decided again, make, and with the engagements that were received in time. It reads the
database and writes nothing.
"""

import uuid
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set

from libs.db import Connection, Pool
from libs.domain.event_names import INSTALL
from reengage.attribution.v1 import decision_pb2
from services.attribution.decision.decide import CONSIDERED_US, decide, eligibility
from services.attribution.decision.grouping import Group
from services.attribution.decision.history import SESSION_GAP_US, Attribution, DeviceHistory
from services.attribution.decision.model import Conversion, Decision, Engagement, Reason, Win
from services.attribution.decision.rules import AppRules
from services.attribution.redecide.families import Family, read_families
from services.attribution.redecide.inputs import InputReader, Inputs
from services.attribution.redecide.replayed import Changed, Page, Replayed
from services.attribution.redecide.stored_conversions import attribution_as_stored, is_session_start, outline
from services.attribution.storage.replay import Period, Stored, find_devices
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


class OwnWins:
    """The wins of the conversions of one family: as they are stored, but for those that have `moved`.

    `moved` gives the engagement that wins a conversion now, "" for none.
    """

    def __init__(self, family: Family) -> None:
        self._conversions = family.conversions
        self.moved: dict[str, str] = {}

    def are_of(self, win: Win) -> bool:
        """Returns whether a win is one of these conversions."""
        return win.conversion_id in self._conversions

    def of(self, engagement_ids: Set[str]) -> Iterator[tuple[str, Win]]:
        """Yields the wins of these engagements."""
        for conversion_id, stored in self._conversions.items():
            engagement_id = self.moved.get(conversion_id, stored.decision.engagement_id)
            if engagement_id in engagement_ids:
                yield engagement_id, Win(stored.time_us, stored.receive_time_us, conversion_id)


class Replay:
    """A replay of the conversions of one period.

    `rules` are those of every conversion; or `rules_of` gives each its own. Only engagements received until a time
    count, and `turn` is awaited every few milliseconds of work. With `sessions_too` the start of a session is no event
    any more if it turns out to have gone on, and one if it turns out not to (D4).
    """

    def __init__(
        self,
        pool: Pool,
        period: Period,
        rules: AppRules,
        turn: Callable[[], Awaitable[None]],
        *,
        until_us: int,
        rules_of: Callable[[Stored], AppRules] | None = None,
        sessions_too: bool = False,
    ) -> None:
        self._pool, self._period, self._turn, self._sessions_too = pool, period, turn, sessions_too
        self._rules_of = rules_of or (lambda _: rules)
        self._late_window_us = rules.app.late_window_us
        self._inputs = InputReader(period, self._rules_of, self._late_window_us, until_us, turn)

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
        # A device merged with one of another page comes with the last of them that has a conversion decided here.
        here = [each for each in replayed if after < each.last_device_id <= device_ids[-1]]
        here.sort(key=lambda each: each.last_device_id)
        return Page(here, None if is_last else device_ids[-1])

    async def devices(self, connection: Connection, device_ids: Collection[uuid.UUID]) -> list[Replayed]:
        """Returns these devices decided again, each with all that were merged with it, as the transaction sees them."""
        families = await read_families(connection, self._period, device_ids, self._turn)
        inputs = Inputs()
        if self._sessions_too:
            await self._inputs.read_sessions(connection, families)
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

    def _is_decided(self, stored: Stored) -> bool:
        """Returns whether a conversion is decided again; a session that went on only where sessions are, too."""
        return stored.in_period and (self._sessions_too or stored.decision.outcome != decision_pb2.OUTCOME_CONTINUED)

    def _may_be_eligible(self, stored: Stored) -> bool:
        """Guesses whether a conversion can be won: as it could before, or because its event is selected now."""
        decision = stored.decision
        if decision.event_name != INSTALL and decision.event_name not in self._rules_of(stored).reengaging_events:
            return False
        return decision.reason in _MAY_BE_ELIGIBLE

    def _can_be_eligible(self, stored: Stored) -> bool:
        """Returns whether a conversion can be won after any history: the one without attributions leaves most."""
        return eligibility(outline(stored), DeviceHistory(), self._rules_of(stored)) is None

    async def _decide(self, family: Family, inputs: Inputs) -> Replayed | None:
        """Returns a family decided again, None when a conversion can be won and its candidates were not read."""
        timeline = family.timeline(self._late_window_us)
        wins = OwnWins(family)
        replayed = Replayed(
            device_id=family.device_id,
            device_ids=frozenset(family.device_ids),
            conversion_ids=frozenset(family.conversions),
        )
        for place in timeline.places():
            stored: Stored | None = timeline.steps[place].record
            await self._turn()  # a device may have 100,000: a worker that gives no turns for seconds loses its lanes
            if stored is None:
                attribution = timeline.steps[place].attribution
            elif not self._is_decided(stored):
                attribution = attribution_as_stored(stored)
            elif stored.conversion_id in inputs.incomplete:
                attribution = attribution_as_stored(stored)
                replayed.add(stored, None)
            elif self._goes_on(stored, known := timeline.known_to(place)):
                attribution = None
                went_on = stored.decision.outcome == decision_pb2.OUTCOME_CONTINUED
                replayed.add(stored, None if went_on else Changed(stored, outline(stored), None))
                self._note_win(stored, None, replayed, wins)
            else:
                decided = self._decide_one(stored, known, inputs, wins)
                if decided is None:
                    return None
                conversion, decision = decided
                is_changed = not says(stored.decision, decision)
                replayed.add(stored, Changed(stored, conversion, decision) if is_changed else None)
                self._note_win(stored, decision, replayed, wins)
                attribution = Attribution.of(conversion, decision)
            if attribution is not None and stored is not None:
                replayed.attributions.append(attribution)
            timeline.settle(place, attribution)
        return replayed

    def _goes_on(self, stored: Stored, known: Group) -> bool:
        """Returns whether the start of a session turns out to have gone on with what came before it (D4)."""
        if not self._sessions_too or not is_session_start(stored):
            return False
        return known.history.goes_on(stored.time_us, known.active_since(stored.time_us - SESSION_GAP_US))

    def _note_win(self, stored: Stored, decision: Decision | None, replayed: Replayed, wins: OwnWins) -> None:
        """Notes the engagement that wins a conversion now, if that is another than before."""
        before, engagement_id = stored.decision, "" if decision is None else decision.engagement_id or ""
        if before.engagement_id == engagement_id:
            return
        wins.moved[stored.conversion_id] = engagement_id
        limited = self._rules_of(stored).limited_trackers
        if before.tracker_id in limited and before.engagement_id:
            replayed.moved[before.engagement_id] = stored.time_us
        if decision is not None and decision.tracker_id in limited and engagement_id:
            replayed.moved[engagement_id] = stored.time_us

    def _decide_one(
        self, stored: Stored, known: Group, inputs: Inputs, own_wins: OwnWins
    ) -> tuple[Conversion, Decision] | None:
        found = inputs.candidates.get(stored.conversion_id)
        conversion = outline(stored) if found is None else found.conversion
        candidates: Mapping[str, Engagement] = {} if found is None else found.engagements
        rules = self._rules_of(stored)
        claims, unavailable = claims_of(stored.claims)
        decision = decide(
            conversion,
            known.history,
            rules,
            candidates=candidates.values(),
            wins=self._wins_before(conversion, candidates.values(), rules, inputs.wins, own_wins),
            active_us=known.active_since(conversion.time_us - CONSIDERED_US - rules.app.inactivity_window_us),
            claims=claims,
            claims_unavailable=unavailable,
        )
        if found is None and (decision.reason is None or decision.reason in _ELIGIBLE):
            return None
        return conversion, decision

    def _wins_before(
        self,
        conversion: Conversion,
        candidates: Iterable[Engagement],
        rules: AppRules,
        stored_wins: Mapping[str, Sequence[Win]],
        own_wins: OwnWins,
    ) -> dict[str, int]:
        """Returns the earlier wins of candidates on limited trackers (D5).

        Those of other devices are as stored, those of its own as they were decided again.
        """
        if not rules.limited_trackers:
            return {}
        limited = {each.engagement_id for each in candidates if each.tracker_id in rules.limited_trackers}
        if not limited:
            return {}
        before = dict.fromkeys(limited, 0)
        others = [(each, win) for each in limited for win in stored_wins.get(each, ()) if not own_wins.are_of(win)]
        for engagement_id, win in (*others, *own_wins.of(limited)):
            if win.conversion_id != conversion.conversion_id:
                before[engagement_id] += win.counts_for(conversion, self._late_window_us)
        return before
