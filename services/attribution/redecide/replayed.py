"""The results of a replay: what came out differently, and what conversions counted as before and count as now."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from libs.time import to_timestamp
from reengage.attribution.v1 import decision_pb2
from services.attribution.decision.history import Attribution
from services.attribution.decision.model import Conversion, Decision
from services.attribution.storage.replay import FIRST_DEVICE, Stored
from services.attribution.wire.decisions import continued_message, decision_message, restate

_COLUMNS: Mapping[int, str] = {
    decision_pb2.OUTCOME_ATTRIBUTED: "installs",
    decision_pb2.OUTCOME_ORGANIC: "installs",
    decision_pb2.OUTCOME_REPROCESSED: "installs",
    decision_pb2.OUTCOME_REPROCESSED_ORGANIC: "installs",
    decision_pb2.OUTCOME_REENGAGED: "reengagements",
    decision_pb2.OUTCOME_CREDITED: "credited_events",
    decision_pb2.OUTCOME_UNATTRIBUTED: "credited_events",
}

Credit: TypeAlias = tuple[str, str, str]
"""The network, the tracker, and the column of CreditCounts that a conversion counts in; "" if it counts in none."""


class Changed(NamedTuple):
    """A decision that comes out differently: None for a session that turns out to have gone on (D4)."""

    stored: Stored
    conversion: Conversion
    decision: Decision | None

    def message(self, decide_time_us: int) -> decision_pb2.Decision:
        """Returns the new decision as the next version."""
        if self.decision is None:
            message = continued_message(self.conversion, self.stored.decision.settings_revision)
        else:
            message = decision_message(self.conversion, self.decision)
        restate(message, self.stored.decision)
        message.version = self.stored.version + 1
        message.decide_time.CopyFrom(to_timestamp(decide_time_us))
        return message


@dataclass(slots=True, kw_only=True)
class Replayed:
    """A device, with those that were merged with it, decided again.

    `device_id` is what they became, `last_device_id` the last of them with conversions in the period. `conversion_ids`
    are all that were read, `attributions` what they make of the device's history. `credits` are, by conversion decided,
    the credit before and now. `moved` are engagements on limited trackers that have won another conversion now, or one
    less (D5), each with the time of such a conversion.
    """

    device_id: uuid.UUID
    device_ids: frozenset[uuid.UUID]
    conversion_ids: frozenset[str]
    last_device_id: uuid.UUID = FIRST_DEVICE
    attributions: list[Attribution] = field(default_factory=list)
    credits: list[tuple[Credit, Credit]] = field(default_factory=list)
    changed: list[Changed] = field(default_factory=list)
    moved: dict[str, int] = field(default_factory=dict)

    def add(self, stored: Stored, changed: Changed | None) -> None:
        """Adds a conversion of the period that was decided."""
        before = now = _stored_credit(stored.decision)
        if changed is not None:
            self.changed.append(changed)
            now = _credit(changed.decision)
        self.credits.append((before, now))
        self.last_device_id = max(self.last_device_id, stored.device_id)


class Page(NamedTuple):
    """Some devices decided again, in the order of `last_device_id`; after the last page `last_device_id` is None."""

    replayed: list[Replayed]
    last_device_id: uuid.UUID | None


def _stored_credit(message: decision_pb2.Decision) -> Credit:
    return message.network_id, message.tracker_id, _COLUMNS.get(message.outcome, "")


def _credit(decision: Decision | None) -> Credit:
    if decision is None:
        return "", "", ""
    outcome = decision_pb2.Outcome.Value(f"OUTCOME_{decision.outcome}")
    return decision.network_id or "", decision.tracker_id or "", _COLUMNS.get(outcome, "")
