"""The changes that deciding makes, as a value; and the writing of them, in a fenced transaction."""

import uuid
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from libs.db import Connection
from libs.parts import in_parts
from libs.periods import Periods
from libs.time import timestamp_us
from reengage.attribution.v1 import decision_pb2
from services.attribution.decision.decide import CONSIDERED_US
from services.attribution.decision.matching import own_key
from services.attribution.storage import hashed_ids, late_arrivals, pending, quarantine, shared_ids
from services.attribution.storage.decisions import DecisionRow, insert_decisions
from services.attribution.storage.devices import Device, Identifier, IdKey, upsert_devices, upsert_identifiers
from services.attribution.storage.engagements import find_records
from services.attribution.storage.hashed_ids import HashedKind
from services.attribution.storage.late_arrivals import LateArrival
from services.attribution.storage.pending import PendingRow
from services.attribution.storage.quarantine import SetAside
from services.attribution.storage.shared_ids import SharedIdRow
from services.attribution.wire.decisions import ad_details


class Won(NamedTuple):
    """An engagement that is stored beside a decision, and the time of what it won."""

    engagement_id: str
    time_us: int

    @classmethod
    def of(cls, message: decision_pb2.Decision) -> "Won | None":
        """Returns the engagement that won the source of a conversion; None when it is a claim, or there is none.

        Networks want their click id on what they are credited with, not only on what they won.
        """
        winner_id = message.source_engagement_id
        if not winner_id or winner_id.startswith("claim:"):
            return None
        return cls(winner_id, timestamp_us(message.source_time))


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """The changes that deciding makes; nothing of them is written yet.

    `decisions` are in the order of their sequences. `won` has for each decision, by its place, the engagement to store
    beside it. `pending` are conversions that begin to wait (E1). `merged` has for each device (lane, device id) that
    may have pending ones the one it became. `late` are records after which others are to be decided again (D12).
    `reported_late` are the networks of pings that conversions met, and that came too late for them. `set_aside` is what
    could not be processed.
    """

    decisions: Sequence[DecisionRow] = ()
    won: Mapping[int, Won] = field(default_factory=dict)
    devices: Sequence[Device] = ()
    identifiers: Mapping[IdKey, Identifier] = field(default_factory=dict)
    shared_ids: Sequence[SharedIdRow] = ()
    pending: Sequence[PendingRow] = ()
    begun_kinds: Collection[HashedKind] = ()
    finished_kinds: Collection[HashedKind] = ()
    merged: Mapping[tuple[int, uuid.UUID], uuid.UUID] = field(default_factory=dict)
    late: Sequence[LateArrival] = ()
    reported_late: Sequence[str] = ()
    set_aside: Sequence[SetAside] = ()


NO_CHANGES = Changes()


async def write(connection: Connection, periods: Periods, changes: Changes) -> None:
    """Writes changes, all but the positions of the lanes."""
    if changes.devices:
        await upsert_devices(connection, changes.devices)
    if changes.identifiers:
        await upsert_identifiers(connection, changes.identifiers)
    if changes.shared_ids:
        await shared_ids.insert(connection, changes.shared_ids)
    if changes.decisions:
        await _write_decisions(connection, periods, changes)
    if changes.begun_kinds:
        await hashed_ids.note_hashed_kinds(connection, set(changes.begun_kinds), is_on_conversions=True)
    if changes.finished_kinds:
        await hashed_ids.note_indexed(connection, changes.finished_kinds, is_on_conversions=True)
    if changes.pending:
        await pending.insert(connection, changes.pending)
    if changes.merged:
        await pending.move(connection, changes.merged)
    await _write_for_later(connection, changes)


async def _write_for_later(connection: Connection, changes: Changes) -> None:
    """Writes what others are to look at: the job that decides again, and people."""
    if changes.late:
        await late_arrivals.insert(connection, changes.late)
    if changes.set_aside:
        await quarantine.insert(connection, changes.set_aside)


async def _write_decisions(connection: Connection, periods: Periods, changes: Changes) -> None:
    """Writes decisions, each into a period that is kept as long as it."""
    await periods.ensure({(row.conversion_time_us, row.retention_days) for row in changes.decisions})
    async for rows in _with_engagements(connection, changes):
        for part in in_parts(rows, lambda row: row.size):
            await insert_decisions(connection, part)


async def _with_engagements(connection: Connection, changes: Changes) -> AsyncIterator[list[DecisionRow]]:
    """Yields the decisions, each with the record of the engagement behind it, and with what that says of the ad.

    One that is no longer stored is left out. Large ones come later than others: a thousand may have half a gigabyte.
    """
    keys = {place: own_key(changes.decisions[place].app_id, won.engagement_id) for place, won in changes.won.items()}
    asked = {(keys[place], won.time_us, changes.decisions[place].app_id) for place, won in changes.won.items()}
    places: Sequence[int] = range(len(changes.decisions))
    while places:
        records = dict[bytes, bytes]()
        if asked:
            records, asked = await find_records(connection, asked, span_us=CONSIDERED_US)
        left = {key for key, _, _ in asked}
        yield [
            _with_engagement(changes.decisions[place], records.get(keys.get(place, b"")))
            for place in places
            if keys.get(place) not in left
        ]
        places = [place for place in places if keys.get(place) in left]


def _with_engagement(row: DecisionRow, engagement: bytes | None) -> DecisionRow:
    if engagement is None:
        return row
    return row._replace(engagement=engagement, decision=row.decision + ad_details(engagement))
