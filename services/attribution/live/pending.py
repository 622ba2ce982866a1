"""Conversions that wait for claims of self-attributing networks (section E): who is asked, who waits, whose turn it is.

Identities, merges and engagements of a record take effect when it is received; only deciding it waits.
"""

import asyncio
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import TypeVar

from reengage.ingest.v1 import log_pb2, record_pb2
from services.attribution.storage.pending import PendingRow, Waiting
from services.attribution.wire.records import Logged

Row = TypeVar("Row", PendingRow, Waiting)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """The networks to ask about the conversions of a batch (E1).

    `networks` by app and event (`_install` for an install). No app but `app_ids` has conversions that are asked about,
    or that wait already. `deadline_us` is that of those that begin to wait.
    """

    networks: Mapping[tuple[str, str], tuple[str, ...]]
    app_ids: frozenset[str]
    deadline_us: int


NOBODY = Asking(networks={}, app_ids=frozenset(), deadline_us=0)


class Pending:
    """The pending conversions as a worker knows them without asking the database.

    `app_ids` are the apps that may have some. `changed` is set when some began to wait.
    """

    def __init__(self, app_ids: Collection[str]) -> None:
        self.app_ids = frozenset(app_ids)
        self.changed = asyncio.Event()
        self._begun: list[PendingRow] = []

    def begin(self, rows: Collection[PendingRow]) -> None:
        """Notes that these wait from now on, unless the transaction that said so has failed."""
        if rows:
            self.app_ids |= {row.app_id for row in rows}
            # What was answered, and waits again behind another install, is not asked about again: the answer stays.
            self._begun += [row for row in rows if row.claims is None]
            self.changed.set()

    def take(self) -> list[PendingRow]:
        """Returns those that began to wait since the last call."""
        begun, self._begun = self._begun, []
        return begun


def in_turn(rows: Iterable[Row]) -> list[Row]:
    """Returns those of the rows, given in order of device and receipt, that can be decided now.

    An install that cannot holds back all that its device sent later: they would be decided without it (source, MTR
    clock). An event holds back those that wait for claims themselves, and no others.
    """
    found = []
    for _, of_device in groupby(rows, key=attrgetter("device_id")):
        is_event_ahead = False
        for row in of_device:
            if not row.is_asked_about or (row.is_answered and not is_event_ahead):
                found.append(row)
            elif row.is_install:
                break
            else:
                is_event_ahead = True
    return found


def row_of(
    logged: Logged,
    device_id: uuid.UUID,
    *,
    is_install: bool = False,
    network_ids: Sequence[str] = (),
    deadline_us: int = 0,
) -> PendingRow:
    """Returns the row of a record that begins to wait."""
    entry, record = logged
    return PendingRow(
        lane=entry.app_lane,
        app_id=record.app_id,
        conversion_id=record.record_id,
        device_id=device_id,
        is_install=is_install,
        log_lane=entry.lane,
        position=entry.position,
        receive_time_us=entry.receive_time_us,
        settings_revision=record.settings_revision,
        record=entry.record,
        network_ids=list(network_ids),
        deadline_us=deadline_us,
    )


def entry_of(row: PendingRow) -> log_pb2.LogEntry:
    """Returns the entry of a row as the log served it."""
    return log_pb2.LogEntry(
        lane=row.log_lane,
        position=row.position,
        app_lane=row.lane,
        receive_time_us=row.receive_time_us,
        record=row.record,
    )


def logged_of(row: PendingRow) -> Logged:
    """Returns the record of a row as the log served it."""
    return Logged(entry_of(row), record_pb2.Record.FromString(row.record))
