"""From a record as it came to the entry that is stored: its dedupe key, its lane, and what is kept of it."""

from collections.abc import Sequence
from functools import cache

from libs.domain.device_ids import KINDS, is_usable
from libs.domain.lanes import lane_of
from libs.domain.record_sizes import MAX_RECORD_BYTES, MAX_WARNINGS, readable
from libs.domain.visitors import find_bot
from libs.errors import Violation
from libs.time import to_timestamp
from reengage.ingest.v1 import record_pb2
from services.ingest.countries import CountryOf
from services.ingest.model import HAS_NO_TIME, HAS_TIME, Entry, IngestSettings, Warned, given_key, make_id
from services.ingest.repeats import content_key, meaning_of
from services.ingest.validation import TOO_LARGE, check

_MAX_CODE = 64
_ENGAGEMENTS = frozenset({"click", "impression"})
_BY_BOT = {
    "click": record_pb2.Record(click=record_pb2.Click(visitor=record_pb2.VISITOR_BOT)).SerializeToString(),
    "impression": record_pb2.Record(
        impression=record_pb2.Impression(visitor=record_pb2.VISITOR_BOT)
    ).SerializeToString(),
}
"""By kind of engagement, what marks it as made by a bot (A9)."""


def admit(
    record: record_pb2.Record, settings: IngestSettings, now_us: int, country_of: CountryOf
) -> Entry | list[Violation]:
    """Returns the entry of a record that came at `now_us`, or every wrong field of it.

    The key is a digest of app and record_id if the sender gave an id, else of what happened (`repeats.py`). So a
    record_id that comes again, for another device say, is a repeat of the first record. An accepted `record` is put
    right: it loses its unusable device ids (A2), and what else is wrong with it. A refused one is left as it came, but
    for unknown fields.
    """
    app_id, given_id = record.app_id, record.record_id
    kind = record.WhichOneof("kind")
    _clear_ours(record, kind)
    content = record.SerializeToString()
    if len(content) > MAX_RECORD_BYTES:
        return [TOO_LARGE]  # there may be millions of device ids: nothing else is looked at
    device_ids = _device_ids(record)
    usable = {name: value for name, value in device_ids.items() if is_usable(value)}
    # Parsing keeps unknown fields, and nothing bounds them.
    record.DiscardUnknownFields()
    refusals, warnings, is_changed = check(
        record,
        settings,
        now_us,
        content=content,
        has_unknown=record.ByteSize() < len(content),
        kind=kind,
        device_ids=device_ids,
        usable=usable,
    )
    if refusals or kind is None:
        record.ParseFromString(content)
        record.DiscardUnknownFields()
        return list(refusals)
    warned = _note(record, kind, warnings) if warnings or record.warnings else None
    if is_changed or warned or len(usable) < len(device_ids):
        for name in device_ids.keys() - usable.keys():
            del record.device_ids[name]
        content = record.SerializeToString()
    has_time = record.HasField("event_time")
    key = given_key(app_id, given_id) if given_id else content_key(record, kind, usable)
    # An id that could not stay as it came is known by its digest all the same.
    kept_id = record.record_id
    record_id = kept_id or make_id(key, now_us)
    # A serialised message followed by another is their merge. So what is missing is added at the end.
    content += settings.stamp
    if country := country_of(record.ip_address):
        content += _country_stamp(country)
    if not kept_id:
        content += record_pb2.Record(record_id=record_id).SerializeToString()
    if kind in _BY_BOT:
        content += _marks(kind, record, usable, settings)
    if not has_time:
        content += record_pb2.Record(event_time=to_timestamp(now_us)).SerializeToString()
    # An engagement without an id stays with its address; without an address, it goes anywhere.
    device = (_best(usable).strip().lower() if usable else record.ip_address) or record_id
    return Entry(
        key,
        record_id,
        bool(kept_id),
        now_us,
        meaning_of(kind, record.event.event_name) if given_id else HAS_TIME if has_time else HAS_NO_TIME,
        lane_of(app_id, device),
        settings.apps[app_id].app_lane,
        _is_engagement(record, kind),
        content,
        warned,
    )


def _note(record: record_pb2.Record, kind: str, found: Sequence[Violation]) -> Warned:
    """Adds what was found wrong to what the sender of a record says of that himself, which is kept within bounds."""
    given = record.warnings
    del given[MAX_WARNINGS:]
    for each in given:
        shown = Violation(field=readable(each.field), reason="", description=readable(each.message))
        each.field, each.code, each.message = shown.field, readable(each.code[:_MAX_CODE]), shown.description
    warned = Warned(record.app_id, kind, list(given), [_to_warning(violation) for violation in found])
    given.extend(warned.found)
    return warned


def _to_warning(violation: Violation) -> record_pb2.FieldWarning:
    return record_pb2.FieldWarning(field=violation.field, code=violation.reason, message=violation.description)


def _clear_ours(record: record_pb2.Record, kind: str | None) -> None:
    """Removes from a record what only we say."""
    if record.settings_revision or record.country:
        record.ClearField("settings_revision")
        record.ClearField("country")
    if kind in _ENGAGEMENTS:
        (record.click if kind == "click" else record.impression).ClearField("block_reason")


def _marks(kind: str, record: record_pb2.Record, usable: dict[str, str], settings: IngestSettings) -> bytes:
    """Returns what says that a click or an impression is a bot's (A9), or blocked."""
    by_bot = _BY_BOT[kind] if find_bot(record.user_agent) is not None else b""
    blocklist = settings.apps[record.app_id].blocklist
    return by_bot if blocklist is None else by_bot + blocklist.mark(kind, record, usable)


@cache
def _country_stamp(country: str) -> bytes:
    """Returns a serialised Record that has nothing but a country, of which there are some 250."""
    return record_pb2.Record(country=country).SerializeToString()


def _is_engagement(record: record_pb2.Record, kind: str | None) -> bool | None:
    if kind == "deep_link_open" and record.deep_link_open.tracker_id and not record.deep_link_open.click_record_id:
        return None
    return kind in _ENGAGEMENTS


def _device_ids(record: record_pb2.Record) -> dict[str, str]:
    ids = record.device_ids
    return {name: ids[name] for name in ids}  # half the time of dict(ids)


def _best(ids: dict[str, str]) -> str:
    """Returns the id that names the device best."""
    return ids[min(ids, key=KINDS.index)] if len(ids) > 1 else next(iter(ids.values()))
