"""The words of the record log. A time (`…_us`) is an integer: microseconds since 1970."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import NamedTuple

from reengage.ingest.v1 import record_pb2
from services.ingest.blocklist import Blocklist

_SECOND_US = 1_000_000
_MADE_ID = re.compile("[0-9a-f]{24}-([0-9a-f]{8})")

REPEAT_WINDOW_US = 7 * 86_400 * _SECOND_US
"""For so long a record is remembered to tell its repeats."""
SHORT_REPEAT_WINDOW_US = 5 * 60 * _SECOND_US
"""For so long one that came with neither an id nor a time: the next like it may well be another."""
HAS_TIME, HAS_NO_TIME = 0, None
"""The meaning (`Entry.meaning`) of keys that are made of the content."""
MADE_ID_KEY_BYTES = 12
"""The bytes of a dedupe key, of its 16, that stand in an id made from it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class App:
    """The part of a live app's settings that records are checked against."""

    max_age_us: int
    """The age that the time of a record may have."""
    max_lead_us: int
    """The lead that the time of a record may have."""
    records_per_second: int = 0
    """Taken by this process; 0 is no limit."""
    app_lane: int
    event_names: frozenset[str]
    """Events that have a definition, archived ones too."""
    blocklist: Blocklist | None = None
    """None of an app without one."""
    is_strict: bool = False
    """True: its records come from senders with a key, or from a service of the suite."""
    account_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sender:
    """The holder of a sender's key: of one app, of an account, or, with neither, of all. It ends at `end_us`."""

    app_id: str
    account_id: str
    end_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestSettings:
    """Live apps by id, and the app of every tracker. Archived trackers too: the decision says what becomes of those."""

    apps: Mapping[str, App]
    app_of_tracker: Mapping[str, str]
    senders: Mapping[bytes, Sender] = field(default_factory=dict)
    """By the hashes of their keys."""
    stamp: bytes
    """A serialised Record that has nothing but the settings_revision."""


class Warned(NamedTuple):
    """The wrong fields of a record that was kept, as `given` by its sender and as `found` here."""

    app_id: str
    kind: str
    given: Sequence[record_pb2.FieldWarning]
    found: Sequence[record_pb2.FieldWarning]


class Entry(NamedTuple):
    """A record ready to be stored. A tuple, because the hot path makes one for every record."""

    key: bytes
    """The dedupe key: 16 bytes that are equal for a record and its repeats, and for nothing else."""
    record_id: str
    """The sender's, or the one made for it, should it be accepted now."""
    has_given_id: bool
    """True: record_id is the sender's."""
    accept_time_us: int
    meaning: int | None
    """Of a key made of the sender's id: a number for what the record is. Of any other HAS_TIME or HAS_NO_TIME."""
    lane: int
    app_lane: int
    is_engagement: bool | None
    """None: both an engagement and a conversion, as a deep-link open that stands for its own click."""
    record: bytes
    """The serialised Record with record_id and event_time in place."""
    warned: Warned | None = None
    """None: nothing was wrong with it."""

    def first_record_id(self, first_time_us: int) -> str:
        """Returns the id that the log holds for it, given when it was accepted first."""
        return self.record_id if self.has_given_id else make_id(self.key, first_time_us)


class Outcome(NamedTuple):
    """The outcome of an entry. The id is the one it got when it was stored first."""

    repeated: bool
    record_id: str
    reused: bool = False
    """True: its id is that of a record of another meaning, so it was not stored."""


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


class WarnedRow(NamedTuple):
    """A record with warnings as it is listed."""

    app_id: str
    warn_time_us: int
    warned_id: int
    """Tells records of one microsecond apart."""
    record_id: str
    warned: bytes
    """A serialised WarnedRecord."""


class LogRow(NamedTuple):
    """An entry of the log as readers get it."""

    lane: int
    position: int
    app_lane: int
    receive_time_us: int
    record: bytes
    too_large_bytes: int = 0
    """The bytes of a record that is too large for readers: `record` is empty. 0 of every other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogPage:
    """The result of one look at the log: rows in the order of receipt, where to go on, and the heads of all lanes."""

    rows: list[LogRow]
    next_positions: dict[int, int]
    heads: list[int]

    @property
    def caught_up(self) -> bool:
        """Returns whether nothing is left below the heads of the lanes that were read."""
        return all(position >= self.heads[lane] for lane, position in self.next_positions.items())


def given_key(app_id: str, record_id: str) -> bytes:
    """Returns the dedupe key of a record with an id of the sender's."""
    return blake2b(f"{app_id}\0{record_id}".encode(), digest_size=16, person=b"record_id").digest()


def make_id(key: bytes, first_time_us: int) -> str:
    """Returns the id of a record that came without one.

    The second in it makes the same record, accepted anew after a week, another one.
    """
    return f"{key[:MADE_ID_KEY_BYTES].hex()}-{first_time_us // _SECOND_US:x}"


def made_time_us(record_id: str) -> int | None:
    """Returns the second in which the record was accepted that has this id, if `make_id` can have made it."""
    match = _MADE_ID.fullmatch(record_id)
    return int(match[1], 16) * _SECOND_US if match else None
