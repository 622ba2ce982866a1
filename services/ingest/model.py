"""The words of the record log. Times are integers: microseconds (`_us`) or seconds (`_s`) since 1970."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

_MADE_ID = re.compile("[0-9a-f]{24}-([0-9a-f]{8})")

DAY_S = 86_400
REPEAT_WINDOW_S = 7 * DAY_S
"""How long a record is remembered to tell its repeats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class App:
    """What ingest must know of a live app: how old or early a record may be, its lane, and its defined events."""

    max_age_us: int
    max_lead_us: int
    app_lane: int
    event_names: frozenset[str]
    """Events that have a definition, archived or not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Live apps by id, and the app of every tracker, archived ones too: what becomes of those is for the decision."""

    apps: Mapping[str, App]
    app_of_tracker: Mapping[str, str]
    stamp: bytes
    """A serialised Record that has nothing but the settings_revision."""


class Entry(NamedTuple):
    """A record ready to be stored. A tuple, because the hot path makes one for every record."""

    key: bytes
    """16 bytes that are equal for a record and its repeats, and for nothing else."""
    record_id: str
    """The sender's, or the one made for it, should it be accepted now."""
    has_given_id: bool
    """Whether record_id is the sender's."""
    accept_time_s: int
    lane: int
    app_lane: int
    is_engagement: bool | None
    """None: an engagement and a conversion, as a deep-link open that stands for its own click."""
    record: bytes
    """The serialised Record with record_id and event_time in place."""

    def first_record_id(self, first_time_s: int) -> str:
        """The id that the log holds for it, when it was accepted first at this time."""
        return self.record_id if self.has_given_id else made_id(self.key, first_time_s)


class Outcome(NamedTuple):
    """What became of an entry. The id is the one it got when it was stored first."""

    repeated: bool
    record_id: str


class Refusal(NamedTuple):
    """A refused record as it is kept."""

    app_id: str
    reject_time_us: int
    rejected_id: int
    """Tells refusals of one microsecond apart."""
    record_id: str | None
    """The sender's, where it gave one."""
    refusal: bytes
    """A serialised RejectedRecord."""


class LogRow(NamedTuple):
    """An entry of the log as readers get it."""

    lane: int
    position: int
    app_lane: int
    receive_time_us: int
    record: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class LogPage:
    """What one look at the log found: rows in the order of receipt, where to go on, and where all lanes end."""

    rows: list[LogRow]
    next_positions: dict[int, int]
    heads: list[int]

    @property
    def caught_up(self) -> bool:
        """Whether nothing is left below the heads of the lanes that were read."""
        return all(position >= self.heads[lane] for lane, position in self.next_positions.items())


def given_key(app_id: str, record_id: str) -> bytes:
    """What a record with an id of the sender's, and its repeats, are recognised by."""
    return blake2b(f"{app_id}\0{record_id}".encode(), digest_size=16, person=b"record_id").digest()


def made_id(key: bytes, first_time_s: int) -> str:
    """The id of a record that came without one. The time makes the same record, accepted anew after a week, another."""
    return f"{key.hex()[:24]}-{first_time_s:x}"


def made_time_s(record_id: str) -> int | None:
    """When the record was accepted that has this id, if it is one that `made_id` makes."""
    match = _MADE_ID.fullmatch(record_id)
    return int(match[1], 16) if match else None
