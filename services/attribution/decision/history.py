"""The attributions of a device so far: the state that decisions read and extend.

One small value a device. Attributions lie in time order (equal times: by receipt), so a late record finds the source of
its own time, and merging two devices is merging two lists.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any, NamedTuple, Self

from libs.domain.event_names import SESSION_BEGIN
from services.attribution.decision.model import (
    DAY_US,
    MINUTE_US,
    AttributionType,
    Conversion,
    ConversionKind,
    Decision,
    MatchKind,
    Outcome,
    Reason,
)

KEPT_US = 33 * DAY_US
"""A record is at most 31 days late and 1 ahead (ingest), and D4 looks back 1 day more."""

MAX_ATTRIBUTIONS = 1_000
"""OURS: so many of its latest attributions a device remembers beside its installs; nearly all have one or two.

Each decision looks at all of them: else one more costs as much as there are."""

SESSION_GAP_US = 30 * MINUTE_US
"""A session that starts within this time of its device's latest activity goes on (D4)."""
MAX_SESSIONS = 20
"""OURS: so many of its latest session starts a device remembers that are in no decision."""

ATTRIBUTING = frozenset(
    {Outcome.ATTRIBUTED, Outcome.ORGANIC, Outcome.REPROCESSED, Outcome.REPROCESSED_ORGANIC, Outcome.REENGAGED}
)
"""Outcomes that make a conversion its device's source (D6)."""


class Attribution(NamedTuple):
    """An install that was no duplicate, or a won event: from `time_us` on it is the device's source (D6).

    Organic: type NONE and no tracker. `event_name` is "" for an install. `redacted`: its campaign is withheld (E2).
    """

    time_us: int
    receive_time_us: int
    conversion_id: str
    kind: ConversionKind
    type: AttributionType
    event_name: str = ""
    tracker_id: str | None = None
    network_id: str | None = None
    engagement_id: str | None = None
    matched_by: MatchKind | None = None
    redacted: bool = False

    @classmethod
    def of(cls, conversion: Conversion, decision: Decision) -> "Attribution | None":
        """Returns what a decision makes its conversion for the device, None when that is no source of it (D6)."""
        if decision.outcome not in ATTRIBUTING:
            return None
        return cls(
            time_us=conversion.time_us,
            receive_time_us=conversion.receive_time_us,
            conversion_id=conversion.conversion_id,
            kind=conversion.kind,
            type=decision.attribution_type,
            event_name=conversion.event_name,
            tracker_id=decision.tracker_id,
            network_id=decision.network_id,
            engagement_id=decision.engagement_id,
            matched_by=decision.matched_by,
            redacted=decision.redacted,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceHistory:
    """A device's attributions in time order, and the latest of its session starts that went on or wait for claims."""

    attributions: tuple[Attribution, ...] = ()
    session_us: tuple[int, ...] = ()

    @classmethod
    def made_of(cls, attributions: Iterable[Attribution]) -> Self:
        """Returns the history of these attributions, given in any order."""
        return cls(attributions=_in_order(tuple(attributions)))

    @property
    def latest(self) -> Attribution | None:
        """Returns the latest attribution: where the MTR clock starts (D3)."""
        return self.attributions[-1] if self.attributions else None

    @property
    def first_install(self) -> Attribution | None:
        """Returns the install whose attribution the device shows for good (D7); of merged devices the older."""
        return _first_install(self.attributions)

    @property
    def latest_install(self) -> Attribution | None:
        """Returns the install from which reprocessing is counted (F2)."""
        return _first_install(reversed(self.attributions))

    def known_to(self, conversion: Conversion, late_window_us: int) -> "DeviceHistory":
        """Returns the part of the history that a conversion is decided with, in the order of times (D12).

        That is what happened before it, unless that arrived after the late window of the conversion; and what happened
        later, if that was decided for good when the conversion arrived. Without a late window it is all of it.
        """
        if not late_window_us or not self.attributions:
            return self
        time_us, receive_time_us = conversion.time_us, conversion.receive_time_us
        for a in self.attributions:
            if a.time_us > time_us or a.receive_time_us > receive_time_us:
                break
        else:  # nearly always all of it is earlier by both
            return self
        known = [
            a
            for a in self.attributions
            if (
                a.receive_time_us <= receive_time_us + late_window_us
                if (a.time_us, a.receive_time_us) <= (time_us, receive_time_us)
                else a.receive_time_us + late_window_us < receive_time_us
            )
        ]
        return self if len(known) == len(self.attributions) else replace(self, attributions=tuple(known))

    @property
    def active_us(self) -> Iterable[int]:
        """Returns the times at which the device was active, as far as its history knows (D13)."""
        return (*(attribution.time_us for attribution in self.attributions), *self.session_us)

    def source_at(self, time_us: int) -> Attribution | None:
        """Returns the latest attribution at or before a time (D6), None when there was none yet."""
        return next((a for a in reversed(self.attributions) if a.time_us <= time_us), None)

    def session_reengaged_near(self, time_us: int) -> bool:
        """Returns whether SessionBegin reengaged the device within 24 hours before or, of a late record, after (D4)."""
        for attribution in reversed(self.attributions):
            if attribution.time_us <= time_us - DAY_US:
                return False
            if attribution.event_name == SESSION_BEGIN and attribution.time_us < time_us + DAY_US:
                return True
        return False

    def after(self, conversion: Conversion, decision: Decision) -> "DeviceHistory":
        """Returns the history once a decision on a conversion of this device holds."""
        attribution = Attribution.of(conversion, decision)
        return self if attribution is None else self.including(attribution)

    def including(self, attribution: Attribution) -> "DeviceHistory":
        """Returns the history with one attribution more."""
        attributions = (*self.attributions, attribution)
        if self.attributions and attribution[:3] < self.attributions[-1][:3]:  # else it is the latest, as nearly always
            attributions = _in_order(attributions)
        return DeviceHistory(attributions=attributions, session_us=self.session_us)

    def goes_on(self, time_us: int, active_us: Iterable[int]) -> bool:
        """Returns whether a session that starts at a time goes on with earlier activity, and so is no event (D4).

        `active_us` are times of the device's events, among them its sessions; an install is none of them. OURS: a
        session begins anew exactly 30 minutes after the latest of them.
        """
        return any(time_us - SESSION_GAP_US < each <= time_us for each in (*active_us, *self.session_us))

    def after_session(self, time_us: int) -> "DeviceHistory":
        """Returns the history with a session start that is in no decision, or not yet."""
        return replace(self, session_us=_latest((*self.session_us, time_us)))

    def without_session(self, time_us: int) -> "DeviceHistory":
        """Returns the history without the session starts of a time."""
        return replace(self, session_us=tuple(each for each in self.session_us if each != time_us))

    def compacted(self, now_us: int) -> "DeviceHistory":
        """Drops what no rule can ask for any more, while records older than 31 days are refused.

        Kept are the first and the latest install, of the last 33 days the latest 1,000, and the attribution in force
        before them.
        """
        horizon = now_us - KEPT_US
        if len(self.attributions) > MAX_ATTRIBUTIONS:
            horizon = max(horizon, self.attributions[-MAX_ATTRIBUTIONS].time_us - 1)
        kept = {self.first_install, self.latest_install, self.source_at(horizon)}
        return replace(self, attributions=tuple(a for a in self.attributions if a.time_us > horizon or a in kept))

    def to_json(self) -> dict[str, Any]:
        """Returns it as compact JSON; `from_json` gives the equal history back."""
        return {
            "attributions": [list(attribution) for attribution in self.attributions],
            "session_us": list(self.session_us),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        return cls(
            attributions=tuple(_attribution(*row) for row in value["attributions"]),
            session_us=tuple(value["session_us"]),
        )


def merge(a: DeviceHistory, b: DeviceHistory) -> DeviceHistory:
    """Joins the histories of devices that turn out to be one: both stay, and the older install comes first (D7)."""
    if a == b or not (b.attributions or b.session_us):
        return a
    by_id = {attribution.conversion_id: attribution for attribution in a.attributions + b.attributions}
    return DeviceHistory(attributions=_in_order(tuple(by_id.values())), session_us=_latest(a.session_us + b.session_us))


def identity_link_refusal(history: DeviceHistory | None) -> Reason | None:
    """Returns why an identity link is refused (F3): nothing of its device, install or other record, came before it.

    `history` is None for a device that no record made known yet.
    """
    return Reason.DEVICE_NOT_KNOWN if history is None else None


def _first_install(attributions: Iterable[Attribution]) -> Attribution | None:
    install = ConversionKind.INSTALL
    for attribution in attributions:
        if attribution.kind is install:
            return attribution
    return None


def _latest(session_us: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted(set(session_us))[-MAX_SESSIONS:])


def _in_order(attributions: tuple[Attribution, ...]) -> tuple[Attribution, ...]:
    return tuple(sorted(attributions, key=itemgetter(0, 1, 2)))


def _attribution(
    time_us: int, receive_time_us: int, conversion_id: str, kind: str, type_: str, *rest: Any
) -> Attribution:
    event_name, tracker_id, network_id, engagement_id, matched_by, redacted = rest
    return Attribution(
        time_us,
        receive_time_us,
        conversion_id,
        ConversionKind(kind),
        AttributionType(type_),
        event_name,
        tracker_id,
        network_id,
        engagement_id,
        MatchKind(matched_by) if matched_by else None,
        redacted,
    )
